"""Trained on scans, tested on photographs of pages never seen: what the camera costs.

    python benchmarks/photographs.py --weights resnet18.pth --out photographs \
        --set ludb=ludb-pages/manifest.csv:lvh

A set is NAME=DATA[:POSITIVE[:ROOT]]. Each of its pages is photographed once at every strength of
`ecgfeat.photograph`, seeded by its path. The scans' heads are fitted by grouped 5-fold
cross-validation, once per seed; each fold's head then also answers for the photographs of the rows
it is tested on, so that a page's patient is never trained on.

lost       scans minus photographs, paired: the seeds' mean, with a 95 % bootstrap interval over
           groups

Writes photographs.md and pictures into the folder, and goes on where it was after a stop.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
from frozen_recipes import OUTER_FOLDS, SCORES, Labelled, differences, summary
from PIL import Image

from ecgfeat.config import RECIPES, EvaluationSettings, NetworkSettings, Recipe
from ecgfeat.extraction import extract
from ecgfeat.feature_cache import FeatureCache, open_cache
from ecgfeat.heads import fit_heads
from ecgfeat.images import decode
from ecgfeat.inference import read_model
from ecgfeat.manifest import Manifest, read_manifest
from ecgfeat.metrics import in_id_order
from ecgfeat.photograph import AMOUNTS, photograph
from ecgfeat.predictions import Predictions
from ecgfeat.runs import Run, open_run
from ecgfeat.runtime import machine, n_cpus, versions

SEED = 0
"""Of the photographs; the folds have seeds of their own."""
SHOWN = 4
"""Photographs of each strength on the sheet that shows them."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--weights", default="imagenet")
    parser.add_argument("--out", type=Path, default=Path("photographs"))
    parser.add_argument("--set", dest="sets", action="append", type=Labelled.parse, required=True)
    parser.add_argument("--recipes", default="paper,ecg")
    parser.add_argument("--strengths", default=",".join(AMOUNTS))
    parser.add_argument("--clean", default="none,photo", help="ways to clean, scans too")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--bootstrap", type=int, default=2000)
    args = parser.parse_args()
    network = NetworkSettings(weights=args.weights)
    lines = ["| set | recipe | clean | tested on | accuracy | AUROC | accuracy lost | AUROC lost |"]
    lines.append("|---|---|---|---|---|---|---|---|")
    print(machine(), versions())
    for labelled in args.sets:
        strengths = args.strengths.split(",")
        photos = {name: photographed(labelled, name, args.out) for name in strengths}
        show(labelled, photos, args.out)
        for recipe, clean in product(args.recipes.split(","), args.clean.split(",")):
            way = RECIPES[recipe]
            way = replace(way, page=replace(way.page, clean=clean))
            results = evaluate(labelled, photos, way, network, args.out, args.seeds)
            lines += rows(f"{labelled.name} | `{recipe}` | {clean}", results, args.bootstrap)
            print("\n".join(lines[-len(results) :]), flush=True)
    (args.out / "photographs.md").write_text("\n".join(lines) + "\n")


def photographed(labelled: Labelled, strength: str, out: Path) -> Manifest:
    """The set's photographs, under the names of its pages and as PNG, so that nothing is added."""
    manifest = labelled.manifest()
    folder = out / f"{labelled.name}-{strength}"
    table = folder / "manifest.csv"

    def draw(row: int) -> None:
        path = (folder / manifest.paths[row]).with_suffix(".png")
        if not path.exists():
            page = Image.fromarray(decode(manifest.image_path(row)))
            path.parent.mkdir(parents=True, exist_ok=True)
            key = hashlib.sha256(manifest.paths[row].encode()).digest()
            rng = np.random.default_rng((SEED, *key))
            picture = photograph(page, AMOUNTS[strength], rng)
            aside = path.with_suffix(".part")
            picture.save(aside, "png", compress_level=1)
            aside.replace(path)

    with ThreadPoolExecutor(n_cpus()) as pool:
        list(pool.map(draw, range(len(manifest.paths))))
    with table.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("path", "label", "split", "group"))
        for row, path in enumerate(manifest.paths):
            photo = Path(path).with_suffix(".png").as_posix()
            group = manifest.groups[row] or path
            writer.writerow((photo, manifest.labels[row], manifest.splits[row], group))
    return read_manifest(table)


def show(labelled: Labelled, photos: dict[str, Manifest], out: Path) -> None:
    """A sheet of the first pages, a row for each strength."""
    images = [
        Image.fromarray(decode(manifest.image_path(row))).resize((700, 500))
        for manifest in photos.values()
        for row in range(SHOWN)
    ]
    sheet = Image.new("RGB", (SHOWN * 700, len(photos) * 500))
    for index, image in enumerate(images):
        sheet.paste(image, (index % SHOWN * 700, index // SHOWN * 500))
    sheet.save(out / f"{labelled.name}.jpg", quality=85)


def evaluate(
    labelled: Labelled,
    photos: dict[str, Manifest],
    recipe: Recipe,
    network: NetworkSettings,
    out: Path,
    n_seeds: int,
) -> dict[str, list[Predictions]]:
    """Predictions by what was tested on, one for each seed."""

    def cached(manifest: Manifest, name: str) -> FeatureCache:
        path = out / f"{labelled.name}-{name}-{recipe.name}-{recipe.page.clean}.h5"
        page = recipe.page
        extract(
            manifest,
            cache=path,
            network=network,
            page=page,
            work=recipe.extraction,
            recipe=recipe.name,
        )
        return open_cache(path)

    scans = cached(labelled.manifest(), "scans")
    caches = {name: cached(manifest, name) for name, manifest in photos.items()}
    results: dict[str, list[Predictions]] = {"scans": []} | {name: [] for name in photos}
    for seed in range(n_seeds):
        folder = out / "runs" / f"{labelled.name}-{recipe.name}-{recipe.page.clean}-{seed}"
        run = head_run(scans, recipe, labelled.positive, seed, folder)
        results["scans"].append(in_id_order(run.predictions))
        for name, cache in caches.items():
            results[name].append(in_id_order(answers(run, cache)))
    return results


def head_run(cache: FeatureCache, recipe: Recipe, positive: str, seed: int, folder: Path) -> Run:
    """Logistic regression on the recipe's layers, by the folds of a seed."""
    done = sorted(folder.glob("*/metrics.json"))
    if done:
        return open_run(done[0].parent)
    runs = fit_heads(
        cache,
        kinds=("logreg",),
        head=recipe.head,
        evaluation=EvaluationSettings(cv=OUTER_FOLDS, positive=positive, seed=seed),
        out_dir=folder,
        recipe=recipe.name,
    )
    return runs[0]


def answers(run: Run, photos: FeatureCache) -> Predictions:
    """What the run's heads say of the photographs, each fold's of the rows it is tested on."""
    scans = run.predictions
    model = read_model(run)
    places = {Path(path).with_suffix(""): row for row, path in enumerate(photos.paths)}
    at = np.array([places[Path(name).with_suffix("")] for name in scans.ids])
    probabilities = np.empty_like(scans.probabilities)
    for fold, head in enumerate(model.heads):
        mine = np.flatnonzero(scans.folds == fold)
        features = {tap: photos.features(tap)[at[mine]] for tap in head.taps}
        probabilities[mine] = head.probabilities(features)
    return replace(scans, probabilities=probabilities, answers=None)


def rows(name: str, results: dict[str, Sequence[Predictions]], n_bootstrap: int) -> list[str]:
    """The lines of the table for one way, whose first cells are the name."""
    lines = []
    for tested, seeds in results.items():
        means = [f"{mean:.3f} ± {spread:.3f}" for mean, spread in summary(seeds).values()]
        losses = [""] * len(SCORES)
        if tested != "scans":
            losses = differences(results["scans"], seeds, n_bootstrap)
            tested = f"photographs, {tested}"
        lines.append(f"| {name} | {tested} | {' | '.join((*means, *losses))} |")
    return lines


if __name__ == "__main__":
    main()
