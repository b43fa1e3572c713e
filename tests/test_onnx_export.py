from __future__ import annotations

import functools
import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import ecgfeat
from ecgfeat import backbones, onnx_export
from ecgfeat.calibration import Decision
from ecgfeat.cli import app
from ecgfeat.config import (
    ComputeSettings,
    DataSettings,
    EvaluationSettings,
    ExtractionSettings,
    FinetuneSettings,
    HeadSettings,
    NetworkSettings,
    PageSettings,
)
from ecgfeat.errors import ConfigError, Interrupted, RunError, WeightsError
from ecgfeat.extraction import extract
from ecgfeat.feature_cache import open_cache
from ecgfeat.finetuning import finetune
from ecgfeat.heads import fit_heads
from ecgfeat.images import decode, prepare
from ecgfeat.inference import Model, predict, read_model
from ecgfeat.manifest import read_manifest
from ecgfeat.onnx_export import MARK, OnnxExport, export_onnx, preparation_in_words
from ecgfeat.preprocessing import FAST_RESAMPLING, Preprocessing
from ecgfeat.runs import Run, open_run

from .conftest import draw_page

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

FP32 = ComputeSettings(device="cpu", precision="fp32", threads=2)
PAGE = PageSettings(size="64x48", crop_mode="border")
RANDOM = NetworkSettings(weights="random:1")
KINDS = ("linear", "logreg", "calibrated", "temperature", "cv", "finetune")

drawn_once = functools.cache(backbones.load_weights)


@pytest.fixture(autouse=True)
def _weights_drawn_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backbones, "load_weights", drawn_once)


@pytest.fixture(scope="module")
def pages(tmp_path_factory) -> Path:
    """Pages of three classes."""
    folder = tmp_path_factory.mktemp("data") / "pages"
    for index in range(18):
        split = "test" if index < 6 else "train"
        target = folder / split / "abc"[index % 3] / f"{index:02}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        draw_page(index, index % 3).save(target)
    return folder


@pytest.fixture(scope="module")
def runs(pages, tmp_path_factory) -> dict[str, Run]:
    """A run of each kind; converting the whole network takes seconds, so most stop early in it."""
    folder = tmp_path_factory.mktemp("runs")
    manifest = read_manifest(pages, DataSettings())
    cache = extract(
        manifest,
        cache=folder,
        page=PAGE,
        network=RANDOM,
        work=ExtractionSettings(layers="layer1,layer1-std-2x3,layer2-max,layer2-4x4"),
        compute=FP32,
    ).cache
    as_two = EvaluationSettings(positive="b")

    def fit(kind: str, layers: str, evaluation: EvaluationSettings, name: str) -> Run:
        (run,) = fit_heads(
            open_cache(cache),
            kinds=(kind,),
            head=HeadSettings(layers=layers, epochs=2),
            evaluation=evaluation,
            out_dir=folder / name,
        )
        return run

    platt = Decision(method="platt", slope=1.7, offset=-0.4)
    calibrated = deciding(fit("logreg", "layer1", as_two, "calibrated"), platt)
    positive = predict(calibrated, [pages], compute=FP32).probabilities[:, 1]
    # As in a run, a page's own probability; here the second highest below one half.
    platt = replace(platt, threshold=float(np.sort(positive[positive < 0.5])[-2]))
    temperature = Decision(method="temperature", slope=0.4)
    return {
        "linear": fit("linear", "layer1", as_two, "linear"),
        "logreg": fit(
            "logreg", "layer2-4x4,layer1-std-2x3,layer2-max", EvaluationSettings(), "logreg"
        ),
        "calibrated": deciding(calibrated, platt),
        "temperature": deciding(
            fit("linear", "layer1", EvaluationSettings(), "temperature"), temperature
        ),
        "cv": fit("logreg", "layer1", EvaluationSettings(cv=2, positive="b"), "cv"),
        "finetune": finetune(
            manifest,
            network=RANDOM,
            page=PAGE,
            compute=FP32,
            training=FinetuneSettings(epochs=2, batch_size=4, batch_norm="freeze"),
            out_dir=folder / "finetune",
        ),
    }


def deciding(run: Run, decision: Decision) -> Run:
    """The run, with another decision on its model card."""
    card = {**run.model_card, "decision": decision.as_json()}
    (run.path / "model.json").write_text(json.dumps(card))
    return open_run(run.path)


@pytest.fixture(scope="module")
def export(runs, tmp_path_factory):
    """Exports by the run's kind, each made once."""
    folder = tmp_path_factory.mktemp("exports")
    made: dict[str, OnnxExport] = {}

    def of(kind: str) -> OnnxExport:
        if kind not in made:
            made[kind] = export_onnx(runs[kind], folder / f"{kind}.onnx")
        return made[kind]

    return of


@pytest.fixture
def converted_before(export, monkeypatch) -> None:
    """Spare a test the seconds of converting the linear run."""
    content = export("linear").path.read_bytes()
    monkeypatch.setattr(onnx_export, "_converted", lambda *_: content)


def session_of(path: Path):
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


def prepared(pages: Path, run: Run) -> tuple[list[Path], np.ndarray]:
    paths = sorted(pages.rglob("*.png"))
    preprocessing = read_model(run).card.preprocessing
    return paths, np.stack([prepare(decode(path), preprocessing) for path in paths])


def test_importing_it_loads_neither_torch_nor_onnx():
    code = (
        "import sys, ecgfeat.onnx_export\n"
        "sys.exit(bool({'torch', 'onnx', 'onnxscript', 'onnxruntime'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("kind", KINDS)
def test_it_answers_as_predict_does_in_batches_of_any_size(kind, runs, pages, export):
    run = runs[kind]
    done = export(kind)
    assert done.n_models == (2 if kind == "cv" else 1)
    assert done.largest_difference < 1e-5
    paths, pixels = prepared(pages, run)
    expected = predict(run, paths, compute=FP32)
    session = session_of(done.path)
    for n_images in (1, 3, len(paths)):
        probabilities, predicted = session.run(None, {"page": pixels[:n_images]})
        assert (probabilities.dtype, predicted.dtype) == (np.float32, np.int64)
        assert probabilities.shape == (n_images, len(done.classes))
        np.testing.assert_allclose(
            probabilities, expected.probabilities[:n_images], atol=1e-5, rtol=0
        )
        answers = tuple(done.classes[index] for index in predicted)
        assert answers == expected.predicted[:n_images]


def test_the_runs_of_this_test_tell_pages_apart_and_thresholds_count(runs, pages):
    answers = {kind: predict(run, [pages], compute=FP32) for kind, run in runs.items()}
    spreads = {kind: np.ptp(said.probabilities[:, 0]) for kind, said in answers.items()}
    assert min(spreads.values()) > 1e-3, spreads
    calibrated = answers["calibrated"]
    likeliest = calibrated.probabilities.argmax(axis=1)
    assert calibrated.predicted != tuple(calibrated.classes[index] for index in likeliest)


def test_inputs_and_outputs_are_named_and_only_the_batch_is_open(export):
    session = session_of(export("linear").path)
    (page,) = session.get_inputs()
    assert (page.name, page.type, page.shape) == ("page", "tensor(uint8)", ["batch", 48, 64, 3])
    probabilities, predicted = session.get_outputs()
    assert (probabilities.name, probabilities.shape) == ("probabilities", ["batch", 2])
    assert (predicted.name, predicted.shape) == ("predicted", ["batch"])


def test_the_file_says_what_it_is_and_how_a_page_is_prepared(runs, export):
    run, done = runs["calibrated"], export("calibrated")
    found = session_of(done.path).get_modelmeta()
    assert found.producer_name == "ecgfeat"
    said = found.custom_metadata_map
    assert said == done.metadata
    assert said["format"] == "ecgfeat-onnx 1"
    assert said["ecgfeat_version"] == ecgfeat.__version__
    assert said["run"] == run.name
    assert said["arch"] == "resnet18"
    assert said["weights_digest"] == run.config["backbone"]["weights_digest"]
    assert json.loads(said["classes"]) == list(done.classes)
    assert json.loads(said["decision"]) == run.decision.as_json()
    preprocessing = json.loads(said["preprocessing"])
    words = preprocessing.pop("in_words")
    assert preprocessing == run.model_card["preprocessing"]
    assert "fits into 64 x 48 pixels" in words


def test_a_page_at_the_threshold_is_not_lost_by_rounding(runs):
    model = read_model(runs["calibrated"])
    threshold = onnx_export._rule(model).threshold
    assert threshold == pytest.approx(model.decision.threshold - 1e-5, abs=1e-12)
    assert onnx_export._rule(read_model(runs["linear"])).threshold is None


def test_nothing_of_this_machine_is_in_the_file(export):
    content = export("linear").path.read_bytes()
    assert b".py" not in content
    assert str(Path(ecgfeat.__file__).parent).encode() not in content


@pytest.mark.parametrize(
    ("crop_mode", "words"),
    [
        (
            "center",
            "smallest size that covers 256 x 366 pixels, and cut 224 x 320 out of its middle",
        ),
        ("border", "largest size that fits into 224 x 320 pixels, put it in their middle"),
        ("squash", "Resize it to 224 x 320 pixels, whatever its proportions."),
    ],
)
def test_preparation_in_words(crop_mode, words):
    plain = Preprocessing(crop_mode=crop_mode, width_px=224, height_px=320)
    assert words in preparation_in_words(plain)
    assert "Resize by Pillow's Image.resize" in preparation_in_words(plain)
    fast = Preprocessing(
        crop_mode=crop_mode, width_px=224, height_px=320, resampling=FAST_RESAMPLING
    )
    assert "Resize by torch's interpolate" in preparation_in_words(fast)


def test_the_result_is_ready_for_json(export):
    done = export("cv")
    found = json.loads(json.dumps(done.as_json()))
    assert found["n_bytes"] == done.path.stat().st_size
    assert found["classes"] == list(done.classes)
    assert (found["n_models"], found["n_pages"]) == (2, 3)


@pytest.mark.usefixtures("converted_before")
@pytest.mark.parametrize("wrong", [1e-3, np.nan])
def test_an_export_that_differs_from_its_run_is_not_written(runs, tmp_path, monkeypatch, wrong):
    right = Model.probabilities
    monkeypatch.setattr(Model, "probabilities", lambda *given: right(*given) + wrong)
    path = tmp_path / "model.onnx"
    path.write_bytes(b"as before")
    with pytest.raises(RunError) as caught:
        export_onnx(runs["linear"], path)
    off = "nan" if np.isnan(wrong) else "0.001"
    assert str(caught.value) == (
        f"ONNX Runtime computes other probabilities than {runs['linear'].path} itself, off by up "
        f"to {off} where 0.0001 is allowed, so {path} is not written. Try other versions of torch, "
        "onnxscript and onnxruntime."
    )
    assert path.read_bytes() == b"as before"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.usefixtures("converted_before")
def test_answers_that_do_not_follow_from_the_probabilities_are_refused(runs, tmp_path, monkeypatch):
    computed = onnx_export._computed

    def with_other_answers(*given):
        probabilities, predicted = computed(*given)
        return probabilities, 1 - predicted

    monkeypatch.setattr(onnx_export, "_computed", with_other_answers)
    with pytest.raises(RunError, match="off by up to inf"):
        export_onnx(runs["linear"], tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []


def test_it_can_be_interrupted_before_anything_is_written(runs, tmp_path):
    told = []

    def report(progress):
        told.append((progress.detail, progress.done))
        if progress.done == 1:
            raise Interrupted

    with pytest.raises(Interrupted):
        export_onnx(runs["linear"], tmp_path / "model.onnx", report=report)
    assert told == [("reading the weights", 0), ("converting", 1)]
    assert list(tmp_path.iterdir()) == []


def test_a_file_of_another_name_is_refused(runs, tmp_path):
    with pytest.raises(ConfigError) as caught:
        export_onnx(runs["linear"], tmp_path / "model.pt")
    assert str(caught.value) == (
        f"the model's file must end in .onnx; found {tmp_path / 'model.pt'}"
    )


def test_other_weights_than_the_runs_are_refused(runs, tmp_path):
    with pytest.raises(WeightsError, match="Give the run's own weights"):
        export_onnx(runs["linear"], tmp_path / "model.onnx", weights="random:2")
    with pytest.raises(ConfigError, match="keeps its own weights"):
        export_onnx(runs["finetune"], tmp_path / "model.onnx", weights="random:1")


@pytest.mark.parametrize("name", ["onnx", "onnxruntime", "onnxscript"])
def test_without_the_extra_one_line_says_what_to_install(runs, tmp_path, monkeypatch, name):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ConfigError) as caught:
        export_onnx(runs["linear"], tmp_path / "model.onnx")
    assert str(caught.value) == (
        "an export needs onnx, onnxruntime and onnxscript: pip install 'ecgfeat[onnx]'"
    )


# The command

_REFUSED = """
import sys
from ecgfeat.cli import app
if "--without" in sys.argv:
    sys.argv.remove("--without")
    sys.modules["onnxruntime"] = None
try:
    app(sys.argv[1:])
except SystemExit as stop:
    assert stop.code == int(stop.code) > 0, stop.code
assert "torch" not in sys.modules
"""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["no", "model.onnx"], "no is no folder."),
        (["RUN", "model.png"], "the model's file must end in .onnx; found model.png"),
        (["RUN", "model.onnx", "--without"], "pip install 'ecgfeat[onnx]'"),
        (["RUN", "mine.onnx"], "mine.onnx exists and was not made by this command: give another"),
    ],
    ids=["run", "suffix", "extra", "file"],
)
def test_what_cannot_be_is_refused_before_torch_is_loaded(runs, tmp_path, arguments, message):
    (tmp_path / "mine.onnx").write_bytes(b"\x08\x08\x12\x07pytorch")
    words = [str(runs["linear"].path) if word == "RUN" else word for word in arguments]
    done = subprocess.run(
        [sys.executable, "-c", _REFUSED, "export", *words],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    first, second = done.stderr.splitlines()
    assert first.startswith("ecgfeat export ")
    assert second.startswith("Error: ")
    assert message in second


def test_the_command_writes_over_its_own_files_alone(runs, export, tmp_path, capfd, monkeypatch):
    path = tmp_path / "model.onnx"
    shutil.copy(export("temperature").path, path)
    assert path.read_bytes()[:100].count(MARK) == 1
    words = ["export", str(runs["linear"].path), str(path)]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    first, *_, last = done.stderr.splitlines()
    assert first == f"ecgfeat export {runs['linear'].path} {path} …"
    assert last.startswith("exporting 3/3 steps, ")
    model, classes, given, check = done.stdout.splitlines()
    assert model == f"model: {path} ({path.stat().st_size / 1e6:.1f} MB)"
    assert classes == "classes: rest, b"
    assert given.startswith("input: Take the page upright, as 8-bit RGB, ")
    assert check.startswith("checked in ONNX Runtime on 3 pages: no probability is off by more ")
    assert capfd.readouterr() == ("", "")
    assert session_of(path).get_modelmeta().custom_metadata_map["run"] == runs["linear"].name
    path.write_bytes(b"something else")
    assert CliRunner().invoke(app, words).exit_code == 2
    content = export("linear").path.read_bytes()
    monkeypatch.setattr(onnx_export, "_converted", lambda *_: content)
    done = CliRunner().invoke(app, [*words, "--force", "--json"])
    assert json.loads(done.stdout)["path"] == str(path)
