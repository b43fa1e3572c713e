"""From a cache to finished runs: who trains, who is tested, what it cost."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ecgfeat.config import EvaluationSettings, HeadKind, HeadSettings, as_json
from ecgfeat.heads.applying import Tensors, head_probabilities
from ecgfeat.heads.linear import fit_linear
from ecgfeat.heads.logistic import fit_logistic
from ecgfeat.predictions import Predictions, join
from ecgfeat.preprocessing import Preprocessing
from ecgfeat.protocol import Partition, Task, define_task, keep_rows, partitions
from ecgfeat.runs import Cost, EpochRecord, Result, Run, count_rows, create_run, write_run
from ecgfeat.runtime import Progress, Report, machine, peak_memory_mib, silent, versions

if TYPE_CHECKING:
    from ecgfeat.feature_cache import FeatureCache, Header

__all__ = ["fit_heads"]

KINDS: tuple[HeadKind, ...] = ("linear", "logreg")
WAY = "Fixed Feature"
"""What the study's log lines call it."""


def fit_heads(
    cache: FeatureCache,
    *,
    kinds: Sequence[HeadKind],
    head: HeadSettings = HeadSettings(),
    evaluation: EvaluationSettings = EvaluationSettings(),
    out_dir: Path = Path("runs"),
    report: Report = silent,
) -> list[Run]:
    """Train and test heads on a cache's features, each in a run of its own.

    Parameters
    ----------
    cache : FeatureCache
    kinds : sequence of {"linear", "logreg"}
        Which heads. The linear one comes first, whatever the order here.
    head, evaluation : settings
    out_dir : Path
        Where the runs' folders are made.
    report : callable, optional
        Told each epoch and each fit; may raise `Interrupted`, upon which finished runs are kept.

    Returns
    -------
    list of Run
        One for each of `kinds`, the linear head's first.

    Raises
    ------
    ConfigError, DataError
        When layers, labels, splits or groups don't allow what is asked for, or training diverged.
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
    """
    listing = cache.listing
    listed = define_task(listing.labels, evaluation.positive)
    plan = partitions(
        listed, ids=listing.paths, splits=listing.splits, groups=listing.groups, settings=evaluation
    )
    plan = keep_rows(plan, listed, listing.has_features)
    task = replace(listed, targets=listed.targets[listing.has_features])
    X = cache.features(head.taps)
    job = _Job(cache, X, task, plan, head, evaluation, report)
    return [_run(job, kind, out_dir) for kind in KINDS if kind in kinds]


def _run(job: _Job, kind: HeadKind, out_dir: Path) -> Run:
    folder = create_run(out_dir, kind, job.cache.data_name)
    try:
        return write_run(folder, job.result(kind))
    except BaseException:
        # An empty folder tells nobody anything; one with files in it stays, as unfinished.
        with contextlib.suppress(OSError):
            folder.rmdir()
        raise


@dataclass(frozen=True, kw_only=True, eq=False)
class _Fitted:
    """A head after training; `solver` tells how logistic regression ended."""

    tensors: Tensors
    history: Sequence[EpochRecord] = ()
    solver: Mapping[str, int | bool] | None = None


@dataclass(frozen=True, eq=False)
class _Job:
    """What all heads of one call share."""

    cache: FeatureCache
    X: NDArray[np.float32]
    task: Task
    plan: list[Partition]
    head: HeadSettings
    evaluation: EvaluationSettings
    report: Report

    def result(self, kind: HeadKind) -> Result:
        """Train and test a head on every partition of the plan."""
        if kind == "logreg":
            import sklearn.linear_model  # noqa: F401 - so that loading it isn't counted as training

        fit = self._fit_linear if kind == "linear" else self._fit_logistic
        fitted, tested, training_s = [], [], 0.0
        started = time.perf_counter()
        for part in self.plan:
            began = time.perf_counter()
            fitted.append(fit(part))
            training_s += time.perf_counter() - began
            tested.append(self._test(part, fitted[-1].tensors))
        wall_s = time.perf_counter() - started
        is_cv = bool(self.evaluation.cv)
        listing = self.cache.listing
        n_test = len(listing.paths) if is_cv else listing.splits.count("test")
        return Result(
            kind=kind,
            data_name=self.cache.data_name,
            config=self._config(fitted),
            history=tuple(record for head in fitted for record in head.history),
            predictions=join(tested),
            n_test_total=n_test,
            cost=self._cost(kind, wall_s, training_s),
            model={} if is_cv else fitted[0].tensors,
            model_card={"taps": self.head.taps, **_describe_features(self.cache.header)},
        )

    def _fit_linear(self, part: Partition) -> _Fitted:
        history: list[EpochRecord] = []

        def on_epoch(record: EpochRecord) -> None:
            history.append(record)
            done = part.fold * self.head.epochs + record.epoch
            total = len(self.plan) * self.head.epochs
            message = record.log_line(WAY, len(self.plan))
            self.report(
                Progress(stage="fitting", done=done, total=total, unit="epochs", message=message)
            )

        tensors = fit_linear(
            self.X,
            self.task.targets,
            part,
            n_classes=len(self.task.classes),
            head=self.head,
            seed=self.evaluation.seed,
            on_epoch=on_epoch,
        )
        return _Fitted(tensors=tensors, history=history)

    def _fit_logistic(self, part: Partition) -> _Fitted:
        fit = fit_logistic(self.X, self.task.targets, part.train, C=self.head.C)
        ending = (
            f"converged after {fit.n_iterations} iterations"
            if fit.converged
            else f"not converged after {fit.n_iterations} iterations: its scores may still change; "
            "a lower --C makes it converge sooner"
        )
        fold = f"Fold {part.fold + 1}/{len(self.plan)} | " if len(self.plan) > 1 else ""
        message = f"[{WAY}] {fold}Logistic regression {ending}"
        done, total = part.fold + 1, len(self.plan)
        self.report(Progress(stage="fitting", done=done, total=total, unit="fits", message=message))
        solver = {"n_iterations": fit.n_iterations, "converged": fit.converged}
        return _Fitted(tensors=fit.tensors, solver=solver)

    def _test(self, part: Partition, tensors: Tensors) -> Predictions:
        return Predictions.of_rows(
            part.test,
            head_probabilities(tensors, self.X[part.test]),
            ids=self.cache.paths,
            groups=self.cache.groups,
            classes=self.task.classes,
            targets=self.task.targets,
            split=part.split,
            fold=part.fold,
        )

    def _cost(self, kind: HeadKind, wall_s: float, training_s: float) -> Cost:
        n_trained = [len(part.train) for part in self.plan]
        is_linear = kind == "linear"
        n_epochs = self.head.epochs if is_linear else 1
        return Cost(
            wall_s=wall_s,
            features_s=self.cache.extraction_s,
            images_per_s=sum(n_trained) * n_epochs / training_s,
            peak_memory_mib=peak_memory_mib(),
            arch=self.cache.header.arch,
            batch_size=self.head.batch_size if is_linear else max(n_trained),
            device="cpu",
            precision="fp32" if is_linear else "fp64",
        )

    def _config(self, fitted: Sequence[_Fitted]) -> dict[str, Any]:
        cache = self.cache
        solver = [head.solver for head in fitted if head.solver]
        return {
            "head": as_json(self.head),
            "evaluation": as_json(self.evaluation),
            "manifest_digest": cache.data_digest,
            "cache": {"path": str(cache.path), "digest": cache.digest, "n_images": len(self.X)},
            **_describe_features(cache.header),
            "partitions": count_rows(self.plan),
            **({"solver": solver} if solver else {}),
            "versions": versions(),
            "machine": machine(),
        }


def _describe_features(header: Header) -> dict[str, Any]:
    """How the features were made, and so those of a new image are to be."""
    preprocessing = Preprocessing.from_fields(
        crop_mode=header.crop_mode,
        size=header.size,
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
        "preprocessing": asdict(preprocessing),
        "precision": header.precision,
        "device": header.device,
        "decoder": header.decoder,
    }
