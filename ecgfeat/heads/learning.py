"""The learning curve: what a head gains from more training rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ecgfeat.heads.candidates import Candidate
from ecgfeat.heads.data import HeadData
from ecgfeat.heads.metering import Meter
from ecgfeat.heads.scoring import SCORES, validation_scores, value_or_none
from ecgfeat.heads.training import fit_head
from ecgfeat.protocol import Partition, training_share

__all__ = ["FRACTIONS", "learning_curve"]

FRACTIONS = (0.05, 0.1, 0.2, 0.4, 0.7, 1.0)
"""Of the training groups of each class: steps of about a factor of two, as such curves bend."""


def learning_curve(
    data: HeadData,
    candidate: Candidate,
    plan: Sequence[Partition],
    *,
    n_epochs: int,
    seeds: Sequence[int],
    meter: Meter,
) -> list[dict[str, Any]]:
    """Train a head on ever more of its training rows, and score it on the validation rows.

    Parameters
    ----------
    data : HeadData
    candidate : Candidate
    plan : sequence of Partition
        One, or inner folds, over which `n_train` and the scores are means.
    n_epochs : int
        Of a linear head, whatever the number of rows.
    seeds : sequence of int
        Each draws rows of its own, and starts the linear head of its own. The rows of a smaller
        fraction are among those of a larger one.
    meter : Meter
        Counts fractions and seeds.

    Returns
    -------
    list of dict
        One per fraction and seed: ``fraction``, ``n_train``, ``seed`` and the scores; None where
        the training diverged.
    """

    def score(part: Partition, seed: int) -> NDArray[np.float64]:
        fitted = fit_head(
            data,
            candidate,
            part,
            seed=seed,
            n_epochs=n_epochs,
            on_step=lambda _: None,
        )
        probabilities = data.probabilities(part.validation, fitted.tensors, candidate.head.taps)
        return validation_scores(probabilities, data.task.targets[part.validation])

    rows = []
    for fraction in FRACTIONS:
        for seed in seeds:
            shares = [_share(data, part, fraction, seed) for part in plan]
            means = np.mean([score(share, seed) for share in shares], axis=0)
            scores: dict[str, float | None] = {
                name: value_or_none(float(mean)) for name, mean in zip(SCORES, means)
            }
            rows.append(
                {
                    "fraction": fraction,
                    "n_train": round(sum(len(share.train) for share in shares) / len(shares)),
                    "seed": seed,
                    **scores,
                }
            )
            meter.advance(1)
    return rows


def _share(data: HeadData, part: Partition, fraction: float, seed: int) -> Partition:
    cache = data.cache
    return training_share(
        part, data.task, ids=cache.paths, groups=cache.groups, fraction=fraction, seed=seed
    )
