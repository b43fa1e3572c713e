"""Fine-tuning against the usual script, against images already in memory, and its memory.

One of three measurements, by its name; all on synthetic pages, 400x300 JPEG:

* ``usual``: images per second against ``benchmarks/usual_finetune.py``, both whole processes from
  the same initial weights and on the same page (ImageNet's), in turn, with both loss curves;
* ``memory``: passes over streamed pages against the same steps on arrays of them, in turn, and
  what the ratio would be if no core were ever idle;
* ``scaling``: peak memory of an epoch over 20,000 listed images against 2,000. The files are hard
  links to the same 2,000 pages, and the network's input is small (64x64), to take minutes.

Usage:

    python benchmarks/finetune.py usual|memory|scaling [--images 256] [--rounds 2] [--epochs 2]
        [--batch-size 64] [--lr 1e-4] [--weights PATH] [--precision auto]

``memory`` has no use for --epochs, nor ``scaling`` for --images, --rounds, --epochs and --lr.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

import torch

from ecgfeat import open_run, read_manifest, synthesize
from ecgfeat.backbones import load_network
from ecgfeat.config import (
    RECIPES,
    ComputeSettings,
    EvaluationSettings,
    FinetuneSettings,
    NetworkSettings,
    SynthSettings,
)
from ecgfeat.finetuning.job import Job
from ecgfeat.finetuning.trainer import shuffled_batches
from ecgfeat.images import Batch
from ecgfeat.runs import Run
from ecgfeat.runtime import machine, n_cpus, resolve_compute, versions

HERE = Path(__file__).parent
PASSES = 3
"""Times that ``memory`` goes over the pages in one go."""
SCALES = (1, 10)
"""Times that ``scaling`` lists each image."""
SCALED_IMAGES = 2000
SHARED = ("epochs", "batch-size", "lr")
"""Options that both programs take."""
IMAGENET_CROP = "--crop-mode=center"
"""Said by hand, as is the size: a recipe may have another."""


def python(*command: str) -> str:
    """What a Python command prints on stdout."""
    done = subprocess.run([sys.executable, *command], check=True, capture_output=True, text=True)
    return done.stdout


def finetune(manifest: Path, out: Path, *options: str) -> Run:
    """A run of the program, in a process of its own."""
    command = ["-m", "ecgfeat.cli", "finetune", str(manifest), "--out", str(out), "--json"]
    python(*command, *options)
    (folder,) = out.iterdir()
    return open_run(folder)


def in_words(losses: Iterable[float]) -> str:
    return " ".join(f"{loss:.3f}" for loss in losses)


def against_the_usual(manifest: Path, folder: Path, options: argparse.Namespace) -> None:
    ratios = []
    for seed in range(options.rounds):
        network = load_network(NetworkSettings(weights=options.weights), 2, seed)
        start = folder / f"start-{seed}.pth"
        torch.save(network.state_dict(), start)
        shared = [f"--{name}={getattr(options, name.replace('-', '_'))}" for name in SHARED]
        shared.append(f"--seed={seed}")
        ours = finetune(
            manifest,
            folder / f"runs-{seed}",
            *shared,
            IMAGENET_CROP,
            "--size=224",
            f"--weights={options.weights}",
            f"--precision={options.precision}",
        )
        peer = str(HERE / "usual_finetune.py")
        usual = json.loads(python(peer, str(manifest), *shared, f"--weights={start}"))
        ratios.append(ours.cost.images_per_s / usual["images_per_s"])
        print(
            f"round {seed + 1}: ecgfeat {ours.cost.images_per_s:.1f} img/s "
            f"({ours.cost.precision}), usual {usual['images_per_s']:.1f} img/s (fp32), ratio "
            f"{ratios[-1]:.2f}\n"
            f"  loss by epoch: ecgfeat {in_words(record.loss for record in ours.history)}, "
            f"usual {in_words(usual['losses'])}"
        )
    print(
        f"against the usual script: median ratio {statistics.median(ratios):.2f} "
        f"({min(ratios):.2f} to {max(ratios):.2f}) over {options.rounds} rounds"
    )


def against_memory(manifest: Path, folder: Path, options: argparse.Namespace) -> None:
    compute = resolve_compute(ComputeSettings(precision=options.precision), purpose="train")
    job = Job(
        manifest=read_manifest(manifest),
        network=NetworkSettings(weights=options.weights),
        page=RECIPES["paper"].page,
        compute=compute,
        training=FinetuneSettings(batch_size=options.batch_size),
        evaluation=EvaluationSettings(),
    )
    (part,) = job.plan
    images = job.images({})
    trainer = job.new_trainer(part)
    trainer.set_lr(options.lr)
    batches = shuffled_batches(part.train, options.batch_size, seed=0, fold=0, epoch=1)
    began = time.process_time()
    in_memory = list(images.stream(batches, lambda _: None))
    decode_s = (time.process_time() - began) / len(part.train)

    def seconds(pass_over: Iterable[Batch]) -> float:
        started = time.perf_counter()
        for batch in pass_over:
            trainer.step(batch.pixels, images.targets[batch.rows])
        return time.perf_counter() - started

    seconds(in_memory[:2])
    ratios = []
    for number in range(options.rounds):
        memory_s = seconds(in_memory * PASSES) / PASSES / len(part.train)
        streamed = images.stream(batches * PASSES, lambda _: None)
        streamed_s = seconds(streamed) / PASSES / len(part.train)
        ratios.append(memory_s / streamed_s)
        ceiling = memory_s / (memory_s + decode_s / n_cpus())
        print(
            f"round {number + 1}: {1 / memory_s:.1f} img/s in memory, {1 / streamed_s:.1f} "
            f"streamed, ratio {ratios[-1]:.3f}; decoding takes {1000 * decode_s:.1f} ms of a "
            f"core per image, so about {ceiling:.3f} at most on {n_cpus()} cores"
        )
    print(
        f"streamed against memory ({compute.precision}): median ratio "
        f"{statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})"
    )


def list_again(manifest: Path, times: int) -> Path:
    """A manifest of hard links: every training image `times` times, the test images once."""
    with manifest.open(newline="") as file:
        rows = list(csv.DictReader(file))
    path = manifest.parent / f"times-{times}.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label", "split"])
        for row in rows:
            for number in range(times if row["split"] == "train" else 1):
                name = f"{times}/{number}/{row['path']}"
                link = manifest.parent / name
                link.parent.mkdir(parents=True, exist_ok=True)
                os.link(manifest.parent / row["path"], link)
                writer.writerow([name, row["label"], row["split"]])
    return path


def scaling(manifest: Path, folder: Path, options: argparse.Namespace) -> None:
    peaks = []
    for times in SCALES:
        run = finetune(
            list_again(manifest, times),
            folder / f"runs-times-{times}",
            "--epochs=1",
            IMAGENET_CROP,
            "--size=64",
            f"--batch-size={options.batch_size}",
            f"--weights={options.weights}",
            f"--precision={options.precision}",
        )
        peaks.append(run.cost.peak_memory_mib)
        n_trained = run.config["partitions"][0]["train"]
        print(
            f"{n_trained:,} training images: peak {peaks[-1]:.0f} MiB, "
            f"{run.cost.images_per_s:.0f} img/s"
        )
    print(f"peak memory at {SCALES[-1]} times as many images: {peaks[-1] / peaks[0]:.3f} times")


MEASUREMENTS = {"usual": against_the_usual, "memory": against_memory, "scaling": scaling}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", nargs="?", choices=[*MEASUREMENTS], default="usual")
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--lr", type=float, default=1e-4)
    parser.add_argument("--weights", default="random")
    parser.add_argument("--precision", default="auto")
    options = parser.parse_args()

    print(f"machine: {machine()}")
    print(f"versions: {versions()}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        # The fewest test pages there can be: the training is what is measured.
        n_images = SCALED_IMAGES if options.what == "scaling" else options.images
        settings = SynthSettings(train=n_images, test=2)
        manifest = synthesize(folder / "pages", settings).manifest_path
        MEASUREMENTS[options.what](manifest, folder, options)


if __name__ == "__main__":
    main()
