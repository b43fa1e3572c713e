"""What a finished fine-tuning hands over to be kept."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ecgfeat.calibration import Decision, decide
from ecgfeat.finetuning.job import KIND, Job
from ecgfeat.finetuning.state import Said, State
from ecgfeat.finetuning.training import Trainer
from ecgfeat.images import DECODER
from ecgfeat.predictions import Predictions, join
from ecgfeat.protocol import Partition
from ecgfeat.runs import Cost, Result
from ecgfeat.runtime import peak_memory_mib

__all__ = ["predictions_of", "result_of"]


def predictions_of(job: Job, part: Partition, said: Said, split: str) -> Predictions:
    """What was said, beside the truth."""
    return Predictions.of_rows(
        said.rows,
        said.probabilities,
        ids=job.manifest.paths,
        groups=job.manifest.groups,
        classes=job.task.classes,
        targets=job.task.targets,
        split=split,
        fold=part.fold,
    )


def result_of(
    job: Job, state: State, config: dict[str, Any], trainer: Trainer, wall_s: float
) -> Result:
    """Put together what the folds gave.

    Parameters
    ----------
    job : Job
    state : State
        Every fold is finished.
    config : dict
        What ``config.json`` holds.
    trainer : Trainer
        The last fold's, with the weights that were tested.
    wall_s : float
    """
    is_cv = bool(job.evaluation.cv)
    validated = [
        predictions_of(job, part, candidate.validation, "validation")
        for part, candidate in zip(job.plan, state.chosen)
    ]
    tested = [
        predictions_of(job, part, said, part.split) for part, said in zip(job.plan, state.tested)
    ]
    decisions = _decisions(job, validated)
    if decisions:
        validated, tested = (
            [decision.apply(said) for decision, said in zip(decisions, predictions)]
            for predictions in (validated, tested)
        )
    return Result(
        kind=KIND,
        data_name=job.manifest.name,
        config={**config, "n_quarantined": len(state.failures)},
        history=tuple(state.history),
        predictions=join(tested),
        n_test_total=len(job.manifest) if is_cv else job.manifest.splits.count("test"),
        cost=Cost(
            wall_s=wall_s,
            features_s=0.0,
            images_per_s=state.n_trained / state.training_s,
            peak_memory_mib=peak_memory_mib(),
            arch=job.network.arch,
            batch_size=job.training.batch_size,
            device=job.compute.device,
            precision=job.compute.precision,
        ),
        model={} if is_cv else {k: v.numpy() for k, v in trainer.weights().items()},
        model_card={
            "backbone": config["backbone"],
            "preprocessing": config["preprocessing"],
            "precision": job.compute.precision,
            "decoder": DECODER,
        },
        decisions=decisions,
        validation=join(validated) if any(map(len, validated)) else None,
        choice=_choice(job, state),
        prevalence=job.evaluation.prevalence,
    )


def _decisions(job: Job, validated: Sequence[Predictions]) -> list[Decision]:
    """From probabilities to answers, fold by fold; empty where nothing is asked for."""
    evaluation = job.evaluation
    if not (evaluation.calibrate or evaluation.at_sensitivity):
        return []
    return [decide(said, method="temperature", settings=evaluation) for said in validated]


def _choice(job: Job, state: State) -> dict[str, Any]:
    """Which epoch was tested and at which rate it was trained, by fold, where that was chosen."""
    training, words = job.training, []
    choice: dict[str, Any] = {}
    if training.choose_by != "last":
        choice["by"] = training.choose_by
        choice["epoch"] = [candidate.epoch for candidate in state.chosen]
        choice["score"] = [candidate.score for candidate in state.chosen]
        words.append(f"epoch {_listed(choice['epoch'])} by {training.choose_by} on validation rows")
    if training.lr == "auto":
        choice["lr"] = list(state.rates)
        words.append(f"learning rate {_listed(state.rates)} by a range test on training rows")
    return {"words": "; ".join(words), **choice} if words else {}


def _listed(values: Sequence[float]) -> str:
    return ", ".join(f"{value:g}" for value in values)
