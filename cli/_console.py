"""What a command says: results on stdout, progress and log lines on stderr."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from types import FrameType
from typing import TYPE_CHECKING, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from ecgfeat.errors import ConfigError, EcgfeatError, Interrupted, storage_error

if TYPE_CHECKING:
    from rich.progress import Progress as ProgressBar
    from rich.progress import TaskID

    from ecgfeat.runtime import Progress, Report

__all__ = ["Output", "failing_cleanly"]

_OUR_OUTPUT = ("writing the results to", "stdout")
_PIPE_WIDTH = 180
"""Columns where stdout is a file or pipe: wide enough that no table is cut."""
_SECONDS_BETWEEN_LINES = 10.0
_SECONDS_TO_END = 5.0
"""What a second signal leaves a job to let go of its files."""


class Output:
    """Where one command's words go.

    Parameters
    ----------
    as_json : bool
        Print one JSON object on stdout and nothing else there.
    """

    def __init__(self, *, as_json: bool) -> None:
        self.as_json = as_json
        for stream in (sys.stdout, sys.stderr):
            # A name that the terminal's encoding lacks must not cost a finished job its results.
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="backslashreplace")
        # Names and messages are others' words, never markup.
        self._results = _Console(highlight=False, markup=False)
        if not self._results.is_terminal:
            self._results.width = _PIPE_WIDTH
        self._log = _Log(stderr=True, highlight=False, markup=False)
        self._log.soft_wrap = not self._log.is_terminal
        self._drawing: _Bar | _Lines | None = None

    @property
    def width(self) -> int:
        """Columns of a line of results."""
        return self._results.width

    def hush(self) -> None:
        """Say nothing but errors: another process of the same job speaks for this one."""
        self._results.quiet = self._log.quiet = True
        self.as_json = False

    def complain(self, line: str) -> None:
        """One line on stderr, whoever speaks."""
        self._log.quiet = False
        self.log(line)

    def log(self, line: str) -> None:
        """One line for people on stderr."""
        self._log.print(line)

    def show(self, *renderables: RenderableType) -> None:
        """Results for people on stdout; nothing under ``--json``."""
        if not self.as_json:
            self._pause()
            for renderable in renderables:
                self._results.print(renderable)

    def say(self, line: str) -> None:
        """One plain result line on stdout, never wrapped; nothing under ``--json``."""
        if not self.as_json:
            self._pause()
            self._results.print(line, soft_wrap=True)

    def _pause(self) -> None:
        """End a progress bar, whose line would else be written into."""
        if self._drawing is not None:
            self._drawing.pause()

    def result(self, value: Mapping[str, Any]) -> None:
        """The result for programs: one JSON object on stdout, only under ``--json``."""
        if self.as_json:
            sys.stdout.write(json.dumps(value, ensure_ascii=False, indent=2, allow_nan=False))
            sys.stdout.write("\n")

    def table(self, title: str, columns: Mapping[str, str]) -> Table:
        """An empty table; `columns` maps a heading to ``"left"`` or ``"right"``."""
        table = Table(title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD)
        for heading, justify in columns.items():
            table.add_column(
                heading,
                justify="right" if justify == "right" else "left",
                overflow="fold",
                no_wrap=justify == "right",
            )
        return table

    @contextlib.contextmanager
    def reporting(self) -> Iterator[Report]:
        """A callback for a job: progress, log lines, and a clean stop on a signal.

        The first signal lets the job finish its step and keep its work; a second one stops
        at once.
        """
        with _stop_requests(self) as stop:
            drawing = _Bar(self._log) if self._log.is_terminal else _Lines(self)
            self._drawing = drawing

            def report(progress: Progress) -> None:
                if progress.message:
                    self.log(progress.message)
                if progress.total:
                    drawing.update(progress)
                if stop:
                    raise Interrupted(stop[0])

            try:
                yield report
            finally:
                drawing.pause()


_CONTROL = {
    code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160)) if code not in (9, 10)
}
"""Codes by which others' words could command a terminal, and how they are shown instead."""


class _Console(Console):
    """A console that shows control characters and doesn't obey them."""

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(text.translate(_CONTROL), **options)


class _Log(_Console):
    """The console on stderr.

    Where no one reads it any more, or the disk that it is kept on is full, the work goes on.
    """

    def print(self, *objects: Any, **options: Any) -> None:
        try:
            super().print(*objects, **options)
        except OSError:
            self.on_broken_pipe()

    def on_broken_pipe(self) -> None:
        self.quiet = True
        with contextlib.suppress(OSError, ValueError):  # also what is still in the buffer
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())


class _Bar:
    """A progress bar with rate and time left."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bar: ProgressBar | None = None
        self._task: TaskID | None = None
        self._stage = ""

    def pause(self) -> None:
        """Let others write to the terminal; the next progress begins a new bar."""
        if self._bar:
            self._bar.stop()
        self._bar = None

    def update(self, progress: Progress) -> None:
        if self._bar is None or self._stage != progress.stage:
            self._start(progress)
        assert self._bar is not None and self._task is not None
        from ecgfeat.runtime import stage_in_words

        self._bar.update(
            self._task,
            completed=progress.done,
            total=progress.total,
            description=stage_in_words(progress),
        )

    def _start(self, progress: Progress) -> None:
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            ProgressColumn,
            SpinnerColumn,
            Task,
            TextColumn,
            TimeRemainingColumn,
        )
        from rich.progress import Progress as ProgressBar

        unit = progress.unit

        class Rate(ProgressColumn):
            def render(self, task: Task) -> Text:
                speed = task.speed or task.finished_speed
                return Text(f"{speed:.1f} {unit}/s" if speed else "")

        self.pause()
        self._bar = ProgressBar(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            Rate(),
            TimeRemainingColumn(),
            console=self._console,
        )
        self._bar.start()
        self._stage = progress.stage
        self._task = self._bar.add_task(progress.stage, total=progress.total)


class _Lines:
    """A line now and then, where stderr is a file or pipe."""

    def __init__(self, output: Output) -> None:
        from ecgfeat.runtime import Pace

        self._output = output
        self._pace = Pace()
        self._last_s = 0.0

    def pause(self) -> None:
        """Nothing to do: each line is written whole."""

    def update(self, progress: Progress) -> None:
        now = time.monotonic()
        if self._pace.begins(progress):
            self._last_s = now
            return
        if now - self._last_s < _SECONDS_BETWEEN_LINES and progress.done < progress.total:
            return
        if self._pace.has_moved(progress):
            self._last_s = now
            self._output.log(self._pace.in_words(progress))


@contextlib.contextmanager
def _stop_requests(output: Output) -> Iterator[list[int]]:
    """While inside, note a signal in the list given instead of stopping at once."""
    requests: list[int] = []
    # A job may never let go of its files, such as where it waits for a thread that hangs.
    end = threading.Timer(_SECONDS_TO_END, lambda: os._exit(128 + requests[0]))
    end.daemon = True

    def note(number: int, frame: FrameType | None) -> None:
        if requests:
            if not end.is_alive():
                end.start()
            _stop_at_once(number, frame)
        requests.append(number)
        # A signal may come while stderr is being written, which can't be entered twice.
        with contextlib.suppress(RuntimeError):
            output.log("stopping after this step, keeping what is done (again to stop at once)")

    with _handling(note):
        try:
            yield requests
        finally:
            end.cancel()


class _Stopped(KeyboardInterrupt):
    """A signal came; as with KeyboardInterrupt, no ``except Exception`` on the way swallows it."""

    def __init__(self, signal_number: int) -> None:
        super().__init__()
        self.signal_number = signal_number


def _stop_at_once(number: int, _: FrameType | None) -> None:
    raise _Stopped(number)


@contextlib.contextmanager
def _handling(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Let `handler` have SIGINT, SIGTERM and SIGHUP while inside."""
    signals = [signal.SIGINT, signal.SIGTERM]
    # Under nohup a hangup is to be ignored.
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        signals.append(signal.SIGHUP)
    previous = {number: signal.signal(number, handler) for number in signals}
    try:
        yield
    finally:
        for number, former in previous.items():
            signal.signal(number, former)


@contextlib.contextmanager
def failing_cleanly(output: Output, *, debug: bool) -> Iterator[None]:
    """Turn errors into one line and an exit code; see docs/guide.md for the codes.

    Raises
    ------
    typer.Exit
        With 2 for an option's, 1 for any other error, 128 + its number after a signal.
    """
    try:
        with _handling(_stop_at_once):
            yield
    except (typer.Exit, typer.Abort):
        raise
    except BrokenPipeError:
        # Whoever read our output has gone, and wants no message: end as programs in C do.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(128 + signal.SIGPIPE) from None
    except (Exception, KeyboardInterrupt) as error:
        if debug:
            raise
        raise typer.Exit(_told(output, error)) from None


def _told(output: Output, error: Exception | KeyboardInterrupt) -> int:
    """Tell an error in a line; returns the exit code for it."""
    code = 1
    match error:
        case Interrupted() | KeyboardInterrupt():
            output.log("interrupted")
            code = 128 + getattr(error, "signal_number", signal.SIGINT)
        case EcgfeatError():
            output.complain(f"Error: {error}")
            code = 2 if isinstance(error, ConfigError) else 1
        case OSError():
            # The library names what it reads and writes; what is nameless is our own output.
            doing, path = ("using", error.filename) if error.filename else _OUR_OUTPUT
            output.complain(f"Error: {storage_error(error, doing, path)}")
        case ImportError() | MemoryError():
            output.complain(
                f"Error: {error or 'not enough memory'}. A library that ecgfeat needs can't be "
                "loaded, or memory has run out: give the process more memory (ulimit -v), or "
                "install ecgfeat anew."
            )
        case _:
            output.complain(
                f"Error: unexpected {type(error).__name__}: {error}. This is a bug in ecgfeat: "
                "run the same command with --debug and report what it prints."
            )
    if isinstance(error, EcgfeatError | KeyboardInterrupt):
        # What the job had to add: what is kept, and how to go on.
        for note in getattr(error, "__notes__", ()):
            output.log(note)
    return code
