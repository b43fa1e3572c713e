"""What recipes make of frozen features: accuracy and AUROC on labelled sets, beside their cost.

    python benchmarks/frozen_recipes.py --weights resnet18.pth --out results \
        --set ludb=ludb-pages/manifest.csv:lvh --set beats=beats.csv::mitbih-beats/data

A set is NAME=DATA[:POSITIVE[:ROOT]]. Every set is extracted by every recipe, and every recipe's
head is tested by grouped 5-fold cross-validation, once per seed. For `paper` that is logistic
regression too, at its best: its C is chosen inside each training part.

chosen     the recipe (and of `paper` C) is chosen inside each training part, by folds of its own
differences  to `paper`, paired: the seeds' mean, with a 95 % bootstrap interval over groups
cost       seconds per 1,000 images of the first set, recipes taking turns

Writes recipes.md and recipes.png into the folder, and goes on where it was after a stop.
"""

from __future__ import annotations

import argparse
import csv
import json
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ecgfeat.config import (
    RECIPES,
    DataSettings,
    EvaluationSettings,
    ExtractionSettings,
    NetworkSettings,
    Recipe,
    SweepSettings,
)
from ecgfeat.extraction import extract
from ecgfeat.feature_cache import open_cache
from ecgfeat.figures.style import COLOURS, RULE, new_panels, save, write_caption
from ecgfeat.heads import fit_heads
from ecgfeat.manifest import Manifest, read_manifest
from ecgfeat.metrics import bootstrap_weights, in_id_order, score_values
from ecgfeat.metrics.scores import scorer
from ecgfeat.predictions import Predictions, join
from ecgfeat.protocol import group_numbers
from ecgfeat.runs import Run, open_run

PENALTIES = "C=0.0001,0.001,0.01,0.1,1"
"""What `paper` may choose from; the other recipes have a C of their own."""
INNER_FOLDS, OUTER_FOLDS = 5, 5
SCORES = ("accuracy", "auroc")
REFERENCE = "paper"
COST_IMAGES, COST_ROUNDS = 300, 3


@dataclass(frozen=True)
class Labelled:
    """A labelled set."""

    name: str
    data: Path
    positive: str
    root: Path | None

    @classmethod
    def parse(cls, text: str) -> Labelled:
        """Read NAME=DATA[:POSITIVE[:ROOT]]."""
        name, _, rest = text.partition("=")
        data, positive, root = (*rest.split(":"), "", "")[:3]
        return cls(name, Path(data), positive, Path(root) if root else None)

    def manifest(self) -> Manifest:
        """Its rows."""
        return read_manifest(self.data, DataSettings(root=self.root))


@dataclass(frozen=True)
class Choice:
    """A recipe's predictions of all rows, and what its training parts said of it."""

    predictions: Predictions
    inner: Mapping[int, float]
    """AUROC on the folds inside each training part, by the part's fold."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--weights", default="imagenet")
    parser.add_argument("--out", type=Path, default=Path("frozen-recipes"))
    parser.add_argument("--set", dest="sets", action="append", type=Labelled.parse, required=True)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--bootstrap", type=int, default=2000)
    args = parser.parse_args()
    network = NetworkSettings(weights=args.weights)
    costs = cost(args.sets[0].manifest(), network, args.out)
    found = {}
    lines = ["| set | recipe | accuracy | AUROC | difference in accuracy | in AUROC |"]
    lines.append("|---|---|---|---|---|---|")
    for labelled in args.sets:
        results = evaluate(labelled, network, args.out, range(args.seeds))
        found[labelled.name] = {name: summary(results[name]) for name in results}
        lines += rows(labelled.name, results, args.bootstrap)
        print("\n".join(lines[-len(results) :]), flush=True)
    lines += ["", "| recipe | seconds per 1,000 images | times paper |", "|---|---|---|"]
    for name, taken in costs.items():
        ratios = np.divide(taken, costs[REFERENCE])
        lines.append(
            f"| `{name}` | {np.median(taken):.1f} | {np.median(ratios):.2f} "
            f"({min(ratios):.2f} to {max(ratios):.2f}) |"
        )
    (args.out / "recipes.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))
    plot(found, {name: float(np.median(taken)) for name, taken in costs.items()}, args.out)


def cost(manifest: Manifest, network: NetworkSettings, out: Path) -> dict[str, list[float]]:
    """Seconds per 1,000 images by recipe, one number a round; kept for the next call."""
    kept = out / "cost.json"
    if kept.exists():
        taken: dict[str, list[float]] = json.loads(kept.read_text())
        return taken
    taken = defaultdict(list)
    for _ in range(COST_ROUNDS):
        for name, recipe in RECIPES.items():
            with tempfile.TemporaryDirectory() as folder:
                few = manifest.limited(COST_IMAGES)
                done = cached(few, network, recipe, Path(folder), recipe.extraction)
                taken[name].append(1000 / done.images_per_s)
    out.mkdir(parents=True, exist_ok=True)
    kept.write_text(json.dumps(taken))
    return taken


def cached(manifest, network, recipe: Recipe, cache: Path, work: ExtractionSettings):
    return extract(
        manifest, cache=cache, network=network, page=recipe.page, work=work, recipe=recipe.name
    )


def evaluate(
    labelled: Labelled, network: NetworkSettings, out: Path, seeds: Iterable[int]
) -> dict[str, list[Predictions]]:
    """Predictions of every row by recipe, one for each seed; and by the recipe chosen."""
    manifest = labelled.manifest()
    results: dict[str, list[Predictions]] = defaultdict(list)
    for seed in seeds:
        choices = {}
        for name, recipe in RECIPES.items():
            cache = out / f"{labelled.name}-{name}.h5"
            cached(manifest, network, recipe, cache, recipe.extraction)
            folder = out / "runs" / f"{labelled.name}-{name}-{seed}"
            run = head_run(cache, recipe, labelled.positive, seed, folder)
            choices[name] = Choice(in_id_order(run.predictions), inner_scores(run))
            results[name].append(choices[name].predictions)
        results["chosen"].append(chosen(choices))
    return dict(results)


def head_run(cache: Path, recipe: Recipe, positive: str, seed: int, folder: Path) -> Run:
    """Logistic regression on the recipe's layers, judged inside each training part as well."""
    done = sorted(folder.glob("*/metrics.json"))
    if done:
        return open_run(done[0].parent)
    grid = PENALTIES if recipe.name == REFERENCE else f"C={recipe.head.C}"
    runs = fit_heads(
        open_cache(cache),
        kinds=("logreg",),
        head=recipe.head,
        sweep=SweepSettings(grid=(grid,), folds=INNER_FOLDS),
        evaluation=EvaluationSettings(cv=OUTER_FOLDS, positive=positive, seed=seed),
        out_dir=folder,
        recipe=recipe.name,
    )
    return runs[0]


def inner_scores(run: Run) -> dict[int, float]:
    """The chosen candidate's AUROC inside each training part."""
    with (run.path / "sweep.csv").open(newline="", encoding="utf-8") as file:
        return {
            int(row["fold"]): float(row["auroc"])
            for row in csv.DictReader(file)
            if row["chosen"] == "True"
        }


def chosen(choices: Mapping[str, Choice]) -> Predictions:
    """Each fold's rows as the recipe predicts them that did best inside its training part."""
    first = next(iter(choices.values()))
    parts = []
    for fold in first.inner:
        best = max(choices.values(), key=lambda choice, fold=fold: choice.inner[fold])
        assert np.array_equal(best.predictions.folds, first.predictions.folds)
        parts.append(best.predictions.take(np.flatnonzero(best.predictions.folds == fold)))
    return in_id_order(join(parts))


def summary(seeds: Sequence[Predictions]) -> dict[str, tuple[float, float]]:
    """Mean and standard deviation over the seeds."""
    values = [score_values(predictions) for predictions in seeds]
    return {
        score: (float(np.mean(found)), float(np.std(found)))
        for score in SCORES
        for found in [[value[score] for value in values]]
    }


def rows(name: str, results: Mapping[str, Sequence[Predictions]], n_bootstrap: int) -> list[str]:
    """The set's lines of the table."""
    lines = []
    for recipe, seeds in results.items():
        means = [f"{mean:.3f} ± {spread:.3f}" for mean, spread in summary(seeds).values()]
        gains = ["", ""]
        if recipe != REFERENCE:
            gains = differences(seeds, results[REFERENCE], n_bootstrap)
        lines.append(f"| {name} | `{recipe}` | {' | '.join((*means, *gains))} |")
    return lines


def differences(
    seeds: Sequence[Predictions], others: Sequence[Predictions], n_bootstrap: int
) -> list[str]:
    """The mean over the seeds of score minus score, each with its 95 % interval."""
    first = seeds[0]
    assert all(other.ids == first.ids for other in (*seeds, *others))
    units = group_numbers(first.ids, first.groups)
    score, reference = ([scorer(found) for found in part] for part in (seeds, others))

    def mean_difference(weights: np.ndarray) -> dict[str, np.ndarray]:
        ours, theirs = ([one(weights) for one in part] for part in (score, reference))
        return {
            name: np.mean([a[name] - b[name] for a, b in zip(ours, theirs)], axis=0)
            for name in SCORES
        }

    exact = mean_difference(np.ones((1, len(units))))
    drawn = [mean_difference(weights) for weights in bootstrap_weights(units, n_bootstrap, seed=0)]
    texts = []
    for name in SCORES:
        low, high = np.nanpercentile(np.concatenate([part[name] for part in drawn]), (2.5, 97.5))
        texts.append(f"{exact[name][0]:+.3f} [{low:+.3f}, {high:+.3f}]")
    return texts


def plot(
    found: Mapping[str, Mapping[str, Mapping[str, tuple[float, float]]]],
    costs: Mapping[str, float],
    out: Path,
) -> None:
    """Draw each set's scores as dots, one for each recipe, with what the recipe costs."""
    order = sorted(costs, key=costs.__getitem__)
    figure, panels = new_panels(10.0, 1.9 + 0.45 * len(found), "", len(SCORES))
    rows = np.arange(len(found))
    for axes, score in zip(panels, SCORES):
        for number, (recipe, colour) in enumerate(zip(order, COLOURS)):
            means, spreads = zip(*(results[recipe][score] for results in found.values()))
            axes.errorbar(
                means,
                rows + 0.16 * (number - (len(order) - 1) / 2),
                xerr=spreads,
                color=colour,
                marker="o",
                markersize=5,
                linestyle="none",
                label=f"{recipe}: {costs[recipe]:.1f} s per 1,000 images",
            )
        axes.set_title({"auroc": "AUROC"}.get(score, score.capitalize()), fontsize=10)
        axes.grid(axis="x", color=RULE)
        axes.set_ylim(len(found) - 0.5, -0.5)
    panels[0].set_yticks(rows, list(found))
    figure.legend(
        *panels[0].get_legend_handles_labels(),
        loc="outside upper left",
        ncols=len(order),
        frameon=False,
        fontsize=9,
    )
    write_caption(figure, "Means over seeds of grouped 5-fold cross-validation, ± their spread.")
    save(figure, out / "recipes.png")


if __name__ == "__main__":
    main()
