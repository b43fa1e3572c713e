"""Stand-ins that the tests of heads share: features of overlapping classes, and a cache of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from ecgfeat.config import EvaluationSettings, HeadSettings, SweepSettings
from ecgfeat.errors import ConfigError
from ecgfeat.feature_cache import Listing
from ecgfeat.heads import fit_heads

T = TypeVar("T")


def some_features(
    n: int = 200, width: int = 12, n_classes: int = 2, seed: int = 0
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Rows of classes that overlap, on features of unlike scales."""
    random = np.random.default_rng(seed)
    y = np.arange(n) % n_classes
    centres = random.normal(size=(n_classes, width))
    X = (centres[y] + random.normal(size=(n, width)) * 2) * np.geomspace(0.1, 10, width) + 3
    return X.astype(np.float32), y


@dataclass
class StandInHeader:
    arch: str = "resnet18"
    weights: str = "random"
    weights_digest: str = "ab" * 32
    crop_mode: str = "squash"
    size: str = "448x320"
    resampling: str = "pillow-bilinear"
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.25, 0.25, 0.25)
    decoder: str = "pillow 13.0.0"
    device: str = "cpu"
    precision: str = "fp32"
    recipe: str = ""
    taps: dict[str, int] = field(default_factory=lambda: {"layer3": 5, "layer4": 7})


class StandInCache:
    """What heads use of a feature cache."""

    path = Path("cache/pages.h5")
    digest = "cd" * 32
    data_digest = "ef" * 32
    extraction_s = 20.0
    data_name = "pages"

    def __init__(self, n: int = 120, n_classes: int = 2, grouped: bool = False) -> None:
        X, y = some_features(n, 12, n_classes)
        self.header = StandInHeader()
        self.by_tap = {"layer3": X[:, :5], "layer4": X[:, 5:]}
        self.paths = tuple(f"{i:03d}.png" for i in range(n))
        self.labels = tuple("abcdef"[target] for target in y)
        self.splits = tuple("test" if i // n_classes % 3 == 0 else "train" for i in range(n))
        self.groups = tuple(f"g{i // 4}" if grouped else "" for i in range(n))
        self.pictures = [bytes([i // 256, i % 256]) for i in range(n)]

    @property
    def listing(self) -> Listing:
        has_features = np.ones(len(self.paths), dtype=bool)
        return Listing(
            paths=self.paths,
            labels=self.labels,
            splits=self.splits,
            groups=self.groups,
            has_features=has_features,
        )

    def require(self, taps: Sequence[str]) -> None:
        if not set(taps) <= set(self.by_tap):
            raise ConfigError(f"--layers names {taps}, but there is only {list(self.by_tap)}")

    def features(self, taps: Sequence[str]) -> NDArray[np.float32]:
        return np.hstack([self.by_tap[tap] for tap in taps])


def fit(out_dir: Path, cache: Any = None, *kinds: Any, **options: Any) -> list[Any]:
    """`fit_heads` with the options of any of its settings."""
    report = options.pop("report", lambda progress: None)
    options.setdefault("epochs", 5)

    def settings(kind: type[T]) -> T:
        names = {item.name for item in dataclasses.fields(kind)} & set(options)
        return kind(**{name: options.pop(name) for name in names})

    made = (settings(HeadSettings), settings(SweepSettings), settings(EvaluationSettings))
    assert not options, f"no such options: {', '.join(options)}"
    return fit_heads(
        cache or StandInCache(),
        kinds=kinds or ("linear",),
        **dict(zip(("head", "sweep", "evaluation"), made)),
        out_dir=out_dir,
        report=report,
    )
