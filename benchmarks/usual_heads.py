"""Heads the way they are usually trained; the peers of ``benchmarks/heads.py``.

A TensorDataset, a DataLoader, nn.Linear and Adam for the linear head; scikit-learn's
LogisticRegression as it comes for logistic regression; and the linear head on a frozen backbone
that is run again in every epoch.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from torch.utils.data import DataLoader, TensorDataset


def train_linear(
    X: np.ndarray,
    y: np.ndarray,
    *,
    epochs: int,
    start: tuple[np.ndarray, np.ndarray],
    orders: Sequence[np.ndarray],
) -> list[float]:
    """Train a linear head on batches of 64 by Adam at 0.001; returns the epochs' losses.

    The start and the rows' order in each epoch are given, so that another's losses can be held
    against these; otherwise this is the loop of any tutorial.
    """
    dataset = TensorDataset(torch.from_numpy(X), torch.from_numpy(y))
    layer = torch.nn.Linear(X.shape[1], start[0].shape[0])
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(start[0]))
        layer.bias.copy_(torch.from_numpy(start[1]))
    criterion = torch.nn.CrossEntropyLoss()
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.001)
    losses = []
    for epoch in range(epochs):
        loader = DataLoader(dataset, batch_size=64, sampler=orders[epoch].tolist())
        loss_sum, n_right = 0.0, 0
        for features, targets in loader:
            optimizer.zero_grad()
            logits = layer(features)
            loss = criterion(logits, targets)
            loss.backward()
            optimizer.step()
            loss_sum += loss.item() * len(targets)
            n_right += (logits.argmax(dim=1) == targets).sum().item()
        losses.append(loss_sum / len(dataset))
    return losses


def fit_logistic(standardised: np.ndarray, y: np.ndarray, *, C: float) -> LogisticRegression:
    """Fit scikit-learn's default solver, lbfgs, to standardised features."""
    return LogisticRegression(C=C).fit(standardised, y)


def images_per_s_in_the_loop(*, n_images: int, arch: str = "resnet18") -> float:
    """Train the head with the frozen backbone in the loop, on images already in memory."""
    import torchvision

    backbone = torchvision.models.get_model(arch)
    width = backbone.fc.in_features
    backbone.fc = torch.nn.Identity()
    backbone.eval()
    for parameter in backbone.parameters():
        parameter.requires_grad = False
    layer = torch.nn.Linear(width, 2)
    criterion = torch.nn.CrossEntropyLoss()
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.001)
    images = torch.rand(64, 3, 224, 224)
    targets = torch.arange(64) % 2
    backbone(images)
    n_batches = -(-n_images // len(images))
    began = time.perf_counter()
    for _ in range(n_batches):
        optimizer.zero_grad()
        loss = criterion(layer(backbone(images)), targets)
        loss.backward()
        optimizer.step()
    return n_batches * len(images) / (time.perf_counter() - began)
