"""Every error ecgfeat raises on purpose.

::

    EcgfeatError
    ├── ConfigError            an option is out of range, or two don't go together
    ├── DataError              the folder, the CSV or its rows are not what they should be
    │   └── ImageError         one image can't be decoded (quarantined, never fatal alone)
    ├── WeightsError           the backbone's weights can't be had or don't fit
    ├── DeviceError            the device or precision isn't there or isn't sound, or memory lacks
    ├── CacheError             a feature cache can't be used
    │   ├── CacheFormatError   it isn't one, or another format version wrote it
    │   ├── CacheMismatchError it was computed another way (names the field, both values)
    │   ├── CacheDamagedError  its bytes are not those that were written
    │   └── CacheLockedError   another process is writing it
    ├── TrainingError          training had to stop: memory, or another process of it
    │   └── DivergedError      its loss is no longer finite: going on would be of no use
    ├── RunError               a run folder can't be used
    ├── StorageError           the disk refused: no space, no permission, an I/O error
    └── Interrupted            a progress callback asked the job to stop; what is done is kept

Each message says what was expected, what was found, where, and what to do.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path

__all__ = [
    "CacheDamagedError",
    "CacheError",
    "CacheFormatError",
    "CacheLockedError",
    "CacheMismatchError",
    "ConfigError",
    "DataError",
    "DeviceError",
    "DivergedError",
    "EcgfeatError",
    "ImageError",
    "Interrupted",
    "RunError",
    "StorageError",
    "TrainingError",
    "WeightsError",
]


class EcgfeatError(Exception):
    """Base of every error that ecgfeat raises on purpose."""


class ConfigError(EcgfeatError):
    """An option is out of range, or two options don't go together."""


class DataError(EcgfeatError):
    """The data set (folder, CSV, rows) is not what it should be."""


class ImageError(DataError):
    """One image can't be decoded.

    Parameters
    ----------
    reason : str
        What a person reads in quarantine.csv.
    passing : bool, default False
        Whether the file's bytes couldn't be had, so that another try may succeed.
    """

    def __init__(self, reason: str, *, passing: bool = False) -> None:
        self.passing = passing
        super().__init__(reason)


class WeightsError(EcgfeatError):
    """The backbone's weights can't be had or don't fit the architecture."""


class DeviceError(EcgfeatError):
    """The device or precision asked for isn't there, failed its self-check, or lacks memory."""


class CacheError(EcgfeatError):
    """A feature cache can't be used."""


class CacheFormatError(CacheError):
    """The file is no feature cache, or another format version wrote it."""


class CacheMismatchError(CacheError):
    """The cache was computed another way than asked for.

    Parameters
    ----------
    field : str
        Name of the header field that differs, e.g. ``"crop_mode"``.
    expected, found : object
        The value asked for and the value in the file.
    path : Path
        The cache.
    """

    def __init__(self, field: str, expected: object, found: object, path: Path) -> None:
        self.field = field
        self.expected = expected
        self.found = found
        self.path = path
        super().__init__(
            f"{path} was computed with {field} {found!r}, but {expected!r} is asked for. "
            f"Ask for {found!r}, or give another file with --cache."
        )


class CacheDamagedError(CacheError):
    """The cache's bytes are not those that were written."""


class CacheLockedError(CacheError):
    """Another process is writing the same cache."""


class TrainingError(EcgfeatError):
    """Training had to stop: memory is too small, or another process of it failed."""


class DivergedError(TrainingError):
    """The loss or a weight is no longer finite; from the last checkpoint it would be so again."""


class RunError(EcgfeatError):
    """A run folder can't be used: it isn't one, is unfinished, or holds something else."""


class StorageError(EcgfeatError):
    """The disk refused to read or write; see `storage_error` for the usual causes' words."""


class Interrupted(EcgfeatError):
    """Raised by a progress callback to stop a job at the next safe point.

    The job keeps what is finished, then lets the exception pass.

    Parameters
    ----------
    signal_number : int, default 2
        The signal that asked for it (2 SIGINT, 15 SIGTERM); the program exits with 128 + it.
    """

    def __init__(self, signal_number: int = 2) -> None:
        self.signal_number = signal_number
        super().__init__("interrupted")


_STORAGE_MENDS = {
    errno.ENOSPC: "the disk is full: free some space, or name a folder on another disk",
    errno.EDQUOT: "your disk quota is used up: free some space, or name a folder elsewhere",
    errno.EACCES: "permission denied: check its owner and mode, or choose another place",
    errno.EPERM: "permission denied: check its owner and mode, or choose another place",
    errno.EROFS: "the file system is read-only: choose another folder",
    errno.EFBIG: "the file would be larger than this system allows: raise the limit (ulimit -f)",
    errno.EIO: "the device reported an I/O error: check the disk, then run the same command again",
    errno.EEXIST: "a file is in the way: name another folder",
    errno.ENOTDIR: "a file is where a folder should be: name another folder",
    errno.ENOENT: "no such file or folder: check the path",
    errno.ENAMETOOLONG: "the name is too long for this file system: choose a shorter one",
    errno.EMFILE: "too many files are open: raise the limit (ulimit -n)",
}


def storage_error(error: OSError, doing: str, path: Path | str) -> StorageError:
    """Turn an `OSError` into a `StorageError` that names the cause and the mend.

    Parameters
    ----------
    error : OSError
        What the operating system said.
    doing : str
        What was being done, as a gerund: ``"writing"``.
    path : path-like
        The file or folder it happened to.
    """
    number = error.errno
    mend = _STORAGE_MENDS.get(number) if number is not None else None
    cause = mend or (os.strerror(number) if number is not None else str(error))
    return StorageError(f"{doing} {path} failed: {cause}")
