"""Small heads on cached features: the linear layer and logistic regression.

Both work on the cache's arrays alone: no image is opened, and neither torch nor torchvision is
imported.
"""

from ecgfeat.heads.applying import head_probabilities
from ecgfeat.heads.fitting import fit_heads
from ecgfeat.heads.linear import fit_linear
from ecgfeat.heads.logistic import fit_logistic

__all__ = ["fit_heads", "fit_linear", "fit_logistic", "head_probabilities"]
