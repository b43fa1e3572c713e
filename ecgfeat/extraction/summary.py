"""What an extraction did."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

__all__ = ["Extraction"]


@dataclass(frozen=True, kw_only=True)
class Extraction:
    """What an extraction did.

    Attributes
    ----------
    cache : Path
        The cache's file; while shards are at work, where it will be.
    complete : bool
        Whether the cache holds every row; False after one shard.
    n_images : int
        Rows in the cache.
    n_computed : int
        Images that went through the network this time.
    missing, quarantined : int
        Listed files that are absent; files that can't be decoded.
    missing_by_class : mapping of str to int
        Absent files by ``"split/class"``.
    wall_s, images_per_s : float
        Time for the whole job; rate of the images computed, start-up apart.
    """

    cache: Path
    complete: bool
    n_images: int
    n_computed: int
    missing: int
    missing_by_class: Mapping[str, int]
    quarantined: int
    wall_s: float
    images_per_s: float
    peak_memory_mib: float
    device: str
    precision: str
    precision_reason: str

    @property
    def size_mib(self) -> float:
        """The cache's size in MiB."""
        return self.cache.stat().st_size / 2**20 if self.complete else 0.0

    def as_json(self) -> dict[str, Any]:
        """Plain values for ``json.dumps``."""
        return {**asdict(self), "cache": str(self.cache), "size_mib": self.size_mib}

    def summary(self) -> list[str]:
        """The same in words, one line each."""
        rate = f"{self.images_per_s:.1f} images/s, " if self.n_computed else ""
        lines = [
            f"{self.n_images} images: {self.n_computed} computed, "
            f"{self.n_images - self.n_computed} already there",
            f"{rate}{self.wall_s:.1f} s in all, peak memory {self.peak_memory_mib:.0f} MiB, "
            f"{self.device} {self.precision} ({self.precision_reason})",
        ]
        if self.missing:
            counts = ", ".join(f"{name} {n}" for name, n in self.missing_by_class.items())
            lines.append(f"{self.missing} listed images are missing ({counts}): {self.missing_csv}")
        if self.quarantined:
            lines.append(
                f"{self.quarantined} images are left out, with reasons: {self.quarantine_csv}"
            )
        if self.complete:
            lines.append(f"cache: {self.cache} ({self.size_mib:.1f} MiB)")
        else:
            lines.append(f"shard done; once all are, a plain extract puts {self.cache} together")
        return lines

    @property
    def missing_csv(self) -> Path:
        """Where the absent files are listed, beside the cache."""
        return self.cache.with_name(f"{self.cache.stem}-missing.csv")

    @property
    def quarantine_csv(self) -> Path:
        """Where the files left out are listed with their reasons, beside the cache."""
        return self.cache.with_name(f"{self.cache.stem}-quarantine.csv")
