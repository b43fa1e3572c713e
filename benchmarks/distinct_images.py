"""List a folder tree's distinct images in a CSV, free of the tree's own leaks.

Public sets of ECG images hold the same file many times, in train and in test, and under several
labels. Here every distinct image (by its bytes) stands once: with its test copy where it has one,
so that nothing tested is trained on, and not at all where its copies have several labels. ::

    python benchmarks/distinct_images.py mitbih-beats/data beats.csv --one-class Normal \
        --train 4000 --test 1500
    ecgfeat extract beats.csv --root mitbih-beats/data
"""

from __future__ import annotations

import argparse
import csv
import hashlib
from collections import Counter, defaultdict
from pathlib import Path

Row = tuple[str, str, str]
"""Split, class and path relative to the tree, ``train/Normal/beat.png`` giving the first two."""


def main() -> None:
    """Read the tree and write the CSV."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("tree", type=Path, help="folder of train/CLASS/… and test/CLASS/…")
    parser.add_argument("csv", type=Path, help="file to write")
    parser.add_argument("--one-class", help="label every other class 'other'")
    parser.add_argument("--train", type=int, default=0, help="training images; 0 takes all")
    parser.add_argument("--test", type=int, default=0, help="test images; 0 takes all")
    args = parser.parse_args()
    rows = distinct(args.tree)
    rows = [
        *share([row for row in rows if row[0] == "train"], args.train),
        *share([row for row in rows if row[0] == "test"], args.test),
    ]
    with args.csv.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("path", "label", "split", "class"))
        for split, name, path in rows:
            label = name if args.one_class in (None, name) else "other"
            writer.writerow((path, label, split, name))
    for (split, name), n in sorted(Counter((row[0], row[1]) for row in rows).items()):
        print(f"{split:6} {name:40} {n:6}")


def distinct(tree: Path) -> list[Row]:
    """Every image once, and none that has several labels."""
    copies: dict[bytes, list[Row]] = defaultdict(list)
    for path in sorted(tree.glob("*/*/*.*")):
        relative = path.relative_to(tree)
        split, name = relative.parts[:2]
        copies[hashlib.sha256(path.read_bytes()).digest()].append((split, name, str(relative)))
    print(f"{sum(map(len, copies.values()))} files, {len(copies)} distinct images")
    # "test" comes before "train".
    return [min(rows) for rows in copies.values() if len({name for _, name, _ in rows}) == 1]


def share(rows: list[Row], n: int) -> list[Row]:
    """`n` rows, of each class its share, in the order of a hash of their paths; 0 is all."""
    if not n or n >= len(rows):
        return sorted(rows)
    by_class: dict[str, list[Row]] = defaultdict(list)
    for row in sorted(rows, key=_order):
        by_class[row[1]].append(row)
    taken = [
        row for group in by_class.values() for row in group[: round(n * len(group) / len(rows))]
    ]
    return sorted(taken)


def _order(row: Row) -> bytes:
    return hashlib.sha256(row[2].encode()).digest()


if __name__ == "__main__":
    main()
