"""Every check of the audit on small sets with one fault each, and on a clean one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

import ecgfeat
from ecgfeat.cli import app
from ecgfeat.config import AuditSettings
from ecgfeat.data_audit import Audit, Finding
from ecgfeat.errors import ConfigError, DataError, Interrupted
from ecgfeat.feature_cache import FeatureCache
from ecgfeat.runtime import Progress

from .sets import Rows, cached, listed, make_set

QUICK = AuditSettings(pages=0)


def audited(cache: FeatureCache, settings: AuditSettings = QUICK, **options: Any) -> Audit:
    return ecgfeat.audit(cache, out_dir=cache.path.parent / "audits", settings=settings, **options)


def finding(found: Audit, check: str) -> Finding:
    (one,) = [one for one in found.findings if one.check == check]
    return one


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> FeatureCache:
    """A clean set of 40 pages, two of each patient, with a column."""
    root = tmp_path_factory.mktemp("clean") / "pages"
    rows = make_set(
        root, 40, group=lambda row: f"p{row // 4 * 2 + row % 2}", sex=lambda row: "fm"[row // 2 % 2]
    )
    for row in rows:
        number = int(Path(row["path"]).stem) // 4
        row["split"] = "test" if number % 4 == 3 else "train"
    return cached(listed(root, rows))


def plain_set(tmp_path: Path, n_rows: int = 40, **columns: Any) -> tuple[Path, Rows]:
    root = tmp_path / "pages"
    return root, make_set(root, n_rows, **columns)


def test_a_clean_set_comes_out_clean(clean: FeatureCache) -> None:
    found = audited(clean, AuditSettings())
    assert found.is_clean, found.findings
    assert finding(found, "nearly the same image").level == "fine"
    assert finding(found, "shortcuts: how a page looks").level == "fine"
    assert finding(found, "the same patient in train and test").number.startswith("20 groups, 0")
    kept = json.loads((found.folder / "audit.json").read_text())
    assert [one["check"] for one in kept["findings"]] == [one.check for one in found.findings]
    assert kept["is_clean"] is True


def test_copies_across_the_split_are_an_error_and_listed(tmp_path: Path) -> None:
    root, rows = plain_set(tmp_path)
    trained, tested = (next(r for r in rows if r["split"] == s) for s in ("train", "test"))
    (root / tested["path"]).write_bytes((root / trained["path"]).read_bytes())
    (root / rows[0]["path"]).with_suffix(".PNG").write_bytes((root / rows[3]["path"]).read_bytes())
    rows.append({**rows[3], "path": str(Path(rows[0]["path"]).with_suffix(".PNG"))})
    found = audited(cached(listed(root, rows)))
    same = finding(found, "the same image twice")
    assert same.level == "error"
    assert same.details == {
        "pictures": 2,
        "images": 4,
        "across_splits": 1,
        "test_images": 1,
        "under_two_labels": 0,
    }
    assert "ecgfeat split " in same.remedy
    listed_rows = (found.folder / "same-images.csv").read_text().splitlines()
    assert listed_rows[0] == "path,label,split,picture"
    assert len(listed_rows) == 5


def test_a_picture_under_two_labels_is_an_error_and_copies_on_one_side_a_note(
    tmp_path: Path,
) -> None:
    root, rows = plain_set(tmp_path)
    (root / rows[2]["path"]).write_bytes((root / rows[0]["path"]).read_bytes())
    cache = cached(listed(root, rows))
    assert finding(audited(cache), "the same image twice").level == "note"
    cache.path.unlink()
    (root / rows[1]["path"]).write_bytes((root / rows[0]["path"]).read_bytes())
    same = finding(audited(cached(listed(root, rows))), "the same image twice")
    assert (same.level, same.details["under_two_labels"]) == ("error", 1)


def test_pages_saved_again_across_the_split_are_a_warning_with_a_sheet(tmp_path: Path) -> None:
    from PIL import Image

    root, rows = plain_set(tmp_path, 24)
    for number in (0, 1, 4):
        name = rows[number]["path"].replace(".png", "-again.jpg")
        Image.open(root / rows[number]["path"]).save(root / name, quality=40)
        rows.append({**rows[number], "path": name, "split": "test"})
    cache = cached(listed(root, rows))
    found = audited(cache, AuditSettings())
    near = finding(found, "nearly the same image")
    assert near.level == "warning"
    assert near.details["across_splits"] == near.details["pairs"] == 3
    assert f"--audit {found.folder}" in near.remedy
    assert found.files["nearly the same image, sheet"].read_bytes().startswith(b"\x89PNG")
    # One patient's pages may be alike.
    cache.path.unlink()
    groups = tuple(path.partition(".")[0].removesuffix("-again") for path in cache.paths)
    cache = cached(listed(root, rows), groups=groups)
    assert finding(audited(cache, AuditSettings()), "nearly the same image").level == "fine"


def test_a_group_on_both_sides_is_an_error(tmp_path: Path) -> None:
    root, rows = plain_set(tmp_path)
    manifest = listed(root, rows)
    groups = tuple("p1" if row in (0, 6) else "" for row in range(len(rows)))
    assert manifest.splits[0] != manifest.splits[6]
    found = finding(audited(cached(manifest, groups=groups)), "the same patient in train and test")
    assert found.level == "error"
    assert "1 of them on both sides; 38 images are on their own" in found.number


def test_a_column_or_name_that_looks_like_a_patients_is_a_warning(tmp_path: Path) -> None:
    root, rows = plain_set(tmp_path)
    manifest = listed(root, rows)
    patients = tuple(f"p{row % 12}" for row in range(40))
    check = "the same patient in train and test"
    found = finding(audited(cached(manifest, metadata={"Patient ID": patients})), check)
    assert (found.level, found.details["on_both_sides"]) == ("warning", 6)
    assert found.remedy.endswith("--group-column 'Patient ID'")
    (root.parent / "c.h5").unlink()
    assert finding(audited(cached(manifest)), check).level == "unknown"
    for row in rows:
        number = int(Path(row["path"]).stem)
        new = f"{row['label']}/p{number % 12}_{number // 12}.png"
        (root / row["path"]).rename(root / new)
        row["path"] = new
    (root.parent / "c.h5").unlink()
    found = finding(audited(cached(listed(root, rows))), check)
    assert (found.level, found.remedy[-15:]) == ("warning", "--group-by name")


def test_files_of_one_class_that_are_missing_are_a_warning(tmp_path: Path) -> None:
    root, rows = plain_set(tmp_path, 80)
    check = "missing, undecodable and ignored files"
    for row in rows[1:40:2]:
        (root / row["path"]).unlink()
    found = finding(audited(cached(listed(root, rows))), check)
    assert found.level == "warning"
    assert "missing 20 (normal 0.0%, pathological 50.0%)" in found.number
    assert found.details["missing_by_split"]["train/pathological"] == 15
    # The same share of both classes is none.
    for row in rows[:40:2]:
        (root / row["path"]).unlink()
    (tmp_path / "c.h5").unlink()
    found = finding(audited(cached(listed(root, rows))), check)
    assert (found.level, found.details["p_value"]) == ("note", 1.0)


def test_what_was_ignored_or_could_not_be_decoded_is_counted_by_class(tmp_path: Path) -> None:
    root, _ = plain_set(tmp_path, 40)
    for number in range(30):
        (root / "normal" / f"{number}.heic").write_bytes(b"x")
    manifest = ecgfeat.read_manifest(root)
    found = finding(audited(cached(manifest, bad=[1, 2])), "missing, undecodable and ignored files")
    assert found.details["lost"] == {"undecodable": {"normal": 2}, "ignored": {"normal": 30}}
    assert (found.level, "ignored" in found.meaning) == ("warning", True)


def test_a_shortcut_and_a_column_that_tell_the_class_are_warnings(tmp_path: Path) -> None:
    from PIL import Image, ImageDraw

    root, rows = plain_set(tmp_path, 24, device=lambda row: "AB"[row % 2], age=lambda row: row % 7)
    for row in rows[1::2]:
        image = Image.open(root / row["path"])
        ImageDraw.Draw(image).rectangle((0, 0, 12, 9), fill=(200, 40, 40))
        image.save(root / row["path"])
    found = audited(cached(listed(root, rows)), AuditSettings())
    page, column = (
        finding(found, f"shortcuts: {what}")
        for what in ("how a page looks", "the data's other columns")
    )
    assert (page.level, column.level) == ("warning", "warning")
    assert "border: AUROC 1.000" in page.number
    assert column.number.startswith("device: AUROC 1.000")
    assert "age:" not in column.number


def test_a_test_part_from_elsewhere_is_a_warning(tmp_path: Path) -> None:
    root, rows = plain_set(tmp_path, 80)
    for row in rows:
        row["site of scan"] = "X" if row["split"] == "test" else "Y"
    found = finding(audited(cached(listed(root, rows))), "train and test from different worlds")
    assert found.level == "warning"
    assert found.number.startswith("site of scan: AUROC 1.000")


def test_without_pages_no_image_is_opened(tmp_path: Path) -> None:
    root, rows = plain_set(tmp_path, 24)
    cache = cached(listed(root, rows))
    for row in rows:
        (root / row["path"]).unlink()
    found = audited(cache)
    assert finding(found, "nearly the same image").number == "not looked at (--pages 0)"
    assert not [path for path in found.files.values() if path.suffix == ".png"]
    moved = audited(cache, AuditSettings())
    for check in ("nearly the same image", "shortcuts: how a page looks"):
        assert finding(moved, check).level == "unknown"
        assert "--root" in finding(moved, check).remedy


def test_what_was_measured_is_remembered_and_changed_images_are_not(tmp_path: Path) -> None:
    root, rows = plain_set(tmp_path, 24)
    cache = cached(listed(root, rows))
    first = audited(cache, AuditSettings())
    elsewhere = root.rename(root.with_name("moved"))
    assert audited(cache, AuditSettings()).as_json() == first.as_json()
    # Other pictures of the same names are none of the cache's.
    (memory,) = tmp_path.glob("*-audit.npz")
    memory.write_bytes(memory.read_bytes()[:100])
    for row in rows:
        (elsewhere / row["path"]).write_bytes((elsewhere / rows[0]["path"]).read_bytes())
    again = audited(cache, AuditSettings(root=elsewhere))
    page = finding(again, "shortcuts: how a page looks")
    assert (page.level, "changed since" in page.number) == ("unknown", True)


def test_an_interrupted_audit_keeps_what_it_measured(tmp_path: Path) -> None:
    root, rows = plain_set(tmp_path, 24)
    cache = cached(listed(root, rows))

    def stop_after_ten(progress: Progress) -> None:
        if progress.stage == "measuring" and progress.done == 10:
            raise Interrupted(2)

    with pytest.raises(Interrupted):
        ecgfeat.audit(cache, out_dir=tmp_path / "audits", report=stop_after_ten)
    (memory,) = tmp_path.glob("*-audit.npz")
    with np.load(memory) as file:
        assert len(file["traits"]) >= 9


def test_a_runs_results_are_given_by_stratum(clean: FeatureCache, tmp_path: Path) -> None:
    (run,) = ecgfeat.fit_heads(clean, kinds="logreg", head=HEAD, out_dir=tmp_path)
    found = audited(clean, AuditSettings(pages=0, by="sex"), run=run)
    strata = finding(found, "results by stratum").details["strata"]
    assert [one["value"] for one in strata] == ["f", "m"]
    assert sum(one["n_tested"] for one in strata) == clean.splits.count("test")
    tested = np.array([clean.metadata["sex"][clean.paths.index(p)] for p in run.predictions.ids])
    right = run.predictions.predicted == run.predictions.targets
    for one in strata:
        assert one["scores"]["accuracy"]["value"] == right[tested == one["value"]].mean()
    shown = CliRunner().invoke(
        app, ["audit", str(clean.path), "--run", str(run.path), "--pages", "0", "--by", "sex"]
    )
    assert shown.exit_code == 0, shown.output
    assert "results by stratum" in shown.stdout


HEAD = ecgfeat.RECIPES["paper"].head


def test_what_does_not_go_with_the_data_is_refused_first(
    clean: FeatureCache, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r"^--by names 'age', but the data's columns are sex$"):
        audited(clean, AuditSettings(by="age"))
    root, rows = plain_set(tmp_path)
    for row in rows:
        row["path"] = row["path"].replace("/", "/x")
        (root / row["path"]).write_bytes((root / row["path"].replace("/x", "/")).read_bytes())
    (run,) = ecgfeat.fit_heads(
        cached(listed(root, rows)), kinds="logreg", head=HEAD, out_dir=tmp_path / "runs"
    )
    with pytest.raises(DataError, match="was tested on none of the images of"):
        audited(clean, run=run)


def test_of_four_pages_nothing_is_claimed(tmp_path: Path) -> None:
    root, rows = plain_set(tmp_path, 4)
    found = audited(cached(listed(root, rows)), AuditSettings())
    unknown = {one.check for one in found.of("unknown")}
    assert {"shortcuts: how a page looks", "likely wrong labels"} <= unknown
    assert "train and test from different worlds" in unknown
    assert not found.of("error")


def test_a_stop_keeps_what_was_measured(tmp_path: Path) -> None:
    root, rows = plain_set(tmp_path, 24)
    cache = cached(listed(root, rows))

    def stop(progress: Progress) -> None:
        if progress.stage == "measuring":
            raise Interrupted(2)

    with pytest.raises(Interrupted):
        audited(cache, AuditSettings(), report=stop)
    assert list(tmp_path.glob("*-audit.npz"))


def test_the_command_ends_with_1_on_an_error_and_prints_one_object(tmp_path: Path) -> None:
    root, rows = plain_set(tmp_path)
    cache = cached(listed(root, rows))
    command = ["audit", str(cache.path), "--pages", "0", "--out", str(tmp_path / "audits")]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    assert "clean; lists and sheets: " in done.stdout
    cache.path.unlink()
    (root / rows[6]["path"]).write_bytes((root / rows[0]["path"]).read_bytes())
    cached(listed(root, rows))
    done = CliRunner().invoke(app, [*command, "--json"])
    assert done.exit_code == 1
    assert json.loads(done.stdout)["is_clean"] is False
    assert "ERROR   the same image twice" in CliRunner().invoke(app, command).stdout
