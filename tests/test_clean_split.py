"""A clean manifest: no picture and no patient on two sides."""

from __future__ import annotations

import csv
from collections import Counter, defaultdict
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

import ecgfeat
from ecgfeat.cli import app
from ecgfeat.config import DataSettings, SplitSettings
from ecgfeat.errors import ConfigError, DataError
from ecgfeat.manifest import Manifest, read_manifest

from .conftest import write_csv
from .feature_cache.fakes import fill

Row = dict[str, str]


def rows_of(path: Path) -> list[Row]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def make(root: Path, pictures: str, groups: str = "", splits: str = "") -> Path:
    """A CSV of files, of which the same letter is the same picture; a class of each in turn."""
    rows = []
    for number, picture in enumerate(pictures):
        path = root / f"{number:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture.encode() * 10)
        row = {"path": path.name, "label": "ab"[number % 2]}
        if groups:
            row["group"] = groups[number].strip(".")
        if splits:
            row["split"] = {"t": "train", "e": "test"}[splits[number]]
        rows.append({**row, "age": str(number)})
    return write_csv(root / "pages.csv", rows)


LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMN"


def test_the_same_rows_from_data_and_from_a_cache_and_read_back_alike(tmp_path: Path) -> None:
    data = make(tmp_path / "pages", LETTERS[:30] + LETTERS[:6], "p" * 4 + "." * 32)
    cache = fill(tmp_path / "c.h5", read_manifest(data))
    one = ecgfeat.split(data, out=tmp_path / "one.csv")
    other = ecgfeat.split(cache.path, out=tmp_path / "other.csv")
    assert one.manifest_path.read_text() == other.manifest_path.read_text()
    assert one.counts == other.counts
    assert len(one.left_out) == 6
    assert (
        rows_of(one.left_out_path)[0]["reason"]
        == "the same picture twice (the same picture as 00.png)"
    )
    again = read_manifest(one.manifest_path, DataSettings(root=one.root))
    found = rows_of(one.manifest_path)
    assert list(again.splits) == [row["split"] for row in found]
    assert list(again.groups) == [row["group"] for row in found]
    assert again.metadata["age"] == tuple(row["age"] for row in found)
    assert again.counts() == one.counts


def test_copies_are_dropped_or_kept_together(tmp_path: Path) -> None:
    # Rows 0, 2 and 4 are one picture; row 2's group takes row 6 with it.
    data = make(tmp_path / "pages", "aba" + "caefgh" + LETTERS[10:31], "..p...p" + "." * 23)
    dropped = rows_of(ecgfeat.split(data, out=tmp_path / "d.csv").manifest_path)
    assert [row["path"] for row in dropped[:4]] == ["00.png", "01.png", "03.png", "05.png"]
    kept = ecgfeat.split(data, out=tmp_path / "g.csv", settings=SplitSettings(copies="group"))
    found = {row["path"]: row for row in rows_of(kept.manifest_path)}
    assert len(found) == 30
    assert len({found[f"{n:02d}.png"]["group"] for n in (0, 2, 4, 6)}) == 1
    assert len({found[f"{n:02d}.png"]["split"] for n in (0, 2, 4, 6)}) == 1
    assert kept.n_groups == 1


def test_a_picture_under_two_labels_is_left_out_either_way(tmp_path: Path) -> None:
    data = make(tmp_path / "pages", "aa" + LETTERS[1:20])
    for copies in ("drop", "group"):
        done = ecgfeat.split(
            data, out=tmp_path / f"{copies}.csv", settings=SplitSettings(copies=copies)
        )
        assert [why for _, _, why in done.left_out] == [
            "under two labels (the same picture as another)"
        ] * 2
        assert done.as_json()["left_out"] == {"under two labels": 2}


def test_the_datas_own_split_is_kept_and_the_tested_copy_with_it(tmp_path: Path) -> None:
    data = make(tmp_path / "pages", "abca" + LETTERS[3:19], splits="tttt" + "ttee" * 4)
    rows = rows_of(data)
    rows[2]["path"], rows[4]["path"] = rows[4]["path"], rows[2]["path"]
    done = ecgfeat.split(data, out=tmp_path / "s.csv", settings=SplitSettings(keep_split=True))
    assert len(rows_of(done.manifest_path)) == 18  # 0 and 3 are one picture of two labels
    data = make(tmp_path / "more", "abc" + LETTERS[3:18] + "ab", splits="t" * 10 + "e" * 10)
    done = ecgfeat.split(data, out=tmp_path / "k.csv", settings=SplitSettings(keep_split=True))
    assert [path for path, _, _ in done.left_out] == ["00.png", "01.png"]
    found = {row["path"]: row["split"] for row in rows_of(done.manifest_path)}
    assert found["18.png"] == "test"
    assert Counter(found.values()) == {"train": 8, "test": 10}


def test_keeping_the_split_leaves_out_what_a_copy_ties_to_the_test_part(tmp_path: Path) -> None:
    # 2 and 3 are one patient's, and 18 is 2 again under another name.
    data = make(
        tmp_path / "pages", "abcdefghijklmnopqrct", "..pp" + "." * 14 + "x.", "t" * 10 + "e" * 10
    )
    done = ecgfeat.split(data, out=tmp_path / "k.csv", settings=SplitSettings(keep_split=True))
    assert {path: why for path, _, why in done.left_out} == {
        "02.png": "the same picture twice (the same picture as 18.png)",
        "03.png": "of a group that is in test too",
    }
    kept = read_manifest(done.manifest_path, DataSettings(root=done.root))
    assert kept.counts() == {"train": {"a": 4, "b": 4}, "test": {"a": 5, "b": 5}}


def test_keeping_the_split_prefers_test_to_validation_and_that_to_training(tmp_path: Path) -> None:
    # 2 and 18 are one picture; 18 and 16 are one patient's.
    data = make(tmp_path / "pages", "abcdefghijklmnopqrct", "." * 16 + "x.x.", "t" * 10 + "e" * 10)
    text = data.read_text().replace(",test,", ",val,", 10)
    rows = [
        line.replace(",train,", ",test,") if line[:2] in ("08", "09") else line
        for line in text.splitlines()
    ]
    data.write_text("\n".join(rows) + "\n")
    done = ecgfeat.split(data, out=tmp_path / "k.csv", settings=SplitSettings(keep_split=True))
    assert [(path, why) for path, _, why in done.left_out] == [
        ("02.png", "the same picture twice (the same picture as 18.png)")
    ]


def test_keeping_the_split_refuses_to_lose_a_class(tmp_path: Path) -> None:
    # Each training page of class a is a tested picture again.
    data = make(tmp_path / "pages", "abcdefghijaqcresgtiu", splits="t" * 10 + "e" * 10)
    with pytest.raises(DataError, match=r"^train would have no image of a: .* out --keep-split"):
        ecgfeat.split(data, out=tmp_path / "k.csv", settings=SplitSettings(keep_split=True))


def test_a_validation_part_or_numbered_folds(tmp_path: Path) -> None:
    data = make(tmp_path / "pages", LETTERS)
    done = ecgfeat.split(data, out=tmp_path / "v.csv", settings=SplitSettings(val_fraction=0.25))
    assert done.counts == {
        "train": {"a": 12, "b": 12},
        "val": {"a": 4, "b": 4},
        "test": {"a": 4, "b": 4},
    }
    done = ecgfeat.split(data, out=tmp_path / "f.csv", settings=SplitSettings(folds=5))
    assert done.counts == {str(fold): {"a": 4, "b": 4} for fold in range(1, 6)}
    manifest = read_manifest(done.manifest_path, DataSettings(root=done.root, test_folds="5"))
    assert manifest.counts() == {"train": {"a": 16, "b": 16}, "test": {"a": 4, "b": 4}}


def test_the_split_is_the_one_that_extract_would_draw_and_its_seed_another(tmp_path: Path) -> None:
    data = make(tmp_path / "pages", LETTERS, "pp" + "qq" + "." * 36)
    drawn = read_manifest(data)
    done = ecgfeat.split(data, out=tmp_path / "s.csv")
    assert [row["split"] for row in rows_of(done.manifest_path)] == list(drawn.splits)
    other = ecgfeat.split(data, out=tmp_path / "o.csv", data=DataSettings(split_seed=1))
    assert rows_of(other.manifest_path) != rows_of(done.manifest_path)


def test_a_column_called_like_one_of_ours_is_kept_beside_it(tmp_path: Path) -> None:
    data = make(tmp_path / "pages", LETTERS[:20])
    text = data.read_text().replace("path,label,age", "path,label,Fold")
    data.write_text(text)
    done = ecgfeat.split(data, out=tmp_path / "split.csv")
    first = rows_of(done.manifest_path)[0]
    assert list(first) == ["path", "label", "split", "group", "Fold_before"]
    again = read_manifest(done.manifest_path, DataSettings(root=done.root))
    assert again.metadata["Fold_before"][0] == first["Fold_before"]


def test_patients_of_a_cache_by_a_column_or_by_the_path(tmp_path: Path) -> None:
    root = tmp_path / "pages"
    for number in range(40):
        path = root / "ab"[number % 2] / f"p{number // 4}_{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"%d" % number * 9)
    cache = fill(tmp_path / "c.h5", read_manifest(root))
    done = ecgfeat.split(cache, out=tmp_path / "n.csv", data=DataSettings(group_by="name"))
    sides = defaultdict(set)
    for row in rows_of(done.manifest_path):
        assert row["group"] == Path(row["path"]).name.split("_")[0]
        sides[row["group"]].add(row["split"])
    assert {len(found) for found in sides.values()} == {1}
    data = make(tmp_path / "other", LETTERS[:20])
    cache = fill(tmp_path / "o.h5", read_manifest(data))
    done = ecgfeat.split(cache, out=tmp_path / "a.csv", data=DataSettings(group_column="age"))
    assert {row["group"] for row in rows_of(done.manifest_path)} == set(map(str, range(20)))


def test_near_copies_of_an_audit_are_dropped_or_kept_together(tmp_path: Path) -> None:
    data = make(tmp_path / "pages", LETTERS[:20])
    audit = tmp_path / "audit"
    with pytest.raises(ConfigError, match=r"is no audit's folder: it has no audit\.json"):
        ecgfeat.split(data, out=tmp_path / "s.csv", settings=SplitSettings(audit=audit))
    audit.mkdir()
    (audit / "audit.json").write_text("{}")
    pairs = [("00.png", "04.png"), ("04.png", "08.png"), ("02.png", "05.png")]
    write_csv(audit / "near-copies.csv", [{"path": a, "other_path": b} for a, b in pairs])
    done = ecgfeat.split(data, out=tmp_path / "d.csv", settings=SplitSettings(audit=audit))
    assert {path: why for path, _, why in done.left_out} == {
        "04.png": "nearly the same picture twice (nearly the same picture as 00.png)",
        "08.png": "nearly the same picture twice (nearly the same picture as 00.png)",
        "02.png": "under two labels (nearly the same picture as another)",
        "05.png": "under two labels (nearly the same picture as another)",
    }
    together = SplitSettings(audit=audit, copies="group")
    done = ecgfeat.split(data, out=tmp_path / "g.csv", settings=together)
    found = {row["path"]: row for row in rows_of(done.manifest_path)}
    assert found["00.png"]["group"] == found["08.png"]["group"] == "00.png"
    write_csv(audit / "near-copies.csv", [{"path": "x.png", "other_path": "y.png"}])
    with pytest.raises(ConfigError, match="names no image of pages: give an audit of it"):
        ecgfeat.split(data, out=tmp_path / "x.csv", settings=together)
    (audit / "near-copies.csv").write_text("a,b\n1,2\n")
    with pytest.raises(DataError, match="isn't as an audit writes it"):
        ecgfeat.split(data, out=tmp_path / "x.csv", settings=together)


def test_what_can_not_be_is_refused(tmp_path: Path) -> None:
    data = make(tmp_path / "pages", LETTERS[:20])
    cache = fill(tmp_path / "c.h5", read_manifest(data))
    out = tmp_path / "s.csv"
    ecgfeat.split(data, out=out)
    with pytest.raises(ConfigError, match="exists: give another --out, or --force"):
        ecgfeat.split(data, out=out)
    ecgfeat.split(data, out=out, force=True)
    with pytest.raises(ConfigError, match=r"^--label-column says how DATA is read, and a cache"):
        ecgfeat.split(cache, out=out, force=True, data=DataSettings(label_column="x"))
    with pytest.raises(ConfigError, match=r"^--group-column 'x' is no column of .*, which has age"):
        ecgfeat.split(cache, out=out, force=True, data=DataSettings(group_column="x"))
    tree = tmp_path / "tree"
    for label in "ab":
        for number in range(6):
            (tree / label).mkdir(parents=True, exist_ok=True)
            (tree / label / f"{number}.png").write_bytes(b"%d" % number + label.encode())
    with pytest.raises(ConfigError, match="lies inside the data"):
        ecgfeat.split(tree, out=tree / "s.csv")
    few = make(tmp_path / "few", "abcd")
    with pytest.raises(DataError, match=r"^val would have no image of a, b: too few groups"):
        ecgfeat.split(few, out=tmp_path / "f.csv", settings=SplitSettings(val_fraction=0.2))
    with pytest.raises(ConfigError, match="--keep-split can't move a copy to the other side"):
        SplitSettings(keep_split=True, copies="group")
    with pytest.raises(ConfigError, match="give one of them"):
        SplitSettings(keep_split=True, folds=3)
    with pytest.raises(ConfigError, match="--folds must be 0 or at least 2"):
        SplitSettings(folds=1)


def test_the_command_says_what_it_wrote_and_what_comes_next(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    make(tmp_path / "pages", LETTERS[:20] + "a")
    done = CliRunner().invoke(app, ["split", "pages/pages.csv"])
    assert done.exit_code == 0, done.output
    assert "left out: 1 images, the same picture twice" in done.stdout
    assert "manifest: pages-split.csv" in done.stdout
    assert f"next: ecgfeat extract pages-split.csv --root {tmp_path}/pages" in done.stderr


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(
        st.tuples(st.integers(0, 12), st.integers(0, 5), st.booleans()), min_size=8, max_size=40
    ),
    copies=st.sampled_from(["drop", "group"]),
    folds=st.sampled_from([0, 2]),
)
def test_no_picture_and_no_group_is_ever_on_two_sides(tmp_path_factory, rows, copies, folds):
    root = tmp_path_factory.mktemp("any")
    manifest = Manifest(
        source=root / "pages.csv",
        settings=DataSettings(),
        root=root,
        name="any",
        paths=tuple(f"{n}.png" for n in range(len(rows))),
        labels=tuple("ab"[label] for _, _, label in rows),
        splits=("train",) * len(rows),
        groups=tuple(f"g{group}" if group else "" for _, group, _ in rows),
        metadata={},
        n_bytes=tuple(100 + picture for picture, _, _ in rows),
        mtime_ns=(0,) * len(rows),
        missing=(),
        split_source="",
    )
    for number, (picture, _, _) in enumerate(rows):
        (root / f"{number}.png").write_bytes(bytes([picture]) * (100 + picture))
    try:
        done = ecgfeat.split(
            manifest, out=root / "s.csv", settings=SplitSettings(copies=copies, folds=folds)
        )
    except DataError:
        return  # too little is left of a class
    sides = defaultdict(set)
    for row in rows_of(done.manifest_path):
        number = int(Path(row["path"]).stem)
        side = row["fold"] if folds else row["split"]
        sides["picture", rows[number][0]].add(side)
        if rows[number][1]:
            sides["group", rows[number][1]].add(side)
    assert all(len(found) == 1 for found in sides.values())
    n_kept = len(rows_of(done.manifest_path))
    assert n_kept + len(done.left_out) == len(rows)
