"""What decides a cache's numbers, and the name of the recipe that they were asked for by."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ecgfeat.errors import CacheMismatchError
from ecgfeat.feature_cache.schema import Attributes

__all__ = ["Header"]

_TEXTS = (
    "arch",
    "weights",
    "weights_digest",
    "crop_mode",
    "size",
    "resampling",
    "decoder",
    "device",
    "precision",
)
_TRIPLES = ("mean", "std")


@dataclass(frozen=True, kw_only=True)
class Header:
    """Everything that decides the numbers in a cache; two that are equal give equal features.

    The recipe decides nothing: its options do.

    Attributes
    ----------
    arch : str
        Architecture, such as ``"resnet18"``.
    weights : str
        What the weights are called, for people; `weights_digest` decides.
    weights_digest : str
        SHA-256 over the tensors used, hexadecimal.
    crop_mode, size, resampling : str
    mean, std : tuple of 3 floats
        See `ecgfeat.preprocessing.Preprocessing`.
    decoder : str
        Names and versions of what turns files into pixels.
    device : {"cpu", "cuda", "mps"}
    precision : {"fp32", "bf16", "fp16"}
    taps : mapping of str to int
        Width of each tap's features.
    recipe : str
        Name of the recipe that the options were taken from; empty where there was none.
    """

    arch: str
    weights: str
    weights_digest: str
    crop_mode: str
    size: str
    resampling: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    decoder: str
    device: str
    precision: str
    taps: Mapping[str, int]
    recipe: str = ""

    def attributes(self) -> dict[str, str | tuple[float, ...]]:
        """The header as a cache's attributes; the taps are data sets there."""
        recipe = {"recipe": self.recipe} if self.recipe else {}
        return {**self._deciding_attributes(), **recipe}

    @classmethod
    def from_attributes(cls, attributes: Attributes, taps: Mapping[str, int]) -> Header:
        """The inverse of `attributes`.

        Raises
        ------
        TypeError
            For an attribute that is missing or of another type; its name is the message.
        """
        kinds: dict[str, type] = {
            **dict.fromkeys((*_TEXTS, "recipe"), str),
            **dict.fromkeys(_TRIPLES, tuple),
        }
        attributes = {"recipe": "", **attributes}
        fields: dict[str, Any] = {name: attributes.get(name) for name in kinds}
        for name, kind in kinds.items():
            if not isinstance(fields[name], kind):
                raise TypeError(name)
        return cls(**fields, taps=taps)

    def require(self, found: Header, path: Path) -> None:
        """Refuse features that were computed another way.

        Raises
        ------
        CacheMismatchError
            For the first field in which `found`, the header of `path`, differs.
        """
        asked, there = self._deciding(), found._deciding()
        shown = {"weights": (self._weights_in_words(), found._weights_in_words())}
        names = ",".join(sorted(self.taps)), ",".join(sorted(found.taps))
        if names[0] != names[1]:
            shown["taps"] = names  # as --taps takes them
        for field, value in asked.items():
            if there[field] != value:
                expected, actual = shown.get(field, (value, there[field]))
                raise CacheMismatchError(field, expected, actual, path)

    def _deciding_attributes(self) -> dict[str, str | tuple[float, ...]]:
        return {name: getattr(self, name) for name in (*_TEXTS, *_TRIPLES)}

    def _deciding(self) -> dict[str, object]:
        fields = {**self._deciding_attributes(), "weights": self.weights_digest}
        del fields["weights_digest"]
        taps = ", ".join(f"{tap} {width}" for tap, width in sorted(self.taps.items()))
        return {**fields, "taps": taps}

    def _weights_in_words(self) -> str:
        return f"{self.weights} (sha256 {self.weights_digest[:12]})"
