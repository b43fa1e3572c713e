"""Tests between two models, against hand-worked cases, other code and simulation."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import roc_auc_score

from ecgfeat.metrics import compare_areas, holm, p_in_words


def direct_variance(is_positive: np.ndarray, first: np.ndarray, second: np.ndarray) -> float:
    """Variance of the difference of two AUROCs, pair of rows by pair of rows.

    DeLong et al. 1988, equations 4 to 7.
    """
    components = []
    for scores in (first, second):
        kernel = np.heaviside(scores[is_positive][:, None] - scores[~is_positive], 0.5)
        components.append((kernel.mean(axis=1), kernel.mean(axis=0)))
    m, n = is_positive.sum(), (~is_positive).sum()
    by_positive = np.cov([component[0] for component in components])
    by_negative = np.cov([component[1] for component in components])
    s = by_positive / m + by_negative / n
    return float(s[0, 0] + s[1, 1] - 2 * s[0, 1])


def models(
    n: int, *, seed: int = 0, gain: float = 0.0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Targets and the scores of two models that see some of the same noise."""
    random = np.random.default_rng(seed)
    is_positive = random.random(n) < 0.4
    shared = random.normal(size=n) + is_positive
    return (
        is_positive,
        shared + random.normal(size=n),
        shared + random.normal(size=n) + gain * is_positive,
    )


class TestDeLong:
    def test_a_case_worked_by_hand(self) -> None:
        is_positive = np.array([True, True, True, False, False])
        first = np.array([3.0, 4.0, 1.0, 2.0, 0.0])
        second = np.array([4.0, 3.0, 2.0, 1.0, 0.0])
        # First: pairs won by the positives 1, 1, 1/2; by negatives 2/3, 1. AUROC 5/6.
        # Second: all. Only the first varies: by positives (1/36 + 1/36 + 4/36) / 2 = 1/12,
        # by negatives 2 · 1/36 / 1 = 1/18. Variance 1/12 / 3 + 1/18 / 2 = 1/18.
        (found,) = compare_areas(is_positive, [first, second], np.arange(5)).values()
        assert found.value == pytest.approx(1 / 6)
        error = np.sqrt(1 / 18)
        assert (found.low, found.high) == pytest.approx(
            (1 / 6 - 1.959964 * error, 1 / 6 + 1.959964 * error)
        )
        assert found.p_value == pytest.approx(2 * stats.norm.sf(1 / 6 / error))

    @pytest.mark.parametrize("n_levels", [3, 10, 10_000])
    def test_ranks_give_what_pairs_of_rows_give(self, n_levels: int) -> None:
        is_positive, *scores = models(80)
        first, second = (np.round(s * n_levels / 10) for s in scores)
        (found,) = compare_areas(is_positive, [first, second], np.arange(80)).values()
        areas = [roc_auc_score(is_positive, s) for s in (first, second)]
        assert found.value == pytest.approx(areas[1] - areas[0])
        error = (found.high - found.low) / (2 * stats.norm.ppf(0.975))
        assert error**2 == pytest.approx(direct_variance(is_positive, first, second))

    def test_every_two_of_several_models_are_tested(self) -> None:
        is_positive, first, second = models(60)
        third = -first
        found = compare_areas(is_positive, [first, second, third], np.arange(60))
        assert list(found) == [(0, 1), (0, 2), (1, 2)]
        for (i, j), test in found.items():
            pair = [(first, second, third)[k] for k in (i, j)]
            (alone,) = compare_areas(is_positive, pair, np.arange(60)).values()
            assert test.p_value == pytest.approx(alone.p_value)

    @pytest.mark.parametrize("gain", [0.0, 0.6])
    def test_its_interval_is_the_bootstraps(self, gain: float) -> None:
        is_positive, first, second = models(300, gain=gain)
        (found,) = compare_areas(is_positive, [first, second], np.arange(300)).values()
        random = np.random.default_rng(1)
        drawn = []
        for _ in range(400):
            rows = random.integers(300, size=300)
            areas = [roc_auc_score(is_positive[rows], s[rows]) for s in (first, second)]
            drawn.append(areas[1] - areas[0])
        assert (found.low, found.high) == pytest.approx(np.percentile(drawn, (2.5, 97.5)), abs=0.01)
        assert (found.p_value < 0.05) == (gain > 0)

    def test_equal_models_are_rejected_in_five_of_a_hundred_samples(self) -> None:
        p_values = []
        for seed in range(400):
            is_positive, first, second = models(100, seed=seed)
            (found,) = compare_areas(is_positive, [first, second], np.arange(100)).values()
            p_values.append(found.p_value)
        # The binomial's 99.9 % range around 5 %.
        assert 7 <= np.sum(np.array(p_values) < 0.05) <= 36

    def test_models_that_rank_alike_do_not_differ(self) -> None:
        is_positive, first, _ = models(50)
        (found,) = compare_areas(is_positive, [first, np.exp(first)], np.arange(50)).values()
        assert (found.value, found.low, found.high, found.p_value) == (0, 0, 0, 1)

    def test_what_has_no_variance_to_judge_by_is_undefined(self) -> None:
        is_positive = np.arange(10) < 5
        perfect = is_positive.astype(float)
        for scores in ([perfect, 1 - perfect], [perfect, np.zeros(10)]):
            assert compare_areas(is_positive, scores, np.arange(10)) == {(0, 1): None}
        only_one = np.arange(10) < 1
        noise = np.random.default_rng(0).normal(size=(2, 10))
        assert compare_areas(only_one, list(noise), np.arange(10)) == {(0, 1): None}
        assert compare_areas(np.ones(10, bool), list(noise), np.arange(10)) == {(0, 1): None}


class TestClusters:
    def test_copies_of_rows_in_one_group_prove_nothing_more(self) -> None:
        is_positive, first, second = models(60)
        rows = np.repeat(np.arange(60), 5)
        (alone,) = compare_areas(is_positive, [first, second], np.arange(60)).values()
        copied = (is_positive[rows], [first[rows], second[rows]])
        (grouped,) = compare_areas(*copied, rows).values()
        (ungrouped,) = compare_areas(*copied, np.arange(300)).values()
        assert grouped.p_value == pytest.approx(alone.p_value)
        assert (grouped.low, grouped.high) == pytest.approx((alone.low, alone.high))
        assert ungrouped.high - ungrouped.low < 0.5 * (alone.high - alone.low)

    def test_mixed_groups_follow_obuchowskis_formula(self) -> None:
        random = np.random.default_rng(0)
        is_positive, first, second = models(40)
        units = random.integers(12, size=40)
        units[:12] = np.arange(12)
        (found,) = compare_areas(is_positive, [first, second], units).values()
        kernels = [
            np.heaviside(s[is_positive][:, None] - s[~is_positive], 0.5) for s in (first, second)
        ]
        difference = kernels[1] - kernels[0]
        gain = difference.mean()
        m, n = difference.shape
        x = np.array(
            [(difference.mean(axis=1) - gain)[units[is_positive] == u].sum() for u in range(12)]
        )
        y = np.array(
            [(difference.mean(axis=0) - gain)[units[~is_positive] == u].sum() for u in range(12)]
        )
        n_x, n_y = len(set(units[is_positive])), len(set(units[~is_positive]))
        variance = (
            n_x / (n_x - 1) * (x @ x) / m**2
            + n_y / (n_y - 1) * (y @ y) / n**2
            + 2 * 12 / 11 * (x @ y) / (m * n)
        )
        error = (found.high - found.low) / (2 * stats.norm.ppf(0.975))
        assert error**2 == pytest.approx(variance)

    def test_equal_models_on_groups_are_rejected_in_five_of_a_hundred_samples(self) -> None:
        n_rejected = {"by group": 0, "by row": 0}
        for seed in range(300):
            random = np.random.default_rng(seed)
            units = np.repeat(np.arange(40), 4)
            is_positive = units % 2 == 0  # a patient has a disease, or hasn't
            shared = random.normal(size=40)[units] + is_positive
            scores = [shared + 1.5 * random.normal(size=40)[units] for _ in range(2)]
            (found,) = compare_areas(is_positive, scores, units).values()
            n_rejected["by group"] += found.p_value < 0.05
            (found,) = compare_areas(is_positive, scores, np.arange(160)).values()
            n_rejected["by row"] += found.p_value < 0.05
        # The binomial's 99.9 % range around 5 %; as independent rows they would deceive.
        assert 4 <= n_rejected["by group"] <= 28
        assert n_rejected["by row"] > 60


class TestHolm:
    def test_holms_own_steps(self) -> None:
        assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])

    def test_an_adjusted_value_is_at_most_one_and_no_less_than_the_one_before(self) -> None:
        p_values = np.random.default_rng(0).random(12).tolist()
        adjusted = holm(p_values)
        order = np.argsort(p_values)
        assert all(a <= b for a, b in itertools.pairwise(np.array(adjusted)[order]))
        assert all(p <= a <= 1 for p, a in zip(p_values, adjusted))

    def test_one_test_is_left_as_it_is_and_none_counts_for_nothing(self) -> None:
        assert holm([0.03]) == [0.03]
        assert holm([None, 0.03, None, 0.0]) == [None, 0.03, None, 0.0]
        assert holm([]) == []


def test_a_p_is_three_digits_and_never_nought() -> None:
    assert p_in_words(None) == "–"
    assert p_in_words(0.04567) == "0.0457"
    assert p_in_words(2.77e-33) == "2.77e-33"
    assert p_in_words(0.0) == "<1e-300"
