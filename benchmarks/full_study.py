"""The study at its full size, every command over it, each measured: resumable, hours on two cores.

    python benchmarks/full_study.py --weights resnet18.pth [--work full-study] [STEP ...]

Draws 65,600 training and 18,136 test pages, with 200 copies of training pages among the test pages,
40 undecodable files and 1,200 rows of missing ones, and goes the whole way with them, each step as
its user would. What a step took is kept in WORK/steps/STEP.json; a step that is there isn't run
again, so that the whole may be stopped at any time: the same command goes on with the step that was
stopped, from its beginning. `full_study_page.py` writes what is there as a page.

The limit, which extraction is held to, is measured before it, after it and wherever it was killed:
1 / (decoding's CPU seconds / cores + the forward pass's seconds), nothing else running.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ecgfeat.runtime import machine, versions

N_COPIES, N_UNDECODABLE, N_MISSING = 200, 40, 1200
PARTS = (1_000, 10_000)
"""Rows of the small sets, by which each step's growth is seen."""
COUNT = re.compile(r"(\d+)/(\d+) ")
Record = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Study:
    """Where it is done, and how much of it."""

    work: Path
    weights: Path | None = None
    n_train: int = 65_600
    n_test: int = 18_136
    n_kills: int = 10
    n_epochs: int = 5

    @property
    def network(self) -> list[str]:
        """What says which weights."""
        return ["--weights", str(self.weights or "random")]

    def run_of(self, step: str) -> str:
        """The folder of the one run that a step made."""
        (folder,) = (self.work / "runs" / step).iterdir()
        return str(folder.relative_to(self.work))

    def file_of(self, step: str) -> Path:
        """Where what a step took is kept."""
        return self.work / "steps" / f"{step}.json"

    def record(self, step: str) -> Record:
        """What a finished step left."""
        found: Record = json.loads(self.file_of(step).read_text())
        return found


def measured(study: Study, arguments: Sequence[str], *, kill_at: int = 0) -> Record:
    """Run one command of ecgfeat; with `kill_at`, kill it once so many images are done."""
    command = [sys.executable, "-m", "ecgfeat.cli", *arguments, "--json"]
    began, ticks = time.monotonic(), []
    with (study.work / "output.json").open("w+") as output:
        process = subprocess.Popen(
            command, cwd=study.work, stdout=output, stderr=subprocess.PIPE, text=True
        )
        assert process.stderr is not None
        log = []
        for line in process.stderr:
            log.append(line.rstrip())
            if found := COUNT.search(line):
                done = int(found[1])
                ticks.append((round(time.monotonic() - began, 2), done, resident_mib(process.pid)))
                if kill_at and done >= kill_at:
                    process.send_signal(signal.SIGKILL)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        output.seek(0)
        text = output.read()
    print("\n".join(f"    {line}" for line in log[-3:]), flush=True)
    is_as_meant = process.returncode == -signal.SIGKILL if kill_at else text.strip()
    if not is_as_meant:
        sys.exit(
            f"{shlex.join(command)}\nended with {process.returncode}:\n" + "\n".join(log[-40:])
        )
    return {
        "command": f"ecgfeat {shlex.join(arguments)}",
        "seconds": time.monotonic() - began,
        "peak_mib": usage.ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10),
        "ticks": ticks,
        "result": json.loads(text) if text.strip() else None,
        "log": log[-40:],
    }


def resident_mib(pid: int) -> float:
    """Memory that a process has now; 0 where the system doesn't say."""
    status = Path(f"/proc/{pid}/status")
    for line in status.read_text().splitlines() if status.exists() else ():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) / 1024
    return 0.0


def apart(study: Study, function: str, *arguments: str) -> Any:
    """What one of `APART` gives in a process of its own, lest its memory count as this one's."""
    command = [sys.executable, __file__, "--work", str(study.work)]
    command += ["--weights", str(study.weights)] if study.weights else []
    done = subprocess.run(
        [*command, "--apart", function, *arguments], check=True, stdout=subprocess.PIPE, text=True
    )
    return json.loads(done.stdout)


def limit(study: Study, recipe: str, n_images: int = 400) -> dict[str, float]:
    """Seconds of decoding and of the forward pass alone, and the images a second they allow."""
    import extract as parts

    from ecgfeat.backbones import Backbone, load_weights
    from ecgfeat.config import RECIPES, ComputeSettings, DataSettings, NetworkSettings
    from ecgfeat.manifest import read_manifest
    from ecgfeat.preprocessing import EXACT_RESAMPLING, FAST_RESAMPLING, Preprocessing
    from ecgfeat.runtime import n_cpus, resolve_compute

    chosen = RECIPES[recipe]
    manifest = read_manifest(study.work / "pages/manifest.csv", DataSettings(limit=n_images))
    compute = resolve_compute(ComputeSettings(), purpose="extract")
    resampling = EXACT_RESAMPLING if compute.precision == "fp32" else FAST_RESAMPLING
    preprocessing = Preprocessing.from_settings(chosen.page, resampling=resampling)
    weights = load_weights(NetworkSettings(weights=str(study.weights or "random")))
    taps = chosen.extraction.taps
    decoding_s = parts.decoding_s(manifest, preprocessing)
    forward_s = min(
        parts.forward_s(Backbone(weights, preprocessing, compute, taps=taps), size, recipe=recipe)
        for size in parts.BATCH_SIZES[1:3]
    )
    whole_s = decoding_s / n_cpus() + forward_s
    return {"decoding_s": decoding_s, "forward_s": forward_s, "images_per_s": 1 / whole_s}


def synth(study: Study) -> Record:
    sizes = ["--train", str(study.n_train), "--test", str(study.n_test)]
    planted = ["--copies", str(N_COPIES), "--undecodable", str(N_UNDECODABLE)]
    planted += ["--missing", str(N_MISSING)]
    shutil.rmtree(study.work / "pages", ignore_errors=True)
    shown = ["synth", "pages", *sizes, "--difficulty", "hard", "--seed", "1", *planted]
    done = measured(study, shown)
    images = (study.work / "pages/images").iterdir()
    return done | {"size_mib": sum(file.stat().st_size for file in images) / 2**20}


def extract_killed(study: Study) -> Record:
    """By the study's recipe, killed on the way, the limit measured in between."""
    arguments = ["extract", "pages/manifest.csv", "--recipe", "paper", "--cache", "paper.h5"]
    arguments += study.network
    chance = random.Random(1)
    n_images = study.n_train + study.n_test
    remove_cache(study.work / "paper.h5")
    limits, pieces = [apart(study, "limit", "paper")], []
    for number in range(study.n_kills + 1):
        share = (number + chance.uniform(0.5, 1.0)) / (study.n_kills + 1)
        kill_at = int(share * n_images) if number < study.n_kills else 0
        n_kept = apart(study, "rows_in_parts", "paper.h5")
        pieces.append(measured(study, arguments, kill_at=kill_at) | {"n_kept": n_kept})
        limits.append(apart(study, "limit", "paper"))
    return pieces[-1] | {"pieces": pieces, "limits": limits}


def rows_in_parts(study: Study, cache: str) -> int:
    """Images that a killed extraction has left."""
    from ecgfeat import open_cache
    from ecgfeat.feature_cache import part_paths

    return sum(len(open_cache(part)) for part in part_paths(study.work / cache))


def remove_cache(cache: Path) -> None:
    """A cache and its parts, which an extraction would go on with."""
    cache.unlink(missing_ok=True)
    shutil.rmtree(f"{cache}.parts", ignore_errors=True)


def extract_whole(study: Study) -> Record:
    """By the default recipe, in one go."""
    arguments = ["extract", "clean.csv", "--root", "pages", "--cache", "ecg.h5", *study.network]
    remove_cache(study.work / "ecg.h5")
    before = apart(study, "limit", "ecg")
    done = measured(study, arguments)
    return done | {"pieces": [done], "limits": [before, apart(study, "limit", "ecg")]}


def again(study: Study) -> Record:
    """Nothing is new."""
    arguments = ["extract", "pages/manifest.csv", "--recipe", "paper", "--cache", "paper.h5"]
    return measured(study, [*arguments, *study.network])


def audit(study: Study) -> Record:
    shutil.rmtree(study.work / "audits", ignore_errors=True)
    (study.work / "paper-audit.npz").unlink(missing_ok=True)
    done = measured(study, ["audit", "paper.h5"])
    found = {
        name: set(copies_in(study.work / f"audits/paper/{name}.csv"))
        for name in ("same-images", "near-copies")
    }
    return done | {
        "n_found_same": len(found["same-images"]),
        "n_found_near": len(found["near-copies"] - found["same-images"]),
    }


def copies_in(listing: Path) -> Iterator[str]:
    """Planted copies that a list of the audit names."""
    for row in csv.DictReader(listing.open()) if listing.exists() else ():
        yield from (cell for cell in row.values() if cell and "copy-of-" in cell)


def split(study: Study) -> Record:
    kept = ["--keep-split", "--audit", "audits/paper", "--out", "clean.csv", "--force"]
    return measured(study, ["split", "paper.h5", *kept])


def extract_clean(study: Study) -> Record:
    arguments = ["extract", "clean.csv", "--root", "pages", "--recipe", "paper"]
    return measured(study, [*arguments, "--cache", "paper.h5", *study.network])


def extract_part(study: Study, n_rows: int) -> Record:
    """So many rows, drawn by chance, in a cache of their own, held against the whole one."""
    with (study.work / "clean.csv").open() as file:
        rows = list(csv.DictReader(file))
    chosen = random.Random(2).sample(range(len(rows)), min(n_rows, len(rows)))
    listing = study.work / f"part-{n_rows}.csv"
    with listing.open("w", newline="") as file:
        table = csv.DictWriter(file, fieldnames=tuple(rows[0]))
        table.writeheader()
        table.writerows(rows[index] for index in sorted(chosen))
    cache = f"paper-{n_rows}.h5"
    remove_cache(study.work / cache)
    arguments = ["extract", listing.name, "--root", "pages", "--recipe", "paper"]
    done = measured(study, [*arguments, "--cache", cache, *study.network])
    return done | {"n_equal": apart(study, "n_equal", cache, "paper.h5")}


def n_equal(study: Study, part: str, whole: str) -> int:
    """Rows of one cache whose features are those of another, bit for bit."""
    from ecgfeat import open_cache

    one, other = open_cache(study.work / part), open_cache(study.work / whole)
    row_of = {path: row for row, path in enumerate(other.paths)}
    rows = [row_of[path] for path in one.paths]
    same = None
    for tap in one.header.taps:
        equal = (one.features([tap]) == other.features([tap])[rows]).all(axis=1)
        same = equal if same is None else same & equal
    return 0 if same is None else int(same.sum())


def imports(study: Study) -> Record:
    """What a fit can't do without: a process that only imports it."""
    began = time.monotonic()
    subprocess.run([sys.executable, "-c", "import torch, sklearn.linear_model"], check=True)
    return {"command": "python -c 'import torch, sklearn.linear_model'"} | {
        "seconds": time.monotonic() - began
    }


def fit(study: Study, name: str, cache: str, *more: str) -> Record:
    shutil.rmtree(study.work / "runs" / name, ignore_errors=True)
    return measured(study, ["fit-head", cache, *more, "--out", f"runs/{name}"])


def finetune(study: Study, name: str, listing: str, *more: str) -> Record:
    """By the study's recipe."""
    shutil.rmtree(study.work / "runs" / name, ignore_errors=True)
    arguments = ["finetune", listing, "--root", "pages", "--recipe", "paper", *study.network]
    return measured(study, [*arguments, *more, "--out", f"runs/{name}"])


COMPARED = ("fit-paper-linear", "fit-paper-logreg", "fit-ecg-logreg", "finetune-all")


def compare(study: Study) -> Record:
    runs = [study.run_of(step) for step in COMPARED]
    return measured(study, ["compare", *runs, "--figure", "comparison.png", "--force"])


def report(study: Study) -> Record:
    runs = [study.run_of(step) for step in COMPARED]
    arguments = ["report", *runs, "--audit", "audits/paper", "--out", "report.html", "--force"]
    done = measured(study, [*arguments, *study.network])
    return done | {"size_mib": (study.work / "report.html").stat().st_size / 2**20}


def fits() -> dict[str, Callable[[Study], Record]]:
    """Both heads and the default sweep, at both widths and for growing numbers of rows."""
    found: dict[str, Callable[[Study], Record]] = {}

    def add(name: str, cache: str, *more: str) -> None:
        found[name] = lambda study: fit(study, name, cache, *more)

    for recipe in ("paper", "ecg"):
        for head in ("linear", "logreg"):
            add(f"fit-{recipe}-{head}", f"{recipe}.h5", "--head", head)
        add(f"fit-{recipe}-both", f"{recipe}.h5", "--head", "both")
        add(f"sweep-{recipe}", f"{recipe}.h5", "--head", "both", "--sweep", "default")
    for n_rows in PARTS:
        for head in ("linear", "logreg"):
            add(f"fit-{n_rows}-{head}", f"paper-{n_rows}.h5", "--head", head)
    return found


STEPS: dict[str, Callable[[Study], Record]] = {
    "synth": synth,
    "extract-paper": extract_killed,
    "extract-again": again,
    "audit": audit,
    "split": split,
    "extract-clean": extract_clean,
    **{f"extract-{n}": lambda study, n=n: extract_part(study, n) for n in PARTS},
    "imports": imports,
    **{name: step for name, step in fits().items() if "ecg" not in name},
    "extract-ecg": extract_whole,
    **{name: step for name, step in fits().items() if "ecg" in name},
    "finetune-part": lambda study: finetune(study, "finetune-part", f"part-{PARTS[-1]}.csv"),
    "finetune-all": lambda study: finetune(
        study, "finetune-all", "clean.csv", "--epochs", str(study.n_epochs)
    ),
    "compare": compare,
    "report": report,
}


APART: dict[str, Callable[..., Any]] = {
    "limit": limit,
    "rows_in_parts": rows_in_parts,
    "n_equal": n_equal,
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("steps", nargs="*", metavar="STEP", help=", ".join(STEPS))
    parser.add_argument("--work", type=Path, default=Path("full-study"))
    parser.add_argument("--weights", type=lambda text: Path(text).absolute())
    parser.add_argument("--train", type=int, default=Study.n_train, help="for a small trial")
    parser.add_argument("--test", type=int, default=Study.n_test, help="for a small trial")
    parser.add_argument("--kills", type=int, default=Study.n_kills)
    parser.add_argument(
        "--epochs", type=int, default=Study.n_epochs, help="of the fine-tuning on all pages"
    )
    parser.add_argument("--apart", choices=APART, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if not options.apart and (unknown := set(options.steps) - set(STEPS)):
        parser.error(f"there is no step {', '.join(unknown)}; there are {', '.join(STEPS)}")
    study = Study(
        work=options.work.absolute(),
        weights=options.weights,
        n_train=options.train,
        n_test=options.test,
        n_kills=options.kills,
        n_epochs=options.epochs,
    )
    if options.apart:
        print(json.dumps(APART[options.apart](study, *options.steps)))
    else:
        for step in options.steps or STEPS:
            run(study, step)


def run(study: Study, step: str) -> None:
    """One step, unless it was done before."""
    file = study.file_of(step)
    if file.exists():
        print(f"{step}: done before")
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    print(f"{step} …", flush=True)
    record = STEPS[step](study) | {"machine": machine(), "versions": versions()}
    aside = file.with_suffix(".part")
    aside.write_text(json.dumps(record, indent=1))
    aside.replace(file)
    print(f"{step}: {record['seconds']:.1f} s", flush=True)


if __name__ == "__main__":
    main()
