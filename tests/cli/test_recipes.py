"""``--recipe``: what it fills, and that options given by hand win."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

from ecgfeat.cli import app
from ecgfeat.config import (
    DEFAULT_RECIPE,
    RECIPES,
    EvaluationSettings,
    ExtractionSettings,
    FinetuneSettings,
    NetworkSettings,
    PageSettings,
    SweepSettings,
    recipes,
)
from ecgfeat.errors import DataError

Asked = Callable[..., dict[str, Any]]
JOBS = {
    "extract": "ecgfeat.extraction.extract",
    "preview": "ecgfeat.contact_sheet.preview",
    "finetune": "ecgfeat.finetuning.finetune",
    "fit-head": "ecgfeat.heads.fit_heads",
}


HEAD_PAGE = PageSettings(size="96x64", dpi=200, clean="photo")
HEAD_NETWORK = NetworkSettings(arch="resnet34", weights="random:3")


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Asked:
    """Give a command to the program; gives what it asks of the library, which does nothing."""
    found: dict[str, Any] = {}

    def record(*_: object, **settings: object) -> None:
        found.update(settings)
        raise DataError("far enough")

    for job in JOBS.values():
        monkeypatch.setattr(job, record)
    listed = SimpleNamespace(summary=list)
    monkeypatch.setattr("ecgfeat.manifest.read_manifest", lambda *_: listed)

    def ask(*arguments: str) -> dict[str, Any]:
        done = CliRunner().invoke(app, arguments)
        assert done.stderr.splitlines()[1:] == ["Error: far enough"], done.stderr
        return found

    return ask


def kinds_of(found: dict[str, Any]) -> tuple[str, ...]:
    """The heads asked for, which may be given as one word or several."""
    kinds = found["kinds"]
    return tuple(kinds.split(",")) if isinstance(kinds, str) else tuple(kinds)


@pytest.fixture
def named(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Let every cache and head's run name a recipe."""

    def name(recipe: str) -> None:
        cache = SimpleNamespace(header=SimpleNamespace(recipe=recipe))
        monkeypatch.setattr("ecgfeat.feature_cache.open_cache", lambda _: cache)
        run = SimpleNamespace(config={"recipe": recipe} if recipe else {})
        head = SimpleNamespace(run=run, page=HEAD_PAGE, network=HEAD_NETWORK)
        monkeypatch.setattr("ecgfeat.finetuning.read_head", lambda _: head)

    return name


@pytest.fixture
def another_ecg(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let ``ecg`` have other heads and a training of its own."""
    another = replace(
        RECIPES["ecg"],
        kinds=("linear", "logreg"),
        training=FinetuneSettings(lr=1e-4, epochs=10, choose_by="auroc"),
    )
    monkeypatch.setattr(recipes, "RECIPES", {**RECIPES, "ecg": another})


@pytest.mark.parametrize("command", ["extract", "preview", "finetune"])
@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_brings_its_page(asked: Asked, command: str, name: str) -> None:
    assert asked(command, "pages", "--recipe", name)["page"] == RECIPES[name].page


@pytest.mark.parametrize("command", ["extract", "preview", "finetune"])
def test_where_nothing_is_said_it_is_the_default_recipe(asked: Asked, command: str) -> None:
    assert asked(command, "pages")["page"] == RECIPES[DEFAULT_RECIPE].page


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_brings_its_taps_and_its_name(asked: Asked, name: str) -> None:
    found = asked("extract", "pages", "--recipe", name)
    assert found["work"] == RECIPES[name].extraction
    assert found["recipe"] == name


@pytest.mark.usefixtures("another_ecg")
def test_a_recipe_brings_its_training(asked: Asked) -> None:
    found = asked("finetune", "pages", "--recipe", "ecg")
    assert found["training"] == FinetuneSettings(lr=1e-4, epochs=10, choose_by="auroc")
    assert found["recipe"] == "ecg"
    assert found["evaluation"] == EvaluationSettings()


@pytest.mark.usefixtures("another_ecg")
def test_a_recipe_brings_its_heads(asked: Asked, named) -> None:
    named("paper")
    found = asked("fit-head", "pages.h5", "--recipe", "ecg")
    assert kinds_of(found) == ("linear", "logreg")
    assert found["head"] == RECIPES["ecg"].head
    assert found["sweep"] == SweepSettings()
    assert found["recipe"] == "ecg"


def test_a_page_given_by_hand_wins(asked: Asked) -> None:
    found = asked("extract", "pages", "--recipe", "ecg", "--size", "64")
    assert found["page"] == PageSettings(crop_mode="squash", size="64")
    # Also where it is what a recipe without a name would have.
    found = asked("extract", "pages", "--recipe", "ecg", "--crop-mode", "center", "--size", "224")
    assert found["page"] == PageSettings(crop_mode="center", size="224")


def test_taps_given_by_hand_win(asked: Asked) -> None:
    found = asked("extract", "pages", "--recipe", "ecg", "--layers", "layer4-max")
    assert found["work"] == ExtractionSettings(layers="layer4-max")


def test_a_head_given_by_hand_wins(asked: Asked, named) -> None:
    named("ecg")
    found = asked("fit-head", "pages.h5", "--head", "linear", "--layers", "layer4", "--lr", "0.1")
    assert kinds_of(found) == ("linear",)
    assert found["head"] == replace(RECIPES["ecg"].head, layers="layer4", lr=0.1)
    found = asked("fit-head", "pages.h5", "--C", "1")
    assert found["head"] == replace(RECIPES["ecg"].head, C=1.0)


@pytest.mark.usefixtures("another_ecg")
def test_a_training_and_a_choice_given_by_hand_win(asked: Asked, named) -> None:
    named("ecg")
    found = asked("fit-head", "pages.h5", "--folds", "0", "--grid", "C=1", "--grid", "lr=1")
    assert found["sweep"] == SweepSettings(grid=("C=1", "lr=1"))
    # --patience needs a --choose-by, which the recipe has.
    found = asked("finetune", "pages", "--lr", "auto", "--patience", "2")
    wanted = FinetuneSettings(lr="auto", epochs=10, choose_by="auroc", patience=2)
    assert found["training"] == wanted


@pytest.mark.parametrize(("cache", "wanted"), [("ecg", "ecg"), ("quick", "quick"), ("", "paper")])
def test_fit_head_takes_the_cache_s_recipe(asked: Asked, named, cache: str, wanted: str) -> None:
    named(cache)
    found = asked("fit-head", "pages.h5")
    assert found["head"] == RECIPES[wanted].head
    assert kinds_of(found) == RECIPES[wanted].kinds
    assert found["recipe"] == wanted


def test_a_recipe_given_to_fit_head_by_hand_wins(asked: Asked, named) -> None:
    named("ecg")
    found = asked("fit-head", "pages.h5", "--recipe", "paper")
    assert found["head"] == RECIPES["paper"].head
    assert kinds_of(found) == ("linear",)


@pytest.mark.parametrize("given", [[], ["--recipe", "ecg"]], ids=["none", "ecg"])
def test_with_a_head_its_page_is_left_to_it(asked: Asked, named, given: list[str]) -> None:
    named("ecg")
    found = asked("finetune", "pages", "--from-head", "runs/head", *given)
    assert (found["page"], found["network"]) == (HEAD_PAGE, HEAD_NETWORK)
    # What is given by hand is held against the head even where it is the usual value.
    for option, value in (("size", "448x320"), ("dpi", 150), ("clean", "none")):
        words = (f"--{option}", str(value))
        found = asked("finetune", "pages", "--from-head", "runs/head", *words, *given)
        assert found["page"] == replace(HEAD_PAGE, **{option: value})
    found = asked("finetune", "pages", "--from-head", "runs/head", "--arch", "resnet18", *given)
    assert found["network"] == replace(HEAD_NETWORK, arch="resnet18")


@pytest.mark.usefixtures("another_ecg")
@pytest.mark.parametrize(("head", "lr"), [("ecg", 1e-4), ("paper", 1e-3), ("", 1e-3)])
def test_with_a_head_the_training_is_its_recipe_s(asked: Asked, named, head, lr) -> None:
    named(head)
    found = asked("finetune", "pages", "--from-head", "runs/head")
    assert found["training"].lr == lr


def refused(*arguments: str) -> tuple[int, str]:
    done = CliRunner().invoke(app, arguments)
    first, _, error = done.stderr.strip().partition("\n")
    assert first.startswith(f"ecgfeat {arguments[0]}"), first
    return done.exit_code, error


def test_a_cache_of_a_recipe_from_later_is_told(named) -> None:
    named("later")
    assert refused("fit-head", "pages.h5") == (
        2,
        "Error: this ecgfeat has no recipe 'later': give --recipe, one of paper, quick, ecg",
    )


@pytest.mark.parametrize(
    ("recipe", "given", "message"),
    [
        (
            "ecg",
            ["--lr", "0.1", "--epochs", "9"],
            "Error: only a linear head has --epochs and --lr, and here a logreg head is fitted: "
            "leave it out, or give --head linear or both",
        ),
        (
            "paper",
            ["--C", "0.1"],
            "Error: only a logreg head has --C, and here a linear head is fitted: leave it out, or "
            "give --head logreg or both",
        ),
        (
            "ecg",
            ["--head", "linear", "--C", "0.1"],
            "Error: only a logreg head has --C, and here a linear head is fitted: leave it out, or "
            "give --head logreg or both",
        ),
    ],
)
def test_an_option_that_the_head_lacks_is_refused(named, recipe, given, message) -> None:
    named(recipe)
    assert refused("fit-head", "pages.h5", *given) == (2, message)


def test_a_value_that_is_the_recipe_s_own_is_not(asked: Asked, named) -> None:
    named("ecg")
    # As a script has it that repeats a run with all options of its config.json.
    found = asked("fit-head", "pages.h5", "--lr", "0.001")
    assert kinds_of(found) == ("logreg",)


@pytest.mark.parametrize(
    "given", [["--recipe", "ecg"], ["--lr", "0.001"], ["--size", "224"], ["--seed", "0"]]
)
def test_a_resumed_run_takes_no_options_not_even_defaults(given) -> None:
    assert refused("finetune", "--resume", "run", *given) == (
        2,
        "Error: --resume goes on with the run's own settings: leave the others out, or start a "
        "new run with DATA",
    )


def help_of(command: str) -> str:
    """The words of a command's help, without frames and line breaks."""
    shown = CliRunner().invoke(app, [command, "--help"], env={"COLUMNS": "200"}).stdout
    return " ".join(shown.replace("│", " ").split())


@pytest.mark.parametrize("command", JOBS)
def test_help_tells_each_recipe(command: str) -> None:
    shown = help_of(command)
    for name, recipe in RECIPES.items():
        assert f"{name}: {recipe.summary}." in shown
    assert f"(default: {DEFAULT_RECIPE}; in fit-head the cache's" in shown


def test_help_tells_defaults_by_recipe() -> None:
    for command in ("extract", "preview", "finetune"):
        assert "[default: (paper: center; quick: squash; ecg: squash)]" in help_of(command)
    taps = "; ".join(f"{name}: {recipe.extraction.layers}" for name, recipe in RECIPES.items())
    assert f"[default: ({taps})]" in help_of("extract")
    assert "[default: (paper: linear; quick: logreg; ecg: logreg)]" in help_of("fit-head")
    assert "[default: (paper: 1.0; quick: 0.01; ecg: 0.01)]" in help_of("fit-head")
    assert "Adam's learning rate. [default: 0.001]" in help_of("fit-head")


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with the caches ``ecg.h5`` and ``paper.h5`` of the same pages."""
    folder = tmp_path_factory.mktemp("recipes")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        run("synth", "pages", "--train", "16", "--test", "8", "--size", "160x120")
        for name in ("ecg", "paper"):
            words = [
                "--size",
                "64",
                "--weights",
                "random",
                "--precision",
                "fp32",
                "--cache",
                f"{name}.h5",
            ]
            shown = run("extract", "pages/manifest.csv", "--recipe", name, *words)
            recipe = RECIPES[name]
            assert shown.splitlines()[0] == (
                f"recipe {name}: --crop-mode {recipe.page.crop_mode} --size 64 "
                f"--layers {recipe.extraction.layers}"
            )
        yield folder


def run(*arguments: str) -> str:
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    return done.stdout


def test_a_cache_tells_its_recipe_page_and_taps(study: Path) -> None:
    facts = dict(line.split(maxsplit=1) for line in run("cache", "info", "ecg.h5").splitlines())
    assert facts["recipe"] == "ecg"
    assert facts["page"].startswith("squash, 64 px, ")
    taps = ["layer1-4x4 (1024)", "layer2-4x4 (2048)", "layer3 (256)", "layer4 (512)"]
    assert sorted(facts["taps"].split(", ")) == taps


@pytest.mark.parametrize("name", ["ecg", "paper"])
def test_a_head_s_run_names_its_recipe_and_spells_its_options_out(study: Path, name: str) -> None:
    (said,) = json.loads(run("fit-head", f"{name}.h5", "--json"))["runs"]
    config = json.loads((Path(said["path"]) / "config.json").read_text())
    assert config["recipe"] == name
    assert (config["kind"],) == RECIPES[name].kinds
    assert config["head"]["layers"] == RECIPES[name].head.layers
    assert config["head"]["C"] == RECIPES[name].head.C


def test_a_fine_tuning_names_its_recipe_and_its_network_says_what_it_knows(study: Path) -> None:
    quick = ["--size", "64", "--weights", "random", "--precision", "fp32", "--epochs", "1"]
    (said,) = json.loads(run("finetune", "pages/manifest.csv", *quick, "--json"))["runs"]
    config = json.loads((Path(said["path"]) / "config.json").read_text())
    assert config["recipe"] == DEFAULT_RECIPE
    crop_mode = RECIPES[DEFAULT_RECIPE].page.crop_mode
    assert config["page"] == {"crop_mode": crop_mode, "size": "64", "dpi": 150, "clean": "none"}
    assert config["training"]["epochs"] == 1
    small = ["--recipe", "paper", "--size", "64", "--cache", "tuned.h5"]
    shown = run("extract", "pages/manifest.csv", "--weights", said["path"], *small)
    assert "only the test rows of that run's own split are unseen" in shown


def test_a_linear_head_fits_on_any_recipe_s_features(study: Path) -> None:
    (said,) = json.loads(run("fit-head", "ecg.h5", "--head", "linear", "--json"))["runs"]
    assert said["kind"] == "linear"


def test_a_cache_that_lacks_the_recipe_s_taps_is_refused_with_the_mend(study: Path) -> None:
    assert refused("fit-head", "paper.h5", "--recipe", "ecg") == (
        2,
        "Error: the recipe ecg fits its head on layer1-4x4, layer2-4x4, layer3, "
        "layer4, and paper.h5 holds layer1, layer2, layer3, layer4. Make a cache for it with "
        "`ecgfeat extract DATA --recipe ecg`, or give --layers, or another --recipe.",
    )
