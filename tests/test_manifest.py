from __future__ import annotations

import csv
import errno
import os
import random
import re
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ecgfeat.config import DataSettings
from ecgfeat.errors import ConfigError, DataError, StorageError
from ecgfeat.manifest import Manifest, MissingImage, read_manifest, write_missing
from ecgfeat.manifest.listing import ListedRows, list_csv, split_by_hash


def make_files(root: Path, *paths: str) -> Path:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(path.encode())
    return root


def make_csv(folder: Path, text: str, name: str = "data.csv", encoding: str = "utf-8") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_bytes(text.encode(encoding))
    return path


def message_of(data: Path, settings: DataSettings = DataSettings()) -> str:
    with pytest.raises(DataError) as caught:
        read_manifest(data, settings)
    return str(caught.value)


# Folder trees


def test_a_tree_with_train_and_test_is_listed_in_order(tmp_path: Path) -> None:
    root = make_files(
        tmp_path / "my pages",
        "train/mi/b.png",
        "train/mi/a.JPG",
        "train/normal/deeper/still/c.jpeg",
        "Test/normal/d.png",
    )
    manifest = read_manifest(root)
    assert manifest.root == root
    assert manifest.name == "my-pages"
    assert manifest.paths == (
        "Test/normal/d.png",
        "train/mi/a.JPG",
        "train/mi/b.png",
        "train/normal/deeper/still/c.jpeg",
    )
    assert manifest.labels == ("normal", "mi", "mi", "normal")
    assert manifest.splits == ("test", "train", "train", "train")
    assert manifest.groups == ("", "", "", "")
    assert manifest.n_bytes == tuple(len(path) for path in manifest.paths)
    assert manifest.mtime_ns[0] == (root / "Test/normal/d.png").stat().st_mtime_ns
    assert manifest.split_source == "folders"
    assert manifest.metadata == {}
    assert manifest.missing == ()


def test_a_tree_without_splits_is_split_within_each_class(tmp_path: Path) -> None:
    root = make_files(tmp_path, *(f"{label}/{i}.png" for label in "ab" for i in range(10)))
    manifest = read_manifest(root, DataSettings(test_fraction=0.3, split_seed=4))
    assert Counter(zip(manifest.labels, manifest.splits)) == {
        ("a", "train"): 7,
        ("a", "test"): 3,
        ("b", "train"): 7,
        ("b", "test"): 3,
    }
    assert manifest.split_source == "hash (test fraction 0.3, seed 4)"


def test_a_tree_may_have_train_only(tmp_path: Path) -> None:
    assert set(read_manifest(make_files(tmp_path, "train/a/1.png", "train/b/1.png")).splits) == {
        "train"
    }


def test_other_files_are_counted_and_hidden_ones_passed_over(tmp_path: Path) -> None:
    root = make_files(
        tmp_path,
        "a/1.png",
        "a/notes.txt",
        "b/1.png",
        "b/1.tif",
        "overview.png",
        ".DS_Store",
        "b/._1.png",
        ".git/x/1.png",
    )
    manifest = read_manifest(root)
    assert manifest.paths == ("a/1.png", "b/1.png")
    assert manifest.n_ignored == 3


def test_a_folder_called_like_an_image_is_walked_into(tmp_path: Path) -> None:
    root = make_files(tmp_path, "a/x.png/1.png", "b/1.png")
    assert read_manifest(root).paths == ("a/x.png/1.png", "b/1.png")


def test_a_tree_has_one_meaning_whatever_the_order_on_disk(tmp_path: Path) -> None:
    paths = [f"{label}/{i}.png" for label in "ab" for i in range(20)]
    first = read_manifest(make_files(tmp_path / "first", *paths))
    random.Random(1).shuffle(paths)
    second = read_manifest(make_files(tmp_path / "second", *paths))
    assert (first.paths, first.splits, first.digest) == (
        second.paths,
        second.splits,
        second.digest,
    )


def test_a_tree_of_splits_and_classes_mixed_is_refused(tmp_path: Path) -> None:
    root = make_files(tmp_path, "train/a/1.png", "test/a/1.png", "val/a/1.png")
    assert message_of(root) == (
        f"{root} holds test, train beside val: it isn't clear which folders are splits and which "
        "are classes. Move the others elsewhere, or list the images in a .csv file with the "
        "columns path, label and split."
    )


def test_a_tree_without_images_is_refused(tmp_path: Path) -> None:
    root = make_files(tmp_path, "1.png", "2.png", "a/readme.txt")
    assert message_of(root) == (
        f"{root} holds no images (.jpg, .jpeg, .png) in class folders: expected <class>/… or "
        "train/<class>/… and test/<class>/… ."
    )
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "holds no images" in message_of(empty)


def test_a_folder_of_other_files_is_no_class_left_out_in_silence(tmp_path: Path) -> None:
    root = make_files(tmp_path, "a/1.png", "b/1.png", "c/1.tif")
    assert message_of(root) == (
        f"{root} has files in c but no image there (.jpg, .jpeg, .png), and every folder is a "
        "class. Move such folders elsewhere, or list the images in a .csv file."
    )


def test_a_linked_folder_in_a_tree_is_refused(tmp_path: Path) -> None:
    root = make_files(tmp_path / "pages", "a/1.png", "b/1.png")
    (root / "c").symlink_to(root / "a")
    assert message_of(root) == (
        f"{root / 'c'} is a symbolic link to a folder, which could lead outside {root} or list "
        "images twice. Move the folder itself there, or list the images in a .csv file."
    )


def test_a_linked_image_in_a_tree_may_not_leave_it(tmp_path: Path) -> None:
    outside = make_files(tmp_path, "outside.png") / "outside.png"
    root = make_files(tmp_path / "pages", "a/1.png", "b/1.png")
    (root / "a/2.png").symlink_to(root / "b/1.png")
    assert len(read_manifest(root)) == 3
    (root / "a/3.png").symlink_to(outside)
    assert message_of(root) == (
        f"{root}: 'a/3.png' leads out of {root} by a symbolic link, to {outside}. List the images "
        "in a .csv file, and give --root a folder that holds them all."
    )


def test_a_dangling_link_is_missing(tmp_path: Path) -> None:
    root = make_files(tmp_path, "a/1.png", "b/1.png")
    (root / "a/2.png").symlink_to("gone.png")
    (root / "a/3.png").symlink_to("3.png")
    assert [row.path for row in read_manifest(root).missing] == ["a/2.png", "a/3.png"]


def test_the_data_folder_may_itself_be_a_link(tmp_path: Path) -> None:
    make_files(tmp_path / "v3", "a/1.png", "b/1.png")
    (tmp_path / "current").symlink_to("v3")
    manifest = read_manifest(tmp_path / "current")
    assert manifest.name == "current"
    assert manifest.image_path(1).read_bytes() == b"b/1.png"
    assert manifest.image_paths() == [manifest.image_path(0), manifest.image_path(1)]


def test_a_name_that_is_not_text_is_refused(tmp_path: Path) -> None:
    root = make_files(tmp_path, "a/1.png", "b/1.png")
    try:
        (root / "a" / os.fsdecode(b"caf\xe9.png")).write_bytes(b"")
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    assert message_of(root) == (
        rf"{root} holds a file whose name is not UTF-8: b'a/caf\xe9.png'. Rename it."
    )


def test_a_root_for_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        read_manifest(tmp_path, DataSettings(root=tmp_path))
    assert str(caught.value) == (
        f"--root goes with a .csv file, but {tmp_path} is a folder: leave it out"
    )


@pytest.mark.parametrize("refusing", ["scandir", "lstat"])
def test_a_tree_that_may_not_be_read_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refusing: str
) -> None:
    root = make_files(tmp_path, "a/1.png", "b/1.png")
    honest = getattr(os, refusing)

    def refuse(path: str | Path) -> object:
        if "/b" in str(path):
            raise PermissionError(errno.EACCES, "Permission denied")
        return honest(path)

    monkeypatch.setattr(os, refusing, refuse)
    with pytest.raises(StorageError, match=f"^reading {root}/b.* failed: permission denied"):
        read_manifest(root)


# CSVs


def test_a_csv_keeps_its_order_and_its_other_columns(tmp_path: Path) -> None:
    make_files(tmp_path, "z.png", "a/b.png", "c.png")
    source = make_csv(
        tmp_path,
        "age,path, label ,split,group\n"
        '51,./z.png,mi,Train,p1\n"6,5",a//b.png,normal,TRAIN,\n,x/../c.png,mi,test,p2\n',
    )
    manifest = read_manifest(source)
    assert manifest.name == "data"
    assert manifest.root == tmp_path
    assert manifest.paths == ("z.png", "a/b.png", "c.png")
    assert manifest.labels == ("mi", "normal", "mi")
    assert manifest.splits == ("train", "train", "test")
    assert manifest.groups == ("p1", "", "p2")
    assert manifest.metadata == {"age": ("51", "6,5", "")}
    assert manifest.split_source == "column"
    assert manifest.classes == ("mi", "normal")


@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_a_csv_may_come_from_any_system(tmp_path: Path, newline: str, encoding: str) -> None:
    make_files(tmp_path, "ä.png", "b.png")
    text = newline.join(["path,label", "ä.png,größer", "", "b.png,0", ""])
    manifest = read_manifest(make_csv(tmp_path, text, encoding=encoding))
    assert manifest.paths == ("ä.png", "b.png")
    assert manifest.labels == ("größer", "0")


def test_an_index_column_without_a_name_is_passed_over(tmp_path: Path) -> None:
    make_files(tmp_path, "1.png", "2.png")
    source = make_csv(tmp_path, ",path,label\n0,1.png,a\n1,2.png,b\n")
    assert read_manifest(source).metadata == {}


def test_the_root_may_be_named(tmp_path: Path) -> None:
    root = make_files(tmp_path / "images", "1.png", "2.png")
    source = make_csv(tmp_path / "lists", f"path,label\n1.png,a\n{root}/2.png,b\n")
    manifest = read_manifest(source, DataSettings(root=root))
    assert (manifest.source, manifest.settings.root, manifest.root) == (source, root, root)
    assert manifest.paths == ("1.png", "2.png")


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("ludb pages/manifest.csv", "ludb-pages"),
        ("x/beats (v2).csv", "beats-v2"),
        ("x/beats.v2.csv", "beats.v2"),
        ("x/--.csv", "data"),
        (f"x/{'n' * 100}.csv", "n" * 64),
    ],
)
def test_the_name_is_fit_for_a_file_name(tmp_path: Path, path: str, name: str) -> None:
    make_files(tmp_path, "1.png", "2.png")
    source = make_csv((tmp_path / path).parent, "path,label\n1.png,a\n2.png,b\n", Path(path).name)
    assert read_manifest(source, DataSettings(root=tmp_path)).name == name


def test_missing_images_are_left_out_and_counted(tmp_path: Path) -> None:
    make_files(tmp_path, "1.png", "3.png", "4.png")
    long = f"{'n' * 300}.png"
    deep = f"{'d/' * 3000}6.png"
    source = make_csv(
        tmp_path,
        "path,label,split,group,age\n1.png,a,train,,1\n2.png,a,train,p2,2\n3.png,b,train,,3\n"
        f"4.png,b,test,,4\n1.png/5.png,a,test,,5\n{long},a,train,,6\n{deep},b,test,,7\n",
    )
    manifest = read_manifest(source)
    assert manifest.paths == ("1.png", "3.png", "4.png")
    assert manifest.metadata == {"age": ("1", "3", "4")}
    assert manifest.missing == (
        MissingImage("2.png", "a", "train", "p2"),
        MissingImage("1.png/5.png", "a", "test", ""),
        MissingImage(long, "a", "train", ""),
        MissingImage(deep, "b", "test", ""),
    )
    assert manifest.missing_counts() == {("a", "test"): 1, ("a", "train"): 2, ("b", "test"): 1}


def test_the_split_is_made_before_missing_images_are_dropped(tmp_path: Path) -> None:
    names = [f"{i}.png" for i in range(40)]
    text = "path,label\n" + "".join(f"{name},{'ab'[i % 2]}\n" for i, name in enumerate(names))
    whole = read_manifest(make_csv(make_files(tmp_path / "whole", *names), text))
    partial = read_manifest(make_csv(make_files(tmp_path / "partial", *names[:25]), text))
    assert partial.splits == whole.splits[:25]
    assert partial.digest == whole.digest
    assert partial.classes == whole.classes


def test_missing_images_are_written_down(tmp_path: Path) -> None:
    make_files(tmp_path, "1.png", "2.png")
    source = make_csv(
        tmp_path, 'path,label,split,group\n1.png,a,train,\n2.png,b,test,\n"3,x.png",b,test,g\n'
    )
    target = tmp_path / "new" / "missing.csv"
    write_missing(read_manifest(source), target)
    with target.open(newline="", encoding="utf-8") as file:
        assert list(csv.reader(file)) == [
            ["path", "label", "split", "group"],
            ["3,x.png", "b", "test", "g"],
        ]
    assert [path.name for path in target.parent.iterdir()] == ["missing.csv"]


def test_a_list_of_missing_images_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    make_files(tmp_path, "a/1.png", "b/1.png")
    target = tmp_path / "a/1.png" / "missing.csv"
    with pytest.raises(StorageError, match=re.escape(f"writing {target} failed: ")):
        write_missing(read_manifest(tmp_path), target)


def test_absent_data_are_refused(tmp_path: Path) -> None:
    expected = (
        "Expected a folder of class folders (train/<class>/… and test/<class>/…, or <class>/…), "
        "or a .csv file with the columns path and label."
    )
    for name in ("nowhere", "nowhere.csv"):
        assert message_of(tmp_path / name) == f"{tmp_path / name} does not exist. {expected}"
    make_files(tmp_path, "data.txt")
    assert message_of(tmp_path / "data.txt") == (
        f"{tmp_path / 'data.txt'} is neither a folder nor a .csv file. {expected}"
    )


BAD_CSVS = {
    "empty": ("", " is empty: expected a header with the columns path and label."),
    "only_a_header": ("path,label\n\n", " has a header but no rows."),
    "no_label": (
        "path,class\n1.png,a\n",
        " has no column label: expected the columns path and label, separated by commas; found "
        "'path', 'class'.",
    ),
    "semicolons": (
        "path;label\n1.png;a\n",
        " has no column path and no column label: expected the columns path and label, separated "
        "by commas; found 'path;label'.",
    ),
    "a_column_twice": (
        "path,label,age,age\n1.png,a,1,1\n",
        " has the column age more than once. Rename one of them.",
    ),
    "a_ragged_row": (
        "path,label\n1.png,a\n\n2.png,b,c\n",
        ", row 4 has 3 cells, but the header has 2.",
    ),
    "an_empty_path": ("path,label\n1.png,a\n ,b\n", ", row 3: the path is empty."),
    "an_empty_label": ("path,label\n1.png,a\n2.png,\n", ", row 3: the label is empty."),
    "duplicate_rows": (
        "path,label\n1.png,a\n2.png,b\n./1.png,b\n",
        ", rows 2 and 4 list the same image, '1.png'. Remove one of them.",
    ),
    "another_split": (
        "path,label,split\n1.png,a,train\n2.png,b,val\n",
        ", row 3: the split must be train or test; found 'val'. Correct it, or remove the column "
        "to have the rows split by class.",
    ),
    "a_group_on_both_sides": (
        "path,label,split,group\n1.png,a,train,p1\n2.png,b,test,p1\n",
        ", row 3: group 'p1' is in test and, further up, in train: a test on rows like those "
        "trained on would flatter. Put each group on one side, or remove the split column to "
        "have whole groups split.",
    ),
    "one_class": (
        "path,label\n1.png,a\n2.png,a\n",
        " holds one class only ('a'), and at least two are needed. Check the label column or the "
        "folder names.",
    ),
    "not_quoted_well": (f"path,label\n{'x' * 200_000},a\n", " is not a CSV: field larger than"),
    "null_bytes": (
        "path,label\n1.png,a\0\n",
        " is not UTF-8 text (it has null bytes). Save it as CSV in UTF-8.",
    ),
}


@pytest.mark.parametrize("case", BAD_CSVS)
def test_a_bad_csv_is_refused_in_words(tmp_path: Path, case: str) -> None:
    text, message = BAD_CSVS[case]
    make_files(tmp_path, "1.png", "2.png")
    source = make_csv(tmp_path, text)
    assert message_of(source).startswith(f"{source}{message}")


def test_a_csv_in_another_encoding_is_refused(tmp_path: Path) -> None:
    source = make_csv(tmp_path, "path,label\n1.png,größer\n", encoding="latin-1")
    assert message_of(source) == (
        f"{source} is not UTF-8 text (byte 19: invalid start byte). Save it as CSV in UTF-8."
    )


@pytest.mark.parametrize("path", ["../1.png", "/etc/passwd", "a/../../1.png", "..", ".", "//x.png"])
def test_a_path_that_leaves_the_root_is_refused(tmp_path: Path, path: str) -> None:
    make_files(tmp_path, "1.png", "in/2.png")
    source = make_csv(tmp_path / "in", f"path,label\n2.png,a\n{path},b\n")
    assert message_of(source) == (
        f"{source}, row 3: {path!r} is no path inside {tmp_path / 'in'}. Give --root a folder "
        "that holds all images."
    )


def test_a_link_that_leaves_the_root_is_refused_at_any_depth(tmp_path: Path) -> None:
    outside = make_files(tmp_path / "outside", "x/1.png") / "x/1.png"
    root = make_files(tmp_path / "in", "2.png", "x/1.png")
    (root / "sub").symlink_to(tmp_path / "outside")
    (root / "same").symlink_to(root / "x")
    source = make_csv(root, "path,label\n2.png,a\nsame/1.png,b\n")
    assert read_manifest(source).paths == ("2.png", "same/1.png")
    source = make_csv(root, "path,label\n2.png,a\nsub/x/1.png,b\n")
    assert message_of(source) == (
        f"{source}, row 3: 'sub/x/1.png' leads out of {root} by a symbolic link, to {outside}. "
        "List the images in a .csv file, and give --root a folder that holds them all."
    )


def test_a_csv_none_of_whose_images_is_there_is_refused(tmp_path: Path) -> None:
    source = make_csv(tmp_path, "path,label\n1.png,a\n2.png,b\n")
    assert message_of(source) == (
        f"none of the 2 images that {source} lists is there; the first would be "
        f"{tmp_path / '1.png'}. Give --root the folder that the paths are relative to."
    )


def test_a_root_that_is_no_folder_is_refused(tmp_path: Path) -> None:
    source = make_csv(tmp_path, "path,label\n1.png,a\n2.png,b\n")
    assert message_of(source, DataSettings(root=tmp_path / "nowhere")) == (
        f"--root must be the folder that the paths are relative to; found {tmp_path / 'nowhere'}."
    )


names = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1).map(str.strip)


@given(rows=st.lists(st.tuples(names.filter(bool), names, names), min_size=1, max_size=20))
def test_any_text_comes_back_from_a_csv(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str, str]]
) -> None:
    source = tmp_path_factory.mktemp("csv") / "data.csv"
    with source.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["note", "group", "path", "label"])
        for index, (label, group, note) in enumerate(rows):
            writer.writerow([note, group, f"{index}.png", label])
    listing = list_csv(source, source.parent)
    assert listing.labels == [label for label, _, _ in rows]
    assert listing.groups == [group for _, group, _ in rows]
    assert listing.metadata == {"note": [note for _, _, note in rows]}
    assert listing.row_numbers == list(range(2, len(rows) + 2))


# The split by hash


def a_listing(rows: list[tuple[str, str]]) -> ListedRows:
    """From (label, group) pairs."""
    return ListedRows(
        source=Path("/data.csv"),
        root=Path("/"),
        paths=[f"{index}.png" for index in range(len(rows))],
        labels=[label for label, _ in rows],
        splits=None,
        groups=[group for _, group in rows],
    )


rows_with_groups = st.lists(
    st.tuples(st.sampled_from("abc"), st.sampled_from(["", "", "p", "q", "r", "s"])), min_size=1
)
settings_of_split = st.builds(
    DataSettings,
    test_fraction=st.floats(0.01, 0.99),
    split_seed=st.integers(0, 5),
)


@given(rows=rows_with_groups, settings=settings_of_split)
def test_the_split_shares_out_each_class_and_keeps_groups_whole(
    rows: list[tuple[str, str]], settings: DataSettings
) -> None:
    listing = a_listing(rows)
    splits = split_by_hash(listing, settings)
    sides: dict[str, str] = {}
    members: dict[str, Counter[str]] = {}
    for path, (label, group), split in zip(listing.paths, rows, splits):
        assert sides.setdefault(group or path, split) == split
        members.setdefault(group or path, Counter())[label] += 1
    homes: dict[str, list[str]] = {}
    for unit, labels in members.items():
        home = min(labels, key=lambda label: (-labels[label], label))
        homes.setdefault(home, []).append(sides[unit])
    for units in homes.values():
        n_test = units.count("test")
        if len(units) == 1:
            assert n_test == 0
        else:
            wanted = round(settings.test_fraction * len(units))
            assert n_test == min(max(wanted, 1), len(units) - 1)


@given(rows=rows_with_groups, settings=settings_of_split, shuffling=st.randoms())
def test_the_split_does_not_depend_on_the_order_of_rows(
    rows: list[tuple[str, str]], settings: DataSettings, shuffling: random.Random
) -> None:
    listing = a_listing(rows)
    order = list(range(len(rows)))
    shuffling.shuffle(order)
    shuffled = ListedRows(
        source=listing.source,
        root=listing.root,
        paths=[listing.paths[i] for i in order],
        labels=[listing.labels[i] for i in order],
        splits=None,
        groups=[listing.groups[i] for i in order],
    )
    splits = split_by_hash(listing, settings)
    assert split_by_hash(shuffled, settings) == [splits[i] for i in order]


def test_the_split_hardly_changes_when_rows_are_added() -> None:
    rows = [("ab"[i % 2], "") for i in range(1100)]
    before = split_by_hash(a_listing(rows[:1000]), DataSettings())
    after = split_by_hash(a_listing(rows), DataSettings())[:1000]
    assert sum(x != y for x, y in zip(before, after)) < 60


def test_another_seed_gives_another_split() -> None:
    rows = [("ab"[i % 2], "") for i in range(100)]
    splits = {tuple(split_by_hash(a_listing(rows), DataSettings(split_seed=s))) for s in range(5)}
    assert len(splits) == 5


def test_the_split_is_the_same_for_ever() -> None:
    rows = [("ab"[i % 2], f"p{i // 3}" if i < 12 else "") for i in range(20)]
    splits = split_by_hash(a_listing(rows), DataSettings())
    assert "".join(split[1] for split in splits) == "eeerrrrrrrrrrrrerrrr"


def test_a_group_and_a_path_of_the_same_name_are_two_units() -> None:
    rows = [("a", "1.png"), ("a", ""), ("b", ""), ("b", "")]
    splits = split_by_hash(a_listing(rows), DataSettings(test_fraction=0.5))
    assert Counter(splits[:2]) == {"train": 1, "test": 1}


# What a manifest knows


def a_manifest(labels: str, splits: str = "") -> Manifest:
    n_rows = len(labels)
    return Manifest(
        source=Path("/data.csv"),
        settings=DataSettings(),
        root=Path("/data"),
        name="data",
        paths=tuple(f"{index}.png" for index in range(n_rows)),
        labels=tuple(labels),
        splits=tuple({"r": "train", "e": "test"}[split] for split in splits or "r" * n_rows),
        groups=("",) * n_rows,
        metadata={"age": tuple(str(index) for index in range(n_rows))},
        n_bytes=tuple(range(n_rows)),
        mtime_ns=tuple(range(n_rows)),
        missing=(),
        split_source="column",
    )


@given(
    rows=st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("re")), min_size=1),
    n_rows=st.integers(1, 60),
)
def test_a_limited_manifest_is_spread_over_classes_and_splits(
    rows: list[tuple[str, str]], n_rows: int
) -> None:
    whole = a_manifest("".join(row[0] for row in rows), "".join(row[1] for row in rows))
    limited = whole.limited(n_rows)
    assert len(limited) == min(n_rows, len(whole))
    kept = [int(age) for age in limited.metadata["age"]]
    assert kept == sorted(kept)
    assert limited.paths == tuple(whole.paths[row] for row in kept)
    assert limited.n_bytes == limited.mtime_ns == tuple(kept)
    assert set(limited.paths) <= set(whole.limited(n_rows + 1).paths)
    there = Counter(zip(whole.labels, whole.splits))
    taken = Counter(zip(limited.labels, limited.splits))
    most = max(taken.values())
    assert all(taken[stratum] >= min(n, most - 1) for stratum, n in there.items())


def test_a_limit_of_0_takes_all() -> None:
    whole = a_manifest("abab")
    assert whole.limited(0) is whole


def test_the_digest_tells_any_change_of_rows_but_their_order(tmp_path: Path) -> None:
    make_files(tmp_path, "1.png", "2.png", "3.png")

    def digest(*rows: str) -> str:
        text = "\n".join(["path,label,split,group,age", *rows])
        return read_manifest(make_csv(tmp_path, text)).digest

    first, second = "1.png,a,train,,1", "2.png,b,test,,2"
    same = {digest(first, second), digest(second, first), digest("1.png,a,train,,9", second)}
    assert len(same) == 1
    others = [
        digest("3.png,a,train,,1", second),
        digest("1.png,c,train,,1", second),
        digest("1.png,a,test,,1", second),
        digest("1.png,a,train,g,1", second),
        digest(first, second, "gone.png,b,test,,3"),
    ]
    assert len(same.union(others)) == 6


def test_the_shared_data_are_read(shared_data: Path) -> None:
    pages = read_manifest(shared_data / "ludb-pages" / "manifest.csv")
    assert Counter(pages.labels) == {"lvh": 108, "no-lvh": 92}
    assert Counter(pages.splits) == {"train": 150, "test": 50}
    assert list(pages.metadata) == ["sex", "age", "rhythm"]
    sheets = read_manifest(shared_data / "mendeley-sheets" / "manifest.csv")
    assert sheets.name == "mendeley-sheets"
    assert Counter(zip(sheets.labels, sheets.splits)) == {
        (label, split): n
        for label in ("normal", "mi", "abnormal-heartbeat")
        for split, n in (("train", 16), ("test", 4))
    }
