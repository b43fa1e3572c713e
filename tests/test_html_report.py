"""The report: one file that says the answer first, holds everything, and asks for nothing."""

from __future__ import annotations

import html
import json
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from typer.testing import CliRunner

import ecgfeat
from ecgfeat.cli import app
from ecgfeat.config import (
    AuditSettings,
    EvaluationSettings,
    FinetuneSettings,
    HeadSettings,
    NetworkSettings,
    PageSettings,
    ReportSettings,
)
from ecgfeat.errors import ConfigError, RunError
from ecgfeat.feature_cache import open_cache
from ecgfeat.methods import commands_of, methods_of
from ecgfeat.runs import open_run

from .conftest import draw_page, write_csv
from .studies import FP32, run_of, weights_drawn_once

__all__ = ["weights_drawn_once"]  # a fixture

KINDS = ("linear", "logreg", "finetune")
OLD_RUNS = Path(__file__).parent / "data" / "runs-v1"
VOID = {"meta", "link", "img", "br"}


class Checked(HTMLParser):
    """A page's headings, pictures and whatever it would fetch; tags must close in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.fetched: list[str] = []
        self.alts: list[str] = []
        self.ids: list[str] = []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        if tag not in VOID:
            self.open.append(tag)
        self.ids += [found["id"]] if found.get("id") else []
        for name in ("src", "href"):
            where = found.get(name) or "#"
            if not where.startswith(("data:", "#")):
                self.fetched.append(where)
        if tag == "img":
            self.alts.append(found.get("alt") or "")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def words_of(path: Path) -> str:
    text = re.sub(r"<(style|script)>.*?</\1>", "", path.read_text(), flags=re.S)
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", text)).split())


@pytest.fixture(scope="module")
def page(study: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The three ways of the study on one page."""
    out = tmp_path_factory.mktemp("report") / "report.html"
    ecgfeat.report([run_of(study, kind) for kind in KINDS], out=out)
    return out


def test_the_page_holds_everything_and_asks_for_nothing(page: Path) -> None:
    found = Checked(page.read_text())
    assert found.fetched == []
    assert len(found.alts) > 10
    assert all(found.alts)
    assert len(set(found.ids)) == len(found.ids)
    assert page.stat().st_size < 2e6


def test_the_answer_comes_first_and_is_what_the_comparison_says(study: Path, page: Path) -> None:
    runs = [run_of(study, kind) for kind in KINDS]
    areas = [run.metrics["scores"]["auroc"]["value"] for run in runs]
    best = max(range(3), key=lambda number: (areas[number], -number))
    words = words_of(page)
    answer = words[words.index("The answer") : words.index("The data")]
    assert f"(R{best + 1}) has the highest AUROC, {areas[best]:.3f} [" in answer
    for number in {0, 1, 2} - {best}:
        assert f"(R{number + 1})" in answer
    comparison = ecgfeat.compare(runs)
    assert comparison.auroc_method in answer
    assert "of extraction and" in answer
    for heading in ("The ways side by side", "The most confident mistakes", "How to repeat it"):
        assert heading in words


def test_what_a_fine_tuning_went_without_is_counted_by_class(tmp_path: Path) -> None:
    rows = []
    for number in range(12):
        name, label = f"{number}.png", "ab"[number % 2]
        draw_page(number, number % 2).save(tmp_path / name)
        rows.append({"path": name, "label": label, "split": "test" if number < 4 else "train"})
    (tmp_path / "5.png").write_bytes(b"no picture")
    rows += [{"path": f"gone{number}.png", "label": "a", "split": "train"} for number in range(2)]
    run = ecgfeat.finetune(
        write_csv(tmp_path / "pages.csv", rows),
        network=NetworkSettings(weights="random:1"),
        page=PageSettings(size="32"),
        compute=FP32,
        training=FinetuneSettings(epochs=1, batch_size=4),
        out_dir=tmp_path / "runs",
    )
    words = words_of(ecgfeat.report([run], out=tmp_path / "report.html").path)
    assert "left out: missing 2 0" in words
    assert "left out: undecodable 0 1" in words


def test_every_score_and_setting_of_the_table_is_the_runs_own(study: Path, page: Path) -> None:
    words = words_of(page)
    for kind in KINDS:
        run = run_of(study, kind)
        for score in run.metrics["scores"].values():
            shown = "–" if score is None else f"{score['value']:.3f} [{score['low']:.3f}, "
            assert shown in words
        assert run.name in words
        assert run.config["manifest_digest"] in words


def test_the_mistakes_are_the_most_confident_ones(study: Path, tmp_path: Path) -> None:
    run = run_of(study, "linear", n_classes=3)
    said = run.predictions
    wrong = [row for row in range(len(said)) if said.predicted[row] != said.targets[row]]
    sure = {said.ids[row]: said.probabilities[row].max() for row in wrong}
    assert len(sure) > 1
    settings = ReportSettings(mistakes=1, samples=1)
    ecgfeat.report(run, out=tmp_path / "r.html", settings=settings)
    words = words_of(tmp_path / "r.html")
    assert f"wrong on {len(wrong)} of {len(said)}" in words
    shown = words[words.index("The most confident mistakes") : words.rindex("How to repeat")]
    assert max(sure, key=sure.__getitem__) in shown
    assert sum(name in shown for name in sure) == 1
    assert "sanity check" in shown


def test_of_one_run_there_is_no_comparison(study: Path, tmp_path: Path) -> None:
    made = ecgfeat.report(
        str(run_of(study, "logreg").path),
        out=tmp_path / "r.html",
        settings=ReportSettings(mistakes=0, samples=0),
    )
    words = words_of(made.path)
    assert "Logistic regression has an accuracy of" in made.answer[0]
    assert "Paired differences" not in words
    assert "The most confident mistakes" not in words
    assert made.lacking == ()


def test_what_is_gone_is_said_and_the_rest_is_written(study: Path, tmp_path: Path) -> None:
    run = run_of(study, "logreg")
    copy = Path(shutil.copytree(run.path, tmp_path / "elsewhere" / run.name))
    config = json.loads((copy / "config.json").read_text())
    config["cache"]["path"] = str(tmp_path / "gone.h5")
    (copy / "config.json").write_text(json.dumps(config))
    made = ecgfeat.report(copy, out=tmp_path / "r.html")
    assert len(made.lacking) == 1
    assert "gone.h5" in made.lacking[0]
    words = words_of(made.path)
    assert "What could not be shown" in words
    assert "Confusion matrix" in made.path.read_text()
    Checked(made.path.read_text())


def test_others_words_are_no_markup(tmp_path: Path) -> None:
    for index in range(16):
        label = ("a<b>&", "<i>x")[index % 2]
        target = tmp_path / "pages" / label / f"{index}<script>.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        draw_page(index, index % 2).save(target)
    cache = ecgfeat.extract(
        ecgfeat.read_manifest(tmp_path / "pages"),
        cache=tmp_path,
        page=PageSettings(size="64x48"),
        network=NetworkSettings(weights="random:1"),
        compute=FP32,
    ).cache
    (run,) = ecgfeat.fit_heads(
        open_cache(cache), kinds="logreg", head=HeadSettings(layers="layer3"), out_dir=tmp_path
    )
    text = ecgfeat.report(run, out=tmp_path / "r.html").path.read_text()
    assert "<script>.png" not in text
    assert "a&lt;b&gt;&amp;" in text
    Checked(text)


def test_an_audit_and_strata_stand_on_the_page(study: Path, tmp_path: Path) -> None:
    (cache,) = study.glob("pages2-*.h5")
    found = ecgfeat.audit(cache, out_dir=tmp_path / "audits", settings=AuditSettings(pages=8))
    made = ecgfeat.report(
        run_of(study, "logreg"),
        out=tmp_path / "r.html",
        audit=found.folder,
        settings=ReportSettings(mistakes=0),
    )
    words = words_of(made.path)
    assert "This audit is of" not in words
    assert "The audit of the data" in words
    assert all(finding.check in words for finding in found.findings)
    # The audit of the data that `split` was given stands beside runs of what it made.
    listing = found.folder / "audit.json"
    listing.write_text(listing.read_text().replace(f'"{found.data_name}"', '"before"', 1))
    other = ecgfeat.report(run_of(study, "logreg"), out=tmp_path / "other.html", audit=found.folder)
    assert "This audit is of before , not of the runs' pages2 :" in words_of(other.path)
    with pytest.raises(ConfigError, match=r"is no audit's folder: it has no audit\.json"):
        ecgfeat.report(run_of(study, "logreg"), out=tmp_path / "r.html", audit=tmp_path)


def test_a_leak_is_the_first_thing_said(study: Path, tmp_path: Path) -> None:
    run = run_of(study, "logreg")
    copy = Path(shutil.copytree(run.path, tmp_path / run.name))
    metrics = json.loads((copy / "metrics.json").read_text())
    metrics["notices"] = ["LEAK, allowed by --allow-leak: 2 of 4 test images are known", "other"]
    (copy / "metrics.json").write_text(json.dumps(metrics))
    settings = ReportSettings(mistakes=0, samples=0)
    words = words_of(ecgfeat.report(copy, out=tmp_path / "r.html", settings=settings).path)
    assert words.index("R1: LEAK") < words.index("has an accuracy of") < words.index("R1: other")


def test_runs_that_dont_compare_are_left_aside(study: Path, tmp_path: Path) -> None:
    runs = [run_of(study, kind) for kind in ("linear", "logreg")]
    other = run_of(study, "linear", n_classes=3)
    made = ecgfeat.report([*runs, other], out=tmp_path / "r.html")
    assert any(other.name in line and "can't be compared" in line for line in made.lacking)


def test_the_command_writes_and_refuses(study: Path, tmp_path: Path) -> None:
    run, out = str(run_of(study, "linear").path), tmp_path / "r.html"
    call = ["report", run, "--out", str(out), "--mistakes", "0", "--samples", "1"]
    done = CliRunner().invoke(app, call)
    assert done.exit_code == 0, done.stderr
    assert f"report: {out}" in done.stdout
    again = CliRunner().invoke(app, [*call, "--json"])
    assert json.loads(again.stdout)["path"] == str(out)
    theirs = tmp_path / "theirs.html"
    theirs.write_text("<html>mine</html>")
    refused = CliRunner().invoke(app, ["report", run, "--out", str(theirs)])
    assert refused.exit_code == 2
    assert "was not made by this command: give another --out" in refused.stderr
    assert theirs.read_text() == "<html>mine</html>"
    refused = CliRunner().invoke(app, ["report", run, "--out", str(tmp_path / "r.pdf")])
    assert "--out must end in .html" in refused.stderr


def test_the_commands_make_the_same_run_again(study: Path, tmp_path: Path) -> None:
    """What the page says is run, and gives the very same predictions."""
    (cache,) = study.glob("pages2-*.h5")
    (run,) = ecgfeat.fit_heads(
        open_cache(cache),
        kinds="linear",
        head=HeadSettings(layers="layer2,layer3", epochs=3, lr=0.01, standardize=False),
        evaluation=EvaluationSettings(val_fraction=0.25, calibrate=True, seed=3),
        out_dir=tmp_path,
    )
    (line,) = [line for line in commands_of(run, open_cache(cache)) if "fit-head" in line]
    words = [*line.split()[1:], "--out", str(tmp_path / "again")]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.stderr
    (folder,) = (tmp_path / "again").iterdir()
    again = open_run(folder)
    assert (again.predictions.probabilities == run.predictions.probabilities).all()
    for key in ("head", "evaluation"):
        assert again.config[key] == run.config[key]


def test_the_command_of_a_fine_tuning_reads_back(study: Path) -> None:
    run = run_of(study, "finetune")
    (line,) = commands_of(run, None)
    assert line.startswith(f"ecgfeat finetune {study / 'pages2'} --recipe ")
    assert "--weights random:1" in line
    assert "--epochs 1" in line
    assert "--size 64x48" in line
    done = CliRunner().invoke(app, [*line.split()[1:], "--test-fraction", "2"])
    assert "--test-fraction" in done.stderr  # every other word is an option that is known


BROWSERS = ("chromium", "chromium-browser", "google-chrome")


@pytest.mark.parametrize("width", [400, 1600])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_in_a_browser(page: Path, width: int, scheme: str) -> None:
    """No errors, no requests, nothing wider than the window; axe-core finds nothing serious."""
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="needs axe-core")
    browser_path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser_path is None:
        pytest.skip("needs Chromium")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(
            executable_path=browser_path, args=["--no-sandbox", "--disable-gpu"]
        )
        opened = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        errors: list[str] = []
        requests: list[str] = []
        opened.on("console", lambda message: errors.append(message.text))
        opened.on("pageerror", lambda error: errors.append(str(error)))
        opened.on("request", lambda request: requests.append(request.url))
        opened.goto(page.as_uri())
        assert opened.evaluate("document.documentElement.scrollWidth") <= width
        broken = "[...document.images].filter(i => !i.naturalWidth).length"
        assert opened.evaluate(broken) == 0
        # Tables sort: by the last column, one way and the other.
        head = opened.locator("table.sortable").nth(1).locator("th button").nth(1)
        cells = "[...document.querySelectorAll('table.sortable')[1].tBodies[0].rows]"
        column = f"{cells}.map(row => Number(row.cells[1].dataset.value))"
        head.click()
        falling = opened.evaluate(column)
        head.click()
        assert falling == sorted(falling, reverse=True)
        assert opened.evaluate(column) == sorted(falling)
        # Pictures enlarge, without a script.
        opened.locator(".photo .enlarge").first.click()
        assert opened.locator(".photo:target .close").is_visible()
        opened.locator(".photo:target .close").click()
        found = axe.Axe().run(opened).response["violations"]
        grave = [one["id"] for one in found if one["impact"] in ("serious", "critical")]
        browser.close()
    assert grave == []
    assert errors == []
    assert [url for url in requests if not url.startswith(("data:", "file:"))] == []


def test_a_config_that_lacks_how_it_was_made_is_damaged(study: Path, tmp_path: Path) -> None:
    run = run_of(study, "finetune")
    for name in ("backbone", "preprocessing", "source", "training"):
        copy = Path(shutil.copytree(run.path, tmp_path / name / run.name))
        config = json.loads((copy / "config.json").read_text())
        del config[name]
        (copy / "config.json").write_text(json.dumps(config))
        with pytest.raises(RunError, match=rf"config\.json is damaged: {name} is missing"):
            ecgfeat.report(copy, out=tmp_path / "r.html")
    assert not (tmp_path / "r.html").exists()


def test_data_that_are_others_by_now_are_said_to_be(study: Path, tmp_path: Path) -> None:
    run = run_of(study, "finetune")
    copy = Path(shutil.copytree(run.path, tmp_path / run.name))
    config = json.loads((copy / "config.json").read_text())
    fewer = Path(shutil.copytree(study / "pages2", tmp_path / "pages2"))
    next((fewer / "train").rglob("*.png")).unlink()
    config["source"]["data"] = str(fewer)
    (copy / "config.json").write_text(json.dumps(config))
    settings = ReportSettings(mistakes=0, samples=0)
    made = ecgfeat.report(copy, out=tmp_path / "r.html", settings=settings)
    assert made.lacking[0].startswith("The data as they were when R1 was made: other rows are")


def test_runs_of_earlier_versions_have_a_report(tmp_path: Path) -> None:
    for name in ("linear", "logreg", "cross-validated", "sweep", "finetune"):
        copy = Path(shutil.copytree(OLD_RUNS / name, tmp_path / name))
        made = ecgfeat.report(copy, out=tmp_path / f"{name}.html")
        Checked(made.path.read_text())
        assert "has an accuracy of" in made.answer[0]


def test_images_under_other_pictures_names_are_not_shown(study: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(study / "pages2", tmp_path / "pages2"))
    for number, path in enumerate(sorted(root.rglob("*.png"))):
        draw_page(100 + number).save(path)
    settings = ReportSettings(root=root, mistakes=3, samples=2)
    made = ecgfeat.report(run_of(study, "logreg"), out=tmp_path / "r.html", settings=settings)
    assert "data:image/jpeg" not in made.path.read_text()
    assert "is another picture than the one that was tested" in made.lacking[0]
    assert "give --root" in made.lacking[0]
    with pytest.raises(ConfigError, match=r"--root .* is no folder"):
        ecgfeat.report(
            run_of(study, "logreg"),
            out=tmp_path / "r.html",
            settings=ReportSettings(root=tmp_path / "gone"),
        )


def test_a_folder_that_is_no_run_costs_the_others_nothing(study: Path, tmp_path: Path) -> None:
    (tmp_path / "stray").mkdir()
    given = [run_of(study, "linear").path, tmp_path / "stray", run_of(study, "logreg").path]
    settings = ReportSettings(mistakes=0, samples=0)
    made = ecgfeat.report(given, out=tmp_path / "r.html", settings=settings)
    assert "stray is not a run" in made.lacking[0]
    with pytest.raises(RunError, match="stray is not a run"):
        ecgfeat.report(tmp_path / "stray", out=tmp_path / "r.html")


def test_the_methods_say_of_each_run_what_differs(study: Path) -> None:
    linear, logreg, tuned = (run_of(study, kind) for kind in KINDS)
    alike = methods_of([("R1", linear), ("R2", logreg)], ecgfeat.compare([linear, logreg]))
    assert sum("Images were decoded to RGB" in words for words in alike) == 1
    assert any("by DeLong" in words for words in alike)
    assert any("for one epoch (Adam, " in words for words in methods_of([("R1", tuned)], None))
    page = {**tuned.config["page"], "size": "32"}
    smaller = replace(tuned, config={**tuned.config, "page": page})
    apart = methods_of([("R1", linear), ("R2", smaller)], None)
    assert sum("Images were decoded to RGB" in words for words in apart) == 2
    three = [run_of(study, kind, n_classes=3) for kind in ("linear", "logreg")]
    of_three = methods_of([("R1", three[0]), ("R2", three[1])], ecgfeat.compare(three))
    assert not any("DeLong" in words for words in of_three)
