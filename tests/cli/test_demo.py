"""``ecgfeat demo``, on fewer and smaller pages than it draws for people."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from ecgfeat.cli import app, demo
from ecgfeat.config import DEFAULT_RECIPE, RECIPES, NetworkSettings, PageSettings, SynthSettings
from ecgfeat.errors import WeightsError
from ecgfeat.extraction import extract


def test_the_demo_compares_three_runs_of_the_default_recipe_without_internet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny = PageSettings(crop_mode="squash", size="64")
    recipe = RECIPES[DEFAULT_RECIPE]

    def offline(manifest, *, network: NetworkSettings, page: PageSettings, **settings):
        if network.weights == "imagenet":
            raise WeightsError("there is no internet")
        assert page == recipe.page
        assert settings["work"] == recipe.extraction
        return extract(manifest, network=network, page=tiny, **settings)

    monkeypatch.setattr("ecgfeat.extraction.extract", offline)
    monkeypatch.setattr(demo, "_PAGES", SynthSettings(train=16, test=8, size="160x120"))
    monkeypatch.setattr(demo, "_TUNED_PAGE", tiny)
    monkeypatch.setattr(demo, "_TRAINING", replace(demo._TRAINING, epochs=1))
    done = CliRunner().invoke(app, ["demo", str(tmp_path / "demo"), "--json"])
    assert done.exit_code == 0, done.output
    assert "The demo goes on with RANDOM weights" in done.stderr
    said = json.loads(done.stdout)
    assert [run["kind"] for run in said["runs"]] == ["linear", "logreg", "finetune"]
    assert len(said["comparison"]["pairs"]) == 3
    assert "The most confident mistakes" in Path(said["report"]).read_text()
    assert re.search(r"the whole takes about (a|[\d.]+) minutes? on this machine", done.stderr)
    for run in said["runs"][:2]:
        config = json.loads((Path(run["path"]) / "config.json").read_text())
        assert config["recipe"] == recipe.name
        assert config["head"]["layers"] == recipe.head.layers
