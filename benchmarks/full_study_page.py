"""docs/full-study.md, of what `full_study.py` measured; what isn't measured isn't stated.

python benchmarks/full_study_page.py docs/full-study.md [--work full-study]
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jinja2
from full_study import COMPARED, STEPS, Record, Study

Records = dict[str, Record]
WAYS = {
    "fit-paper-linear": ("fixed extractor", "fixed", "0.666"),
    "finetune-all": ("fine-tuning", "finetuned", "0.735"),
}
"""The study's two ways: what they are called, in a file's name too, and their test accuracies."""
FIGURES = {"accuracy_curve": "Training accuracy", "confusion_matrix": "Confusion matrix"}
WHAT = {
    "extract-paper": "the last of its pieces: it was killed on the way (below)",
    "extract-again": "nothing is new, no image is opened",
    "audit": "everything, pixels too",
    "split": "without the copies",
    "extract-clean": "the cache is cut to the clean rows, nothing is computed",
    "extract-ecg": "by the default recipe, in one go",
    "imports": "what no fit can do without",
    "sweep-paper": "132 heads",
    "sweep-ecg": "132 heads",
    "finetune-part": "the whole path on 10,000 pages",
    "finetune-all": "all pages",
    "compare": "four runs",
    "report": "four runs, with the audit",
}
PLANTED = ("train", "test", "copies", "undecodable", "missing")
UNTOLD = {"--weights", "--out", "--figure"}
"""Options left out of a command where it is shown: they only say where something lies."""


def main() -> None:
    parser = argparse.ArgumentParser(description="Write what full_study.py measured as a page.")
    parser.add_argument("page", type=Path)
    parser.add_argument("--work", type=Path, default=Path("full-study"))
    options = parser.parse_args()
    write_page(Study(work=options.work.absolute()), options.page)


def write_page(study: Study, path: Path) -> None:
    """Write the page, and copy its figures beside it, in ``images``."""
    records = {step: study.record(step) for step in STEPS if study.file_of(step).exists()}
    if "synth" not in records:
        sys.exit(f"nothing was measured in {study.work}: run full_study.py first")
    template = Path(__file__).with_name("full-study.md.jinja").read_text()
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True)
    page = environment.from_string(template).render(
        **{f"n_{what}": records["synth"]["result"][f"n_{what}"] for what in PLANTED},
        weights=_weights(records),
        processors=_processors(records),
        versions=_versions(records),
        steps=list(_steps(records)),
        extractions=[
            _against_the_limit(records[step], recipe)
            for step, recipe in (("extract-paper", "paper"), ("extract-ecg", "ecg"))
            if step in records and len(records[step]["ticks"]) > 1
        ],
        faults=_faults(records) if {"audit", "split"} <= set(records) else None,
        **_scores(study, records),
        figures=list(_figures(study, records, path.parent / "images")),
        n_all=records["extract-clean"]["result"]["n_images"] if "extract-clean" in records else 0,
        growth=list(_growth(records)) if "split" in records else [],
    )
    path.write_text(page)


def _weights(records: Records) -> str:
    command = records.get("extract-paper", {}).get("command", "--weights random")
    return "random" if "--weights random" in command else "an ImageNet ResNet-18 of 65.8 % top-1"


def _processors(records: Records) -> str:
    found = {(r["machine"]["processor"], r["machine"]["n_cpus"]) for r in records.values()}
    names = "; ".join(f"{name}, {n_cpus} cores" for name, n_cpus in sorted(found))
    reason = records.get("extract-ecg", {}).get("result", {}).get("precision_reason", "")
    return f"{names} ({reason})" if reason else names


def _versions(records: Records) -> str:
    found = next(iter(records.values()))["versions"]
    return ", ".join(f"{name} {found[name]}" for name in ("python", "torch", "torchvision"))


def _steps(records: Records) -> Iterator[dict[str, str]]:
    """Every command, what it took, and how much memory."""
    for step, record in records.items():
        yield {
            "command": _short(record["command"]),
            "took": _time(record["seconds"]),
            "memory": f"{record['peak_mib']:,.0f} MiB" if "peak_mib" in record else "",
            "what": WHAT.get(step, ""),
        }


def _short(command: str) -> str:
    """A command without what only says where things lie, which is a reader's own."""
    words = command.split()
    kept = [
        word
        for before, word in zip(["", *words], words)
        if word not in UNTOLD and before not in UNTOLD and word != "--force"
    ]
    return " ".join("RUN" if word.startswith("runs/") else word for word in kept)


def _against_the_limit(record: Record, recipe: str) -> dict[str, Any]:
    limits, pieces, startups = record["limits"], [], []
    for number, piece in enumerate(record["pieces"]):
        if len(piece["ticks"]) < 2:
            continue  # too short to have a rate
        (from_s, from_n, _), (to_s, to_n, memory) = piece["ticks"][0], piece["ticks"][-1]
        rate = (to_n - from_n) / (to_s - from_s)
        around = [limit["images_per_s"] for limit in limits[number : number + 2]]
        n_kept = piece.get("n_kept", 0)
        startups.append(from_s - (from_n - n_kept) / rate)
        pieces.append(
            {
                "images": f"{n_kept:,} to {to_n:,}",
                "n": to_n - from_n,
                "rate": rate,
                "limit": _mean(around),
                "share": rate / _mean(around),
                "memory": f"{memory:,.0f} MiB",
            }
        )
    share = sum(one["share"] * one["n"] for one in pieces) / sum(one["n"] for one in pieces)
    limit_ms = 1e3 * _mean([1 / limit["images_per_s"] for limit in limits])
    ends = [piece["ticks"][-1][1] for piece in record["pieces"]]
    return {
        "recipe": recipe,
        "share": share,
        "decoding_ms": 1e3 * _mean([limit["decoding_s"] for limit in limits]),
        "forward_ms": 1e3 * _mean([limit["forward_s"] for limit in limits]),
        "limit_ms": limit_ms,
        "other_ms": limit_ms * (1 / share - 1),
        "startup": " to ".join(dict.fromkeys(f"{f(startups):.1f}" for f in (min, max))),
        "closing_s": record["seconds"] - record["ticks"][-1][0],
        "size": f"{record['result']['size_mib']:,.0f}",
        "lost": [end - piece["n_kept"] for end, piece in zip(ends, record["pieces"][1:])],
        "pieces": pieces,
    }


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def _faults(records: Records) -> dict[str, Any]:
    extracted, split = records["extract-paper"]["result"], records["split"]["result"]
    images = split["images"]
    return {
        "missing": extracted["missing"],
        "undecodable": extracted["quarantined"],
        "same": records["audit"]["n_found_same"],
        "near": records["audit"]["n_found_near"],
        "left_out": ", ".join(f"{n} ({why})" for why, n in split["left_out"].items()),
        "n_train": sum(images["train"].values()),
        "n_test": sum(images["test"].values()),
        "equal": [
            (records[step]["result"]["n_images"], records[step]["n_equal"])
            for step in ("extract-1000", "extract-10000")
            if step in records
        ],
    }


def _scores(study: Study, records: Records) -> dict[str, Any]:
    """The study's accuracies beside ours, and `compare`'s tables."""
    if "compare" not in records:
        return {"published": [], "finetuned": "", "tables": ""}
    runs = {step: study.run_of(step) for step in COMPARED}
    command = [sys.executable, "-m", "ecgfeat.cli", "compare", *runs.values()]
    told = subprocess.run(
        [*command, "--format", "markdown"],
        cwd=study.work,
        check=True,
        capture_output=True,
        text=True,
    )
    found = {one["name"]: one["scores"] for one in records["compare"]["result"]["runs"]}
    published = []
    for step, (way, _, accuracy) in WAYS.items():
        score = found[Path(runs[step]).name]["accuracy"]
        here = f"{score['value']:.3f} [{score['low']:.3f}, {score['high']:.3f}]"
        published.append({"way": way, "study": accuracy, "here": here})
    return {
        "published": published,
        "finetuned": f"Fine-tuning is `{_short(records['finetune-all']['command'])}`.",
        "tables": told.stdout.strip(),
    }


def _figures(study: Study, records: Records, images: Path) -> Iterator[dict[str, str]]:
    images.mkdir(parents=True, exist_ok=True)
    for step, (way, short, _) in WAYS.items():
        for figure, title in FIGURES.items() if step in records else ():
            name = f"study-{short}-{figure.replace('_', '-')}.png"
            shutil.copy(study.work / study.run_of(step) / f"{figure}.png", images / name)
            yield {"title": f"{title}, {way}", "name": name}


def _growth(records: Records) -> Iterator[list[str]]:
    """What a step takes for 1,000, 10,000 and all rows."""
    if "extract-10000" not in records:
        return
    for name, part, whole in (
        ("`extract --recipe paper`", "extract-{}", None),
        ("`fit-head --head linear`, 512 wide", "fit-{}-linear", "fit-paper-linear"),
        ("`fit-head --head logreg`, 512 wide", "fit-{}-logreg", "fit-paper-logreg"),
    ):
        parts = [_cost(records, part.format(n)) for n in (1000, 10000)]
        yield [name, *parts, _cost(records, whole) if whole else _in_pieces(records)]


def _cost(records: Records, step: str) -> str:
    record = records.get(step)
    return f"{_time(record['seconds'])}, {record['peak_mib']:,.0f} MiB" if record else ""


def _in_pieces(records: Records) -> str:
    pieces = records["extract-paper"]["pieces"]
    seconds = sum(piece["seconds"] for piece in pieces)
    peak = max(piece["peak_mib"] for piece in pieces)
    return f"{_time(seconds)} in {len(pieces)} pieces, {peak:,.0f} MiB"


def _time(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 100 else f"{seconds // 60:.0f} min {seconds % 60:.0f} s"


if __name__ == "__main__":
    main()
