"""Files from strangers, with a right digest: refused before anything is read, at no cost."""

from __future__ import annotations

import hashlib
import json
import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from ecgfeat.errors import CacheDamagedError, CacheError, CacheFormatError
from ecgfeat.feature_cache import open_cache, verify_cache

from .fakes import HEADER

N_ROWS = 4
BLOCK_BYTES = 512
HOSTILE_MEMORY_MIB = 300

Spoil = Callable[[h5py.File], None]


def seal(path: Path) -> None:
    """Put the user block over the finished file, as docs/cache-format.md says."""
    body = path.read_bytes()[BLOCK_BYTES:]
    lines = "ecgfeat feature cache\nformat 1\nblock {}\nsha256 {}\n"
    unsealed = lines.format(BLOCK_BYTES, "0" * 64).encode().ljust(BLOCK_BYTES, b"\0")
    digest = hashlib.sha256(body + unsealed).hexdigest().encode()
    path.write_bytes(unsealed.replace(b"0" * 64, digest, 1) + body)


def text(value: str, width: int | None = None) -> np.ndarray:
    data = value.encode()
    return np.array(data, dtype=h5py.string_dtype("utf-8", width or max(1, len(data))))


def texts(*values: str) -> np.ndarray:
    encoded = [value.encode() for value in values]
    width = max((len(value) for value in encoded), default=0) or 1
    return np.array(encoded, dtype=h5py.string_dtype("utf-8", width))


def forge(path: Path, spoil: Spoil = lambda file: None) -> Path:
    """Write a cache with plain h5py alone, following the specification; then spoil it."""
    with h5py.File(path, "w", userblock_size=BLOCK_BYTES) as file:
        facts = {
            name: getattr(HEADER, name)
            for name in ("arch", "weights", "weights_digest", "crop_mode", "size", "resampling")
        }
        facts |= {"decoder": "x 1.0", "device": "cpu", "precision": "fp32", "created": "now"}
        facts |= {"format": "ecgfeat feature cache", "data_name": "d", "data_digest": "e"}
        for name, value in facts.items():
            file.attrs[name] = text(value)
        file.attrs["format_version"] = np.int64(1)
        file.attrs["extraction_s"] = np.float64(1.5)
        file.attrs["mean"] = np.array(HEADER.mean)
        file.attrs["std"] = np.array(HEADER.std)
        file["classes"] = texts("a", "b")
        file["path"] = texts("0.png", "1.png", "2.png", "3.png")
        file["label"] = texts("a", "b", "a", "b")
        file["split"] = texts("train", "train", "train", "test")
        file["group"] = texts("", "", "", "")
        file["n_bytes"] = np.arange(N_ROWS, dtype="<i8")
        file["mtime_ns"] = np.arange(N_ROWS, dtype="<i8")
        file["digest"] = np.zeros((N_ROWS, 16), "u1")
        file["features/layer4"] = np.ones((N_ROWS, 8), "<f4")
        file["metadata/age"] = texts("1", "2", "3", "4")
        for name in ("label", "split"):
            file[f"missing/{name}"] = texts()
        file["missing/count"] = np.zeros(0, "<i8")
        for name in ("path", "label", "split", "group", "reason"):
            file[f"quarantine/{name}"] = texts()
        for name in ("before", "n_bytes", "mtime_ns"):
            file[f"quarantine/{name}"] = np.zeros(0, "<i8")
        file.create_group("versions").attrs["numpy"] = text("2.0")
        spoil(file)
    seal(path)
    return path


def test_a_cache_written_by_another_program_is_read(tmp_path):
    cache = open_cache(forge(tmp_path / "other.h5"))
    assert cache.labels == ("a", "b", "a", "b")
    X, y, _ = cache.arrays("train", "layer4")
    assert X.shape == (3, 8)
    assert y.tolist() == [0, 1, 0]
    assert verify_cache(cache.path) == []


def put(name: str, value: object, **options: object) -> Spoil:
    """Replace a data set."""

    def spoil(file: h5py.File) -> None:
        if name in file:
            del file[name]
        if "shape" in options:
            file.create_dataset(name, **options)
        else:
            file.create_dataset(name, data=value, **options)

    return spoil


def link(name: str, target: object) -> Spoil:
    def spoil(file: h5py.File) -> None:
        if name in file:
            del file[name]
        file[name] = target

    return spoil


def attribute(name: str, value: object) -> Spoil:
    def spoil(file: h5py.File) -> None:
        file.attrs.pop(name, None)
        if value is not None:
            file.attrs[name] = value

    return spoil


def virtual(file: h5py.File) -> None:
    del file["features/layer4"]
    layout = h5py.VirtualLayout((N_ROWS, 8), "<f4")
    layout[:] = h5py.VirtualSource("/etc/hostname", "secret", (N_ROWS, 8), "<f4")
    file.create_virtual_dataset("features/layer4", layout)


def compact(file: h5py.File) -> None:
    del file["n_bytes"]
    properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    properties.set_layout(h5py.h5d.COMPACT)
    space = h5py.h5s.create_simple((N_ROWS,))
    h5py.h5d.create(file.id, b"n_bytes", h5py.h5t.STD_I64LE, space, properties)


def committed_type(file: h5py.File) -> None:
    del file["label"]
    file["label"] = np.dtype("S3")


def second_name(file: h5py.File) -> None:
    file["metadata/again"] = file["metadata/age"]


def cycle(file: h5py.File) -> None:
    del file["metadata"]
    file["metadata"] = file["/"]


def many(file: h5py.File) -> None:
    for number in range(1030):
        file["metadata"].create_dataset(f"{number}", data=texts("1", "2", "3", "4"))


def many_attributes(file: h5py.File) -> None:
    for number in range(70):
        file["versions"].attrs[f"package {number}"] = text("1.0")


def space_padded(file: h5py.File) -> None:
    del file["label"]
    kind = h5py.h5t.C_S1.copy()
    kind.set_size(3)
    kind.set_strpad(h5py.h5t.STR_SPACEPAD)
    space = h5py.h5s.create_simple((N_ROWS,))
    stored = h5py.h5d.create(file.id, b"label", kind, space)
    stored.write(h5py.h5s.ALL, h5py.h5s.ALL, np.array([b"a  "] * N_ROWS), kind)


HUGE = (2**40, 512)
HOSTILE: dict[str, tuple[Spoil, str]] = {
    "external link": (
        link("features/layer4", h5py.ExternalLink("/etc/hostname", "/x")),
        "features/layer4: it is a link to elsewhere",
    ),
    "external link for a group": (
        link("metadata", h5py.ExternalLink("/etc/hostname", "/x")),
        "metadata: it is a link to elsewhere",
    ),
    "soft link": (
        link("features/layer4", h5py.SoftLink("/digest")),
        "features/layer4: it is a link to elsewhere",
    ),
    "external storage": (
        put(
            "features/layer4",
            None,
            shape=(N_ROWS, 8),
            dtype="<f4",
            external=[("/etc/hostname", 0, N_ROWS * 32)],
        ),
        "features/layer4: its contents lie in another file",
    ),
    "virtual": (virtual, "features/layer4: its layout isn't contiguous"),
    "compressed bomb": (
        put(
            "features/layer4",
            None,
            shape=HUGE,
            dtype="<f4",
            compression="gzip",
            chunks=(2**16, 512),
        ),
        "features/layer4: its layout isn't contiguous",
    ),
    "chunked": (
        put("label", texts("a", "b", "a", "b"), maxshape=(None,)),
        "label: its layout isn't contiguous",
    ),
    "compact": (compact, "n_bytes: its layout isn't contiguous"),
    "absurd shape, never stored": (
        put("features/layer4", None, shape=HUGE, dtype="<f4"),
        "features/layer4: shape (1099511627776, 512) doesn't fit 0 bytes",
    ),
    "rows that don't agree": (
        put("features/layer4", np.ones((N_ROWS + 1, 8), "<f4")),
        "features/layer4: shape (5, 8), where (4, 8) belongs",
    ),
    "three dimensions": (
        put("features/layer4", np.ones((N_ROWS, 2, 2), "<f4")),
        "features/layer4: shape (4, 2, 2), where (4, width) belongs",
    ),
    "one dimension": (
        put("features/layer4", np.ones(N_ROWS, "<f4")),
        "features/layer4: shape (4,), where (4, width) belongs",
    ),
    "no shape": (put("n_bytes", h5py.Empty("<i8")), "n_bytes: "),
    "a scalar": (put("n_bytes", np.int64(1)), "n_bytes: "),
    "doubles": (
        put("features/layer4", np.ones((N_ROWS, 8), "<f8")),
        "features/layer4: its type isn't float32, little-endian",
    ),
    "big-endian": (
        put("features/layer4", np.ones((N_ROWS, 8), ">f4")),
        "features/layer4: its type isn't float32, little-endian",
    ),
    "unsigned": (put("n_bytes", np.ones(N_ROWS, "<u8")), "n_bytes: its type isn't int64"),
    "a compound": (
        put("n_bytes", np.zeros(N_ROWS, [("a", "<i4"), ("b", "<i4")])),
        "n_bytes: its type isn't int64",
    ),
    "text of variable length": (
        put("label", ["a", "b", "a", "b"], dtype=h5py.string_dtype()),
        "label: its type isn't text of fixed length",
    ),
    "references": (
        put("label", np.array([h5py.Reference()] * N_ROWS, h5py.ref_dtype)),
        "label: its type isn't text of fixed length",
    ),
    "text too long": (
        put("label", np.array(["a"] * N_ROWS, h5py.string_dtype("utf-8", 4097))),
        "label: its type isn't text of fixed length up to 4096 bytes",
    ),
    "text padded by blanks": (space_padded, "label: its type isn't text of fixed length"),
    "a type in place of data": (committed_type, "label: it isn't a data set"),
    "a group in place of data": (
        lambda file: (file.__delitem__("label"), file.create_group("label")),
        "label: it isn't a data set",
    ),
    "data in place of a group": (put("versions", np.ones(3)), "versions: it isn't a group"),
    "an over-long name": (
        put("metadata/" + "x" * 256, texts("1", "2", "3", "4")),
        "metadata: a name of 256 bytes, above 255",
    ),
    "a column of another length": (
        put("metadata/classes", texts("1", "2")),
        "metadata/classes: shape (2,), where (4,) belongs",
    ),
    "too many objects": (many, "metadata: more than 1024 objects"),
    "too many attributes": (many_attributes, "versions: more than 64 attributes"),
    "an unknown object": (put("extra", np.ones(3)), "extra: the format has no such object"),
    "an unknown member": (
        put("missing/extra", np.ones(3)),
        "missing/extra: the format has no such object",
    ),
    "a missing data set": (lambda file: file.__delitem__("split"), "split: it is missing"),
    "no layer": (lambda file: file.__delitem__("features/layer4"), "features: it is empty"),
    "a missing group": (lambda file: file.__delitem__("metadata"), "metadata: it is missing"),
    "two names for the same bytes": (second_name, "its bytes overlap those of metadata/a"),
    "a cycle": (cycle, "metadata/"),
    "an attribute of variable length": (
        attribute("arch", "resnet18"),
        "/, attribute arch: its type or shape isn't the format's",
    ),
    "an attribute of another type": (
        attribute("mean", np.array([1, 2, 3])),
        "/, attribute mean: its type or shape isn't the format's",
    ),
    "a missing attribute": (
        attribute("arch", None),
        "its attribute 'arch' is missing or of another type",
    ),
    "a recipe that is a number": (
        attribute("recipe", np.float64(3)),
        "its attribute 'recipe' is missing or of another type",
    ),
    "an attribute of a wrong kind": (
        attribute("arch", np.float64(3)),
        "its attribute 'arch' is missing or of another type",
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_reaches_outside_or_claims_too_much_is_refused(tmp_path, name):
    spoil, words = HOSTILE[name]
    path = forge(tmp_path / "hostile.h5", spoil)
    with pytest.raises(CacheFormatError) as caught:
        open_cache(path)
    assert words in str(caught.value)
    assert str(caught.value).startswith(f"{path} is refused: ")
    assert verify_cache(path) == [str(caught.value)]


def test_the_message_says_what_to_do(tmp_path):
    path = forge(tmp_path / "hostile.h5", HOSTILE["soft link"][0])
    with pytest.raises(CacheFormatError) as caught:
        open_cache(path)
    assert str(caught.value) == (
        f"{path} is refused: features/layer4: it is a link to elsewhere. Use a cache made by "
        "`ecgfeat extract`, or see docs/cache-format.md."
    )


def test_no_file_outside_is_opened(tmp_path, monkeypatch):
    """A named pipe would make whoever opens it wait for ever."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)

    def external(file: h5py.File) -> None:
        link("features/layer4", h5py.ExternalLink(str(pipe), "/x"))(file)

    def virtual_pipe(file: h5py.File) -> None:
        del file["features/layer4"]
        layout = h5py.VirtualLayout((N_ROWS, 8), "<f4", maxshape=(None, 8))
        source = h5py.VirtualSource(str(pipe), "x", (N_ROWS, 8), "<f4", maxshape=(None, 8))
        layout[: h5py.h5s.UNLIMITED, :] = source[: h5py.h5s.UNLIMITED, :]
        file.create_virtual_dataset("features/layer4", layout)

    for number, spoil in enumerate((external, virtual_pipe)):
        path = forge(tmp_path / f"{number}.h5", spoil)
        command = [sys.executable, "-c", OPEN, str(path)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
        assert json.loads(done.stdout)["outcomes"] == ["CacheFormatError"]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_features_that_are_not_finite_are_found_when_used_and_by_verify(tmp_path, value):
    values = np.ones((N_ROWS, 8), "<f4")
    values[2, 3] = value
    cache = open_cache(forge(tmp_path / "hostile.h5", put("features/layer4", values)))
    with pytest.raises(CacheDamagedError, match="features/layer4 holds values that aren't finite"):
        cache.arrays("train", "layer4")
    assert "aren't finite" in verify_cache(cache.path)[0]


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (put("label", texts("a", "b", "a", "x")), "a label isn't one of the classes"),
        (
            put("split", texts("train", "tset", "test", "test")),
            "a split is none of train, val and test",
        ),
        (put("path", texts("0", "1", "1", "2")), "two rows have the same path"),
    ],
)
def test_what_the_structure_does_not_show_is_found_by_verify(tmp_path, spoil, words):
    path = forge(tmp_path / "hostile.h5", spoil)
    assert verify_cache(path) == [f"{path}: {words}"]


def test_a_label_of_no_class_is_an_error_where_it_is_used(tmp_path):
    spoil = put("label", texts("a", "b", "a", "x"))
    cache = open_cache(forge(tmp_path / "hostile.h5", spoil))
    with pytest.raises(CacheError, match="the label 'x' isn't one of the classes a, b"):
        cache.arrays("train", "layer4")


OPEN = """
import json, resource, sys
from pathlib import Path
from ecgfeat.errors import CacheError
from ecgfeat.feature_cache import open_cache, verify_cache
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
before = peak()
outcomes = []
for path in sys.argv[1:]:
    try:
        open_cache(path)
        outcomes.append("opened")
        verify_cache(Path(path))
    except CacheError as error:
        outcomes.append(type(error).__name__)
print(json.dumps({"outcomes": outcomes, "mib": peak() - before}))
"""


def open_elsewhere(paths: list[Path]) -> tuple[list[str], float]:
    """Open files in a process of their own: what came of each, and the memory in MiB."""
    command = [sys.executable, "-c", OPEN, *map(str, paths)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    said = json.loads(done.stdout)
    return said["outcomes"], said["mib"]


def test_hostile_files_cost_little_memory(tmp_path):
    paths = [
        forge(tmp_path / f"{number}.h5", spoil)
        for number, (spoil, _) in enumerate(HOSTILE.values())
    ]
    outcomes, mib = open_elsewhere(paths)
    assert outcomes == ["CacheFormatError"] * len(HOSTILE)
    assert mib < HOSTILE_MEMORY_MIB
    print(f"{len(paths)} hostile files: {mib:.0f} MiB above the imports")


@pytest.mark.parametrize(
    "n_files", [150, pytest.param(5000, marks=pytest.mark.slow)], ids=["150", "5000"]
)
def test_a_spoilt_structure_with_a_right_digest_does_no_harm(tmp_path, n_files):
    """Bytes of HDF5's own structures changed at random: HDF5 must refuse, or read on soundly."""
    forged = forge(tmp_path / "forged.h5")
    content = forged.read_bytes()
    structure = range(BLOCK_BYTES, len(content))
    picked = random.Random(0)
    paths = []
    for number in range(n_files):
        spoilt = bytearray(content)
        for position in picked.sample(structure, picked.choice((1, 1, 2, 8))):
            spoilt[position] = picked.choice((0, 255, picked.randrange(256)))
        path = tmp_path / f"{number}.h5"
        path.write_bytes(spoilt)
        seal(path)
        paths.append(path)
    for path in paths[:20]:
        path.write_bytes(path.read_bytes()[: picked.randrange(600, len(content))])
        seal(path)
    refused = 0
    for start in range(0, n_files, 500):
        outcomes, mib = open_elsewhere(paths[start : start + 500])
        assert set(outcomes) <= {"CacheFormatError", "CacheDamagedError", "opened"}
        assert mib < HOSTILE_MEMORY_MIB
        refused += len(outcomes) - outcomes.count("opened")
    assert refused > 0
    print(f"{n_files} spoilt structures: {refused} refused, no crash")
