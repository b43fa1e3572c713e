"""Every flipped bit is found, and the message says where."""

from __future__ import annotations

import hashlib
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ecgfeat.errors import CacheDamagedError, CacheError, CacheFormatError, CacheLockedError
from ecgfeat.feature_cache import FeatureCache, open_cache, verify_cache

from .fakes import fill, make_manifest


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> FeatureCache:
    folder = tmp_path_factory.mktemp("cache")
    return fill(folder / "pages.h5", make_manifest(folder / "images"), bad=[9])


def flip(content: bytes, bit: int) -> bytes:
    spoilt = bytearray(content)
    spoilt[bit // 8] ^= 1 << bit % 8
    return bytes(spoilt)


def assert_every_flip_is_found(content: bytes, bits: list[int], path: Path) -> None:
    for bit in bits:
        path.write_bytes(flip(content, bit))
        with pytest.raises((CacheDamagedError, CacheFormatError)):
            open_cache(path)
        assert verify_cache(path), f"bit {bit} isn't reported"


def test_single_flipped_bits_are_found(cache, tmp_path):
    content = cache.path.read_bytes()
    # A flip in the user block's first lines is the hardest: they say how to check the rest.
    bits = [*range(0, 8 * 110, 7), *random.Random(0).sample(range(8 * len(content)), 60)]
    assert_every_flip_is_found(content, bits, tmp_path / "pages.h5")


@pytest.mark.slow
def test_a_thousand_flipped_bits_and_all_of_the_first_lines_are_found(cache, tmp_path):
    content = cache.path.read_bytes()
    bits = [*range(8 * 110), *random.Random(1).sample(range(8 * len(content)), 1000)]
    assert_every_flip_is_found(content, bits, tmp_path / "pages.h5")


@pytest.mark.parametrize("place", ["features/layer4", "label", "digest", "quarantine/reason"])
def test_the_damaged_data_set_is_named(cache, tmp_path, place):
    copy = tmp_path / "pages.h5"
    item = cache._layout.data_sets[place]
    copy.write_bytes(flip(cache.path.read_bytes(), 8 * (item.offset + item.n_bytes // 2)))
    message = (
        f"{copy} is damaged: {place} isn't what was written. Restore the file from a copy, or "
        "delete it and extract again."
    )
    with pytest.raises(CacheDamagedError) as caught:
        open_cache(copy)
    assert str(caught.value) == message
    assert verify_cache(copy) == [message]


def test_damage_outside_the_data_sets_is_told_apart(cache, tmp_path):
    copy = tmp_path / "pages.h5"
    content = cache.path.read_bytes()
    copy.write_bytes(flip(content, 8 * (content.index(b"\x89HDF") + 40)))
    with pytest.raises(CacheDamagedError, match="its first 4096 bytes or its HDF5 structure"):
        open_cache(copy)


def test_a_file_that_was_cut_short_is_found(cache, tmp_path):
    copy = tmp_path / "pages.h5"
    content = cache.path.read_bytes()
    for n_bytes in (600, 5000, len(content) - 1):
        copy.write_bytes(content[:n_bytes])
        with pytest.raises(CacheDamagedError):
            open_cache(copy)
    copy.write_bytes(content[:5000])
    with pytest.raises(CacheDamagedError, match="it ends after 5000 of at least"):
        open_cache(copy)


def test_bytes_added_at_the_end_are_found(cache, tmp_path):
    copy = tmp_path / "pages.h5"
    copy.write_bytes(cache.path.read_bytes() + b"\0")
    with pytest.raises(CacheDamagedError):
        open_cache(copy)


def test_damage_that_comes_after_the_opening_is_found_by_verify(cache, tmp_path):
    copy = tmp_path / "pages.h5"
    copy.write_bytes(cache.path.read_bytes())
    assert verify_cache(copy) == []
    copy.write_bytes(flip(copy.read_bytes(), 8 * 15000))
    assert len(verify_cache(copy)) == 1


def test_a_block_size_that_is_none_is_found(cache, tmp_path):
    copy = tmp_path / "pages.h5"
    content = cache.path.read_bytes()
    for size in (b"0", b"511", b"4097", b"2097152", b"999999999"):
        copy.write_bytes(content.replace(b"block 4096\n", b"block " + size + b"\n", 1))
        with pytest.raises(CacheError):
            open_cache(copy)


@pytest.mark.slow
def test_checking_171_mb_takes_less_than_a_second(tmp_path):
    """What a study's layer4 weighs: 83,736 rows of 512 values."""
    from ecgfeat.feature_cache.reader import NO_DIGEST, UserBlock, check_file

    path = tmp_path / "big"
    body = bytes(83_736 * 512 * 4)
    unsealed = UserBlock(4096, NO_DIGEST, ())
    digest = hashlib.sha256(body + unsealed.encode()).hexdigest()
    block = UserBlock(4096, digest, ())
    path.write_bytes(block.encode() + body)
    times = []
    for _ in range(3):
        start = time.perf_counter()
        with path.open("rb") as file:
            check_file(file, block, path)
        times.append(time.perf_counter() - start)
    print(f"checking {len(body) / 1e6:.0f} MB took {min(times):.2f} s")
    assert min(times) < 1


_HOLDER = """
import sys, h5py
file = h5py.File(sys.argv[1], "a")
print("open", flush=True)
sys.stdin.read()
"""


def test_a_cache_open_for_writing_elsewhere_is_said_to_be_and_not_called_damaged(tmp_path):
    path = tmp_path / "pages.h5"
    fill(path, make_manifest(tmp_path / "images"))
    paths = open_cache(path).paths
    with subprocess.Popen(
        [sys.executable, "-c", _HOLDER, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout.readline() == b"open\n"
        with pytest.raises(CacheLockedError) as caught:
            open_cache(path)
        holder.kill()
    assert str(caught.value) == (
        f"{path} is open for writing in another process, such as a notebook: close it there. What "
        "ecgfeat wrote is whole."
    )
    # The killed process leaves HDF5's mark in the file, and nothing else.
    assert open_cache(path).paths == paths
    assert verify_cache(path) == []
    spoilt = bytearray(path.read_bytes())
    spoilt[-9] ^= 1
    path.write_bytes(spoilt)
    with pytest.raises(CacheDamagedError):
        open_cache(path)
