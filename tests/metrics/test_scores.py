"""The scores' values, against scikit-learn."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sklearns

from ecgfeat.errors import DataError
from ecgfeat.metrics import METRICS, evaluate, score_values
from ecgfeat.metrics.scores import scorer
from ecgfeat.predictions import Predictions

from .samples import binary, noisy, predictions_of


def expected_scores(
    predictions: Predictions, weights: np.ndarray | None = None
) -> dict[str, float]:
    """What scikit-learn makes of predictions; the calibration error in a plain loop."""
    targets, answers = predictions.targets, predictions.predicted
    probabilities, n_classes = predictions.probabilities, len(predictions.classes)
    is_binary = n_classes == 2
    of_rows = {"sample_weight": weights}
    labels, columns = np.arange(n_classes), probabilities[:, 1] if is_binary else probabilities
    average = {} if is_binary else {"average": "macro"}
    one_hot = targets if is_binary else np.eye(n_classes)[targets]
    scores = {
        "accuracy": sklearns.accuracy_score(targets, answers, **of_rows),
        "balanced_accuracy": sklearns.balanced_accuracy_score(targets, answers, **of_rows),
    }
    if is_binary:
        for name, share, label in (
            ("sensitivity", sklearns.recall_score, 1),
            ("specificity", sklearns.recall_score, 0),
            ("ppv", sklearns.precision_score, 1),
            ("npv", sklearns.precision_score, 0),
        ):
            scores[name] = share(targets, answers, pos_label=label, zero_division=np.nan, **of_rows)
    area = {} if is_binary else {"multi_class": "ovr"}
    return {
        **scores,
        "f1": sklearns.f1_score(targets, answers, **average, **of_rows),
        "auroc": sklearns.roc_auc_score(targets, columns, **area, **of_rows),
        "average_precision": sklearns.average_precision_score(one_hot, columns, **of_rows),
        "brier": sklearns.brier_score_loss(targets, columns, labels=labels, **of_rows),
        "ece": calibration_error(predictions, weights),
        "log_loss": sklearns.log_loss(targets, probabilities, labels=labels, **of_rows),
    }


def calibration_error(predictions: Predictions, weights: np.ndarray | None = None) -> float:
    weights = np.ones(len(predictions)) if weights is None else weights
    probabilities = predictions.probabilities
    sure, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == predictions.targets
    if len(predictions.classes) == 2:
        sure, right = probabilities[:, 1], predictions.targets == 1
    error = 0.0
    for number in range(15):
        low, high = number / 15, (number + 1) / 15
        inside = (sure >= low) & ((sure < high) if number < 14 else (sure <= 1))
        if weights[inside].sum():
            gap = np.average(right[inside], weights=weights[inside]) - np.average(
                sure[inside], weights=weights[inside]
            )
            error += abs(gap) * weights[inside].sum() / weights.sum()
    return error


@pytest.mark.parametrize("n_classes", [2, 3, 6])
def test_scores_equal_scikit_learns(n_classes: int) -> None:
    predictions = noisy(300, n_classes)
    scores = evaluate(predictions, n_bootstrap=10)
    expected = expected_scores(predictions)
    assert list(scores) == [name for name in METRICS if name in expected]
    assert {name: score.value for name, score in scores.items()} == pytest.approx(expected)
    assert score_values(predictions) == pytest.approx(expected)


@pytest.mark.parametrize("n_classes", [2, 3])
@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_scores_of_any_ties_and_weights_equal_scikit_learns(
    n_classes: int, data: st.DataObject
) -> None:
    n = data.draw(st.integers(n_classes, 20))
    cells = st.lists(st.integers(0, 4), min_size=n_classes, max_size=n_classes)
    counts = np.array(data.draw(st.lists(cells, min_size=n, max_size=n)), dtype=float)
    counts[:, 0] += counts.sum(axis=1) == 0
    targets = data.draw(st.lists(st.integers(0, n_classes - 1), min_size=n, max_size=n))
    targets[:n_classes] = range(n_classes)
    weights = np.array(data.draw(st.lists(st.integers(1, 5), min_size=n, max_size=n))) / 2
    predictions = predictions_of(targets, counts / counts.sum(axis=1, keepdims=True))
    expected = expected_scores(predictions, weights)
    found = scorer(predictions)(weights[np.newaxis])
    for name, value in expected.items():
        assert found[name][0] == pytest.approx(value, abs=1e-9, nan_ok=True), name


def test_a_weight_of_two_counts_a_row_twice() -> None:
    predictions = noisy(30, 3)
    weights = np.random.default_rng(1).integers(0, 3, size=(4, 30))
    drawn = scorer(predictions)(weights.astype(float))
    for number, row in enumerate(weights):
        rows = np.repeat(np.arange(30), row)
        alone = predictions_of(predictions.targets[rows], predictions.probabilities[rows])
        for name, value in score_values(alone).items():
            assert drawn[name][number] == pytest.approx(value, abs=1e-12), name


def test_answers_decide_the_scores_of_answers_and_no_others() -> None:
    predictions = noisy(200)
    answers = (predictions.probabilities[:, 1] >= 0.3).astype(np.int64)
    eager = dataclasses.replace(predictions, answers=answers)
    before, after = score_values(predictions), score_values(eager)
    assert after["sensitivity"] == sklearns.recall_score(predictions.targets, answers)
    assert after["ppv"] == sklearns.precision_score(predictions.targets, answers)
    assert after["sensitivity"] > before["sensitivity"]
    for name in ("auroc", "average_precision", "brier", "ece", "log_loss"):
        assert after[name] == before[name]


def test_weighted_auroc_of_many_classes_equals_scikit_learns() -> None:
    predictions = noisy(80, 4)
    weights = np.random.default_rng(1).uniform(0.1, 2, size=80)
    expected = sklearns.roc_auc_score(
        predictions.targets,
        predictions.probabilities,
        multi_class="ovr",
        sample_weight=weights,
    )
    (found,) = scorer(predictions)(weights[np.newaxis])["auroc"]
    assert found == pytest.approx(expected, abs=1e-12)


def test_auroc_of_tied_scores_counts_each_tie_half() -> None:
    predictions = binary([0, 1, 1, 0], [0.5, 0.5, 0.9, 0.1])
    assert score_values(predictions)["auroc"] == 3.5 / 4


def test_a_class_without_test_rows_is_left_out_of_the_means() -> None:
    predictions = noisy(60, 3)
    only_two = predictions.targets < 2
    kept = predictions_of(predictions.targets[only_two], predictions.probabilities[only_two])
    scores = evaluate(kept, n_bootstrap=20)
    recalls = [np.mean(kept.predicted[kept.targets == index] == index) for index in (0, 1)]
    areas = [
        sklearns.roc_auc_score(kept.targets == index, kept.probabilities[:, index])
        for index in (0, 1)
    ]
    assert scores["balanced_accuracy"].value == pytest.approx(np.mean(recalls))
    assert scores["auroc"].value == pytest.approx(np.mean(areas))


def test_auroc_is_none_where_the_rows_hold_one_class_and_json_has_no_nan() -> None:
    scores = evaluate(binary([1, 1, 1], [0.9, 0.2, 0.7]), n_bootstrap=50)
    assert scores["auroc"] is None
    assert scores["balanced_accuracy"].value == pytest.approx(2 / 3)
    plain = {name: score and dataclasses.asdict(score) for name, score in scores.items()}
    assert '"auroc": null' in json.dumps(plain, allow_nan=False)


def test_no_rows_are_refused() -> None:
    empty = predictions_of([], np.empty((0, 2)))
    with pytest.raises(DataError) as caught:
        evaluate(empty)
    assert str(caught.value) == "there are no rows to score: the predictions are empty"
