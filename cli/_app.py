"""The Typer app that every command file adds its command to."""

from __future__ import annotations

from typing import Annotated

import typer

import ecgfeat

__all__ = ["app"]

app = typer.Typer(
    name="ecgfeat",
    help="Transfer learning on ECG images: frozen ResNet features, heads, fine-tuning, and an "
    "honest comparison of them.",
    epilog="Start with: ecgfeat demo",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"ecgfeat {ecgfeat.__version__}")
        raise typer.Exit


@app.callback()
def _program(
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Print the version.", callback=_print_version, is_eager=True
        ),
    ] = False,
) -> None:
    pass
