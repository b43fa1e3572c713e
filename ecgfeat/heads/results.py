"""What goes into a run's work and what comes out of it: folds, choices, tested heads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from ecgfeat.calibration import Decision
from ecgfeat.config import CropMode, PageSettings, as_json
from ecgfeat.heads.registry import HEADS
from ecgfeat.heads.sweep import Candidate, Grid, Standing
from ecgfeat.predictions import Predictions, join
from ecgfeat.preprocessing import Preprocessing
from ecgfeat.protocol import Partition
from ecgfeat.runs import Cost, Likeness, Result, count_classes, count_rows
from ecgfeat.runtime import machine, peak_memory_mib, versions

if TYPE_CHECKING:
    from ecgfeat.feature_cache import Header
    from ecgfeat.heads.fit import HeadJob
    from ecgfeat.heads.head import Fitted

__all__ = ["Choice", "Fold", "Outcome", "Rows", "Tested", "TestedFold", "describe"]


Rows = list[dict[str, Any]]
"""Of ``sweep.csv`` or ``learning_curve.csv``."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Fold:
    """The rows behind one set of test rows.

    Attributes
    ----------
    choosing : sequence of Partition
        How choices and decisions are made: each is trained on its training rows and looked at on
        its validation rows. One, or inner folds, or none.
    final : Partition
        What the head that is tested is trained on: one of `choosing`, or all their rows.
    """

    choosing: Sequence[Partition]
    final: Partition

    @property
    def number(self) -> int:
        """From 0, as in `Partition`."""
        return self.final.fold

    @property
    def parts(self) -> list[Partition]:
        """All that a chosen head is trained on, the last for the test."""
        return [*(part for part in self.choosing if part is not self.final), self.final]


@dataclass(frozen=True, kw_only=True, eq=False)
class Choice:
    """The head that is tested on a fold.

    Attributes
    ----------
    fold : Fold
    candidate : Candidate
    standing : Standing or None
        How it did where it was chosen; None where nothing was.
    """

    fold: Fold
    candidate: Candidate
    standing: Standing | None = None

    @property
    def n_epochs(self) -> int:
        """Epochs it is trained for, the best ones where it was chosen."""
        return self.standing.epoch if self.standing else self.candidate.n_epochs

    def seeds(self, seeds: Sequence[int]) -> Sequence[int]:
        """Those that make a difference."""
        return seeds[: self.candidate.n_seeds(seeds)]


@dataclass(frozen=True, kw_only=True, eq=False)
class Tested:
    """A head of one seed, and what it said.

    Attributes
    ----------
    fitted : Fitted
    predictions : Predictions
        Of the test rows, decided.
    validation : Predictions or None
        Of the validation rows, by heads not trained on them; decided alike.
    decision : Decision or None
        Fixed on these, where calibration or an operating point is asked for.
    """

    fitted: Fitted
    predictions: Predictions
    validation: Predictions | None
    decision: Decision | None


@dataclass(frozen=True, kw_only=True, eq=False)
class TestedFold:
    """A fold's choice, tested with each seed; the one reported comes first."""

    choice: Choice
    tested: Sequence[Tested]


@dataclass(frozen=True, kw_only=True, eq=False)
class Outcome:
    """What all folds gave.

    Attributes
    ----------
    folds : sequence of TestedFold
    sweep : list of dict
        One row per candidate and fold; none where nothing is chosen.
    learning_curve : list of dict
    wall_s, choosing_s : float
        Seconds of all trainings and tests, and of those that chose; reading the features is
        left out.
    """

    folds: Sequence[TestedFold]
    sweep: Rows
    learning_curve: Rows
    wall_s: float
    choosing_s: float

    @property
    def reported(self) -> list[Tested]:
        """What is reported, by fold."""
        return [fold.tested[0] for fold in self.folds]


def describe(job: HeadJob, outcome: Outcome, grid: Grid) -> Result:
    """Everything that a run's folder holds."""
    reported = outcome.reported
    kinds = {fold.choice.candidate.kind for fold in outcome.folds}
    tensors = [tested.fitted.tensors for tested in reported]
    is_cv, listing = bool(job.evaluation.cv), job.data.cache.listing
    validation = [tested.validation for tested in reported if tested.validation]
    return Result(
        kind=kinds.pop() if len(kinds) == 1 else "both",
        data_name=job.data.cache.data_name,
        config=_config(job, reported, grid),
        history=tuple(record for tested in reported for record in tested.fitted.history),
        predictions=join([tested.predictions for tested in reported]),
        n_test_total=len(listing.paths) if is_cv else listing.splits.count("test"),
        cost=_cost(job, outcome),
        model={} if is_cv else tensors[0],
        fold_models=tensors if is_cv else (),
        model_card=_model_card(job, outcome),
        likeness=_likeness(job, outcome),
        decisions=tuple(tested.decision for tested in reported if tested.decision),
        validation=join(validation) if validation else None,
        repeats=_repeats(outcome),
        choice=_choice(job, outcome),
        sweep=outcome.sweep,
        learning_curve=outcome.learning_curve,
        prevalence=job.evaluation.prevalence,
        training_counts=count_classes([fold.final for fold in job.plan], job.data.task),
        notices=[*job.leaks, *_edges(outcome, grid)],
    )


def _edges(outcome: Outcome, grid: Grid) -> list[str]:
    """Where a chosen value is the least or largest of those tried: others may do better."""
    edges = []
    for name, values in grid.items():
        numbers = [value for value in values if isinstance(value, (int, float))]
        if len(numbers) < 3 or name == "seed":
            continue
        chosen = {
            getattr(fold.choice.candidate.head, name)
            for fold in outcome.folds
            if name in HEADS[fold.choice.candidate.kind].grid
        }
        for value, word in ((min(numbers), "least"), (max(numbers), "largest")):
            # Of weight decay and smoothing, 0 is the end of the range, not of the grid.
            if chosen == {value} and value:
                edges.append(
                    f"the chosen {name} {value:g} is the {word} of the {len(numbers)} tried: try "
                    f"values beyond it with --grid {name}=…"
                )
    return edges


def _repeats(outcome: Outcome) -> list[Predictions]:
    """The test rows by the other seeds; a fold without seeds says the same with each."""
    n_seeds = max(len(fold.tested) for fold in outcome.folds)
    return [
        join([fold.tested[min(number, len(fold.tested) - 1)].predictions for fold in outcome.folds])
        for number in range(1, n_seeds)
    ]


def _cost(job: HeadJob, outcome: Outcome) -> Cost:
    fitted = [tested.fitted for tested in outcome.reported]
    choices = [fold.choice for fold in outcome.folds]
    heads = [HEADS[choice.candidate.kind] for choice in choices]
    in_epochs = all(head.in_epochs for head in heads)
    n_images = sum(head.n_rows * choice.n_epochs for head, choice in zip(fitted, choices))
    return Cost(
        wall_s=outcome.wall_s,
        features_s=job.data.cache.extraction_s,
        images_per_s=n_images / sum(head.training_s for head in fitted),
        peak_memory_mib=peak_memory_mib(),
        arch=job.data.cache.header.arch,
        batch_size=job.head.batch_size if in_epochs else max(head.n_rows for head in fitted),
        device="cpu",
        precision=max(head.precision for head in heads),
    )


def _config(job: HeadJob, reported: Sequence[Tested], grid: Grid) -> dict[str, Any]:
    cache = job.data.cache
    solver = [tested.fitted.solver for tested in reported if tested.fitted.solver]
    return {
        "recipe": job.recipe,
        "head": as_json(job.head),
        "sweep": as_json(job.sweep),
        **({"grid": {name: list(values) for name, values in grid.items()}} if grid else {}),
        "evaluation": as_json(job.evaluation),
        "figures": as_json(job.figures),
        "manifest_digest": cache.data_digest,
        "cache": {"path": str(cache.path), "digest": cache.digest, "n_images": len(cache.paths)},
        **_describe_features(cache.header),
        "partitions": count_rows([fold.final for fold in job.plan]),
        **({"solver": solver} if solver else {}),
        "versions": versions(),
        "machine": machine(),
    }


def _choice(job: HeadJob, outcome: Outcome) -> dict[str, Any]:
    """Which rows chose what; empty where no rows did."""
    is_deciding = any(tested.decision for tested in outcome.reported)
    if not (job.sweep.is_choosing or is_deciding):
        return {}
    by_folds = {"rows": "folds", "folds": job.sweep.folds}
    by_part = {"rows": "validation", "val_fraction": job.evaluation.val_fraction}
    described = {
        "words": _choice_in_words(job, outcome),
        **(by_folds if job.sweep.folds else by_part),
        "n_rows": [_n_choosing(fold.choice) for fold in outcome.folds],
    }
    if not job.sweep.is_choosing:
        return described
    return {
        **described,
        "by": job.sweep.choose_by,
        "n_heads": len(job.pool),
        "seeds": list(job.seeds),
        "refit": job.is_refitting,
        "chosen": [
            fold.choice.standing.row(fold.choice.fold.number, chosen=True)
            for fold in outcome.folds
            if fold.choice.standing
        ],
        "wall_s": outcome.choosing_s,
    }


def _choice_in_words(job: HeadJob, outcome: Outcome) -> str:
    """One line for people."""
    choice, is_cv = outcome.folds[0].choice, len(outcome.folds) > 1
    n_rows = "the" if is_cv else str(_n_choosing(choice))
    rows = (
        f"{job.sweep.folds} folds of {n_rows} training rows"
        if job.sweep.folds
        else f"{n_rows} validation rows"
    )
    if choice.standing is None:
        return f"Decided on {rows}"
    among = f" among {len(job.pool)} heads" if len(job.pool) > 1 else ""
    again = ", then trained on all training rows" if job.is_refitting else ""
    how = f"{among} by {choice.standing.score_name} on {rows}{again}"
    return f"Chosen in each fold{how}" if is_cv else f"Chosen{how}: {choice.standing.in_words()}"


def _n_choosing(choice: Choice) -> int:
    return sum(len(part.validation) for part in choice.fold.choosing)


def _model_card(job: HeadJob, outcome: Outcome) -> dict[str, Any]:
    by_fold = [fold.choice.candidate.head.taps for fold in outcome.folds]
    taps: Mapping[str, Any] = (
        {"taps": by_fold[0]} if len(set(by_fold)) == 1 else {"fold_taps": by_fold}
    )
    return {**taps, **_describe_features(job.data.cache.header)}


def _likeness(job: HeadJob, outcome: Outcome) -> Likeness | None:
    """What new images are held against; None where the folds chose different layers."""
    taps = {fold.choice.candidate.head.taps for fold in outcome.folds}
    if len(taps) > 1:
        return None
    return Likeness.of(job.data.features(*taps), job.plan[0].final.train)


def _describe_features(header: Header) -> dict[str, Any]:
    """How the features were made, and so those of a new image are to be."""
    preprocessing = Preprocessing.from_settings(
        PageSettings(crop_mode=cast(CropMode, header.crop_mode), size=header.size),
        resampling=header.resampling,
        mean=header.mean,
        std=header.std,
    )
    return {
        "backbone": {
            "arch": header.arch,
            "weights": header.weights,
            "weights_digest": header.weights_digest,
        },
        "preprocessing": preprocessing.as_json(),
        "precision": header.precision,
        "device": header.device,
        "decoder": header.decoder,
    }
