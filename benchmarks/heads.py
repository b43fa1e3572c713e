"""Heads against how they are usually trained: each figure a ratio measured in one run.

    python benchmarks/heads.py [--width 512|2048|3840] [--rounds 2]
                               [--sections one,many,command,logreg,path,loop]

The features are synthetic, as a study's are: 65,600 rows, rectified, going together (a few dozen
directions and noise), with labels that a linear head gets about 70 % of right. Sections:

one       one linear head, 5 epochs, against TensorDataset, DataLoader and Adam; the same losses
many      128 linear heads in one pass against that loop for one
command   `ecgfeat fit-head --head linear` against importing torch and scikit-learn
logreg    logistic regression against scikit-learn's default solver, and its distance from the
          optimum; its peak memory
path      10 values of C on 5 folds against one fit
loop      one linear head against training it with the frozen backbone in the loop
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np

from ecgfeat.config import DataSettings
from ecgfeat.feature_cache import Header, open_writer
from ecgfeat.heads import LinearSpec, as_pipeline, fit_linear_heads, fit_logistic, fit_logistic_path
from ecgfeat.manifest import Manifest
from ecgfeat.protocol import Partition
from ecgfeat.runtime import machine, peak_memory_mib, versions

N_ROWS, N_TEST_ROWS, EPOCHS = 65_600, 18_136, 5
NONE = np.empty(0, np.int64)
TAPS = {
    512: {"layer4": 512},
    2048: {"layer4": 2048},
    3840: {"layer1-4x4": 1024, "layer2-4x4": 2048, "layer3": 256, "layer4": 512},
}
"""A ResNet-18's last layer, a ResNet-50's, and what the default recipe keeps of a ResNet-18."""


def make_features(width: int, n_rows: int = N_ROWS) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    n_directions = 96
    hidden = random.standard_normal((n_rows, n_directions), dtype=np.float32)
    hidden *= np.geomspace(2, 0.1, n_directions, dtype=np.float32)
    X = hidden @ random.standard_normal((n_directions, width), dtype=np.float32) / 4
    X += 0.3 * random.standard_normal((n_rows, width), dtype=np.float32)
    np.maximum(X, 0, out=X)
    y = hidden[:, :20].sum(axis=1) * 0.3 + 2.5 * random.standard_normal(n_rows) > 0
    return X, y.astype(np.int64)


def seconds(function: Callable[[], object]) -> float:
    began = time.perf_counter()
    function()
    return time.perf_counter() - began


def fit_many(X: np.ndarray, y: np.ndarray, specs: list[LinearSpec]) -> list[float]:
    """Train the heads on all rows; returns the first one's losses."""
    part = Partition(fold=0, train=np.arange(len(X)), validation=NONE, test=NONE, split="test")
    losses: list[float] = []
    fit_linear_heads(
        X,
        y,
        part,
        n_classes=2,
        specs=specs,
        epochs=EPOCHS,
        batch_size=64,
        on_epoch=lambda epoch, heads: losses.append(heads[0].record.loss),
    )
    return losses


def fit_usual(X: np.ndarray, y: np.ndarray) -> list[float]:
    """The usual loop from the same start, in the same order, as seed 0 has here."""
    import usual_heads  # only here, so that torch doesn't count in the peak memory

    random, width = np.random.default_rng(0), X.shape[1]
    start = random.uniform(-(width**-0.5), width**-0.5, 2 * (width + 1)).astype(np.float32)
    orders = [random.permutation(np.arange(len(X))) for _ in range(EPOCHS)]
    weight, bias = start[:-2].reshape(2, width), start[-2:]
    return usual_heads.train_linear(X, y, epochs=EPOCHS, start=(weight, bias), orders=orders)


def compare_one(width: int, rounds: int) -> None:
    X, y = make_features(width)
    for number in range(rounds):
        began = time.perf_counter()
        losses = fit_many(X, y, [LinearSpec(lr=0.001)])
        ours_s = time.perf_counter() - began
        began = time.perf_counter()
        usual = fit_usual(X, y)
        usual_s = time.perf_counter() - began
        difference = np.abs(np.subtract(losses, usual)).max()
        print(
            f"one linear head, round {number + 1}: ecgfeat {ours_s:.2f} s, usual {usual_s:.2f} s, "
            f"{usual_s / ours_s:.1f} times as fast; losses differ by {difference:.1e} at most"
        )


def compare_many(width: int, rounds: int) -> None:
    X, y = make_features(width)
    specs = [
        LinearSpec(lr=lr, weight_decay=weight_decay, label_smoothing=smoothing, balanced=balanced)
        for lr in np.geomspace(1e-4, 1e-2, 8).tolist()
        for weight_decay in (0.0, 1e-5, 1e-4, 1e-3)
        for smoothing in (0.0, 0.1)
        for balanced in (False, True)
    ]
    for number in range(rounds):
        ours_s = seconds(lambda: fit_many(X, y, specs))
        usual_s = seconds(lambda: fit_usual(X, y))
        print(
            f"{len(specs)} linear heads, round {number + 1}: ecgfeat {ours_s:.2f} s, one head the "
            f"usual way {usual_s:.2f} s, ratio {ours_s / usual_s:.2f}"
        )


def write_cache(folder: Path, width: int) -> Path:
    """A cache of such features, of the study's size, as extraction would have left it."""
    X, y = make_features(width, N_ROWS + N_TEST_ROWS)
    rows = np.arange(len(X))
    names = tuple(f"{row:05d}.png" for row in rows)
    manifest = Manifest(
        source=folder / "pages.csv",
        settings=DataSettings(),
        root=folder,
        name="pages",
        paths=names,
        labels=tuple(map(str, y.tolist())),
        splits=("train",) * N_ROWS + ("test",) * N_TEST_ROWS,
        groups=("",) * len(X),
        metadata={},
        n_bytes=(20_000,) * len(X),
        mtime_ns=(0,) * len(X),
        missing=(),
        split_source="column",
    )
    header = Header(
        arch=arch_of(width),
        weights="random",
        weights_digest="0" * 64,
        crop_mode="center",
        size="224",
        resampling="pillow-bilinear",
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
        decoder="none",
        device="cpu",
        precision="fp32",
        taps=TAPS[width],
    )
    path = folder / "pages.h5"
    with open_writer(path, header, manifest) as writer:
        ends = np.cumsum(list(TAPS[width].values()))[:-1]
        features = dict(zip(TAPS[width], np.split(X, ends, axis=1)))
        # Every row another picture: the same one in training and test would be refused.
        digests = np.stack([rows, rows], axis=1).view(np.uint8)
        writer.commit(rows, features, digests)
        writer.finish()
    return path


def arch_of(width: int) -> str:
    return "resnet50" if width == 2048 else "resnet18"


def compare_command(width: int, rounds: int) -> None:
    imports = [sys.executable, "-c", "import torch, sklearn.linear_model"]
    with tempfile.TemporaryDirectory() as folder:
        cache, out = write_cache(Path(folder), width), str(Path(folder, "runs"))
        head = ["-m", "ecgfeat.cli", "fit-head", str(cache), "--head", "linear", "--out", out]
        head += ["--layers", ",".join(TAPS[width])]
        for number in range(rounds):
            imports_s = seconds(lambda: subprocess.run(imports, check=True))
            command = [sys.executable, "-X", "importtime", *head]
            began = time.perf_counter()
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            ours_s = time.perf_counter() - began
            imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
            print(
                f"fit-head --head linear, round {number + 1}: {ours_s:.1f} s, importing torch and "
                f"scikit-learn {imports_s:.1f} s, so {ours_s - imports_s:+.1f} s; torchvision "
                f"{'' if 'torchvision' in imported else 'not '}imported"
            )


def objective(standardised: np.ndarray, y: np.ndarray, model: object, C: float) -> float:
    logits = standardised @ model.coef_[0] + model.intercept_[0]
    losses = np.logaddexp(0, np.where(y == 1, -logits, logits))
    return float(C * losses.sum() + (model.coef_**2).sum() / 2)


def compare_logistic(width: int, rounds: int) -> None:
    import usual_heads

    X, y = make_features(width)
    rows = np.arange(len(X))
    standardised = X.astype(np.float64)
    standardised -= standardised.mean(axis=0)
    standardised /= standardised.std(axis=0)
    warnings.simplefilter("ignore")  # that the usual fit stops short is told below
    for number in range(rounds):
        for C in (0.01, 1.0):
            began = time.perf_counter()
            fit = fit_logistic(X, y, rows, C=C)
            ours_s = time.perf_counter() - began
            began = time.perf_counter()
            usual = usual_heads.fit_logistic(standardised, y, C=C)
            usual_s = time.perf_counter() - began
            ours = objective(standardised, y, as_pipeline(fit.tensors, (0, 1))[-1], C)
            theirs = objective(standardised, y, usual, C)
            print(
                f"logistic regression, C {C:g}, round {number + 1}: ecgfeat {ours_s:.2f} s "
                f"(standardising included, {fit.n_iterations} iterations), scikit-learn "
                f"{usual_s:.2f} s ({usual.n_iter_[0]} iterations), {usual_s / ours_s:.1f} times as "
                f"fast; its loss is {(ours - theirs) / theirs:+.1e} of scikit-learn's"
            )
    for kind in ("linear", "logreg"):
        print(f"peak memory of {kind}: {peak_share(X, y, kind):.2f} times the features'")


def peak_share(X: np.ndarray, y: np.ndarray, kind: str) -> float:
    """Peak memory of a process that trains a head, imports apart, over the features' own size."""
    with tempfile.TemporaryDirectory() as folder:
        np.save(Path(folder, "X.npy"), X)
        np.save(Path(folder, "y.npy"), y)
        command = [sys.executable, __file__, "--peak", kind, "--features", folder]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        return float(done.stdout)


def peak_mib() -> float:
    """Peak memory of this process; Linux's ordinary figure begins with its parent's."""
    status = Path("/proc/self/status")
    if not status.exists():
        return peak_memory_mib()
    (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def print_peak(folder: Path, kind: str) -> None:
    before = peak_mib()
    X, y = np.load(folder / "X.npy"), np.load(folder / "y.npy")
    if kind == "linear":
        fit_many(X, y, [LinearSpec(lr=0.001)])
    else:
        fit_logistic(X, y, np.arange(len(X)), C=1.0)
    print((peak_mib() - before) / (X.nbytes / 2**20))


def compare_path(width: int, rounds: int) -> None:
    X, y = make_features(width)
    fold_of_row = np.random.default_rng(0).permutation(np.arange(len(X)) % 5)
    folds = [np.flatnonzero(fold_of_row != fold) for fold in range(5)]
    Cs = np.geomspace(1e-3, 10, 10).tolist()
    for number in range(rounds):
        one_s = seconds(lambda: fit_logistic(X, y, np.arange(len(X)), C=1.0))
        all_s = seconds(lambda: [fit_logistic_path(X, y, rows, Cs=Cs) for rows in folds])
        print(
            f"10 C on 5 folds, round {number + 1}: {all_s:.1f} s, one fit {one_s:.2f} s, "
            f"{all_s / one_s:.1f} single fits"
        )


def compare_loop(width: int, rounds: int) -> None:
    import usual_heads

    X, y = make_features(width)
    arch = arch_of(width)
    for number in range(rounds):
        ours_s = seconds(lambda: fit_many(X, y, [LinearSpec(lr=0.001)]))
        rate = usual_heads.images_per_s_in_the_loop(n_images=256, arch=arch)
        usual_s = EPOCHS * N_ROWS / rate
        print(
            f"{arch} in the loop, round {number + 1}: {rate:.0f} images/s measured, so "
            f"{usual_s / 60:.0f} min for {EPOCHS} epochs of {N_ROWS:,}, decoding left out; on the "
            f"cache {ours_s:.2f} s, {usual_s / ours_s:,.0f} times as fast"
        )


SECTIONS: dict[str, Callable[[int, int], None]] = {
    "one": compare_one,
    "many": compare_many,
    "command": compare_command,
    "logreg": compare_logistic,
    "path": compare_path,
    "loop": compare_loop,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--width", type=int, default=512, choices=list(TAPS))
    parser.add_argument("--sections", default=",".join(SECTIONS))
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--peak", help=argparse.SUPPRESS)
    parser.add_argument("--features", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peak:
        print_peak(options.features, options.peak)
        return
    print(f"machine: {machine()}")
    print(f"versions: {versions()}")
    print(f"{N_ROWS:,} x {options.width} features")
    for name in options.sections.split(","):
        SECTIONS[name](options.width, options.rounds)


if __name__ == "__main__":
    main()
