"""Frozen features the way they are usually extracted; the peer of ``benchmarks/extract.py``.

A Dataset that opens images with Pillow, a DataLoader with two worker processes, torchvision's
own transform, float32, batches of 64, one array written with h5py at the end.

    python benchmarks/usual_extract.py pages/manifest.csv usual.h5 --weights resnet18.pth
"""

from __future__ import annotations

import argparse
import csv
import json
import time
from pathlib import Path

import h5py
import torch
import torchvision
from PIL import Image
from torch.utils.data import DataLoader, Dataset


class Pages(Dataset):
    """Images of a CSV with `path` and `label`."""

    def __init__(self, manifest: Path) -> None:
        with manifest.open(newline="") as file:
            self.rows = list(csv.DictReader(file))
        self.root = manifest.parent
        self.classes = sorted({row["label"] for row in self.rows})
        self.transform = torchvision.models.ResNet18_Weights.IMAGENET1K_V1.transforms()

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        row = self.rows[index]
        image = Image.open(self.root / row["path"]).convert("RGB")
        return self.transform(image), self.classes.index(row["label"])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("manifest", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--arch", default="resnet18")
    parser.add_argument("--weights", type=Path)
    options = parser.parse_args()

    network = torchvision.models.get_model(options.arch)
    if options.weights:
        network.load_state_dict(torch.load(options.weights, weights_only=True))
    network.fc = torch.nn.Identity()
    network.eval()
    loader = DataLoader(Pages(options.manifest), batch_size=64, num_workers=2)

    started = time.perf_counter()
    features, labels = [], []
    with torch.no_grad():
        for images, targets in loader:
            features.append(network(images))
            labels.append(targets)
    with h5py.File(options.out, "w") as file:
        file["features"] = torch.cat(features).numpy()
        file["labels"] = torch.cat(labels).numpy()
    seconds = time.perf_counter() - started
    n_images = sum(len(batch) for batch in labels)
    print(json.dumps({"n_images": n_images, "images_per_s": n_images / seconds}))


if __name__ == "__main__":
    main()
