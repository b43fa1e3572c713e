"""Batches of decoded images, in order, made ahead by threads."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ecgfeat.errors import StorageError
from ecgfeat.images import Failure, decode, image_digest, prepare, stream
from ecgfeat.images.formats import Picture
from ecgfeat.preprocessing import Preprocessing

from .crafted import encoded, page_of

PREPROCESSING = Preprocessing(crop_mode="border", width_px=40, height_px=32)


@pytest.fixture
def pages(tmp_path: Path) -> list[Path]:
    """Twelve pages, no two alike; numbers 3 and 8 can't be decoded."""
    paths = []
    for index in range(12):
        path = tmp_path / f"{index}.jpg"
        data = encoded(page_of((50 + index, 40), index), "JPEG" if index % 2 else "PNG")
        path.write_bytes(data[:200] if index in (3, 8) else data)
        paths.append(path)
    return paths


def chunks(rows: Sequence[int], size: int) -> list[Sequence[int]]:
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def our_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if "ecgfeat-images" in thread.name]


@pytest.mark.parametrize("threads", [1, 2, 7])
@pytest.mark.parametrize("size", [1, 5, 12, 50])
def test_batches_come_in_order_whatever_the_threads(
    pages: list[Path], threads: int, size: int
) -> None:
    asked = [11, 0, 7, 3, 5, 10, 2, 8, 1]
    batches = list(stream(pages, chunks(asked, size), PREPROCESSING, threads=threads))
    assert len(batches) == -(-len(asked) // size)
    rows = np.concatenate([batch.rows for batch in batches]).tolist()
    assert rows == [11, 0, 7, 5, 10, 2, 1]
    pixels = np.concatenate([batch.pixels for batch in batches])
    digests = np.concatenate([batch.digests for batch in batches])
    n_bytes = np.concatenate([batch.n_bytes for batch in batches])
    for index, row in enumerate(rows):
        assert np.array_equal(pixels[index], prepare(decode(pages[row]), PREPROCESSING))
        assert digests[index].tobytes() == image_digest(pages[row])
        assert n_bytes[index] == pages[row].stat().st_size
    reason = "cut off: the file ends before the picture does"
    assert [failure for batch in batches for failure in batch.failures] == [
        Failure(row=3, reason=reason, n_bytes=200),
        Failure(row=8, reason=reason, n_bytes=200),
    ]


def test_a_batch_may_be_an_array_of_positions_and_rows_are_plain_integers(
    pages: list[Path],
) -> None:
    (batch,) = stream(pages, [np.array([4, 3])], PREPROCESSING, threads=2)
    assert batch.rows.dtype == np.int64
    assert batch.rows.tolist() == [4]
    assert type(batch.failures[0].row) is int


def test_a_batch_of_failures_only_is_still_a_batch(pages: list[Path]) -> None:
    (batch,) = stream(pages, [[3, 8]], PREPROCESSING, threads=2)
    assert batch.rows.shape == (0,)
    assert batch.pixels.shape == (0, 32, 40, 3)
    assert batch.digests.shape == (0, 16)
    assert [failure.row for failure in batch.failures] == [3, 8]


def test_no_batches_and_empty_batches(pages: list[Path]) -> None:
    assert list(stream(pages, [], PREPROCESSING, threads=2)) == []
    (batch,) = stream(pages, [[]], PREPROCESSING, threads=2)
    assert batch.rows.shape == (0,)


def test_a_file_that_vanishes_is_a_failure(pages: list[Path]) -> None:
    pages[5].unlink()
    (batch,) = stream(pages, [range(4, 7)], PREPROCESSING, threads=2)
    assert batch.rows.tolist() == [4, 6]
    assert batch.failures == [Failure(row=5, reason="no such file", n_bytes=0, passing=True)]


def test_a_strip_too_narrow_for_the_crop_is_a_failure(tmp_path: Path) -> None:
    path = tmp_path / "strip.png"
    path.write_bytes(encoded(np.zeros((1, 30_000, 3), np.uint8), "PNG"))
    center = Preprocessing(crop_mode="center", width_px=224, height_px=224)
    (batch,) = stream([path], [[0]], center, threads=1)
    assert batch.failures[0].reason.startswith("too narrow: crop mode center")


@pytest.mark.parametrize("threads", [1, 2, 8])
@pytest.mark.parametrize("size", [1, 4, 32])
def test_the_look_ahead_is_bounded_however_long_the_data(
    pages: list[Path], threads: int, size: int
) -> None:
    taken = 0

    def endless() -> Iterator[list[int]]:
        nonlocal taken
        while True:
            taken += 1
            yield [0] * size

    with contextlib.closing(stream(pages, endless(), PREPROCESSING, threads=threads)) as batches:
        for given in range(1, 6):
            next(batches)
            n_ahead = (taken - given) * size
            assert size <= n_ahead <= max(size, 2 * threads) + size


def test_closing_stops_the_threads(pages: list[Path]) -> None:
    batches = stream(pages, [[0]] * 10_000, PREPROCESSING, threads=3)
    next(batches)
    assert our_threads()
    batches.close()
    assert not our_threads()


def test_an_error_in_the_consumer_stops_the_threads(pages: list[Path]) -> None:
    def consume() -> None:
        with contextlib.closing(stream(pages, [[0]] * 10_000, PREPROCESSING, threads=3)) as batches:
            for _ in batches:
                raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        consume()
    assert not our_threads()


def test_an_error_in_the_callers_batches_surfaces_and_stops_the_threads(
    pages: list[Path],
) -> None:
    def plan() -> Iterator[list[int]]:
        yield [0]
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        list(stream(pages, plan(), PREPROCESSING, threads=3))
    assert not our_threads()


@pytest.mark.parametrize(
    ("function", "fault"),
    [("streaming.fit", ZeroDivisionError()), ("formats.load", MemoryError())],
    ids=["a defect", "no memory"],
)
def test_what_is_not_the_images_fault_surfaces(
    pages: list[Path], monkeypatch: pytest.MonkeyPatch, function: str, fault: Exception
) -> None:
    def broken(*arguments: object) -> None:
        raise fault

    monkeypatch.setattr(f"ecgfeat.images.{function}", broken)
    with pytest.raises(type(fault)):
        list(stream(pages, [[0, 1]], PREPROCESSING, threads=2))
    assert not our_threads()


def test_too_many_open_files_stop_the_stream_and_blame_no_image(
    pages: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: str, flags: int) -> int:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr("ecgfeat.images.decoding._open_without_waiting", refuse)
    with pytest.raises(StorageError) as caught:
        list(stream(pages, [[0]], PREPROCESSING, threads=1))
    assert str(caught.value) == (
        f"reading {pages[0]} failed: too many files are open: raise the limit (ulimit -n)"
    )


def test_pages_share_a_budget_of_pixels_so_that_giants_are_decoded_one_at_a_time(
    pages: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from ecgfeat.images import streaming as module

    lock, under_way, most = threading.Lock(), 0, 0
    decode_picture = module.decode_picture

    def counting(picture: Picture) -> Image.Image:
        nonlocal under_way, most
        with lock:
            under_way += 1
            most = max(most, under_way)
        time.sleep(0.005)
        page = decode_picture(picture)
        with lock:
            under_way -= 1
        return page

    monkeypatch.setattr(module, "decode_picture", counting)
    asked = [0, 1, 2, 4, 5, 6] * 4
    for budget_px, expected in ((61 * 40, 1), (2 * 61 * 40, 2), (10**6, 4)):
        monkeypatch.setattr(module, "MAX_PIXELS", budget_px)
        most = 0
        list(stream(pages, [asked], PREPROCESSING, threads=4))
        assert most <= expected
    assert most > 1


@pytest.mark.skipif(sys.platform == "win32", reason="sends SIGINT")
def test_ctrl_c_ends_the_program_at_once(pages: list[Path]) -> None:
    program = """if True:
        import sys
        from pathlib import Path
        from ecgfeat.images import stream
        from ecgfeat.preprocessing import Preprocessing
        specification = Preprocessing(crop_mode="center", width_px=224, height_px=224)
        batches = stream([Path(sys.argv[1])], [[0] * 16] * 10**6, specification, threads=2)
        for index, _ in enumerate(batches):
            if index == 1:
                print("going", flush=True)
        """
    with subprocess.Popen(
        [sys.executable, "-c", program, str(pages[0])],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "going\n"
        process.send_signal(signal.SIGINT)
        try:
            assert process.wait(timeout=20) == -signal.SIGINT
        finally:
            process.kill()  # else one that hangs takes the whole suite with it


def test_the_streams_module_needs_no_torch() -> None:
    program = "import sys, ecgfeat.images; print('torch' in sys.modules, 'h5py' in sys.modules)"
    output = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    ).stdout
    assert output.split() == ["False", "False"]
