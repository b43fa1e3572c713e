"""A small study that several test files look at: pages, and a run of each kind."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest

from ecgfeat import backbones
from ecgfeat.config import (
    RECIPES,
    ComputeSettings,
    DataSettings,
    FinetuneSettings,
    HeadSettings,
    NetworkSettings,
    PageSettings,
)
from ecgfeat.extraction import extract
from ecgfeat.feature_cache import open_cache
from ecgfeat.finetuning import finetune
from ecgfeat.heads import fit_heads
from ecgfeat.manifest import read_manifest
from ecgfeat.runs import Run, open_run

from .conftest import draw_page

FP32 = ComputeSettings(device="cpu", precision="fp32", threads=2)
PAGE = PageSettings(size="64x48", crop_mode="border")


@pytest.fixture(autouse=True)
def weights_drawn_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Random weights take a second to draw, for each backbone anew."""
    monkeypatch.setattr(backbones, "load_weights", drawn_once)


drawn_once = functools.cache(backbones.load_weights)


def make_study(folder: Path) -> Path:
    """Pages, a run of each kind on two classes, and one of each head on three."""
    for n_classes in (2, 3):
        data = folder / f"pages{n_classes}"
        for index in range(6 * n_classes):
            split = "test" if index < 2 * n_classes else "train"
            target = data / split / "abc"[index % n_classes] / f"{index:02}.png"
            target.parent.mkdir(parents=True, exist_ok=True)
            draw_page(index, index % n_classes).save(target)
        manifest = read_manifest(data, DataSettings())
        network = NetworkSettings(weights="random:1")
        cache = extract(
            manifest,
            cache=folder,
            page=PAGE,
            network=network,
            work=RECIPES["paper"].extraction,
            compute=FP32,
        ).cache
        fit_heads(
            open_cache(cache),
            kinds=("linear", "logreg"),
            head=HeadSettings(layers="layer2,layer4", epochs=2),
            out_dir=folder / f"runs{n_classes}",
        )
    finetune(
        read_manifest(folder / "pages2", DataSettings()),
        network=NetworkSettings(weights="random:1"),
        page=PAGE,
        compute=FP32,
        training=FinetuneSettings(epochs=1, batch_size=4),
        out_dir=folder / "runs2",
    )
    return folder


def run_of(study: Path, kind: str, n_classes: int = 2) -> Run:
    [folder] = (study / f"runs{n_classes}").glob(f"*-{kind}-*")
    return open_run(folder)
