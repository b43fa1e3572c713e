"""A backbone taught what an ECG is, on synthetic pages, before it is frozen or fine-tuned.

The given network is asked, of pages drawn on the fly and never stored, for all that is known of
them (`ecgfeat.synth.morphology`): what a reader would measure in each lead, rate, axis and
intervals, twelve findings, the layout. It answers through one linear layer over the very features
that a cache will keep (``--layers``), so that what it learns can be read off them.

A folder holds the work: ``config.json`` from the start, ``checkpoint.safetensors`` on the way,
``history.csv`` and, written last, ``weights.safetensors``: the mean of what was given and what was
learnt, which forgets less than the latter alone (WiSE-FT, Wortsman et al. 2022).
"""

from __future__ import annotations

import json
import math
import time
from collections import deque
from collections.abc import Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict, astuple, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import torch
from numpy.typing import NDArray

from ecgfeat.architectures import LAYERS, family_of
from ecgfeat.augmentation import AMOUNTS, augment
from ecgfeat.backbones import Weights, load_network, load_weights, pooled, tap_widths
from ecgfeat.config import (
    AdaptSettings,
    ComputeSettings,
    FinetuneSettings,
    NetworkSettings,
    Tap,
    as_json,
    option_name,
    parse_tap,
)
from ecgfeat.errors import ConfigError, DivergedError, Interrupted, RunError, storage_error
from ecgfeat.files import replacing, typed, write_csv, write_json
from ecgfeat.finetuning.checkpoint import load_checkpoint, remove_checkpoint, save_checkpoint
from ecgfeat.finetuning.run import sole
from ecgfeat.finetuning.trainer import Schedule, Snapshot, Trainer
from ecgfeat.preprocessing import Preprocessing
from ecgfeat.runs import Count, Number
from ecgfeat.runtime import Compute, Progress, Report, resolve_compute, silent, versions
from ecgfeat.synth import FINDINGS, LAYOUTS, MEASURES, NUMBERS, Lesson, draw_lesson

__all__ = ["WEIGHTS", "Adapted", "Exam", "adapt"]

WEIGHTS = "weights.safetensors"
"""What the folder is for: a state dict by torchvision's names."""
CONFIG, HISTORY = "config.json", "history.csv"
EXAM_PAGES = 256
"""Pages of the exam, which are never learnt from; by them numbers are standardised too."""
EXAM_EVERY = 2000
"""Pages learnt from between two exams."""
PURPOSES = ("lesson", "exam")
"""What a page's seed is for."""
N_VOLTAGES = 4 * 12
"""R, S, ST and T of each lead, the first of `NUMBERS`: few are large, so their roots are asked."""
FARTHEST = 4.0
"""Standard deviations beyond which a number isn't followed."""
PRESENT = 4.0
"""How many times as much a finding counts as its absence: most are on a sixth of the pages."""
SHARES = (2.0, 0.5, 0.1)
"""Of numbers, findings and layout in the loss."""
GAIN = 5.0
"""How much faster than the backbone the new linear layer learns: Adam's steps are all equal."""
WARMUP = 0.05
"""Share of the steps in which the rate rises."""


@dataclass(frozen=True, kw_only=True)
class Exam:
    """What the network knew of pages it hadn't learnt from.

    Attributes
    ----------
    pages : int
        Learnt from until then.
    loss : float
        Mean over those since the exam before.
    R, S, ST, T, P : float
        R² of each measure, mean over the leads.
    whole : float
        R² of what is measured of the whole page, mean.
    findings : float
        AUROC, mean over the findings.
    seconds : float
        Since the work began, interruptions apart.
    """

    pages: Count
    loss: Number
    R: Number
    S: Number
    ST: Number
    T: Number
    P: Number
    whole: Number
    findings: Number
    seconds: Number

    def log_line(self) -> str:
        """For people."""
        by_measure = " ".join(f"{name} {getattr(self, name):.2f}" for name in MEASURES)
        return (
            f"[Adapting] {self.pages:,} pages | Loss: {self.loss:.4f} | R²: {by_measure} whole "
            f"{self.whole:.2f} | AUROC of findings: {self.findings:.3f}"
        )


@dataclass(kw_only=True)
class _State:
    """How far the work has come; pages follow from seed and number alone."""

    step: Count = 0
    summed_loss: Number = 0.0
    n_summed: Count = 0
    history: list[Exam] = field(default_factory=list)
    seconds: Number = 0.0


@dataclass(frozen=True, kw_only=True)
class Adapted:
    """What `adapt` made.

    Attributes
    ----------
    weights_path : Path
        What ``--weights`` takes.
    digest : str
        Of the weights, as a cache's header has it.
    history : list of Exam
    was_done : bool
        Whether the folder held them already.
    """

    weights_path: Path
    digest: str
    history: list[Exam]
    was_done: bool


def adapt(
    out: str | Path,
    *,
    network: NetworkSettings = NetworkSettings(),
    compute: ComputeSettings = ComputeSettings(),
    settings: AdaptSettings = AdaptSettings(),
    report: Report = silent,
) -> Adapted:
    """Teach a backbone what an ECG is, on synthetic pages.

    Parameters
    ----------
    out : str or Path
        A new or empty folder, or one of the same settings, with which the work goes on.
    network : NetworkSettings
        What to begin with.
    compute : ComputeSettings
    settings : AdaptSettings
    report : callable
        Told the progress; may raise `Interrupted`, and what is done is kept.

    Returns
    -------
    Adapted

    Raises
    ------
    ConfigError
        When the folder was begun with other settings; the message names the option.
    RunError
        When it holds something else, or another process is at it.
    WeightsError, DeviceError, TrainingError, StorageError, Interrupted

    Examples
    --------
    >>> adapted = adapt("ecg-resnet18")  # doctest: +SKIP
    >>> network = NetworkSettings(weights=str(adapted.weights_path))  # doctest: +SKIP
    >>> extract("pages", network=network)  # doctest: +SKIP
    """
    folder = Path(out)
    weights = load_weights(network)
    if weights.note:
        report(Progress(stage="adapting", done=0, total=0, message=weights.note))
    plan = _plan_of(weights, settings)
    begun = _begun(folder)
    _refuse_other(begun, plan, folder)
    resolved = resolve_compute(replace(compute, **begun.get("compute", {})), purpose="train")
    with sole(folder, is_finished=lambda folder: (folder / WEIGHTS).exists()):
        if not begun:
            chosen = {"device": resolved.device, "precision": resolved.precision}
            write_json(folder / CONFIG, {**plan, "compute": chosen, "versions": versions()})
        was_done = (folder / WEIGHTS).exists()
        if not was_done:
            state, snapshot = load_checkpoint(folder, _State) or (_State(), Snapshot())
            _Teaching(folder, weights, settings, resolved, state, report).run(network, snapshot)
    return _made(folder / WEIGHTS, network, was_done)


def _made(path: Path, network: NetworkSettings, was_done: bool) -> Adapted:
    from safetensors import safe_open

    weights = load_weights(replace(network, weights=str(path)))
    with safe_open(path, framework="np") as file:
        origin = json.loads((file.metadata() or {}).get("ecgfeat", "{}"))
    history = typed(origin.get("exams", []), list[Exam])
    return Adapted(weights_path=path, digest=weights.digest, history=history, was_done=was_done)


def _plan_of(weights: Weights, settings: AdaptSettings) -> dict[str, Any]:
    """All that decides the numbers, but for device and precision."""
    return {
        "kind": "adapt",
        "format_version": 1,
        "arch": weights.arch,
        "weights": weights.name,
        "weights_digest": weights.digest,
        "settings": as_json(settings),
    }


class _Config(TypedDict):
    """What is relied on of ``config.json``."""

    kind: str
    settings: dict[str, Any]
    compute: dict[str, str]


def _begun(folder: Path) -> dict[str, Any]:
    """What ``config.json`` of an earlier call says; empty for a new or empty folder.

    Raises
    ------
    RunError
        When the folder holds something else.
    """
    path = folder / CONFIG
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            strange = [found.name for found in folder.iterdir() if not found.name.startswith(".")]
            if strange:
                raise RunError(
                    f"{folder} holds {strange[0]!r} and was not made by adapt. Give a new folder."
                )
            return {}
        found = json.loads(path.read_bytes())
        typed(found, _Config)
    except FileExistsError:
        raise RunError(f"{folder} is a file. Give a new folder.") from None
    except OSError as error:
        raise storage_error(error, "using", folder) from error
    except ValueError as error:
        raise RunError(f"{path} is damaged ({error}). Give a new folder.") from error
    if found["kind"] != "adapt":
        raise RunError(f"{folder} is a run of another kind. Give a new folder.")
    return dict(found)


def _refuse_other(begun: dict[str, Any], plan: dict[str, Any], folder: Path) -> None:
    if not begun:
        return
    old, new = _flat(begun), _flat(plan)
    new.pop("weights")  # the same file may lie elsewhere now; its digest tells
    for name, value in new.items():
        if old.get(name) != value and name != "checkpoint_minutes":
            option = option_name(name.removesuffix("_digest"))
            raise ConfigError(
                f"{folder} was begun with {option} {old.get(name)}, and is asked for {value}. "
                "Give its own settings, or another folder."
            )


def _flat(plan: dict[str, Any]) -> dict[str, Any]:
    return {**plan, **plan["settings"], "settings": None}


class _Teaching:
    """The work under way in its folder."""

    def __init__(
        self,
        folder: Path,
        weights: Weights,
        settings: AdaptSettings,
        compute: Compute,
        state: _State,
        report: Report,
    ) -> None:
        self._folder = folder
        self._weights = weights
        self._preprocessing = Preprocessing(
            crop_mode="squash", width_px=settings.width_px, height_px=settings.height_px
        )
        self._settings = settings
        self._compute = compute
        self._state = state
        self._report = report
        self._n_steps = math.ceil(settings.pages / settings.batch_size)
        self._saved_s = self._began_s = time.monotonic()
        self._seconds_before = state.seconds

    def run(self, network: NetworkSettings, snapshot: Snapshot) -> None:
        """Do what is left."""
        self._report(Progress(stage="drawing the exam", done=0, total=0))
        exam = _batch(self._lessons("exam", range(EXAM_PAGES)))
        scales = _Scales.of(exam.numbers)
        training = self._training
        taps = tuple(map(parse_tap, self._settings.taps))
        trainer = Trainer(
            _Reader(load_network(network, 1, 0), self._weights.arch, taps),
            training,
            self._preprocessing,
            self._compute,
            loss=_Marks(),
            tell=lambda line: self._tell(message=line),
        )
        if self._state.step:
            trainer.restore(snapshot)
        schedule = Schedule(settings=training, lr=self._settings.lr, n_steps=self._n_steps)
        try:
            self._examine(trainer, exam, scales)  # a stop may have come between it and its pages
            with closing(self._batches()) as batches:
                for batch in batches:
                    trainer.set_lr(schedule.rate(self._state.step))
                    self._learn(trainer, batch, scales)
                    self._examine(trainer, exam, scales)
        except (Interrupted, KeyboardInterrupt) as error:
            self._save(trainer)
            error.add_note(
                f"kept: {self._n_pages:,} of {self._settings.pages:,} pages; the same command "
                "goes on with them"
            )
            raise
        self._write(trainer)

    @property
    def _training(self) -> FinetuneSettings:
        return FinetuneSettings(
            lr=self._settings.lr,
            batch_size=self._settings.batch_size,
            optimizer="adamw",
            weight_decay=1e-4,
            clip=5.0,
            schedule="cosine",
            warmup=WARMUP,
            freeze_to=self._settings.freeze_to,
        )

    @property
    def _n_pages(self) -> int:
        return min(self._state.step * self._settings.batch_size, self._settings.pages)

    def _batches(self) -> Generator[_Batch]:
        """The pages that are left, step by step."""
        with closing(self._lessons("lesson", range(self._n_pages, self._settings.pages))) as left:
            while lessons := [lesson for _, lesson in zip(range(self._settings.batch_size), left)]:
                yield _batch(lessons)

    def _lessons(self, purpose: str, numbers: Iterable[int]) -> Generator[Lesson]:
        """Pages drawn ahead by threads, in order."""
        at_most = 2 * self._settings.batch_size
        ahead: deque[Future[Lesson]] = deque()
        pool = ThreadPoolExecutor(self._compute.threads, thread_name_prefix="ecgfeat-lessons")
        try:
            for number in numbers:
                ahead.append(pool.submit(self._lesson, purpose, number))
                if len(ahead) > at_most:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)

    def _lesson(self, purpose: str, number: int) -> Lesson:
        """A page; those to learn from are changed as scanners and cameras change them."""
        key = (self._settings.seed, PURPOSES.index(purpose), number)
        rng = np.random.default_rng(key)
        size_px = self._preprocessing.width_px, self._preprocessing.height_px
        lesson = draw_lesson(rng, size_px)
        if purpose == "exam":
            return lesson
        amounts = AMOUNTS["strong" if rng.random() < 0.5 else "light"]
        return replace(lesson, page=augment(lesson.page, amounts, rng))

    def _learn(self, trainer: Trainer, batch: _Batch, scales: _Scales) -> None:
        state = self._state
        if len(batch.pages) < 2:  # of one page batch norm has no statistics
            state.step += 1
            return
        step = trainer.step(batch.pages, batch.truth(scales))
        if not math.isfinite(step.loss):
            lr = self._settings.lr
            raise DivergedError(
                f"the loss is no longer finite. Begin in a new folder with a lower --lr (this one "
                f"has {lr:g}; try {lr / 10:g})."
            )
        state.step += 1
        state.summed_loss += step.loss * step.n_images
        state.n_summed += step.n_images
        self._tell(detail=f"loss {state.summed_loss / state.n_summed:.4f}")
        if time.monotonic() - self._saved_s > 60 * self._settings.checkpoint_minutes:
            self._save(trainer)

    def _examine(self, trainer: Trainer, exam: _Batch, scales: _Scales) -> None:
        """Hold an exam where it is time, and at the end."""
        state = self._state
        before, now = state.history[-1].pages if state.history else 0, self._n_pages
        is_due = now // EXAM_EVERY > before // EXAM_EVERY or now == self._settings.pages
        if now == before or not is_due:
            return
        parts = np.array_split(exam.pages, math.ceil(EXAM_PAGES / self._settings.batch_size))
        answers = np.concatenate([trainer.answers(part) for part in parts])
        found = _Exam(answers, exam, scales)
        state.history.append(
            Exam(
                pages=now,
                loss=state.summed_loss / max(1, state.n_summed),
                **found.by_measure(),
                whole=found.whole(),
                findings=found.findings(),
                seconds=self._seconds,
            )
        )
        state.summed_loss, state.n_summed = 0.0, 0
        self._tell(message=state.history[-1].log_line())
        self._save(trainer)

    @property
    def _seconds(self) -> float:
        return self._seconds_before + time.monotonic() - self._began_s

    def _tell(self, *, message: str = "", detail: str = "") -> None:
        self._report(
            Progress(
                stage="adapting",
                done=self._n_pages,
                total=self._settings.pages,
                unit="pages",
                message=message,
                detail=detail,
            )
        )

    def _save(self, trainer: Trainer) -> None:
        self._state.seconds = self._seconds
        save_checkpoint(self._folder, self._state, trainer.snapshot())
        self._saved_s = time.monotonic()

    def _write(self, trainer: Trainer) -> None:
        """The history, and last the weights."""
        from safetensors.torch import save_file

        names = [item.name for item in fields(Exam)]
        rows = [names, *(astuple(exam) for exam in self._state.history)]
        write_csv(self._folder / HISTORY, rows)
        taught, share = trainer.weights(), self._settings.blend
        tensors = {
            name: torch.lerp(given, taught[name], share)
            for name, given in self._weights.tensors.items()
        }
        origin = {
            **_plan_of(self._weights, self._settings),
            "exams": [asdict(exam) for exam in self._state.history],
            "versions": versions(),
            "licence": "derived from the weights named here, whose licence holds for these too; "
            "the pages were drawn by ecgfeat and add no condition",
        }
        path = self._folder / WEIGHTS
        with replacing(path) as aside:
            save_file(tensors, aside, metadata={"format": "pt", "ecgfeat": json.dumps(origin)})
        remove_checkpoint(self._folder)


# The pages of a step, and the truth of them


@dataclass(frozen=True, eq=False)
class _Batch:
    """Pages (b, height, width, 3), numbers (b, n), findings (b, n) and layouts (b,)."""

    pages: NDArray[np.uint8]
    numbers: NDArray[np.float32]
    findings: NDArray[np.bool_]
    layouts: NDArray[np.int64]

    def truth(self, scales: _Scales) -> NDArray[np.float32]:
        """What `_Marks` judges by, shape (b, n numbers + n findings + 1)."""
        columns = (scales.standardised(self.numbers), self.findings, self.layouts[:, None])
        return np.concatenate(columns, axis=1).astype(np.float32)


def _batch(lessons: Iterable[Lesson]) -> _Batch:
    pages, numbers, findings, layouts = zip(
        *((one.page, one.numbers, one.findings, one.layout) for one in lessons)
    )
    return _Batch(np.stack(pages), np.stack(numbers), np.stack(findings), np.array(layouts))


@dataclass(frozen=True, eq=False)
class _Scales:
    """Mean and deviation of each number, voltages by their roots."""

    mean: NDArray[np.float32]
    deviation: NDArray[np.float32]

    @classmethod
    def of(cls, numbers: NDArray[np.float32]) -> _Scales:
        evened = _evened(numbers)
        return cls(evened.mean(0), evened.std(0) + 1e-6)

    def standardised(self, numbers: NDArray[np.float32]) -> NDArray[np.float32]:
        standard: NDArray[np.float32] = (_evened(numbers) - self.mean) / self.deviation
        return standard.clip(-FARTHEST, FARTHEST)


def _evened(numbers: NDArray[np.float32]) -> NDArray[np.float32]:
    voltages, others = np.split(numbers, [N_VOLTAGES], axis=1)
    return np.concatenate((np.sign(voltages) * np.sqrt(np.abs(voltages)), others), axis=1)


# The network and its marks

_EDGES = (len(NUMBERS), len(NUMBERS) + len(FINDINGS))


class _Reader(torch.nn.Module):
    """A backbone, and a linear layer over its standardised features that reads a page off them.

    The backbone's parts keep torchvision's names.
    """

    def __init__(self, network: torch.nn.Module, arch: str, taps: Sequence[Tap]) -> None:
        super().__init__()
        self._family, self._taps = family_of(arch), taps
        for name, part in network.named_children():
            if name != self._family.classifier:
                self.add_module(name, part)
        width = sum(tap_widths(arch, [tap.name for tap in taps]).values())
        self.norm = torch.nn.BatchNorm1d(width, affine=False, momentum=0.05)
        self.readout = torch.nn.Linear(width, _EDGES[1] + len(LAYOUTS))
        torch.nn.init.zeros_(self.readout.weight)
        torch.nn.init.zeros_(self.readout.bias)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Answers (b, n numbers + n findings + n layouts) of images (b, 3, height, width)."""
        maps = images
        pools: dict[str, torch.Tensor] = {}
        for part in self._family.stem:
            maps = self.get_submodule(part)(maps)
        for layer in LAYERS:
            for part in self._family.stage(layer):
                maps = self.get_submodule(part)(maps)
            pools |= {tap.name: pooled(maps, tap) for tap in self._taps if tap.layer == layer}
        features = torch.cat([pools[tap.name] for tap in self._taps], dim=1)
        with torch.autocast(features.device.type, enabled=False):
            answers: torch.Tensor = GAIN * self.readout(self.norm(features))
        return answers


class _Marks:
    """Numbers by their distance, findings and layout by cross-entropy."""

    def weight(self, truth: torch.Tensor) -> float:
        return len(truth)

    def summed(self, answers: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
        numbers, findings, layouts = torch.tensor_split(answers, _EDGES, dim=1)
        true_numbers, true_findings, true_layouts = torch.tensor_split(truth, _EDGES, dim=1)
        functional = torch.nn.functional
        present = torch.full_like(true_findings[0], PRESENT)
        parts = (
            functional.smooth_l1_loss(numbers, true_numbers),
            functional.binary_cross_entropy_with_logits(
                findings, true_findings, pos_weight=present
            ),
            functional.cross_entropy(layouts, true_layouts[:, 0].long()),
        )
        return len(truth) * torch.stack([s * part for s, part in zip(SHARES, parts)]).sum()

    def said(self, answers: torch.Tensor, truth: torch.Tensor) -> tuple[torch.Tensor, int]:
        """The same loss, and the pages of which every finding is right."""
        _, findings, _ = torch.tensor_split(answers, _EDGES, dim=1)
        _, true_findings, _ = torch.tensor_split(truth, _EDGES, dim=1)
        n_right = ((findings > 0) == (true_findings > 0.5)).all(1).sum()
        return self.summed(answers, truth), int(n_right)


class _Exam:
    """Answers beside the truth."""

    def __init__(self, answers: NDArray[np.float32], exam: _Batch, scales: _Scales) -> None:
        numbers, self._findings, _ = np.split(answers, _EDGES, axis=1)
        truth = scales.standardised(exam.numbers)
        missed = ((numbers - truth) ** 2).sum(0)
        self._r2 = 1 - missed / ((truth - truth.mean(0)) ** 2).sum(0)
        self._truth = exam.findings

    def by_measure(self) -> dict[str, float]:
        by_lead = self._r2[: len(MEASURES) * 12].reshape(len(MEASURES), 12)
        return {name: float(r2.mean()) for name, r2 in zip(MEASURES, by_lead)}

    def whole(self) -> float:
        return float(self._r2[len(MEASURES) * 12 :].mean())

    def findings(self) -> float:
        from sklearn.metrics import roc_auc_score

        is_seen = [0 < truth.sum() < len(truth) for truth in self._truth.T]
        return float(roc_auc_score(self._truth[:, is_seen], self._findings[:, is_seen]))
