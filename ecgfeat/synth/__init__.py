"""Labelled synthetic twelve-lead ECG pages, for the demo, tests and benchmarks.

Two balanced classes: ``normal``, and ``pathological`` by ST deviation with reciprocal change, by a
wide QRS (left or right bundle branch block), or by atrial fibrillation. `heart` makes the signal
(McSharry's model in closed form) and its leads, `page` draws them, and `dataset` makes a set.
`morphology` draws pages of any findings together and tells all that they show.
"""

from ecgfeat.synth.dataset import SynthSummary, draw_page, synthesize
from ecgfeat.synth.heart import CLASSES
from ecgfeat.synth.morphology import FINDINGS, MEASURES, NUMBERS, Lesson, draw_lesson
from ecgfeat.synth.page import LAYOUTS

__all__ = [
    "CLASSES",
    "FINDINGS",
    "LAYOUTS",
    "MEASURES",
    "NUMBERS",
    "Lesson",
    "SynthSummary",
    "draw_lesson",
    "draw_page",
    "synthesize",
]
