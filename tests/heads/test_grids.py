from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ecgfeat.config import EvaluationSettings, HeadSettings, SweepSettings
from ecgfeat.errors import ConfigError, StorageError
from ecgfeat.heads import HEADS
from ecgfeat.heads.sweep import AXES, DEFAULT_GRID, Candidate, Grid, candidates, read_grid, seeds_of

BOTH = ("linear", "logreg")


def read(*grid: str, kinds: Any = BOTH, **sweep: Any) -> Grid:
    return read_grid(SweepSettings(grid=grid, **sweep), kinds)


def message_of(*grid: str, **options: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        read(*grid, **options)
    return str(caught.value)


@pytest.mark.parametrize(
    "grid",
    [
        ("lr=1e-4,1e-3", "weight_decay=0,1e-4", "layers=layer4,layer3+layer4"),
        ("lr=1e-4,1e-3 weight_decay=0,1e-4 layers=layer4,layer3+layer4",),
        ("layers=layer4,layer3+layer4;lr=1e-4,1e-3; weight_decay=0,1e-4,",),
    ],
)
def test_axes_are_given_one_by_one_or_all_in_one(grid: tuple[str, ...]) -> None:
    assert read(*grid) == {
        "layers": ("layer4", "layer3,layer4"),
        "lr": (1e-4, 1e-3),
        "weight_decay": (0.0, 1e-4),
    }


def test_every_axis_has_the_type_of_its_setting() -> None:
    found = read("C=1", "seed=3,0", "class_weights=balanced", "label_smoothing=0", "lr=1")
    assert found == {
        "lr": (1.0,),
        "label_smoothing": (0.0,),
        "class_weights": ("balanced",),
        "C": (1.0,),
        "seed": (3, 0),
    }
    assert [type(values[0]) for values in found.values()] == [float, float, str, float, int]


def test_nothing_given_is_no_grid() -> None:
    assert read() == {}


def test_the_default_has_more_than_a_hundred_linear_heads_and_a_path_over_c() -> None:
    linear = candidates(["linear"], HeadSettings(), read(sweep="default", kinds=["linear"]))
    logistic = candidates(["logreg"], HeadSettings(), read(sweep="default", kinds=["logreg"]))
    assert (len(linear), len(logistic)) == (112, 20)
    both = candidates(BOTH, HeadSettings(), read(sweep="default"))
    assert both == [*linear, *logistic]
    assert len(set(both)) == 132


def test_a_grid_takes_the_place_of_the_sweep_s_own_values() -> None:
    found = read("lr=0.5", "seed=7", sweep="default", kinds=["linear"])
    assert found["lr"] == (0.5,)
    assert found["seed"] == (7,)
    assert found["weight_decay"] == DEFAULT_GRID["weight_decay"]


def test_a_toml_file_holds_a_list_for_each_axis(tmp_path: Path) -> None:
    path = tmp_path / "sweep.toml"
    path.write_text('lr = [1, 1e-3]\nlayers = ["layer4", "layer3+layer4", "layer2,layer1"]\n')
    assert read(sweep=str(path)) == {
        "layers": ("layer4", "layer3,layer4", "layer2,layer1"),
        "lr": (1.0, 1e-3),
    }


@pytest.mark.parametrize(
    ("word", "message"),
    [
        (
            "rate=1",
            "--grid names 'rate'; it takes layers, lr, weight_decay, label_smoothing, "
            "class_weights, C, seed",
        ),
        ("lr", "--grid takes NAME=A,B, such as lr=1e-4,1e-3, without spaces in it; found 'lr'"),
        ("lr=", "--grid gives no values for lr"),
        ("lr=1e-3,0.001", "--grid gives lr the value 0.001 twice"),
        ("lr=0.1 lr=0.2", "--grid names lr twice: give all its values at once"),
        ("lr=0", "--grid: --lr must be above 0 and at most 10; found 0"),
        ("lr=fast", "--grid: lr must be a number; found 'fast'"),
        ("lr=nan", "--grid: --lr must be above 0 and at most 10; found nan"),
        ("seed=1.5", "--grid: seed must be a whole number; found '1.5'"),
        ("seed=-1", "--grid: --seed must be at least 0 and at most 2147483647; found -1"),
        ("label_smoothing=1", "--grid: --label-smoothing must be at least 0 and below 1; found 1"),
        (
            "class_weights=some",
            "--grid: --class-weights must be one of none, balanced; found 'some'",
        ),
        (
            "layers=layer4+layer4",
            "--grid: --layers must name each layer once, such as layer3,layer4; found "
            "'layer4,layer4'",
        ),
    ],
)
def test_a_wrong_grid_is_refused_with_what_is_allowed(word: str, message: str) -> None:
    assert message_of(word) == message


def test_an_axis_that_the_head_lacks_is_refused() -> None:
    assert message_of("C=1", kinds=["linear"]) == (
        "--grid names C, which only a logreg head has: also give --head logreg or both, or "
        "leave it out"
    )
    assert message_of("lr=1", kinds=["logreg"]) == (
        "--grid names lr, which only a linear head has: also give --head linear or both, or "
        "leave it out"
    )


def test_seeds_are_said_once() -> None:
    assert message_of("seed=1,2", seeds=3) == (
        "--seeds and the axis seed say the same: give one of the two"
    )


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("lr = 0.1", "lr must be a list of values, such as lr = [1e-4, 1e-3]; found 0.1"),
        ("[linear]\nlr = [0.1]", "linear must be a list of values"),
        ("lr = [", "can't be read as TOML"),
        ("lr = [true]", "lr can't be true"),
        ("lr = [[0.1]]", "--lr must be a number; found [0.1]"),
        ("seed = [0.5]", "--seed must be a whole number; found 0.5"),
        ("layers = [4]", "--layers must be text; found 4"),
        ("lr = []", "gives no values for lr"),
        ("rates = [1]", "names 'rates'; it takes layers, lr"),
        (b"lr = ['\xff']", "can't be read as TOML"),
        ("lr = " + 3000 * "[", "can't be read as TOML"),
        ("", "is empty: give values such as lr = [1e-4, 1e-3]"),
    ],
)
def test_a_wrong_toml_file_is_refused(tmp_path: Path, content: str | bytes, words: str) -> None:
    path = tmp_path / "sweep.toml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    message = message_of(sweep=str(path))
    assert message.startswith(f"--sweep {path}")
    assert words in message


def test_a_toml_file_that_is_not_there_is_named() -> None:
    assert message_of(sweep="absent.toml") == (
        "--sweep takes default, or a TOML file such as lr = [1e-4, 1e-3]; there is no absent.toml"
    )


def test_a_folder_is_no_toml_file(tmp_path: Path) -> None:
    assert message_of(sweep=str(tmp_path)) == (
        f"--sweep takes default, or a TOML file; {tmp_path} is a folder"
    )


def test_a_toml_file_that_can_not_be_read_is_the_disk_s_refusal(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="reading"):
        read(sweep=str(tmp_path / "file" / "sweep.toml"))


def test_candidates_are_all_combinations_those_of_the_same_layers_together() -> None:
    grid = read("lr=0.1,0.2 layers=layer4,layer3 C=1,2")
    pool = candidates(BOTH, HeadSettings(batch_size=7), grid)
    assert [(c.head.kind, c.settings.layers, c.settings.lr, c.settings.C) for c in pool] == [
        ("linear", "layer4", 0.1, 1),
        ("linear", "layer4", 0.2, 1),
        ("linear", "layer3", 0.1, 1),
        ("linear", "layer3", 0.2, 1),
        ("logreg", "layer4", 0.001, 1),
        ("logreg", "layer4", 0.001, 2),
        ("logreg", "layer3", 0.001, 1),
        ("logreg", "layer3", 0.001, 2),
    ]
    assert {c.settings.batch_size for c in pool} == {7}


def test_seeds_are_no_candidates() -> None:
    grid = read("seed=4,2")
    assert len(candidates(["linear"], HeadSettings(), grid)) == 1
    assert seeds_of(grid, SweepSettings(), EvaluationSettings(seed=9)) == (4, 2)
    assert seeds_of({}, SweepSettings(seeds=3), EvaluationSettings(seed=9)) == (9, 10, 11)


def test_seeds_beyond_the_largest_are_refused() -> None:
    with pytest.raises(ConfigError, match="--seed must be at least 0 and at most"):
        seeds_of({}, SweepSettings(seeds=2), EvaluationSettings(seed=2**31 - 1))


def test_an_axis_too_many_is_refused() -> None:
    values = ",".join(str(value / 1000) for value in range(1, 102))
    grid = read(f"lr={values}", f"weight_decay={values}")
    with pytest.raises(ConfigError) as caught:
        candidates(["linear"], HeadSettings(), grid)
    assert (
        str(caught.value)
        == "the grid holds 10201 heads; at most 10000 are tried: give fewer values"
    )


def test_a_candidate_tells_its_own_settings_alone() -> None:
    logistic = Candidate(head=HEADS["logreg"], settings=HeadSettings(C=0.1))
    assert logistic.as_json() == {
        "head": "logreg",
        "layers": "layer4",
        "lr": None,
        "weight_decay": None,
        "label_smoothing": None,
        "class_weights": "none",
        "C": 0.1,
    }
    assert list(logistic.as_json())[1:] == [name for name in AXES if name != "seed"]
    assert logistic.in_words() == "logreg, layers layer4, class_weights none, C 0.1"
