"""Small heads on cached features: the linear layer and logistic regression.

Both work on the cache's arrays alone: no image is opened, and neither torch nor torchvision is
imported. `head` says what a head is, and `registry` which there are: a new kind is a file beside
`linear` and `logistic` and a line there. `fit` goes from a cache to finished runs, `experiment`
chooses, trains and tests in every fold of one, and `sweep` tries many heads.
"""

from ecgfeat.heads.fit import fit_heads
from ecgfeat.heads.head import Tensors
from ecgfeat.heads.linear import HeadEpoch, LinearSpec, fit_linear_heads
from ecgfeat.heads.logistic import LogisticFit, as_pipeline, fit_logistic, fit_logistic_path
from ecgfeat.heads.registry import HEADS, head_fits, head_of, head_probabilities, idle_options

__all__ = [
    "HEADS",
    "HeadEpoch",
    "LinearSpec",
    "LogisticFit",
    "Tensors",
    "as_pipeline",
    "fit_heads",
    "fit_linear_heads",
    "fit_logistic",
    "fit_logistic_path",
    "head_fits",
    "head_of",
    "head_probabilities",
    "idle_options",
]
