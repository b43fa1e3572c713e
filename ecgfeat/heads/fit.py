"""From a cache to finished runs: what is asked for is checked, then done, then kept."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ecgfeat.calibration import decide, refuse_undecidable
from ecgfeat.config import (
    RECIPE_OF_OLD_CACHES,
    RECIPES,
    EvaluationSettings,
    FigureSettings,
    HeadKind,
    HeadSettings,
    RecipeSettings,
    SweepSettings,
    comma_separated,
)
from ecgfeat.errors import ConfigError
from ecgfeat.heads.head import WAY, Fitted, HeadData, Meter, Step
from ecgfeat.heads.registry import HEADS
from ecgfeat.heads.results import Choice, Fold, Outcome, Rows, Tested, TestedFold, describe
from ecgfeat.heads.sweep import (
    SCORES,
    Candidate,
    Grid,
    Standing,
    best,
    candidates,
    n_trainings,
    read_grid,
    refuse_diverged,
    seeds_of,
    try_heads,
    validation_scores,
    value_or_none,
)
from ecgfeat.predictions import Predictions, join
from ecgfeat.protocol import (
    Partition,
    Task,
    define_task,
    find_leaks,
    has_validation,
    inner_folds,
    keep_rows,
    partitions,
    refuse_thin_validation,
    training_share,
)
from ecgfeat.runs import EpochRecord, Run, create_run, ignore, write_run, write_sweep
from ecgfeat.runtime import Report, silent

if TYPE_CHECKING:
    from ecgfeat.feature_cache import FeatureCache, Listing

__all__ = ["fit_heads"]


SWEEP_VAL_FRACTION = 0.2
"""Share of the training rows that chooses, where nothing else is said."""
BOTH = ("linear", "logreg")
LEAST_EPOCHS, LEAST_STEPS = 5, 200
"""Where ``epochs`` is 0: the study's epochs, or as many as make so many steps of Adam. On 160 rows
five epochs are 15 steps, and 200 gave within 0.01 the AUROC of logistic regression."""


def fit_heads(
    cache: FeatureCache | str | Path,
    *,
    kinds: str | Sequence[HeadKind] | None = None,
    head: HeadSettings | None = None,
    sweep: SweepSettings = SweepSettings(),
    evaluation: EvaluationSettings = EvaluationSettings(),
    figures: FigureSettings = FigureSettings(),
    out_dir: str | Path = "runs",
    recipe: str = "",
    report: Report = silent,
    on_written: Callable[[Run], None] = ignore,
) -> list[Run]:
    """Train and test heads on a cache's features, each in a run of its own.

    A sweep is one run: all its heads are trained, one is chosen on validation rows or by folds
    inside the training rows, and that one alone is tested. With ``evaluation.cv`` the choice is
    made anew in every fold.

    Parameters
    ----------
    cache : FeatureCache, str or Path
    kinds : str or sequence of {"linear", "logreg"}, optional
        Which heads, or ``"both"``; the recipe's by default. The linear one comes first, whatever
        the order here.
    head : HeadSettings, optional
        The recipe's by default.
    sweep, evaluation, figures : settings
    out_dir : str or Path
        Where the runs' folders are made.
    recipe : str
        Name of the recipe that the settings began as, for ``config.json``; where kinds or head are
        left out they are this one's, or the cache's.
    report : callable, optional
        Told each epoch and each fit; may raise `Interrupted`, upon which finished runs are kept,
        and the part of a sweep that is finished.
    on_written : callable, optional
        Given each run once its results are written, before its figures are drawn.

    Returns
    -------
    list of Run
        One for each of `kinds`, the linear head's first; one for a sweep.

    Raises
    ------
    ConfigError, DataError
        When layers, grid, labels, splits or groups don't allow what is asked for, or training
        diverged.
    CacheError
        When the cache's file is damaged, holds features that are not finite, or was replaced.
    StorageError
        When the disk refuses the runs' files.
    Interrupted

    Examples
    --------
    >>> cache = open_cache("cache/pages-resnet18-1b4e8c2a.h5")  # doctest: +SKIP
    >>> (run,) = fit_heads(cache, kinds=["linear"])  # doctest: +SKIP
    >>> run.metrics["scores"]["accuracy"]["value"]  # doctest: +SKIP
    0.6664
    >>> sweep = SweepSettings(grid=("lr=1e-4,1e-3", "weight_decay=0,1e-3"))  # doctest: +SKIP
    >>> (run,) = fit_heads(cache, kinds=["linear"], sweep=sweep)  # doctest: +SKIP
    >>> run.metrics["choice"]["words"]  # doctest: +SKIP
    'Chosen among 4 heads by log loss on 13120 validation rows: …'
    """
    if isinstance(cache, (str, Path)):
        from ecgfeat.feature_cache import open_cache

        cache = open_cache(cache)
    if kinds is None or head is None:
        chosen = RecipeSettings().chosen(recipe or cache.header.recipe or RECIPE_OF_OLD_CACHES)
        kinds = chosen.kinds if kinds is None else kinds
        head, recipe = head or chosen.head, chosen.name
    kinds = _ordered(kinds)
    splits = cache.listing.splits
    evaluation = _with_validation(sweep, evaluation, splits)
    _refuse_contradictions(kinds, sweep, evaluation, splits)
    grid = read_grid(sweep, kinds)
    task, plan = _lay_down(cache.listing, sweep, evaluation)
    figures.rename(task.classes)  # refuses names of no class, before anything is trained
    sides = [fold.final.sides for fold in plan]
    leaks = find_leaks(cache.pictures, cache.labels, cache.groups, sides)
    notices = leaks.refuse(cache.path, allowed=evaluation.allow_leak)
    head = _with_epochs(head, plan)
    pool, seeds = candidates(kinds, head, grid), seeds_of(grid, sweep, evaluation)
    for layers in dict.fromkeys(candidate.head.taps for candidate in pool):
        _refuse_without(layers, cache, recipe)
        cache.require(layers)
    data = HeadData(cache, task)
    jobs = [
        HeadJob(
            data=data,
            head=head,
            pool=one_run,
            plan=plan,
            seeds=seeds,
            sweep=sweep,
            evaluation=evaluation,
            figures=figures,
            recipe=recipe,
            report=report,
            leaks=notices,
        )
        for one_run in ([pool] if sweep.is_choosing else [[candidate] for candidate in pool])
    ]
    return [_run(job, grid, Path(out_dir), on_written) for job in jobs]


def _ordered(kinds: str | Sequence[str]) -> list[HeadKind]:
    wanted = comma_separated(kinds) if isinstance(kinds, str) else tuple(kinds)
    if wanted == ("both",):
        wanted = BOTH
    unknown = [kind for kind in wanted if kind not in HEADS]
    if unknown or not wanted:
        raise ConfigError(
            f"kinds must name heads to fit ({', '.join(HEADS)}); found "
            f"{', '.join(map(repr, unknown)) or 'none'}"
        )
    return [kind for kind in HEADS if kind in wanted]


def _with_epochs(head: HeadSettings, plan: Sequence[Fold]) -> HeadSettings:
    """`head` with a number of epochs, where it leaves that to the number of rows."""
    if head.epochs:
        return head
    n_rows = min(len(part.train) for fold in plan for part in fold.parts)
    n_steps = math.ceil(n_rows / head.batch_size)
    return replace(head, epochs=max(LEAST_EPOCHS, math.ceil(LEAST_STEPS / n_steps)))


def _with_validation(
    sweep: SweepSettings, evaluation: EvaluationSettings, splits: Sequence[str]
) -> EvaluationSettings:
    if sweep.folds and evaluation.val_fraction:
        raise ConfigError(
            "--folds and --val-fraction both say which rows choose: give one of the two"
        )
    if sweep.is_choosing and not sweep.folds and not has_validation(splits, evaluation):
        return replace(evaluation, val_fraction=SWEEP_VAL_FRACTION)
    return evaluation


def _refuse_without(layers: Sequence[str], cache: FeatureCache, recipe: str) -> None:
    """Refuse a cache that was extracted by another recipe than its heads need."""
    taps = cache.header.taps
    lacking = [tap for tap in layers if tap not in taps]
    if lacking and recipe in RECIPES and tuple(layers) == RECIPES[recipe].head.taps:
        raise ConfigError(
            f"the recipe {recipe} fits its head on {', '.join(layers)}, and {cache.path} holds "
            f"{', '.join(taps)}. Make a cache for it with `ecgfeat extract DATA --recipe "
            f"{recipe}`, or give --layers, or another --recipe."
        )


def _refuse_contradictions(
    kinds: Sequence[HeadKind],
    sweep: SweepSettings,
    evaluation: EvaluationSettings,
    splits: Sequence[str],
) -> None:
    if sweep.learning_curve and evaluation.cv:
        raise ConfigError(
            "--learning-curve draws one curve, and --cv trains on other rows in every fold: give "
            "one of the two"
        )
    if sweep.choose_by != SweepSettings.choose_by and not sweep.is_choosing:
        raise ConfigError(
            f"--choose-by {sweep.choose_by} has nothing to choose from: also give --sweep default, "
            "--grid or --folds, or leave it out"
        )
    in_epochs = [HEADS[kind] for kind in kinds if HEADS[kind].in_epochs]
    is_deciding = evaluation.calibrate or evaluation.at_sensitivity
    if is_deciding and (sweep.folds or sweep.refit) and in_epochs:
        # Trained again on more rows, it takes other steps, and its logits have another scale.
        raise ConfigError(
            "--calibrate and --at-sensitivity hold for the very head that saw the validation "
            "rows, and --folds and --refit train a linear head again: give --val-fraction without "
            "--refit, or --head logreg, whose probabilities keep their scale"
        )
    if sweep.learning_curve and not (sweep.folds or has_validation(splits, evaluation)):
        raise ConfigError(
            "--learning-curve is scored on validation rows, and there are none: also give "
            "--val-fraction 0.2 or --folds 5"
        )
    if sweep.seeds > 1 and not in_epochs and not sweep.learning_curve:
        raise ConfigError(
            "--seeds repeats the training of a linear head, and logistic regression has nothing "
            "that a seed could change: leave it out, or give --head linear or both"
        )


def _lay_down(
    listing: Listing, sweep: SweepSettings, evaluation: EvaluationSettings
) -> tuple[Task, list[Fold]]:
    """The task of the rows that have features, and who trains, chooses and is tested.

    That is laid down over all rows, so that one without features takes nobody else's place.
    """
    listed = define_task(listing.labels, evaluation.positive)
    refuse_undecidable(
        evaluation,
        n_classes=len(listed.classes),
        has_validation=bool(sweep.folds) or has_validation(listing.splits, evaluation),
    )
    plan = partitions(
        listed, ids=listing.paths, splits=listing.splits, groups=listing.groups, settings=evaluation
    )
    kept = listing.has_features
    is_deciding = evaluation.calibrate or evaluation.at_sensitivity
    must_decide = bool(sweep.is_choosing or sweep.learning_curve or is_deciding)
    folds = []
    for part in plan:
        (final,) = keep_rows([part], listed, kept)
        choosing = [final] if must_decide or len(final.validation) else []
        if sweep.folds:
            inner = inner_folds(
                part,
                listed,
                ids=listing.paths,
                groups=listing.groups,
                n_folds=sweep.folds,
                seed=evaluation.seed,
            )
            choosing = keep_rows(inner, listed, kept)
        folds.append(Fold(choosing=choosing, final=final.whole if sweep.refit else final))
    task = replace(listed, targets=listed.targets[kept])
    if must_decide:
        refuse_thin_validation([part for fold in folds for part in fold.choosing], task)
    return task, folds


def _run(job: HeadJob, grid: Grid, out_dir: Path, on_written: Callable[[Run], None]) -> Run:
    name = "sweep" if job.sweep.is_choosing else job.pool[0].kind
    folder = create_run(out_dir, name, job.data.cache.data_name)
    n_tried = 0

    def keep(rows: Rows) -> None:
        nonlocal n_tried
        n_tried = len(rows)
        write_sweep(folder, rows)

    try:
        result = describe(job, job.run(keep), grid)
        return write_run(folder, result, look=job.figures, on_written=on_written)
    except BaseException as error:
        if n_tried:
            error.add_note(f"{folder / 'sweep.csv'} keeps the {n_tried} heads that were tried")
        # An empty folder tells nobody anything; one with files in it stays, as unfinished.
        with contextlib.suppress(OSError):
            folder.rmdir()
        raise


N_CURVE_SEEDS = 3
"""Trainings behind each point of a learning curve at least, for it to have a band."""


@dataclass(frozen=True, kw_only=True, eq=False)
class HeadJob:
    """One run's work.

    Attributes
    ----------
    data : HeadData
    head : HeadSettings
        As they were given.
    pool : sequence of Candidate
        The heads to choose from; a single one where nothing is chosen, but perhaps its epoch.
    plan : sequence of Fold
    seeds : sequence of int
        The first is that of the head reported.
    sweep : SweepSettings
    evaluation : EvaluationSettings
    figures : FigureSettings
    recipe : str
        The recipe that the settings began as; empty where it was none.
    report : callable
    leaks : sequence of str
        What the result has to say of test images that are trained on.
    """

    data: HeadData
    head: HeadSettings
    pool: Sequence[Candidate]
    plan: Sequence[Fold]
    seeds: Sequence[int]
    sweep: SweepSettings
    evaluation: EvaluationSettings
    figures: FigureSettings
    recipe: str
    report: Report
    leaks: Sequence[str] = ()

    @property
    def is_refitting(self) -> bool:
        """Whether heads are tested that were trained on the validation rows too."""
        return bool(self.sweep.refit or self.sweep.folds)

    def run(self, on_tried: Callable[[Rows], None]) -> Outcome:
        """Choose in every fold, then train and test what was chosen.

        Parameters
        ----------
        on_tried : callable
            Given the rows of the sweep so far, each time some heads are finished.

        Raises
        ------
        DataError
            When every head, or the one chosen, diverged.
        """
        start_s = self._clock()
        choices, tried = self._choose_all(on_tried)
        chosen_s = self._clock()
        folds = self._test_all(choices)
        curve = self._learning_curve(choices[0]) if self.sweep.learning_curve else []
        return Outcome(
            folds=folds,
            sweep=tried,
            learning_curve=curve,
            wall_s=self._clock() - start_s,
            choosing_s=chosen_s - start_s,
        )

    def _clock(self) -> float:
        return time.perf_counter() - self.data.reading_s

    def _choose_all(self, on_tried: Callable[[Rows], None]) -> tuple[list[Choice], Rows]:
        """The head for each fold, and the rows of the sweep."""
        if not self.sweep.is_choosing:
            return [Choice(fold=fold, candidate=self.pool[0]) for fold in self.plan], []
        counts = (n_trainings(self.pool, len(fold.choosing), len(self.seeds)) for fold in self.plan)
        meter = Meter(self.report, stage="choosing", total=sum(counts), unit="fits")
        choices: list[Choice] = []
        tried: Rows = []

        def with_earlier(rows: Rows) -> None:
            on_tried([*tried, *rows])

        for fold in self.plan:
            standings = self._try(fold, meter, with_earlier)
            chosen = best(standings)
            refuse_diverged(chosen, len(standings))
            choices.append(Choice(fold=fold, candidate=chosen.candidate, standing=chosen))
            tried += [s.row(fold.number, chosen=s is chosen) for s in standings]
        return choices, tried

    def _try(self, fold: Fold, meter: Meter, on_tried: Callable[[Rows], None]) -> list[Standing]:
        """How every head of the pool does on a fold's validation rows."""
        name = f"Fold {fold.number + 1}/{len(self.plan)} | " if len(self.plan) > 1 else ""

        def tell(standings: list[Standing]) -> None:
            on_tried([standing.row(fold.number, chosen=False) for standing in standings])
            counted = f"{name}Tried {len(standings)}/{len(self.pool)} heads"
            meter.advance(0, f"[{WAY}] {counted} | Best: {best(standings).in_words()}")

        return try_heads(
            self.data,
            self.pool,
            fold.choosing,
            seeds=self.seeds,
            choose_by=self.sweep.choose_by,
            meter=meter,
            on_tried=tell,
        )

    def _test_all(self, choices: Sequence[Choice]) -> list[TestedFold]:
        in_epochs = all(HEADS[choice.candidate.kind].in_epochs for choice in choices)
        counts = (
            len(choice.seeds(self.seeds))
            * len(choice.fold.parts)
            * (choice.n_epochs if in_epochs else 1)
            for choice in choices
        )
        unit = "epochs" if in_epochs else "fits"
        meter = Meter(self.report, stage="fitting", total=sum(counts), unit=unit)
        return [
            TestedFold(
                choice=choice,
                tested=[self._test(choice, seed, meter) for seed in choice.seeds(self.seeds)],
            )
            for choice in choices
        ]

    def _test(self, choice: Choice, seed: int, meter: Meter) -> Tested:
        """Train a head, fix its decision on validation rows, and apply it to the test rows."""
        fold, held_out = choice.fold, []
        for part in fold.parts:
            is_told = part is fold.final and seed == self.seeds[0]
            fitted = self._fit(choice, part, seed, meter, is_told=is_told)
            if part in fold.choosing:
                held_out.append(self._predict(choice, fitted, part.validation, "validation"))
        validation = join(held_out) if held_out else None
        predictions = self._predict(choice, fitted, fold.final.test, fold.final.split)
        decision = None
        if validation and (self.evaluation.calibrate or self.evaluation.at_sensitivity):
            method = HEADS[choice.candidate.kind].calibration
            decision = decide(validation, method=method, settings=self.evaluation)
            validation, predictions = decision.apply(validation), decision.apply(predictions)
        return Tested(
            fitted=fitted, predictions=predictions, validation=validation, decision=decision
        )

    def _fit(
        self, choice: Choice, part: Partition, seed: int, meter: Meter, *, is_told: bool
    ) -> Fitted:
        amount = 1 if meter.unit == "epochs" else 1 / choice.n_epochs
        n_folds = len(self.plan)

        def on_step(step: EpochRecord | str) -> None:
            meter.advance(amount, _log_line(step, part.fold, n_folds) if is_told else "")

        return _fit_head(self.data, choice.candidate, part, seed, choice.n_epochs, on_step)

    def _predict(
        self, choice: Choice, fitted: Fitted, rows: NDArray[np.int64], split: str
    ) -> Predictions:
        return self.data.predictions(
            HEADS[choice.candidate.kind],
            rows,
            fitted.tensors,
            choice.candidate.head.taps,
            split=split,
            fold=choice.fold.number,
        )

    def _learning_curve(self, choice: Choice) -> Rows:
        first = self.evaluation.seed
        seeds = self.seeds if len(self.seeds) > 1 else range(first, first + N_CURVE_SEEDS)
        total = len(FRACTIONS) * len(seeds)
        return learning_curve(
            self.data,
            choice.candidate,
            choice.fold.choosing,
            n_epochs=choice.n_epochs,
            seeds=seeds,
            meter=Meter(self.report, stage="learning curve", total=total, unit="points"),
        )


def _log_line(step: EpochRecord | str, fold: int, n_folds: int) -> str:
    """A step of training as the study logs it, or how a head without epochs ended."""
    if isinstance(step, EpochRecord):
        return step.log_line(WAY, n_folds)
    name = f"Fold {fold + 1}/{n_folds} | " if n_folds > 1 else ""
    return f"[{WAY}] {name}{step}"


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
        fitted = _fit_head(data, candidate, part, seed, n_epochs, on_step=lambda _: None)
        head, taps = HEADS[candidate.kind], candidate.head.taps
        probabilities = data.probabilities(head, part.validation, fitted.tensors, taps)
        scores = validation_scores(probabilities[None], data.task.targets[part.validation])
        return scores.ravel()

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


def _fit_head(
    data: HeadData,
    candidate: Candidate,
    part: Partition,
    seed: int,
    n_epochs: int,
    on_step: Step,
) -> Fitted:
    """Train one head on the training rows of a partition, and tell how long it took."""
    X = data.features(candidate.head.taps)
    began = time.perf_counter()
    fitted = HEADS[candidate.kind].fit(
        X,
        data.task.targets,
        part,
        candidate.head,
        n_classes=len(data.task.classes),
        seed=seed,
        n_epochs=n_epochs,
        on_step=on_step,
    )
    return replace(fitted, training_s=time.perf_counter() - began)
