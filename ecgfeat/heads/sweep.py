"""A sweep: the values it tries, the heads they make, and how these do on validation rows."""

from __future__ import annotations

import itertools
import math
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from ecgfeat.config import ChoiceScore, EvaluationSettings, HeadKind, HeadSettings, SweepSettings
from ecgfeat.errors import ConfigError, storage_error
from ecgfeat.heads.head import Head, HeadData, Meter
from ecgfeat.heads.registry import HEADS
from ecgfeat.metrics import METRICS
from ecgfeat.protocol import Partition

__all__ = [
    "AXES",
    "DEFAULT_GRID",
    "SCORES",
    "Candidate",
    "Grid",
    "Standing",
    "best",
    "candidates",
    "read_grid",
    "seeds_of",
    "try_heads",
    "validation_scores",
    "value_or_none",
]


def _axes() -> dict[str, tuple[HeadKind, ...]]:
    axes: dict[str, tuple[HeadKind, ...]] = {"layers": tuple(HEADS)}
    for kind, head in HEADS.items():
        for name in head.grid:
            axes[name] = (*axes.get(name, ()), kind)
    return {**axes, "seed": tuple(kind for kind, head in HEADS.items() if head.in_epochs)}


AXES = _axes()
"""What a grid may name, and the heads that have it."""
DEFAULT_GRID = {name: values for head in HEADS.values() for name, values in head.grid.items()}
"""112 linear heads and 20 of logistic regression, from hardly trained to overfitted."""

Grid = Mapping[str, tuple[Any, ...]]
"""Values by name of axis, each a value of `HeadSettings` (or a seed)."""


def read_grid(sweep: SweepSettings, kinds: Sequence[HeadKind]) -> Grid:
    """The values to try, every one of them checked.

    Parameters
    ----------
    sweep : SweepSettings
        An axis of `grid` takes the place of the same one in `sweep`.
    kinds : sequence of {"linear", "logreg"}
        The heads that are to be tried.

    Returns
    -------
    dict of str to tuple
        In the order of `AXES`; empty where neither `sweep` nor `grid` is given.

    Raises
    ------
    ConfigError
        When an axis is unknown, not of these heads, named twice, empty, or has a value that is
        out of range or there twice.
    StorageError
        When the TOML file can't be read.
    """
    found: dict[str, tuple[Any, ...]] = {}
    if sweep.sweep == "default":
        found |= {name: values for name, values in DEFAULT_GRID.items() if _is_for(name, kinds)}
    elif sweep.sweep:
        found |= _checked(_from_toml(Path(sweep.sweep)), kinds, f"--sweep {sweep.sweep}")
    found |= _checked(_from_words(sweep.grid), kinds, "--grid")
    if "seed" in found and sweep.seeds > 1:
        raise ConfigError("--seeds and the axis seed say the same: give one of the two")
    return {name: found[name] for name in AXES if name in found}


def _is_for(name: str, kinds: Sequence[HeadKind]) -> bool:
    return any(kind in AXES[name] for kind in kinds)


def _from_words(grid: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    """Axes given as ``lr=1e-4,1e-3``, one or more to a text."""
    for word in " ".join(grid).replace(";", " ").split():
        name, sign, values = word.partition("=")
        if not sign:
            raise ConfigError(
                f"--grid takes NAME=A,B, such as lr=1e-4,1e-3, without spaces in it; found {word!r}"
            )
        yield name, [value for value in values.split(",") if value]


def _from_toml(path: Path) -> Iterator[tuple[str, list[Any]]]:
    try:
        content = tomllib.loads(path.read_bytes().decode())
    except FileNotFoundError:
        raise ConfigError(
            f"--sweep takes default, or a TOML file such as lr = [1e-4, 1e-3]; there is no {path}"
        ) from None
    except IsADirectoryError:
        raise ConfigError(f"--sweep takes default, or a TOML file; {path} is a folder") from None
    except OSError as error:
        raise storage_error(error, "reading", path) from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"--sweep {path} can't be read as TOML: {error}") from None
    if not content:
        raise ConfigError(f"--sweep {path} is empty: give values such as lr = [1e-4, 1e-3]")
    for name, values in content.items():
        if not isinstance(values, list):
            raise ConfigError(
                f"--sweep {path}: {name} must be a list of values, such as lr = [1e-4, 1e-3]; "
                f"found {values!r}"
            )
        yield name, values


def _checked(
    axes: Iterator[tuple[str, list[Any]]], kinds: Sequence[HeadKind], source: str
) -> dict[str, tuple[Any, ...]]:
    checked: dict[str, tuple[Any, ...]] = {}
    for name, values in axes:
        if name not in AXES:
            raise ConfigError(f"{source} names {name!r}; it takes {', '.join(AXES)}")
        if not _is_for(name, kinds):
            (owner,) = AXES[name]
            raise ConfigError(
                f"{source} names {name}, which only a {owner} head has: also give --head "
                f"{owner} or both, or leave it out"
            )
        if name in checked:
            raise ConfigError(f"{source} names {name} twice: give all its values at once")
        if not values:
            raise ConfigError(f"{source} gives no values for {name}")
        checked[name] = tuple(_value(name, value, source) for value in values)
        for value in checked[name]:
            if checked[name].count(value) > 1:
                raise ConfigError(f"{source} gives {name} the value {value} twice")
    return checked


def _value(name: str, value: Any, source: str) -> Any:
    """A value as its settings take it, and in their range."""
    try:
        value = _typed(name, value)
        if name == "seed":
            return replace(EvaluationSettings(), seed=value).seed
        return getattr(replace(HeadSettings(), **{name: value}), name)
    except ConfigError as error:
        raise ConfigError(f"{source}: {error}") from None


def _typed(name: str, value: Any) -> Any:
    if isinstance(value, bool):
        raise ConfigError(f"{name} can't be {str(value).lower()}")
    if isinstance(value, str) and name == "layers":
        return value.replace("+", ",")
    kind = int if name == "seed" else type(getattr(HeadSettings(), name))
    if isinstance(value, str) or (kind is float and isinstance(value, int)):
        try:
            return kind(value)
        except ValueError:
            words = "a number" if kind is float else "a whole number"
            raise ConfigError(f"{name} must be {words}; found {value!r}") from None
    return value


MAX_CANDIDATES = 10_000
"""More than that is a slip of the keyboard."""
SETTINGS = tuple(name for name in AXES if name != "seed")


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One head with all its settings; seeds repeat it, and are no part of it."""

    head: Head
    settings: HeadSettings

    @property
    def n_epochs(self) -> int:
        """Epochs it is trained for; logistic regression has one end, not several."""
        return self.settings.epochs if self.head.in_epochs else 1

    def seeds(self, seeds: Sequence[int]) -> Sequence[int]:
        """Those that make a difference."""
        return seeds if self.head.in_epochs else seeds[:1]

    def as_json(self) -> dict[str, Any]:
        """The settings that a grid may vary; None where this kind of head has none such."""
        values = {
            name: getattr(self.settings, name) if self.head.kind in AXES[name] else None
            for name in SETTINGS
        }
        return {"head": self.head.kind, **values}

    def in_words(self) -> str:
        """The head for people: ``linear, layers layer4, lr 0.001, …``."""
        fields = self.as_json()
        kind = fields.pop("head")
        words = [f"{name} {value}" for name, value in fields.items() if value is not None]
        return ", ".join([kind, *words])


def candidates(kinds: Sequence[HeadKind], head: HeadSettings, grid: Grid) -> list[Candidate]:
    """Every combination of the grid's values, the others as in `head`.

    Linear heads come first. Those that share layers stand together.

    Raises
    ------
    ConfigError
        When there are more than 10,000.
    """
    axes = {kind: _axes_of(kind, grid) for kind in kinds}
    n_heads = sum(math.prod(map(len, axes[kind].values())) for kind in kinds)
    if n_heads > MAX_CANDIDATES:
        raise ConfigError(
            f"the grid holds {n_heads} heads; at most {MAX_CANDIDATES} are tried: give fewer values"
        )
    return [
        Candidate(head=HEADS[kind], settings=replace(head, **dict(zip(axes[kind], values))))
        for kind in kinds
        for values in itertools.product(*axes[kind].values())
    ]


def _axes_of(kind: HeadKind, grid: Grid) -> Mapping[str, tuple[Any, ...]]:
    return {
        name: values for name, values in grid.items() if name in SETTINGS and kind in AXES[name]
    }


def seeds_of(grid: Grid, sweep: SweepSettings, evaluation: EvaluationSettings) -> tuple[int, ...]:
    """The seeds with which every head is trained; the first one's is the head reported.

    Raises
    ------
    ConfigError
        When they would go beyond the largest seed there is.
    """
    if "seed" in grid:
        return grid["seed"]
    last = evaluation.seed + sweep.seeds - 1
    replace(evaluation, seed=last)
    return tuple(range(evaluation.seed, last + 1))


SCORES: tuple[ChoiceScore, ...] = get_args(ChoiceScore)


def validation_scores(
    probabilities: NDArray[np.float64], targets: NDArray[np.int64]
) -> NDArray[np.float64]:
    """The values of `SCORES` for some heads, shape (h, len(SCORES)); NaN where one diverged.

    `probabilities` are of shape (h, n, n_classes), and every class is among the `targets`.
    """
    of_truth = probabilities[:, np.arange(len(targets)), targets]
    is_right = probabilities.argmax(axis=2) == targets
    by_class = np.array([targets == k for k in range(probabilities.shape[2])])
    recalls = is_right.astype(np.float64) @ by_class.T / by_class.sum(axis=1)
    values: dict[ChoiceScore, Any] = {
        # A class that the head excludes outright has no logarithm; `metrics` clips it alike.
        "log_loss": -np.log(np.maximum(of_truth, np.finfo(np.float64).eps)).mean(axis=1),
        "accuracy": is_right.mean(axis=1),
        "balanced_accuracy": recalls.mean(axis=1),
        "auroc": [_auroc(of_head, by_class) for of_head in probabilities],
    }
    scores = np.stack([values[name] for name in SCORES], axis=1)
    scores[~np.isfinite(probabilities).all(axis=(1, 2))] = np.nan
    return scores


def _auroc(probabilities: NDArray[np.float64], by_class: NDArray[np.bool_]) -> float:
    """As `metrics` has it, which is ready for weights, and so too slow for hundreds of heads."""
    if len(by_class) == 2:
        return _area(probabilities[:, 1], by_class[1])
    return float(np.mean([*map(_area, probabilities.T, by_class)]))


def _area(scores: NDArray[np.float64], is_positive: NDArray[np.bool_]) -> float:
    positives, negatives = scores[is_positive], scores[~is_positive]
    positives.sort()
    negatives.sort()
    below = negatives.searchsorted(positives, side="left").sum()
    upto = negatives.searchsorted(positives, side="right").sum()
    return float(below + upto) / (2 * len(positives) * len(negatives))


def value_or_none(value: float) -> float | None:
    """A score as JSON and CSV take it: None where it is not finite."""
    return value if math.isfinite(value) else None


HEADS_AT_ONCE = 128
"""Linear heads in one pass: where more no longer make each cheaper, and what an interrupt loses."""

Values = NDArray[np.float64]
"""One candidate's scores, shape (n_partitions, n_seeds, n_epochs, len(SCORES))."""


@dataclass(frozen=True, kw_only=True)
class Standing:
    """How a candidate did on the validation rows.

    Attributes
    ----------
    candidate : Candidate
    choose_by : str
        The score that chooses, here the epoch.
    epoch : int
        The best one, from 1; logistic regression has one.
    scores : dict of str to float
        At that epoch, means over partitions and seeds; NaN where a training diverged.
    spread : float or None
        Standard deviation of the score that chooses; None where there is one value.
    """

    candidate: Candidate
    choose_by: ChoiceScore
    epoch: int
    scores: dict[str, float]
    spread: float | None

    @property
    def value(self) -> float:
        """The score that chooses."""
        return self.scores[self.choose_by]

    @property
    def score_name(self) -> str:
        """The name of the score that chooses, for people."""
        return METRICS[self.choose_by].title

    def row(self, fold: int, *, chosen: bool) -> dict[str, Any]:
        """The row of ``sweep.csv``, as plain values."""
        scores = {name: value_or_none(value) for name, value in self.scores.items()}
        return {
            "fold": fold,
            **self.candidate.as_json(),
            "epoch": self.epoch if self.candidate.head.in_epochs else None,
            **scores,
            "spread": None if self.spread is None else value_or_none(self.spread),
            "chosen": chosen,
        }

    def in_words(self) -> str:
        """The candidate, its epoch and its score, for people."""
        epoch = f", epoch {self.epoch}" if self.candidate.head.in_epochs else ""
        return f"{self.candidate.in_words()}{epoch}: {self.score_name} {self.value:.4f}"


def best(standings: Sequence[Standing]) -> Standing:
    """The standing with the best score; equal ones by log loss, then the first of them."""
    return min(standings, key=lambda standing: _rank(standing.scores, standing.choose_by))


def _rank(scores: dict[str, float], choose_by: ChoiceScore) -> tuple[bool, float, float]:
    value = scores[choose_by]
    return math.isnan(value), value if METRICS[choose_by].is_loss else -value, scores["log_loss"]


def try_heads(
    data: HeadData,
    pool: Sequence[Candidate],
    plan: Sequence[Partition],
    *,
    seeds: Sequence[int],
    choose_by: ChoiceScore,
    meter: Meter,
    on_tried: Callable[[list[Standing]], None],
) -> list[Standing]:
    """Train every candidate on every partition and score it on the validation rows.

    Heads of a kind that share features are trained together; in `pool` they stand together. Every
    partition of `plan`, one or inner folds, has validation rows of every class. `choose_by` chooses
    the epoch, `meter` counts trainings, and `on_tried` is given all standings so far each time some
    are finished. They are in the order of `pool`.
    """
    standings: list[Standing] = []
    for group in _passes(pool):
        n_epochs, own_seeds = group[0].n_epochs, group[0].seeds(seeds)
        values = np.full((len(group), len(plan), len(own_seeds), n_epochs, len(SCORES)), np.nan)
        for number, part in enumerate(plan):
            _try_group(values[:, number], data, group, part, own_seeds, meter)
        standings += [_standing(*pair, choose_by) for pair in zip(group, values)]
        on_tried(standings)
    return standings


def _try_group(
    values: Values,
    data: HeadData,
    group: list[Candidate],
    part: Partition,
    seeds: Sequence[int],
    meter: Meter,
) -> None:
    """Scores of one partition into `values`, (n_candidates, n_seeds, n_epochs, len(SCORES))."""
    targets = data.task.targets

    def on_scored(
        numbers: Sequence[int],
        seeds: Sequence[int],
        epoch: int,
        probabilities: NDArray[np.float64],
    ) -> None:
        scores = validation_scores(probabilities, targets[part.validation])
        values[list(numbers), list(seeds), epoch - 1] = scores
        meter.advance(len(numbers) / group[0].n_epochs)

    group[0].head.try_many(
        data.features(group[0].settings.taps),
        targets,
        part,
        [candidate.settings for candidate in group],
        n_classes=len(data.task.classes),
        seeds=seeds,
        on_scored=on_scored,
    )


def _passes(pool: Sequence[Candidate]) -> Iterator[list[Candidate]]:
    """Candidates that can be trained together, few enough at a time."""
    for _, sharing in itertools.groupby(pool, key=lambda one: (one.head, one.settings.layers)):
        group = list(sharing)
        for start in range(0, len(group), HEADS_AT_ONCE):
            yield group[start : start + HEADS_AT_ONCE]


def _standing(candidate: Candidate, values: Values, choose_by: ChoiceScore) -> Standing:
    by_epoch = [dict(zip(SCORES, means)) for means in values.mean(axis=(0, 1)).tolist()]
    epoch = min(range(len(by_epoch)), key=lambda e: _rank(by_epoch[e], choose_by))
    single = values[:, :, epoch, SCORES.index(choose_by)]
    return Standing(
        candidate=candidate,
        choose_by=choose_by,
        epoch=epoch + 1,
        scores=by_epoch[epoch],
        spread=float(single.std(ddof=1)) if single.size > 1 else None,
    )
