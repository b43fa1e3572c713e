from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from typer.testing import CliRunner

import ecgfeat
from ecgfeat import contact_sheet
from ecgfeat.cli import app
from ecgfeat.config import DataSettings, PageSettings, PreviewSettings
from ecgfeat.contact_sheet import Preview, preview
from ecgfeat.errors import ConfigError, Interrupted, StorageError
from ecgfeat.images import decode, prepare
from ecgfeat.manifest import read_manifest
from ecgfeat.preprocessing import Preprocessing

from .conftest import draw_page

PAGE = PageSettings(crop_mode="center", size="64x48")


def draw(
    data: Path, figure: Path, page: PageSettings = PAGE, n: int = 2, **recipes: Any
) -> Preview:
    manifest = read_manifest(data, DataSettings())
    return preview(manifest, figure=figure, page=page, sheet=PreviewSettings(n=n), **recipes)


def pixels_of(figure: Path) -> NDArray[np.uint8]:
    with Image.open(figure) as image:
        return np.array(image)


def holds(sheet: NDArray[np.uint8], picture: NDArray[np.uint8]) -> bool:
    """Whether `picture` stands somewhere on `sheet`, byte for byte."""
    height, width = picture.shape[:2]
    corner = (sheet[: -height + 1, : -width + 1] == picture[0, 0]).all(axis=2)
    return any(
        np.array_equal(sheet[top : top + height, left : left + width], picture)
        for top, left in zip(*np.nonzero(corner))
    )


@pytest.mark.parametrize("crop_mode", ["center", "border", "squash"])
def test_the_sheet_holds_the_very_pixels_that_the_network_is_given(crop_mode, tiny_pages, tmp_path):
    pages, page = tiny_pages(), PageSettings(crop_mode=crop_mode, size="64x48")
    shown = draw(pages, tmp_path / "sheet.png", page)
    sheet = pixels_of(shown.figure)
    for seen in shown.images:
        pixels = prepare(decode(pages / seen.path), Preprocessing.from_settings(page))
        assert holds(sheet, pixels), seen.path
    assert not holds(sheet, pixels[:, ::-1])


def test_a_page_of_which_all_is_kept_is_shown_unchanged(tiny_pages, tmp_path):
    pages = tiny_pages()
    shown = draw(pages, tmp_path / "sheet.png", PageSettings(crop_mode="squash", size="64"))
    assert holds(pixels_of(shown.figure), decode(pages / shown.images[0].path))


def test_what_is_cut_off_is_paler_and_what_is_kept_is_outlined(tmp_path):
    for label in ("a", "b"):
        (tmp_path / "pages" / label).mkdir(parents=True)
        Image.new("RGB", (200, 100), (200, 40, 40)).save(tmp_path / "pages" / label / "red.png")
    # The short side becomes 64 · 256/224 = 73 pixels, of which 64 are kept: of 100, from 6 to 94.
    shown = draw(
        tmp_path / "pages", tmp_path / "sheet.png", PageSettings(crop_mode="center", size="64")
    )
    sheet = pixels_of(shown.figure)
    outline = np.argwhere((sheet == (0x00, 0x72, 0xB2)).all(axis=2))
    (top, left), (bottom, right) = outline.min(axis=0), outline[: len(outline) // 2].max(axis=0)
    assert (bottom - top + 1, right - left + 1) == (88, 88)
    inside, outside = sheet[(top + bottom) // 2, (left + right) // 2], sheet[top + 9, left - 9]
    assert inside.tolist() == [200, 40, 40]
    assert outside.min() > 100


def test_shares_kept_and_padded_are_those_of_the_geometry(tmp_path):
    for label in ("a", "b"):
        (tmp_path / "pages" / label).mkdir(parents=True)
        draw_page(1, size_px=(256, 128)).save(tmp_path / "pages" / label / "page.png")
    cut = draw(
        tmp_path / "pages", tmp_path / "sheet.png", PageSettings(crop_mode="center", size="112")
    )
    # Resized to 256×128, exactly; then the middle 112×112.
    assert cut.images[0].scale == (1.0, 1.0)
    assert cut.images[0].kept == pytest.approx(112 * 112 / (256 * 128))
    assert cut.images[0].padding == 0
    whole = PageSettings(crop_mode="border", size="128")
    padded = draw(tmp_path / "pages", tmp_path / "sheet.png", whole)
    assert padded.images[0].scale == (0.5, 0.5)
    assert padded.images[0].kept == 1
    assert padded.images[0].padding == pytest.approx(0.5)
    assert padded.summary() == [
        "2 images: a 1 of 1, b 1 of 1",
        "--crop-mode border --size 128: 100% of the page is kept, at 50% of its width and 50% of "
        "its height; 50% of the input is padding",
        f"sheet: {tmp_path / 'sheet.png'}",
    ]


def test_the_same_data_give_the_same_sheet_byte_for_byte(tiny_pages, tmp_path):
    pages = tiny_pages()
    first = draw(pages, tmp_path / "1.png")
    second = draw(pages, tmp_path / "2.png")
    assert first.images == second.images
    assert first.figure.read_bytes() == second.figure.read_bytes()


def test_a_smaller_sheet_shows_part_of_a_larger_one_of_every_class(tiny_pages, tmp_path):
    pages = tiny_pages(classes=("a", "b", "c"), n_train=12, n_test=6)
    small = draw(pages, tmp_path / "1.png", n=1)
    large = draw(pages, tmp_path / "2.png", n=4)
    assert [seen.label for seen in large.images] == ["a"] * 4 + ["b"] * 4 + ["c"] * 4
    assert [seen.path for seen in small.images] == [seen.path for seen in large.images[::4]]
    assert small.n_images == {"a": 6, "b": 6, "c": 6}


@pytest.mark.parametrize(
    ("size", "n", "size_px"),
    [
        # A cell of 160·1.5 + 8 + 160 pixels beside margins of 24: three in a line.
        ("64x48", 3, (24 + 3 * 432, 84 + 2 * (18 + 220))),
        ("64x48", 4, (24 + 3 * 432, 84 + 2 * (18 + 2 * 220))),
        ("448x320", 2, (24 + 960, 84 + 2 * (18 + 2 * 380))),
        ("896x640", 1, (1600, 84 + 2 * (18 + 700))),  # beside a smaller page
        ("1600x64", 1, (24 + 1792, 84 + 2 * (18 + 220))),  # such an input alone is wider
    ],
)
def test_a_sheet_is_as_wide_as_a_screen_and_goes_on_below(tiny_pages, tmp_path, size, n, size_px):
    page = PageSettings(crop_mode="squash", size=size)
    pages = tiny_pages(n_train=4, n_test=4)
    shown = draw(pages, tmp_path / "sheet.png", page, n=n)
    sheet = pixels_of(shown.figure)
    assert (sheet.shape[1], sheet.shape[0]) == size_px
    for seen in shown.images:
        pixels = prepare(decode(pages / seen.path), Preprocessing.from_settings(page))
        assert holds(sheet, pixels), seen.path


def test_two_recipes_are_drawn_beside_each_other(tiny_pages, tmp_path, monkeypatch):
    titles = []
    monkeypatch.setattr(contact_sheet._Sheet, "title", lambda _, text: titles.append(text))
    pages, other = tiny_pages(), PageSettings(crop_mode="squash", size="80x50")
    shown = draw(pages, tmp_path / "sheet.png", recipe="paper", beside={"ecg": other})
    sheet = pixels_of(shown.figure)
    (second,) = shown.beside
    assert [seen.path for seen in second.images] == [seen.path for seen in shown.images]
    for view, page in ((shown, PAGE), (second, other)):
        assert view.page == page
        for seen in view.images:
            pixels = prepare(decode(pages / seen.path), Preprocessing.from_settings(page))
            assert holds(sheet, pixels), seen.path
    words = ["recipe paper, --crop-mode center --size 64x48"]
    words.append("recipe ecg, --crop-mode squash --size 80x50")
    assert titles == [f"pages, {'; beside it '.join(words)}"]
    assert [line.split(":")[0] for line in shown.summary()[1:3]] == words
    described = json.loads(json.dumps(shown.as_json()))
    assert described["recipe"] == "paper"
    assert [other["recipe"] for other in described["beside"]] == ["ecg"]
    assert described["beside"][0]["figure"] == described["figure"]


def test_an_undecodable_page_is_named_once_beside_another_recipe(tiny_pages, tmp_path):
    pages = tiny_pages()
    chosen = [seen.path for seen in draw(pages, tmp_path / "sheet.png").images]
    (pages / chosen[1]).write_bytes(b"")
    shown = draw(pages, tmp_path / "sheet.png", recipe="paper", beside={"ecg": PAGE})
    assert sum(chosen[1] in line for line in shown.summary()) == 1
    assert [seen.path for seen in shown.beside[0].undecodable] == [chosen[1]]


def test_undecodable_images_are_named_and_not_replaced(tiny_pages, tmp_path):
    pages = tiny_pages()
    chosen = [seen.path for seen in draw(pages, tmp_path / "sheet.png").images]
    (pages / chosen[1]).write_bytes(b"")
    shown = draw(pages, tmp_path / "sheet.png")
    assert [seen.path for seen in shown.images] == chosen
    assert [(seen.path, seen.reason) for seen in shown.undecodable] == [
        (chosen[1], "empty: the file has no bytes")
    ]
    assert any(chosen[1] in line and "empty" in line for line in shown.summary())
    pixels = prepare(decode(pages / chosen[0]), Preprocessing.from_settings(PAGE))
    assert holds(pixels_of(shown.figure), pixels)


def test_a_sheet_of_nothing_but_undecodable_images_is_drawn_too(tiny_pages, tmp_path):
    pages = tiny_pages(n_train=2, n_test=2)
    for path in pages.rglob("*.png"):
        path.write_bytes(b"")
    shown = draw(pages, tmp_path / "sheet.png")
    assert len(shown.undecodable) == len(shown.images) == 4
    assert shown.summary()[-1] == f"sheet: {shown.figure}"


def test_missing_images_are_counted(tiny_pages, tmp_path):
    csv = tiny_pages(as_csv=True)
    gone = sorted((csv.parent / "train" / "a").iterdir())
    for path in gone:
        path.unlink()
    shown = draw(csv, tmp_path / "sheet.png")
    assert shown.missing == len(gone) == 4
    assert shown.summary()[1] == "4 listed images are missing"


def test_names_that_no_font_has_letters_for_are_drawn(tmp_path):
    for label in ("心電図", "a\nb"):
        (tmp_path / "pages" / label).mkdir(parents=True)
        draw_page(1).save(tmp_path / "pages" / label / ("x" * 200 + "\N{BELL}.png"))
    shown = draw(tmp_path / "pages", tmp_path / "sheet.png")
    assert len(shown.images) == 2
    assert not shown.undecodable


def test_a_sheet_with_too_many_pixels_is_refused_before_any_image_is_read(tiny_pages, tmp_path):
    pages = tiny_pages()
    for path in pages.rglob("*.png"):
        path.write_bytes(b"")
    with pytest.raises(ConfigError) as refusal:
        draw(pages, tmp_path / "sheet.png", PageSettings(crop_mode="center", size="4096"), n=6)
    assert "at most 89 million are drawn: take a smaller --n or --size" in str(refusal.value)
    assert not (tmp_path / "sheet.png").exists()


def test_the_figure_is_a_png(tiny_pages, tmp_path):
    with pytest.raises(ConfigError, match=r"--figure must end in \.png; found .*sheet\.jpg"):
        draw(tiny_pages(), tmp_path / "sheet.jpg")


def test_a_disk_that_refuses_is_named(tiny_pages, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="file failed: a file is in the way"):
        draw(tiny_pages(), tmp_path / "file" / "sheet.png")


def test_a_stop_is_heard_between_images(tiny_pages, tmp_path):
    def stop(progress: object) -> None:
        raise Interrupted

    manifest = read_manifest(tiny_pages(), DataSettings())
    with pytest.raises(Interrupted):
        preview(manifest, figure=tmp_path / "sheet.png", page=PAGE, report=stop)
    assert not (tmp_path / "sheet.png").exists()


def test_preview_is_public_whatever_was_imported_before():
    assert ecgfeat.preview is preview


def test_the_command_says_where_the_sheet_is(tiny_pages, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, ["preview", str(tiny_pages()), "--size", "64", "--n", "1"])
    assert done.exit_code == 0, done.output
    assert done.stdout.splitlines()[-1] == "sheet: preview.png"
    assert Path("preview.png").read_bytes().startswith(b"\x89PNG")


def test_the_command_s_json_lists_what_is_shown(tiny_pages, tmp_path):
    figure = tmp_path / "sheet.png"
    words = ["preview", str(tiny_pages()), "--size", "64", "--figure", str(figure), "--json"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    shown = json.loads(done.stdout)
    assert shown["figure"] == str(figure)
    assert [image["label"] for image in shown["images"]] == ["a"] * 3 + ["b"] * 3
    assert shown["images"][0]["page_px"] == [96, 72]


def test_the_command_takes_several_recipes(tiny_pages, tmp_path):
    figure = tmp_path / "sheet.png"
    words = ["preview", str(tiny_pages()), "--n", "1", "--figure", str(figure), "--json"]
    done = CliRunner().invoke(app, [*words, "--recipe", "paper,quick", "--size", "64"])
    assert done.exit_code == 0, done.output
    shown = json.loads(done.stdout)
    (other,) = shown["beside"]
    found = [(each["recipe"], each["crop_mode"], each["size"]) for each in (shown, other)]
    assert found == [("paper", "center", "64"), ("quick", "squash", "64")]


@pytest.mark.parametrize(
    ("options", "name"),
    [([], "ecg"), (["--recipe", "paper"], "paper"), (["--crop-mode", "center"], "")],
)
def test_the_command_names_the_recipe_that_was_used(tiny_pages, tmp_path, options, name):
    words = ["preview", str(tiny_pages()), "--n", "1", "--figure", str(tmp_path / "sheet.png")]
    done = CliRunner().invoke(app, [*words, "--json", *options])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["recipe"] == name


@pytest.mark.parametrize("names", ["paper,new", "paper,paper"])
def test_recipes_that_there_are_not_or_twice_are_refused(tiny_pages, names):
    done = CliRunner().invoke(app, ["preview", str(tiny_pages()), "--recipe", names])
    assert done.exit_code == 2
    assert done.stderr.splitlines()[-1] == (
        f"Error: --recipe takes recipes, each once, of paper, quick, ecg; found {names!r}"
    )


@pytest.mark.parametrize("command", ["extract", "fit-head", "finetune"])
def test_other_commands_take_one_recipe(command):
    done = CliRunner().invoke(app, [command, "pages", "--recipe", "paper,ecg"])
    assert done.exit_code == 2
    said = " ".join(done.stderr.replace("│", " ").split())
    assert "'--recipe'" in said
    assert "'paper,ecg' is not one of 'paper', 'quick', 'ecg'" in said
