from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import balanced_accuracy_score, log_loss, roc_auc_score

from ecgfeat.heads.sweep import SCORES, validation_scores, value_or_none


@settings(max_examples=20)
@given(n_classes=st.integers(2, 4), n_levels=st.sampled_from([3, 1000]), seed=st.integers(0, 999))
def test_the_scores_are_scikit_learn_s(n_classes: int, n_levels: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    targets = random.permutation(np.arange(40) % n_classes)
    # Few levels make ties, which count half.
    powers = random.integers(1, n_levels + 1, size=(40, n_classes)).astype(np.float64)
    probabilities = powers / powers.sum(axis=1, keepdims=True)
    found = dict(zip(SCORES, validation_scores(probabilities[None], targets)[0], strict=True))
    answers = probabilities.argmax(axis=1)
    areas = [
        roc_auc_score(targets == k, probabilities[:, k])
        for k in ([1] if n_classes == 2 else range(n_classes))
    ]
    assert found["log_loss"] == pytest.approx(log_loss(targets, probabilities), abs=1e-12)
    assert found["accuracy"] == (answers == targets).mean()
    expected = balanced_accuracy_score(targets, answers)
    assert found["balanced_accuracy"] == pytest.approx(expected, abs=1e-12)
    assert found["auroc"] == pytest.approx(np.mean(areas), abs=1e-12)


def test_certainty_in_the_wrong_class_costs_much_but_is_finite() -> None:
    probabilities = np.array([[1.0, 0.0], [1.0, 0.0]])
    scores = dict(
        zip(SCORES, validation_scores(probabilities[None], np.array([0, 1]))[0], strict=True)
    )
    assert scores["log_loss"] == pytest.approx(36.04365338911715 / 2)
    assert scores["auroc"] == 0.5


def test_a_head_that_diverged_has_no_scores() -> None:
    probabilities = np.array([[0.5, 0.5], [np.nan, np.nan]])
    assert np.isnan(validation_scores(probabilities[None], np.array([0, 1]))).all()


def test_a_score_that_is_none_is_written_as_none() -> None:
    assert value_or_none(0.5) == 0.5
    assert value_or_none(np.nan) is None
    assert value_or_none(-np.inf) is None
