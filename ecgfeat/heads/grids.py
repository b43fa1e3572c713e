"""The values that a sweep tries, by name: from ``--sweep``, ``--grid`` or a TOML file."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ecgfeat.config import EvaluationSettings, HeadKind, HeadSettings, SweepSettings
from ecgfeat.errors import ConfigError, storage_error

__all__ = ["AXES", "DEFAULT_GRID", "Grid", "read_grid"]

AXES: dict[str, tuple[HeadKind, ...]] = {
    "layers": ("linear", "logreg"),
    "lr": ("linear",),
    "weight_decay": ("linear",),
    "label_smoothing": ("linear",),
    "class_weights": ("linear", "logreg"),
    "C": ("logreg",),
    "seed": ("linear",),
}
"""What a grid may name, and the heads that have it."""

NUMBERS = ("lr", "weight_decay", "label_smoothing", "C")
KIND_WORDS = {"linear": "the linear head", "logreg": "logistic regression"}

DEFAULT_GRID: dict[str, tuple[Any, ...]] = {
    "lr": (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1),
    "weight_decay": (0.0, 1e-3, 1e-2, 1e-1),
    "label_smoothing": (0.0, 0.1),
    "class_weights": ("none", "balanced"),
    "C": (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0, 10.0),
}
"""112 linear heads and 20 of logistic regression, from hardly trained to overfitted."""

Grid = Mapping[str, tuple[Any, ...]]
"""Values by name of axis, each a value of `HeadSettings` (or a seed)."""


def read_grid(sweep: SweepSettings, kinds: Sequence[HeadKind]) -> Grid:
    """The values to try, every one of them checked.

    Parameters
    ----------
    sweep : SweepSettings
        An axis of `grid` takes the place of the same one in `sweep`.
    kinds : sequence of {"linear", "logreg"}
        The heads that are to be tried.

    Returns
    -------
    dict of str to tuple
        In the order of `AXES`; empty where neither `sweep` nor `grid` is given.

    Raises
    ------
    ConfigError
        When an axis is unknown, not of these heads, named twice, empty, or has a value that is
        out of range or there twice.
    StorageError
        When the TOML file can't be read.
    """
    found: dict[str, tuple[Any, ...]] = {}
    if sweep.sweep == "default":
        found |= {name: values for name, values in DEFAULT_GRID.items() if _is_for(name, kinds)}
    elif sweep.sweep:
        found |= _checked(_from_toml(Path(sweep.sweep)), kinds, f"--sweep {sweep.sweep}")
    found |= _checked(_from_words(sweep.grid), kinds, "--grid")
    if "seed" in found and sweep.seeds > 1:
        raise ConfigError("--seeds and the axis seed say the same: give one of the two")
    return {name: found[name] for name in AXES if name in found}


def _is_for(name: str, kinds: Sequence[HeadKind]) -> bool:
    return any(kind in AXES[name] for kind in kinds)


def _from_words(grid: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    """Axes given as ``lr=1e-4,1e-3``, one or more to a text."""
    for word in " ".join(grid).replace(";", " ").split():
        name, sign, values = word.partition("=")
        if not sign:
            raise ConfigError(
                f"--grid takes NAME=A,B, such as lr=1e-4,1e-3, without spaces in it; found {word!r}"
            )
        yield name, [value for value in values.split(",") if value]


def _from_toml(path: Path) -> Iterator[tuple[str, list[Any]]]:
    try:
        content = tomllib.loads(path.read_bytes().decode())
    except FileNotFoundError:
        raise ConfigError(
            f"--sweep takes default, or a TOML file such as lr = [1e-4, 1e-3]; there is no {path}"
        ) from None
    except IsADirectoryError:
        raise ConfigError(f"--sweep takes default, or a TOML file; {path} is a folder") from None
    except OSError as error:
        raise storage_error(error, "reading", path) from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"--sweep {path} can't be read as TOML: {error}") from None
    if not content:
        raise ConfigError(f"--sweep {path} is empty: give values such as lr = [1e-4, 1e-3]")
    for name, values in content.items():
        if not isinstance(values, list):
            raise ConfigError(
                f"--sweep {path}: {name} must be a list of values, such as lr = [1e-4, 1e-3]; "
                f"found {values!r}"
            )
        yield name, values


def _checked(
    axes: Iterator[tuple[str, list[Any]]], kinds: Sequence[HeadKind], source: str
) -> dict[str, tuple[Any, ...]]:
    checked: dict[str, tuple[Any, ...]] = {}
    for name, values in axes:
        if name not in AXES:
            raise ConfigError(f"{source} names {name!r}; it takes {', '.join(AXES)}")
        if not _is_for(name, kinds):
            (owner,) = AXES[name]
            raise ConfigError(
                f"{source} names {name}, which only {KIND_WORDS[owner]} has: also give --head "
                f"{owner} or both, or leave it out"
            )
        if name in checked:
            raise ConfigError(f"{source} names {name} twice: give all its values at once")
        if not values:
            raise ConfigError(f"{source} gives no values for {name}")
        checked[name] = tuple(_value(name, value, source) for value in values)
        for value in checked[name]:
            if checked[name].count(value) > 1:
                raise ConfigError(f"{source} gives {name} the value {value} twice")
    return checked


def _value(name: str, value: Any, source: str) -> Any:
    """A value as its settings take it, and in their range."""
    try:
        value = _typed(name, value)
        if name == "seed":
            return replace(EvaluationSettings(), seed=value).seed
        return getattr(replace(HeadSettings(), **{name: value}), name)
    except ConfigError as error:
        raise ConfigError(f"{source}: {error}") from None


def _typed(name: str, value: Any) -> Any:
    if isinstance(value, bool):
        raise ConfigError(f"{name} can't be {str(value).lower()}")
    if isinstance(value, str) and name == "layers":
        return value.replace("+", ",")
    kind = float if name in NUMBERS else int if name == "seed" else str
    if isinstance(value, str) or (kind is float and isinstance(value, int)):
        try:
            return kind(value)
        except ValueError:
            words = "a number" if kind is float else "a whole number"
            raise ConfigError(f"{name} must be {words}; found {value!r}") from None
    return value
