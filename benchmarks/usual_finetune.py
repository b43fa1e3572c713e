"""A ResNet-18 fine-tuned the way it is usually done; the peer of ``benchmarks/finetune.py``.

A Dataset that opens images with Pillow, a DataLoader with two worker processes, torchvision's
own transform, float32, Adam.

    python benchmarks/usual_finetune.py pages/manifest.csv --weights start.pth --epochs 5
"""

from __future__ import annotations

import argparse
import csv
import json
import time
from pathlib import Path

import torch
import torchvision
from PIL import Image
from torch.utils.data import DataLoader, Dataset


class Pages(Dataset):
    """The training images of a CSV with `path`, `label` and `split`."""

    def __init__(self, manifest: Path) -> None:
        with manifest.open(newline="") as file:
            rows = list(csv.DictReader(file))
        self.root = manifest.parent
        self.classes = sorted({row["label"] for row in rows})
        self.rows = [row for row in rows if row["split"] == "train"]
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
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--lr", type=float, default=0.001)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    torch.manual_seed(options.seed)
    dataset = Pages(options.manifest)
    loader = DataLoader(dataset, batch_size=options.batch_size, shuffle=True, num_workers=2)
    model = torchvision.models.resnet18()
    model.fc = torch.nn.Linear(model.fc.in_features, len(dataset.classes))
    model.load_state_dict(torch.load(options.weights, weights_only=True))
    criterion = torch.nn.CrossEntropyLoss()
    optimizer = torch.optim.Adam(model.parameters(), lr=options.lr)

    losses = []
    started = time.perf_counter()
    for _ in range(options.epochs):
        model.train()
        running_loss = 0.0
        for images, targets in loader:
            optimizer.zero_grad()
            loss = criterion(model(images), targets)
            loss.backward()
            optimizer.step()
            running_loss += loss.item() * len(targets)
        losses.append(running_loss / len(dataset))
    seconds = time.perf_counter() - started
    rate = options.epochs * len(dataset) / seconds
    print(json.dumps({"images_per_s": rate, "losses": losses}))


if __name__ == "__main__":
    main()
