"""The scores' intervals, against SciPy, plain loops and simulation."""

from __future__ import annotations

import dataclasses
import tracemalloc

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import balanced_accuracy_score, roc_auc_score

from ecgfeat.metrics import (
    MAIN,
    METRICS,
    Score,
    bootstrap_weights,
    evaluate,
    in_id_order,
    resample,
)
from ecgfeat.metrics.intervals import _wilson, at_prevalence
from ecgfeat.metrics.scores import weighted_sums

from .samples import binary, noisy, perfect, predictions_of


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
        (weights,) = bootstrap_weights(np.arange(40), n_bootstrap=60, seed=5)
        drawn = {"balanced_accuracy": [], "auroc": []}
        for counts in weights.astype(int):
            rows = np.repeat(np.arange(40), counts)
            targets, probabilities = predictions.targets[rows], predictions.probabilities[rows]
            answers = predictions.predicted[rows]
            drawn["balanced_accuracy"].append(balanced_accuracy_score(targets, answers))
            drawn["auroc"].append(roc_auc_score(targets, probabilities, multi_class="ovr"))
        scores = evaluate(predictions, seed=5, n_bootstrap=60)
        for name, values in drawn.items():
            found = scores[name]
            expected = np.percentile(values, [2.5, 97.5])
            assert (found.low, found.high) == pytest.approx(tuple(expected), abs=1e-12)
            assert found.method == "bootstrap"

    @pytest.mark.parametrize("name", ["sensitivity", "specificity", "ppv", "npv"])
    def test_shares_of_ungrouped_rows_have_wilsons_interval_of_their_own_rows(
        self, name: str
    ) -> None:
        predictions = noisy(90, signal=0.8)
        rows = {
            "sensitivity": predictions.targets == 1,
            "specificity": predictions.targets == 0,
            "ppv": predictions.predicted == 1,
            "npv": predictions.predicted == 0,
        }[name]
        n_right = int((predictions.predicted == predictions.targets)[rows].sum())
        score = evaluate(predictions, n_bootstrap=10)[name]
        expected = stats.binomtest(n_right, int(rows.sum())).proportion_ci(method="wilson")
        assert (score.low, score.high) == pytest.approx((expected.low, expected.high), abs=1e-12)

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
        weights = np.concatenate(list(bootstrap_weights(units, 100, seed=0)))
        assert weights.shape == (100, 6)
        assert np.array_equal(weights[:, 0], weights[:, 4])
        assert np.array_equal(weights[:, 1], weights[:, 2])
        assert np.all(weights[:, [0, 1, 3, 5]].sum(axis=1) == 4)

    def test_the_same_resamples_come_in_any_chunks(self, monkeypatch: pytest.MonkeyPatch) -> None:
        units = np.arange(20)
        whole = np.concatenate(list(bootstrap_weights(units, 64, seed=3)))
        monkeypatch.setattr("ecgfeat.metrics.scores.CHUNK_WEIGHTS", 100)
        parts = list(bootstrap_weights(units, 64, seed=3))
        assert len(parts) == 13
        assert np.array_equal(np.concatenate(parts), whole)

    @pytest.mark.parametrize("shape", [(1, 1), (14, 5000), (3000, 90)])
    def test_sums_in_blocks_are_the_whole_product(self, shape: tuple[int, int]) -> None:
        random = np.random.default_rng(0)
        weights = random.integers(5, size=shape).astype(float)
        summands = random.normal(size=(shape[1], 31))
        np.testing.assert_allclose(weighted_sums(weights, summands), weights @ summands, atol=1e-9)

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


class TestCalibrationError:
    def test_a_calibrated_model_is_not_called_uncalibrated(self) -> None:
        # Its sample's error is noise alone; the resamples' percentiles hold the noise twice.
        n_missed = 0
        for seed in range(60):
            random = np.random.default_rng(seed)
            sure = random.uniform(size=200)
            score = evaluate(binary(random.random(200) < sure, sure), n_bootstrap=200)["ece"]
            assert 0.03 < score.value < 0.25
            assert score.low <= score.value <= score.high
            n_missed += score.low > 0
        assert n_missed <= 6

    def test_an_overconfident_models_interval_holds_the_truth_and_not_zero(self) -> None:
        hits, clear = 0, 0
        for seed in range(60):
            random = np.random.default_rng(seed)
            says_yes = random.integers(2, size=400)
            # Right in 70 of 100 rows, and 90 % sure of every one.
            targets = np.where(random.random(400) < 0.7, says_yes, 1 - says_yes)
            score = evaluate(binary(targets, 0.1 + 0.8 * says_yes), n_bootstrap=200)["ece"]
            hits += score.low <= 0.2 <= score.high
            clear += score.low > 0.05
        assert hits >= 54
        assert clear == 60


class TestPrevalence:
    def test_ppv_and_npv_follow_by_bayes_rule(self) -> None:
        scores = evaluate(noisy(400), n_bootstrap=20, prevalence=0.02)
        sensitivity, specificity = scores["sensitivity"].value, scores["specificity"].value
        positive, negative = 0.02 * sensitivity, 0.98 * specificity
        ppv, npv = scores["ppv_at_prevalence"], scores["npv_at_prevalence"]
        assert ppv.value == pytest.approx(positive / (positive + 0.98 * (1 - specificity)))
        assert npv.value == pytest.approx(negative / (negative + 0.02 * (1 - sensitivity)))
        for score in (ppv, npv):
            assert 0 < score.low < score.value < score.high < 1
            assert score.method == "mover-r"

    def test_at_the_rows_own_share_the_values_are_the_rows_own(self) -> None:
        predictions = noisy(400)
        own = float(predictions.targets.mean())
        scores = evaluate(predictions, n_bootstrap=20, prevalence=own)
        assert scores["ppv_at_prevalence"].value == pytest.approx(scores["ppv"].value)
        assert scores["npv_at_prevalence"].value == pytest.approx(scores["npv"].value)

    def test_they_are_told_only_where_asked_for(self) -> None:
        assert "ppv_at_prevalence" not in evaluate(noisy(40), n_bootstrap=10)
        assert "ppv_at_prevalence" not in evaluate(noisy(40, 3), n_bootstrap=10, prevalence=0.1)

    def test_a_perfect_specificity_of_few_rows_leaves_ppv_in_doubt(self) -> None:
        # Wilson's bounds for 50 of 50 are 0.929 and 1: up to 7 of 100 healthy may be alarms.
        ppv = evaluate(perfect(100), n_bootstrap=20, prevalence=0.01)["ppv_at_prevalence"]
        assert (ppv.value, ppv.high) == (1.0, 1.0)
        assert ppv.low < 0.2

    @pytest.mark.parametrize(("sensitivity", "specificity"), [(0.8, 0.9), (0.95, 1.0), (1.0, 0.97)])
    def test_ninety_five_of_a_hundred_intervals_hold_the_truth(
        self, sensitivity: float, specificity: float
    ) -> None:
        prevalence, n, hits = 0.1, 80, np.zeros(2)
        true = {
            "ppv": prevalence * sensitivity,
            "npv": (1 - prevalence) * specificity,
        }
        true["ppv"] /= true["ppv"] + (1 - prevalence) * (1 - specificity)
        true["npv"] /= true["npv"] + prevalence * (1 - sensitivity)
        for seed in range(300):
            random = np.random.default_rng(seed)
            shares = []
            for share in (sensitivity, specificity):
                n_right = int(random.binomial(n, share))
                ends = _wilson(n_right / n, n)
                shares.append(Score(n_right / n, *ends, "wilson"))
            found = at_prevalence(*shares, prevalence)
            hits += [
                score.low - 1e-12 <= value <= score.high + 1e-12
                for score, value in zip(found, true.values())
            ]
        assert (hits >= 0.92 * 300).all()

    def test_no_answer_that_is_ever_positive_leaves_ppv_undefined(self) -> None:
        scores = evaluate(binary([0, 1] * 20, [0.2] * 40), n_bootstrap=10, prevalence=0.1)
        assert scores["ppv"] is scores["ppv_at_prevalence"] is None
        assert scores["npv_at_prevalence"].value == pytest.approx(0.9)


class TestDegenerateIntervals:
    @pytest.mark.parametrize("n", [4, 40, 400])
    def test_perfect_scores_keep_the_doubt_of_few_rows(self, n: int) -> None:
        scores = evaluate(perfect(n), n_bootstrap=50)
        n_rarest = n // 2
        wilson = stats.binomtest(n_rarest, n_rarest).proportion_ci(method="wilson")
        for name in ("balanced_accuracy", "f1", "auroc", "average_precision"):
            assert scores[name].value == scores[name].high == 1.0
            assert scores[name].low == pytest.approx(wilson.low)
        for name in ("brier", "ece", "log_loss"):
            assert scores[name].value == scores[name].low == 0.0
            assert scores[name].high > 1.9 / (n + 4)

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
        scores = evaluate(predictions, n_bootstrap=50)
        for score in (scores[name] for name in MAIN):
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
        assert set(first.values) == set(METRICS) - {"ppv_at_prevalence", "npv_at_prevalence"}
        for name in first.values:
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
