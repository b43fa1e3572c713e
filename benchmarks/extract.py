"""Extraction measured: against the usual script, and against the machine's limit.

    python benchmarks/extract.py [SECTION ...] [--weights PATH] [--arch resnet18] …

| section     | what it measures                                                                  |
|-------------|-----------------------------------------------------------------------------------|
| `peer`      | images per second against `usual_extract.py`, in turn, for each of `--kinds`      |
| `limit`     | share of 1 / (decoding's CPU seconds / cores + the forward pass's seconds)        |
| `scaling`   | images per second and peak memory for each of `--counts`                          |
| `layers`    | what pooling all four layers costs, against layer4 alone                          |
| `startup`   | `extract` of one image, beyond importing torch and torchvision                    |
| `help`      | `ecgfeat --help` against the help of an empty Typer app                           |
| `unchanged` | a second `extract` of `--rows` unchanged images                                   |

Without a section, all but `scaling` run, in a few minutes. A few synthetic pages are drawn and
linked under as many names as there are to be images. Rates leave start-up out; ratios are of
rounds in turn. `--weights` takes a state dict; random weights are as fast.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from ecgfeat import extract, read_manifest, synthesize
from ecgfeat.backbones import Backbone, load_weights
from ecgfeat.config import (
    RECIPES,
    ComputeSettings,
    DataSettings,
    ExtractionSettings,
    NetworkSettings,
    PageSettings,
    SynthSettings,
)
from ecgfeat.images import stream
from ecgfeat.manifest import Manifest
from ecgfeat.preprocessing import EXACT_RESAMPLING, FAST_RESAMPLING, Preprocessing
from ecgfeat.runtime import Compute, machine, n_cpus, resolve_compute, versions

HERE = Path(__file__).parent
N_DRAWN = 60
BATCH_SIZES = (2, 4, 8, 16)

Options = argparse.Namespace


def draw(folder: Path, kind: str, n_images: int) -> Path:
    """The CSV of `n_images` pages of a kind such as ``400x300.jpeg``, few of which differ."""
    size, _, image_format = kind.partition(".")
    n_drawn = min(N_DRAWN, n_images)
    settings = SynthSettings(
        train=n_drawn - n_drawn // 2, test=n_drawn // 2, size=size, format=image_format
    )
    drawn = synthesize(folder / "drawn", settings).manifest_path
    header, *rows = drawn.read_text().splitlines()
    (folder / "pages").mkdir()
    lines = ["path,label,split"]
    for number in range(n_images):
        fields = dict(zip(header.split(","), rows[number % len(rows)].split(",")))
        name = f"pages/{number:06d}{Path(fields['path']).suffix}"
        os.link(drawn.parent / fields["path"], folder / name)
        lines.append(f"{name},{fields['label']},{fields['split']}")
    listing = folder / "pages.csv"
    listing.write_text("\n".join(lines) + "\n")
    return listing


def run_json(command: list[str]) -> dict[str, float]:
    """What a Python program reports on stdout as JSON."""
    done = subprocess.run([sys.executable, *command], check=True, capture_output=True, text=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def extract_command(listing: Path, cache: Path, options: Options, *more: str) -> list[str]:
    """The command line of ``ecgfeat extract``, for Python."""
    # The usual script's page and layers.
    network = ["--recipe", "paper", "--arch", options.arch]
    network += ["--weights", str(options.weights or "random")]
    compute = ["--precision", options.precision]
    command = ["-m", "ecgfeat.cli", "extract", str(listing), "--cache", str(cache), "--json"]
    return [*command, *network, *compute, *more]


def spread(values: list[float], form: str = ".2f") -> str:
    """The median, and from where to where."""
    middle = statistics.median(values)
    return f"{middle:{form}} ({min(values):{form}} to {max(values):{form}})"


def peer(options: Options) -> None:
    for kind in options.kinds:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            listing = draw(folder, kind, options.images)
            usual = [str(HERE / "usual_extract.py"), str(listing), str(folder / "usual.h5")]
            usual += ["--arch", options.arch]
            usual += ["--weights", str(options.weights)] if options.weights else []
            ratios, ours, theirs = [], [], []
            for number in range(options.rounds):
                command = extract_command(listing, folder / f"cache-{number}", options)
                ours.append(run_json(command)["images_per_s"])
                theirs.append(run_json(usual)["images_per_s"])
                ratios.append(ours[-1] / theirs[-1])
            print(
                f"peer, {kind}, {options.arch}, {options.precision}: {spread(ratios)} times the "
                f"usual script; {spread(ours, '.1f')} against {spread(theirs, '.1f')} img/s"
            )


def limit(options: Options) -> None:
    for kind in options.kinds:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            manifest = read_manifest(draw(folder, kind, options.images), DataSettings())
            compute = resolve_compute(
                ComputeSettings(precision=options.precision), purpose="extract"
            )
            preprocessing = Preprocessing.from_settings(
                RECIPES["paper"].page,
                resampling=EXACT_RESAMPLING if compute.precision == "fp32" else FAST_RESAMPLING,
            )
            network = NetworkSettings(arch=options.arch, weights=str(options.weights or "random"))
            weights = load_weights(network)
            backbones = {
                size: Backbone(weights, preprocessing, compute, batch_size=size)
                for size in BATCH_SIZES
            }
            shares, decoding, forward, whole = [], [], [], []
            for number in range(options.rounds):
                decoding.append(decoding_s(manifest, preprocessing))
                forward.append(min(forward_s(item, size) for size, item in backbones.items()))
                done = extract(
                    manifest,
                    cache=folder / f"cache-{number}",
                    network=network,
                    compute=ComputeSettings(precision=compute.precision),
                )
                whole.append(done.images_per_s)
                shares.append(whole[-1] * (decoding[-1] / n_cpus() + forward[-1]))
            print(
                f"limit, {kind}, {options.arch}, {compute.precision}: {spread(shares)} of the "
                f"machine's limit; decoding {spread([1e3 * s for s in decoding])} ms of CPU, "
                f"forward {spread([1e3 * s for s in forward])} ms, whole {spread(whole, '.1f')} "
                "img/s"
            )


def decoding_s(manifest: Manifest, preprocessing: Preprocessing) -> float:
    """CPU seconds per image to read, decode and resize, nothing else running."""
    n_images = len(manifest)
    rows = [list(range(start, min(start + 4, n_images))) for start in range(0, n_images, 4)]
    best = float("inf")
    for threads in (1, n_cpus()):
        started = time.process_time()
        for _ in stream(manifest.image_paths(), rows, preprocessing, threads=threads):
            pass
        best = min(best, time.process_time() - started)
    return best / n_images


def forward_s(
    backbone: Backbone, batch_size: int, n_images: int = 160, recipe: str = "paper"
) -> float:
    """Seconds per image of the forward pass, all lanes at work, nothing else running."""
    page = RECIPES[recipe].page
    pixels = random_pixels(batch_size, page.width_px, page.height_px)
    n_batches = max(n_images // batch_size, 1)
    with backbone.lanes() as lanes:
        for pending in [lanes.start(pixels) for _ in range(lanes.n_lanes)]:
            pending.result()
        started = time.perf_counter()
        for pending in [lanes.start(pixels) for _ in range(n_batches)]:
            pending.result()
        return (time.perf_counter() - started) / (n_batches * batch_size)


def random_pixels(n_images: int, width: int, height: int) -> NDArray[np.uint8]:
    shape = n_images, height, width, 3
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def scaling(options: Options) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for count in options.counts:
            (folder / str(count)).mkdir()
            listing = draw(folder / str(count), options.kinds[0], count)
            done = run_json(extract_command(listing, folder / f"cache-{count}", options))
            print(
                f"scaling, {options.kinds[0]}: {count} images, {done['images_per_s']:.1f} img/s, "
                f"peak memory {done['peak_memory_mib']:.0f} MiB",
                flush=True,
            )


class LastPool(torch.nn.Module):
    """A trunk that pools layer4 alone."""

    def __init__(self, trunk: torch.nn.Module) -> None:
        super().__init__()
        self.trunk = trunk

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """The pool of layer4, shape (b, 512)."""
        maps = self.trunk.stem(images)
        for layer in self.trunk.layers.values():
            maps = layer(maps)
        return {"layer4": maps.mean((2, 3), dtype=torch.float32)}


def layers(options: Options) -> None:
    compute = resolve_compute(ComputeSettings(precision=options.precision), purpose="extract")
    weights = load_weights(
        NetworkSettings(arch=options.arch, weights=str(options.weights or "random"))
    )
    four, one = (make_backbone(weights, compute) for _ in range(2))
    one._engine._trunk = LastPool(one._engine._trunk)
    overheads = [
        100 * (forward_s(four, 4) / forward_s(one, 4) - 1) for _ in range(5 * options.rounds)
    ]
    print(
        f"layers, {options.arch}, {compute.precision}: four pools take {spread(overheads, '.1f')} "
        "% longer than layer4's alone"
    )


def make_backbone(weights: object, compute: Compute) -> Backbone:
    return Backbone(weights, Preprocessing.from_settings(RECIPES["paper"].page), compute)


def startup(options: Options) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        listing = draw(folder, "400x300.jpeg", 4)
        imports, whole = [], []
        for number in range(5 * options.rounds):
            imports.append(seconds(["-c", "import torch, torchvision"]))
            command = extract_command(listing, folder / f"cache-{number}", options, "--limit", "1")
            whole.append(seconds(command))
    beyond = [total - part for total, part in zip(whole, imports)]
    print(
        f"startup: extract of one image takes {spread(beyond)} s beyond {spread(imports)} s for "
        "importing torch and torchvision"
    )


def seconds(command: list[str]) -> float:
    started = time.perf_counter()
    subprocess.run([sys.executable, *command], check=True, capture_output=True)
    return time.perf_counter() - started


EMPTY_APP = """
import typer
app = typer.Typer()
@app.command()
def main() -> None:
    pass
app()
"""
LOADED = """
import sys
from ecgfeat.cli import app
try:
    app(["--help"])
except SystemExit:
    print(sorted({"torch", "numpy", "h5py"} & set(sys.modules)))
"""


def help_(options: Options) -> None:
    ratios = [
        seconds(["-m", "ecgfeat.cli", "--help"]) / seconds(["-c", EMPTY_APP, "--help"])
        for _ in range(10 * options.rounds)
    ]
    done = subprocess.run(
        [sys.executable, "-c", LOADED], capture_output=True, text=True, check=True
    )
    print(
        f"help: {spread(ratios)} times an empty Typer app; of torch, numpy and h5py it loads "
        f"{done.stdout.splitlines()[-1]}"
    )


SECOND = """
import sys, time
opened = 0
def count(event, arguments):
    global opened
    opened += event == "open" and str(arguments[0]).startswith(sys.argv[1])
sys.addaudithook(count)
from pathlib import Path
from ecgfeat import extract, read_manifest
from ecgfeat.config import DataSettings, NetworkSettings, PageSettings
started = time.perf_counter()
done = extract(
    read_manifest(Path(sys.argv[2]), DataSettings()), cache=Path(sys.argv[3]),
    page=PageSettings(size="32"), network=NetworkSettings(weights="random"),
)
print(f"{done.n_computed} computed, {opened} images opened, {time.perf_counter() - started:.1f} s")
"""


def unchanged(options: Options) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        listing = draw(folder, "100x100.jpeg", options.rows)
        extract(
            read_manifest(listing, DataSettings()),
            cache=folder / "cache.h5",
            page=PageSettings(size="32"),
            network=NetworkSettings(weights="random"),
            work=ExtractionSettings(batch_size=32),
        )
        arguments = [f"{folder}/pages/", str(listing), str(folder / "cache.h5")]
        done = subprocess.run(
            [sys.executable, "-c", SECOND, *arguments], capture_output=True, text=True, check=True
        )
        print(f"unchanged: second extract of {options.rows} rows: {done.stdout.strip()}")


SECTIONS: dict[str, Callable[[Options], None]] = {
    "peer": peer,
    "limit": limit,
    "layers": layers,
    "startup": startup,
    "help": help_,
    "unchanged": unchanged,
    "scaling": scaling,
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("sections", nargs="*", metavar="SECTION")
    parser.add_argument("--kinds", default="400x300.jpeg,940x540.jpeg,2200x1700.jpeg")
    parser.add_argument("--images", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--counts", default="500,5000,20000")
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--arch", default="resnet18")
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--precision", default="auto")
    options = parser.parse_args()
    unknown = set(options.sections) - set(SECTIONS)
    if unknown:
        parser.error(f"there is no section {', '.join(unknown)}; there are {', '.join(SECTIONS)}")
    options.kinds = options.kinds.split(",")
    options.counts = [int(count) for count in options.counts.split(",")]

    print(f"machine: {machine()}")
    print(f"versions: {versions()}")
    for section in options.sections or [name for name in SECTIONS if name != "scaling"]:
        SECTIONS[section](options)


if __name__ == "__main__":
    main()
