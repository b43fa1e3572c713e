"""The curves against scikit-learn's, and their bands."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.calibration import calibration_curve
from sklearn.metrics import (
    average_precision_score,
    precision_recall_curve,
    roc_auc_score,
    roc_curve,
)

from ecgfeat.metrics import MACRO, bootstrap_weights, curves
from ecgfeat.metrics.scores import GRID

from .samples import binary, noisy, perfect, predictions_of


def test_the_curves_of_few_rows_are_scikit_learns_in_every_point() -> None:
    predictions = noisy(120)
    targets, scores = predictions.targets, predictions.probabilities[:, 1]
    found = curves(predictions, n_bootstrap=20)
    ((name, (fallout, recall)),) = found.roc.lines.items()
    assert name == "class 1"
    expected = roc_curve(targets, scores, drop_intermediate=False)
    np.testing.assert_allclose((fallout, recall), expected[:2], atol=1e-12)
    recall, precision = found.precision_recall.lines["class 1"]
    expected_precision, expected_recall, _ = precision_recall_curve(targets, scores)
    np.testing.assert_allclose(recall, expected_recall[::-1], atol=1e-12)
    np.testing.assert_allclose(precision[1:], expected_precision[::-1][1:], atol=1e-12)


def test_tied_scores_are_one_step() -> None:
    found = curves(binary([0, 1, 0, 1, 1], [0.2, 0.2, 0.6, 0.6, 0.9]), n_bootstrap=20)
    fallout, recall = found.roc.lines["class 1"]
    assert fallout.tolist() == [0, 0, 0.5, 1]
    assert recall.tolist() == pytest.approx([0, 1 / 3, 2 / 3, 1])


def test_the_curves_of_many_rows_keep_to_a_few_hundred_points() -> None:
    predictions = noisy(20_000)
    found = curves(predictions, n_bootstrap=2)
    fallout, recall = found.roc.lines["class 1"]
    x, y, _ = roc_curve(predictions.targets, predictions.probabilities[:, 1])
    assert len(fallout) < 650
    drawn, true = np.interp(GRID[1:], fallout, recall), np.interp(GRID[1:], x, y)
    assert np.abs(drawn - true).max() < 2e-3
    assert np.diff(fallout).max() < 0.006


def test_reliability_is_scikit_learns_calibration_curve() -> None:
    predictions = noisy(400)
    found = curves(predictions, n_bootstrap=20).reliability
    true, said = calibration_curve(predictions.targets, predictions.probabilities[:, 1], n_bins=10)
    np.testing.assert_allclose(found.true, true)
    np.testing.assert_allclose(found.said, said)
    assert found.is_equal_width
    assert found.n_rows.sum() == 400


def test_reliability_of_few_rows_has_bins_of_equal_numbers() -> None:
    predictions = noisy(100)
    targets, said = predictions.targets, predictions.probabilities[:, 1]
    found = curves(predictions, n_bootstrap=20).reliability
    true, means = calibration_curve(targets, said, n_bins=10, strategy="quantile")
    np.testing.assert_allclose(found.true, true)
    np.testing.assert_allclose(found.said, means)
    assert not found.is_equal_width
    assert found.n_rows.tolist() == [10] * 10


@given(
    said=st.lists(st.sampled_from([0, 0.01, 0.1, 0.1 + 1e-9, 0.3, 0.5, 0.77, 0.9, 1.0]), min_size=1)
    | st.lists(st.floats(0, 1), min_size=1, max_size=300)
)
@settings(max_examples=60)
def test_no_bin_of_the_reliability_has_fewer_than_ten_rows(said: list[float]) -> None:
    targets = [row % 2 for row in range(len(said))]
    found = curves(binary(targets, said), n_bootstrap=2).reliability
    assert found.n_rows.sum() == len(said)
    assert 1 <= len(found.n_rows) <= 10
    assert len(found.n_rows) == 1 or found.n_rows.min() >= 10
    assert (np.diff(found.said) > 0).all()


def test_reliability_of_many_classes_is_of_the_most_probable_one() -> None:
    predictions = noisy(400, 4)
    found = curves(predictions, n_bootstrap=20).reliability
    right = predictions.predicted == predictions.targets
    assert (found.true * found.n_rows).sum() == pytest.approx(right.sum())
    assert found.said.min() > 1 / 4


def test_bands_equal_percentiles_of_curves_of_resampled_rows() -> None:
    predictions = noisy(60)
    found = curves(predictions, seed=3, n_bootstrap=40)
    (weights,) = bootstrap_weights(np.arange(60), 40, seed=3)
    drawn = []
    for counts in weights.astype(int):
        rows = np.repeat(np.arange(60), counts)
        scores = predictions.probabilities[rows, 1]
        x, y, _ = roc_curve(predictions.targets[rows], scores, drop_intermediate=False)
        drawn.append(np.interp(GRID, x, y))
    low, high = np.percentile(drawn, (2.5, 97.5), axis=0)
    spread = high - low > 1e-12
    assert spread.sum() > 50
    np.testing.assert_allclose(found.roc.low[spread], low[spread], atol=1e-12)
    np.testing.assert_allclose(found.roc.high[spread], high[spread], atol=1e-12)


def test_the_mean_of_many_classes_comes_last_and_has_the_band() -> None:
    found = curves(noisy(300, 4), n_bootstrap=60).roc
    assert list(found.lines) == ["class 0", "class 1", "class 2", "class 3", MACRO]
    x, mean = found.lines[MACRO]
    by_class = [np.interp(x, *found.lines[f"class {index}"]) for index in range(4)]
    np.testing.assert_allclose(mean, np.mean(by_class, axis=0), atol=1e-12)
    inside = (found.low <= mean + 1e-9) & (mean <= found.high + 1e-9)
    assert inside.mean() > 0.95


def test_groups_widen_the_bands() -> None:
    single = noisy(60, signal=0.7)
    rows = np.repeat(np.arange(60), 5)
    names = [f"patient {row}" for row in rows]
    grouped = predictions_of(single.targets[rows], single.probabilities[rows], groups=names)
    ungrouped = dataclasses.replace(grouped, groups=("",) * 300)
    wide, narrow = (curves(each, n_bootstrap=200).roc for each in (grouped, ungrouped))
    assert (wide.high - wide.low).mean() > 1.5 * (narrow.high - narrow.low).mean()


def test_a_perfect_curve_keeps_the_doubt_of_few_rows() -> None:
    found = curves(perfect(20), n_bootstrap=30)
    middle = len(GRID) // 2
    # Wilson's lower bound for 10 of 10.
    assert found.roc.low[middle] == pytest.approx(0.7225, abs=1e-4)
    assert found.reliability.low[-1] == pytest.approx(0.7225, abs=1e-4)
    assert found.precision_recall.low[middle] < 0.75


def test_one_class_alone_has_reliability_only() -> None:
    found = curves(binary([1, 1, 1], [0.2, 0.5, 0.9]), n_bootstrap=20)
    assert found.roc is found.precision_recall is None
    assert found.reliability.true.tolist() == [1]
    assert found.reliability.said.tolist() == pytest.approx([1.6 / 3])


def test_areas_by_class_are_scikit_learns() -> None:
    predictions = noisy(300, 4)
    found = curves(predictions, n_bootstrap=2)
    for index in range(4):
        is_class, said = predictions.targets == index, predictions.probabilities[:, index]
        name = f"class {index}"
        assert found.roc.areas[name] == pytest.approx(roc_auc_score(is_class, said))
        area = average_precision_score(is_class, said)
        assert found.precision_recall.areas[name] == pytest.approx(area)
