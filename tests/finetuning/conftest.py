from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import ecgfeat.runs.writing as writing_module

from .jobs import N_TEST, N_TRAIN, use_tiny_network


@pytest.fixture
def tiny_network(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Put a `TinyNetwork` in the place of every ResNet; flush no disk and draw no figure."""
    use_tiny_network(monkeypatch.setattr)
    monkeypatch.setattr(os, "fsync", lambda _: None)
    monkeypatch.setattr(writing_module, "draw_figures", lambda *_: None)
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)  # waiting for a second one takes longer than the work
    yield
    torch.set_num_threads(n_threads)


@pytest.fixture
def pages(tiny_pages, tiny_network) -> Path:
    csv_path: Path = tiny_pages(n_train=N_TRAIN, n_test=N_TEST, size_px=(48, 36), as_csv=True)
    return csv_path


@pytest.fixture
def runs(tmp_path) -> Path:
    return tmp_path / "runs"
