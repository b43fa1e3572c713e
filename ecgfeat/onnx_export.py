"""A finished run as one ONNX graph: from prepared pages to calibrated probabilities and answers.

What is fixed is folded in as for `predict`: pixels enter as they are, and the normalisation, the
batch norms, the heads of all folds, their calibration and the threshold are in the graph. Every
export is computed in ONNX Runtime before it takes its place, and must agree with the run.

PyTorch's newer exporter is used, though it needs onnxscript: the older one, which doesn't, is
deprecated, and of torch 2.14 gave wrong averages in the cells of a grid without a word.
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ecgfeat.calibration import Decision
from ecgfeat.config import ComputeSettings, SynthSettings, parse_tap
from ecgfeat.errors import ConfigError, RunError
from ecgfeat.files import replacing
from ecgfeat.heads import Tensors, head_of
from ecgfeat.images import prepare
from ecgfeat.inference import CalibratedHead, Model, read_model
from ecgfeat.preprocessing import EXACT_RESAMPLING, RESIZE_OVER_CROP, Preprocessing
from ecgfeat.runs import Run, open_run
from ecgfeat.runtime import Progress, Report, resolve_compute, silent, versions
from ecgfeat.synth import CLASSES, draw_page

if TYPE_CHECKING:
    import torch

    from ecgfeat.backbones import Backbone
    from ecgfeat.backbones.extractor import Trunk

__all__ = ["MARK", "OnnxExport", "export_onnx", "refuse_other_name"]

FORMAT = "ecgfeat-onnx 1"
"""What the metadata's ``format`` says; another number once a reader would have to know of it."""
MARK = b"\x12\x07ecgfeat"
"""How a file of ours begins, after its version of ONNX: protobuf's field 2, the producer."""
OPSET = 18
"""Of ONNX 1.13: the one that torch's exporter is written for, and every runtime since 2023 has."""
MAX_DIFFERENCE = 1e-4
"""Between a probability of the run and of its export. Of float32 about 1e-6 is to be expected."""
SLACK = 1e-5
"""How far below the run's threshold the graph still answers positive. The threshold is the very
probability of one of the validation pages, which rounding would lose in half of all cases."""

Floats = NDArray[np.float32]
Pages = NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class OnnxExport:
    """A model that was written, and how well it agrees with its run.

    Attributes
    ----------
    path : Path
    n_bytes : int
        Size of the file.
    classes : tuple of str
        In the order of the probabilities.
    n_models : int
        Heads in the graph, whose probabilities' mean it gives: of a cross-validated run as many
        as folds.
    n_pages : int
        Synthetic pages that it was checked on.
    largest_difference : float
        Between a probability of the run and of the export on them, both in float32.
    metadata : mapping of str to str
        What the file says of itself.
    """

    path: Path
    n_bytes: int
    classes: tuple[str, ...]
    n_models: int
    n_pages: int
    largest_difference: float
    metadata: Mapping[str, str]

    @property
    def input_in_words(self) -> str:
        """How a page becomes what the model takes."""
        return str(json.loads(self.metadata["preprocessing"])["in_words"])

    def as_json(self) -> dict[str, Any]:
        """The result as plain values."""
        return {**asdict(self), "path": str(self.path), "classes": list(self.classes)}


def export_onnx(
    run: Run | str | Path,
    path: str | Path,
    *,
    weights: str | None = None,
    report: Report = silent,
) -> OnnxExport:
    """Write a run's backbone and head as one ONNX graph, and check it in ONNX Runtime.

    The graph takes ``page``, prepared pages of shape (batch, height_px, width_px, 3), uint8, as
    `ecgfeat.images.prepare` gives them. It gives ``probabilities``, of shape (batch, n_classes),
    float32, calibrated where the run is, and ``predicted``, of shape (batch,), int64: the answer,
    by the run's threshold where it has one (`SLACK` below it, for float32's rounding). Any batch
    size will do. Everything is float32, whatever the run's own precision.

    Parameters
    ----------
    run : Run, str or Path
        Of any kind that keeps a model.
    path : str or Path
        The file to write, ending in ``.onnx``. One that is there is replaced, but only by an
        export that agrees with the run.
    weights : str, optional
        Where the backbone's weights are now, as for `ecgfeat.predict`.
    report : callable
        Told of each step.

    Returns
    -------
    OnnxExport

    Raises
    ------
    ConfigError
        When the path doesn't end in ``.onnx``, or the packages of the extra ``onnx`` are not
        installed; before torch is loaded.
    RunError
        When the run keeps no model, it is damaged, or what ONNX Runtime computes differs from the
        run's own probabilities by more than 1e-4; nothing is written then.
    WeightsError, DeviceError, StorageError, Interrupted

    Examples
    --------
    >>> export_onnx("runs/20260131-094500-linear-pages", "model.onnx").classes  # doctest: +SKIP
    ('normal', 'pathological')
    """
    path = Path(path)
    refuse_other_name(path)
    _refuse_without_extra()
    model = read_model(run if isinstance(run, Run) else open_run(run))
    preprocessing = model.card.preprocessing
    _tell(report, "reading the weights", 0)
    compute = resolve_compute(ComputeSettings(device="cpu", precision="fp32"), purpose="extract")
    backbone = model.load_backbone(weights, compute)
    _tell(report, "converting", 1)
    metadata = _metadata(model, backbone)
    content = _converted(_network(model, _trunk(model, backbone)), preprocessing, metadata)
    _tell(report, "checking", 2)
    pages = _check_pages(preprocessing)
    with replacing(path) as aside:
        aside.write_bytes(content)
        difference = _largest_difference(aside, model, backbone, pages)
        if not difference <= MAX_DIFFERENCE:  # written so that NaN is refused
            raise RunError(
                f"ONNX Runtime computes other probabilities than {model.run.path} itself, off by "
                f"up to {difference:.2g} where {MAX_DIFFERENCE:g} is allowed, so {path} is not "
                "written. Try other versions of torch, onnxscript and onnxruntime."
            )
    _tell(report, "", 3)
    return OnnxExport(
        path=path,
        n_bytes=len(content),
        classes=model.card.classes,
        n_models=len(model.heads),
        n_pages=len(pages),
        largest_difference=difference,
        metadata=metadata,
    )


def refuse_other_name(path: Path) -> None:
    """Refuse a file that no one would take for an ONNX model.

    Raises
    ------
    ConfigError
    """
    if path.suffix.lower() != ".onnx":
        raise ConfigError(f"the model's file must end in .onnx; found {path}")


def _refuse_without_extra() -> None:
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401  # torch's exporter needs it
    except ImportError as error:
        raise ConfigError(
            "an export needs onnx, onnxruntime and onnxscript: pip install 'ecgfeat[onnx]'"
        ) from error


def _tell(report: Report, doing: str, done: int) -> None:
    report(Progress(stage="exporting", done=done, total=3, unit="steps", detail=doing))


# The graph


def _trunk(model: Model, backbone: Backbone) -> Trunk:
    """The backbone in torch's plain layout; its own may lie otherwise, for speed."""
    from ecgfeat.backbones import load_weights
    from ecgfeat.backbones.extractor import build_trunk

    weights = load_weights(replace(model.network, weights=backbone.weights_name))
    taps = [parse_tap(name) for name in backbone.taps]
    return build_trunk(weights, model.card.preprocessing, taps)


def _network(model: Model, trunk: Trunk) -> torch.nn.Module:
    """Backbone and heads as one module, from pages to probabilities and answers."""
    import torch

    from ecgfeat.backbones.extractor import CENTRE

    threshold, centre = _rule(model).threshold, float(CENTRE)

    class Whole(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.trunk = trunk
            self.heads = torch.nn.ModuleList(map(_head, model.heads))

        def forward(self, page: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            centred = page.to(torch.float32) - centre  # (b, height, width, 3)
            images = torch.nn.functional.pad(centred, (0, 1), value=1.0).permute(0, 3, 1, 2)
            features = self.trunk(images)
            of_heads = [head(features) for head in self.heads]  # (b, n_classes) each
            probabilities = torch.stack(of_heads).mean(0) if len(of_heads) > 1 else of_heads[0]
            if threshold is None:
                return probabilities, probabilities.argmax(1)
            return probabilities, (probabilities[:, 1] >= threshold).to(torch.int64)

    return Whole().eval()


def _rule(model: Model) -> Decision:
    """How the graph's probabilities become its answers."""
    decision = model.decision
    if decision.threshold is None:
        return decision
    return replace(decision, threshold=max(0.0, decision.threshold - SLACK))


def _head(head: CalibratedHead) -> torch.nn.Module:
    """A head with its calibration, from the taps' features to probabilities."""
    import torch
    from torch.nn.functional import linear, log_softmax, softmax

    decision = head.decision
    arrays = _centred_form(head.tensors)
    offsets = np.zeros(len(arrays["biases"]), np.float32)
    offsets[-1] = decision.offset

    class Calibrated(torch.nn.Module):
        centre: torch.Tensor
        weights: torch.Tensor
        biases: torch.Tensor
        offsets: torch.Tensor

        def __init__(self) -> None:
            super().__init__()
            for name, array in {**arrays, "offsets": offsets}.items():
                self.register_buffer(name, torch.from_numpy(array))

        def forward(self, features: Mapping[str, torch.Tensor]) -> torch.Tensor:
            X = torch.cat([features[tap] for tap in head.taps], 1)  # (b, width)
            logits = linear(X - self.centre, self.weights, self.biases)
            if decision.method != "none":
                logs = log_softmax(logits, 1).clamp(min=_LEAST_LOG)
                logits = decision.slope * logs + self.offsets
            return softmax(logits, 1)

    return Calibrated()


_LEAST_LOG = math.log(np.finfo(np.float64).tiny)
"""Calibration takes no probability for less than the least positive double."""


def _centred_form(tensors: Tensors) -> dict[str, Floats]:
    """A head's logits as ``weights · (x − centre) + biases``, in float32.

    Logistic regression divides features that hardly differ by their small standard deviations. Of
    the features as they are, its weights and biases would be large numbers that cancel out, and
    float32 would lose what is left.
    """
    weights, biases = head_of(tensors).linear_form(tensors)
    centre = np.asarray(tensors.get("mean", np.zeros(weights.shape[1])), np.float32)
    return {
        "centre": centre,
        "weights": weights.astype(np.float32),
        "biases": (biases + weights @ centre.astype(np.float64)).astype(np.float32),
    }


def _converted(
    network: torch.nn.Module, preprocessing: Preprocessing, metadata: Mapping[str, str]
) -> bytes:
    """The network as an ONNX file's bytes."""
    import torch

    shape = (2, preprocessing.height_px, preprocessing.width_px, 3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's to itself: nobody here can heed them
        program = torch.onnx.export(
            network,
            (torch.zeros(shape, dtype=torch.uint8),),
            dynamo=True,
            opset_version=OPSET,
            input_names=["page"],
            output_names=["probabilities", "predicted"],
            dynamic_shapes={"page": {0: torch.export.Dim("batch")}},
            verbose=False,
        )
    assert program is not None
    proto = program.model_proto
    _forget_origin(proto)
    proto.producer_name, proto.producer_version = "ecgfeat", metadata["ecgfeat_version"]
    for key, value in metadata.items():
        proto.metadata_props.add(key=key, value=value)
    content: bytes = proto.SerializeToString(deterministic=True)
    return content


def _forget_origin(proto: Any) -> None:
    """Drop torch's notes on every part: tracebacks with this machine's paths among them."""
    graph = proto.graph
    parts = (graph.input, graph.output, graph.value_info, graph.initializer, graph.node)
    for part in (proto, graph, *(item for items in parts for item in items)):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")


# What the file says of itself


def _metadata(model: Model, backbone: Backbone) -> dict[str, str]:
    preprocessing = model.card.preprocessing
    described = {**preprocessing.as_json(), "in_words": preparation_in_words(preprocessing)}
    return {
        "format": FORMAT,
        "ecgfeat_version": versions()["ecgfeat"],
        "run": model.run.name.encode(errors="backslashreplace").decode(),
        "arch": backbone.arch,
        "weights_digest": backbone.digest,
        "classes": json.dumps(model.card.classes),
        "preprocessing": json.dumps(described),
        "decision": json.dumps(model.decision.as_json()),
    }


def preparation_in_words(preprocessing: Preprocessing) -> str:
    """How to make the graph's input of a page, for people who have only the file."""
    width, height = preprocessing.width_px, preprocessing.height_px
    if preprocessing.crop_mode == "squash":
        steps = f"Resize it to {width} x {height} pixels, whatever its proportions."
    elif preprocessing.crop_mode == "border":
        steps = (
            f"Resize it in its proportions to the largest size that fits into {width} x {height} "
            "pixels, put it in their middle, and fill the rest with the colour of its paper."
        )
    else:
        wide, high = (round(side * RESIZE_OVER_CROP) for side in (width, height))
        steps = (
            f"Resize it in its proportions to the smallest size that covers {wide} x {high} "
            f"pixels, and cut {width} x {height} out of its middle."
        )
    if preprocessing.filter == EXACT_RESAMPLING:
        resize = "Pillow's Image.resize with Resampling.BILINEAR"
    else:
        resize = "torch's interpolate with mode='bilinear' and antialias=True, on 8 bits"
    cleaning = ""
    if preprocessing.clean == "photo":
        cleaning = (
            "Before it is resized it must be cleaned, as only ecgfeat does (--clean photo): "
            "ecgfeat.images.prepare does that and what follows. "
        )
    return (
        "Take the page upright, as 8-bit RGB, with what is transparent laid over white. "
        f"{cleaning}{steps} Resize by {resize}. Give the pixels as they are, 0 to 255, in the "
        "order (batch, height, width, RGB): the model subtracts mean and divides by std itself."
    )


# The check


def _check_pages(preprocessing: Preprocessing) -> Pages:
    """A synthetic page of each class, and one of noise, prepared for the network."""
    drawn = [np.asarray(draw_page(name, seed=0, settings=SynthSettings())) for name in CLASSES]
    noise = np.random.default_rng(0).integers(0, 256, drawn[0].shape, dtype=np.uint8)
    return np.stack([prepare(page, preprocessing) for page in (*drawn, noise)])


def _largest_difference(path: Path, model: Model, backbone: Backbone, pages: Pages) -> float:
    """The largest difference of a probability; infinite where the answers don't follow."""
    expected = model.probabilities(backbone.features(pages))
    probabilities, predicted = _computed(path, pages, backbone.compute.threads)
    answers = _rule(model).answers(probabilities.astype(np.float64))
    if probabilities.shape != expected.shape or not np.array_equal(predicted, answers):
        return math.inf
    return float(np.abs(probabilities - expected).max())


def _computed(path: Path, pages: Pages, threads: int) -> tuple[Floats, NDArray[np.int64]]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    # A number of its own spares it the attempt to bind threads to cores, which it complains of.
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(
        path.read_bytes(), options, providers=["CPUExecutionProvider"]
    )
    probabilities, predicted = session.run(["probabilities", "predicted"], {"page": pages})
    return probabilities, predicted
