"""What the audit finds, what it cries wolf at, and how long its search takes at full size.

    python benchmarks/audit.py [--sections search,clean,copies,shortcuts,labels] [--weights FILE]
                               [--sets 20] [--pages 200] [--size 420x315]

search     neighbours of 83,736 rows of 3,840 features (the default recipe's width): time, memory
clean      sets of synthetic pages with nothing planted: how many are called clean
copies     training pages put into the test part once more: as they are, saved again at quality 40,
           resized, rotated by up to two degrees, and rescanned (turned, askew, blurred, noisy)
shortcuts  what is no ECG and follows the class: how often it is warned of
labels     5 % of the labels turned round: how many of as many most doubtful ones they are
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import io
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageEnhance, ImageFilter

import ecgfeat
from ecgfeat.config import RECIPES, AuditSettings, NetworkSettings, PageSettings, SynthSettings
from ecgfeat.data_audit import Audit
from ecgfeat.data_audit.copies import near_pairs, principal_components, whitened
from ecgfeat.runtime import machine, peak_memory_mib, versions

POSITIVE = "pathological"
PAGE = PageSettings(crop_mode="squash", size="224x160")
Rows = list[dict[str, str]]


def main() -> None:
    """Run the sections asked for, and print what they give."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sections", default="search,clean,copies,shortcuts,labels")
    parser.add_argument("--weights", default="random")
    parser.add_argument("--sets", type=int, default=20)
    parser.add_argument("--pages", type=int, default=200)
    parser.add_argument("--size", default="420x315")
    args = parser.parse_args()
    print(machine(), versions())
    sections = {
        "search": search,
        "clean": clean,
        "copies": copies,
        "shortcuts": shortcuts,
        "labels": labels,
    }
    for name in args.sections.split(","):
        print(f"\n{name}")
        sections[name](args)


class Features:
    """Stands in for a cache: clustered features of the default recipe's size, made when asked."""

    n, width = 83_736, 3_840

    def __init__(self) -> None:
        self.paths = tuple(map(str, range(self.n)))
        rng = np.random.default_rng(0)
        self.directions = rng.normal(size=(200, self.width)).astype(np.float32)
        self.header = argparse.Namespace(taps={"layer": self.width})

    def __len__(self) -> int:
        return self.n

    def features(self, _: object, rows: np.ndarray) -> np.ndarray:
        """Of some rows, the same for the same first row."""
        rng = np.random.default_rng(int(rows[0]))
        weights = rng.normal(size=(len(rows), 200)).astype(np.float32)
        noise = rng.random((len(rows), self.width), dtype=np.float32)
        return np.maximum(weights @ self.directions + 5 * noise, 0)


def search(_: argparse.Namespace) -> None:
    """Time and memory of finding what is to be compared."""
    cache = Features()
    start_s = time.perf_counter()
    embedding = principal_components(cache, 0)
    parts_s = time.perf_counter()
    pairs, _ratios = near_pairs(whitened(embedding))
    done_s = time.perf_counter()
    print(
        f"components {parts_s - start_s:.1f} s, neighbours {done_s - parts_s:.1f} s, "
        f"{len(pairs):,} pairs, peak memory {peak_memory_mib():.0f} MiB"
    )


def clean(args: argparse.Namespace) -> None:
    """Sets with nothing planted."""
    n_clean = 0
    for seed in range(args.sets):
        with a_set(args, seed) as folder:
            found = audited(folder, args)
            n_clean += found.is_clean
            for finding in (*found.of("error"), *found.of("warning")):
                print(f"  set {seed}: {finding.check}: {finding.number}")
    print(f"{n_clean} of {args.sets} sets are called clean")


def copies(args: argparse.Namespace) -> None:
    """Copies of training pages among the test pages."""
    with a_set(args, 100) as folder:
        rng = np.random.default_rng(0)
        rows, planted = read(folder), {}
        train = [row for row in rows if row["split"] == "train"]
        chosen = iter(rng.permutation(len(train)).tolist())
        n_each = len(train) // (len(AGAIN) + 2)
        for kind, change in AGAIN.items():
            for _ in range(n_each):
                row = dict(train[next(chosen)])
                name = f"images/{kind}-{len(planted)}.jpg"
                (folder / name).write_bytes(change((folder / row["path"]).read_bytes(), rng))
                planted[frozenset((row["path"], name))] = kind
                rows.append({**row, "path": name, "split": "test", "group": name})
        write(folder, rows)
        start_s = time.perf_counter()
        found = audited(folder, args)
        hits: Counter[str] = Counter()
        n_false = 0
        with (found.folder / "near-copies.csv").open() as file:
            for row in csv.DictReader(file):
                kind = planted.get(frozenset((row["path"], row["other_path"])))
                hits[kind or ""] += 1
                n_false += kind is None
        (same,) = [one for one in found.findings if one.check == "the same image twice"]
        hits["exact"] = same.details["across_splits"]
        (near,) = [one for one in found.findings if one.check == "nearly the same image"]
        for kind in AGAIN:
            print(f"  {kind:10} {hits[kind]} of {n_each}")
        print(
            f"  false pairs: {n_false} of {near.details['compared']} compared; "
            f"{time.perf_counter() - start_s:.0f} s for {found.n_images} pages"
        )


def shortcuts(args: argparse.Namespace) -> None:
    """Faults that follow the class."""
    for name, change in FOLLOWING.items():
        with a_set(args, 200) as folder:
            for row in read(folder):
                path = folder / row["path"]
                if row["label"] == POSITIVE:
                    path.write_bytes(change(Image.open(path).convert("RGB")))
            (found,) = [
                one
                for one in audited(folder, args).findings
                if one.check == "shortcuts: how a page looks"
            ]
            print(f"  {name:22} {found.level:8} {found.number.split(';')[0]}")


def labels(args: argparse.Namespace) -> None:
    """Labels turned round."""
    for seed in (300, 301, 302):
        with a_set(args, seed) as folder:
            rows = read(folder)
            rng = np.random.default_rng(seed)
            turned = rng.choice(len(rows), round(0.05 * len(rows)), replace=False).tolist()
            for number in turned:
                is_positive = rows[number]["label"] == POSITIVE
                rows[number]["label"] = "normal" if is_positive else POSITIVE
            write(folder, rows)
            found = audited(folder, args)
            with (found.folder / "doubtful-labels.csv").open() as file:
                doubtful = [row["path"] for row in csv.DictReader(file)]
            paths = {rows[number]["path"] for number in turned}
            first = paths & set(doubtful[: len(turned)])
            all_found = paths & set(doubtful)
            (finding,) = [one for one in found.findings if one.check == "likely wrong labels"]
            print(
                f"  {len(turned)} turned: {len(first)} among the first {len(turned)}, "
                f"{len(all_found)} among all {len(doubtful)} listed; {finding.level}"
            )


# Sets and what is planted in them


@contextlib.contextmanager
def a_set(args: argparse.Namespace, seed: int) -> Iterator[Path]:
    """A synthetic set in a folder of its own, taken away at the end."""
    n_test = args.pages // 4
    difficulty = "easy" if seed >= 300 else ("easy", "medium", "hard")[seed % 3]
    settings = SynthSettings(
        train=args.pages - n_test, test=n_test, seed=seed, difficulty=difficulty, size=args.size
    )
    with tempfile.TemporaryDirectory() as folder:
        ecgfeat.synthesize(Path(folder) / "pages", settings)
        yield Path(folder) / "pages"


def read(folder: Path) -> Rows:
    """The rows of a set's manifest."""
    with (folder / "manifest.csv").open() as file:
        return list(csv.DictReader(file))


def write(folder: Path, rows: Rows) -> None:
    """Write a set's manifest anew."""
    with (folder / "manifest.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, fieldnames=list(rows[0]))
        table.writeheader()
        table.writerows(rows)


def audited(folder: Path, args: argparse.Namespace) -> Audit:
    """Extract a set's features and audit them."""
    done = ecgfeat.extract(
        folder / "manifest.csv",
        cache=folder.parent / "c.h5",
        page=PAGE,
        network=NetworkSettings(weights=args.weights),
        work=RECIPES["quick"].extraction,
    )
    return ecgfeat.audit(done.cache, out_dir=folder.parent, settings=AuditSettings())


def jpeg(image: Image.Image, quality: int = 90) -> bytes:
    """A picture as a JPEG file."""
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return file.getvalue()


def opened(data: bytes) -> Image.Image:
    """The picture of a file."""
    return Image.open(io.BytesIO(data)).convert("RGB")


def rescanned(data: bytes, rng: np.random.Generator) -> bytes:
    """Turned, askew, blurred, darker, noisy and of another tint."""
    image = opened(data)
    width, height = image.size
    image = image.rotate(
        rng.uniform(-1.5, 1.5), Image.Resampling.BICUBIC, fillcolor=(250, 248, 245)
    )
    corners = np.array([(0, 0), (0, height), (width, height), (width, 0)])
    corners = corners + rng.uniform(-0.012, 0.012, (4, 2)) * (width, height)
    quad = tuple(corners.ravel().tolist())
    image = image.transform(image.size, Image.Transform.QUAD, quad, Image.Resampling.BICUBIC)
    image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 0.8)))
    pixels = np.asarray(image, np.float64) * rng.uniform(0.88, 1.0)
    pixels += rng.normal(0, 3, (height, width, 1)) + rng.uniform(-6, 6, 3)
    return jpeg(Image.fromarray(pixels.clip(0, 255).astype(np.uint8)), 80)


def resized(data: bytes, rng: np.random.Generator) -> bytes:
    """At three fifths, three quarters or four thirds of its size."""
    image, scale = opened(data), rng.choice([0.6, 0.75, 1.3])
    size = int(image.width * scale), int(image.height * scale)
    return jpeg(image.resize(size, Image.Resampling.LANCZOS), 85)


def rotated(data: bytes, rng: np.random.Generator) -> bytes:
    """By half a degree to two, either way."""
    angle = rng.choice([-1, 1]) * rng.uniform(0.5, 2)
    return jpeg(opened(data).rotate(angle, Image.Resampling.BICUBIC, fillcolor=(255, 255, 255)))


AGAIN: dict[str, Callable[[bytes, np.random.Generator], bytes]] = {
    "exact": lambda data, _: data,
    "saved": lambda data, _: jpeg(opened(data), 40),
    "resized": resized,
    "rotated": rotated,
    "rescanned": rescanned,
}


def drawn(draw: Callable[[ImageDraw.ImageDraw, int, int], None]) -> Callable[[Image.Image], bytes]:
    """A page with something drawn on it."""

    def change(image: Image.Image) -> bytes:
        draw(ImageDraw.Draw(image), *image.size)
        return jpeg(image)

    return change


def bluer(image: Image.Image) -> bytes:
    """Dark pixels turned bluish, as by another pen."""
    pixels = np.asarray(image, np.float64)
    dark = np.clip((150 - pixels.max(axis=2)) / 60, 0, 1)[..., np.newaxis]
    return jpeg(Image.fromarray((pixels + dark * (20, 25, 110)).clip(0, 255).astype(np.uint8)))


def narrower(image: Image.Image) -> bytes:
    """The page a little smaller, with a white margin."""
    width, height = image.size
    page = Image.new("RGB", image.size, (255, 255, 255))
    inside = image.resize((int(width * 0.96), int(height * 0.96)))
    page.paste(inside, (int(width * 0.02), int(height * 0.02)))
    return jpeg(page)


FOLLOWING: dict[str, Callable[[Image.Image], bytes]] = {
    "a coloured corner": drawn(
        lambda draw, w, h: draw.rectangle((w - w // 25, h - h // 25, w, h), fill=(200, 40, 40))
    ),
    "a header text": drawn(lambda draw, w, h: draw.text((w // 2, 4), "Cardiology", (30, 30, 30))),
    "a footer text": drawn(lambda draw, w, h: draw.text((6, h - 14), "25 mm/s", (60, 60, 60))),
    "a stamp": drawn(
        lambda draw, w, h: draw.ellipse(
            (w * 0.8, h * 0.75, w * 0.92, h * 0.9), outline=(60, 60, 180), width=2
        )
    ),
    "another trace colour": bluer,
    "another grid": lambda image: jpeg(
        Image.fromarray((np.asarray(image) * (1, 0.95, 0.95)).astype(np.uint8))
    ),
    "darker": lambda image: jpeg(ImageEnhance.Brightness(image).enhance(0.93)),
    "blurred": lambda image: jpeg(image.filter(ImageFilter.GaussianBlur(0.7))),
    "another quality": lambda image: jpeg(image, 70),
    "another size": lambda image: jpeg(
        image.resize((int(image.width * 1.1), int(image.height * 1.1)))
    ),
    "a white margin": narrower,
}


if __name__ == "__main__":
    main()
