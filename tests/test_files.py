from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest

from ecgfeat.errors import ConfigError, StorageError
from ecgfeat.files import refuse_overwriting, replacing, write_csv, write_json, write_text


def test_replacing_keeps_the_old_file_when_the_writer_fails(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")

    def fail() -> None:
        with replacing(path) as aside:
            aside.write_text("half of the new")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
    assert path.read_text() == "old"


def test_a_disk_that_is_full_is_named_and_the_old_file_kept(tmp_path, monkeypatch):
    path = tmp_path / "file"
    path.write_text("old")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError) as caught:
        write_text(path, "new")
    assert str(caught.value) == (
        f"writing {path} failed: the disk is full: free some space, or name a folder on another "
        "disk"
    )
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_folders_above_are_made(tmp_path):
    write_text(tmp_path / "a" / "b" / "file", "x")
    assert (tmp_path / "a" / "b" / "file").read_text() == "x"


def test_json_is_what_any_parser_reads(tmp_path):
    write_json(tmp_path / "x.json", {"name": "Größe", "value": 0.1})
    content = (tmp_path / "x.json").read_bytes()
    assert content.isascii()
    assert json.loads(content) == {"name": "Größe", "value": 0.1}
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "x.json", {"value": float("nan")})


def test_csv_keeps_commas_quotes_and_names_that_are_not_utf8(tmp_path):
    write_csv(tmp_path / "x.csv", [("path", "value"), ('a,"b"\n', 0.1), ("\udcff.png", 2)])
    assert (tmp_path / "x.csv").read_bytes() == (b'path,value\r\n"a,""b""\n",0.1\r\n\xff.png,2\r\n')


def test_what_lies_under_a_temporary_name_is_never_written_to(tmp_path: Path) -> None:
    precious = tmp_path / "precious.txt"
    precious.write_text("precious")
    (tmp_path / f".new.txt.{os.getpid()}").symlink_to(precious)
    write_text(tmp_path / "new.txt", "new")
    assert precious.read_text() == "precious"
    assert (tmp_path / "new.txt").read_text() == "new"


def test_a_file_made_by_something_else_is_not_written_over(tmp_path: Path) -> None:
    path = tmp_path / "figure.png"
    refuse_overwriting(path, b"made here", name="--figure")
    path.write_bytes(b"... made here ...")
    refuse_overwriting(path, b"made here", name="--figure")
    path.write_bytes(b"an image")
    with pytest.raises(ConfigError) as caught:
        refuse_overwriting(path, b"made here", name="--figure")
    assert str(caught.value) == (
        f"{path} exists and was not made by this command: give another --figure, or --force to "
        "write over it"
    )


@pytest.mark.parametrize("force", [False, True])
def test_where_nothing_can_be_written_is_refused_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, force: bool
) -> None:
    (tmp_path / "notes").write_text("a file")
    for path, message in (
        (tmp_path, f"{tmp_path} is a folder: --out takes a file"),
        (
            tmp_path / "notes" / "deep" / "page.html",
            f"writing {tmp_path}/notes/deep/page.html failed: a file is where a folder should be: "
            "name another folder",
        ),
    ):
        with pytest.raises((ConfigError, StorageError)) as caught:
            refuse_overwriting(path, b"mark", name="--out", force=force)
        assert str(caught.value) == message
    refuse_overwriting(tmp_path / "new" / "deep" / "page.html", b"mark", name="--out", force=force)
    assert not (tmp_path / "new").exists()
    monkeypatch.setattr(os, "access", lambda *_: False)  # as root everything may be written
    with pytest.raises(StorageError, match=r"page\.html failed: permission denied"):
        refuse_overwriting(tmp_path / "new" / "page.html", b"mark", name="--out", force=force)
