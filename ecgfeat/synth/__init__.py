"""Labelled synthetic twelve-lead ECG pages, for the demo, tests and benchmarks.

Two balanced classes: ``normal``, and ``pathological`` by ST deviation with reciprocal change, by a
wide QRS (left or right bundle branch block), or by atrial fibrillation. `heart` makes the signal
(McSharry's model in closed form) and its leads, `page` draws them, and `dataset` makes a set.
"""

from ecgfeat.synth.dataset import SynthSummary, draw_page, synthesize
from ecgfeat.synth.heart import CLASSES

__all__ = ["CLASSES", "SynthSummary", "draw_page", "synthesize"]
