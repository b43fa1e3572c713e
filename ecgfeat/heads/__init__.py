"""Small heads on cached features: the linear layer and logistic regression.

Both work on the cache's arrays alone: no image is opened, and neither torch nor torchvision is
imported.

`linear` and `logistic` train a head on arrays, `applying` gives its probabilities, and `fitting`
goes from a cache through all of them to finished runs.
"""

from ecgfeat.heads.applying import Tensors, head_fits, head_probabilities
from ecgfeat.heads.fitting import fit_heads
from ecgfeat.heads.linear import fit_linear
from ecgfeat.heads.logistic import LogisticFit, fit_logistic

__all__ = [
    "LogisticFit",
    "Tensors",
    "fit_heads",
    "fit_linear",
    "fit_logistic",
    "head_fits",
    "head_probabilities",
]
