"""Extraction against the usual script: images per second, start-up apart, as a ratio.

Both run as whole processes on the same synthetic pages, in turn, several times. The pages are
drawn once into a temporary folder. Usage:

    python benchmarks/extract.py [--images 800] [--rounds 3] [--size 400x300] [--format jpeg]
                                 [--arch resnet18] [--weights PATH] [--precision auto]
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from ecgfeat import synthesize
from ecgfeat.config import SynthSettings
from ecgfeat.runtime import machine, versions

HERE = Path(__file__).parent


def rate(command: list[str]) -> float:
    """Images per second that a command reports on stdout as JSON."""
    done = subprocess.run([sys.executable, *command], check=True, capture_output=True, text=True)
    return float(json.loads(done.stdout)["images_per_s"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=800)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--size", default="400x300")
    parser.add_argument("--format", default="jpeg", choices=["jpeg", "png"])
    parser.add_argument("--arch", default="resnet18")
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--precision", default="auto")
    options = parser.parse_args()

    print(f"machine: {machine()}")
    print(f"versions: {versions()}")
    ours, usual = [], []
    with tempfile.TemporaryDirectory() as folder:
        pages = Path(folder, "pages")
        settings = SynthSettings(
            train=options.images // 2,
            test=options.images - options.images // 2,
            size=options.size,
            format=options.format,
        )
        manifest = synthesize(pages, settings).manifest_path
        weights = str(options.weights) if options.weights else "random"
        for number in range(options.rounds):
            cache = Path(folder, f"cache-{number}")
            common = ["--arch", options.arch]
            ecgfeat = ["-m", "ecgfeat.cli", "extract", str(manifest), "--cache", str(cache)]
            precision = ["--weights", weights, "--precision", options.precision, "--json"]
            ours.append(rate([*ecgfeat, *common, *precision]))
            peer = [str(HERE / "usual_extract.py"), str(manifest), str(Path(folder, "usual.h5"))]
            loaded = ["--weights", weights] if options.weights else []
            usual.append(rate([*peer, *common, *loaded]))
            print(
                f"round {number + 1}: ecgfeat {ours[-1]:.1f} img/s, usual {usual[-1]:.1f} img/s, "
                f"ratio {ours[-1] / usual[-1]:.2f}"
            )
    ratios = [mine / theirs for mine, theirs in zip(ours, usual)]
    print(
        f"{options.size} {options.format}, {options.arch}, {options.precision}: "
        f"median ratio {statistics.median(ratios):.2f} "
        f"({min(ratios):.2f} to {max(ratios):.2f}) over {options.rounds} rounds"
    )


if __name__ == "__main__":
    main()
