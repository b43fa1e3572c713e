"""Training one head, of either kind."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from ecgfeat.heads.applying import Tensors
from ecgfeat.heads.candidates import Candidate
from ecgfeat.heads.data import HeadData
from ecgfeat.heads.linear import HeadEpoch, fit_linear_heads
from ecgfeat.heads.logistic import LogisticFit, fit_logistic_path
from ecgfeat.protocol import Partition
from ecgfeat.runs import EpochRecord

__all__ = ["Fitted", "Step", "fit_head"]

Step = Callable[[EpochRecord | LogisticFit], None]
"""Told each epoch, or the end of logistic regression; what it raises ends the training."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Fitted:
    """A head after training.

    Attributes
    ----------
    tensors : mapping of str to ndarray
    n_rows : int
        Rows it was trained on.
    training_s : float
    history : sequence of EpochRecord
        Of a linear head.
    solver : mapping, optional
        How logistic regression ended.
    """

    tensors: Tensors
    n_rows: int
    training_s: float
    history: Sequence[EpochRecord] = ()
    solver: Mapping[str, int | bool] | None = None


def fit_head(
    data: HeadData,
    candidate: Candidate,
    part: Partition,
    *,
    seed: int,
    n_epochs: int,
    on_step: Step,
) -> Fitted:
    """Train one head on the training rows of a partition.

    Parameters
    ----------
    data : HeadData
    candidate : Candidate
    part : Partition
    seed : int
        Of a linear head; logistic regression has none.
    n_epochs : int
        Of a linear head.
    on_step : callable
    """
    X, y = data.features(candidate.head.taps), data.task.targets
    began = time.perf_counter()
    if candidate.kind == "logreg":
        (fit,) = fit_logistic_path(
            X,
            y,
            part.train,
            Cs=[candidate.head.C],
            balanced=candidate.is_balanced,
            on_fit=lambda _, fit: on_step(fit),
        )
        solver = {"n_iterations": fit.n_iterations, "converged": fit.converged}
        training_s = time.perf_counter() - began
        return Fitted(
            tensors=fit.tensors, n_rows=len(part.train), training_s=training_s, solver=solver
        )
    history: list[EpochRecord] = []

    def on_epoch(_: int, heads: list[HeadEpoch]) -> None:
        history.append(heads[0].record)
        on_step(heads[0].record)

    (tensors,) = fit_linear_heads(
        X,
        y,
        part,
        n_classes=len(data.task.classes),
        specs=[candidate.spec(seed)],
        epochs=n_epochs,
        batch_size=candidate.head.batch_size,
        on_epoch=on_epoch,
    )
    training_s = time.perf_counter() - began
    return Fitted(tensors=tensors, n_rows=len(part.train), training_s=training_s, history=history)
