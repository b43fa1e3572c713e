"""A learning rate found by a range test (Smith 2017).

"Cyclical learning rates for training neural networks", section 3.3. A copy of the network is
trained for a hundred steps while the rate rises from far too low to far too high, and is then
thrown away. How high the rate may rise before the loss turns up again depends on weights, images,
batch size and optimiser; the rate taken is a fixed share of the one at which it turned.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ecgfeat import figures
from ecgfeat.config import FigureSettings
from ecgfeat.errors import DivergedError
from ecgfeat.files import write_csv
from ecgfeat.finetuning.trainer import Batches, Images, Tick, shuffled_batches
from ecgfeat.protocol import Partition

if TYPE_CHECKING:
    from ecgfeat.finetuning.job import Job

__all__ = ["N_STEPS", "LrRange", "TriedLr", "find_lr", "n_images_tried", "write_lr_range"]

N_STEPS = 100
LOWEST, HIGHEST = 1e-6, 1.0
"""Adam does nothing in a few steps at the one; neither it nor SGD learns at the other."""
SMOOTHED_OVER = 4.0
"""Standard deviation, in steps, of the Gaussian that smooths the loss: a quarter of a decade."""
SHARE = 1 / 2
"""The rate taken over the one at which the loss was least, and a step further would have hurt."""
LOST = 1.5
"""The test ends early once the loss is as many times that of guessing (or of the first steps)."""
RECENT = 10
"""Steps over whose mean that is judged."""


@dataclass(frozen=True, kw_only=True)
class TriedLr:
    """A step of the range test.

    Attributes
    ----------
    lr : float
    loss : float
        Of its mini-batch, before the step.
    smoothed : float
        Over the steps around it.
    """

    lr: float
    loss: float
    smoothed: float


@dataclass(frozen=True, kw_only=True)
class LrRange:
    """What a range test found.

    Attributes
    ----------
    lr : float
        The learning rate to train with.
    tried : sequence of TriedLr
        Step by step.
    """

    lr: float
    tried: Sequence[TriedLr]


def find_lr(job: Job, part: Partition, images: Images, tick: Tick) -> LrRange:
    """Find a learning rate on a fold's training rows alone.

    Parameters
    ----------
    job : Job
    part : Partition
    images : Images
    tick : callable
        Told the images behind, of ``N_STEPS`` mini-batches at most; may raise `Interrupted`.

    Raises
    ------
    DivergedError
        When the loss fell at no rate, so that there is none to choose.
    """
    trainer = job.new_trainer(part)
    rates = np.geomspace(LOWEST, HIGHEST, N_STEPS)
    batches = _batches(job, part)
    guessing = math.log(len(job.task.classes))
    losses: list[float] = []
    stream = images.stream(batches, tick, alter=job.alter(part.fold, 0))
    with contextlib.closing(stream):
        for batch in job.ranks.in_step(stream):
            trainer.set_lr(float(rates[len(losses)]))
            step = trainer.step(batch.pixels, images.targets[batch.rows])
            if not math.isfinite(step.loss):
                break
            if step.n_images:
                losses.append(step.loss)
            if _is_lost(losses, guessing):
                break
    return choose_lr(rates[: len(losses)], np.array(losses))


def _is_lost(losses: Sequence[float], guessing: float) -> bool:
    if not losses:
        return False
    first, recent = float(np.mean(losses[:RECENT])), float(np.mean(losses[-RECENT:]))
    return recent > LOST * max(guessing, first)


def n_images_tried(job: Job, part: Partition) -> int:
    """How many images a range test takes, unless the loss is lost before."""
    return sum(map(len, _batches(job, part)))


def _batches(job: Job, part: Partition) -> Batches:
    """The first ``N_STEPS`` mini-batches of as many passes over the rows as it takes."""
    passes = (
        shuffled_batches(
            part.train,
            job.training.batch_size,
            seed=job.evaluation.seed,
            fold=part.fold,
            epoch=epoch,
        )
        for epoch in itertools.count()
    )
    return list(itertools.islice(itertools.chain.from_iterable(passes), N_STEPS))


def choose_lr(rates: NDArray[np.float64], losses: NDArray[np.float64]) -> LrRange:
    """Choose from what was tried: ``SHARE`` of the rate at which the smoothed loss was least.

    Parameters
    ----------
    rates, losses : ndarray of shape (n_steps,), float64

    Raises
    ------
    DivergedError
        When the loss fell at no rate.
    """
    smoothed = _smoothed(losses)
    least = int(smoothed.argmin()) if len(losses) else 0
    if least == 0:
        raise DivergedError(
            "--lr auto: the loss fell at none of the learning rates tried, so there is none to "
            "choose. Give --lr as a number, such as 1e-4."
        )
    tried = [
        TriedLr(lr=lr, loss=loss, smoothed=level)
        for lr, loss, level in zip(rates.tolist(), losses.tolist(), smoothed.tolist())
    ]
    # Two digits: the test is no more exact than that.
    return LrRange(lr=float(f"{SHARE * rates[least]:.1e}"), tried=tried)


def _smoothed(losses: NDArray[np.float64]) -> NDArray[np.float64]:
    """Gaussian means over the steps around each, of those that there are."""
    steps = np.arange(len(losses))
    weights = np.exp(-0.5 * ((steps[:, None] - steps) / SMOOTHED_OVER) ** 2)
    smoothed: NDArray[np.float64] = weights @ losses / weights.sum(axis=1)
    return smoothed


def write_lr_range(
    folder: Path,
    found: LrRange,
    part: Partition,
    n_folds: int,
    look: FigureSettings = FigureSettings(),
) -> str:
    """Write ``lr_range.csv`` and its figure, ``lr_range.png``, of several folds numbered from 1.

    Gives the figure's name, or the table's and why there is no figure: it costs no training.

    Raises
    ------
    StorageError
        When the disk refuses.
    """
    number = f"-{part.fold + 1}" if n_folds > 1 else ""
    rows = [dataclasses.astuple(step) for step in found.tried]
    write_csv(folder / f"lr_range{number}.csv", [("lr", "loss", "smoothed"), *rows])
    fold = f", fold {part.fold + 1} of {n_folds}" if n_folds > 1 else ""
    path = folder / f"lr_range{number}.{look.figure_format}"
    try:
        figures.lr_range_plot(
            [dataclasses.asdict(step) for step in found.tried],
            found.lr,
            path,
            f"Learning-rate range test{fold}" if look.title else "",
        )
    # A training is worth more than a picture of it, whatever went wrong in drawing that.
    except Exception as error:  # noqa: BLE001
        return f"{path.with_suffix('.csv').name} (its figure can't be drawn: {error})"
    return path.name
