"""One page for people: which way is better and how sure that is, and everything it rests on.

The page is a single HTML file that asks for nothing else: pictures lie in it, and it reads well
without JavaScript, on paper, and on a phone. `report` gathers what the page says, section by
section, as plain values; ``report.html.jinja`` says how it looks.
"""

from __future__ import annotations

import base64
import csv
import io
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ecgfeat import figures
from ecgfeat.attribution import UNCHANGED, Explainer, overlay
from ecgfeat.comparison import Comparison, compare
from ecgfeat.config import RUN_KINDS, DataSettings, PageSettings, ReportSettings
from ecgfeat.data_audit import lost_files, scored_rows, strata_of, stratum_table
from ecgfeat.errors import ConfigError, EcgfeatError, ImageError, RunError
from ecgfeat.feature_cache import FeatureCache, open_cache
from ecgfeat.files import typed, write_text
from ecgfeat.images import decode, decode_with_digest, dpi_of
from ecgfeat.manifest import Manifest, read_manifest
from ecgfeat.methods import commands_of, digests_of, methods_of, refuse_incomplete
from ecgfeat.metrics import MAIN, METRICS, Curves, Score, curves, in_words, p_in_words
from ecgfeat.protocol import LEAK, hash_place
from ecgfeat.runs import Run, open_run, parse_json, read_file
from ecgfeat.runtime import Progress, Report, silent

__all__ = ["ReportPage", "report"]

THUMBNAIL_PX, SHEET_PX = 640, 1200
"""Longest side of a page's and of an audit's sheet's picture."""
JPEG_QUALITY = 80
MOST_STRATA = 40
"""Rows of the table of strata: of more, those with the most tested images."""
MOST_MISTAKEN = 4
"""Runs whose mistakes are shown: the best ones."""
SIGNIFICANT = 0.05


@dataclass(frozen=True, kw_only=True)
class ReportPage:
    """A report that was written.

    Attributes
    ----------
    path : Path
    answer : tuple of str
        What the page says first, a sentence each.
    lacking : tuple of str
        What the page couldn't show, and why.
    """

    path: Path
    answer: tuple[str, ...]
    lacking: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """Plain values for ``json.dumps``."""
        return {**asdict(self), "path": str(self.path)}


def report(
    runs: Sequence[Run | str | Path] | Run | str | Path,
    *,
    out: str | Path = "report.html",
    audit: str | Path | None = None,
    settings: ReportSettings = ReportSettings(),
    report: Report = silent,
) -> ReportPage:
    """Write one HTML page about one or several runs on the same test rows.

    Parameters
    ----------
    runs : Run, str or Path, or a sequence of them
    out : str or Path
        The file to write.
    audit : str or Path, optional
        An audit's folder, whose findings are shown too.
    settings : ReportSettings
    report : callable
        Told the progress; may raise `Interrupted`.

    Returns
    -------
    ReportPage

    Raises
    ------
    ConfigError
        When `audit` is no audit's folder.
    RunError
        When the runs can't be compared.
    StorageError, Interrupted

    Examples
    --------
    >>> report(["runs/20260131-094500-logreg-pages"]).path  # doctest: +SKIP
    PosixPath('report.html')
    """
    given = [runs] if isinstance(runs, (Run, str, Path)) else runs
    if settings.root is not None and not settings.root.is_dir():
        raise ConfigError(f"--root {settings.root} is no folder")
    opened, lacking = _opened(given)
    page = _Page(opened, settings, report, lacking)
    audited = _read_audit(Path(audit), page.data_name) if audit is not None else None
    answer, notices = _answer(page), _notices(page)
    content = {
        "title": f"{page.data_name}: {', '.join(dict.fromkeys(way.label for way in page.ways))}",
        "answer": answer,
        "leaks": [line for line in notices if LEAK in line],
        "notices": [line for line in notices if LEAK not in line],
        "data": _data_section(page),
        "ways": _ways_section(page),
        "mistakes": _mistakes_section(page),
        "strata": _strata_section(page),
        "audit": audited,
        "repeat": _repeat_section(page),
        "lacking": page.lacking,
    }
    write_text(Path(out), _rendered(content))
    return ReportPage(path=Path(out), answer=tuple(answer), lacking=tuple(page.lacking))


def _opened(given: Sequence[Run | str | Path]) -> tuple[list[Run], list[str]]:
    """The runs, and of several why some can't be opened."""
    opened, lacking = [], []
    for one in given:
        try:
            run = one if isinstance(one, Run) else open_run(one)
            refuse_incomplete(run)
        except RunError as error:
            if len(given) == 1:
                raise
            lacking.append(str(error))
            continue
        opened.append(run)
    if not opened:
        raise RunError(f"none of the {len(given)} is a finished run: {lacking[0]}")
    return opened, lacking


def _rendered(content: Mapping[str, Any]) -> str:
    import jinja2

    source = (resources.files("ecgfeat") / "report.html.jinja").read_text(encoding="utf-8")
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    environment.trim_blocks = environment.lstrip_blocks = True
    return environment.from_string(source).render(content)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Data:
    """What the runs were trained and tested on, from a cache or from the images' list.

    `source` is the cache or manifest; `lost` counts, by kind, the files of each class that are
    not among the images; PDFs are drawn at `dpi`.
    """

    source: FeatureCache | Manifest
    name: str
    digest: str
    root: Path | None
    lost: Mapping[str, Mapping[str, int]]
    dpi: int

    @cached_property
    def pictures(self) -> dict[str, bytes]:
        """Digest of each image as its features were taken; empty where no cache tells."""
        if not isinstance(self.source, FeatureCache):
            return {}
        return dict(zip(self.source.paths, self.source.pictures))

    def picture(self, path: str) -> NDArray[np.uint8]:
        """Decode an image of the data.

        Raises
        ------
        ImageError
            When it isn't there, or is another one by now.
        """
        assert self.root is not None
        pixels, digest, _ = decode_with_digest(self.root / path, dpi=self.dpi)
        if self.pictures.get(path, digest) != digest:
            raise ImageError(f"{path} is another picture than the one that was tested")
        return pixels


@dataclass(frozen=True, kw_only=True, eq=False)
class _Way:
    """A run on the page."""

    number: str
    run: Run

    @property
    def label(self) -> str:
        kind = self.run.kind
        return RUN_KINDS[kind].title if kind in RUN_KINDS else kind

    @cached_property
    def curves(self) -> Curves:
        return curves(self.run.predictions)


class _Page:
    """What several sections need, each thing made when it is first asked for."""

    def __init__(
        self, runs: Sequence[Run], settings: ReportSettings, report: Report, lacking: list[str]
    ) -> None:
        self.settings = settings
        self.lacking = lacking
        self.comparison: Comparison | None = None
        if len(runs) > 1:
            self.comparison = compare(runs, leave_aside=True)
            names = [run.name for run in self.comparison.runs]
            runs = [run for run in runs if run.name in names]
            self.lacking += [f"{one.name}: {one.reason}" for one in self.comparison.left_aside]
        self.ways = [_Way(number=f"R{number}", run=run) for number, run in enumerate(runs, start=1)]
        self.first = runs[0]
        self.data_name = str(self.first.config["data"])
        self._report = report

    def report(self, stage: str, done: int, total: int) -> None:
        self._report(Progress(stage=stage, done=done, total=total, unit="runs"))

    @cached_property
    def data(self) -> _Data | None:
        """The first run's data that are still where they were."""
        reasons = []
        for way in self.ways:
            try:
                data = _data_of(way.run, self.settings.root)
            except EcgfeatError as error:
                reasons.append(str(error))
                continue
            if data.digest != way.run.config.get("manifest_digest"):
                self.lacking.append(
                    f"The data as they were when {way.number} was made: other rows are listed now, "
                    "and counts, samples and strata are of these"
                )
            return data
        self.lacking.append(
            f"The data, samples, mistakes and strata: {reasons[0]} (Or put the file back where it "
            "was when the run was made.)"
        )
        return None

    @cached_property
    def ranked(self) -> list[_Way]:
        """The ways, the best first: by AUROC, or where there is none by balanced accuracy."""
        return sorted(self.ways, key=lambda way: -_main_score(way.run)[1]["value"])


def _data_of(run: Run, root: Path | None) -> _Data:
    """Raises EcgfeatError where the data can't be had."""
    config = run.config
    if "cache" in config:
        path = Path(config["cache"]["path"])
        beside = run.path.parent.parent / path
        cache = open_cache(path if path.exists() or not beside.exists() else beside)
        return _Data(
            source=cache,
            name=cache.data_name,
            digest=cache.data_digest,
            root=root or cache.root,
            lost=lost_files(cache),
            dpi=dpi_of(cache.header.decoder),
        )
    manifest = read_manifest(config["source"]["data"], _data_settings(config["source"], root))
    return _Data(
        source=manifest,
        name=manifest.name,
        digest=manifest.digest,
        root=manifest.root,
        lost=_lost_of(run, manifest),
        dpi=typed(config.get("page", {}), PageSettings).dpi,
    )


def _lost_of(run: Run, manifest: Manifest) -> dict[str, Counter[str]]:
    """How many images of each class a fine-tuning went without, by why; if there are any."""
    label_of = dict(zip(manifest.paths, manifest.labels))
    quarantine = run.path / "quarantine.csv"
    undecodable: list[str] = []
    if quarantine.exists():
        with quarantine.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
            undecodable = [label_of.get(row.get("path", ""), "") for row in csv.DictReader(file)]
    kinds = {
        "missing": Counter(row.label for row in manifest.missing),
        "undecodable": Counter(undecodable),
    }
    return {kind: counts for kind, counts in kinds.items() if counts}


def _data_settings(source: Mapping[str, Any], root: Path | None) -> DataSettings:
    known = {item.name for item in fields(DataSettings)}
    values = {name: value for name, value in source.items() if name in known}
    stored = Path(values["root"]) if values.get("root") else None
    return DataSettings(**{**values, "root": root or stored})


# The answer


def _notices(page: _Page) -> list[str]:
    """What every score is to be read with."""
    digests = [way.run.config.get("manifest_digest") for way in page.ways]
    others = [
        f"{way.number}: made on other rows than R1, though tested on the same"
        for way, digest in zip(page.ways, digests)
        if digest != digests[0]
    ]
    return others + [
        f"{way.number}: {line}" for way in page.ways for line in way.run.metrics.get("notices", ())
    ]


def _main_score(run: Run) -> tuple[str, Mapping[str, Any]]:
    """Name and score by which runs are put in order."""
    scores = run.metrics["scores"]
    name = next((name for name in ("auroc", "balanced_accuracy") if scores.get(name)), "accuracy")
    return name, scores[name]


def _answer(page: _Page) -> list[str]:
    """What was found, in sentences: how good, against chance, which is better, at what cost."""
    best = page.ranked[0]
    sentences = [_how_good(best, is_one_of_several=len(page.ways) > 1), _against_chance(best)]
    if page.comparison is not None:
        sentences += [_difference(page, best, other) for other in page.ranked[1:4]]
    if len(page.ranked) > 4:
        sentences.append(
            f"The tables below have the other {len(page.ranked) - 4} runs. The best of "
            "many on the same test images is flattered by that choice: choose inside the training "
            "images (--sweep, --folds), and test that one."
        )
    sentences.append(_costs(page))
    return [sentence for sentence in sentences if sentence]


def _how_good(way: _Way, *, is_one_of_several: bool) -> str:
    scores, positive = way.run.metrics["scores"], way.run.metrics["positive"]
    name, main = _main_score(way.run)
    title = METRICS[name].title
    rows = f"{len(way.run.predictions):,} test images"
    rows += f", telling {positive} from the rest" if positive else ""
    if is_one_of_several:
        found = f"{way.label} ({way.number}) has the highest {title}, {in_words(main)}, and an "
        found += f"accuracy of {in_words(scores['accuracy'])},"
    else:
        found = f"{way.label} has an accuracy of {in_words(scores['accuracy'])} and "
        found += f"{_article(title)} of {in_words(main)}"
    return f"{found} on {rows}. In brackets are 95 % intervals."


def _article(title: str) -> str:
    return f"an {title}" if title[0].lower() in "aeiou" else f"a {title}"


def _against_chance(way: _Way) -> str:
    majority = way.run.metrics.get("majority")
    if majority is None:
        return ""
    names = " or ".join(dict.fromkeys(majority["classes"]))
    accuracy = way.run.metrics["scores"]["accuracy"]["value"]
    if majority["p_value"] < SIGNIFICANT and accuracy > majority["accuracy"]:
        return (
            f"Always answering {names}, the most frequent class of the training images, would be "
            f"right for {majority['accuracy']:.3f} of them; it is better than that beyond chance "
            f"(McNemar's {_p_is(majority['p_value'])})."
        )
    return (
        f"That is no clear gain over always answering {names}, the most frequent class of the "
        f"training images, which is right for {majority['accuracy']:.3f} of them (McNemar's "
        f"{_p_is(majority['p_value'])})."
    )


def _difference(page: _Page, best: _Way, other: _Way) -> str:
    """The best way against another: the score that ranks them, and the accuracy."""
    assert page.comparison is not None
    names = {best.run.name, other.run.name}
    pair = next(pair for pair in page.comparison.pairs if {pair.first, pair.second} == names)
    whom = f"{other.label} ({other.number})"
    if pair.is_identical:
        return f"{whom} gives exactly the same answers."
    sign = 1 if pair.second == best.run.name else -1
    main, _ = _main_score(best.run)
    tests = {
        "accuracy": (page.comparison.p_value_method, pair.p_adjusted),
        "auroc": (page.comparison.auroc_method, pair.auroc_p_adjusted),
    }
    parts, is_clear = [], False
    for name in dict.fromkeys((main, "accuracy")):
        score = pair.differences.get(name)
        if score is None:
            continue
        low, high = sorted((sign * score.low, sign * score.high))
        test, p_value = tests.get(name, ("", None))
        n_pairs = len(page.comparison.pairs)
        adjusted = f", adjusted for {n_pairs} pairs" if n_pairs > 1 else ""
        words = f" ({test}: {_p_is(p_value)}{adjusted})" if p_value is not None else ""
        value = sign * score.value
        parts.append(f"{METRICS[name].title} {value:+.3f} [{low:+.3f}, {high:+.3f}]{words}")
        if name == main:
            is_clear = low > 0 and (p_value is None or p_value < SIGNIFICANT)
    numbers = " and ".join(parts)
    if is_clear:
        return f"It is better than {whom}, by {numbers}."
    return (
        f"Against {whom} it differs by {numbers}. In what ranks them, {METRICS[main].title}, that "
        "is within chance: either may be the better one."
    )


def _costs(page: _Page) -> str:
    parts = []
    for way in page.ways[:4]:
        cost = way.run.cost
        extraction = f"{_time(cost.features_s)} of extraction and " if cost.features_s else ""
        who = way.number if len(page.ways) > 1 else way.label
        parts.append(f"{who} took {extraction}{_time(cost.wall_s)} of training")
    machine = page.ways[0].run.config.get("machine", {})
    where = f", on {machine['processor']}, {page.ways[0].run.cost.device}" if machine else ""
    return f"{'; '.join(parts)}{where}."


def _time(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.3g} min" if seconds < 7200 else f"{seconds / 3600:.3g} h"


# Pictures


def _uri(content: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def _photo(picture: Image.Image, side_px: int) -> str:
    shown = picture.convert("RGB")
    shown.thumbnail((side_px, side_px), reducing_gap=3.0)
    content = io.BytesIO()
    shown.save(content, "JPEG", quality=JPEG_QUALITY, optimize=True)
    return _uri(content.getvalue(), "jpeg")


def _chart(draw: Callable[[Path], None]) -> str:
    """A figure as a picture that is sharp at any size."""
    with tempfile.TemporaryDirectory(prefix="ecgfeat-") as folder:
        path = Path(folder) / "chart.svg"
        draw(path)
        return _uri(path.read_bytes(), "svg+xml")


# The data


def _data_section(page: _Page) -> dict[str, Any] | None:
    data = page.data
    if data is None:
        return None
    classes = sorted(set(data.source.labels))
    order = {"train": 0, "val": 1, "test": 2}
    counts = Counter(zip(data.source.splits, data.source.labels))
    splits = sorted(set(data.source.splits), key=lambda split: (order.get(split, 3), split))
    groups = set(data.source.groups) - {""}
    return {
        "name": data.name,
        "n_images": len(data.source.paths),
        "n_groups": len(groups),
        "classes": classes,
        "counts": [(split, [counts[split, label] for label in classes]) for split in splits],
        "lost": [(kind, [n.get(label, 0) for label in classes]) for kind, n in data.lost.items()],
        "samples": _samples(page, data, classes),
    }


def _samples(page: _Page, data: _Data, classes: Sequence[str]) -> list[dict[str, str]]:
    """A few images of each class, chosen by a hash of their paths."""
    if data.root is None:
        page.lacking.append("Samples and mistakes: it isn't known where the images are (--root)")
        return []
    found, failures = [], list[str]()
    for label in classes:
        paths = [path for path, name in zip(data.source.paths, data.source.labels) if name == label]
        for path in sorted(paths, key=hash_place)[: page.settings.samples]:
            try:
                picture = Image.fromarray(data.picture(path))
            except ImageError as error:
                failures.append(str(error))
                continue
            found.append({"label": label, "path": path, "uri": _photo(picture, THUMBNAIL_PX)})
    _tell_failures(page, failures, "samples")
    return found


def _tell_failures(page: _Page, failures: Sequence[str], what: str) -> None:
    if failures:
        page.lacking.append(
            f"{len(failures)} {what}, such as: {failures[0]}. Where the images were moved, give "
            "--root the folder that they are in now"
        )


# The ways side by side


def _ways_section(page: _Page) -> dict[str, Any]:
    comparison, first = page.comparison, page.first.metrics
    scores = {way.number: way.run.metrics["scores"] for way in page.ways}
    order = dict.fromkeys((*MAIN, *METRICS))
    names = [name for name in order if any(found.get(name) for found in scores.values())]
    majorities = [way.run.metrics.get("majority") for way in page.ways]
    compared = comparison.runs if comparison else ()
    differs = {run.name: ", ".join(f"{k} {v}" for k, v in run.differs.items()) for run in compared}
    return {
        "scores": [METRICS[name].title for name in names],
        "rows": [
            {
                "number": way.number,
                "label": way.label,
                "name": way.run.name,
                "differs": differs.get(way.run.name, ""),
                "scores": [
                    (in_words(score), score["value"] if score else -1.0)
                    for score in map(scores[way.number].get, names)
                ],
                "cost": asdict(way.run.cost),
                "times": (_time(way.run.cost.features_s), _time(way.run.cost.wall_s)),
            }
            for way in page.ways
        ],
        "majority": sorted({f"{found['accuracy']:.3f}" for found in majorities if found}),
        "test_rows": first["test_rows"],
        "positive": first["positive"],
        "pairs": _pairs(page),
        "methods": [comparison.p_value_method, comparison.auroc_method] if comparison else [],
        "chart": _chart(lambda path: figures.comparison_plot(comparison.as_json(), path, ""))
        if comparison
        else "",
        "roc": _roc(page),
        "details": [_details(page, way) for way in page.ways],
    }


def _pairs(page: _Page) -> list[dict[str, Any]]:
    if page.comparison is None:
        return []
    number = {way.run.name: way.number for way in page.ways}
    return [
        {
            "name": f"{number[pair.second]} − {number[pair.first]}",
            "differences": [
                (METRICS[name].title, in_words(score))
                for name in MAIN
                for score in [pair.differences.get(name)]
            ],
            "only": f"{number[pair.second]} {pair.n_second_only}, "
            f"{number[pair.first]} {pair.n_first_only}",
            "p_values": [
                p_in_words(p_value)
                for p_value in (
                    pair.p_value,
                    pair.p_adjusted,
                    pair.auroc_test.p_value if pair.auroc_test else None,
                    pair.auroc_p_adjusted,
                )
            ],
        }
        for pair in page.comparison.pairs
    ]


def _roc(page: _Page) -> str:
    drawn = {
        f"{way.number} {way.label}": (way.curves.roc, way.run.metrics["scores"].get("auroc"))
        for way in page.ways
        if way.curves.roc is not None
    }
    if not drawn:
        return ""
    return _chart(lambda path: figures.roc_comparison_plot(drawn, path, ""))


def _details(page: _Page, way: _Way) -> dict[str, Any]:
    """A run's own charts."""
    run = way.run
    page.report("drawing", page.ways.index(way), len(page.ways))
    matrix = np.array(run.metrics["confusion_matrix"], dtype=np.int64)
    classes, positive = tuple(run.metrics["classes"]), run.metrics["positive"]
    scores = {name: score and Score(**score) for name, score in run.metrics["scores"].items()}
    history = [asdict(record) for record in run.history]
    majority = run.metrics.get("majority", {}).get("accuracy")
    reliability = way.curves.reliability
    charts = {
        "Confusion matrix": _chart(
            lambda path: figures.confusion_matrix_plot(matrix, classes, path, "")
        ),
        "Calibration": _chart(
            lambda path: figures.reliability_plot(reliability, scores, positive, path, "")
        ),
    }
    if history:
        charts["Accuracy by epoch"] = _chart(
            lambda path: figures.accuracy_curve(history, path, "", majority)
        )
    return {
        "number": way.number,
        "label": way.label,
        "charts": [
            {"title": title, "uri": uri, "alt": f"{title} of {way.number}"}
            for title, uri in charts.items()
        ],
        "report": run.report,
    }


# The most confident mistakes


def _mistakes_section(page: _Page) -> list[dict[str, Any]]:
    data, n_shown = page.data, page.settings.mistakes
    if data is None or data.root is None or not n_shown:
        return []
    sections = []
    for done, way in enumerate(page.ranked[:MOST_MISTAKEN]):
        page.report("looking at mistakes", done, min(len(page.ranked), MOST_MISTAKEN))
        predictions = way.run.predictions
        wrong = np.flatnonzero(predictions.predicted != predictions.targets)
        sure = predictions.probabilities[wrong, predictions.predicted[wrong]]
        rows = wrong[np.argsort(-sure, kind="stable")][:n_shown].tolist()
        sections.append(
            {
                "number": way.number,
                "label": way.label,
                "n_wrong": len(wrong),
                "n_tested": len(predictions),
                **_looked_at(page, way, data, rows),
            }
        )
    return sections


def _looked_at(page: _Page, way: _Way, data: _Data, rows: Sequence[int]) -> dict[str, Any]:
    """Pictures of some test rows, with where the network looked if that can be told."""
    predictions = way.run.predictions
    explainer = None
    try:
        explainer = Explainer(way.run, weights=page.settings.weights or None)
    except EcgfeatError as error:
        page.lacking.append(f"Where {way.number} looked: {error}")
    shown, likeness, failures = [], [], list[str]()
    for row in rows:
        path = predictions.ids[row]
        answer = predictions.classes[predictions.predicted[row]]
        try:
            pixels = data.picture(path)
            picture = pixels
            if explainer is not None and data.root is not None:
                found = explainer.explain(
                    data.root / path, label=answer, fold=int(predictions.folds[row])
                )
                picture, _ = overlay(found, found.heat, pixels, THUMBNAIL_PX)
                likeness.append(found.likeness_to_random)
        except ImageError as error:
            failures.append(str(error))
            continue
        shown.append(
            {
                "path": predictions.ids[row],
                "truth": predictions.classes[predictions.targets[row]],
                "answer": answer,
                "probability": f"{predictions.probabilities[row, predictions.predicted[row]]:.3f}",
                "uri": _photo(Image.fromarray(picture), THUMBNAIL_PX),
            }
        )
    _tell_failures(page, failures, f"mistakes of {way.number}")
    check = float(np.mean(likeness)) if likeness else None
    return {
        "shown": shown,
        "check": "" if check is None else f"{check:.2f}",
        "is_unchanged": check is not None and check > UNCHANGED,
    }


# Strata


def _strata_section(page: _Page) -> dict[str, Any] | None:
    """The best way's results by the columns of the data."""
    data, best = page.data, page.ranked[0]
    if data is None:
        return None
    columns = strata_of(data.source.metadata)
    if not columns:
        return None
    page.report("scoring strata", 0, 1)
    try:
        scored = scored_rows(data.source.paths, best.run, data.name)
    except EcgfeatError as error:
        page.lacking.append(f"Results by stratum: {error}")
        return None
    table = [
        row
        for row in stratum_table(data.source.labels, columns, best.run, scored)
        if row["n_tested"]
    ]
    largest = sorted(table, key=lambda row: -row["n_tested"])[:MOST_STRATA]
    return {
        "number": best.number,
        "label": best.label,
        "rows": [
            {
                "column": row["column"],
                "value": row["value"],
                "n_tested": row["n_tested"],
                "accuracy": in_words(row["scores"].get("accuracy")),
                "auroc": in_words(row["scores"].get("auroc")),
            }
            for row in table
            if row in largest
        ],
        "n_left_out": len(table) - len(largest),
    }


def _p_is(p_value: float) -> str:
    words = p_in_words(p_value)
    return f"p {words.replace('<', '< ')}" if words.startswith("<") else f"p = {p_value:.2g}"


# The audit


def _read_audit(folder: Path, data_name: str) -> dict[str, Any]:
    if not (folder / "audit.json").exists():
        raise ConfigError(
            f"--audit {folder} is no audit's folder: it has no audit.json. Give a folder that "
            "`ecgfeat audit` made."
        )
    found = read_file(folder, "audit.json", parse_json)
    order = ["error", "warning", "note", "unknown", "fine"]
    findings = sorted(found.get("findings", []), key=lambda finding: order.index(finding["level"]))
    sheets = [
        {"title": what, "uri": _photo(Image.fromarray(decode(folder / name)), SHEET_PX)}
        for what, name in found.get("files", {}).items()
        if name == Path(name).name and name.endswith(".png") and (folder / name).is_file()
    ]
    return {
        "folder": str(folder),
        "of_other_data": found.get("data_name") if found.get("data_name") != data_name else "",
        "is_clean": bool(found.get("is_clean")),
        "findings": findings,
        "sheets": sheets,
    }


# How to repeat it


def _repeat_section(page: _Page) -> dict[str, Any]:
    commands = list(
        dict.fromkeys(
            line
            for way in page.ways
            for line in commands_of(way.run, page.data.source if page.data else None)
        )
    )
    if len(page.ways) > 1:
        commands.append("ecgfeat compare runs/*")
    return {
        "commands": commands,
        "methods": methods_of([(way.number, way.run) for way in page.ways], page.comparison),
        "versions": page.first.config.get("versions", {}),
        "machine": page.first.config.get("machine", {}),
        "digests": [
            (way.number, what, digest)
            for way in page.ways
            for what, digest in digests_of(way.run).items()
        ],
    }
