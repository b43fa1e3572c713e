"""Files that hold drawn pages, or several pages, as data: from DATA to answers."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import ecgfeat
from ecgfeat.attribution import explain, explanation_plot
from ecgfeat.cli import app
from ecgfeat.config import (
    DataSettings,
    ExtractionSettings,
    FinetuneSettings,
    HeadSettings,
    NetworkSettings,
    PageSettings,
)
from ecgfeat.contact_sheet import preview
from ecgfeat.errors import CacheMismatchError, DataError, ImageError
from ecgfeat.extraction import extract
from ecgfeat.feature_cache import open_cache
from ecgfeat.files import MAX_IMAGE_BYTES
from ecgfeat.finetuning import finetune
from ecgfeat.heads import fit_heads
from ecgfeat.images import decode, image_digest
from ecgfeat.inference import predict
from ecgfeat.manifest import pages_named, read_manifest
from ecgfeat.methods import commands_of
from ecgfeat.runtime import Progress

from .conftest import draw_page, write_csv
from .images.test_documents import dicom
from .studies import FP32, weights_drawn_once

__all__ = ["weights_drawn_once"]  # a fixture

PAGE = PageSettings(size="64x48", crop_mode="center")
OPTIONS = {
    "network": NetworkSettings(weights="random:1"),
    "work": ExtractionSettings(layers="layer1,layer2", batch_size=4),
    "compute": FP32,
}


def features(path: Path) -> dict[str, np.ndarray]:
    cache = open_cache(path)
    return dict(zip(cache.paths, cache.features(["layer2"])))


# Dots per inch

PDF_PX = (100, 75)
"""At 150 dpi a whole number of points, so that nothing is rounded at 300."""


@pytest.fixture
def pdfs(tmp_path: Path) -> Path:
    """``pdfs/{train,test}/{a,b}/N.pdf``, with a PNG in each folder."""
    pytest.importorskip("pypdfium2", reason="needs the extra pdf")
    root = tmp_path / "pdfs"
    for split in ("train", "test"):
        for number, label in enumerate("ab"):
            folder = root / split / label
            folder.mkdir(parents=True)
            for index in range(3):
                seed = 100 * (split == "test") + 10 * number + index
                page = draw_page(seed, number, PDF_PX)
                page.save(folder / f"{index}.pdf", resolution=150)
            draw_page(seed + 1, number).save(folder / "3.png")
    return root


def test_a_cache_of_pdfs_belongs_to_their_dots_per_inch(pdfs: Path, tmp_path: Path) -> None:
    fine = replace(PAGE, dpi=300)
    usual = extract(pdfs, cache=tmp_path / "caches", page=PAGE, **OPTIONS).cache
    other = extract(pdfs, cache=tmp_path / "caches", page=fine, **OPTIONS).cache
    assert usual != other
    assert open_cache(other).header.decoder == f"{open_cache(usual).header.decoder} at 300 dpi"
    one, two = features(usual), features(other)
    assert all(np.array_equal(one[p], two[p]) == p.endswith(".png") for p in one)
    with pytest.raises(CacheMismatchError) as caught:
        extract(pdfs, cache=usual, page=fine, **OPTIONS)
    assert str(caught.value) == (
        f"{usual} was computed with dpi 150, but 300 is asked for. Ask for 150, or give another "
        "file with --cache."
    )
    assert extract(pdfs, cache=other, page=fine, **OPTIONS).n_computed == 0


def test_without_pdfs_the_dots_per_inch_decide_nothing(tiny_pages, tmp_path: Path) -> None:
    pages = tiny_pages()
    first = extract(pages, cache=tmp_path / "caches", page=PAGE, **OPTIONS)
    again = extract(pages, cache=tmp_path / "caches", page=replace(PAGE, dpi=300), **OPTIONS)
    assert again.cache == first.cache
    assert again.n_computed == 0


def test_answers_maps_and_sheets_draw_pdfs_as_the_run_did(pdfs: Path, tmp_path: Path) -> None:
    fine = replace(PAGE, dpi=300)
    cache = extract(pdfs, cache=tmp_path / "c.h5", page=fine, **OPTIONS).cache
    (head,) = fit_heads(
        open_cache(cache),
        kinds="linear",
        head=HeadSettings(layers="layer2", epochs=1),
        out_dir=tmp_path / "runs",
    )
    tuned = finetune(
        pdfs,
        network=NetworkSettings(weights="random:1"),
        page=fine,
        compute=FP32,
        training=FinetuneSettings(epochs=1, batch_size=4),
        out_dir=tmp_path / "runs",
    )
    for run in (head, tuned):
        told: list[Progress] = []
        images = [pdfs / path for path in run.predictions.ids]
        answers = predict(run, images, compute=FP32, report=told.append)
        expected = run.predictions.probabilities
        np.testing.assert_allclose(answers.probabilities, expected, atol=1e-5)
        assert not any("decoded by" in progress.message for progress in told)
        (found,) = explain(run, images[:1], check=False).explanations
        assert found.page_px == (200, 150)
        explanation_plot(found, tmp_path / "explained.png")
        assert any("--dpi 300" in line for line in commands_of(run, None))
    shown = preview(pdfs, figure=tmp_path / "sheet.png", page=fine)
    sizes = {Path(seen.path).suffix: seen.page_px for seen in shown.images}
    assert sizes[".pdf"] == (200, 150)


# Several pages

NAMES = ["scan.tif", "scan.tif#page=2", "scan.tif#page=3"]


def save_pages(path: Path, seeds: Sequence[int], label: int = 0, **options: object) -> Path:
    """A file of several pages, each drawn by its seed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    first, *more = (draw_page(seed, label) for seed in seeds)
    first.save(path, save_all=True, append_images=more, **options)
    return path


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    """``scans/{a,b}/{0 to 5}.tif`` of one to three pages, and a PNG in each folder."""
    root = tmp_path / "scans"
    for number, label in enumerate("ab"):
        for index in range(6):
            first = 100 * number + 10 * index
            n_pages = 1 + index % 3
            save_pages(root / label / f"{index}.tif", range(first, first + n_pages), number)
        draw_page(100 * number + 99, number).save(root / label / "6.png")
    return root


ALL = DataSettings(pages="all")


def test_each_page_is_a_row_and_those_of_a_file_a_group_on_one_side(scans: Path) -> None:
    first, manifest = read_manifest(scans), read_manifest(scans, ALL)
    assert len(first) == 14
    assert len(manifest) == 2 * (1 + 2 + 3 + 1 + 2 + 3 + 1)
    assert [p for p in manifest.paths if p.startswith(("a/1", "a/2", "a/3"))] == [
        *("a/1.tif#page=1", "a/1.tif#page=2"),
        *("a/2.tif#page=1", "a/2.tif#page=2", "a/2.tif#page=3"),
        "a/3.tif",
    ]
    side = dict(zip(first.paths, first.splits))
    for path, group, split in zip(manifest.paths, manifest.groups, manifest.splits):
        file, is_page, _ = path.partition("#")
        assert group == (file if is_page else "")
        assert split == side[file]  # the same as without
    assert manifest.name == "scans-all-pages"
    assert "20 of the images are pages of 8 files" in manifest.summary()
    assert "8 groups from files of several pages, 6 images on their own" in manifest.summary()[-1]
    assert manifest.as_json()["of_several_pages"] == {"files": 8, "images": 20}
    assert len(set(manifest.pictures())) == len(manifest)
    assert first.as_json()["of_several_pages"] == {}


def test_a_group_that_the_data_give_holds(tmp_path: Path) -> None:
    save_pages(tmp_path / "scan.tif", [1, 2])
    save_pages(tmp_path / "other.tif", [3, 4], 1)
    listing = write_csv(
        tmp_path / "m.csv",
        [
            {"path": "scan.tif", "label": "a", "group": "p1", "age": "60"},
            {"path": "other.tif", "label": "b", "group": "", "age": "50"},
        ],
    )
    manifest = read_manifest(listing, ALL)
    assert manifest.groups == ("p1", "p1", "other.tif", "other.tif")
    assert manifest.metadata["age"] == ("60", "60", "50", "50")
    assert manifest.group_source == "the column 'group', and files of several pages"


def test_a_csv_may_name_pages(tmp_path: Path) -> None:
    save_pages(tmp_path / "scan.tif", [1, 2, 3])
    draw_page(4, 1).save(tmp_path / "one.png")
    draw_page(5, 1).save(tmp_path / "two.png")
    rows = [
        {"path": "scan.tif#page=3", "label": "a", "split": "train"},
        {"path": "scan.tif#page=1", "label": "a", "split": "train"},
        {"path": "gone.tif#page=2", "label": "a", "split": "train"},
        {"path": "one.png", "label": "b", "split": "train"},
        {"path": "two.png", "label": "b", "split": "test"},
    ]
    listing = write_csv(tmp_path / "m.csv", rows)
    for settings in (DataSettings(), ALL):
        manifest = read_manifest(listing, settings)
        assert manifest.paths == ("scan.tif#page=3", "scan.tif#page=1", "one.png", "two.png")
        assert manifest.groups == ("scan.tif", "scan.tif", "", "")
        assert [row.path for row in manifest.missing] == ["gone.tif#page=2"]
    rows[1]["split"] = "test"
    with pytest.raises(DataError, match=r"group 'scan.tif' is in test and, further up, in train"):
        read_manifest(write_csv(tmp_path / "m.csv", rows))
    rows[1] = {"path": "scan.tif", "label": "a", "split": "train"}
    with pytest.raises(DataError) as caught:
        read_manifest(write_csv(tmp_path / "m.csv", rows), ALL)
    assert str(caught.value) == (
        f"{tmp_path}/m.csv lists 'scan.tif#page=3' beside its whole file, of which --pages all "
        "takes every page: remove one of them."
    )


def test_a_page_and_its_whole_file_are_one_group(tmp_path: Path) -> None:
    save_pages(tmp_path / "scan.tif", [1, 2])
    rows = [{"path": path, "label": label} for path, label in (("scan.tif", "a"), ("b.png", "b"))]
    draw_page(3).save(tmp_path / "b.png")
    rows.append({"path": "scan.tif#page=2", "label": "a"})
    manifest = read_manifest(write_csv(tmp_path / "m.csv", rows))
    assert manifest.groups == ("scan.tif", "", "scan.tif")


def test_a_file_whose_own_name_is_a_pages_is_refused(tmp_path: Path) -> None:
    for name in ("scan.tif", "scan.tif#page=2", "other.tif#page=1"):
        save_pages(tmp_path / name, [1], format="TIFF")
    draw_page(2, 1).save(tmp_path / "b.png")
    for name, page in (("scan.tif", 2), ("other.tif", 1)):
        path = f"{name}#page={page}"
        rows = [{"path": path, "label": "a"}, {"path": "b.png", "label": "b"}]
        with pytest.raises(DataError) as caught:
            read_manifest(write_csv(tmp_path / "m.csv", rows))
        assert str(caught.value) == (
            f"{tmp_path}/m.csv, row 2: there is a file of the name '{path}', which stands for "
            f"page {page} of {name}. Rename the file."
        )
        with pytest.raises(ImageError, match=f"stands for page {page} of another: rename it"):
            decode(tmp_path / path)


def test_a_page_has_the_features_of_the_same_page_alone(scans: Path, tmp_path: Path) -> None:
    manifest = read_manifest(scans, ALL)
    done = extract(manifest, cache=tmp_path / "caches", page=PAGE, **OPTIONS)
    first = extract(scans, cache=tmp_path / "caches", page=PAGE, **OPTIONS)
    assert done.cache != first.cache
    assert done.warnings == ()
    assert first.warnings[0].startswith(
        "several pages in one file: the first is taken; --pages all takes every one (8 images, "
    )
    found, plain = features(done.cache), features(first.cache)
    alone = tmp_path / "alone" / "a"
    alone.mkdir(parents=True)
    (tmp_path / "alone" / "b").mkdir()
    draw_page(22, 0).save(alone / "third.png")
    draw_page(30, 0).save(tmp_path / "alone" / "b" / "0.png")
    single = features(
        extract(tmp_path / "alone", cache=tmp_path / "alone.h5", page=PAGE, **OPTIONS).cache
    )
    assert np.array_equal(found["a/2.tif#page=3"], single["a/third.png"])
    assert np.array_equal(found["a/2.tif#page=1"], plain["a/2.tif"])
    assert np.array_equal(found["a/3.tif"], plain["a/3.tif"])
    digests = dict(zip(open_cache(done.cache).paths, open_cache(done.cache).pictures))
    assert digests["a/2.tif#page=1"] == image_digest(scans / "a" / "2.tif")
    assert len(set(digests.values())) == len(digests)
    assert extract(manifest, cache=done.cache, page=PAGE, rehash=True, **OPTIONS).n_computed == 0


def test_pages_go_through_every_command(scans: Path, tmp_path: Path) -> None:
    cache = extract(read_manifest(scans, ALL), cache=tmp_path / "c.h5", page=PAGE, **OPTIONS).cache
    (run,) = fit_heads(
        open_cache(cache),
        kinds="linear",
        head=HeadSettings(layers="layer2", epochs=1),
        out_dir=tmp_path / "runs",
    )
    unnamed = predict(run, scans / "a" / "2.tif", compute=FP32)
    assert unnamed.warnings[0].startswith("several pages in one file: the first is taken; ")
    paged = [name for name in run.predictions.ids if "#page=" in name]
    assert paged
    answers = predict(run, [scans / name for name in run.predictions.ids], compute=FP32)
    np.testing.assert_allclose(answers.probabilities, run.predictions.probabilities, atol=1e-5)
    answers.write_csv(tmp_path / "answers.csv")
    again = predict(run, tmp_path / "answers.csv", compute=FP32)
    assert again.paths == answers.paths
    tested = scans / paged[0].partition("#")[0]
    assert [path.name for path in predict(run, tested, compute=FP32, pages="all").paths] == [
        f"{tested.name}#page={page}" for page in range(1, 2 + int(tested.stem) % 3)
    ]
    (found,) = explain(run, scans / paged[0], check=False).explanations
    explanation_plot(found, tmp_path / "explained.png")
    split = ecgfeat.split(cache, out=tmp_path / "split.csv")
    assert split.left_out == ()
    manifest = read_manifest(split.manifest_path, DataSettings(root=scans))
    assert sorted(manifest.paths) == sorted(open_cache(cache).paths)
    sides = {(group, side) for group, side in zip(manifest.groups, manifest.splits) if group}
    assert len(sides) == 8
    shown = preview(read_manifest(scans, ALL), figure=tmp_path / "sheet.png", page=PAGE)
    assert any("#page=" in seen.path for seen in shown.images)
    assert all(seen.page_px == (96, 72) for seen in shown.images)
    audited = ecgfeat.audit(cache, out_dir=tmp_path / "audits")
    assert not any(finding.level == "error" for finding in audited.findings)
    page = ecgfeat.report([run], out=tmp_path / "report.html")
    assert not any("picture" in line for line in page.lacking)
    assert any("--pages all" in line for line in commands_of(run, open_cache(cache)))
    tuned = finetune(
        read_manifest(scans, ALL),
        network=NetworkSettings(weights="random:1"),
        page=PAGE,
        compute=FP32,
        training=FinetuneSettings(epochs=1, batch_size=4),
        out_dir=tmp_path / "runs",
    )
    assert set(tuned.predictions.ids) == set(run.predictions.ids)
    assert any("--pages all" in line for line in commands_of(tuned, None))


def test_a_page_that_is_not_there_or_damaged_is_left_out_with_its_reason(tmp_path: Path) -> None:
    whole = save_pages(tmp_path / "scans" / "a" / "cut.tif", [1, 2, 3]).read_bytes()
    save_pages(tmp_path / "scans" / "a" / "sound.tif", [4, 5])
    save_pages(tmp_path / "scans" / "b" / "sound.tif", [6, 7], 1)
    # Pillow writes a directory, then its picture: the last page is lost.
    (tmp_path / "scans" / "a" / "cut.tif").write_bytes(whole[: len(whole) * 6 // 10])
    manifest = read_manifest(tmp_path / "scans", ALL)
    assert [path for path in manifest.paths if "cut" in path][-1] == "a/cut.tif#page=3"
    done = extract(manifest, cache=tmp_path / "c.h5", page=PAGE, **OPTIONS)
    lost = {item.path: item.reason for item in open_cache(done.cache).quarantined}
    assert lost["a/cut.tif#page=3"].startswith(("cut off: ", "damaged: "))
    assert "a/cut.tif#page=1" not in lost
    for page, reason in (
        (4, "there is no page 4: the file has 2 pages"),
        (999, "there is no page"),
        (1000, "only the first 999 pages of a file are read: split it"),
    ):
        with pytest.raises(ImageError, match=reason):
            decode(tmp_path / "scans" / "a" / f"sound.tif#page={page}")
    draw_page(1).save(tmp_path / "one.png")
    with pytest.raises(ImageError, match="there is no page 2: the file has one page"):
        decode(tmp_path / "one.png#page=2")
    assert np.array_equal(decode(tmp_path / "one.png#page=1"), decode(tmp_path / "one.png"))


@pytest.mark.parametrize("is_big", [False, True])
def test_pages_of_a_tiff_are_counted_without_thumbnails(tmp_path: Path, is_big: bool) -> None:
    path = save_pages(tmp_path / "scan.tif", range(5), big_tiff=is_big)
    assert len(pages_named(path)) == 5
    thumbnail = draw_page(1, size_px=(24, 18))
    thumbnail.encoderinfo = {"tiffinfo": {254: 1}}
    second = draw_page(2)
    draw_page(0).save(path, save_all=True, append_images=[thumbnail, second], big_tiff=is_big)
    assert pages_named(path) == [f"{path}#page=1", f"{path}#page=3"]
    assert np.array_equal(decode(f"{path}#page=3"), np.asarray(second))


def test_frames_and_pdf_pages_are_counted_and_read(tmp_path: Path) -> None:
    pytest.importorskip("pypdfium2", reason="needs the extra pdf")
    path, drawn = tmp_path / "scan.pdf", [draw_page(seed, size_px=PDF_PX) for seed in (1, 2, 3)]
    drawn[0].save(path, save_all=True, append_images=drawn[1:], resolution=150, quality=95)
    assert pages_named(path) == [f"{path}#page={page}" for page in (1, 2, 3)]
    for page, expected in enumerate(drawn, start=1):
        found = decode(f"{path}#page={page}").astype(int)
        distances = [np.abs(found - np.asarray(other)).mean() for other in drawn]
        assert expected is drawn[int(np.argmin(distances))]
    with pytest.raises(ImageError, match="there is no page 4: the file has 3 pages"):
        decode(f"{path}#page=4")
    pytest.importorskip("pydicom", reason="needs the extra dicom")
    frames = np.stack([np.full((30, 40), value, np.uint8) for value in (10, 20)])
    (tmp_path / "scan.dcm").write_bytes(dicom(frames, NumberOfFrames=2, Rows=30, Columns=40))
    names = pages_named(tmp_path / "scan.dcm")
    assert [decode(name)[0, 0, 0] for name in names] == [10, 20]


def test_hostile_files_are_one_page_soon(tmp_path: Path) -> None:
    path = tmp_path / "page.tif"
    loop = b"II*\0" + struct.pack("<IHHHIII", 8, 1, 256, 3, 1, 7, 8)
    dirs = b"".join(struct.pack("<HHHIII", 1, 256, 3, 1, 7, 8 + 18 * n) for n in range(1, 5000))
    for content, n_expected in (
        (b"", 1),
        (b"II*\0", 1),
        (loop, 1),
        (b"II*\0" + struct.pack("<I", 2**32 - 1), 1),
        (b"MM\0+" + bytes(12), 1),
        (b"II*\0" + struct.pack("<IH", 8, 2**16 - 1), 1),
        (b"II*\0" + struct.pack("<I", 8) + dirs, 1000),  # one more than can be named
    ):
        path.write_bytes(content)
        assert len(pages_named(path)) == n_expected
    for suffix in (".pdf", ".dcm"):
        path = path.with_suffix(suffix)
        path.write_bytes(b"%PDF-1.4 nothing")
        assert pages_named(path) == [str(path)]
    os.mkfifo(tmp_path / "pipe.tif")
    assert pages_named(tmp_path / "pipe.tif") == [str(tmp_path / "pipe.tif")]
    assert pages_named(tmp_path / "gone.tif") == [str(tmp_path / "gone.tif")]
    with (tmp_path / "large.tif").open("wb") as file:
        file.write(b"II*\0" + struct.pack("<I", 8) + dirs)
        file.truncate(MAX_IMAGE_BYTES + 1)
    assert len(pages_named(tmp_path / "large.tif")) == 1


def test_more_pages_than_can_be_named_are_left_out_and_said(tmp_path: Path) -> None:
    dirs = b"".join(struct.pack("<HHHIII", 1, 256, 3, 1, 7, 8 + 18 * n) for n in range(1, 1200))
    for label in "ab":
        (tmp_path / "scans" / label).mkdir(parents=True)
        (tmp_path / "scans" / label / "0.tif").write_bytes(b"II*\0" + struct.pack("<I", 8) + dirs)
    manifest = read_manifest(tmp_path / "scans", ALL)
    assert len(manifest) == 2 * 999
    assert "a/0.tif has more than 999 pages: the others are left out" in manifest.warnings


def test_only_files_that_may_have_several_pages_are_opened(
    scans: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    plain = Path.open

    def noting(path: Path, *arguments: object, **options: object) -> object:
        opened.append(path.suffix)
        return plain(path, *arguments, **options)

    monkeypatch.setattr(Path, "open", noting)
    read_manifest(scans)
    assert opened == []
    read_manifest(scans, ALL)
    assert set(opened) == {".tif"}


def test_the_command_takes_all_pages_of_new_files(scans: Path, tmp_path: Path) -> None:
    cache = extract(scans, cache=tmp_path / "c.h5", page=PAGE, **OPTIONS).cache
    (run,) = fit_heads(
        open_cache(cache),
        kinds="linear",
        head=HeadSettings(layers="layer2", epochs=1),
        out_dir=tmp_path / "runs",
    )
    cli = CliRunner()
    image = str(scans / "a" / "2.tif")
    done = cli.invoke(app, ["predict", str(run.path), image, "--pages", "all", "--json"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)["images"]
    assert [entry["path"] for entry in found] == [f"{image}#page={page}" for page in (1, 2, 3)]
    done = cli.invoke(app, ["predict", str(run.path), image, "--pages", "some"])
    assert done.exit_code == 2
    assert "--pages must be one of first, all; found 'some'" in done.output
    out = str(tmp_path / "maps")
    done = cli.invoke(
        app, ["explain", str(run.path), f"{image}#page=3", "--out", out, "--no-check"]
    )
    assert done.exit_code == 0, done.output
    assert [path.name for path in (tmp_path / "maps").iterdir()] == ["2-page3.png"]
