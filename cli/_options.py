"""A command's options, made from the settings dataclasses that it takes.

A command is an ordinary function. `command` turns each parameter annotated with a `Settings`
class into one option per field (name, default, range and help from `ecgfeat.config`), and the
parameter annotated with `Output` into ``--json`` and ``--debug``. One annotated ``Given[…]``
becomes options too, but holds only those given by hand: a recipe has the others.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Generic, TypeVar, get_args, get_origin, get_type_hints

import typer

from ecgfeat.config import (
    RECIPES,
    Recipe,
    RecipeListSettings,
    RecipeSettings,
    Settings,
    option_name,
)
from ecgfeat.errors import ConfigError

from ._console import Output, failing_cleanly

__all__ = [
    "CACHE",
    "CACHE_FILE",
    "DATA",
    "FORCE",
    "IMAGES",
    "OUT",
    "RUN",
    "WEIGHTS",
    "Given",
    "by_recipe",
    "check_figure",
    "command",
]

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

FORCE = Annotated[bool, typer.Option("--force", help="Write over a file made by something else.")]

RUN = Annotated[Path, typer.Argument(metavar="RUN", help="A run's folder.", show_default=False)]
IMAGES = Annotated[
    list[Path],
    typer.Argument(
        metavar="IMAGE",
        help="Images, folders of images, CSVs with a column of paths, or patterns.",
        show_default=False,
    ),
]
WEIGHTS = Annotated[
    str,
    typer.Option(
        "--weights",
        metavar="PATH",
        help="Where the backbone's weights are now, if not where the run found them.",
        show_default=False,
    ),
]

Command = Callable[..., None]
S = TypeVar("S", bound=Settings)


@dataclass(frozen=True)
class Given(Generic[S]):
    """A section of settings, of which only what was given by hand is known.

    Attributes
    ----------
    by_hand : mapping of str to object
        Values by field.
    """

    by_hand: Mapping[str, Any]

    def over(self, settings: S) -> S:
        """`settings`, with what was given by hand in the place of its own."""
        return dataclasses.replace(settings, **self.by_hand)


_FIGURE_MARKS = {
    ".png": b"Software\0ecgfeat",
    ".pdf": b"/Creator (ecgfeat)",
    ".svg": b"<dc:title>ecgfeat</dc:title>",
}
"""What figures that we drew say of themselves, as `ecgfeat.figures.style.MARKS` has them say it."""


def check_figure(
    path: Path,
    *,
    force: bool,
    option: str = "--figure",
    suffixes: Sequence[str] = (".png",),
) -> None:
    """Refuse a figure's file of another kind, or one that would overwrite what is no figure."""
    from ecgfeat.files import refuse_overwriting

    suffix = path.suffix.lower()
    if suffix not in suffixes:
        words = " or ".join(filter(None, [", ".join(suffixes[:-1]), suffixes[-1]]))
        raise ConfigError(f"{option} must end in {words}; found {path}")
    refuse_overwriting(path, _FIGURE_MARKS[suffix], name=option, force=force)


def by_recipe(read: Callable[[Recipe], object]) -> str:
    """A default that the recipe decides, for ``--help``: what `read` gives of each."""
    return "; ".join(f"{name}: {_in_words(read(recipe))}" for name, recipe in RECIPES.items())


def _in_words(value: object) -> str:
    return " ".join(value) if isinstance(value, tuple) else str(value) or "none"


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
        needs_arguments = any(p.default is p.empty for p in _arguments(function))
        app.command(name, epilog=epilog, no_args_is_help=needs_arguments)(_expand(function))
        return function

    return register


def _arguments(function: Command) -> list[inspect.Parameter]:
    """What the command works on, options apart."""
    positional = inspect.Parameter.POSITIONAL_OR_KEYWORD
    return [p for p in inspect.signature(function).parameters.values() if p.kind is positional]


def _named(function: Command, values: Mapping[str, Any]) -> list[Any]:
    """What the command was told to work on."""
    found: list[Any] = []
    for value in (values.get(argument.name) for argument in _arguments(function)):
        found += value if isinstance(value, list) else [value]
    return [value for value in found if value is not None][:_N_SHOWN]


def _expand(function: Command) -> Command:
    hints = get_type_hints(function, include_extras=True)
    sections = {name: hint for name, hint in hints.items() if _is_settings(_section(hint))}
    has_recipe = not {RecipeSettings, RecipeListSettings}.isdisjoint(sections.values())

    @functools.wraps(function)
    def run(context: typer.Context, *, json: bool, debug: bool, **values: Any) -> None:
        output = Output(as_json=json)
        by_hand = {name for name in values if _is_by_hand(context, name)}
        with failing_cleanly(output, debug=debug):
            # Said before anything is loaded: torch alone takes seconds on a busy machine.
            _, *commands = context.command_path.split()
            named = map(str, _named(function, values))
            output.log(" ".join(["ecgfeat", *commands, *named, "…"]))
            made = {name: _make(hint, values, by_hand) for name, hint in sections.items()}
            function(**values, **made, output=output)

    parameters, rare = [_CONTEXT], list[inspect.Parameter]()
    for parameter in inspect.signature(function).parameters.values():
        hint = hints[parameter.name]
        section = _section(hint)
        if _is_settings(section):
            shows_recipes = has_recipe and section is not hint
            for item in dataclasses.fields(section):
                option = _option(item, section, shows_recipes=shows_recipes)
                (rare if item.metadata["rare"] else parameters).append(option)
        elif hint is not Output:
            parameters.append(
                parameter.replace(annotation=hint, kind=inspect.Parameter.KEYWORD_ONLY)
            )
    parameters += [_flag("json", "Print one JSON object instead."), _flag("debug", _DEBUG), *rare]
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    del run.__wrapped__
    return run


_RARE = "Rarely needed"
_WIDEST_METAVAR = 10
"""Characters of an option's choices in the column that narrows all the others' help."""
_N_SHOWN = 3
"""Arguments that the first line repeats; there may be thousands of images."""
_CONTEXT = inspect.Parameter(
    "context", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=typer.Context
)
_DEBUG = "On an error, show the whole traceback."


def _section(hint: Any) -> Any:
    """The settings of ``Given[…]``; any other hint as it is."""
    return get_args(hint)[0] if get_origin(hint) is Given else hint


def _is_settings(hint: object) -> bool:
    return isinstance(hint, type) and issubclass(hint, Settings)


def _is_by_hand(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def _make(hint: Any, values: dict[str, Any], by_hand: Collection[str]) -> Settings | Given[Any]:
    """Take a section's values out of what Typer gives, and make the section of them."""
    section = _section(hint)
    found = {item.name: values.pop(item.name) for item in dataclasses.fields(section)}
    # Typer gives an option that may be repeated as a list, the settings have a tuple.
    found |= {name: tuple(value) for name, value in found.items() if isinstance(value, list)}
    if section is hint:
        made: Settings = section(**found)
        return made
    return Given({name: value for name, value in found.items() if name in by_hand})


def _option(
    item: dataclasses.Field[Any], section: type[Settings], *, shows_recipes: bool
) -> inspect.Parameter:
    panel = (section.__doc__ or "").strip().splitlines()[0].rstrip(".")
    choices, help_text = item.metadata["choices"], item.metadata["help"]
    metavar = item.metadata["metavar"]
    if len("|".join(choices)) > _WIDEST_METAVAR and not metavar:
        metavar, help_text = "WORD", f"{help_text} One of {', '.join(choices)}."
    words = option_name(item.name)
    if item.default is True:
        words = f"{words}/{option_name(f'no_{item.name}')}"
    option = typer.Option(
        words,
        help=help_text,
        metavar=metavar,
        rich_help_panel=_RARE if item.metadata["rare"] else panel,
        show_default=item.default not in (None, "", ()),
    )
    if shows_recipes and len({_default(recipe, item, section) for recipe in RECIPES.values()}) > 1:
        option.show_default = by_recipe(lambda recipe: _default(recipe, item, section))
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


def _default(recipe: Recipe, item: dataclasses.Field[Any], section: type[Settings]) -> Any:
    parts = [part for part in vars(recipe).values() if type(part) is section]
    return getattr(parts[0], item.name) if parts else item.default


def _number_or(words: tuple[str, ...]) -> Callable[[str], float | str]:
    def parse(text: str) -> float | str:
        if text in words:
            return text
        try:
            return float(text)
        except ValueError:
            raise typer.BadParameter(f"{text!r} is no number, nor {' or '.join(words)}") from None

    return parse


def _flag(name: str, help_text: str) -> inspect.Parameter:
    return inspect.Parameter(
        name,
        inspect.Parameter.KEYWORD_ONLY,
        default=False,
        annotation=Annotated[bool, typer.Option(option_name(name), help=help_text)],
    )
