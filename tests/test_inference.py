from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from ecgfeat import backbones, runtime
from ecgfeat.calibration import Decision
from ecgfeat.config import (
    ComputeSettings,
    DataSettings,
    EvaluationSettings,
    ExtractionSettings,
    HeadSettings,
    NetworkSettings,
)
from ecgfeat.errors import ConfigError, DataError, Interrupted, RunError, WeightsError
from ecgfeat.extraction import extract
from ecgfeat.feature_cache import open_cache
from ecgfeat.heads import fit_heads
from ecgfeat.images import DECODER
from ecgfeat.inference import FailedImage, predict
from ecgfeat.manifest import read_manifest
from ecgfeat.runs import Run, open_run

from .studies import FP32, PAGE, drawn_once, run_of, weights_drawn_once

__all__ = ["weights_drawn_once"]  # a fixture

AUTO = ComputeSettings(device="cpu", threads=2)


@pytest.fixture(scope="module")
def by_region(study: Path) -> tuple[Run, Run]:
    """A head of each kind on taps by region, of a cache that stops at layer2."""
    manifest = read_manifest(study / "pages2", DataSettings())
    cache = extract(
        manifest,
        cache=study / "by-region",
        page=PAGE,
        network=NetworkSettings(weights="random:1"),
        work=ExtractionSettings(layers="layer1,layer1-4x4,layer2-std-2x3,layer2-max"),
        compute=FP32,
    ).cache
    linear, logistic = fit_heads(
        open_cache(cache),
        kinds=("linear", "logreg"),
        head=HeadSettings(layers="layer2-std-2x3,layer1-4x4,layer2-max", epochs=2),
        out_dir=study / "by-region",
    )
    return linear, logistic


@pytest.fixture
def run(study: Path) -> Run:
    return run_of(study, "linear")


def copied(run: Run, folder: Path) -> Path:
    return shutil.copytree(run.path, folder / run.name)


def with_card(run: Run, folder: Path, **changes: object) -> Run:
    """A copy of a run whose model card has other fields."""
    path = copied(run, folder)
    card = {**json.loads((path / "model.json").read_text()), **changes}
    (path / "model.json").write_text(json.dumps(card))
    return open_run(path)


def test_importing_it_loads_no_torch():
    code = "import sys, ecgfeat.inference; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("kind", "n_classes"),
    [("linear", 2), ("logreg", 2), ("finetune", 2), ("linear", 3), ("logreg", 3)],
)
def test_the_runs_own_test_images_get_the_runs_own_probabilities(study, kind, n_classes):
    run = run_of(study, kind, n_classes)
    root = study / f"pages{n_classes}"
    images = [root / path for path in run.predictions.ids]
    result = predict(run, images, compute=AUTO)
    assert result.paths == tuple(images)
    assert result.classes == run.predictions.classes
    assert result.failures == ()
    assert result.compute.precision == "fp32"
    assert result.compute.reason == "as in the run"
    np.testing.assert_allclose(result.probabilities, run.predictions.probabilities, atol=1e-5)
    expected = [result.classes[index] for index in run.predictions.predicted]
    assert list(result.predicted) == expected


@pytest.mark.parametrize("kind", [0, 1], ids=["linear", "logreg"])
def test_runs_on_taps_by_region_give_their_own_probabilities(study, by_region, kind, monkeypatch):
    built = []
    plain = backbones.Backbone.__init__

    def noting(backbone, *arguments, **options):
        plain(backbone, *arguments, **options)
        built.append(backbone)

    monkeypatch.setattr(backbones.Backbone, "__init__", noting)
    run = by_region[kind]
    images = [study / "pages2" / path for path in run.predictions.ids]
    result = predict(run, images, compute=AUTO)
    np.testing.assert_allclose(result.probabilities, run.predictions.probabilities, atol=1e-5)
    assert dict(built[0].taps) == {"layer2-std-2x3": 768, "layer1-4x4": 1024, "layer2-max": 128}


def test_a_fine_tuning_is_asked_for_the_layers_that_it_needs(study, pages, monkeypatch):
    asked = []
    plain = backbones.Backbone

    def noting(*arguments, **options):
        asked.append(options["taps"])
        return plain(*arguments, **options)

    monkeypatch.setattr(backbones, "Backbone", noting)
    run = run_of(study, "finetune")
    predict(run, pages[:1], compute=AUTO)
    monkeypatch.setattr(Run, "likeness", lambda _: None)  # as of an earlier version
    assert np.isnan(predict(run, pages[:1], compute=AUTO).distances).all()
    assert asked == [("layer4", "layer1", "layer2", "layer3"), ("layer4",)]


def test_a_fine_tuning_names_images_unlike_its_training_images(study, pages, tmp_path):
    run = run_of(study, "finetune")
    noise = np.random.default_rng(0).integers(0, 256, (240, 320, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "strange.png")
    found = predict(run, [*pages, tmp_path / "strange.png"], compute=FP32)
    assert found.unlike[-1] == tmp_path / "strange.png"
    assert found.distances[-1] > 2 * found.distances[:-1].max()


def test_more_images_than_a_batch_keep_their_order(run, pages):
    repeated = [pages[index % len(pages)] for index in range(21)]
    alone = predict(run, pages, compute=AUTO).probabilities
    together = predict(run, repeated, compute=AUTO)
    assert together.paths == tuple(repeated)
    expected = [alone[index % len(pages)] for index in range(21)]
    np.testing.assert_allclose(together.probabilities, expected, atol=1e-6)


def test_a_folder_stands_for_its_images_by_name(run, pages, tmp_path):
    for name in ("b.PNG", "a.png", "c.jpeg", "notes.txt"):
        shutil.copy(pages[0], tmp_path / name)
    (tmp_path / "deeper").mkdir()
    shutil.copy(pages[0], tmp_path / "deeper" / "d.png")
    (tmp_path / "@eaDir").mkdir()
    shutil.copy(pages[0], tmp_path / "@eaDir" / "thumb.png")
    result = predict(run, [tmp_path, pages[1]], compute=AUTO)
    names = [path.name for path in result.paths]
    assert names == ["a.png", "b.PNG", "c.jpeg", "d.png", pages[1].name]


def test_a_pattern_stands_for_what_it_matches(run, pages, tmp_path):
    for name in ("b.png", "a.png", "c.txt"):
        shutil.copy(pages[0], tmp_path / name)
    result = predict(run, [str(tmp_path / "*.png")], compute=AUTO)
    assert [path.name for path in result.paths] == ["a.png", "b.png"]
    with pytest.raises(DataError, match=r"^no file matches .*\*\.tif$"):
        predict(run, [tmp_path / "*.tif"], compute=AUTO)


@pytest.mark.parametrize(
    ("header", "mend"),
    [
        ("filename,image", r"'filename' and 'image', and each could be the path\. Name the right"),
        ("record,age", r"has no column for the path: name it path\.$"),
    ],
)
def test_a_csv_without_one_column_of_paths_says_how_to_name_it(run, tmp_path, header, mend):
    listing = tmp_path / "new.csv"
    listing.write_text(f"{header}\n1.png,2.png\n")
    with pytest.raises(DataError, match=mend):
        predict(run, [listing], compute=AUTO)


def test_a_csv_s_columns_stand_beside_the_answers(run, pages, tmp_path):
    for name in ("1.png", "2.png"):
        shutil.copy(pages[0], tmp_path / name)
    listing = tmp_path / "new.csv"
    listing.write_text("id;filename;age\nx;1.png;5\ny;gone.png;6\nz;2.png;7\n")
    result = predict(run, [pages[1], listing], compute=AUTO)
    out = tmp_path / "predictions.csv"
    result.write_csv(out)
    with out.open(newline="") as file:
        rows = list(csv.DictReader(file))
    classes = [f"p_{name}" for name in result.classes]
    assert list(rows[0]) == ["image", "id", "filename", "age", "predicted", *classes, "reason"]
    assert [row["id"] for row in rows] == ["", "x", "z", "y"]
    assert [row["predicted"] for row in rows] == [*result.predicted, ""]
    assert [float(row[classes[0]]) for row in rows[:3]] == result.probabilities[:, 0].tolist()
    assert rows[3]["reason"] == "no such file"


def test_what_was_written_is_read_again_wherever_its_images_are(run, pages, tmp_path):
    first = predict(run, pages[:2], compute=AUTO)
    first.write_csv(tmp_path / "predictions.csv")
    again = predict(run, [tmp_path / "predictions.csv"], compute=AUTO)
    assert again.paths == first.paths
    np.testing.assert_array_equal(again.probabilities, first.probabilities)


def test_columns_called_as_ours_are_kept_under_another_name(run, pages, tmp_path):
    probability = f"p_{run.predictions.classes[0]}"
    listing = tmp_path / "new.csv"
    listing.write_text(f"path,predicted,{probability},reason\n{pages[0]},x,y,z\n")
    result = predict(run, listing, compute=AUTO)
    result.write_csv(tmp_path / "out.csv")
    with (tmp_path / "out.csv").open(newline="") as file:
        names, row = csv.reader(file)
    assert len(set(names)) == len(names)
    found = dict(zip(names, row))
    assert [found[f"given_{name}"] for name in ("predicted", probability, "reason")] == [*"xyz"]
    assert (found["predicted"], found["reason"]) == (result.predicted[0], "")


def test_an_image_that_cannot_be_decoded_is_returned_with_its_reason(run, pages, tmp_path):
    (tmp_path / "page.png").write_text("no image")
    images = [tmp_path / "page.png", *pages[:2], tmp_path / "absent.png"]
    result = predict(run, images, compute=AUTO)
    assert result.paths == tuple(pages[:2])
    assert len(result.probabilities) == 2
    assert [failure.path for failure in result.failures] == [images[0], images[3]]
    assert result.failures[1] == FailedImage(path=images[3], reason="no such file")


def test_only_undecodable_images_give_an_empty_result(run, tmp_path):
    result = predict(run, [tmp_path / "absent.png"], compute=AUTO)
    assert result.paths == result.predicted == ()
    assert result.probabilities.shape == (0, 2)
    assert len(result.failures) == 1


def test_an_answer_that_is_not_finite_is_a_failure(run, pages, monkeypatch):
    sound = backbones.Backbone.features

    def features(backbone, pixels):
        found = sound(backbone, pixels)
        found["layer4"][1] = np.nan
        return found

    monkeypatch.setattr(backbones.Backbone, "features", features)
    result = predict(run, pages[:3], compute=AUTO)
    assert result.paths == (pages[0], pages[2])
    assert result.failures == (
        FailedImage(path=pages[1], reason="the network's answer is not finite"),
    )


def test_no_images_at_all_are_refused(run, tmp_path):
    with pytest.raises(DataError) as caught:
        predict(run, [])
    assert str(caught.value) == ("there are no images: give files, or folders that hold some")
    with pytest.raises(DataError) as caught:
        predict(run, [tmp_path])
    assert str(caught.value) == (f"{tmp_path} holds no images (JPEG, PNG, TIFF, BMP, WebP, GIF)")


def test_a_cross_validation_answers_by_the_mean_of_its_folds(study, pages):
    [cache] = study.glob("pages2-*.h5")
    [run] = fit_heads(
        open_cache(cache),
        kinds=("linear",),
        head=HeadSettings(epochs=1),
        evaluation=EvaluationSettings(cv=2),
        out_dir=study / "cv",
    )
    found = predict(run, pages, compute=AUTO)
    assert (found.n_models, found.decision) == (2, Decision())
    metrics = json.loads((run.path / "metrics.json").read_text())
    by_fold = []
    for fold in range(2):
        # The same folder with a single head, as a run on a split has it.
        alone = Path(shutil.copytree(run.path, study / f"fold{fold}"))
        tensors = run.fold_models()[fold]
        save_file(tensors, alone / "model.safetensors")
        (alone / "metrics.json").write_text(json.dumps({**metrics, "split": "test"}))
        by_fold.append(predict(open_run(alone), pages, compute=AUTO).probabilities)
    np.testing.assert_allclose(found.probabilities, np.mean(by_fold, axis=0), atol=1e-12)
    assert not np.allclose(*by_fold)


def test_images_unlike_the_training_images_are_named(run, pages, tmp_path):
    found = predict(run, pages, compute=AUTO)
    assert found.distances.shape == (len(pages),)
    assert (found.distances > 0).all()
    noise = np.random.default_rng(0).integers(0, 256, (240, 320, 3), dtype=np.uint8)
    strange = tmp_path / "strange.png"
    Image.fromarray(noise).save(strange)
    result = predict(run, [*pages, strange], compute=AUTO)
    assert strange in result.unlike
    assert result.distances[-1] > 2 * found.distances.max()
    assert str(strange) in result.as_json()["unlike"]
    # A run of an earlier version doesn't tell.
    (run.path / "likeness.safetensors").rename(tmp_path / "aside")
    try:
        assert predict(run, [strange], compute=AUTO).unlike == ()
        save_file({"mean": np.zeros(3, np.float32)}, run.path / "likeness.safetensors")
        with pytest.raises(RunError, match=r"likeness\.safetensors is damaged: it holds other"):
            predict(run, [strange], compute=AUTO)
    finally:
        (tmp_path / "aside").rename(run.path / "likeness.safetensors")


def test_each_fold_reads_its_own_layers_and_decides_by_its_own_rule(study, pages):
    [cache] = study.glob("pages2-*.h5")
    [run] = fit_heads(
        open_cache(cache),
        kinds=("linear",),
        head=HeadSettings(epochs=1, layers="layer4"),
        evaluation=EvaluationSettings(cv=2),
        out_dir=study / "cv2",
    )
    # As a sweep leaves it whose folds chose different layers and have thresholds.
    card = {name: value for name, value in run.model_card.items() if name != "taps"}
    by_fold = {**card, "fold_taps": [["layer3"], ["layer4"]]}
    (run.path / "model.json").write_text(json.dumps(by_fold))
    tensors = {
        f"fold{fold}/{name}": np.zeros(shape, np.float32)
        for fold, width in enumerate((256, 512))
        for name, shape in (("weight", (2, width)), ("bias", (2,)))
    }
    save_file(tensors, run.path / "fold_models.safetensors")
    decisions = [Decision(threshold=threshold).as_json() for threshold in (0.2, 0.6)]
    edited = {**run.metrics, "decisions": decisions}
    (run.path / "metrics.json").write_text(json.dumps(edited))
    found = predict(open_run(run.path), pages, compute=AUTO)
    assert found.decision.threshold == pytest.approx(0.4)
    assert set(found.predicted) == {found.positive}
    (run.path / "metrics.json").write_text(json.dumps({**edited, "decisions": decisions[:1]}))
    with pytest.raises(RunError, match="is damaged"):
        predict(open_run(run.path), pages, compute=AUTO)


def test_the_runs_decision_is_applied(run, pages, tmp_path):
    plain = predict(run, pages, compute=AUTO)
    assert plain.decision == Decision()
    middle = float(np.sort(plain.probabilities[:, 1])[len(pages) // 2])
    cut = Decision(method="platt", slope=2.0, offset=0.5)
    threshold = float(cut.probabilities(np.array([[1 - middle, middle]]))[0, 1])
    decision = replace(cut, threshold=threshold - 1e-6)
    changed = with_card(run, tmp_path, decision=decision.as_json())
    found = predict(changed, pages, compute=AUTO)
    np.testing.assert_allclose(
        found.probabilities, decision.probabilities(plain.probabilities), atol=1e-6
    )
    positive = np.array([name == found.positive for name in found.predicted])
    np.testing.assert_array_equal(positive, plain.probabilities[:, 1] >= middle - 1e-6)
    assert found.as_json()["decision"] == decision.as_json()
    assert 0 < positive.sum() < len(pages)


@pytest.mark.parametrize(
    "decision",
    [7, {"method": "temperature"}, {"method": "platt", "slope": -3.0, "offset": 0.0}],
)
def test_a_hostile_decision_is_refused(run, pages, tmp_path, decision):
    changed = with_card(run, tmp_path, decision=decision)
    with pytest.raises(RunError, match=r"model.json is damaged: .*Run its command again"):
        predict(changed, pages, compute=AUTO)


def test_a_threshold_for_three_classes_is_refused(study, tmp_path):
    run = with_card(
        run_of(study, "linear", 3), tmp_path, decision=Decision(threshold=0.4).as_json()
    )
    with pytest.raises(RunError, match="a decision between two classes, for 3"):
        predict(run, [study / "absent.png"], compute=AUTO)


def test_weights_that_have_moved_may_be_named(run, pages):
    expected = predict(run, pages, compute=AUTO).probabilities
    found = predict(run, pages, compute=AUTO, weights="random:1").probabilities
    np.testing.assert_array_equal(found, expected)


def test_other_weights_than_the_runs_are_refused_naming_both(run, pages):
    with pytest.raises(WeightsError) as caught:
        predict(run, pages, compute=AUTO, weights="random:2")
    digests = [drawn_once(NetworkSettings(weights=f"random:{s}")).digest[:12] for s in (1, 2)]
    assert str(caught.value) == (
        f"{run.path} was trained on features of random:1 (digest {digests[0]}), but random:2 has "
        f"the digest {digests[1]}. Give the run's own weights with --weights PATH."
    )


def test_a_fine_tuning_takes_no_other_weights(study, pages):
    run = run_of(study, "finetune")
    with pytest.raises(ConfigError) as caught:
        predict(run, pages, compute=AUTO, weights="random:1")
    assert str(caught.value) == (
        f"{run.path} is a fine-tuning and keeps its own weights: leave out --weights"
    )


def test_the_precision_is_the_runs_if_the_device_has_it(run, pages, tmp_path, monkeypatch):
    def precision(name: str, compute: ComputeSettings = AUTO) -> str:
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        changed = with_card(run, folder / compute.precision, precision=name)
        return predict(changed, pages[:1], compute=compute).compute.precision

    monkeypatch.setattr(runtime, "_bfloat16_speedup", lambda device: 1.0)
    assert precision("bf16") == "bf16"
    assert precision("bf16", FP32) == "fp32"
    assert precision("fp16") == "fp32"
    monkeypatch.setattr(runtime, "_bfloat16_speedup", lambda device: 2.0)
    assert precision("fp32") == "fp32"


def test_another_decoder_than_the_runs_is_told(run, pages, tmp_path):
    told = []
    changed = with_card(run, tmp_path, decoder="pillow 1.0")
    predict(changed, pages[:1], compute=AUTO, report=told.append)
    assert told[0].message.startswith("the run's own images were decoded by pillow 1.0, these by ")


def test_only_a_decoder_that_the_run_lacks_is_told(run, pages, tmp_path):
    told = []
    changed = with_card(run, tmp_path, decoder=f"{DECODER}, pypdfium2 1.0")
    predict(changed, pages[:1], compute=AUTO, report=told.append)
    assert not any(tick.message for tick in told)


def test_progress_counts_every_image_and_may_interrupt(run, pages):
    ticks = []
    images = [pages[0]] * 10
    predict(run, images, compute=AUTO, report=ticks.append)
    assert [(tick.done, tick.total) for tick in ticks] == [(0, 10), (4, 10), (8, 10), (10, 10)]

    def stop(progress):
        raise Interrupted

    with pytest.raises(Interrupted):
        predict(run, images, compute=AUTO, report=stop)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("taps", ["layer9"]),
        ("taps", ["layer4-9x9"]),
        ("taps", [4]),
        ("taps", []),
        ("backbone", {"arch": "vgg", "weights": "random:1", "weights_digest": ""}),
        ("backbone", {"arch": "resnet18"}),
        ("preprocessing", {"crop_mode": "center", "width_px": 10**6, "height_px": 1}),
        ("classes", None),
    ],
    ids=["tap", "grid", "number", "none", "arch", "digest", "size", "classes"],
)
def test_a_damaged_model_card_is_refused(run, pages, tmp_path, field, value):
    changed = with_card(run, tmp_path, **{field: value})
    with pytest.raises(RunError) as caught:
        predict(changed, pages)
    start = f"{changed.path / 'model.json'} is damaged: a field is missing or wrong ("
    assert str(caught.value).startswith(start)


@pytest.mark.parametrize("name", ["mean", "std", "resampling"])
def test_preprocessing_that_is_not_understood_is_refused(run, pages, tmp_path, name):
    preprocessing = {**run.model_card["preprocessing"], name: [1.0, 2.0]}
    with pytest.raises(RunError, match="is damaged: a field is missing or wrong"):
        predict(with_card(run, tmp_path, preprocessing=preprocessing), pages)


def test_a_head_of_another_shape_is_refused(run, pages, tmp_path):
    changed = with_card(run, tmp_path, taps=["layer4"])
    with pytest.raises(RunError) as caught:
        predict(changed, pages, compute=AUTO)
    assert str(caught.value) == (
        f"{changed.path / 'model.safetensors'} is damaged: it holds no head for 2 classes and "
        "512 features. Run its command again."
    )


def test_the_result_is_ready_for_json(run, pages, tmp_path):
    result = predict(run, [pages[0], tmp_path / "absent.png"], compute=AUTO)
    found = json.loads(json.dumps(result.as_json()))
    assert found["classes"] == ["a", "b"]
    [image] = found["images"]
    assert image["path"] == str(pages[0])
    assert image["predicted"] == result.predicted[0]
    assert image["probabilities"] == dict(zip("ab", result.probabilities[0].tolist()))
    assert found["failures"] == [{"path": str(tmp_path / "absent.png"), "reason": "no such file"}]
    assert (found["device"], found["precision"]) == ("cpu", "fp32")
