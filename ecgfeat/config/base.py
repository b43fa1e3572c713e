"""What a setting is: its default, its help, its range, and the check of all three."""

from __future__ import annotations

import dataclasses
import numbers
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ecgfeat.errors import ConfigError

__all__ = ["Settings", "as_json", "comma_separated", "option_name", "setting"]


def setting(
    default: Any,
    help: str,  # noqa: A002 - the word every command line uses for it
    *,
    minimum: float | None = None,
    above: float | None = None,
    maximum: float | None = None,
    below: float | None = None,
    choices: tuple[str, ...] = (),
    words: tuple[str, ...] = (),
    metavar: str | None = None,
    rare: bool = False,
) -> Any:
    """Declare one setting; `above` and `below` are exclusive bounds, the others inclusive.

    A number may also be one of `words`. A rare one comes last in ``--help``.
    """
    limits = {"minimum": minimum, "above": above, "maximum": maximum, "below": below}
    return field(
        default=default,
        metadata={
            "help": help,
            "choices": choices,
            "words": words,
            "metavar": metavar,
            "rare": rare,
            "limits": limits,
        },
    )


def comma_separated(text: str) -> tuple[str, ...]:
    """The words of a comma-separated option, without the empty ones."""
    return tuple(word.strip() for word in text.split(",") if word.strip())


def option_name(name: str) -> str:
    """The command line's word for a field: ``batch_size`` becomes ``--batch-size``."""
    return f"--{name.replace('_', '-')}"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Base of the settings: checks each field's type and declared range when made.

    Raises
    ------
    ConfigError
        When a value is of another type or out of range; the message names the option.
    """

    def __post_init__(self) -> None:
        for item in dataclasses.fields(self):
            value = getattr(self, item.name)
            if value not in item.metadata["words"]:
                _check_type(item, value)
                _check_range(item, value)


def _check_type(item: dataclasses.Field[Any], value: object) -> None:
    for kind, accepted, words in (
        (int, numbers.Integral, "a whole number"),
        (float, numbers.Real, "a number"),
        (str, str, "text"),
    ):
        if type(item.default) is kind and not isinstance(value, accepted):
            either = " or ".join((words, *item.metadata["words"]))
            raise ConfigError(f"{option_name(item.name)} must be {either}; found {value!r}")


def _check_range(item: dataclasses.Field[Any], value: object) -> None:
    choices = item.metadata["choices"]
    if choices and value not in (item.default, *choices):
        raise ConfigError(
            f"{option_name(item.name)} must be one of {', '.join(choices)}; found {value!r}"
        )
    if value is None or isinstance(value, (str, bool)) or not isinstance(value, (int, float)):
        return
    limits = item.metadata["limits"]
    outside = (
        (limits["minimum"] is not None and value < limits["minimum"])
        or (limits["above"] is not None and value <= limits["above"])
        or (limits["maximum"] is not None and value > limits["maximum"])
        or (limits["below"] is not None and value >= limits["below"])
        or value != value
    )
    if outside:
        raise ConfigError(
            f"{option_name(item.name)} must be {_range_in_words(limits)}; found {value:.10g}"
        )


def _range_in_words(limits: Mapping[str, float | None]) -> str:
    words = {"minimum": "at least", "above": "above", "maximum": "at most", "below": "below"}
    return " and ".join(
        f"{word} {limits[key]:.10g}" for key, word in words.items() if limits[key] is not None
    )


def as_json(settings: Settings) -> dict[str, Any]:
    """The settings as plain values, ready for ``json.dumps``."""
    return {
        name: str(value) if isinstance(value, Path) else value
        for name, value in dataclasses.asdict(settings).items()
    }
