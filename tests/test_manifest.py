from __future__ import annotations

import csv
import errno
import os
import random
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ecgfeat.config import DataSettings
from ecgfeat.errors import ConfigError, DataError, StorageError
from ecgfeat.manifest import Manifest, MissingImage, read_manifest, write_missing
from ecgfeat.manifest.listing import split_by_hash
from ecgfeat.manifest.manifest import ListedRows
from ecgfeat.manifest.table import list_csv


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
    assert manifest.split_source == "a hash (test fraction 0.3, seed 4)"


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
        "b/1.xml",
        "overview.png",
        ".DS_Store",
        "b/._1.png",
        ".git/x/1.png",
    )
    manifest = read_manifest(root)
    assert manifest.paths == ("a/1.png", "b/1.png")
    assert manifest.ignored == {".xml": 1, ".txt": 1, "images outside the class folders": 1}


def test_files_that_an_extra_reads_are_counted_with_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ecgfeat.manifest.tree.IMAGE_SUFFIXES", (".png",))
    root = make_files(tmp_path, "a/1.png", "b/1.png", "a/1.pdf", "b/2.dcm", "b/3.DCM")
    assert read_manifest(root).ignored == {
        ".pdf (pip install 'ecgfeat[pdf]' to read them)": 1,
        ".dcm (pip install 'ecgfeat[dicom]' to read them)": 2,
    }


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
    root = make_files(tmp_path, "train/a/1.png", "test/a/1.png", "mi/a/1.png")
    assert message_of(root) == (
        f"{root} holds test, train beside mi: it isn't clear which folders are splits and which "
        "are classes. Move the others elsewhere, or list the images in a .csv file with the "
        "columns path, label and split."
    )


def test_a_tree_without_images_is_refused(tmp_path: Path) -> None:
    root = make_files(tmp_path, "1.png", "2.png", "a/readme.txt")
    assert message_of(root) == (
        f"{root} holds no images (JPEG, PNG, TIFF, BMP, WebP, GIF) in class folders: expected "
        "<class>/… or train/<class>/… and test/<class>/… ."
    )
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "holds no images" in message_of(empty)


def test_a_folder_of_other_files_is_no_class_left_out_in_silence(tmp_path: Path) -> None:
    root = make_files(tmp_path, "a/1.png", "b/1.png", "c/1.heic", "d/notes.md")
    assert message_of(root) == (
        f"{root} has .heic files in c but no image there (JPEG, PNG, TIFF, BMP, WebP, GIF), and "
        "every folder is a class. Move such folders elsewhere, or list the images in a .csv file."
    )


@pytest.mark.parametrize(
    ("train", "test"),
    [("Training", "Testing"), ("train_set", "test_set"), ("TRAIN DATA", "test-images")],
)
def test_splits_are_known_by_their_usual_names(tmp_path: Path, train: str, test: str) -> None:
    manifest = read_manifest(
        make_files(tmp_path, *(f"{split}/{c}/1.png" for split in (train, test) for c in "ab"))
    )
    assert manifest.classes == ("a", "b")
    assert Counter(manifest.splits) == {"train": 2, "test": 2}
    assert manifest.split_source == "folders"


def test_splits_may_lie_inside_the_classes(tmp_path: Path) -> None:
    paths = [f"{label}/{split}/1.png" for label in "ab" for split in ("Train", "val", "test")]
    manifest = read_manifest(make_files(tmp_path, *paths))
    assert manifest.classes == ("a", "b")
    assert set(zip(manifest.labels, manifest.splits)) == {
        (label, split) for label in "ab" for split in ("train", "val", "test")
    }
    assert manifest.split_source == "folders inside the classes'"
    make_files(tmp_path, "b/1.png")
    assert message_of(tmp_path) == (
        f"{tmp_path / 'a'} holds Train, which is called like a split, and other class folders "
        "hold images themselves: it isn't clear which folders are splits. Give every class the "
        "same, or list the images in a .csv file with the columns path, label and split."
    )


def test_where_a_validation_part_is_named_and_no_test_train_is_split(tmp_path: Path) -> None:
    paths = [f"{s}/{c}/{i}.png" for s in ("training", "valid") for c in "ab" for i in range(10)]
    manifest = read_manifest(make_files(tmp_path, *paths))
    assert Counter(manifest.splits) == {"train": 16, "test": 4, "val": 20}
    assert all(
        path.startswith("valid") == (split == "val")
        for path, split in zip(manifest.paths, manifest.splits)
    )
    assert manifest.split_source == (
        "folders; none is for testing, so test rows are drawn from train by hash (test fraction "
        "0.2, seed 0)"
    )


def test_numbered_folds_are_no_classes(tmp_path: Path) -> None:
    root = make_files(tmp_path, *(f"fold_{n}/{c}/1.png" for n in range(3) for c in "ab"))
    assert message_of(root) == (
        f"the folders of {root} look like numbered folds (fold_0, fold_1, fold_2), not like "
        "classes. Give --test-folds those for testing, or list the images in a .csv file."
    )
    manifest = read_manifest(root, DataSettings(test_folds="2"))
    assert manifest.classes == ("a", "b")
    assert Counter(manifest.splits) == {"train": 4, "test": 2}
    assert "--test-folds goes with numbered folds" in message_of(
        make_files(tmp_path / "plain", "a/1.png", "b/1.png"), DataSettings(test_folds="1")
    )


@pytest.mark.parametrize(
    "junk",
    ["@eaDir", "#recycle", "$RECYCLE.BIN", "lost+found", "__MACOSX", "System Volume Information"],
)
def test_what_systems_leave_behind_is_no_image(tmp_path: Path, junk: str) -> None:
    root = make_files(
        tmp_path,
        "a/1.png",
        f"a/{junk}/1.png/thumb.jpg",
        "b/1.png",
        "b/._1.png",
        "b/.ipynb_checkpoints/1.png",
        f"{junk}/x/2.png",
    )
    manifest = read_manifest(root)
    assert manifest.paths == ("a/1.png", "b/1.png")
    assert manifest.ignored == {f"in {junk}": 2}


def test_runs_that_lie_in_the_data_are_no_class(tmp_path: Path) -> None:
    root = make_files(tmp_path, "a/1.png", "b/1.png")
    digest = read_manifest(root).digest
    run = "runs/20260131-094500-linear-pages"
    make_files(root, f"{run}/config.json", f"{run}/metrics.json", f"{run}/accuracy_curve.png")
    manifest = read_manifest(root)
    assert (manifest.classes, manifest.digest) == (("a", "b"), digest)
    assert manifest.ignored == {"of runs and audits in runs": 3}
    begun = "runs/20260131-094500-finetune-pages"
    make_files(root, f"{begun}/config.json", f"{begun}/.lock", f"{begun}/lr_range.png")
    assert read_manifest(root).classes == ("a", "b")
    make_files(root, "audits/20260131-pages/audit.json", "audits/20260131-pages/near-copies.png")
    assert read_manifest(root).classes == ("a", "b")


def test_the_folder_that_was_meant_is_named(tmp_path: Path) -> None:
    inner = make_files(tmp_path / "zip" / "ECG", "a/1.png", "b/1.png")
    assert message_of(tmp_path / "zip") == (
        f"{tmp_path / 'zip'} holds one folder only, ECG: give {inner}, which holds a, b."
    )
    make_files(tmp_path / "listed", "images/1.png", "images/2.png", "labels.csv")
    assert message_of(tmp_path / "listed") == (
        f"{tmp_path / 'listed'} holds labels.csv beside one folder, images: give the .csv file "
        f"that lists the images, such as {tmp_path / 'listed' / 'labels.csv'}."
    )


def test_folders_of_patients_are_groups_where_asked_for_and_else_warned_of(tmp_path: Path) -> None:
    root = make_files(
        tmp_path, *(f"{label}/p{n}/s{i}/x.png" for label in "ab" for n in range(5) for i in "12")
    )
    (warning,) = read_manifest(root).warnings
    assert warning.startswith("20 images lie in 20 folders below their class, such as a/p0/s1: ")
    assert "--group-by folder" in warning
    manifest = read_manifest(root, DataSettings(group_by="1"))
    assert set(manifest.groups) == {f"p{n}" for n in range(5)}
    assert manifest.group_source == "paths (--group-by 1)"
    assert manifest.warnings == ()
    assert set(read_manifest(root, DataSettings(group_by="folder")).groups) == {"s1", "s2"}
    with pytest.raises(DataError, match=r"^--group-by 3: no image of .* lies in such a folder"):
        read_manifest(root, DataSettings(group_by="3"))
    with pytest.raises(ConfigError, match=r"^--group-by must be folder, name, or the number"):
        DataSettings(group_by="patient")
    with pytest.raises(DataError, match=r"group 's1' is in train .* take the split folders away"):
        read_manifest(
            make_files(tmp_path / "split", "train/a/s1/1.png", "test/b/s1/1.png", "train/b/1.png"),
            DataSettings(group_by="folder"),
        )


def test_links_are_followed_where_asked_for(tmp_path: Path) -> None:
    pool = make_files(tmp_path / "pool", "1.png", "2.png", "more/3.png")
    root = tmp_path / "split"
    for label, name in (("a", "1.png"), ("b", "2.png")):
        (root / "train" / label).mkdir(parents=True)
        (root / "train" / label / name).symlink_to(pool / name)
    (root / "train/b/more").symlink_to(pool / "more")
    (root / "train/b/round").symlink_to(root / "train/b")
    manifest = read_manifest(root, DataSettings(follow_links=True))
    assert {"train/a/1.png", "train/b/2.png", "train/b/more/3.png"} <= set(manifest.paths)
    assert manifest.n_bytes[0] == len("1.png")


def test_a_linked_folder_in_a_tree_is_refused(tmp_path: Path) -> None:
    root = make_files(tmp_path / "pages", "a/1.png", "b/1.png")
    (root / "c").symlink_to(root / "a")
    assert message_of(root) == (
        f"{root / 'c'} is a symbolic link to a folder, which could lead outside {root} or list "
        "images twice. Give --follow-links to take it, move the folder itself there, or list the "
        "images in a .csv file."
    )


def test_a_linked_image_in_a_tree_may_not_leave_it(tmp_path: Path) -> None:
    outside = make_files(tmp_path, "outside.png") / "outside.png"
    root = make_files(tmp_path / "pages", "a/1.png", "b/1.png")
    (root / "a/2.png").symlink_to(root / "b/1.png")
    assert len(read_manifest(root)) == 3
    (root / "a/3.png").symlink_to(outside)
    assert message_of(root) == (
        f"{root}: 'a/3.png' leads out of {root} by a symbolic link, to {outside}. Give "
        "--follow-links to take it, or list the images in a .csv file, and give --root a folder "
        "that holds them all."
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
    assert manifest.split_source == "the column 'split'"
    assert manifest.label_source == "the column 'label'"
    assert manifest.group_source == "the column 'group'"
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
    folder = tmp_path / "a/1.png"
    with pytest.raises(StorageError, match=re.escape(f"making the folder {folder} failed: ")):
        write_missing(read_manifest(tmp_path), folder / "missing.csv")


def test_absent_data_are_refused(tmp_path: Path) -> None:
    expected = (
        "Expected a folder of class folders (train/<class>/… and test/<class>/…, or <class>/…), "
        "or a .csv file with the columns path and label."
    )
    for name in ("nowhere", "nowhere.csv"):
        assert message_of(tmp_path / name) == f"{tmp_path / name} does not exist. {expected}"
    make_files(tmp_path, "data.xlsx")
    assert message_of(tmp_path / "data.xlsx") == (
        f"{tmp_path / 'data.xlsx'} is neither a folder nor a .csv file. {expected}"
    )


BAD_CSVS = {
    "empty": ("", " is empty: expected a header with the columns path and label."),
    "only_a_header": ("path,label\n\n", " has a header but no rows."),
    "no_label": (
        "path,kind\n1.png,a\n",
        " has no column for the label: name it label, or give --label-column one of 'path', "
        "'kind'.",
    ),
    "one_hot": (
        "path,mi,normal\n1.png,1,0\n2.png,0,1\n",
        " has no column for the label: name it label, or give --label-column one of 'path', "
        "'mi', 'normal'. Where each class has a column of 0 and 1: --label-column mi,normal.",
    ),
    "no_path": (
        "record,label\n1.png,a\n",
        " has no column for the path: name it path, or give --path-column one of 'record', "
        "'label'.",
    ),
    "two_labels": (
        "path,class,diagnosis\n1.png,a,b\n",
        " has 'class' and 'diagnosis', and each could be the label. Give --label-column.",
    ),
    "another_separator": (
        "path~label\n1.png~a\n",
        " has one column only, 'path~label': expected the columns path and label, separated by "
        "commas, semicolons, tabs, bars.",
    ),
    "a_label_per_image": (
        "path,label\n" + "".join(f"{n}.png,{n}.5\n" for n in range(5)),
        ": every image has a label of its own ('0.5', '1.5', '2.5', '3.5' …), so there are no "
        "classes to learn. Give --label-column the column of classes; numbers must be made into "
        "classes first.",
    ),
    "no_label_at_all": ("path,label\n1.png,\n2.png,nan\n", " has no row with a label."),
    "numbered_folds": (
        "path,label,split\n1.png,a,1\n2.png,b,2\n",
        ": the column 'split' holds numbered folds. Give --test-folds those for testing, such as "
        "--test-folds 9,10.",
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
    "duplicate_rows": (
        "path,label\n1.png,a\n2.png,b\n./1.png,b\n",
        ", rows 2 and 4 list the same image, '1.png'. Remove one of them.",
    ),
    "another_split": (
        "path,label,split\n1.png,a,train\n2.png,b,later\n",
        ", row 3: the split must be train, val or test; found 'later'. Correct it, or remove the "
        "column to have the rows split by class.",
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


def listed(tmp_path: Path, text: str, **settings: Any) -> Manifest:
    """The manifest of a CSV whose images are 1.png to 9.png."""
    make_files(tmp_path, *(f"{number}.png" for number in range(1, 10)))
    return read_manifest(make_csv(tmp_path, text), DataSettings(**settings))


def rows(*cells: str) -> str:
    return "".join(f"{number}.png,{cell}\n" for number, cell in enumerate(cells, 1))


def test_columns_are_known_by_their_usual_names_in_any_case(tmp_path: Path) -> None:
    header = "File Name, Diagnosis ,SET,Patient ID\n"
    manifest = listed(tmp_path, header + rows("a,Training,7", "b,Test,8", "a,dev,9"))
    assert manifest.labels == ("a", "b", "a")
    assert manifest.splits == ("train", "test", "val")
    assert manifest.groups == ("7", "8", "9")
    assert manifest.label_source == "the column 'Diagnosis'"
    assert manifest.group_source == "the column 'Patient ID'"
    assert manifest.metadata == {"Patient ID": ("7", "8", "9")}


def test_columns_may_be_named_by_hand(tmp_path: Path) -> None:
    text = "where,what,part,who,label\n" + rows("a,train,7,x", "b,test,8,x")
    named = {"path": "where", "label": "What", "split": "part", "group": "who"}
    manifest = listed(tmp_path, text, **{f"{role}_column": name for role, name in named.items()})
    assert (manifest.labels, manifest.groups) == (("a", "b"), ("7", "8"))
    assert manifest.splits == ("train", "test")
    with pytest.raises(ConfigError, match=r"^--group-column: .* has no column 'nobody', only 'wh"):
        listed(tmp_path, text, path_column="where", group_column="nobody")


def test_a_column_of_patients_is_never_unused_in_silence(tmp_path: Path) -> None:
    text = "path,label,group,patient_id\n" + rows("a,g,7", "b,h,8")
    manifest = listed(tmp_path, text)
    assert manifest.groups == ("g", "h")
    assert (
        "the column 'patient_id' isn't used: 'group' tells whose image it is (else give "
        "--group-column)"
    ) in manifest.warnings


def test_numbered_folds_are_taken_where_asked_for(tmp_path: Path) -> None:
    text = "path,label,strat_fold\n" + rows("a,1", "b,2", "a,10", "b,10")
    plain = listed(tmp_path, text)
    assert plain.metadata == {"strat_fold": ("1", "2", "10", "10")}
    assert "the column 'strat_fold' isn't used" in plain.warnings[0]
    tested = listed(tmp_path, text, test_folds="10")
    assert tested.splits == ("train", "train", "test", "test")
    assert tested.split_source == "the column 'strat_fold' (--test-folds)"
    with pytest.raises(ConfigError, match="has no fold 7 in 'strat_fold', only 1, 2, 10"):
        listed(tmp_path, text, test_folds="7,10")
    with pytest.raises(ConfigError, match="--test-folds must be numbers such as 9,10; found 'x'"):
        DataSettings(test_folds="x")
    with pytest.raises(ConfigError, match="has no column of numbered folds"):
        listed(tmp_path, "path,label\n" + rows("a", "b"), test_folds="1")


def test_one_column_per_class_makes_labels(tmp_path: Path) -> None:
    text = "path,MI,NORM,age\n" + rows("1,0,5", "0,1.0,6", "0,0,7", "1,1,8", "1,,9")
    manifest = listed(tmp_path, text, label_column="MI,NORM")
    assert manifest.labels == ("MI", "NORM", "MI")
    assert manifest.metadata == {"age": ("5", "6", "9")}
    assert manifest.ignored == {"rows of several classes": 1, "rows without a label": 1}
    assert manifest.warnings == (
        "1 rows are of several classes at once and are left out",
        "classes of one image only: NORM",
    )
    with pytest.raises(DataError, match="row 2: the column 'age' must hold 1 or 0"):
        listed(tmp_path, text, label_column="MI,age")


def test_rows_without_a_label_are_left_out_and_counted(tmp_path: Path) -> None:
    manifest = listed(tmp_path, "path,label\n" + rows("a", "", "nan", "b", "NaN", "b"))
    assert manifest.paths == ("1.png", "4.png", "6.png")
    assert manifest.ignored == {"rows without a label": 3}
    assert "ignored: rows without a label 3" in manifest.summary()


def test_a_group_that_is_no_name_is_no_group(tmp_path: Path) -> None:
    manifest = listed(tmp_path, "path,label,group\n" + rows("a,nan", "b,nan", "a,p", "b,"))
    assert manifest.groups == ("", "", "p", "")
    assert "1 groups from the column 'group', 3 images on their own" in manifest.summary()[-1]


@pytest.mark.parametrize(("one", "other"), [("MI", "mi"), ("0", "0.0"), ("no lvh", "No-LVH")])
def test_labels_that_look_alike_are_warned_of(tmp_path: Path, one: str, other: str) -> None:
    text = "path,label\n" + rows(one, other, one, "b", "b", "b", other)
    manifest = listed(tmp_path, text)
    assert len(manifest.classes) == 3
    assert manifest.warnings == (
        f"the labels {one!r} (2) and {other!r} (2) look alike but are classes of their own: spell "
        "them alike",
    )
    assert manifest.summary()[-1] == f"warning: {manifest.warnings[0]}"
    assert manifest.as_json()["warnings"] == list(manifest.warnings)


def test_several_labels_in_a_cell_are_warned_of(tmp_path: Path) -> None:
    manifest = listed(tmp_path, "path,label\n" + rows("MI", "MI;STTC", "MI;STTC", "NORM", "MI"))
    assert "2 images have several labels in one (MI;STTC)" in manifest.warnings[0]


@pytest.mark.parametrize("separator", [";", "\t", "|"])
def test_any_usual_separator_is_read(tmp_path: Path, separator: str) -> None:
    text = "path,label,note\n1.png,a,x\n2.png,b,\n,,\n".replace(",", separator) + separator * 4
    manifest = listed(tmp_path, text)
    assert manifest.labels == ("a", "b")
    assert manifest.metadata == {"note": ("x", "")}


def test_paths_may_be_windows_or_lack_their_suffix(tmp_path: Path) -> None:
    make_files(tmp_path, "in/1.png", "in/2.JPG")
    manifest = read_manifest(make_csv(tmp_path, "path,label\nin\\1.png,a\nin\\2,b\nin\\3,b\n"))
    assert manifest.paths == ("in/1.png", "in/2.JPG")
    assert [row.path for row in manifest.missing] == ["in/3"]
    assert "1 listed paths have no suffix: the files' own are taken" in manifest.warnings


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
        "Give --follow-links to take it, or list the images in a .csv file, and give --root a "
        "folder that holds them all."
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
        splits=[],
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
        splits=[],
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


def test_a_limit_is_kept_with_the_data_s_name(tmp_path: Path) -> None:
    root = make_files(tmp_path / "pages", *(f"{c}/{i}.png" for c in "ab" for i in range(10)))
    whole, few = read_manifest(root), read_manifest(root, DataSettings(limit=6))
    assert few.paths == whole.limited(6).paths
    assert few.name == "pages-limit6"


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
