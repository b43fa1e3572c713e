from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from ecgfeat.config import EvaluationSettings, HeadSettings
from ecgfeat.errors import DataError, Interrupted
from ecgfeat.feature_cache import Listing
from ecgfeat.heads import fit_heads, fit_linear, fit_logistic, head_probabilities, linear, logistic
from ecgfeat.protocol import Partition, define_task, partitions
from ecgfeat.runs import EpochRecord, open_run
from ecgfeat.runtime import Progress


def some_features(
    n: int = 200, width: int = 12, n_classes: int = 2, seed: int = 0
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Rows of classes that overlap, on features of unlike scales."""
    random = np.random.default_rng(seed)
    y = np.arange(n) % n_classes
    centres = random.normal(size=(n_classes, width))
    X = (centres[y] + random.normal(size=(n, width)) * 2) * np.geomspace(0.1, 10, width) + 3
    return X.astype(np.float32), y


def part_of(train: range, validation: range = range(0), test: range = range(0)) -> Partition:
    return Partition(
        fold=0,
        train=np.array(train, np.int64),
        validation=np.array(validation, np.int64),
        test=np.array(test, np.int64),
        split="test",
    )


def train_linear(
    X: NDArray[np.float32],
    y: NDArray[np.int64],
    part: Partition,
    head: HeadSettings,
    seed: int = 0,
) -> tuple[dict[str, NDArray[np.float32]], list[EpochRecord]]:
    history: list[EpochRecord] = []
    tensors = fit_linear(
        X, y, part, n_classes=int(y.max()) + 1, head=head, seed=seed, on_epoch=history.append
    )
    return tensors, history


@pytest.mark.parametrize("n_classes", [2, 5])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_the_linear_head_is_what_pytorchs_own_loop_gives(
    n_classes: int, weight_decay: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch  # not by the module: heads must not need it

    monkeypatch.setattr(linear, "CHUNK_ROWS", 100)
    X, y = some_features(n=330, n_classes=n_classes)
    part = part_of(range(5, 325))
    head = HeadSettings(epochs=4, lr=0.01, batch_size=48, weight_decay=weight_decay)
    tensors, history = train_linear(X, y, part, head, seed=3)

    generator = np.random.default_rng(3)
    bound = X.shape[1] ** -0.5
    start = generator.uniform(-bound, bound, n_classes * (X.shape[1] + 1)).astype(np.float32)
    layer = torch.nn.Linear(X.shape[1], n_classes)
    torch.nn.utils.vector_to_parameters(torch.from_numpy(start), layer.parameters())
    adam = torch.optim.Adam(layer.parameters(), lr=0.01, weight_decay=weight_decay)
    for record in history:
        order = generator.permutation(part.train)
        loss_sum, n_right = 0.0, 0
        for first in range(0, 320, 48):
            rows = order[first : first + 48]
            logits = layer(torch.from_numpy(X[rows]))
            targets = torch.from_numpy(y[rows])
            loss = torch.nn.functional.cross_entropy(logits, targets)
            adam.zero_grad()
            loss.backward()
            adam.step()
            loss_sum += loss.item() * len(rows)
            n_right += int((logits.argmax(1) == targets).sum())
        assert record.loss == pytest.approx(loss_sum / 320, abs=1e-5)
        assert record.accuracy == pytest.approx(n_right / 320, abs=1e-12)
    np.testing.assert_allclose(tensors["weight"], layer.weight.detach(), atol=1e-5)
    np.testing.assert_allclose(tensors["bias"], layer.bias.detach(), atol=1e-5)


def test_the_linear_head_starts_as_pytorchs_linear_layer_does() -> None:
    import torch  # not by the module: heads must not need it

    X, y = some_features(width=400)
    tensors, _ = train_linear(X, y, part_of(range(200)), HeadSettings(epochs=1, lr=1e-12))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        weight = torch.nn.Linear(400, 2).weight.detach().numpy()
    for found in (tensors["weight"], weight):
        assert 0.049 < np.abs(found).max() <= 0.05
        assert found.std() == pytest.approx(0.05 / 3**0.5, rel=0.05)
    assert np.abs(tensors["bias"]).max() <= 0.05


def test_the_seed_alone_decides_the_linear_head_and_the_global_one_is_left_alone() -> None:
    X, y = some_features()
    part, head = part_of(range(150), range(150, 200)), HeadSettings()
    state = np.random.get_state()[1].copy()  # noqa: NPY002
    first, first_history = train_linear(X, y, part, head, seed=1)
    np.testing.assert_array_equal(np.random.get_state()[1], state)  # noqa: NPY002
    again, again_history = train_linear(X, y, part, head, seed=1)
    other, _ = train_linear(X, y, part, head, seed=2)
    assert first["weight"].tobytes() == again["weight"].tobytes()
    assert first_history == again_history
    assert not np.allclose(first["weight"], other["weight"])


def test_validation_rows_are_scored_after_the_epoch_and_never_trained_on() -> None:
    X, y = some_features()
    head = HeadSettings(epochs=2, lr=0.01)
    tensors, history = train_linear(X, y, part_of(range(150), range(150, 200)), head)
    without, _ = train_linear(X, y, part_of(range(150)), head)
    np.testing.assert_array_equal(tensors["weight"], without["weight"])
    probabilities = head_probabilities(tensors, X[150:])
    loss = -np.log(probabilities[np.arange(50), y[150:]]).mean()
    assert history[-1].val_loss == pytest.approx(loss, abs=1e-5)
    assert history[-1].val_accuracy == (probabilities.argmax(1) == y[150:]).mean()


@pytest.mark.parametrize("n_classes", [2, 3])
def test_logistic_regression_is_scikit_learns_on_standardised_features(
    n_classes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logistic, "CHUNK_ROWS", 64)
    X, y = some_features(n=240, n_classes=n_classes)
    rows = np.arange(10, 210)
    fit = fit_logistic(X, y, rows, C=0.3)
    pipeline = make_pipeline(StandardScaler(), LogisticRegression(C=0.3, tol=1e-8, max_iter=1000))
    pipeline.fit(X[rows].astype(np.float64), y[rows])
    expected = pipeline.predict_proba(X.astype(np.float64))
    assert fit.converged
    np.testing.assert_allclose(head_probabilities(fit.tensors, X), expected, atol=1e-5)


@pytest.mark.parametrize("n_classes", [2, 3])
def test_stored_arrays_give_scikit_learn_the_same_probabilities(n_classes: int) -> None:
    X, y = some_features(n_classes=n_classes)
    tensors = fit_logistic(X, y, np.arange(200), C=1.0).tensors
    model = LogisticRegression()
    model.classes_, model.coef_ = np.arange(n_classes), tensors["coef"]
    model.intercept_ = tensors["intercept"]
    standardised = (X.astype(np.float64) - tensors["mean"]) / tensors["scale"]
    probabilities = head_probabilities(tensors, X)
    np.testing.assert_allclose(probabilities, model.predict_proba(standardised), atol=1e-14)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-14)


def test_a_feature_that_is_constant_in_training_is_only_centred() -> None:
    X, y = some_features()
    X[:, 4] = 0.1
    tensors = fit_logistic(X, y, np.arange(200), C=1.0).tensors
    assert tensors["scale"][4] == 1
    assert tensors["mean"][4] == pytest.approx(0.1)
    assert np.isfinite(head_probabilities(tensors, X)).all()


def test_logistic_regression_goes_on_where_it_stopped_short(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    X, y = some_features()
    whole = fit_logistic(X, y, np.arange(200), C=1.0)
    monkeypatch.setattr(logistic, "MAX_ITERATIONS", (3, 1000))
    in_two = fit_logistic(X, y, np.arange(200), C=1.0)
    assert in_two.converged
    assert in_two.n_iterations > 3
    np.testing.assert_allclose(in_two.tensors["coef"], whole.tensors["coef"], atol=1e-4)


def test_huge_logits_give_probabilities_of_zero_and_one() -> None:
    tensors = {"coef": np.array([[1e6]]), "intercept": np.zeros(1)}
    scaling = {"mean": np.zeros(1), "scale": np.ones(1)}
    X = np.array([[-1], [1]], np.float32)
    np.testing.assert_array_equal(head_probabilities(tensors | scaling, X), [[1, 0], [0, 1]])


@dataclass
class StandInHeader:
    arch: str = "resnet18"
    weights: str = "random"
    weights_digest: str = "ab" * 32
    crop_mode: str = "squash"
    size: str = "448x320"
    resampling: str = "pillow-bilinear"
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.25, 0.25, 0.25)
    decoder: str = "pillow 13.0.0"
    device: str = "cpu"
    precision: str = "fp32"
    taps: dict[str, int] = field(default_factory=lambda: {"layer3": 5, "layer4": 7})


class StandInCache:
    """What heads use of a feature cache."""

    path = Path("cache/pages.h5")
    digest = "cd" * 32
    data_digest = "ef" * 32
    extraction_s = 20.0
    data_name = "pages"

    def __init__(self, n: int = 120, n_classes: int = 2, grouped: bool = False) -> None:
        X, y = some_features(n, 12, n_classes)
        self.header = StandInHeader()
        self.by_tap = {"layer3": X[:, :5], "layer4": X[:, 5:]}
        self.paths = tuple(f"{i:03d}.png" for i in range(n))
        self.labels = tuple("abcdef"[target] for target in y)
        self.splits = tuple("test" if i // n_classes % 3 == 0 else "train" for i in range(n))
        self.groups = tuple(f"g{i // 4}" if grouped else "" for i in range(n))

    @property
    def listing(self) -> Listing:
        has_features = np.ones(len(self.paths), dtype=bool)
        return Listing(
            paths=self.paths,
            labels=self.labels,
            splits=self.splits,
            groups=self.groups,
            has_features=has_features,
        )

    def features(self, taps: Sequence[str]) -> NDArray[np.float32]:
        return np.hstack([self.by_tap[tap] for tap in taps])


def fit(tmp_path: Path, cache: Any = None, *kinds: Any, **options: Any) -> list[Any]:
    """`fit_heads` with the options of either settings."""
    report = options.pop("report", lambda progress: None)
    names = {"layers", "epochs", "lr", "batch_size", "weight_decay", "C"}
    head = HeadSettings(**{key: options.pop(key) for key in names & set(options)})
    return fit_heads(
        cache or StandInCache(),
        kinds=kinds or ("linear",),
        head=head,
        evaluation=EvaluationSettings(**options),
        out_dir=tmp_path,
        report=report,
    )


def test_both_heads_make_two_runs_on_the_same_rows_the_linear_one_first(tmp_path: Path) -> None:
    cache = StandInCache()
    linear_run, logistic_run = fit(tmp_path, cache, "logreg", "linear")
    assert (linear_run.kind, logistic_run.kind) == ("linear", "logreg")
    expected = tuple(path for path, split in zip(cache.paths, cache.splits) if split == "test")
    assert linear_run.predictions.ids == logistic_run.predictions.ids == expected
    assert [record.epoch for record in linear_run.history] == [1, 2, 3, 4, 5]
    assert logistic_run.history == ()
    assert logistic_run.metrics["scores"]["accuracy"]["value"] > 0.6


def test_the_stored_model_gives_the_runs_predictions(tmp_path: Path) -> None:
    cache = StandInCache(n_classes=3)
    for run in fit(tmp_path, cache, "linear", "logreg", layers="layer4,layer3"):
        assert run.model_card["taps"] == ["layer4", "layer3"]
        X = cache.features(run.model_card["taps"])[[s == "test" for s in cache.splits]]
        probabilities = head_probabilities(run.model(), X)
        np.testing.assert_array_equal(probabilities, run.predictions.probabilities)


def test_the_model_card_says_how_to_make_the_features_of_a_new_image(tmp_path: Path) -> None:
    (run,) = fit(tmp_path)
    assert run.model_card == {
        "format_version": 1,
        "kind": "linear",
        "classes": ["a", "b"],
        "taps": ["layer4"],
        "backbone": {"arch": "resnet18", "weights": "random", "weights_digest": "ab" * 32},
        "preprocessing": {
            "crop_mode": "squash",
            "width_px": 448,
            "height_px": 320,
            "resampling": "pillow-bilinear",
            "mean": [0.5, 0.5, 0.5],
            "std": [0.25, 0.25, 0.25],
        },
        "precision": "fp32",
        "device": "cpu",
        "decoder": "pillow 13.0.0",
    }


def test_the_config_says_what_decided_the_run(tmp_path: Path) -> None:
    cache = StandInCache()
    (run,) = fit(tmp_path, cache, "logreg", C=0.5, seed=4, val_fraction=0.25)
    config = run.config
    assert (config["kind"], config["data"]) == ("logreg", "pages")
    assert (config["head"]["C"], config["evaluation"]["seed"]) == (0.5, 4)
    assert config["cache"] == {"path": "cache/pages.h5", "digest": "cd" * 32, "n_images": 120}
    assert config["manifest_digest"] == "ef" * 32
    assert config["backbone"]["arch"] == "resnet18"
    assert config["preprocessing"]["crop_mode"] == "squash"
    assert config["partitions"] == [{"fold": 0, "train": 60, "validation": 20, "test": 40}]
    assert config["solver"][0]["converged"] is True
    assert {"torch", "numpy", "scikit-learn"} <= set(config["versions"])
    assert "n_cpus" in config["machine"]


def test_the_specification_names_everything_that_heads_write(tmp_path: Path) -> None:
    text = (Path(__file__).parents[1] / "docs" / "run-format.md").read_text(encoding="utf-8")
    for run in fit(tmp_path, None, "linear", "logreg"):
        config, card = run.config, run.model_card
        nested = ("backbone", "preprocessing", "cache", "evaluation", "machine")
        keys = {*config, *card, *run.model(), *(key for name in nested for key in config[name])}
        keys.update(*config["partitions"], *config.get("solver", []))
        assert {key for key in keys if f"`{key}`" not in text} == set()


def test_the_cost_counts_each_training_row_once_per_epoch(tmp_path: Path) -> None:
    linear_run, logistic_run = fit(tmp_path, None, "linear", "logreg", epochs=3, batch_size=16)
    for run, n_passes, batch_size, precision in (
        (linear_run, 3, 16, "fp32"),
        (logistic_run, 1, 80, "fp64"),
    ):
        cost = run.cost
        assert (cost.arch, cost.device, cost.precision) == ("resnet18", "cpu", precision)
        assert cost.batch_size == batch_size
        assert cost.images_per_s >= 80 * n_passes / cost.wall_s
        assert cost.peak_memory_mib > 10


def test_cross_validation_predicts_every_row_by_a_head_that_saw_neither_it_nor_its_group(
    tmp_path: Path,
) -> None:
    cache = StandInCache(grouped=True)
    linear_run, logistic_run = fit(tmp_path, cache, "linear", "logreg", cv=3, epochs=2)
    assert sorted(linear_run.predictions.ids) == sorted(cache.paths)
    assert linear_run.predictions.split == "cv"
    assert [(r.fold, r.epoch) for r in linear_run.history] == [
        (fold, epoch) for fold in range(3) for epoch in (1, 2)
    ]
    assert not (linear_run.path / "model.safetensors").exists()
    task = define_task(cache.labels)
    plan = partitions(
        task,
        ids=cache.paths,
        splits=cache.splits,
        groups=cache.groups,
        settings=EvaluationSettings(cv=3),
    )
    X = cache.features(["layer4"])
    for part in plan:
        groups = np.array(cache.groups)
        assert not set(groups[part.train]) & set(groups[part.test])
        tensors = fit_logistic(X, task.targets, part.train, C=1.0).tensors
        of_fold = logistic_run.predictions.folds == part.fold
        found = logistic_run.predictions.probabilities[of_fold]
        np.testing.assert_array_equal(found, head_probabilities(tensors, X[part.test]))


def test_log_lines_are_the_studys(tmp_path: Path) -> None:
    reports: list[Progress] = []
    (run,) = fit(tmp_path, epochs=2, report=reports.append)
    first = run.history[0]
    assert reports[0] == Progress(
        stage="fitting",
        done=1,
        total=2,
        unit="epochs",
        message=f"[Fixed Feature] Epoch 1 | Loss: {first.loss:.4f} | Acc: {first.accuracy:.3f}",
    )
    reports.clear()
    (run,) = fit(tmp_path, epochs=1, cv=2, val_fraction=0.25, report=reports.append)
    last = run.history[-1]
    assert reports[-1].message == (
        f"[Fixed Feature] Fold 2/2 | Epoch 1 | Loss: {last.loss:.4f} | Acc: {last.accuracy:.3f} | "
        f"Val loss: {last.val_loss:.4f} | Val acc: {last.val_accuracy:.3f}"
    )
    assert (reports[-1].done, reports[-1].total) == (2, 2)


def test_a_fit_that_does_not_converge_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logistic, "MAX_ITERATIONS", (1, 2))
    reports: list[Progress] = []
    (run,) = fit(tmp_path, None, "logreg", report=reports.append)
    assert [progress.message for progress in reports] == [
        "[Fixed Feature] Logistic regression not converged after 3 iterations: its scores may "
        "still change; a lower --C makes it converge sooner"
    ]
    assert run.config["solver"] == [{"n_iterations": 3, "converged": False}]


def test_a_subset_of_the_test_rows_is_named_as_one(tmp_path: Path) -> None:
    (run,) = fit(tmp_path, test_subset=10)
    assert run.metrics["test_rows"] == "subset of 10 of 40"
    assert len(run.predictions) == 10


def test_classes_against_the_rest_make_a_binary_head(tmp_path: Path) -> None:
    (run,) = fit(tmp_path, StandInCache(n_classes=3), positive="b")
    assert run.predictions.classes == ("rest", "b")
    assert run.model()["weight"].shape == (2, 7)


def test_training_that_diverges_says_so_and_leaves_no_folder(tmp_path: Path) -> None:
    cache = StandInCache()
    cache.by_tap["layer4"] = np.sign(cache.by_tap["layer4"]) * np.float32(3e38)
    with pytest.raises(DataError) as caught:
        fit(tmp_path, cache)
    assert str(caught.value) == (
        "the model gave probabilities that are not finite: its training diverged. Try a lower --lr."
    )
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_fit_keeps_the_finished_run_and_leaves_no_other_folder(
    tmp_path: Path,
) -> None:
    def stop(progress: Progress) -> None:
        if progress.unit == "fits":
            raise Interrupted

    with pytest.raises(Interrupted):
        fit(tmp_path, None, "linear", "logreg", report=stop)
    (folder,) = tmp_path.iterdir()
    assert open_run(folder).kind == "linear"


def test_heads_import_neither_torch_nor_torchvision(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; sys.path.insert(0, sys.argv[1]);"
        "from test_heads import fit; fit(Path(sys.argv[2]), None, 'linear', 'logreg');"
        "print({'torch', 'torchvision'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(Path(__file__).parent), str(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "set()\n"
    assert len(list(tmp_path.iterdir())) == 2
