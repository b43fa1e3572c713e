"""Scores and their intervals, against scikit-learn, SciPy and plain loops."""

from __future__ import annotations

import dataclasses
import json
import tracemalloc
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import (
    balanced_accuracy_score,
    classification_report,
    roc_auc_score,
)
from sklearn.metrics import confusion_matrix as sklearn_confusion_matrix

from ecgfeat.errors import DataError
from ecgfeat.metrics import (
    METRICS,
    Score,
    auroc,
    bootstrap_weights,
    classification_table,
    confusion_matrix,
    evaluate,
    in_id_order,
    resample,
)
from ecgfeat.predictions import Predictions


def predictions_of(
    targets: Sequence[int],
    probabilities: np.ndarray,
    *,
    classes: Sequence[str] | None = None,
    groups: Sequence[str] | None = None,
) -> Predictions:
    n, n_classes = probabilities.shape
    return Predictions(
        ids=tuple(f"pages/{index:05d}.png" for index in range(n)),
        classes=tuple(classes or (f"class {index}" for index in range(n_classes))),
        targets=np.asarray(targets, dtype=np.int64),
        probabilities=np.asarray(probabilities, dtype=np.float64),
        groups=tuple(groups or [""] * n),
        split="test",
        folds=np.zeros(n, dtype=np.int64),
    )


def noisy(n: int, n_classes: int = 2, *, seed: int = 0, signal: float = 1.0) -> Predictions:
    """Predictions that are often right, of classes drawn at random."""
    random = np.random.default_rng(seed)
    targets = random.integers(n_classes, size=n)
    logits = random.normal(size=(n, n_classes))
    logits[np.arange(n), targets] += signal
    exponentials = np.exp(logits)
    return predictions_of(targets, exponentials / exponentials.sum(axis=1, keepdims=True))


def binary(targets: Sequence[int], scores: Sequence[float]) -> Predictions:
    positive = np.asarray(scores, dtype=np.float64)
    return predictions_of(targets, np.stack([1 - positive, positive], axis=1))


def perfect(n: int) -> Predictions:
    targets = np.arange(n) % 2
    return predictions_of(targets, np.eye(2)[targets])


class TestValues:
    @pytest.mark.parametrize("n_classes", [2, 3, 6])
    def test_scores_equal_scikit_learns(self, n_classes: int) -> None:
        predictions = noisy(300, n_classes)
        targets, probabilities = predictions.targets, predictions.probabilities
        scores = evaluate(predictions, n_bootstrap=10)
        columns = probabilities[:, 1] if n_classes == 2 else probabilities
        expected = {
            "accuracy": np.mean(predictions.predicted == targets),
            "balanced_accuracy": balanced_accuracy_score(targets, predictions.predicted),
            "auroc": roc_auc_score(targets, columns, multi_class="ovr", average="macro"),
        }
        assert tuple(scores) == METRICS
        for name, value in expected.items():
            assert scores[name].value == pytest.approx(value, abs=1e-12), name

    @settings(max_examples=60, deadline=None)
    @given(st.data())
    def test_auroc_with_ties_and_weights_equals_scikit_learns(self, data: st.DataObject) -> None:
        n = data.draw(st.integers(2, 30))
        tenths = data.draw(st.lists(st.integers(0, 10), min_size=n, max_size=n))
        targets = data.draw(st.lists(st.integers(0, 1), min_size=n, max_size=n))
        targets[:2] = 0, 1
        weights = np.array(data.draw(st.lists(st.integers(1, 5), min_size=n, max_size=n))) / 2
        predictions = binary(targets, np.array(tenths) / 10)
        for row_weights in (None, weights):
            found = auroc(predictions.targets, predictions.probabilities, row_weights)
            expected = roc_auc_score(targets, tenths, sample_weight=row_weights)
            assert found == pytest.approx(expected, abs=1e-12)

    def test_weighted_auroc_of_many_classes_equals_scikit_learns(self) -> None:
        predictions = noisy(80, 4)
        weights = np.random.default_rng(1).uniform(0.1, 2, size=80)
        expected = roc_auc_score(
            predictions.targets,
            predictions.probabilities,
            multi_class="ovr",
            sample_weight=weights,
        )
        found = auroc(predictions.targets, predictions.probabilities, weights)
        assert found == pytest.approx(expected, abs=1e-12)

    def test_auroc_of_tied_scores_counts_each_tie_half(self) -> None:
        predictions = binary([0, 1, 1, 0], [0.5, 0.5, 0.9, 0.1])
        assert auroc(predictions.targets, predictions.probabilities) == 3.5 / 4

    def test_a_class_without_test_rows_is_left_out_of_the_means(self) -> None:
        predictions = noisy(60, 3)
        only_two = predictions.targets < 2
        kept = predictions_of(predictions.targets[only_two], predictions.probabilities[only_two])
        scores = evaluate(kept, n_bootstrap=20)
        recalls = [np.mean(kept.predicted[kept.targets == index] == index) for index in (0, 1)]
        areas = [
            roc_auc_score(kept.targets == index, kept.probabilities[:, index]) for index in (0, 1)
        ]
        assert scores["balanced_accuracy"].value == pytest.approx(np.mean(recalls))
        assert scores["auroc"].value == pytest.approx(np.mean(areas))

    def test_auroc_is_none_where_the_rows_hold_one_class_and_json_has_no_nan(self) -> None:
        scores = evaluate(binary([1, 1, 1], [0.9, 0.2, 0.7]), n_bootstrap=50)
        assert scores["auroc"] is None
        assert scores["balanced_accuracy"].value == pytest.approx(2 / 3)
        plain = {name: score and dataclasses.asdict(score) for name, score in scores.items()}
        assert '"auroc": null' in json.dumps(plain, allow_nan=False)

    def test_no_rows_are_refused(self) -> None:
        empty = predictions_of([], np.empty((0, 2)))
        with pytest.raises(DataError) as caught:
            evaluate(empty)
        assert str(caught.value) == "there are no rows to score: the predictions are empty"


class TestIntervals:
    @pytest.mark.parametrize(("n_right", "n"), [(0, 10), (7, 10), (10, 10), (735, 1000)])
    def test_accuracy_of_ungrouped_rows_has_wilsons_interval(self, n_right: int, n: int) -> None:
        targets = np.arange(n) % 2
        answers = np.where(np.arange(n) < n_right, targets, 1 - targets)
        score = evaluate(binary(targets, answers), n_bootstrap=10)["accuracy"]
        expected = stats.binomtest(n_right, n).proportion_ci(method="wilson")
        assert (score.low, score.high) == pytest.approx((expected.low, expected.high), abs=1e-12)
        assert score.method == "wilson"

    def test_bootstrap_equals_resampling_row_by_row(self) -> None:
        predictions = noisy(40, 3, signal=0.5)
        (weights,) = bootstrap_weights(np.arange(40), n_bootstrap=200, seed=5)
        drawn = {"balanced_accuracy": [], "auroc": []}
        for counts in weights.T.astype(int):
            rows = np.repeat(np.arange(40), counts)
            targets, probabilities = predictions.targets[rows], predictions.probabilities[rows]
            answers = predictions.predicted[rows]
            drawn["balanced_accuracy"].append(balanced_accuracy_score(targets, answers))
            drawn["auroc"].append(roc_auc_score(targets, probabilities, multi_class="ovr"))
        scores = evaluate(predictions, seed=5, n_bootstrap=200)
        for name, values in drawn.items():
            found = scores[name]
            expected = np.percentile(values, [2.5, 97.5])
            assert (found.low, found.high) == pytest.approx(tuple(expected), abs=1e-12)
            assert found.method == "bootstrap"

    def test_one_group_of_two_rows_makes_every_interval_a_group_bootstrap(self) -> None:
        predictions = noisy(30)
        groups = ["patient 1", "patient 1", *[""] * 28]
        grouped = dataclasses.replace(predictions, groups=tuple(groups))
        methods = {score.method for score in evaluate(grouped, n_bootstrap=50).values()}
        assert methods == {"group bootstrap"}

    def test_copies_of_a_row_in_one_group_do_not_narrow_the_interval(self) -> None:
        single = noisy(50, signal=0.5)
        rows = np.repeat(np.arange(50), 4)
        names = [f"patient {row}" for row in rows]
        copied = predictions_of(single.targets[rows], single.probabilities[rows], groups=names)
        ungrouped = dataclasses.replace(copied, groups=("",) * 200)
        by_group, by_row, alone = (
            evaluate(predictions, n_bootstrap=500)["auroc"]
            for predictions in (copied, ungrouped, single)
        )
        assert by_group.high - by_group.low == pytest.approx(alone.high - alone.low, rel=0.2)
        assert by_row.high - by_row.low < 0.7 * (by_group.high - by_group.low)

    def test_group_weights_are_equal_within_groups_and_add_up_to_the_groups(self) -> None:
        units = np.array([0, 1, 1, 2, 0, 3])
        weights = np.concatenate(list(bootstrap_weights(units, 100, seed=0)), axis=1)
        assert weights.shape == (6, 100)
        assert np.array_equal(weights[0], weights[4])
        assert np.array_equal(weights[1], weights[2])
        assert np.all(weights[[0, 1, 3, 5]].sum(axis=0) == 4)

    def test_the_same_resamples_come_in_any_chunks(self, monkeypatch: pytest.MonkeyPatch) -> None:
        units = np.arange(20)
        whole = np.concatenate(list(bootstrap_weights(units, 64, seed=3)), axis=1)
        monkeypatch.setattr("ecgfeat.metrics.intervals.CHUNK_WEIGHTS", 100)
        parts = list(bootstrap_weights(units, 64, seed=3))
        assert len(parts) == 13
        assert np.array_equal(np.concatenate(parts, axis=1), whole)

    def test_the_order_of_the_rows_changes_nothing(self) -> None:
        predictions = noisy(60)
        groups = tuple(f"patient {row // 3}" for row in range(60))
        predictions = dataclasses.replace(predictions, groups=groups)
        order = np.random.default_rng(0).permutation(60)
        shuffled = dataclasses.replace(
            predictions,
            ids=tuple(predictions.ids[row] for row in order),
            targets=predictions.targets[order],
            probabilities=predictions.probabilities[order],
            groups=tuple(groups[row] for row in order),
        )
        assert evaluate(shuffled, n_bootstrap=100) == evaluate(predictions, n_bootstrap=100)
        assert in_id_order(shuffled).ids == predictions.ids

    def test_the_seed_decides_the_interval(self) -> None:
        predictions = noisy(60)
        first, again, other = (
            evaluate(predictions, seed=seed, n_bootstrap=100)["auroc"] for seed in (0, 0, 1)
        )
        assert first == again
        assert first.low != other.low

    def test_ninety_five_of_a_hundred_intervals_hold_the_truth(self) -> None:
        # AUROC of two normal scores of unit variance whose means are 1 apart: Phi(1 / sqrt 2).
        truth = stats.norm.cdf(1 / np.sqrt(2))
        hits = 0
        for seed in range(200):
            random = np.random.default_rng(seed)
            targets = np.arange(80) % 2
            scores = stats.norm.cdf(random.normal(size=80) + targets)
            found = evaluate(binary(targets, scores), n_bootstrap=200)["auroc"]
            hits += found.low <= truth <= found.high
        assert 180 <= hits <= 198


class TestDegenerateIntervals:
    @pytest.mark.parametrize("n", [4, 40, 400])
    def test_perfect_scores_keep_the_doubt_of_few_rows(self, n: int) -> None:
        scores = evaluate(perfect(n), n_bootstrap=50)
        n_rarest = n // 2
        wilson = stats.binomtest(n_rarest, n_rarest).proportion_ci(method="wilson")
        for name in ("balanced_accuracy", "auroc"):
            assert scores[name].value == scores[name].high == 1.0
            assert scores[name].low == pytest.approx(wilson.low)

    def test_perfect_scores_of_groups_count_the_groups(self) -> None:
        # Ten patients of ten rows each; the positives are those of three.
        targets = np.arange(100) // 10 < 3
        groups = [f"patient {row // 10}" for row in range(100)]
        predictions = predictions_of(targets, np.eye(2)[targets.astype(int)], groups=groups)
        scores = evaluate(predictions, n_bootstrap=50)
        for name, n_groups in (("accuracy", 10), ("balanced_accuracy", 3), ("auroc", 3)):
            wilson = stats.binomtest(n_groups, n_groups).proportion_ci(method="wilson")
            assert (scores[name].low, scores[name].high) == pytest.approx((wilson.low, 1.0))

    def test_a_constant_answer_is_as_doubtful_on_either_side(self) -> None:
        score = evaluate(binary([0, 1] * 10, [0.5] * 20), n_bootstrap=50)["auroc"]
        assert score.value == 0.5
        assert score.high - 0.5 == pytest.approx(0.5 - score.low)
        assert 0 < score.low < score.high < 1

    def test_all_rows_in_one_group_say_next_to_nothing(self) -> None:
        predictions = dataclasses.replace(noisy(20), groups=("patient",) * 20)
        for score in evaluate(predictions, n_bootstrap=50).values():
            assert 0 <= score.low < score.value < score.high <= 1
            assert score.high - score.low == pytest.approx(1.96**2 / (1 + 1.96**2), abs=1e-3)

    def test_resamples_without_a_class_are_left_out(self) -> None:
        # The only positive row is missing from a third of the resamples.
        predictions = binary([0] * 9 + [1], [*np.linspace(0.1, 0.9, 9), 0.55])
        (scored,) = resample([predictions], n_bootstrap=500)
        n_undefined = np.isnan(scored.drawn["auroc"]).sum()
        assert 100 < n_undefined < 250
        assert np.array_equal(
            np.isnan(scored.drawn["auroc"]), np.isnan(scored.drawn["balanced_accuracy"])
        )
        score = evaluate(predictions, n_bootstrap=500)["auroc"]
        assert 0 <= score.low < 5 / 9 < score.high <= 1

    def test_no_usable_resample_leaves_the_whole_scale(self) -> None:
        # Twelve classes of a row each: no resample of 20 holds them all.
        predictions = noisy(12, 12)
        predictions = dataclasses.replace(predictions, targets=np.arange(12))
        score = evaluate(predictions, n_bootstrap=20)["auroc"]
        assert (score.low, score.high) == (0.0, 1.0)


class TestDifferences:
    def test_resamples_are_shared_so_that_equal_models_differ_by_nothing(self) -> None:
        predictions = noisy(50)
        first, second = resample([predictions, predictions], n_bootstrap=50)
        for name in METRICS:
            assert np.array_equal(first.drawn[name], second.drawn[name])

    def test_a_difference_is_surer_than_the_scores_it_is_of(self) -> None:
        weak = noisy(200, signal=1.0)
        better = weak.probabilities.copy()
        better[:5] = np.eye(2)[weak.targets[:5]]
        strong = dataclasses.replace(weak, probabilities=better)
        first, second = resample([weak, strong], n_bootstrap=300)
        gain, score = second.minus(first)["accuracy"], first.scores()["accuracy"]
        assert gain.value == pytest.approx(
            np.mean(strong.predicted == weak.targets) - np.mean(weak.predicted == weak.targets)
        )
        assert gain.low <= gain.value <= gain.high
        assert gain.high - gain.low < 0.5 * (score.high - score.low)
        assert gain.method == "bootstrap"

    def test_two_perfect_models_may_still_differ_on_unseen_rows(self) -> None:
        first, second = resample([perfect(20), perfect(20)], n_bootstrap=50)
        gain = second.minus(first)["auroc"]
        assert gain.value == 0
        assert gain.high == -gain.low > 0

    def test_an_undefined_score_has_no_difference(self) -> None:
        predictions = binary([1, 1], [0.3, 0.8])
        first, second = resample([predictions, predictions], n_bootstrap=20)
        assert second.minus(first)["auroc"] is None


class TestCost:
    def test_the_studys_test_set_takes_little_memory(self) -> None:
        predictions = noisy(18_136)
        tracemalloc.start()
        scores = evaluate(predictions, n_bootstrap=100)
        peak_mib = tracemalloc.get_traced_memory()[1] / 2**20
        tracemalloc.stop()
        assert peak_mib < 60
        assert isinstance(scores["auroc"], Score)


class TestTables:
    @pytest.mark.parametrize("n_classes", [2, 3, 6])
    def test_confusion_matrix_equals_scikit_learns(self, n_classes: int) -> None:
        predictions = noisy(200, n_classes)
        expected = sklearn_confusion_matrix(predictions.targets, predictions.predicted)
        found = confusion_matrix(predictions)
        assert np.array_equal(found, expected)
        assert found.dtype == np.int64

    @pytest.mark.parametrize(
        "classes",
        [
            ("0", "1"),
            ("no-lvh", "lvh"),
            ("a", "b", "c"),
            ("Normal", "a class name much longer than the averages' names", "心室", "x", "y", "z"),
        ],
    )
    def test_report_equals_scikit_learns_to_the_character(self, classes: tuple[str, ...]) -> None:
        predictions = dataclasses.replace(noisy(250, len(classes)), classes=classes)
        expected = classification_report(
            predictions.targets, predictions.predicted, target_names=classes, digits=4
        )
        assert str(classification_table(predictions)) == expected

    def test_report_of_classes_never_predicted_or_absent_says_zero(self) -> None:
        # Class 1 is never predicted; class 2 has no rows.
        predictions = predictions_of([0, 0, 1, 0], np.eye(3)[[0, 0, 0, 2]])
        expected = classification_report(
            predictions.targets,
            predictions.predicted,
            labels=range(3),
            target_names=predictions.classes,
            digits=4,
            zero_division=0,
        )
        found = str(classification_table(predictions))
        assert found == expected
        assert "     class 1     0.0000    0.0000    0.0000         1\n" in found

    def test_table_holds_the_numbers_of_its_text(self) -> None:
        table = classification_table(binary([0, 0, 1, 1], [0.1, 0.6, 0.7, 0.8]))
        positive = table.rows[1]
        assert (positive.precision, positive.recall, positive.support) == (2 / 3, 1.0, 2)
        assert positive.f1 == pytest.approx(0.8)
        assert table.accuracy == 0.75
        assert table.macro.support == table.weighted.support == 4
