"""New images through a run's model."""

from __future__ import annotations

import contextlib
import glob
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ecgfeat.calibration import Decision
from ecgfeat.config import ComputeSettings
from ecgfeat.errors import DataError
from ecgfeat.files import write_csv
from ecgfeat.images import decoder_of, stream
from ecgfeat.inference.model import Model, read_model
from ecgfeat.manifest import IMAGE_KINDS, images_below, list_images
from ecgfeat.predictions import positive_class
from ecgfeat.runs import Run
from ecgfeat.runtime import (
    Compute,
    Progress,
    Report,
    resolve_compute,
    silent,
    supported_precisions,
)

if TYPE_CHECKING:
    from ecgfeat.backbones import Backbone

__all__ = ["FailedImage", "InferenceResult", "predict"]


BATCH_SIZE = 4
"""Images per forward pass: the CPU gains nothing from more, and few images are the rule here."""


@dataclass(frozen=True, kw_only=True)
class FailedImage:
    """An image of which nothing can be said.

    Attributes
    ----------
    path : Path
    reason : str
        For people.
    """

    path: Path
    reason: str


@dataclass(frozen=True, kw_only=True, eq=False)
class InferenceResult:
    """What a run's model says of new images.

    Attributes
    ----------
    paths : tuple of Path, length n
        In the order given; those of a folder by name.
    classes : tuple of str
        In a binary task the second is the positive one.
    probabilities : ndarray of shape (n, n_classes), float64
        Calibrated, where the run is. Each row sums to 1.
    decision : Decision
        How the probabilities came about, and become answers.
    failures : tuple of FailedImage
        The images that are not among `paths`.
    compute : Compute
        Where and how exactly it was computed.
    distances : ndarray of shape (n,), float32
        How far each image's features lie from the training images', over the largest distance
        among those: above 1 it is unlike them all. NaN where the run doesn't tell.
    n_models : int
        Models whose probabilities' mean it is: of a cross-validated head as many as folds.
    columns : mapping of str to tuple of str
        What CSVs said of the images, those of `paths` first, then those of `failures`.
    """

    paths: tuple[Path, ...]
    classes: tuple[str, ...]
    probabilities: NDArray[np.float64]
    decision: Decision
    failures: tuple[FailedImage, ...]
    compute: Compute
    distances: NDArray[np.float32]
    n_models: int = 1
    columns: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def positive(self) -> str | None:
        """The positive class of a binary task, else None."""
        return positive_class(self.classes)

    @property
    def unlike(self) -> tuple[Path, ...]:
        """The images that are unlike all training images, so that their answers mean little."""
        return tuple(self.paths[row] for row in np.flatnonzero(self.distances > 1))

    @property
    def predicted(self) -> tuple[str, ...]:
        """The answer for each image, length n: the most probable class, or by the threshold."""
        answers = self.decision.answers(self.probabilities)
        if answers is None:
            answers = self.probabilities.argmax(axis=1)
        return tuple(self.classes[index] for index in answers)

    def write_csv(self, path: str | Path) -> None:
        """Write a row per image: what was given of it, the answer, and the probabilities.

        Images of which nothing can be said come last, with the reason.

        Raises
        ------
        StorageError
        """
        probabilities = [f"p_{name}" for name in self.classes]
        names = [name for name in self.columns if name not in ("image", "predicted", "reason")]
        rows: list[Sequence[object]] = [["image", *names, "predicted", *probabilities, "reason"]]
        cells = list(zip(*(self.columns[name] for name in names))) or [()] * (
            len(self.paths) + len(self.failures)
        )
        for image, given, answer, values in zip(
            self.paths, cells, self.predicted, self.probabilities.tolist()
        ):
            rows.append([image, *given, answer, *values, ""])
        for failure, given in zip(self.failures, cells[len(self.paths) :]):
            rows.append([failure.path, *given, "", *[""] * len(probabilities), failure.reason])
        write_csv(Path(path), rows)

    def as_json(self) -> dict[str, Any]:
        """The result as plain values."""
        return {
            "classes": list(self.classes),
            "decision": self.decision.as_json(),
            "images": [
                {
                    "path": str(path),
                    "predicted": predicted,
                    "probabilities": dict(zip(self.classes, row)),
                }
                for path, predicted, row in zip(
                    self.paths, self.predicted, self.probabilities.tolist()
                )
            ],
            "failures": [
                {"path": str(failure.path), "reason": failure.reason} for failure in self.failures
            ],
            "unlike": [str(path) for path in self.unlike],
            "n_models": self.n_models,
            "device": self.compute.device,
            "precision": self.compute.precision,
        }


def predict(
    run: Run,
    images: Sequence[str | Path],
    *,
    compute: ComputeSettings = ComputeSettings(),
    weights: str | None = None,
    report: Report = silent,
) -> InferenceResult:
    """Apply a run's model to new images, prepared as the run's own were.

    A cross-validated head answers by the mean of its folds' probabilities.

    Parameters
    ----------
    run : Run
    images : sequence of str or Path
        Files; folders, of which all images are taken, their sub-folders' too; CSVs with a column
        of paths, of which the others are kept; or patterns such as ``new/*.png``.
    compute : ComputeSettings
        With precision ``auto``, the run's is taken, unless the device hasn't got it.
    weights : str, optional
        Where the backbone's weights are now; by default where the run found them. They must be
        the very same. A fine-tuning keeps its own.
    report : callable
        Told the progress before every batch.

    Returns
    -------
    InferenceResult
        Probabilities of the images that could be read, and why of the others not.

    Raises
    ------
    RunError
        When the run is a fine-tuning's cross-validation, which keeps no model, or its model is
        damaged.
    DataError
        When there are no images, or a folder holds none.
    WeightsError
        When the backbone's weights can't be had, or aren't the run's.
    ConfigError, DeviceError, StorageError, Interrupted

    Examples
    --------
    >>> run = open_run(Path("runs/20260131-094500-linear-pages"))  # doctest: +SKIP
    >>> predict(run, [Path("new/page1.jpg")]).predicted  # doctest: +SKIP
    ('normal',)
    """
    model = read_model(run)
    paths, columns = _listed(images)
    backbone = model.load_backbone(weights, _resolve(compute, model.precision))
    decoder = decoder_of(map(str, paths))
    if model.decoder != decoder:
        message = f"the run's own images were decoded by {model.decoder}, these by {decoder}"
        report(Progress(stage="predicting", done=0, total=len(paths), message=message))
    return _apply(model, backbone, paths, columns, report)


class _Listed(NamedTuple):
    """The images asked for, and what a CSV says of each, empty for others."""

    paths: list[Path]
    columns: dict[str, list[str]]


def _listed(images: Sequence[str | Path]) -> _Listed:
    paths: list[Path] = []
    columns: dict[str, list[str]] = {}
    for given in map(Path, images):
        found, said = _images_of(given)
        for name in {**columns, **said}:
            cells = columns.setdefault(name, [""] * len(paths))
            cells += said.get(name, [""] * len(found))
        paths += found
    if not paths:
        raise DataError("there are no images to predict: give files, or folders that hold some")
    return _Listed(paths, columns)


def _images_of(given: Path) -> tuple[list[Path], dict[str, list[str]]]:
    """The images that a path stands for: a file's, a folder's, a CSV's or a pattern's."""
    if given.is_dir():
        found = images_below(given)
        if not found:
            raise DataError(f"{given} holds no images ({IMAGE_KINDS})")
        return found, {}
    if given.suffix.lower() in (".csv", ".tsv"):
        return list_images(given)
    if not given.exists() and glob.has_magic(str(given)):
        matched = sorted(glob.glob(str(given), recursive=True))  # noqa: PTH207 - any root
        if not matched:
            raise DataError(f"no file matches {given}")
        return list(map(Path, matched)), {}
    return [given], {}


def _resolve(settings: ComputeSettings, run_precision: str) -> Compute:
    if settings.precision != "auto":
        return resolve_compute(settings, purpose="extract")
    compute = resolve_compute(replace(settings, precision="fp32"), purpose="extract")
    if run_precision in supported_precisions(compute.device):
        return replace(compute, precision=run_precision, reason="as in the run")
    return resolve_compute(settings, purpose="extract")


def _apply(
    model: Model,
    backbone: Backbone,
    paths: list[Path],
    columns: Mapping[str, Sequence[str]],
    report: Report,
) -> InferenceResult:
    from ecgfeat.backbones import filled

    n_images = len(paths)
    batches = [range(i, min(i + BATCH_SIZE, n_images)) for i in range(0, n_images, BATCH_SIZE)]
    probabilities = np.full((n_images, len(model.classes)), np.nan)
    distances = np.full(n_images, np.nan, np.float32)
    reasons: dict[int, str] = {}
    decoded = stream(paths, batches, model.preprocessing, threads=backbone.compute.threads)
    with contextlib.closing(decoded):
        for rows, batch in zip(batches, decoded):
            report(Progress(stage="predicting", done=rows.start, total=n_images))
            reasons.update((failure.row, failure.reason) for failure in batch.failures)
            if not len(batch.rows):
                continue
            # Filled up, so that an image's answer doesn't hang on how many others there are.
            features = backbone.features(filled(batch.pixels, BATCH_SIZE))
            probabilities[batch.rows] = model.probabilities(features)[: len(batch.rows)]
            distances[batch.rows] = model.distances(features)[: len(batch.rows)]
    report(Progress(stage="predicting", done=n_images, total=n_images))
    for row in np.flatnonzero(~np.isfinite(probabilities).all(axis=1)).tolist():
        reasons.setdefault(row, "the network's answer is not finite")
    good = [row for row in range(n_images) if row not in reasons]
    return InferenceResult(
        paths=tuple(paths[row] for row in good),
        classes=model.classes,
        probabilities=probabilities[good],
        decision=model.decision,
        failures=tuple(
            FailedImage(path=paths[row], reason=reasons[row]) for row in sorted(reasons)
        ),
        compute=backbone.compute,
        distances=distances[good],
        n_models=len(model.heads),
        columns={
            name: tuple(cells[row] for row in [*good, *sorted(reasons)])
            for name, cells in columns.items()
        },
    )
