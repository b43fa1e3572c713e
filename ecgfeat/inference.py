"""A finished run applied to new images.

Every kind of run ends in the same two steps: a backbone's features, then a head on them. For a
fine-tuned network the head is its last layer. Images come first, then what a run kept of its
model, read back and checked.
"""

from __future__ import annotations

import contextlib
import glob
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from ecgfeat.architectures import family_of
from ecgfeat.calibration import Decision
from ecgfeat.config import TAPS, ComputeSettings, NetworkSettings, parse_tap
from ecgfeat.errors import ConfigError, DataError, WeightsError
from ecgfeat.files import page_named, write_csv
from ecgfeat.heads import Tensors, head_fits, head_probabilities
from ecgfeat.images import Remarks, decoder_of, stream
from ecgfeat.manifest import IMAGE_KINDS, images_below, list_images, pages_named
from ecgfeat.predictions import positive_class
from ecgfeat.runs import Likeness, ModelCard, Run, damaged, open_run
from ecgfeat.runtime import (
    Compute,
    Progress,
    Report,
    html_table,
    resolve_compute,
    silent,
    supported_precisions,
)

if TYPE_CHECKING:
    from ecgfeat.backbones import Backbone

__all__ = [
    "FailedImage",
    "InferenceResult",
    "Model",
    "list_given",
    "predict",
    "read_model",
]


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


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
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
    cleaning : str
        How many photographs were straightened; empty where pages aren't cleaned.
    warnings : tuple of str
        What should be known of how images were decoded, such as the first of several pages.
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
    cleaning: str = ""
    warnings: tuple[str, ...] = ()

    def __repr__(self) -> str:
        counts = ", ".join(f"{self.predicted.count(name)} {name}" for name in self.classes)
        return f"InferenceResult of {len(self.paths)} images: {counts}; {len(self.failures)} unread"

    def _repr_html_(self) -> str:
        rows = [
            (path, answer, *(f"{value:.4f}" for value in row))
            for path, answer, row in zip(self.paths, self.predicted, self.probabilities.tolist())
        ]
        return html_table(repr(self), ("image", "answer", *self.classes), rows)

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
        return tuple(self.classes[index] for index in self.decision.answers(self.probabilities))

    def write_csv(self, path: str | Path) -> None:
        """Write a row per image: what was given of it, the answer, and the probabilities.

        Images of which nothing can be said come last, with the reason. A column given that is
        called as one of ours, such as ``predicted``, becomes ``given_predicted``.

        Raises
        ------
        StorageError
        """
        probabilities = [f"p_{name}" for name in self.classes]
        own = {"image", "predicted", *probabilities, "reason"}
        names = [f"given_{name}" if name in own else name for name in self.columns]
        rows: list[Sequence[object]] = [["image", *names, "predicted", *probabilities, "reason"]]
        cells = list(zip(*self.columns.values())) or [()] * (len(self.paths) + len(self.failures))
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
            "cleaning": self.cleaning,
            "warnings": list(self.warnings),
            "n_models": self.n_models,
            "device": self.compute.device,
            "precision": self.compute.precision,
        }


def predict(
    run: Run | str | Path,
    images: Sequence[str | Path] | str | Path,
    *,
    compute: ComputeSettings = ComputeSettings(),
    weights: str | None = None,
    pages: Literal["first", "all"] = "first",
    report: Report = silent,
) -> InferenceResult:
    """Apply a run's model to new images, prepared as the run's own were.

    A cross-validated head answers by the mean of its folds' probabilities.

    Parameters
    ----------
    run : Run, str or Path
    images : str, Path or a sequence of them
        Files; folders, of which all images are taken, their sub-folders' too; CSVs with a column
        of paths, of which the others are kept; or patterns such as ``new/*.png``.
    compute : ComputeSettings
        With precision ``auto``, the run's is taken, unless the device hasn't got it.
    weights : str, optional
        Where the backbone's weights are now; by default where the run found them. They must be
        the very same. A fine-tuning keeps its own.
    pages : {"first", "all"}
        Of a file of several pages (TIFF, PDF, DICOM) the first, or each as an image of its own;
        ``scan.tif#page=2`` names one page either way.
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
    model = read_model(run if isinstance(run, Run) else open_run(run))
    card = model.card
    paths, columns = list_given(images, pages)
    backbone = model.load_backbone(
        weights, _resolve(compute, card.precision), taps=model.compared_taps
    )
    decoder = decoder_of(map(str, paths), card.preprocessing.dpi)
    others = [part for part in decoder.split(", ") if part not in card.decoder.split(", ")]
    if others:
        message = (
            f"the run's own images were decoded by {card.decoder}, these by {', '.join(others)}"
        )
        report(Progress(stage="predicting", done=0, total=len(paths), message=message))
    return _apply(model, backbone, paths, columns, report)


def list_given(
    images: Sequence[str | Path] | str | Path, pages: Literal["first", "all"] = "first"
) -> tuple[list[Path], dict[str, list[str]]]:
    """The images that files, folders, CSVs and patterns stand for, or all of their pages.

    Returns
    -------
    paths : list of Path
    columns : dict of str to list of str
        What CSVs say of each image, by column; empty cells for the others.

    Raises
    ------
    DataError
        When there are none.
    """
    paths: list[Path] = []
    columns: dict[str, list[str]] = {}
    for given in map(Path, [images] if isinstance(images, (str, Path)) else images):
        found, said = _images_of(given)
        for name in {**columns, **said}:
            cells = columns.setdefault(name, [""] * len(paths))
            cells += said.get(name, [""] * len(found))
        paths += found
    if not paths:
        raise DataError("there are no images: give files, or folders that hold some")
    if pages == "all":
        named = [pages_named(path) for path in paths]
        rows = [row for row, each in enumerate(named) for _ in each]
        paths = [Path(name) for each in named for name in each]
        columns = {name: [cells[row] for row in rows] for name, cells in columns.items()}
    return paths, columns


def _images_of(given: Path) -> tuple[list[Path], dict[str, list[str]]]:
    """The images that a path stands for: a file's, a folder's, a CSV's or a pattern's."""
    if given.is_dir():
        found = images_below(given)
        if not found:
            raise DataError(f"{given} holds no images ({IMAGE_KINDS})")
        return found, {}
    if given.suffix.lower() in (".csv", ".tsv"):
        return list_images(given)
    if not Path(page_named(given).file).exists() and glob.has_magic(str(given)):
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
    probabilities = np.full((n_images, len(model.card.classes)), np.nan)
    distances = np.full(n_images, np.nan, np.float32)
    reasons: dict[int, str] = {}
    remarks = Remarks()
    decoded = stream(paths, batches, model.card.preprocessing, threads=backbone.compute.threads)
    with contextlib.closing(decoded):
        for rows, batch in zip(batches, decoded):
            report(Progress(stage="predicting", done=rows.start, total=n_images))
            reasons.update((failure.row, failure.reason) for failure in batch.failures)
            remarks.take_in(batch)
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
        classes=model.card.classes,
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
        cleaning=remarks.on_cleaning(model.card.preprocessing),
        warnings=remarks.in_words(paths),
    )


# The run's model


@dataclass(frozen=True, kw_only=True, eq=False)
class CalibratedHead:
    """A head, and what becomes of its probabilities.

    Attributes
    ----------
    taps : tuple of str
        Names of the taps that, joined, are its features.
    tensors : mapping of str to ndarray
        As `ecgfeat.heads.head_probabilities` takes them.
    decision : Decision
    """

    taps: tuple[str, ...]
    tensors: Tensors
    decision: Decision

    def probabilities(self, features: Mapping[str, NDArray[np.float32]]) -> NDArray[np.float64]:
        """Calibrated probabilities by class, shape (b, n_classes)."""
        X = np.concatenate([features[tap] for tap in self.taps], axis=1)
        return self.decision.probabilities(head_probabilities(self.tensors, X))


@dataclass(frozen=True, kw_only=True, eq=False)
class Model:
    """A backbone to be loaded, and the head on it; of a cross-validation the heads of all folds.

    Attributes
    ----------
    run : Run
    card : ModelCard
        Its classes, how its pages were prepared, and its backbone.
    heads : tuple of CalibratedHead
    likeness : Likeness or None
        Of a run by this version or later, whose folds read the same layers.
    """

    run: Run
    card: ModelCard
    heads: tuple[CalibratedHead, ...]
    likeness: Likeness | None

    @property
    def is_finetuned(self) -> bool:
        """Whether the backbone's weights are the run's own."""
        return self.run.kind == "finetune"

    @property
    def network(self) -> NetworkSettings:
        """The backbone; a fine-tuning's weights are in its own folder."""
        backbone = self.card.backbone
        weights = str(self.run.path) if self.is_finetuned else backbone.weights
        return NetworkSettings(arch=backbone.arch, weights=weights)

    @property
    def decision(self) -> Decision:
        """How the probabilities become answers; of several heads by the mean of their thresholds.

        Of several heads the probabilities are already calibrated, each head's in its own way.
        """
        if len(self.heads) == 1:
            return self.heads[0].decision
        thresholds = [head.decision.threshold for head in self.heads]
        found = [threshold for threshold in thresholds if threshold is not None]
        return Decision(threshold=float(np.mean(found)) if found else None)

    @property
    def compared_taps(self) -> tuple[str, ...]:
        """The taps of `likeness`: a head's own, a fine-tuning's all layers."""
        if self.likeness is None:
            return ()
        return TAPS if self.is_finetuned else self.heads[0].taps

    def load_backbone(
        self, weights: str | None, compute: Compute, *, taps: Sequence[str] = ()
    ) -> Backbone:
        """Load the backbone, from `weights` if they have moved; it also gives `taps`.

        Raises
        ------
        ConfigError
            When a fine-tuning is given other weights than its own.
        WeightsError
            When the weights can't be had, or aren't those that the head was trained on.
        RunError
            When the head doesn't fit the backbone.
        DeviceError
        """
        from ecgfeat.backbones import Backbone, load_weights, tap_widths

        if weights and self.is_finetuned:
            raise ConfigError(
                f"{self.run.path} is a fine-tuning and keeps its own weights: leave out --weights"
            )
        found = load_weights(replace(self.network, weights=weights or self.network.weights))
        digest = self.card.backbone.weights_digest
        if not self.is_finetuned and found.digest != digest:
            raise WeightsError(
                f"{self.run.path} was trained on features of {self.network.weights} (digest "
                f"{digest[:12]}), but {found.name} has the digest "
                f"{found.digest[:12]}. Give the run's own weights with --weights PATH."
            )
        read = (tap for head in self.heads for tap in head.taps)
        wanted = tuple(dict.fromkeys([*read, *taps]))
        backbone = Backbone(found, self.card.preprocessing, compute, taps=wanted)
        n_classes = len(self.card.classes)
        for head in self.heads:
            width = sum(backbone.taps[tap] for tap in head.taps)
            if not head_fits(head.tensors, n_classes=n_classes, width=width):
                raise damaged(
                    self.run.path / self.run.model_file,
                    f"it holds no head for {n_classes} classes and {width} features",
                )
        if self.likeness is not None:
            width = sum(tap_widths(found.arch, self.compared_taps).values())
            if self.likeness.mean.shape != (width,):
                raise damaged(
                    self.run.path / "likeness.safetensors", f"it isn't of {width} features"
                )
        return backbone

    def distances(self, features: Mapping[str, NDArray[np.float32]]) -> NDArray[np.float32]:
        """How far each image lies from the training images, over how far those do, shape (b,).

        NaN where the run doesn't say how far they do.
        """
        if self.likeness is None:
            return np.full(len(next(iter(features.values()))), np.nan, np.float32)
        X = np.concatenate([features[tap] for tap in self.compared_taps], axis=1)
        found: NDArray[np.float32] = self.likeness.distances(X) / self.likeness.limit
        return found

    def probabilities(self, features: Mapping[str, NDArray[np.float32]]) -> NDArray[np.float64]:
        """Calibrated probabilities by class, shape (b, n_classes), of a backbone's features.

        Of several heads their mean.
        """
        found: NDArray[np.float64] = np.mean(
            [head.probabilities(features) for head in self.heads], axis=0
        )
        return found


def read_model(run: Run) -> Model:
    """Read a run's model card and tensors.

    Raises
    ------
    RunError
        When the run keeps no model, or it is damaged.
    StorageError
        When it can't be read.
    """
    card = run.checked_card
    arrays = run.fold_models() if run.is_cross_validated else [run.model()]
    decisions = run.decisions
    try:
        if run.kind == "finetune":
            taps: Sequence[tuple[str, ...]] = [("layer4",)]
            arrays = [_last_layer(card.backbone.arch, arrays[0])]
        else:
            taps = card.fold_taps or [card.taps] * len(arrays)
        for decision in decisions:
            decision.refuse_other(len(card.classes))
        return Model(
            run=run,
            card=card,
            heads=tuple(
                CalibratedHead(taps=_tap_names(of_fold), tensors=tensors, decision=decision)
                for of_fold, tensors, decision in zip(taps, arrays, decisions, strict=True)
            ),
            likeness=None if card.fold_taps else run.likeness(),
        )
    except (ValueError, ConfigError) as error:
        raise damaged(run.path / "model.json", f"a field is missing or wrong ({error})") from error


def _tap_names(taps: Sequence[str]) -> tuple[str, ...]:
    if not taps:
        raise ValueError("taps is empty")
    return tuple(parse_tap(name).name for name in taps)


def _last_layer(arch: str, tensors: Tensors) -> dict[str, NDArray[Any]]:
    last = family_of(arch).classifier
    try:
        return {name: tensors[f"{last}.{name}"] for name in ("weight", "bias")}
    except KeyError as error:
        raise ValueError(f"its network has no {error}") from error
