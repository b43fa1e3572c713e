"""From a cache to finished runs: what is asked for is checked, then done, then kept."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from ecgfeat.calibration import refuse_undecidable
from ecgfeat.config import (
    RECIPE_OF_OLD_CACHES,
    RECIPES,
    CropMode,
    EvaluationSettings,
    FigureSettings,
    HeadKind,
    HeadSettings,
    PageSettings,
    RecipeSettings,
    SweepSettings,
    as_json,
    comma_separated,
)
from ecgfeat.errors import ConfigError, Interrupted
from ecgfeat.heads.experiment import Choice, Fold, HeadJob, Outcome, Rows, Tested
from ecgfeat.heads.head import HeadData
from ecgfeat.heads.registry import HEADS
from ecgfeat.heads.sweep import Grid, candidates, read_grid, seeds_of
from ecgfeat.predictions import Predictions, join
from ecgfeat.preprocessing import Preprocessing
from ecgfeat.protocol import (
    Task,
    define_task,
    find_leaks,
    has_validation,
    inner_folds,
    keep_rows,
    partitions,
    refuse_thin_validation,
)
from ecgfeat.runs import (
    Cost,
    Likeness,
    Result,
    Run,
    count_classes,
    count_rows,
    create_run,
    ignore,
    write_run,
    write_sweep,
)
from ecgfeat.runtime import Report, machine, peak_memory_mib, silent, versions

if TYPE_CHECKING:
    from ecgfeat.feature_cache import FeatureCache, Header, Listing

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
    for layers in dict.fromkeys(candidate.settings.taps for candidate in pool):
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
    if evaluation.is_deciding and sweep.is_refitting and in_epochs:
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
    must_decide = sweep.is_choosing or sweep.learning_curve or evaluation.is_deciding
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
    name = "sweep" if job.sweep.is_choosing else job.pool[0].head.kind
    folder = create_run(out_dir, name, job.data.cache.data_name)
    n_tried = 0

    def keep(rows: Rows) -> None:
        nonlocal n_tried
        n_tried = len(rows)
        write_sweep(folder, rows)

    try:
        result = _described(job, job.run(keep), grid)
        return write_run(folder, result, look=job.figures, on_written=on_written)
    except BaseException as error:
        if n_tried:
            error.add_note(f"{folder / 'sweep.csv'} keeps the {n_tried} heads that were tried")
        elif job.sweep.is_choosing and isinstance(error, (Interrupted, KeyboardInterrupt)):
            error.add_note("no head had been tried on all its rows and seeds: nothing is kept")
        # An empty folder tells nobody anything; one with files in it stays, as unfinished.
        with contextlib.suppress(OSError):
            folder.rmdir()
        raise


# What a run keeps


def _described(job: HeadJob, outcome: Outcome, grid: Grid) -> Result:
    """Everything that a run's folder holds."""
    reported = outcome.reported
    kinds = {choice.candidate.head.kind for choice in outcome.choices}
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
            getattr(choice.candidate.settings, name)
            for choice in outcome.choices
            if name in choice.candidate.head.grid
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
    n_seeds = max(map(len, outcome.tested))
    return [
        join([by_seed[min(number, len(by_seed) - 1)].predictions for by_seed in outcome.tested])
        for number in range(1, n_seeds)
    ]


def _cost(job: HeadJob, outcome: Outcome) -> Cost:
    heads = [choice.candidate.head for choice in outcome.choices]
    in_epochs = all(head.in_epochs for head in heads)
    n_rows = [len(choice.fold.final.train) for choice in outcome.choices]
    n_images = sum(n * choice.n_epochs for n, choice in zip(n_rows, outcome.choices))
    return Cost(
        wall_s=outcome.wall_s,
        features_s=job.data.cache.extraction_s,
        images_per_s=n_images / sum(tested.fitted.training_s for tested in outcome.reported),
        peak_memory_mib=peak_memory_mib(),
        arch=job.data.cache.header.arch,
        batch_size=job.head.batch_size if in_epochs else max(n_rows),
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
        "n_rows": [_n_choosing(choice) for choice in outcome.choices],
    }
    if not job.sweep.is_choosing:
        return described
    return {
        **described,
        "by": job.sweep.choose_by,
        "n_heads": len(job.pool),
        "seeds": list(job.seeds),
        "refit": job.sweep.is_refitting,
        "chosen": [
            choice.standing.row(choice.fold.number, chosen=True)
            for choice in outcome.choices
            if choice.standing
        ],
        "wall_s": outcome.choosing_s,
    }


def _choice_in_words(job: HeadJob, outcome: Outcome) -> str:
    """One line for people."""
    choice, is_cv = outcome.choices[0], len(outcome.choices) > 1
    n_rows = "the" if is_cv else str(_n_choosing(choice))
    rows = (
        f"{job.sweep.folds} folds of {n_rows} training rows"
        if job.sweep.folds
        else f"{n_rows} validation rows"
    )
    if choice.standing is None:
        return f"Decided on {rows}"
    among = f" among {len(job.pool)} heads" if len(job.pool) > 1 else ""
    again = ", then trained on all training rows" if job.sweep.is_refitting else ""
    how = f"{among} by {choice.standing.score_name} on {rows}{again}"
    return f"Chosen in each fold{how}" if is_cv else f"Chosen{how}: {choice.standing.in_words()}"


def _n_choosing(choice: Choice) -> int:
    return sum(len(part.validation) for part in choice.fold.choosing)


def _model_card(job: HeadJob, outcome: Outcome) -> dict[str, Any]:
    by_fold = [choice.candidate.settings.taps for choice in outcome.choices]
    taps: Mapping[str, Any] = (
        {"taps": by_fold[0]} if len(set(by_fold)) == 1 else {"fold_taps": by_fold}
    )
    return {**taps, **_describe_features(job.data.cache.header)}


def _likeness(job: HeadJob, outcome: Outcome) -> Likeness | None:
    """What new images are held against; None where the folds chose different layers."""
    taps = {choice.candidate.settings.taps for choice in outcome.choices}
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
