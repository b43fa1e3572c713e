"""A command's options, made from the settings dataclasses that it takes.

A command is an ordinary function. `command` turns each parameter annotated with a `Settings`
class into one option per field (name, default, range and help from `ecgfeat.config`), and the
parameter annotated with `Output` into ``--json`` and ``--debug``.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from ecgfeat.config import Settings, option_name

from ._console import Output, failing_cleanly

__all__ = ["CACHE", "CACHE_FILE", "DATA", "OUT", "command"]

DATA = Annotated[
    Path,
    typer.Argument(
        metavar="DATA",
        help="Folder (train/CLASS/…, test/CLASS/…, or CLASS/…) or CSV (path,label[,split,group]).",
        show_default=False,
    ),
]
CACHE = Annotated[
    Path, typer.Option("--cache", help="Folder for caches, or one file ending in .h5.")
]
CACHE_FILE = Annotated[
    Path, typer.Argument(metavar="CACHE", help="A cache made by extract.", show_default=False)
]
OUT = Annotated[Path, typer.Option("--out", help="Parent folder of the run's folder.")]

Command = Callable[..., None]


def command(app: typer.Typer, name: str, *, examples: str = "") -> Callable[[Command], Command]:
    """Register a function as a command of `app`.

    Parameters
    ----------
    app : typer.Typer
    name : str
        The command's word.
    examples : str
        Command lines shown below the options, one per line.
    """

    def register(function: Command) -> Command:
        lines = "\n\n".join(line.strip() for line in examples.strip().splitlines())
        epilog = f"Examples:\n\n{lines}" if lines else None
        app.command(name, epilog=epilog, no_args_is_help=_needs_arguments(function))(
            _expand(function)
        )
        return function

    return register


def _needs_arguments(function: Command) -> bool:
    parameters = inspect.signature(function).parameters.values()
    positional = inspect.Parameter.POSITIONAL_OR_KEYWORD
    return any(p.kind is positional and p.default is p.empty for p in parameters)


def _expand(function: Command) -> Command:
    hints = get_type_hints(function, include_extras=True)
    sections = {name: hint for name, hint in hints.items() if _is_settings(hint)}

    @functools.wraps(function)
    def run(*, json: bool, debug: bool, **values: Any) -> None:
        output = Output(as_json=json)
        with failing_cleanly(output, debug=debug):
            made = {
                name: hint(**{f.name: _value(values, f) for f in dataclasses.fields(hint)})
                for name, hint in sections.items()
            }
            function(**values, **made, output=output)

    parameters = []
    for parameter in inspect.signature(function).parameters.values():
        hint = hints[parameter.name]
        if _is_settings(hint):
            parameters += [_option(item, hint) for item in dataclasses.fields(hint)]
        elif hint is not Output:
            parameters.append(
                parameter.replace(annotation=hint, kind=inspect.Parameter.KEYWORD_ONLY)
            )
    parameters += [_flag("json", "Print one JSON object instead."), _flag("debug", _DEBUG)]
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    del run.__wrapped__
    return run


_DEBUG = "On an error, show the whole traceback."


def _is_settings(hint: object) -> bool:
    return isinstance(hint, type) and issubclass(hint, Settings)


def _option(item: dataclasses.Field[Any], section: type[Settings]) -> inspect.Parameter:
    panel = (section.__doc__ or "").strip().splitlines()[0].rstrip(".")
    option = typer.Option(
        option_name(item.name),
        help=item.metadata["help"],
        metavar=item.metadata["metavar"],
        rich_help_panel=panel,
        show_default=item.default not in (None, "", ()),
    )
    hint = get_type_hints(section)[item.name]
    if hint == tuple[str, ...]:
        hint = list[str]  # Typer's type for an option that may be repeated
    if item.metadata["words"]:
        hint, option.parser = str, _number_or(item.metadata["words"])
    return inspect.Parameter(
        item.name,
        inspect.Parameter.KEYWORD_ONLY,
        default=item.default,
        annotation=Annotated[hint, option],
    )


def _number_or(words: tuple[str, ...]) -> Callable[[str], float | str]:
    return lambda text: text if text in words else float(text)


def _value(values: dict[str, Any], item: dataclasses.Field[Any]) -> Any:
    """Take a setting out of what Typer gives, of the type that the settings have."""
    value = values.pop(item.name)
    return tuple(value) if isinstance(value, list) else value


def _flag(name: str, help_text: str) -> inspect.Parameter:
    return inspect.Parameter(
        name,
        inspect.Parameter.KEYWORD_ONLY,
        default=False,
        annotation=Annotated[bool, typer.Option(option_name(name), help=help_text)],
    )
