"""What a user is told when something is wrong: the message, word for word, and the exit code."""

from __future__ import annotations

import errno
import json
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import h5py
import pytest
from typer.testing import CliRunner

from ecgfeat.cli import app

from ..conftest import TinyPages, draw_page, write_csv

EXTRACT = [
    *("--recipe", "paper", "--weights", "random", "--size", "64"),
    *("--precision", "fp32", "--batch-size", "4"),
]


@pytest.fixture
def ecgfeat(tmp_path, monkeypatch) -> Callable[..., tuple[int, str]]:
    """Run the program in `tmp_path`; gives the exit code and the last line of stderr."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str | Path) -> tuple[int, str]:
        done = CliRunner().invoke(app, [str(argument) for argument in arguments])
        lines = done.stderr.strip().splitlines()
        return done.exit_code, lines[-1] if lines else ""

    return run


@pytest.fixture
def cache(tiny_pages: TinyPages, ecgfeat) -> Path:
    """A cache of eight training and four test pages of two classes."""
    assert ecgfeat("extract", tiny_pages(), "--cache", "pages.h5", *EXTRACT)[0] == 0
    return Path("pages.h5")


def rewrite(data: Path, keep: Callable[[dict[str, str]], dict[str, str] | None]) -> Path:
    """Change or leave out rows of a CSV."""
    header, *lines = data.read_text().splitlines()
    rows = [dict(zip(header.split(","), line.split(","))) for line in lines]
    return write_csv(data, [row for row in map(keep, rows) if row])


@pytest.mark.parametrize("name", ["absent", "absent.csv"])
def test_absent_data(ecgfeat, tmp_path, name):
    assert ecgfeat("extract", name) == (
        1,
        f"Error: {tmp_path / name} does not exist. Expected a folder of class folders "
        "(train/<class>/… and test/<class>/…, or <class>/…), or a .csv file with the columns path "
        "and label.",
    )


def test_a_csv_without_the_columns(ecgfeat, tmp_path):
    (tmp_path / "data.csv").write_text("record,kind\na.png,x\n")
    assert ecgfeat("extract", "data.csv") == (
        1,
        f"Error: {tmp_path}/data.csv has no column for the path: name it path, or give "
        "--path-column one of 'record', 'kind'.",
    )


def test_one_class_only(ecgfeat, tiny_pages):
    data = tiny_pages(classes=("a",))
    assert ecgfeat("extract", data) == (
        1,
        f"Error: {data} holds one class only ('a'), and at least two are needed. Check the label "
        "column or the folder names.",
    )


def test_duplicate_rows(ecgfeat, tiny_pages):
    data = tiny_pages(as_csv=True)
    data.write_text(data.read_text() + "train/a/000.png,a,train,\n")
    assert ecgfeat("extract", data) == (
        1,
        f"Error: {data}, rows 2 and 14 list the same image, 'train/a/000.png'. Remove one of them.",
    )


def test_paths_that_leave_the_root(ecgfeat, tiny_pages):
    data = tiny_pages(as_csv=True)
    data.write_text(data.read_text() + "../secret.png,a,train,\n")
    assert ecgfeat("extract", data) == (
        1,
        f"Error: {data}, row 14: '../secret.png' is no path inside {data.parent}. Give --root a "
        "folder that holds all images.",
    )


def test_all_images_missing(ecgfeat, tiny_pages, tmp_path):
    data = tiny_pages(as_csv=True).rename(tmp_path / "elsewhere.csv")
    assert ecgfeat("extract", data) == (
        1,
        f"Error: none of the 12 images that {data} lists is there; the first would be "
        f"{tmp_path}/train/a/000.png. Give --root the folder that the paths are relative to.",
    )


def test_no_image_that_can_be_decoded(ecgfeat, tiny_pages):
    data = tiny_pages()
    for image in data.rglob("*.png"):
        image.write_bytes(b"GIF89a")
    code, message = ecgfeat("extract", data, *EXTRACT)
    assert code == 1
    assert message.startswith(
        "Error: none of the 12 images can be used; the first, test/a/000.png: "
    )


@pytest.mark.parametrize("command", ["fit-head", "finetune"])
def test_an_empty_split(ecgfeat, tiny_pages, command):
    data = tiny_pages(n_test=0, as_csv=True)
    assert evaluated(ecgfeat, command, data) == (
        1,
        "Error: the split 'test' is empty. Add test rows to the data, or ignore the split and "
        "cross-validate with --cv 5.",
    )


@pytest.mark.parametrize("command", ["fit-head", "finetune"])
def test_a_class_in_test_that_train_lacks(ecgfeat, tiny_pages, command):
    data = tiny_pages(classes=("a", "b", "c"), n_train=9, n_test=6, as_csv=True)
    rewrite(data, lambda row: None if row["path"].startswith("train/c") else row)
    assert evaluated(ecgfeat, command, data) == (
        1,
        "Error: the test rows hold 'c', which no training row has. Add such rows to train, take "
        "them out of test, or cross-validate with --cv 5.",
    )


def evaluated(ecgfeat, command: str, data: Path) -> tuple[int, str]:
    """Get as far as who trains and who is tested, by either way."""
    if command == "finetune":
        return ecgfeat("finetune", data, "--weights", "random", "--size", "64")
    assert ecgfeat("extract", data, "--cache", "c.h5", *EXTRACT)[0] == 0
    return ecgfeat("fit-head", "c.h5")


def test_more_folds_than_images_of_a_class(ecgfeat, cache):
    assert ecgfeat("fit-head", cache, "--cv", "9") == (
        1,
        "Error: --cv 9 needs at least 9 groups (or ungrouped rows) of every class; 'a' has 6. "
        "Give a smaller --cv.",
    )


def test_a_positive_class_that_is_not_there(ecgfeat, cache):
    assert ecgfeat("fit-head", cache, "--positive", "mi") == (
        2,
        "Error: --positive names 'mi', but the classes are a, b",
    )


def test_a_value_out_of_range(ecgfeat, cache):
    assert ecgfeat("fit-head", cache, "--lr", "0") == (
        2,
        "Error: --lr must be above 0 and at most 10; found 0",
    )


def test_a_cache_from_other_settings(ecgfeat, tiny_pages, cache):
    arguments = [*EXTRACT, "--cache", cache, "--crop-mode", "squash"]
    assert ecgfeat("extract", Path("pages"), *arguments) == (
        1,
        "Error: pages.h5 was computed with crop_mode 'center', but 'squash' is asked for. Ask for "
        "'center', or give another file with --cache.",
    )


def test_a_cache_of_another_format_version(ecgfeat, cache):
    cache.write_bytes(cache.read_bytes().replace(b"\nformat 1\n", b"\nformat 9\n", 1))
    code, message = ecgfeat("fit-head", cache)
    assert code == 1
    assert message.startswith(
        "Error: pages.h5 is written in format version 9, but this ecgfeat reads version 1."
    )


def test_a_file_that_is_no_cache(ecgfeat, tmp_path):
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["x"] = [1, 2]
    code, message = ecgfeat("fit-head", "other.h5")
    assert code == 1
    assert message.startswith("Error: other.h5 isn't a feature cache of ecgfeat")


def test_a_damaged_cache(ecgfeat, cache):
    content = bytearray(cache.read_bytes())
    content[-100] ^= 1
    cache.write_bytes(content)
    for command in (("fit-head", cache), ("cache", "verify", cache)):
        code, message = ecgfeat(*command)
        assert code == 1
        assert message.startswith("Error: pages.h5 is damaged")


@pytest.mark.parametrize("command", [("compare", "pages", "pages"), ("predict", "pages", "pages")])
def test_a_run_folder_that_is_none(ecgfeat, tiny_pages, command):
    folder = tiny_pages()
    assert ecgfeat(*command) == (
        1,
        f"Error: {folder} is not a run: it has no config.json. Give a folder that fit-head or "
        "finetune made.",
    )


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, "the disk is full: free some space, or name a folder on another disk"),
        (errno.EACCES, "permission denied: check its owner and mode, or choose another place"),
    ],
)
def test_a_disk_that_refuses(ecgfeat, tiny_pages, monkeypatch, number, words):
    real = os.fsync

    def refuse(descriptor: int) -> None:
        if stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(number, os.strerror(number))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", refuse)
    code, message = ecgfeat("extract", tiny_pages(), "--cache", "new.h5", *EXTRACT)
    assert code == 1
    assert message.startswith("Error: writing ")
    assert message.endswith(f" failed: {words}")


def test_predictions_are_not_written_over_a_list_of_images(ecgfeat, cache, tmp_path):
    listing = tmp_path / "listing.csv"
    listing.write_text("image,label\n1.png,a\n")
    assert ecgfeat("fit-head", cache, "--out", "runs")[0] == 0
    (run,) = (tmp_path / "runs").iterdir()
    for images, more in (("1.png", ()), (listing.name, ()), (str(listing), ("--force",))):
        code, message = ecgfeat("predict", run, images, "--out", listing.name, *more)
        assert code == 2
        assert "give another" in message
    assert listing.read_text() == "image,label\n1.png,a\n"


def test_an_image_that_is_left_out_of_a_prediction_is_named(ecgfeat, cache, tmp_path):
    assert ecgfeat("fit-head", cache)[0] == 0
    run = next((tmp_path / "runs").iterdir())
    (tmp_path / "note.jpg").write_text("hello")
    code, message = ecgfeat("predict", run, "note.jpg")
    assert (code, message) == (
        1,
        "Error: 1 of 1 images could not be read: see the lines above",
    )


def test_finetune_wants_data_or_a_run_to_go_on_with(ecgfeat):
    assert ecgfeat("finetune", "--epochs", "2") == (
        2,
        "Error: give either DATA (a new run) or --resume RUN (to go on with one)",
    )


def test_a_resumed_run_keeps_its_figures_settings(ecgfeat):
    assert ecgfeat("finetune", "--resume", "run", "--no-title") == (
        2,
        "Error: --resume goes on with the run's own settings: leave the others out, or start a "
        "new run with DATA",
    )


def test_debug_shows_the_traceback(ecgfeat):
    done = CliRunner().invoke(app, ["extract", "absent", "--debug"])
    assert type(done.exception).__name__ == "DataError"


def test_an_error_leaves_stdout_to_results(tmp_path):
    done = CliRunner().invoke(app, ["extract", str(tmp_path / "absent"), "--json"])
    assert done.stdout == ""


def test_pages_are_not_drawn_into_a_folder_that_holds_other_files(ecgfeat, tmp_path):
    (tmp_path / "mine").mkdir()
    draw_page(0).save(tmp_path / "mine" / "page.png")
    code, message = ecgfeat("synth", "mine", "--train", "2")
    assert code == 1
    assert "mine" in message


def test_weights_that_do_not_fit_are_named(ecgfeat, tiny_pages, tmp_path):
    (tmp_path / "net.pth").write_bytes(json.dumps({}).encode())
    code, message = ecgfeat("extract", tiny_pages(), "--weights", "net.pth")
    assert code == 1
    assert "net.pth" in message


def test_a_folder_whose_images_are_listed_by_a_csv_in_it(ecgfeat, tmp_path):
    assert CliRunner().invoke(app, ["synth", "drawn", "--train", "2", "--test", "2"]).exit_code == 0
    assert ecgfeat("extract", "drawn") == (
        1,
        f"Error: {tmp_path}/drawn holds a manifest.csv, which lists its images: give "
        f"{tmp_path}/drawn/manifest.csv.",
    )


@pytest.mark.parametrize("other", [("--lr", "0.1"), ("--out", "elsewhere")])
def test_a_resumed_run_takes_no_other_settings(ecgfeat, other):
    assert ecgfeat("finetune", "--resume", "run", *other) == (
        2,
        "Error: --resume goes on with the run's own settings: leave the others out, or start a "
        "new run with DATA",
    )


def test_a_file_in_the_place_of_a_folder(ecgfeat, cache):
    code, message = ecgfeat("fit-head", cache, "--out", cache)
    assert code == 1
    assert message.endswith("failed: a file is in the way: name another folder")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("extract", "pages", "--cache", "x.hdf5"), "--cache must be a folder, or a file ending"),
        (
            ("compare", "a", "b", "--figure", "x.txt"),
            "--figure must end in .png, .pdf or .svg; found x.txt",
        ),
        (("preview", "pages", "--figure", "x.pdf"), "--figure must end in .png; found x.pdf"),
    ],
)
def test_names_that_promise_another_format(ecgfeat, tiny_pages, arguments, message):
    tiny_pages()
    code, found = ecgfeat(*arguments)
    assert code == 2
    assert found.startswith(f"Error: {message}")


def test_results_that_can_not_be_written_are_no_bug(ecgfeat, cache):
    command = [sys.executable, "-m", "ecgfeat.cli", "cache", "info", str(cache)]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith(f"ecgfeat cache info {cache} …")  # not by how it was started
    error = done.stderr.splitlines()[-1]
    assert error.startswith("Error: writing the results to stdout failed: the disk is full")


def test_results_survive_a_terminal_without_their_letters(ecgfeat, cache):
    assert ecgfeat("fit-head", cache)[0] == 0
    command = [sys.executable, "-m", "ecgfeat.cli", "cache", "list", "."]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(command, capture_output=True, env=environment, check=False)
    assert done.returncode == 0
    assert b"pages.h5" in done.stdout
