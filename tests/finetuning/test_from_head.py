from __future__ import annotations

import functools
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ecgfeat import extract, finetune, fit_heads, open_cache
from ecgfeat.backbones import Weights, load_weights
from ecgfeat.config import (
    RECIPES,
    EvaluationSettings,
    FinetuneSettings,
    HeadKind,
    HeadSettings,
    NetworkSettings,
    PageSettings,
    SweepSettings,
    as_json,
)
from ecgfeat.errors import ConfigError, Interrupted, RunError, WeightsError
from ecgfeat.files import write_json
from ecgfeat.finetuning import resume_finetune
from ecgfeat.finetuning.from_head import as_last_layer, read_head
from ecgfeat.finetuning.job import Job
from ecgfeat.finetuning.trainer import consecutive_batches
from ecgfeat.heads import fit_logistic, head_probabilities
from ecgfeat.manifest import Manifest, read_manifest
from ecgfeat.runs import Run
from ecgfeat.runtime import Progress, resolve_compute

from ..conftest import draw_page, write_csv
from .jobs import FP32, RANDOM, SMALL

CV = EvaluationSettings(cv=2)


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("from-head")


@pytest.fixture(scope="module")
def manifest(here: Path) -> Manifest:
    rows = []
    for index in range(18):
        path = f"{index:02d}.png"
        draw_page(index, index % 2, (48, 36)).save(here / path)
        split = "train" if index < 12 else "test"
        rows.append({"path": path, "label": "ab"[index % 2], "split": split, "group": ""})
    return read_manifest(write_csv(here / "pages.csv", rows))


@pytest.fixture(scope="module")
def cache(here: Path, manifest: Manifest) -> Path:
    done = extract(
        manifest,
        network=RANDOM,
        page=SMALL,
        work=RECIPES["paper"].extraction,
        compute=FP32,
        cache=here / "cache",
    )
    return done.cache


@pytest.fixture(scope="module")
def fitted(here: Path, cache: Path):
    """A factory of runs of heads; each is fitted once."""
    made: dict[object, Run] = {}

    def fit(kind: HeadKind = "linear", layers: str = "layer4", **evaluation: Any) -> Run:
        key = kind, layers, *evaluation.items()
        if key not in made:
            (made[key],) = fit_heads(
                open_cache(cache),
                kinds=[kind],
                head=HeadSettings(layers=layers, epochs=2),
                evaluation=EvaluationSettings(**evaluation),
                out_dir=here / "runs",
            )
        return made[key]

    return fit


def job_from(
    run: Run, manifest: Manifest, evaluation: EvaluationSettings = EvaluationSettings()
) -> Job:
    return Job(
        manifest=manifest,
        network=RANDOM,
        page=SMALL,
        compute=resolve_compute(FP32, purpose="train"),
        training=FinetuneSettings(epochs=1, batch_size=4),
        evaluation=evaluation,
        from_head=run.path,
    )


@functools.cache
def loaded(network: NetworkSettings) -> Weights:
    return load_weights(network)


def begin(
    run: Run,
    manifest: Manifest,
    *,
    network: NetworkSettings | None = None,
    page: PageSettings | None = None,
    **evaluation: Any,
) -> None:
    """What `finetune` asks of a head before anything is written."""
    head = read_head(run.path)
    network, page = network or head.network, page or head.page
    head.refuse_other(network, page)
    settings = EvaluationSettings(**evaluation)
    job = replace(job_from(run, manifest, settings), network=network, page=page)
    head.refuse_misfit(
        weights=loaded(network),
        preprocessing=job.preprocessing,
        classes=job.task.classes,
        evaluation=settings,
        manifest=manifest,
        plan=job.plan,
    )


def changed_copy(run: Run, folder: Path, **card: Any) -> Run:
    """A copy of a run whose ``model.json`` says otherwise."""
    shutil.copytree(run.path, folder)
    fields = json.loads((folder / "model.json").read_text())
    write_json(folder / "model.json", {**fields, **card})
    return replace(run, path=folder)


@pytest.mark.parametrize("n_classes", [2, 4])
def test_a_folded_logistic_regression_says_the_same(n_classes):
    rng = np.random.default_rng(0)
    X = (rng.normal(size=(60, 7)) * 10.0 ** np.arange(-2, 5)).astype(np.float32)
    X[:, 3] = 5  # constant: only centred
    y = rng.integers(0, n_classes, 60)
    head = fit_logistic(X, y, np.arange(60), C=1.0).tensors
    layer = as_last_layer(head)
    logits = torch.from_numpy(X) @ torch.from_numpy(layer["weight"]).T
    logits += torch.from_numpy(layer["bias"])
    said = torch.softmax(logits.double(), dim=1).numpy()
    assert layer["weight"].shape == (n_classes, 7)
    np.testing.assert_allclose(said, head_probabilities(head, X), atol=2e-5)


def test_two_classes_share_the_weights_of_the_one_logit():
    layer = as_last_layer(
        {
            "mean": np.array([1.0, 2.0]),
            "scale": np.array([2.0, 4.0]),
            "coef": np.array([[4.0, 8.0]]),
            "intercept": np.array([10.0]),
        }
    )
    assert layer["weight"].tolist() == [[-1, -1], [1, 1]]
    assert layer["bias"].tolist() == [-2, 2]  # half of 10 - 2·1 - 2·2, either way


def test_a_linear_head_stays_as_it_is():
    head = {"weight": np.ones((3, 2), np.float32), "bias": np.arange(3, dtype=np.float32)}
    layer = as_last_layer(head)
    assert (layer["weight"] == head["weight"]).all()
    assert (layer["bias"] == head["bias"]).all()


@pytest.mark.parametrize("kind", ["linear", "logreg"])
def test_before_its_first_step_the_network_says_what_the_head_said(fitted, manifest, kind):
    run = fitted(kind)
    job = job_from(run, manifest)
    (part,) = job.plan
    trainer = job.new_trainer(part)
    batches = consecutive_batches(part.test, 4)
    rows, said = trainer.log_probabilities(job.images({}), batches, lambda _: None)
    assert [manifest.paths[row] for row in rows] == list(run.predictions.ids)
    np.testing.assert_allclose(np.exp(said), run.predictions.probabilities, atol=1e-4)


def test_in_a_cross_validation_each_fold_begins_with_its_own_head(fitted, manifest):
    run = fitted("logreg", cv=2)
    job = job_from(run, manifest, CV)
    for part in job.plan:
        trainer = job.new_trainer(part)
        batches = consecutive_batches(part.test, 4)
        rows, said = trainer.log_probabilities(job.images({}), batches, lambda _: None)
        of_fold = run.predictions.folds == part.fold
        place = {name: n for n, name in enumerate(np.array(run.predictions.ids)[of_fold])}
        order = [place[manifest.paths[row]] for row in rows]
        expected = run.predictions.probabilities[of_fold][order]
        np.testing.assert_allclose(np.exp(said), expected, atol=1e-4)


def test_a_head_brings_its_backbone_and_its_page(fitted):
    head = read_head(fitted().path)
    assert head.network == NetworkSettings(arch="resnet18", weights="random:0")
    assert head.page == SMALL


@pytest.mark.parametrize(
    ("network", "page", "what"),
    [
        ({"arch": "resnet34"}, {}, "--arch resnet18, and --arch resnet34"),
        ({}, {"size": "64"}, "--size 32, and --size 64"),
        ({}, {"size": PageSettings.size}, "--size 32, and --size 448x320"),
        ({}, {"crop_mode": "border"}, "--crop-mode squash, and --crop-mode border"),
        ({}, {"dpi": 300}, "--dpi 150, and --dpi 300"),
        ({}, {"clean": "photo"}, "--clean none, and --clean photo"),
    ],
)
def test_an_option_that_contradicts_the_head_is_named(fitted, manifest, network, page, what):
    run = fitted()
    with pytest.raises(ConfigError) as error:
        begin(run, manifest, network=replace(RANDOM, **network), page=replace(SMALL, **page))
    option, value = what.split()[-2:]
    assert str(error.value) == (
        f"{run.path}: its head was fitted with {what} is asked for. Leave {option} out, or fit a "
        f"head with {value}."
    )


def test_the_same_size_in_other_words_is_no_contradiction(fitted):
    read_head(fitted().path).refuse_other(RANDOM, replace(SMALL, size="32x32"))


def test_other_weights_are_refused(fitted, manifest):
    run = fitted()
    with pytest.raises(WeightsError) as error:
        begin(run, manifest, network=NetworkSettings(weights="random:1"))
    digests = [loaded(NetworkSettings(weights=f"random:{seed}")).digest for seed in (0, 1)]
    assert str(error.value) == (
        f"{run.path}: its head was fitted on features of random:0 (digest {digests[0][:12]}), but "
        f"random:1 has the digest {digests[1][:12]}. Give the head's own weights with --weights "
        "PATH."
    )


def test_other_layers_are_refused(fitted, manifest):
    run = fitted(layers="layer3,layer4")
    with pytest.raises(RunError) as error:
        begin(run, manifest)
    assert str(error.value) == (
        f"{run.path}: its head reads layer3 and layer4, and a network's last layer reads layer4 "
        "alone. Fit a head with --layers layer4."
    )


def test_other_layers_in_a_single_fold_are_refused(fitted, tmp_path):
    run = changed_copy(
        fitted("logreg", cv=2), tmp_path / "run", fold_taps=[["layer4"], ["layer2", "layer4"]]
    )
    with pytest.raises(RunError, match="its head reads layer2 and layer4, and"):
        read_head(run.path)


def test_a_head_refitted_on_the_validation_rows_is_refused(cache, manifest, tmp_path):
    (run,) = fit_heads(
        open_cache(cache),
        kinds=["logreg"],
        sweep=SweepSettings(grid=("C=0.1,1",), refit=True),
        evaluation=EvaluationSettings(val_fraction=0.2),
        out_dir=tmp_path,
        recipe="paper",
    )
    with pytest.raises(RunError) as error:
        begin(run, manifest, val_fraction=0.2)
    assert str(error.value) == (
        f"{run.path}: its head was trained once more on all training rows, and so on those that "
        "would now validate it. Fit one without --refit and --folds."
    )
    begin(run, manifest)


def test_a_fine_tuning_is_no_head(fitted, here):
    folder = here / "finetuned"
    shutil.copytree(fitted().path, folder)
    config = json.loads((folder / "config.json").read_text())
    write_json(folder / "config.json", {**config, "kind": "finetune"})
    with pytest.raises(RunError, match="is a fine-tuning, and --from-head takes the run of a head"):
        read_head(folder)


def test_the_other_order_of_classes_is_refused(fitted, manifest):
    run = fitted(positive="a")
    with pytest.raises(RunError) as error:
        begin(run, manifest)
    assert str(error.value) == (
        f"{run.path}: its head tells apart b, a, in this order, and here it is a, b. Give "
        "finetune the --positive that fit-head had (a), or fit the head anew."
    )


def test_a_head_of_other_data_is_refused(fitted, manifest):
    run = fitted()
    others = replace(manifest, splits=("test", *manifest.splits[1:]))
    with pytest.raises(RunError) as error:
        begin(run, others)
    assert str(error.value) == (
        f"{run.path}: its head was fitted on other data than {manifest.source}, or paths, labels, "
        "splits or groups have changed since, so it may know test rows. Extract and fit-head anew "
        "with the same DATA."
    )


@pytest.mark.parametrize(
    ("head", "tuning", "given"),
    [
        ({}, {"cv": 2}, "--cv 0 --seed 0"),
        ({"cv": 2}, {}, "--cv 2"),
        ({"cv": 2}, {"cv": 3}, "--cv 2 --seed 0"),
        ({"cv": 2}, {"cv": 2, "seed": 1}, "--cv 2 --seed 0"),
        ({}, {"val_fraction": 0.2}, "--cv 0 --val-fraction 0.0 --seed 0"),
        ({"val_fraction": 0.2}, {"val_fraction": 0.2, "seed": 1}, "--val-fraction 0.2 --seed 0"),
    ],
)
def test_a_head_that_knows_rows_to_be_tested_is_refused(fitted, manifest, head, tuning, given):
    run = fitted("logreg", **head)
    with pytest.raises(RunError) as error:
        begin(run, manifest, **tuning)
    assert "its head was trained on rows that would now test or validate it" in str(error.value)
    assert f"{given})" in str(error.value)


@pytest.mark.parametrize(
    ("head", "tuning"),
    [
        ({}, {"seed": 1}),
        ({}, {"test_subset": 4}),
        ({"test_subset": 4}, {}),
        ({"val_fraction": 0.2}, {}),
        ({"val_fraction": 0.2}, {"val_fraction": 0.2}),
        ({"cv": 2}, {"cv": 2}),
    ],
)
def test_a_head_that_knows_none_of_them_is_taken(fitted, manifest, head, tuning):
    begin(fitted("logreg", **head), manifest, **tuning)


def test_the_same_folds_over_rows_in_another_order_are_refused(fitted, manifest):
    run = fitted("logreg", cv=2)
    order = np.random.default_rng(0).permutation(len(manifest)).tolist()
    turned = replace(
        manifest,
        **{
            name: tuple(getattr(manifest, name)[row] for row in order)
            for name in ("paths", "labels", "splits", "groups")
        },
    )
    assert turned.digest == manifest.digest
    with pytest.raises(RunError, match="trained on rows that would now test"):
        begin(run, turned, cv=2)


@pytest.mark.parametrize(
    "card", [{"backbone": {}}, {"taps": None}, {"preprocessing": {"crop_mode": "x"}}]
)
def test_a_damaged_model_card_is_refused_in_words(fitted, tmp_path, card):
    run = changed_copy(fitted(), tmp_path / "run", **card)
    with pytest.raises(RunError, match="is damaged: a field is missing or wrong"):
        read_head(run.path)


def test_a_head_of_another_width_is_refused_in_words(fitted, manifest, tmp_path):
    from safetensors.numpy import save_file

    run = changed_copy(fitted(), tmp_path / "run")
    arrays = {"weight": np.zeros((2, 5), np.float32), "bias": np.zeros(2, np.float32)}
    save_file(arrays, run.path / "model.safetensors")
    job = job_from(run, manifest)
    with pytest.raises(RunError, match="its head doesn't fit its own backbone"):
        job.new_trainer(job.plan[0])


def test_a_run_takes_over_what_the_head_needs_and_refuses_another_on_resume(
    fitted, manifest, tmp_path
):
    run = changed_copy(fitted(), tmp_path / "run")

    def stop(_: Progress) -> None:
        raise Interrupted

    with pytest.raises(Interrupted):
        finetune(manifest, compute=FP32, from_head=run, out_dir=tmp_path / "begun", report=stop)
    (folder,) = (tmp_path / "begun").iterdir()
    config = json.loads((folder / "config.json").read_text())
    assert config["from_head"] == read_head(run.path).describe()
    assert config["network"] == as_json(replace(RANDOM, weights="random:0"))
    assert config["page"] == as_json(SMALL)
    for name in ("model.safetensors", "model.json"):
        shutil.copy(fitted("logreg").path / name, run.path / name)
    (folder / "checkpoint.safetensors").unlink(missing_ok=True)
    with pytest.raises(RunError, match=r"the head .* has changed since the run was begun"):
        resume_finetune(folder, manifest=manifest)


@pytest.mark.parametrize("wrong", ["classes", "rows"])
def test_finetune_refuses_a_head_before_anything_is_written(fitted, manifest, tmp_path, wrong):
    evaluation = EvaluationSettings(positive="a") if wrong == "classes" else CV
    with pytest.raises(RunError):
        finetune(
            manifest,
            compute=FP32,
            evaluation=evaluation,
            from_head=fitted().path,
            out_dir=tmp_path / "runs",
        )
    assert not (tmp_path / "runs").exists()
