"""What a cache promises, kept by the real program: killed, stopped, shared out, misled."""

from __future__ import annotations

import errno
import fcntl
import functools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

import ecgfeat.extraction as extraction_module
import ecgfeat.images.decoding as decoding_module
from ecgfeat.backbones import Backbone
from ecgfeat.cli import app
from ecgfeat.feature_cache import Header, open_cache, verify_cache
from ecgfeat.feature_cache.reader import part_paths

from .conftest import TinyPages, draw_page
from .feature_cache.fakes import data_of

OPTIONS = [
    *("--recipe", "paper", "--weights", "random", "--size", "64"),
    *("--precision", "fp32", "--batch-size", "2"),
]
N_PAGES = 12
GO_ON = "what was computed is kept: run the same command again to go on from there"


# Drawing a ResNet-18's weights takes longer than a dozen tiny pages.
load_weights = functools.cache(extraction_module.load_weights)


@pytest.fixture(scope="module", autouse=True)
def one_drawing() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(extraction_module, "load_weights", load_weights)
        yield


def invoke(*arguments: object) -> tuple[int, str, str]:
    """Run the program in this process; gives exit code, stdout and the rest of stderr."""
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    # The first line only says what is begun.
    return done.exit_code, done.stdout, done.stderr.partition("\n")[2]


def extract(data: Path, cache: Path, *options: object) -> dict[str, Any]:
    """Extract in this process, which must succeed."""
    code, said, log = invoke("extract", data, *OPTIONS, "--cache", cache, *options, "--json")
    assert code == 0, log
    return json.loads(said)  # type: ignore[no-any-return]


def refusal(data: Path, cache: Path, *options: object) -> str:
    """The one line in which an extraction is refused."""
    code, said, log = invoke("extract", data, *OPTIONS, "--cache", cache, *options)
    assert (code, said) == (1, "")
    return log.strip().splitlines()[-1]  # what was found comes before


SMALL_PARTS = """
import ecgfeat.cli, ecgfeat.extraction
ecgfeat.extraction.PART_ROWS = {}
ecgfeat.cli.main()
"""


def start(
    data: Path, cache: Path, *options: str, part_rows: int | None = None
) -> subprocess.Popen[str]:
    """Extract in a process of its own, as a person does; or with parts smaller than usual."""
    program = ["-c", SMALL_PARTS.format(part_rows)] if part_rows else ["-m", "ecgfeat.cli"]
    command = [sys.executable, *program, "extract", str(data), *OPTIONS, *options]
    return subprocess.Popen(
        [*command, "--cache", str(cache)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def committed_rows(path: Path) -> list[str]:
    """Images whose features are on the disk; every file there must be whole."""
    sources = [path] if path.exists() else part_paths(path)
    return [name for file in sources for name in open_cache(file).paths]


def draw_pages(root: Path, n_images: int) -> Path:
    for number in range(n_images):
        split, label = "test" if number % 4 == 3 else "train", number % 2
        page = root / split / "ab"[label] / f"{number:04d}.png"
        page.parent.mkdir(parents=True, exist_ok=True)
        draw_page(number, label, (64, 64)).save(page)
    return root


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_pages(tmp_path_factory.mktemp("data") / "pages", N_PAGES)


@pytest.fixture(scope="module")
def finished(pages: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache that is made in one go, and only looked at."""
    path = tmp_path_factory.mktemp("finished") / "pages.h5"
    extract(pages, path)
    return path


@pytest.fixture(scope="module")
def whole(finished: Path) -> dict[str, Any]:
    """Every data set of that cache."""
    return data_of(open_cache(finished))


# A kill, a signal


SIGNALS = pytest.mark.parametrize(
    ("number", "exit_code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["int", "term"]
)


@SIGNALS
def test_a_signal_during_start_up_ends_the_program_cleanly(
    pages, whole, tmp_path, number, exit_code
):
    """tests/cli/test_commands.py has one that comes later."""
    stop_at_moments(1, 1.0, pages, whole, tmp_path, number, exit_code)


@pytest.mark.slow
@SIGNALS
def test_a_signal_at_any_moment_keeps_what_is_computed(tmp_path, number, exit_code):
    pages = draw_pages(tmp_path / "pages", 100)
    extract(pages, tmp_path / "whole.h5")
    whole = data_of(open_cache(tmp_path / "whole.h5"))
    stop_at_moments(20, 6.0, pages, whole, tmp_path, number, exit_code)


def stop_at_moments(
    n_moments: int,
    longest_s: float,
    pages: Path,
    whole: dict[str, Any],
    folder: Path,
    number: signal.Signals,
    exit_code: int,
) -> None:
    moments = random.Random(n_moments + number)
    when = dict.fromkeys(("start-up", "computing", "done"), 0)
    for nth in range(n_moments):
        path = folder / str(nth) / "pages.h5"
        with start(pages, path) as process:
            time.sleep(moments.uniform(0.3, longest_s))
            process.send_signal(number)
            _, log = process.communicate(timeout=120)
        committed = committed_rows(path)
        if process.returncode == 0:
            # The last step was under way, or even over.
            when["done"] += 1
            assert path.exists()
        elif process.returncode == -number:
            # Python itself was starting or ending; a shell's exit code is 128 + the number.
            when["done" if path.exists() else "start-up"] += 1
            assert path.exists() or not committed
        else:
            when["computing" if committed else "start-up"] += 1
            assert process.returncode == exit_code, log
            # Nothing is said while the command line itself is being read.
            assert "interrupted" in log or not log
            assert "Traceback" not in log
            assert GO_ON in log or not committed
            assert not list(path.parent.glob("*.lock"))
        done = extract(pages, path)
        assert done["n_computed"] == done["n_images"] - len(committed)
        assert data_of(open_cache(path)) == whole
        assert part_paths(path) == []
    print(f"{number.name} at {n_moments} moments: {when}")


def test_a_second_signal_stops_at_once_and_still_says_how_to_go_on(pages, tmp_path, monkeypatch):
    def impatient(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        raise AssertionError("the second signal must not wait for the step's end")

    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    monkeypatch.setattr(extraction_module._Part, "add", impatient)
    code, _, log = invoke("extract", pages, *OPTIONS, "--cache", tmp_path / "pages.h5")
    assert code == 143
    assert log.splitlines()[-2:] == ["interrupted", GO_ON]
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


@pytest.mark.slow
def test_kills_of_the_real_program_cost_at_most_the_part_under_way(tmp_path):
    pages, path = draw_pages(tmp_path / "pages", 120), tmp_path / "cache" / "pages.h5"
    extract(pages, tmp_path / "whole.h5")
    moments = random.Random(0)
    lock = path.with_name("pages.h5.lock")
    known: list[int] = []
    for _ in range(5):
        lock.unlink(missing_ok=True)  # left by the one before; tells here when the next begins
        before = set(committed_rows(path))
        with start(pages, path, part_rows=4) as process:
            while not lock.exists():
                assert process.poll() is None
                time.sleep(0.02)
            time.sleep(moments.uniform(0, 2))
            process.kill()
        committed = committed_rows(path)
        assert len(set(committed)) == len(committed)
        assert before <= set(committed)
        assert not committed or verify_cache(path) == []
        known.append(len(committed))
    assert known[-1] > 0
    assert extract(pages, path)["n_computed"] == 120 - known[-1]
    assert data_of(open_cache(path)) == data_of(open_cache(tmp_path / "whole.h5"))
    print(f"rows of 120 committed after each kill: {known}")


# Shards


@pytest.mark.slow
def test_shards_in_processes_of_their_own_equal_a_single_one(tmp_path):
    pages, path = draw_pages(tmp_path / "pages", 200), tmp_path / "cache" / "pages.h5"
    extract(pages, tmp_path / "whole.h5")
    shards = [start(pages, path, "--shard", f"{index}/3") for index in range(3)]
    while not list(path.parent.glob("*.shard-1-of-3.lock")):
        assert shards[1].poll() is None
        time.sleep(0.02)
    shards[1].kill()
    shards[1].communicate()
    shards.append(start(pages, path, "--shard", "1/3"))
    logs = [shard.communicate(timeout=300)[1] for shard in (shards[0], *shards[2:])]
    assert [shard.returncode for shard in shards] == [0, -signal.SIGKILL, 0, 0], logs
    assert not path.exists()
    assert sorted(committed_rows(path)) == sorted(open_cache(tmp_path / "whole.h5").paths)
    assert extract(pages, path)["n_computed"] == 0
    assert data_of(open_cache(path)) == data_of(open_cache(tmp_path / "whole.h5"))


@pytest.mark.parametrize(
    ("rank", "size"),
    [
        ("RANK", "WORLD_SIZE"),
        pytest.param("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", marks=pytest.mark.slow),
    ],
)
def test_a_launcher_s_ranks_share_the_work(pages, whole, tmp_path, monkeypatch, rank, size):
    monkeypatch.setattr("ecgfeat.feature_cache.writer.SHARD_ROWS", 5)
    monkeypatch.setenv(size, "2")
    computed = []
    for index in ("0", "1"):
        monkeypatch.setenv(rank, index)
        computed.append(extract(pages, tmp_path / "pages.h5")["n_computed"])
    monkeypatch.delenv(size)
    assert computed == [7, 5]
    assert extract(pages, tmp_path / "pages.h5")["n_computed"] == 0
    assert data_of(open_cache(tmp_path / "pages.h5")) == whole


# Nothing stale


ASKED = {
    "arch": (["--arch", "resnet34"], "resnet18", "resnet34"),
    "crop_mode": (["--crop-mode", "squash"], "center", "squash"),
    "size": (["--size", "64x32"], "64", "64x32"),
    "precision": (["--precision", "bf16"], "fp32", "bf16"),
}
FOUND = {
    "resampling": "another filter",
    "mean": (0.1, 0.2, 0.3),
    "std": (0.4, 0.5, 0.6),
    "decoder": "rgb 0, pillow 12.0.0, simplejpeg 1.8.0",
    "device": "cuda",
}


def test_every_field_of_the_header_has_its_test_here():
    others = {"weights", "weights_digest", "taps"}  # one test each below
    deciding = set(Header.__dataclass_fields__) - {"recipe"}
    assert {*ASKED, *FOUND, *others} == deciding


@pytest.mark.parametrize("field", ASKED)
def test_features_of_other_settings_are_refused(pages, finished, field):
    options, there, asked = ASKED[field]
    content = finished.read_bytes()
    assert refusal(pages, finished, *options) == (
        f"Error: {finished} was computed with {field} {there!r}, but {asked!r} is asked for. Ask "
        f"for {there!r}, or give another file with --cache."
    )
    assert finished.read_bytes() == content


def under(monkeypatch: pytest.MonkeyPatch, **changes: object) -> None:
    """From now on, extract as another machine or another version would."""
    plain = extraction_module._header

    def header(*arguments: Any) -> Header:
        return replace(plain(*arguments), **changes)  # type: ignore[arg-type]

    monkeypatch.setattr(extraction_module, "_header", header)


@pytest.mark.parametrize("field", FOUND)
def test_features_of_other_decoders_or_devices_are_refused(pages, finished, field, monkeypatch):
    there = getattr(open_cache(finished).header, field)
    under(monkeypatch, **{field: FOUND[field]})
    assert refusal(pages, finished) == (
        f"Error: {finished} was computed with {field} {there!r}, but {FOUND[field]!r} is asked "
        f"for. Ask for {there!r}, or give another file with --cache."
    )


def test_the_header_names_the_decoder_that_is_in_use(pages, finished, monkeypatch):
    monkeypatch.setattr(extraction_module, "decoder_of", lambda *_: "rgb 1, pillow 99")
    assert "but 'rgb 1, pillow 99' is asked for" in refusal(pages, finished)


def test_features_of_other_weights_are_refused(pages, finished, monkeypatch):
    there = open_cache(finished).header
    under(monkeypatch, weights="mine.pth", weights_digest="cd" * 32)
    assert (
        f"with weights '{there.weights} (sha256 {there.weights_digest[:12]})', but 'mine.pth "
        "(sha256 cdcdcdcdcdcd)' is asked for"
    ) in refusal(pages, finished)


def test_other_taps_are_refused_with_the_mend(pages, finished):
    there = ",".join(sorted(open_cache(finished).header.taps))
    asked = "layer1-max,layer2-4x4"
    content = finished.read_bytes()
    assert refusal(pages, finished, "--layers", asked) == (
        f"Error: {finished} was computed with taps {there!r}, but {asked!r} is asked for. "
        f"Ask for {there!r}, or give another file with --cache."
    )
    assert finished.read_bytes() == content


def test_another_format_version_is_refused_with_both(pages, finished, tmp_path):
    path = tmp_path / "pages.h5"
    content = finished.read_bytes().replace(b"\nformat 1\n", b"\nformat 7\n", 1)
    path.write_bytes(content)
    assert "format version 7, but this ecgfeat reads version 1" in refusal(pages, path)
    assert path.read_bytes() == content


def test_other_labels_and_splits_compute_nothing(tiny_pages: TinyPages, tmp_path, monkeypatch):
    data, path = tiny_pages(as_csv=True), tmp_path / "pages.h5"
    extract(data, path)
    before = open_cache(path)
    features = dict(zip(before.paths, before.features("layer4")))
    n_test = before.splits.count("test")
    header, *rows = data.read_text().splitlines()
    swapped = [row.split(",") for row in rows]
    lines = [
        f"{name},{'ba'[label == 'b']}x,{'test' if split == 'train' else 'train'},{group}"
        for name, label, split, group in swapped
    ]
    data.write_text("\n".join([header, *lines]) + "\n")
    monkeypatch.setattr(Backbone, "features", None)
    assert extract(data, path)["n_computed"] == 0
    after = open_cache(path)
    assert set(after.classes) == {"ax", "bx"}
    assert after.splits.count("train") == n_test
    for name, row in zip(after.paths, after.features("layer4")):
        np.testing.assert_array_equal(row, features[name])


# Damage, and disks and file systems that refuse


def test_training_on_a_damaged_cache_is_refused_wherever_the_damage_is(finished, tmp_path):
    content = bytearray(finished.read_bytes())
    layout = open_cache(finished)._layout
    for name in ("features/layer4", "label", "path", "digest", "metadata"):
        item = layout.data_sets.get(name)
        place = item.offset + item.n_bytes // 2 if item else content.index(b"\x89HDF") + 40
        spoilt = content.copy()
        spoilt[place] ^= 4
        path = tmp_path / "pages.h5"
        path.write_bytes(spoilt)
        code, _, log = invoke("fit-head", path, "--out", tmp_path / "runs")
        assert code == 1
        assert log.startswith(f"Error: {path} is damaged: ")
        assert (name in log) == (item is not None)
        code, _, log = invoke("cache", "verify", path)
        assert code == 1
        assert (name in log) == (item is not None)
    assert not (tmp_path / "runs").exists()


def test_a_file_system_without_locks_is_no_obstacle(pages, whole, tmp_path, monkeypatch):
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    extract(pages, tmp_path / "pages.h5")
    assert data_of(open_cache(tmp_path / "pages.h5")) == whole
    assert not list(tmp_path.glob("*.lock"))


NO_LOCKS = """
#include <errno.h>
#include <fcntl.h>
int flock(int fd, int operation) { errno = ENOLCK; return -1; }
int lockf(int fd, int command, off_t length) { errno = ENOLCK; return -1; }
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux" or not shutil.which("cc"), reason="needs cc on Linux")
def test_where_every_locking_call_of_the_process_fails_it_works(
    pages, whole, tmp_path, monkeypatch
):
    """HDF5's own calls too."""
    (tmp_path / "locks.c").write_text(NO_LOCKS)
    library = tmp_path / "locks.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, tmp_path / "locks.c"], check=True)
    monkeypatch.setenv("LD_PRELOAD", str(library))
    with start(pages, tmp_path / "pages.h5") as process:
        _, log = process.communicate(timeout=120)
    assert process.returncode == 0, log
    assert data_of(open_cache(tmp_path / "pages.h5")) == whole


@pytest.mark.parametrize("n_sizes", [1, pytest.param(20, marks=pytest.mark.slow)], ids=["1", "20"])
def test_a_full_disk_ends_with_exit_code_1_and_its_cause(
    pages, whole, small_disk, monkeypatch, n_sizes
):
    monkeypatch.setattr(extraction_module, "PART_ROWS", 4)
    codes = []
    for n_kib in np.linspace(40, 260, n_sizes).astype(int).tolist():
        path = small_disk(n_kib) / "pages.h5"
        code, _, log = invoke("extract", pages, *OPTIONS, "--cache", path)
        codes.append(code)
        assert code == 0 or (code == 1 and "the disk is full" in log.splitlines()[-1])
        committed = committed_rows(path)
        subprocess.run(["mount", "-o", "remount,size=4m", str(path.parent)], check=True)
        assert extract(pages, path)["n_computed"] == N_PAGES - len(committed)
        assert data_of(open_cache(path)) == whole
    assert codes[0] == 1
    assert codes[-1] == (0 if n_sizes > 1 else 1)
    print(f"{codes.count(1)} of {n_sizes} disks were too small")


def test_an_image_that_cannot_be_read_for_now_is_tried_again(pages, whole, tmp_path, monkeypatch):
    path = tmp_path / "pages.h5"
    plain, failing = decoding_module._open_without_waiting, {"0004.png", "0007.png"}

    def refuse(name: str, flags: int) -> int:
        if Path(name).name in failing:
            raise OSError(errno.EACCES, os.strerror(errno.EACCES))
        return plain(name, flags)

    monkeypatch.setattr(decoding_module, "_open_without_waiting", refuse)
    assert extract(pages, path)["quarantined"] == 2
    content = path.read_bytes()
    done = extract(pages, path)
    assert (done["n_computed"], done["quarantined"]) == (0, 2)
    assert path.read_bytes() == content
    failing.clear()
    assert extract(pages, path)["n_computed"] == 2
    assert data_of(open_cache(path)) == whole
