"""What a job hands over to be kept, and what its files must hold to be read back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, ClassVar, NotRequired, TypedDict

import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from ecgfeat.calibration import Decision
from ecgfeat.config import (
    EvaluationSettings,
    FinetuneSettings,
    HeadSettings,
    NetworkSettings,
    PageSettings,
    SweepSettings,
)
from ecgfeat.predictions import Predictions
from ecgfeat.preprocessing import Preprocessing
from ecgfeat.protocol import Partition, Task

__all__ = [
    "FORMAT_VERSION",
    "ConfigFile",
    "Cost",
    "Count",
    "DecisionFields",
    "EpochRecord",
    "Likeness",
    "MetricsFile",
    "ModelCard",
    "Number",
    "Result",
    "count_classes",
    "count_rows",
    "moments",
]

FORMAT_VERSION = 1
"""Version of docs/run-format.md; another version's runs are refused."""

Number = Annotated[float, Meta(ge=-1e300, le=1e300)]
"""Neither infinite nor NaN."""
Count = Annotated[int, Meta(ge=0, le=2**53)]
"""A number of things, or a place among them from 0."""


@dataclass(frozen=True, kw_only=True)
class EpochRecord:
    """One pass over the training rows.

    Attributes
    ----------
    fold : int
        From 0, as in `Partition`.
    epoch : int
        From 1.
    loss, accuracy : float
        Cross-entropy and share of right answers, running means over the epoch's mini-batches
        weighted by their rows.
    val_loss, val_accuracy : float or None
        The same over the validation rows after the epoch; None where there are none.
    lr : float or None
        The learning rate at the epoch's end; None where it never changes.
    """

    fold: Count
    epoch: Annotated[int, Meta(ge=1, le=2**53)]
    loss: Number
    accuracy: Number
    val_loss: Number | None = None
    val_accuracy: Number | None = None
    lr: Number | None = None

    def log_line(self, way: str, n_folds: int) -> str:
        """The epoch as the study logs it: ``[way] Epoch 1 | Loss: 0.5481 | Acc: 0.652``."""
        fold = f"Fold {self.fold + 1}/{n_folds} | " if n_folds > 1 else ""
        line = (
            f"[{way}] {fold}Epoch {self.epoch} | Loss: {self.loss:.4f} | Acc: {self.accuracy:.3f}"
        )
        if self.val_loss is None:
            return line
        return f"{line} | Val loss: {self.val_loss:.4f} | Val acc: {self.val_accuracy:.3f}"


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a run took.

    Attributes
    ----------
    wall_s : float
        Seconds of training and testing, all folds together; reading the features and drawing
        the figures are left out.
    features_s : float
        Seconds that computing the features took, once for all heads on them; 0 for fine-tuning.
    images_per_s : float
        Training rows times epochs (logistic regression: times one), over training seconds.
    peak_memory_mib : float
        Largest resident memory of the process until the end of testing.
    arch : str
    batch_size : int
        Rows per step of training.
    device, precision : str
        Where and how exactly the training was computed.
    """

    wall_s: Number
    features_s: Number
    images_per_s: Number
    peak_memory_mib: Number
    arch: str
    batch_size: Count
    device: str
    precision: str


MOMENT_BYTES = 2**20
"""Features in float64 at a time: a core's own cache."""


def moments(
    X: NDArray[np.float32], rows: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and standard deviation of each feature over some rows, as in ``StandardScaler``.

    The scale of a feature that is constant over the rows is 1. The features are not copied whole.
    """
    n_rows = max(1, MOMENT_BYTES // (8 * X.shape[1]))
    chunks = [rows[start : start + n_rows] for start in range(0, len(rows), n_rows)]
    mean = sum(X[chunk].sum(axis=0, dtype=np.float64) for chunk in chunks) / len(rows)
    variance = sum(np.square(X[chunk] - mean).sum(axis=0) for chunk in chunks) / len(rows)
    # What rounding may leave of a constant feature's variance; the bound is scikit-learn's.
    noise = len(rows) * np.finfo(np.float64).eps
    is_constant = variance <= noise * variance + (noise * mean) ** 2
    return mean, np.sqrt(np.where(is_constant, 1, variance))


@dataclass(frozen=True, kw_only=True, eq=False)
class Likeness:
    """How far features lie from those that a model was trained on.

    The distance of a row is the root mean square of its features after standardisation.

    Attributes
    ----------
    mean, scale : ndarray of shape (width,), float32
        Of some of the training rows.
    limit : ndarray of shape (1,), float32
        The largest distance of others of them, which were not used for mean and scale.
    """

    mean: NDArray[np.float32]
    scale: NDArray[np.float32]
    limit: NDArray[np.float32]

    MOST_ROWS: ClassVar[int] = 4096

    @classmethod
    def of(cls, X: NDArray[np.float32], rows: NDArray[np.int64]) -> Likeness:
        """Look at the rows (evenly spaced ones of many), every second one for the limit."""
        some = rows[:: -(-len(rows) // cls.MOST_ROWS)]
        mean, scale = moments(X, some[::2])
        half = cls(
            mean=mean.astype(np.float32),
            scale=scale.astype(np.float32),
            limit=np.zeros(1, np.float32),
        )
        others = some[1::2] if len(some) > 1 else some
        largest = half.distances(X[others]).max(keepdims=True)
        return replace(half, limit=np.maximum(largest, np.float32(1e-6)))

    def distances(self, X: NDArray[np.float32]) -> NDArray[np.float32]:
        """The distance of each row, shape (n,); NaN where a feature isn't finite."""
        with np.errstate(over="ignore", invalid="ignore"):
            found: NDArray[np.float32] = np.sqrt(
                np.square((X - self.mean) / self.scale).mean(axis=1)
            )
        return found


@dataclass(frozen=True, kw_only=True, eq=False)
class Result:
    """What a job hands over to be kept.

    Attributes
    ----------
    kind : {"linear", "logreg", "both", "finetune"}
        ``"both"`` is a cross-validation whose folds chose different heads.
    data_name : str
    config : dict
        Plain values for ``config.json``: settings by section, what the features or images were,
        partitions, versions, machine.
    history : tuple of EpochRecord
        Empty where training has no epochs.
    predictions : Predictions
    n_test_total : int
        Rows the data offer for testing; `predictions` holds fewer where it is a subset, or where
        images can't be decoded.
    cost : Cost
    model : mapping of str to ndarray
        Empty for a cross-validation, which has no one model.
    model_card : dict
        Plain values for ``model.json``: what is needed to apply the model to a new image.
    likeness : Likeness, optional
        How far new features may lie from the training rows'.
    decisions : sequence of Decision
        By fold: what made `predictions` of the models' own probabilities. Empty where nothing did.
    validation : Predictions, optional
        Of the rows that chose, by the models chosen, treated as the test rows; all folds'.
    repeats : sequence of Predictions
        Of the same test rows, by the same head with other seeds; without `predictions`.
    choice : mapping
        How head, epoch and threshold were chosen, as plain values; empty where nothing was.
    sweep : sequence of mapping
        One row per candidate, all with the same keys, as plain values.
    learning_curve : sequence of mapping
        One row per training: ``fraction``, ``n_train``, ``seed``, and a value by name of score.
    fold_models : sequence of mapping of str to ndarray
        A cross-validated head's arrays by fold.
    prevalence : float
        Share of positives at which PPV and NPV are also told; 0 does without.
    training_counts : sequence of sequence of int
        By fold, the training rows of each class (see `count_classes`); without it the majority
        that a result is held against is that of the test rows.
    notices : sequence of str
        What its reader should know of how it came about, a line each that also says what to do.
    """

    kind: str
    data_name: str
    config: dict[str, Any]
    history: tuple[EpochRecord, ...]
    predictions: Predictions
    n_test_total: int
    cost: Cost
    model: Mapping[str, NDArray[Any]]
    model_card: dict[str, Any]
    likeness: Likeness | None = None
    decisions: Sequence[Decision] = ()
    validation: Predictions | None = None
    repeats: Sequence[Predictions] = ()
    choice: Mapping[str, Any] = field(default_factory=dict)
    sweep: Sequence[Mapping[str, Any]] = ()
    learning_curve: Sequence[Mapping[str, Any]] = ()
    fold_models: Sequence[Mapping[str, NDArray[Any]]] = ()
    prevalence: float = 0.0
    training_counts: Sequence[Sequence[int]] = ()
    notices: Sequence[str] = ()


def count_classes(plan: Sequence[Partition], task: Task) -> list[list[int]]:
    """By training, its training rows of each class."""
    n_classes = len(task.classes)
    return [np.bincount(task.targets[part.train], minlength=n_classes).tolist() for part in plan]


def count_rows(plan: Sequence[Partition]) -> list[dict[str, int]]:
    """How many rows each training had, for ``config.json``'s ``partitions``."""
    return [
        {
            "fold": part.fold,
            "train": len(part.train),
            "validation": len(part.validation),
            "test": len(part.test),
        }
        for part in plan
    ]


# What the files must hold, as far as it is read: other keys are passed over


class ConfigFile(TypedDict):
    """``config.json`` of every kind of run; a fine-tuning has more, see `finetuning.job`."""

    kind: str
    data: str
    recipe: NotRequired[str]
    evaluation: NotRequired[EvaluationSettings]
    page: NotRequired[PageSettings]
    manifest_digest: NotRequired[str]
    partitions: NotRequired[list[_PartitionRows]]
    backbone: NotRequired[BackboneFields]
    preprocessing: NotRequired[Preprocessing]
    cache: NotRequired[_CacheFields]
    source: NotRequired[_SourceFields]
    head: NotRequired[HeadSettings]
    sweep: NotRequired[SweepSettings]
    training: NotRequired[FinetuneSettings]
    versions: NotRequired[dict[str, str]]
    machine: NotRequired[_MachineFields]


class _CacheFields(TypedDict):
    path: str
    digest: str


class _SourceFields(TypedDict):
    data: str


class _MachineFields(TypedDict):
    platform: str
    processor: str
    n_cpus: Count
    device: str


class _PartitionRows(TypedDict):
    fold: Count
    train: Count
    validation: Count
    test: Count


class MetricsFile(TypedDict):
    """``metrics.json``."""

    test_rows: str
    split: str
    classes: Annotated[list[str], Meta(min_length=2)]
    positive: str | None
    scores: dict[str, _ScoreFields | None]
    cost: Cost
    prevalence: NotRequired[Number]
    over_folds: NotRequired[dict[str, _Spread]]
    over_seeds: NotRequired[dict[str, _Spread]]
    decisions: NotRequired[list[DecisionFields]]
    majority: NotRequired[_MajorityFields]
    notices: NotRequired[list[str]]
    choice: NotRequired[_ChoiceFields]


class _ScoreFields(TypedDict):
    value: Number
    low: Number
    high: Number
    method: str


class DecisionFields(TypedDict):
    """A `Decision` as ``model.json`` and ``metrics.json`` have it."""

    method: str
    slope: Number
    offset: Number
    threshold: Number | None


class _Spread(TypedDict):
    n: Count
    mean: Number
    std: Number | None


class _MajorityFields(TypedDict):
    classes: list[str]
    accuracy: Number
    p_value: Number


class _ChoiceFields(TypedDict):
    words: NotRequired[str]


@dataclass(frozen=True, kw_only=True)
class ModelCard:
    """``model.json``, as far as every kind of run has it.

    Attributes
    ----------
    classes : tuple of str
    backbone : BackboneFields
    preprocessing : Preprocessing
    precision, decoder : str
        What the features were computed in and decoded by.
    taps : tuple of str
        Of a head: the layers that it reads; empty where it reads others in each fold.
    fold_taps : tuple of tuple of str
    """

    classes: Annotated[tuple[str, ...], Meta(min_length=2)]
    backbone: BackboneFields
    preprocessing: Preprocessing
    precision: str
    decoder: str
    taps: tuple[str, ...] = ()
    fold_taps: tuple[tuple[str, ...], ...] = ()


@dataclass(frozen=True, kw_only=True)
class BackboneFields:
    """Whose features a head was trained on, or what a fine-tuning began with."""

    arch: str
    weights: str
    weights_digest: str

    def __post_init__(self) -> None:
        NetworkSettings(arch=self.arch)  # refuses those that it doesn't know
