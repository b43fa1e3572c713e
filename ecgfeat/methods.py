"""What runs did and found, as a paper tells it: commands, a Methods paragraph, tables."""

from __future__ import annotations

import csv
import io
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from ecgfeat.comparison import Comparison
from ecgfeat.config import (
    RECIPES,
    DataSettings,
    EvaluationSettings,
    NetworkSettings,
    Settings,
    SweepSettings,
    as_json,
    option_name,
)
from ecgfeat.feature_cache import FeatureCache
from ecgfeat.files import page_named
from ecgfeat.heads import idle_options
from ecgfeat.manifest import Manifest
from ecgfeat.metrics import MAIN, METRICS, Score, in_words, p_in_words
from ecgfeat.predictions import Predictions
from ecgfeat.runs import Run, damaged

__all__ = [
    "commands_of",
    "digests_of",
    "methods_of",
    "paper_tables",
    "refuse_incomplete",
]


def refuse_incomplete(run: Run) -> None:
    """Refuse a run whose ``config.json`` lacks what says how it was made.

    Raises
    ------
    RunError
    """
    way = ("cache", "head") if "cache" in run.config else ("source", "training")
    lacking = [name for name in ("backbone", "preprocessing", *way) if name not in run.config]
    if lacking:
        raise damaged(run.path / "config.json", f"{lacking[0]} is missing")


def digests_of(run: Run) -> dict[str, str]:
    """SHA-256 of what a run's numbers hang on, by what it is of."""
    config = run.config
    found = {
        "data": config.get("manifest_digest"),
        "features": config.get("cache", {}).get("digest"),
        "weights": config.get("backbone", {}).get("weights_digest"),
    }
    return {what: digest for what, digest in found.items() if digest}


def commands_of(run: Run, source: FeatureCache | Manifest | None) -> list[str]:
    """The commands that make a run again, with the options that differ from the recipe's.

    Parameters
    ----------
    run : Run
    source : FeatureCache or Manifest, optional
        What it was made of, if that is still there: a cache tells how it was extracted.
    """
    config = run.config
    recipe = RECIPES.get(config.get("recipe", ""), RECIPES["paper"])
    network = _options(config.get("backbone", {}), NetworkSettings())
    page = _options(as_json(run.page), recipe.page)
    evaluation = _options(config.get("evaluation", {}), EvaluationSettings())
    if "cache" not in config:
        listed = _options(config["source"], DataSettings())
        line = _line(
            *("finetune", config["source"]["data"], "--recipe", recipe.name),
            *(*listed, *network, *page),
            *_options(config["training"], recipe.training),
            *evaluation,
        )
        return [line]
    place, extraction = config["data"], list[str]()
    if isinstance(source, Manifest):
        place = str(source.source)
    elif source is not None:
        if source.root is not None:
            place = _listing_in(source.root)
        layers = ",".join(source.header.taps)
        extraction += _options({"layers": layers}, recipe.extraction)
    if any(page_named(path).page for path in run.predictions.ids):
        extraction += ["--pages", "all"]
    return [
        _line(
            *("extract", place, "--cache", config["cache"]["path"], "--recipe", recipe.name),
            *(*network, *page, *extraction),
        ),
        _line(
            *("fit-head", config["cache"]["path"], "--recipe", recipe.name),
            *("--head", run.kind),
            *_options(_used(config["head"], run.kind), recipe.head),
            *_options(config.get("sweep", {}), SweepSettings()),
            *evaluation,
        ),
    ]


def _listing_in(root: Path) -> str:
    """The one CSV that lies beside the images, or their folder."""
    listings = sorted(root.glob("*.csv"))
    return str(listings[0] if len(listings) == 1 else root)


def _used(head: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """A head's settings without those that only another kind has."""
    idle = idle_options(kind)
    return {name: value for name, value in head.items() if name not in idle}


def _options(stored: Mapping[str, Any], usual: Settings) -> list[str]:
    """Options of a section of settings, where they differ from the usual ones."""
    words: list[str] = []
    for item in fields(usual):
        value = stored.get(item.name, getattr(usual, item.name))
        value = tuple(value) if isinstance(value, list) else value
        if value == getattr(usual, item.name) or value is None:
            continue
        if isinstance(value, bool):
            words.append(option_name(item.name) if value else f"--no-{option_name(item.name)[2:]}")
        elif isinstance(value, tuple):
            words += [word for one in value for word in (option_name(item.name), str(one))]
        else:
            words += [
                option_name(item.name),
                f"{value:g}" if isinstance(value, float) else str(value),
            ]
    return words


def _line(*words: str) -> str:
    return shlex.join(["ecgfeat", *words])


def methods_of(runs: Sequence[tuple[str, Run]], comparison: Comparison | None) -> list[str]:
    """A paragraph for a paper's Methods section, of sentences that the runs' files bear out.

    Parameters
    ----------
    runs : sequence of (str, Run)
        What each is called, and the run; all on the same test rows.
    comparison : Comparison, optional
        Of the same runs.
    """
    first = runs[0][1]
    sentences = []
    for say in (_page_of, _rows_of):
        said = {number: say(run) for number, run in runs}
        if len(set(said.values())) == 1:
            sentences.append(f"{said[runs[0][0]]}.")
        else:
            sentences += [f"{number}: {words}." for number, words in said.items()]
    sentences[1:1] = [_method_of(*run) for run in runs]
    methods = {score["method"] for score in first.metrics["scores"].values() if score}
    by_group = " of whole groups" if "group bootstrap" in methods else ""
    sentences.append(
        "Shares are given with Wilson's 95 % intervals, all other scores with 95 % intervals by "
        f"bootstrap{by_group}."
        if "wilson" in methods
        else f"Scores are given with 95 % intervals by bootstrap{by_group}."
    )
    if comparison is not None:
        sentences.append(
            "Models were compared on the same test images by a paired bootstrap, by "
            f"{comparison.p_value_method} (right answers)"
            + (f" and, for the AUROC, by {comparison.auroc_method}" if comparison.positive else "")
            + f"; p-values were adjusted for all pairs ({comparison.adjustment})."
        )
    versions = first.config.get("versions", {})
    packages = ", ".join(
        f"{name} {versions[name]}"
        for name in ("ecgfeat", "torch", "torchvision", "scikit-learn")
        if name in versions
    )
    sentences.append(f"Everything was computed with {packages}.")
    return sentences


CROPS = {
    "squash": "stretched to",
    "border": "fitted with their aspect kept and padded to",
    "center": "resized and cropped at the centre, as is usual for ImageNet, to",
}


def _page_of(run: Run) -> str:
    page = run.page
    cleaned = "cleaned (photographed pages straightened, ink alone kept), "
    return (
        f"Images were decoded to RGB, {cleaned if page.clean == 'photo' else ''}"
        f"{CROPS[page.crop_mode]} {page.width_px} × {page.height_px} pixels and "
        "normalised by ImageNet's mean and standard deviation"
    )


def _rows_of(run: Run) -> str:
    """On how many images a run was trained and tested, and what stayed together."""
    rows = run.config.get("partitions", [])
    n_groups = len(set(run.predictions.groups) - {""})
    grouped = f"; images of one of the {n_groups} groups stayed together" if n_groups else ""
    n_tested = f"{len(run.predictions):,}"
    if run.metrics["split"] == "cv":
        return (
            f"Each of {n_tested} images was predicted once, in a stratified cross-validation of "
            f"{len(rows)} folds{grouped}"
        )
    if not rows:
        return f"Tested on {n_tested} images{grouped}"
    chosen = f", chosen on {rows[0]['validation']:,}" if rows[0]["validation"] else ""
    return f"Trained on {rows[0]['train']:,} images{chosen} and tested on {n_tested}{grouped}"


OPTIMIZERS = {"adam": "Adam", "adamw": "AdamW", "sgd": "SGD with momentum"}


def _epochs(n: int) -> str:
    return "one epoch" if n == 1 else f"{n} epochs"


def _method_of(number: str, run: Run) -> str:
    config = run.config
    backbone = config["backbone"]
    weights = backbone["weights"]
    pretrained = (
        "with random weights"
        if weights.startswith("random")
        else f"with pretrained weights (SHA-256 {backbone['weights_digest'][:12]}…)"
    )
    if "cache" not in config:
        training = config["training"]
        return (
            f"{number}: a {backbone['arch']} {pretrained} was trained as a whole for "
            f"{_epochs(training['epochs'])} ({OPTIMIZERS[training['optimizer']]}, learning rate "
            f"{training['lr']}, batches of {training['batch_size']})."
        )
    head = config["head"]
    layers = head["layers"].replace(",", ", ")
    features = (
        f"{number}: features were taken once from a frozen {backbone['arch']} {pretrained}: "
        f"the pools of {layers}."
    )
    if run.kind == "logreg":
        return (
            f"{features} A logistic regression (L2, C = {head['C']:g}) was fitted on them, "
            "standardised."
        )
    if run.kind == "linear":
        return (
            f"{features} A linear layer was trained on them for {_epochs(head['epochs'])} (Adam, "
            f"learning rate {head['lr']:g}, batches of {head['batch_size']})."
        )
    return features


# Tables

COLUMNS = (*MAIN, "sensitivity", "specificity")
Row = Sequence[str]


def paper_tables(comparison: Comparison, runs: Sequence[Run], form: str) -> str:
    """A comparison's tables, to be pasted.

    In Markdown and LaTeX: scores with sensitivity and specificity at the operating point, paired
    differences with tests, and of runs by the study's recipe its own table of precision, recall,
    F1 and support. As CSV: a row for each score of each run and pair, numbers alone.

    Parameters
    ----------
    comparison : Comparison
    runs : sequence of Run
        The runs that it compares, in its order.
    form : {"markdown", "latex", "csv"}
    """
    if form == "csv":
        return _as_csv(comparison)
    number = {run.name: f"R{index}" for index, run in enumerate(comparison.runs, start=1)}
    names = [name for name in COLUMNS if any(name in run.scores for run in comparison.runs)]
    heads = ["", "way", *(METRICS[name].title for name in names), "answers"]
    write = {"markdown": _as_markdown, "latex": _as_latex}[form]
    tables = [
        write(
            f"{comparison.title}. Scores with 95 % intervals",
            heads,
            [
                [
                    number[run.name],
                    ", ".join([run.label, *(f"{k} {v}" for k, v in run.differs.items())]),
                    *(in_words(run.scores.get(name)) for name in names),
                    run.operating_point,
                ]
                for run in comparison.runs
            ],
        ),
        write(
            "Paired differences with 95 % intervals; p adjusted for all pairs "
            f"({comparison.adjustment}). Right answers: {comparison.p_value_method}. AUROC: "
            f"{comparison.auroc_method}",
            ["", *(METRICS[name].title for name in MAIN), "p (right answers)", "p (AUROC)"],
            [
                [
                    f"{number[pair.second]} − {number[pair.first]}",
                    *(in_words(pair.differences.get(name)) for name in MAIN),
                    p_in_words(pair.p_adjusted),
                    p_in_words(pair.auroc_p_adjusted),
                ]
                for pair in comparison.pairs
            ],
        ),
    ]
    tables += [
        write(
            f"{number[run.name]}: {run.config['data']}, test rows: {run.metrics['test_rows']}",
            ["", "precision", "recall", "f1-score", "support"],
            _study_rows(run.predictions),
        )
        for run in runs
        if run.config.get("recipe") == "paper"
    ]
    return "\n".join(tables)


def _study_rows(predictions: Predictions) -> list[list[str]]:
    """Precision, recall, F1 and support of each class, and the accuracy, as the study has them."""
    from sklearn.metrics import precision_recall_fscore_support

    labels = range(len(predictions.classes))
    found = precision_recall_fscore_support(
        predictions.targets, predictions.predicted, labels=labels, zero_division=0
    )
    rows = [
        [name, *(f"{value:.4f}" for value in values[:3]), str(values[3])]
        for name, values in zip(predictions.classes, zip(*found))
    ]
    accuracy = (predictions.targets == predictions.predicted).mean()
    return [*rows, ["accuracy", "", "", f"{accuracy:.4f}", str(len(predictions))]]


def _as_markdown(title: str, heads: Row, rows: Sequence[Row]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    cells = [[cell.replace("|", "\\|") for cell in line] for line in lines]
    return f"{title}.\n\n" + "".join(f"| {' | '.join(line)} |\n" for line in cells)


def _as_latex(title: str, heads: Row, rows: Sequence[Row]) -> str:
    body = [" & ".join(map(_escaped, line)) + r" \\" for line in rows]
    return "\n".join(
        [
            r"\begin{table}",
            rf"\caption{{{_escaped(title)}.}}",
            rf"\begin{{tabular}}{{{'l' * len(heads)}}}",
            r"\hline",
            " & ".join(map(_escaped, heads)) + r" \\",
            r"\hline",
            *body,
            r"\hline",
            r"\end{tabular}",
            r"\end{table}",
            "",
        ]
    )


_LATEX = {
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "−": "$-$",
    "–": "--",
}


def _escaped(text: str) -> str:
    return "".join(_LATEX.get(sign, sign) for sign in text)


def _as_csv(comparison: Comparison) -> str:
    """A row for each score of each run, and of each pair."""
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["run", "minus", "score", "value", "low", "high", "p", "p_adjusted"])
    for run in comparison.runs:
        rows.writerows([run.name, "", *cells, "", ""] for cells in _numbers(run.scores))
    for pair in comparison.pairs:
        area = pair.auroc_test
        p_values = {
            "accuracy": (pair.p_value, pair.p_adjusted),
            "auroc": (area and area.p_value, pair.auroc_p_adjusted),
        }
        for cells in _numbers(pair.differences):
            rows.writerow([pair.second, pair.first, *cells, *p_values.get(str(cells[0]), ("", ""))])
    return text.getvalue()


def _numbers(scores: Mapping[str, Score | None]) -> list[list[object]]:
    return [[name, s.value, s.low, s.high] for name, s in scores.items() if s is not None]
