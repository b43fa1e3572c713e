"""From a cache to finished runs: what is asked for is checked, then done, then kept."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ecgfeat.calibration import refuse_undecidable
from ecgfeat.config import RECIPES, EvaluationSettings, HeadKind, HeadSettings, SweepSettings
from ecgfeat.errors import ConfigError
from ecgfeat.heads.candidates import candidates, seeds_of
from ecgfeat.heads.data import HeadData
from ecgfeat.heads.describing import describe
from ecgfeat.heads.grids import Grid, read_grid
from ecgfeat.heads.job import HeadJob
from ecgfeat.heads.outcomes import Fold, Rows
from ecgfeat.protocol import (
    Task,
    define_task,
    inner_folds,
    keep_rows,
    partitions,
    refuse_thin_validation,
)
from ecgfeat.runs import Run, create_run, write_run, write_sweep
from ecgfeat.runtime import Report, silent

if TYPE_CHECKING:
    from ecgfeat.feature_cache import FeatureCache, Listing

__all__ = ["fit_heads"]

KINDS: tuple[HeadKind, ...] = ("linear", "logreg")
SWEEP_VAL_FRACTION = 0.2
"""Share of the training rows that chooses, where nothing else is said."""


def fit_heads(
    cache: FeatureCache,
    *,
    kinds: Sequence[HeadKind],
    head: HeadSettings = HeadSettings(),
    sweep: SweepSettings = SweepSettings(),
    evaluation: EvaluationSettings = EvaluationSettings(),
    out_dir: Path = Path("runs"),
    recipe: str = "",
    report: Report = silent,
) -> list[Run]:
    """Train and test heads on a cache's features, each in a run of its own.

    A sweep is one run: all its heads are trained, one is chosen on validation rows or by folds
    inside the training rows, and that one alone is tested. With ``evaluation.cv`` the choice is
    made anew in every fold.

    Parameters
    ----------
    cache : FeatureCache
    kinds : sequence of {"linear", "logreg"}
        Which heads. The linear one comes first, whatever the order here.
    head, sweep, evaluation : settings
    out_dir : Path
        Where the runs' folders are made.
    recipe : str
        Name of the recipe that the settings began as, for ``config.json``; the settings decide.
    report : callable, optional
        Told each epoch and each fit; may raise `Interrupted`, upon which finished runs are kept,
        and the part of a sweep that is finished.

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
    kinds = _ordered(kinds)
    evaluation = _with_validation(sweep, evaluation)
    _refuse_contradictions(kinds, sweep, evaluation)
    grid = read_grid(sweep, kinds)
    pool, seeds = candidates(kinds, head, grid), seeds_of(grid, sweep, evaluation)
    for layers in dict.fromkeys(candidate.head.taps for candidate in pool):
        _refuse_without(layers, cache, recipe)
        cache.require(layers)
    task, plan = _lay_down(cache.listing, sweep, evaluation)
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
            recipe=recipe,
            report=report,
        )
        for one_run in ([pool] if sweep.is_choosing else [[candidate] for candidate in pool])
    ]
    return [_run(job, grid, out_dir) for job in jobs]


def _ordered(kinds: Sequence[HeadKind]) -> list[HeadKind]:
    unknown = [kind for kind in kinds if kind not in KINDS]
    if unknown or not kinds:
        raise ConfigError(
            f"kinds must name heads to fit ({', '.join(KINDS)}); found "
            f"{', '.join(map(repr, unknown)) or 'none'}"
        )
    return [kind for kind in KINDS if kind in kinds]


def _with_validation(sweep: SweepSettings, evaluation: EvaluationSettings) -> EvaluationSettings:
    if sweep.folds and evaluation.val_fraction:
        raise ConfigError(
            "--folds and --val-fraction both say which rows choose: give one of the two"
        )
    if sweep.is_choosing and not sweep.folds and not evaluation.val_fraction:
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
    kinds: Sequence[HeadKind], sweep: SweepSettings, evaluation: EvaluationSettings
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
    is_deciding = evaluation.calibrate or evaluation.at_sensitivity
    if is_deciding and (sweep.folds or sweep.refit) and "linear" in kinds:
        # Trained again on more rows, it takes other steps, and its logits have another scale.
        raise ConfigError(
            "--calibrate and --at-sensitivity hold for the very head that saw the validation "
            "rows, and --folds and --refit train a linear head again: give --val-fraction without "
            "--refit, or --head logreg, whose probabilities keep their scale"
        )
    if sweep.learning_curve and not (sweep.folds or evaluation.val_fraction):
        raise ConfigError(
            "--learning-curve is scored on validation rows, and there are none: also give "
            "--val-fraction 0.2 or --folds 5"
        )
    if sweep.seeds > 1 and "linear" not in kinds and not sweep.learning_curve:
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
    has_validation = bool(sweep.folds or evaluation.val_fraction)
    refuse_undecidable(evaluation, n_classes=len(listed.classes), has_validation=has_validation)
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


def _run(job: HeadJob, grid: Grid, out_dir: Path) -> Run:
    name = "sweep" if job.sweep.is_choosing else job.pool[0].kind
    folder = create_run(out_dir, name, job.data.cache.data_name)
    n_tried = 0

    def keep(rows: Rows) -> None:
        nonlocal n_tried
        n_tried = len(rows)
        write_sweep(folder, rows)

    try:
        return write_run(folder, describe(job, job.run(keep), grid))
    except BaseException as error:
        if n_tried:
            error.add_note(f"{folder / 'sweep.csv'} keeps the {n_tried} heads that were tried")
        # An empty folder tells nobody anything; one with files in it stays, as unfinished.
        with contextlib.suppress(OSError):
            folder.rmdir()
        raise
