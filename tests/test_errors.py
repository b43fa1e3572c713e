from __future__ import annotations

import errno
import inspect
import os
from pathlib import Path

import pytest

from ecgfeat import errors
from ecgfeat.errors import CacheMismatchError, EcgfeatError, Interrupted, storage_error


def drawn_tree() -> dict[str, str]:
    """Child to parent, read from the docstring's drawing."""
    parents: dict[str, str] = {}
    above: list[str] = []
    for line in (errors.__doc__ or "").splitlines():
        name = line.lstrip(" │├└─").split(" ")[0]
        if not name.isidentifier() or not hasattr(errors, name):
            continue
        depth = (len(line) - len(line.lstrip(" │├└─"))) // 4
        above[depth - 1 :] = [name]
        if depth > 1:
            parents[name] = above[depth - 2]
    return parents


def real_tree() -> dict[str, str]:
    classes = [cls for _, cls in inspect.getmembers(errors, inspect.isclass)]
    return {
        cls.__name__: cls.__base__.__name__
        for cls in classes
        if issubclass(cls, EcgfeatError) and cls is not EcgfeatError
    }


def test_the_drawing_shows_the_tree() -> None:
    assert len(real_tree()) > 10
    assert drawn_tree() == real_tree()


def test_every_error_is_public() -> None:
    assert set(errors.__all__) == {*real_tree(), "EcgfeatError"}


def test_a_mismatch_names_the_field_and_both_values() -> None:
    error = CacheMismatchError("crop_mode", "squash", "center", Path("x.h5"))
    assert str(error) == (
        "x.h5 was computed with crop_mode 'center', but 'squash' is asked for. Ask for 'center', "
        "or give another file with --cache."
    )
    assert (error.field, error.expected, error.found) == ("crop_mode", "squash", "center")


def test_an_interruption_knows_its_signal() -> None:
    assert Interrupted().signal_number == 2
    assert Interrupted(15).signal_number == 15


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, "the disk is full: free some space, or name a folder on another disk"),
        (errno.EROFS, "the file system is read-only: choose another folder"),
        (
            errno.EFBIG,
            "the file would be larger than this system allows: raise the limit (ulimit -f)",
        ),
    ],
)
def test_a_storage_error_names_the_cause_and_the_mend(number: int, words: str) -> None:
    error = storage_error(OSError(number, os.strerror(number)), "writing", Path("a/b.h5"))
    assert str(error) == f"writing a/b.h5 failed: {words}"


def test_an_unusual_storage_error_says_what_the_system_said() -> None:
    busy = storage_error(OSError(errno.EBUSY, "text"), "renaming", "b.h5")
    assert str(busy) == f"renaming b.h5 failed: {os.strerror(errno.EBUSY)}"
    assert str(storage_error(OSError("odd"), "reading", "b.h5")) == "reading b.h5 failed: odd"
