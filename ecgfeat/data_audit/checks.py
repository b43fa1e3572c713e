"""What is wrong with the data, before anyone trains on it: every check in turn."""

from __future__ import annotations

import shlex
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ecgfeat.config import AuditSettings, comma_separated
from ecgfeat.contact_sheet import Shown, picture_sheet
from ecgfeat.data_audit.copies import (
    N_WHITENED,
    Pages,
    near_pairs,
    principal_components,
    whitened,
)
from ecgfeat.data_audit.labels import Doubts, doubtful_labels, outliers
from ecgfeat.data_audit.shortcuts import (
    MAX_VALUES,
    TRAITS,
    as_number,
    columns_telling,
    telling,
    values_of,
)
from ecgfeat.errors import ConfigError, DataError
from ecgfeat.feature_cache import FeatureCache, open_cache
from ecgfeat.files import write_csv, write_json
from ecgfeat.manifest import group_in, looks_like_patient, plain
from ecgfeat.metrics import METRICS, evaluate, in_words
from ecgfeat.protocol import define_task, hash_place, joined, same_pictures
from ecgfeat.runs import Run, open_run, write_records
from ecgfeat.runtime import Progress, Report, silent

__all__ = [
    "Audit",
    "Finding",
    "Level",
    "audit",
    "lost_files",
    "scored_rows",
    "strata_of",
    "stratum_table",
]

Level = Literal["error", "warning", "note", "fine", "unknown"]
Rows = NDArray[np.int64]

MAX_P_VALUE = 0.01
"""Of a difference between classes in lost files, over all that are tested."""
N_SHOWN = 24
"""Pairs or pages on a contact sheet."""
MAX_TOLD = 20_000
"""Rows by which it is asked whether a column tells the class, or the features the split."""
COLUMN_AREA = 0.75
"""AUROC from which a column of the data is a warning: age and sex go with most diagnoses."""
_DIAGNOSES = {
    *("condition", "severity", "finding", "findings", "report", "scp_codes", "superclass"),
    *("subclass", "disease", "pathology", "territory", "diagnoses", "site"),
}


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What one check found.

    Attributes
    ----------
    check : str
    level : {"error", "warning", "note", "fine", "unknown"}
        An error makes every score on these data wrong; a warning may; a note is worth a look;
        ``"unknown"`` could not be looked at.
    number : str
        What was found, in numbers.
    meaning : str
        What that means, in a sentence.
    remedy : str
        The command that mends it, or what to do; empty where nothing is to be done.
    details : mapping
        Plain values for ``audit.json``.
    """

    check: str = ""
    level: Level
    number: str
    meaning: str = ""
    remedy: str = ""
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Audit:
    """Every finding about a cache's data, and where the rest of them is.

    Attributes
    ----------
    data_name : str
    cache, folder : Path
    n_images : int
    findings : tuple of Finding
    files : mapping of str to Path
        Lists and contact sheets, by what they are.
    """

    data_name: str
    cache: Path
    folder: Path
    n_images: int
    findings: tuple[Finding, ...]
    files: Mapping[str, Path]

    def of(self, level: Level) -> list[Finding]:
        """The findings of one level."""
        return [finding for finding in self.findings if finding.level == level]

    @property
    def is_clean(self) -> bool:
        """Whether there is neither an error nor a warning."""
        return not self.of("error") and not self.of("warning")

    def as_json(self) -> dict[str, Any]:
        """Plain values for ``json.dumps``; what ``audit.json`` holds."""
        return {
            "data_name": self.data_name,
            "cache": str(self.cache),
            "n_images": self.n_images,
            "is_clean": self.is_clean,
            "findings": [{**vars(finding)} for finding in self.findings],
            "files": {name: path.name for name, path in self.files.items()},
        }


def audit(
    cache: FeatureCache | str | Path,
    *,
    run: Run | str | Path | None = None,
    out_dir: str | Path = "audits",
    settings: AuditSettings = AuditSettings(),
    report: Report = silent,
) -> Audit:
    """Look for leaks, copies, shortcuts and doubtful labels in a cache's data.

    Parameters
    ----------
    cache : FeatureCache, str or Path
    run : Run, str or Path, optional
        A run on these data, whose results are given by stratum.
    out_dir : str or Path
        Where the audit's folder is made; an earlier audit of the same cache is replaced.
    settings : AuditSettings
    report : callable
        Told the progress; may raise `Interrupted`, upon which measured pages are kept.

    Returns
    -------
    Audit

    Raises
    ------
    ConfigError, DataError
        When a column isn't there, or the run is of other data.
    CacheError, RunError, StorageError, Interrupted

    Examples
    --------
    >>> found = audit("cache/pages-resnet18-1b4e8c2a.h5")  # doctest: +SKIP
    >>> [finding.check for finding in found.of("error")]  # doctest: +SKIP
    ['the same image twice']
    """
    if not isinstance(cache, FeatureCache):
        cache = open_cache(cache)
    if run is not None and not isinstance(run, Run):
        run = open_run(run)
    columns = _strata_columns(cache, settings)
    scored = scored_rows(cache.paths, run, cache.path) if run else {}
    work = _Work(cache, settings, Path(out_dir) / cache.path.stem, report)
    checks: dict[str, Callable[[_Work], Finding]] = {
        "missing, undecodable and ignored files": _lost_files,
        "the same image twice": _same_images,
        "nearly the same image": _near_copies,
        "the same patient in train and test": _patients,
        "shortcuts: how a page looks": _page_shortcuts,
        "shortcuts: the data's other columns": _column_shortcuts,
        "train and test from different worlds": _worlds,
        "likely wrong labels": _labels,
        "classes that can't be told apart": _classes,
        "pages unlike all others": _outliers,
    }
    findings: list[Finding] = []
    for name, check in checks.items():
        report(Progress(stage="auditing", done=len(findings), total=len(checks), unit="checks"))
        findings.append(replace(check(work), check=name))
    findings += _strata(work, columns, run, scored)
    done = Audit(
        data_name=cache.data_name,
        cache=cache.path,
        folder=work.folder,
        n_images=len(cache),
        findings=tuple(findings),
        files=work.files,
    )
    write_json(work.folder / "audit.json", done.as_json())
    return done


class _Work:
    """What several checks need, each thing made when it is first asked for."""

    def __init__(
        self, cache: FeatureCache, settings: AuditSettings, folder: Path, report: Report
    ) -> None:
        self.cache = cache
        self.settings = settings
        self.folder = folder
        self.files: dict[str, Path] = {}
        self.pages = Pages(cache, settings.root or cache.root, report)
        self.labels = np.array(cache.labels)
        self.is_test = np.array(cache.splits) == "test"

    @cached_property
    def same(self) -> list[list[int]]:
        """The rows of every picture that there is more than once."""
        return same_pictures(self.cache.pictures)

    @cached_property
    def units(self) -> Rows:
        """Number of each row's group, joined where groups share a picture."""
        return joined(self.cache.paths, self.cache.groups, self.same)

    @cached_property
    def pictures(self) -> Rows:
        """The first row of every picture."""
        again = [row for rows in self.same for row in rows[1:]]
        return np.setdiff1d(np.arange(len(self.cache)), again)

    def one_of_each(self, n_rows: int) -> Rows:
        """At most `n_rows` rows, one of each unit, in turn of every class by a hash of the path."""
        order = sorted(range(len(self.cache)), key=lambda row: hash_place(self.cache.paths[row]))
        seen: set[int] = set()
        queues: dict[str, list[int]] = defaultdict(list)
        for row in order:
            if (unit := int(self.units[row])) not in seen:
                seen.add(unit)
                queues[self.cache.labels[row]].append(row)
        turns = [(turn, row) for queue in queues.values() for turn, row in enumerate(queue)]
        return np.array(sorted(row for _, row in sorted(turns)[:n_rows]), dtype=np.int64)

    @cached_property
    def embedding(self) -> NDArray[np.float32]:
        """Principal components of the standardised features, the strongest first, (n, d)."""
        return principal_components(self.cache, self.settings.seed)

    @cached_property
    def doubts(self) -> Doubts | None:
        """What out-of-fold probabilities say of the labels."""
        task = define_task(self.cache.labels)
        return doubtful_labels(self.embedding, task, self.units, seed=self.settings.seed)

    def file(self, what: str, name: str) -> Path:
        """Where a list or sheet goes, noted as one of the audit's."""
        self.files[what] = self.folder / name
        return self.files[what]

    def shown(self, row: int, *more: str) -> Shown:
        """A row's page on a sheet."""
        cache = self.cache
        about = f"{cache.labels[row]}, {cache.splits[row]}"
        return Shown(self.pages.path(row), (cache.paths[row], about, *more))

    def list_rows(
        self, what: str, name: str, rows: Mapping[int, Sequence[object]], heads: Sequence[str] = ()
    ) -> None:
        """Write rows, and what more there is of each under `heads`, as a CSV."""
        cache = self.cache
        lines = [
            (cache.paths[row], cache.labels[row], cache.splits[row], *more)
            for row, more in rows.items()
        ]
        write_csv(self.file(what, name), [("path", "label", "split", *heads), *lines])

    def sheet(
        self, what: str, name: str, pages: Sequence[Shown], *, n_columns: int, n_found: int
    ) -> None:
        """Draw the first `N_SHOWN` of what was found."""
        picture_sheet(
            self.file(f"{what}, sheet", name),
            f"{self.cache.data_name}: {what} ({min(N_SHOWN, n_found)} of {n_found})",
            [pages[start : start + n_columns] for start in range(0, len(pages), n_columns)],
        )

    @property
    def split_command(self) -> str:
        """The command that writes a clean manifest."""
        return f"ecgfeat split {shlex.quote(str(self.cache.path))}"


# Files that are not there


def lost_files(cache: FeatureCache) -> dict[str, Counter[str]]:
    """How many files of each class are not among a cache's images, by why; if there are any."""
    missing: Counter[str] = Counter()
    for (label, _), n in cache.missing.items():
        missing[label] += n
    kinds = {
        "missing": missing,
        "undecodable": Counter(item.label for item in cache.quarantined),
        "ignored": Counter(cache.ignored),
    }
    return {kind: counts for kind, counts in kinds.items() if counts}


def _lost_files(work: _Work) -> Finding:
    cache, lost = work.cache, lost_files(work.cache)
    there = Counter(cache.labels)
    if not lost:
        return Finding(level="fine", number="none")
    tests = [
        (_p_value(counts, there, label), kind, label)
        for kind, counts in lost.items()
        for label in cache.classes
    ]
    p_value, kind, label = min(tests)
    p_value = min(1.0, p_value * len(tests))
    shares = "; ".join(
        f"{kind} {counts.total()} ("
        + ", ".join(f"{name} {_share(counts[name], there[name])}" for name in cache.classes)
        + ")"
        for kind, counts in lost.items()
    )
    differs = p_value < MAX_P_VALUE
    return Finding(
        level="warning" if differs else "note",
        number=shares,
        meaning=f"{kind} files are not spread evenly over the classes ({label}: p = {p_value:.1g}, "
        "Fisher): what is left may no longer be a fair sample of it."
        if differs
        else "No class has lost clearly more than the others.",
        remedy="Find the files: the lists beside the cache name them (-missing.csv, "
        "-quarantine.csv), and `ecgfeat extract` says what it ignored."
        if differs
        else "",
        details={
            "lost": {kind: dict(counts) for kind, counts in lost.items()},
            "missing_by_split": {f"{s}/{name}": n for (name, s), n in cache.missing.items()},
            "p_value": p_value,
        },
    )


def _p_value(lost: Counter[str], there: Counter[str], label: str) -> float:
    """Of as uneven a loss between a class and the others by chance."""
    from scipy.stats import fisher_exact

    own = [lost[label], there[label]]
    others = [lost.total() - lost[label], there.total() - there[label]]
    return float(fisher_exact([own, others]).pvalue)


def _share(n_lost: int, n_there: int) -> str:
    return f"{n_lost / max(1, n_lost + n_there):.1%}"


# Copies


def _same_images(work: _Work) -> Finding:
    cache, groups = work.cache, work.same
    across = [rows for rows in groups if len({cache.splits[row] for row in rows}) > 1]
    two_labels = [rows for rows in groups if len({cache.labels[row] for row in rows}) > 1]
    if not groups:
        return Finding(level="fine", number="none, byte for byte")
    work.list_rows(
        "the same image twice",
        "same-images.csv",
        {row: [n] for n, rows in enumerate(groups) for row in rows},
        ["picture"],
    )
    n_tested = sum(bool(work.is_test[row]) for rows in across for row in rows)
    number = (
        f"{_counted(len(groups), 'picture')} more than once ({sum(map(len, groups))} images): "
        f"{len(across)} across splits ({_counted(n_tested, 'test image')}), {len(two_labels)} "
        "under two labels"
    )
    is_wrong = bool(across or two_labels)
    return Finding(
        level="error" if is_wrong else "note",
        number=number,
        meaning="A test on images that were trained on, or whose label depends on the copy, "
        "measures memory and not medicine."
        if is_wrong
        else "They count double, but on one side of the split.",
        remedy=f"{work.split_command} --copies drop",
        details={
            "pictures": len(groups),
            "images": sum(map(len, groups)),
            "across_splits": len(across),
            "test_images": n_tested,
            "under_two_labels": len(two_labels),
        },
    )


def _counted(n: int, what: str) -> str:
    return f"{n} {what}{'' if n == 1 else 's'}"


def _near_copies(work: _Work) -> Finding:
    rows = work.pictures
    if not work.settings.pages:
        return _NOT_LOOKED
    asked, _ = near_pairs(whitened(work.embedding)[rows])
    # Copies of one patient are known to belong together.
    asked = asked[work.units[rows[asked[:, 0]]] != work.units[rows[asked[:, 1]]]]
    pairs, n_compared = work.pages.near_copies(rows[asked])
    if not n_compared:
        return _unreadable(work)
    unlisted = len(asked) - n_compared
    looked = f"{n_compared:,} nearest pairs compared" + (f" of {len(asked):,}" if unlisted else "")
    if not pairs:
        return Finding(level="fine", number=f"none ({looked})")
    cache = work.cache
    pairs.sort(key=lambda pair: -pair.likeness)
    across = [p for p in pairs if cache.splits[p.first] != cache.splits[p.second]]
    labels = [p for p in pairs if cache.labels[p.first] != cache.labels[p.second]]
    write_csv(
        work.file("nearly the same image", "near-copies.csv"),
        [
            ("path", "label", "split", "other_path", "other_label", "other_split", "likeness"),
            *(
                (
                    *(cache.paths[p.first], cache.labels[p.first], cache.splits[p.first]),
                    *(cache.paths[p.second], cache.labels[p.second], cache.splits[p.second]),
                    f"{p.likeness:.3f}",
                )
                for p in pairs
            ),
        ],
    )
    shown = sorted(pairs, key=lambda p: (p not in across and p not in labels, -p.likeness))
    work.sheet(
        "nearly the same image",
        "near-copies.png",
        [
            page
            for p in shown[:N_SHOWN]
            for page in (work.shown(p.first), work.shown(p.second, f"likeness {p.likeness:.2f}"))
        ],
        n_columns=2,
        n_found=len(pairs),
    )
    is_wrong = bool(across or labels)
    return Finding(
        level="warning" if is_wrong else "note",
        number=f"{_counted(len(pairs), 'pair')}: {len(across)} across splits, {len(labels)} under "
        f"two labels ({looked})",
        meaning="The same recording, scanned or saved again, is on both sides of a split or has "
        "two labels."
        if is_wrong
        else "The same recording was scanned or saved again, on one side of the split.",
        remedy=f"{work.split_command} --audit {shlex.quote(str(work.folder))}",
        details={
            "pairs": len(pairs),
            "across_splits": len(across),
            "under_two_labels": len(labels),
            "compared": n_compared,
            "candidates": len(asked),
        },
    )


_NOT_LOOKED = Finding(level="unknown", number="not looked at (--pages 0)")


def _unreadable(work: _Work) -> Finding:
    reason = next(iter(work.pages.lost.values()), "there are no pages")
    return Finding(
        level="unknown",
        number=f"the pages can't be read: {reason}",
        meaning="What needs pixels could not be looked at.",
        remedy="Give --root the folder that the images are in.",
    )


# Patients


def _patients(work: _Work) -> Finding:
    cache = work.cache
    named = [group for group in cache.groups if group]
    if named:
        both = _on_both_sides(work, cache.groups)
        n_alone = len(cache) - len(named)
        number = f"{len(set(named))} groups, {len(both)} of them on both sides"
        number += f"; {n_alone} images are on their own" if n_alone else ""
        return Finding(
            level="error" if both else "fine",
            number=number,
            meaning="The test is on patients that were trained on." if both else "",
            remedy=work.split_command if both else "",
            details={"groups": len(set(named)), "on_both_sides": len(both)},
        )
    patient_like = _patient_like(cache)
    if patient_like is None:
        return Finding(
            level="unknown",
            number="nothing in the data says whose image is whose",
            meaning="Whether a patient is trained on and tested on can't be known.",
            remedy="Add a column of patients to the CSV (--group-column), or --group-by folder.",
        )
    what, values, option = patient_like
    both = _on_both_sides(work, values)
    if not both:
        return Finding(level="fine", number=f"{what} look like patients, and none is on both sides")
    return Finding(
        level="warning",
        number=f"{len(both)} of {len(set(values) - {''})} values of {what} are on both "
        f"sides, such as {sorted(both)[0]!r}",
        meaning=f"{what[0].upper()}{what[1:]} look like patients; if they are, the test "
        "is on patients that were trained on.",
        remedy=f"{work.split_command} {option}",
        details={"what": what, "on_both_sides": len(both)},
    )


def _on_both_sides(work: _Work, values: Sequence[str]) -> set[str]:
    known, tested = (
        {value for value, side in zip(values, work.is_test.tolist()) if side == test and value}
        for test in (False, True)
    )
    return known & tested


def _patient_like(cache: FeatureCache) -> tuple[str, Sequence[str], str] | None:
    """What may tell whose image it is: name, values, and the option that takes it as such."""
    for name, values in cache.metadata.items():
        if looks_like_patient(name):
            what = f"the values of the column {name!r}"
            return what, values, f"--group-column {shlex.quote(name)}"
    own = {*map(plain, cache.labels)}
    folders = [_last_folder(path, own) for path in cache.paths]
    if _could_be_patients(folders):
        return "the folders below the classes", folders, "--group-by folder"
    beginnings = [group_in([], PurePosixPath(path).name, "name") for path in cache.paths]
    if _could_be_patients(beginnings):
        return "the beginnings of the file names", beginnings, "--group-by name"
    return None


def _last_folder(path: str, labels: set[str]) -> str:
    """The folder an image lies in, where that isn't its class, its split or `images`."""
    folders = PurePosixPath(path).parent.parts
    names = labels | {"images", "train", "test", "val", "data"}
    return "/".join(folders) if folders and plain(folders[-1]) not in names else ""


def _could_be_patients(values: Sequence[str]) -> bool:
    """Whether most images have a value, and it is that of a few images each."""
    named = [value for value in values if value]
    n = len(set(named))
    return len(named) > 0.9 * len(values) and 10 <= n <= 0.7 * len(named)


# Shortcuts, and different worlds


def _page_shortcuts(work: _Work) -> Finding:
    if not work.settings.pages:
        return _NOT_LOOKED
    sample = work.one_of_each(work.settings.pages)
    rows, measured = work.pages.traits(sample)
    if len(rows) < len(sample) / 2:
        return _unreadable(work)
    labels = work.labels[rows].tolist()
    tried = [
        telling(trait, values_of(trait, measured), labels, seed=work.settings.seed)
        for trait in TRAITS
        if trait != "amount of drawing"
    ]
    found = [one for one in tried if one]
    if not found:
        return Finding(
            level="unknown",
            number="there are too few images of a class, or they are the same in all that is tried",
        )
    told = sorted((one for one in found if one.is_telling), key=lambda one: -one.auroc)
    details = {"tried": [vars(one) for one in found], "unreadable": len(work.pages.lost)}
    if not told:
        best = max(found, key=lambda one: one.auroc)
        number = f"none of {len(found)} tells a class; best {best}"
        return Finding(level="fine", number=number, details=details)
    return Finding(
        level="warning",
        number="; ".join(map(str, told)),
        meaning="The class can be told without the ECG, so a network may learn that instead.",
        remedy="Look at pages of each class (`ecgfeat preview DATA`); crop or blank the place, or "
        "test on data of another source.",
        details=details,
    )


def _column_shortcuts(work: _Work) -> Finding:
    rows = work.one_of_each(MAX_TOLD)
    labels = work.labels[rows].tolist()
    tried = columns_telling(work.cache.metadata, rows, labels, seed=work.settings.seed)
    if not tried:
        return Finding(level="unknown", number="the data have no such columns")
    diagnoses = [one for one in tried if plain(one.what) in _DIAGNOSES]
    found = [one for one in tried if plain(one.what) not in _DIAGNOSES]
    told = sorted((one for one in found if one.is_telling), key=lambda one: -one.auroc)
    grave = [one for one in told if one.low > COLUMN_AREA]
    best = max(found, key=lambda one: one.auroc, default=None)
    number = "; ".join(map(str, told)) or "none tells a class" + (f"; best {best}" if best else "")
    if diagnoses:
        number += f" ({', '.join(one.what for one in diagnoses)}: of the diagnosis itself)"
    return Finding(
        level="warning" if grave else "note" if told else "fine",
        number=number,
        meaning="Images of the classes differ in more than the ECG; whatever of it shows on the "
        "page can be learnt instead."
        if told
        else "",
        remedy=f"ecgfeat audit {shlex.quote(str(work.cache.path))} --run RUN --by {told[0].what}"
        if told
        else "",
        details={"tried": [vars(one) for one in [*found, *diagnoses]]},
    )


def _worlds(work: _Work) -> Finding:
    rows = work.one_of_each(MAX_TOLD)
    sides = ["test" if test else "train" for test in work.is_test[rows].tolist()]
    embedding = work.embedding[rows][:, :N_WHITENED]
    features = telling("the features", embedding, sides, seed=work.settings.seed)
    columns = {k: cells for k, cells in work.cache.metadata.items() if not looks_like_patient(k)}
    known = [features] if features else []
    known += columns_telling(columns, rows, sides, seed=work.settings.seed)
    if not known:
        return Finding(level="unknown", number="there are too few test images")
    told = [one for one in known if one.is_telling]
    return Finding(
        level="warning" if told else "fine",
        number="; ".join(map(str, told)) or f"they look alike: {known[0]}",
        meaning="Test images can be told from training ones: the scores are those of another "
        "place, device or time, and depend on which."
        if told
        else "",
        remedy=f"{work.split_command} (draws a new split), or keep it and say so: a test on "
        "another hospital's pages is the harder one"
        if told
        else "",
        details={"tried": [vars(one) for one in known]},
    )


# Labels, classes, outliers


def _labels(work: _Work) -> Finding:
    doubts, cache = work.doubts, work.cache
    if doubts is None:
        return Finding(level="unknown", number="there are too few groups of a class for five folds")
    if not len(doubts.rows):
        return Finding(level="fine", number="none")
    classes = define_task(cache.labels).classes
    rows = doubts.rows.tolist()
    names = [classes[index] for index in doubts.suggested.tolist()]
    listed = list(zip(rows, names, doubts.own.tolist(), doubts.other.tolist()))
    work.list_rows(
        "doubtful labels",
        "doubtful-labels.csv",
        {row: (name, f"{own:.4f}", f"{other:.4f}") for row, name, own, other in listed},
        ["likelier", "probability", "probability_of_likelier"],
    )
    shown = [
        work.shown(row, f"rather {name} ({other:.0%} against {own:.0%})")
        for row, name, own, other in listed[:N_SHOWN]
    ]
    if work.settings.pages:
        work.sheet("doubtful labels", "doubtful-labels.png", shown, n_columns=3, n_found=len(rows))
    clear = doubts.are_clear
    return Finding(
        level="warning" if clear else "note",
        number=f"{len(rows)} of {len(cache)} images are answered otherwise out of fold, "
        f"{doubts.n_confident} of them with confidence; {doubts.n_deep} lie deep among another "
        f"class, where {doubts.n_expected:.1f} would by overlap alone",
        meaning="More labels are plainly of another class than overlap explains: some are wrong."
        if clear
        else "As many as where classes overlap; the first of the list are worth a look.",
        remedy=f"Look at {work.folder / 'doubtful-labels.csv'}, correct the labels, extract again "
        "(no feature is computed anew)."
        if clear
        else "",
        details={
            "answered_otherwise": len(rows),
            "with_confidence": doubts.n_confident,
            "deep": doubts.n_deep,
            "expected": doubts.n_expected,
            "p_value": doubts.p_value,
        },
    )


def _classes(work: _Work) -> Finding:
    doubts = work.doubts
    if doubts is None:
        return Finding(level="unknown", number="there are too few groups of a class")
    classes = define_task(work.cache.labels).classes
    areas = {f"{classes[a]} | {classes[b]}": area for (a, b), (area, _) in doubts.areas.items()}
    hardest = min(areas, key=lambda pair: areas[pair])
    alike = [f"{classes[a]} and {classes[b]}" for a, b in doubts.alike]
    return Finding(
        level="note" if alike else "fine",  # it may be so of sound data too
        number=", ".join(alike) or f"hardest: {hardest}, AUROC {areas[hardest]:.3f} out of fold",
        meaning="On these features nothing tells these classes apart better than chance: their "
        "labels may be mixed up, or the page too small to show the sign."
        if alike
        else "",
        remedy="Look at pages of both, try a larger --size, or join them with --positive."
        if alike
        else "",
        details={"auroc": areas},
    )


def _outliers(work: _Work) -> Finding:
    from sklearn.neighbors import NearestNeighbors

    what, rows = "pages unlike all others", work.pictures
    n_asked = min(6, len(rows))
    embedding = work.embedding[rows][:, :N_WHITENED]
    search = NearestNeighbors(n_neighbors=n_asked, algorithm="brute").fit(embedding)
    distances = search.kneighbors(embedding)[0][:, 1:].mean(axis=1)
    far = rows[outliers(distances)].tolist()
    if not far:
        return Finding(level="fine", number="none")
    work.list_rows(what, "outliers.csv", dict.fromkeys(far, ()))
    if work.settings.pages:
        shown = [work.shown(row) for row in far[:N_SHOWN]]
        work.sheet(what, "outliers.png", shown, n_columns=3, n_found=len(far))
    return Finding(
        level="note",
        number=f"{_counted(len(far), 'page')}, such as {work.cache.paths[far[0]]}",
        meaning="Often a blank, cut off or foreign page; look at them.",
        details={"pages": len(far)},
    )


# Strata


def _strata_columns(cache: FeatureCache, settings: AuditSettings) -> dict[str, list[str]]:
    """Each row's stratum, by column."""
    asked = comma_separated(settings.by)
    unknown = [name for name in asked if name not in cache.metadata]
    if unknown:
        raise ConfigError(
            f"--by names {', '.join(map(repr, unknown))}, but the data's columns are "
            f"{', '.join(cache.metadata) or 'none but path, label, split and group'}"
        )
    return strata_of(cache.metadata, asked)


def strata_of(
    metadata: Mapping[str, Sequence[str]], asked: Sequence[str] = ()
) -> dict[str, list[str]]:
    """Each row's stratum by column, of the columns asked for or of those that have any.

    Columns called like a diagnosis have none unless they are asked for.
    """
    names = asked or [name for name in metadata if plain(name) not in _DIAGNOSES]
    found = {name: _strata_of(metadata[name]) for name in names}
    return {name: strata for name, strata in found.items() if strata or name in asked}


def _strata_of(values: Sequence[str]) -> list[str]:
    """The values where they are few, quarters where they are numbers, nothing for names."""
    counts = Counter(values)
    numbers = [as_number(value) for value in values]
    known = [number for number in numbers if number is not None]
    if len(counts) <= MAX_VALUES:
        return [value or "not said" for value in values] if len(counts) > 1 else []
    if len(known) < 0.9 * len(values):
        return []
    edges = np.quantile(known, [0.25, 0.5, 0.75])
    bounds = [min(known), *edges.tolist(), max(known)]
    names = [f"{low:g} to {high:g}" for low, high in pairwise(bounds)]
    return [
        "not said" if number is None else names[int(np.searchsorted(edges, number))]
        for number in numbers
    ]


def _strata(
    work: _Work, columns: Mapping[str, Sequence[str]], run: Run | None, scored: Mapping[int, int]
) -> list[Finding]:
    """How many images of each class each stratum has, and a run's results there.

    `scored` maps a row of the cache to the row of the run's predictions.
    """
    table = stratum_table(work.cache.labels, columns, run, scored)
    if not table:
        return []
    write_records(
        work.file("results by stratum" if run else "counts by stratum", "strata.csv"),
        [_as_record(stratum, work.cache.classes, has_scores=run is not None) for stratum in table],
    )
    return [
        Finding(
            check="results by stratum" if run else "counts by stratum",
            level="note" if run else "fine",
            number=f"{len(table)} strata of {', '.join(columns)}",
            meaning=_spread(table) if run else "Give --run to see a run's scores in each.",
            details={"strata": table},
        )
    ]


def stratum_table(
    labels: Sequence[str],
    columns: Mapping[str, Sequence[str]],
    run: Run | None,
    scored: Mapping[int, int],
) -> list[dict[str, Any]]:
    """Images of each class in each stratum and, of a run, `n_tested` and `scores` there.

    `scored` maps a row of the data to the row of the run's predictions.
    """
    table = []
    for name, strata in columns.items():
        for stratum in sorted(set(strata), key=_in_order):
            rows = [row for row, found in enumerate(strata) if found == stratum]
            counts = Counter(labels[row] for row in rows)
            scores = _scores(run, [scored[row] for row in rows if row in scored]) if run else {}
            table.append({"column": name, "value": stratum, "counts": dict(counts), **scores})
    return table


def _as_record(
    stratum: Mapping[str, Any], classes: Sequence[str], *, has_scores: bool
) -> dict[str, Any]:
    """A row of strata.csv, each number in a column of its own."""
    counts = stratum["counts"]
    record = {name: stratum[name] for name in ("column", "value")}
    record |= {"images": sum(counts.values())} | {c: counts.get(c, 0) for c in classes}
    if not has_scores:
        return record
    for name in _SCORES:
        score = stratum["scores"].get(name) or {}
        ends = {"value": name, "low": f"{name}_low", "high": f"{name}_high"}
        record |= {column: score.get(end) for end, column in ends.items()}
    return record | {"tested": stratum["n_tested"]}


def _in_order(stratum: str) -> tuple[bool, float, str]:
    """Numbers and quarters by value, before words."""
    number = as_number(stratum.partition(" to ")[0])
    return number is None, number or 0.0, stratum


_SCORES = ("accuracy", "balanced_accuracy", "auroc")


def scored_rows(paths: Sequence[str], run: Run, source: object) -> dict[int, int]:
    """Row of the data to row of the run's predictions.

    Raises
    ------
    DataError
        When there is none; `source` is what the message calls the data.
    """
    number = {path: row for row, path in enumerate(paths)}
    found = {number[i]: k for k, i in enumerate(run.predictions.ids) if i in number}
    if not found:
        raise DataError(
            f"{run.path} was tested on none of the images of {source}: give a run on these data"
        )
    return found


def _scores(run: Run, rows: Sequence[int]) -> dict[str, Any]:
    if not rows:
        return {"n_tested": 0, "scores": {}}
    scores = evaluate(run.predictions.take(np.array(sorted(rows), dtype=np.int64)))
    kept = {name: scores[name] for name in _SCORES if name in scores}
    return {
        "n_tested": len(rows),
        "scores": {name: vars(score) if score else None for name, score in kept.items()},
    }


def _spread(table: Sequence[Mapping[str, Any]]) -> str:
    """The stratum that does worst, of those whose accuracy is surest to differ."""
    known = [row for row in table if row.get("scores", {}).get("accuracy")]
    if not known:
        return "No stratum has test images."
    worst = min(known, key=lambda row: row["scores"]["accuracy"]["high"])
    title = METRICS["accuracy"].title.lower()
    return (
        f"Lowest {title}: {in_words(worst['scores']['accuracy'])} where {worst['column']} is "
        f"{worst['value']} ({worst['n_tested']} images)."
    )
