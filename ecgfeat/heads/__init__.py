"""Small heads on cached features: the linear layer and logistic regression.

Both work on the cache's arrays alone: no image is opened, and neither torch nor torchvision is
imported.

`linear` and `logistic` train heads on arrays (by `batching`; by `likelihood` and `descent`), and
`applying` gives their probabilities. `grids` reads what is to be tried, `candidates` combines it,
`choosing` ranks it by `scoring` it on validation rows, and `learning` draws learning curves. `job`
does the whole work behind a run on its `data`, `outcomes` are its parts, `describing` tells what is
kept of it, and `fitting` goes from a cache to finished runs.
"""

from ecgfeat.heads.fit import fit_heads
from ecgfeat.heads.head import Tensors, head_fits, head_probabilities
from ecgfeat.heads.linear import HeadEpoch, LinearSpec, fit_linear_heads
from ecgfeat.heads.logistic import LogisticFit, as_pipeline, fit_logistic, fit_logistic_path

__all__ = [
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
    "head_probabilities",
]
