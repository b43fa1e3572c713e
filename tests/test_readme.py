"""The commands that the README and the guide show are run as they stand there."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from ecgfeat.cli import app

from .conftest import draw_page

ROOT = Path(__file__).resolve().parents[1]
QUICK = {
    "extract": {"--weights": "random", "--size": "64"},
    "finetune": {"--weights": "random", "--size": "64", "--epochs": "1"},
}
"""Added to a command, so that it needs neither the internet nor minutes."""
ELSEWHERE = ("ecgfeat demo", "ecgfeat synth", "ecgfeat finetune --resume")
"""Shown commands that other tests run: they take long, or go on from an interruption."""


def blocks_of(page: str) -> list[str]:
    """A page's fenced blocks."""
    return re.findall(r"^```\w*\n(.*?)^```", (ROOT / page).read_text(), re.M | re.S)


def shown_commands(page: str) -> list[str]:
    """Lines that begin with ``ecgfeat`` in a page's fenced blocks."""
    blocks = blocks_of(page)
    lines = [line.split("  #")[0].strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if line.startswith("ecgfeat ")]


def as_here(command: str) -> list[str]:
    """The command's words, with the names that differ from day to day put in."""
    words = []
    for word in shlex.split(command)[1:]:
        run = re.fullmatch(r"runs/\d{8}-\d{6}-(\w+)-pages", word)
        if run:
            words.append(str(sorted(Path("runs").glob(f"*-{run[1]}-pages"))[-1]))
        elif "*" in word or "…" in word:
            words += sorted(map(str, Path().glob(word.replace("…", "*"))))
        else:
            words.append(word)
    quick = QUICK.get(words[0], {})
    if "--from-head" in words:  # which brings its own page and weights
        quick = {"--epochs": "1"}
    if words[0] == "fit-head" and {"linear", "both"} & set(words):
        quick = {"--epochs": "2"}
    return words + [word for pair in quick.items() if pair[0] not in words for word in pair]


@pytest.mark.parametrize("page", ["README.md", "docs/guide.md"])
def test_the_commands_shown_run_as_they_stand(page, tiny_pages, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny_pages(n_train=16, n_test=8)
    draw_page(5).save("new-page.jpg")
    for block in blocks_of(page):
        named = re.match(r"# (\w+\.toml)\n", block)
        if named:
            Path(named[1]).write_text(block)
    commands = [line for line in shown_commands(page) if not line.startswith(ELSEWHERE)]
    assert len(commands) >= 3
    for command in commands:
        done = CliRunner().invoke(app, as_here(command))
        assert done.exit_code == 0, f"{command}\n{done.output}"


def test_every_file_that_the_pages_link_to_is_there():
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"
