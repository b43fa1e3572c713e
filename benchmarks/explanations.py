"""Does the explanation point at what tells the classes apart? A sign is planted in one lead.

Synthetic pages of twelve leads (3×4 and a rhythm strip) are drawn of one kind of heart; half of
them get a small wave in one lead and nowhere else. The default recipe's head is fitted, and every
test page with the sign is explained. The sign's lead should have the largest share of all that
speaks for the class; each lead's place on the page is known from its drawing.

    python benchmarks/explanations.py --weights resnet18.pth
"""

from __future__ import annotations

import argparse
import csv
import tempfile
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np

import ecgfeat
from ecgfeat.attribution import Explainer
from ecgfeat.config import RECIPES, DataSettings, NetworkSettings
from ecgfeat.feature_cache import open_cache
from ecgfeat.runtime import machine, versions
from ecgfeat.synth.dataset import LEVELS, _plan
from ecgfeat.synth.heart import CLASSES, LEADS, SAMPLES_PER_S, record
from ecgfeat.synth.page import LAYOUTS, _Plan, draw

SIZE_PX = (560, 420)
LAYOUT = "3x4+1"
SIGN_MV, WIDTH_S, PERIOD_S = 0.6, 0.04, 0.7
Box = tuple[float, float, float, float]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weights", default="imagenet")
    parser.add_argument("--pages", type=int, default=200)
    parser.add_argument("--leads", default=",".join(LEADS))
    parser.add_argument("--recipe", default="ecg", choices=RECIPES)
    given = parser.parse_args()
    print(machine(), versions())
    print(f"{given.pages} pages of {SIZE_PX}, a wave of {SIGN_MV} mV in one lead of half of them")
    print("lead   accuracy   largest share   its mean share   by area   likeness to random")
    for lead in given.leads.split(","):
        with tempfile.TemporaryDirectory() as folder:
            print(one_lead(Path(folder), lead, given.pages, given.weights, given.recipe))


def one_lead(folder: Path, lead: str, n_pages: int, weights: str, recipe_name: str) -> str:
    boxes = plant(folder, lead, n_pages)
    recipe = RECIPES[recipe_name]
    cache = ecgfeat.extract(
        ecgfeat.read_manifest(folder / "pages.csv", DataSettings()),
        cache=folder,
        page=recipe.page,
        network=NetworkSettings(weights=weights),
        work=recipe.extraction,
        recipe=recipe_name,
    ).cache
    (run,) = ecgfeat.fit_heads(open_cache(cache), kinds="logreg", head=recipe.head, out_dir=folder)
    explainer = Explainer(run)
    said = run.predictions
    shares, likeness = [], []
    for path, target in zip(said.ids, said.targets):
        if said.classes[target] == "sign":
            found = explainer.explain(folder / path, label="sign")
            of_leads: Counter[str] = Counter()
            for name, box in boxes[path].items():
                of_leads[name.removeprefix("strip of ")] += found.share_in(box)
            shares.append(of_leads)
            likeness.append(found.likeness_to_random)
    largest = np.mean([max(one, key=one.__getitem__) == lead for one in shares])
    mean = np.mean([one[lead] for one in shares])
    area = np.prod(np.subtract(boxes[said.ids[0]][lead][2:], boxes[said.ids[0]][lead][:2]))
    return (
        f"{lead:6} {run.metrics['scores']['accuracy']['value']:8.3f} {largest:15.2f} {mean:16.3f} "
        f"{area / np.prod(SIZE_PX):9.3f} {np.mean(likeness):20.3f}"
    )


def plant(folder: Path, lead: str, n_pages: int) -> dict[str, dict[str, Box]]:
    """Draw the pages and their manifest; where each lead lies on each page."""
    rows, boxes = [], {}
    for number in range(n_pages):
        seeds = np.random.SeedSequence(number).spawn(3)
        page = _plan(CLASSES[0], seeds[0], seeds[1], LEVELS["easy"])
        style = replace(page.style, layout=LAYOUT, rotation_deg=0.0)
        rng = np.random.default_rng(seeds[2])
        signal = record(page.subject, page.condition, page.disturbance, rng)
        label = ("plain", "sign")[number % 2]
        if label == "sign":
            signal[LEADS.index(lead)] += waves(signal.shape[1], rng.uniform(0, PERIOD_S))
        plan = _Plan(style, SIZE_PX)
        path = f"{number:04d}.png"
        draw(signal, style, SIZE_PX).save(folder / path)
        boxes[path] = lead_boxes(plan)
        split = "test" if number % 5 in (3, 4) else "train"
        rows.append({"path": path, "label": label, "split": split})
    with (folder / "pages.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, fieldnames=list(rows[0]))
        table.writeheader()
        table.writerows(rows)
    return boxes


def waves(n_samples: int, start_s: float) -> np.ndarray:
    t = np.arange(n_samples) / SAMPLES_PER_S
    away_s = (t - start_s + PERIOD_S / 2) % PERIOD_S - PERIOD_S / 2
    return (SIGN_MV * np.exp(-0.5 * (away_s / WIDTH_S) ** 2)).astype(np.float32)


def lead_boxes(plan: _Plan) -> dict[str, Box]:
    """Left, top, right and bottom in pixels of each lead's part; a strip by its row."""
    boxes: dict[str, Box] = {}
    height = plan.row_mm * plan.scale
    for row, leads in enumerate(LAYOUTS[LAYOUT].rows):
        top = plan.baselines_px[row] - 0.55 * height
        for column, name in enumerate(leads):
            box = (plan.column_px(row, column), top, plan.column_px(row, column + 1), top + height)
            boxes[name if len(leads) > 1 else f"strip of {name}"] = box
    return boxes


if __name__ == "__main__":
    main()
