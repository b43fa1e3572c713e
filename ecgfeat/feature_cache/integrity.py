"""The user block: what the file is, and a digest that covers every byte of it.

HDF5 leaves the bytes before its own signature to the user. There stand, as text, the format
version, a digest over the whole file, and one for each data set, which tells where a damage is.
All of it is checked before HDF5 parses anything. docs/cache-format.md is the specification.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path

from ecgfeat.errors import CacheDamagedError, CacheFormatError
from ecgfeat.feature_cache.schema import FORMAT_NAME, FORMAT_VERSION

__all__ = ["Section", "UserBlock", "check_file", "read_block"]

MAX_BLOCK_BYTES = 2**20
NO_DIGEST = "0" * 64
_START = re.compile(
    FORMAT_NAME.encode() + rb"\nformat (\d{1,9})\nblock (\d{1,9})\nsha256 ([0-9a-f]{64})\n"
)
_SECTION = re.compile(r"(\d{1,19}) (\d{1,19}) ([0-9a-f]{64}) (\S.*)")


@dataclass(frozen=True)
class Section:
    """One data set's bytes in the file."""

    offset: int
    n_bytes: int
    digest: str
    name: str


@dataclass(frozen=True)
class UserBlock:
    """The first bytes of a cache.

    Attributes
    ----------
    n_bytes : int
        Its length: a power of two from 512.
    digest : str
        SHA-256 over all bytes after the block, then the block itself with 64 zeros in place of
        this digest; hexadecimal.
    sections : tuple of Section
    """

    n_bytes: int
    digest: str
    sections: tuple[Section, ...]

    def encode(self) -> bytes:
        """The block's bytes."""
        lines = [
            FORMAT_NAME,
            f"format {FORMAT_VERSION}",
            f"block {self.n_bytes}",
            f"sha256 {self.digest}",
            *(f"{s.offset} {s.n_bytes} {s.digest} {s.name}" for s in self.sections),
        ]
        text = "".join(f"{line}\n" for line in lines).encode()
        return text.ljust(self.n_bytes, b"\0")


def block_size(names: Sequence[str]) -> int:
    """Bytes for a user block with a section for each of `names`: a power of two from 512."""
    longest_line = len(f"{2**63} {2**63} {NO_DIGEST} \n")
    n_bytes = 256 + sum(longest_line + len(name.encode()) for name in names)
    return max(512, 1 << (n_bytes - 1).bit_length())


def read_block(file: BufferedReader, path: Path) -> UserBlock:
    """Read the user block of `file`, which is left at its end.

    Raises
    ------
    CacheFormatError
        When the file is no cache, or one of another format version.
    """
    file.seek(0)
    start = file.read(512)
    match = _START.match(start)
    if match is None:
        raise CacheFormatError(
            f"{path} isn't a feature cache of ecgfeat, or its first bytes are damaged. Give a "
            "file that `ecgfeat extract` made."
        )
    if int(match[1]) != FORMAT_VERSION:
        raise CacheFormatError(
            f"{path} is written in format version {int(match[1])}, but this ecgfeat reads "
            f"version {FORMAT_VERSION}. Install the ecgfeat that wrote it, or extract to "
            "another file with --cache."
        )
    n_bytes = int(match[2])
    if not 512 <= n_bytes <= MAX_BLOCK_BYTES or n_bytes & (n_bytes - 1):
        raise _damaged(path, "its first 512 bytes aren't what was written")
    text = (start + file.read(n_bytes - 512))[match.end() :].rstrip(b"\0")
    found = (_SECTION.fullmatch(line) for line in text.decode(errors="replace").split("\n"))
    sections = tuple(Section(int(m[1]), int(m[2]), m[3], m[4]) for m in found if m)
    return UserBlock(n_bytes, match[3].decode(), sections)


def check_file(file: BufferedReader, block: UserBlock, path: Path) -> None:
    """Compare every byte of `file` with its digest, reading it once.

    Raises
    ------
    CacheDamagedError
        The message names the damaged data sets.
    """
    file.seek(block.n_bytes)
    digest = hashlib.file_digest(file, "sha256")
    file.seek(0)
    digest.update(file.read(block.n_bytes).replace(block.digest.encode(), NO_DIGEST.encode(), 1))
    if digest.hexdigest() != block.digest:
        raise _damaged(path, _damaged_place(file, block))


def _damaged_place(file: BufferedReader, block: UserBlock) -> str:
    n_bytes = os.fstat(file.fileno()).st_size
    ends = max((section.offset + section.n_bytes for section in block.sections), default=0)
    if n_bytes < ends:
        return f"it ends after {n_bytes} of at least {ends} bytes"
    names = [section.name for section in block.sections if _section_differs(file, section)]
    if not names:
        return f"its first {block.n_bytes} bytes or its HDF5 structure aren't what was written"
    return f"{', '.join(names)} {'aren' if len(names) > 1 else 'isn'}'t what was written"


def _section_differs(file: BufferedReader, section: Section) -> bool:
    digest = hashlib.sha256()
    file.seek(section.offset)
    left = section.n_bytes
    while left:
        data = file.read(min(left, 2**20))
        if not data:
            return True
        digest.update(data)
        left -= len(data)
    return digest.hexdigest() != section.digest


def _damaged(path: Path, place: str) -> CacheDamagedError:
    return CacheDamagedError(
        f"{path} is damaged: {place}. Restore the file from a copy, or delete it and extract again."
    )
