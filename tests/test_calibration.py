"""Decisions: calibration and operating points, and what is no decision."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize, special
from sklearn.linear_model import LogisticRegression

from ecgfeat.calibration import Decision, decide, refuse_undecidable
from ecgfeat.config import EvaluationSettings
from ecgfeat.errors import ConfigError, DataError
from ecgfeat.predictions import Predictions
from ecgfeat.runs import decision_from

CALIBRATE = EvaluationSettings(calibrate=True)


def predictions_of(targets: np.ndarray, logits: np.ndarray) -> Predictions:
    n = len(targets)
    return Predictions(
        ids=tuple(map(str, range(n))),
        classes=tuple("abcdefgh"[: logits.shape[1]]),
        targets=np.asarray(targets, np.int64),
        probabilities=special.softmax(logits, axis=1),
        groups=("",) * n,
        split="validation",
        folds=np.zeros(n, np.int64),
    )


def overconfident(
    n: int = 4000, n_classes: int = 2, *, temperature: float = 2.5, offset: float = 0.0
) -> Predictions:
    """Rows whose true probabilities have logits that much smaller, and shifted."""
    random = np.random.default_rng(n_classes)
    logits = random.normal(0, 2, (n, n_classes))
    true = special.softmax(logits + offset * (np.arange(n_classes) == n_classes - 1), axis=1)
    targets = (true.cumsum(axis=1) < random.random((n, 1))).sum(axis=1)
    return predictions_of(targets, logits * temperature)


def log_loss(predictions: Predictions) -> float:
    rows = np.arange(len(predictions))
    return float(-np.log(predictions.probabilities[rows, predictions.targets]).mean())


@pytest.mark.parametrize("n_classes", [2, 3, 6])
def test_a_temperature_of_overconfident_rows_is_found(n_classes: int) -> None:
    validation = overconfident(n_classes=n_classes)
    decision = decide(validation, method="temperature", settings=CALIBRATE)
    assert decision.method == "temperature"
    assert 1 / decision.slope == pytest.approx(2.5, rel=0.1)
    calibrated = decision.apply(validation)
    assert log_loss(calibrated) < log_loss(validation) - 0.05
    assert np.array_equal(calibrated.predicted, validation.predicted)
    assert calibrated.answers is None


@pytest.mark.parametrize("method", ["temperature", "platt"])
def test_a_model_that_is_wrong_and_certain_of_it_is_calibrated_too(method: str) -> None:
    targets = np.arange(48) % 2
    logits = np.where(np.arange(48)[:, np.newaxis] < 20, 300, -300) * np.array([-1, 1])
    validation = predictions_of(targets, logits)
    decision = decide(validation, method=method, settings=CALIBRATE)  # type: ignore[arg-type]
    assert log_loss(validation) > 200
    assert log_loss(decision.apply(validation)) < 1


def test_the_temperature_is_where_the_smoothed_loss_is_least() -> None:
    validation = overconfident(40, 3)
    n_rows = np.bincount(validation.targets)
    targets = np.where(
        np.arange(3) == validation.targets[:, np.newaxis],
        ((n_rows + 1) / (n_rows + 3))[validation.targets][:, np.newaxis],
        (1 / (n_rows + 3))[validation.targets][:, np.newaxis],
    )
    assert targets.sum(axis=1) == pytest.approx(np.ones(40))

    def loss(slope: float) -> float:
        logs = special.log_softmax(slope * np.log(validation.probabilities), axis=1)
        return -float((targets * logs).sum(axis=1).mean())

    best = optimize.minimize_scalar(loss, bounds=(0.01, 5), options={"xatol": 1e-9}).x
    decision = decide(validation, method="temperature", settings=CALIBRATE)
    assert decision.slope == pytest.approx(best, rel=1e-5)


def test_platts_line_is_logistic_regression_on_the_logit() -> None:
    validation = overconfident(20_000, offset=1.0)
    decision = decide(validation, method="platt", settings=CALIBRATE)
    logit = np.log(validation.probabilities[:, 1] / validation.probabilities[:, 0])
    fit = LogisticRegression(C=np.inf).fit(logit[:, np.newaxis], validation.targets)
    # Platt's targets shy away from 0 and 1 by one row of each class.
    assert decision.slope == pytest.approx(fit.coef_[0, 0], rel=0.01)
    assert decision.offset == pytest.approx(fit.intercept_[0], abs=0.01)
    calibrated = decision.probabilities(validation.probabilities)
    expected = special.expit(decision.slope * logit + decision.offset)
    assert calibrated[:, 1] == pytest.approx(expected, abs=1e-12)
    assert calibrated.sum(axis=1) == pytest.approx(np.ones(20_000))


def test_platt_of_three_classes_gives_way_to_temperature() -> None:
    validation = overconfident(n_classes=3)
    by_platt, by_temperature = (
        decide(validation, method=method, settings=CALIBRATE) for method in ("platt", "temperature")
    )
    assert by_platt == by_temperature


@pytest.mark.parametrize("method", ["temperature", "platt"])
@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_any_rows_give_a_decision_that_keeps_their_order(method: str, data: st.DataObject) -> None:
    n = data.draw(st.integers(1, 12))
    targets = np.array(data.draw(st.lists(st.integers(0, 1), min_size=n, max_size=n)))
    logit = data.draw(st.lists(st.floats(-800, 800), min_size=n, max_size=n))
    validation = predictions_of(targets, np.column_stack([np.zeros(n), logit]))
    decision = decide(validation, method=method, settings=CALIBRATE)
    calibrated = decision.probabilities(validation.probabilities)
    assert np.isfinite(calibrated).all()
    # Near 1 a probability's double can't tell the rows apart, but 1 minus it can.
    assert (np.diff(calibrated[np.argsort(logit), 1]) >= -1e-12).all()
    assert decision == decision_from(json.loads(json.dumps(decision.as_json())))


def test_rows_all_answered_right_stay_short_of_certainty() -> None:
    targets = np.arange(20) % 2
    validation = predictions_of(targets, 3.0 * np.eye(2)[targets])
    for method in ("temperature", "platt"):
        decision = decide(validation, method=method, settings=CALIBRATE)
        calibrated = decision.probabilities(validation.probabilities)
        # Platt 1999: of 10 rows, (10 + 1) / (10 + 2) are to be believed.
        assert calibrated[targets == 1, 1] == pytest.approx(np.full(10, 11 / 12), abs=1e-6)


@pytest.mark.parametrize(("share", "n_found"), [(0.95, 19), (0.951, 20), (0.5, 10), (0.01, 1)])
def test_the_threshold_is_the_highest_that_finds_the_share(share: float, n_found: int) -> None:
    targets = np.repeat([1, 0], [20, 30])
    random = np.random.default_rng(0)
    logits = np.column_stack([np.zeros(50), random.normal(size=50)])
    validation = predictions_of(targets, logits)
    at = EvaluationSettings(at_sensitivity=share)
    decision = decide(validation, method="temperature", settings=at)
    assert (decision.method, decision.slope) == ("none", 1.0)
    answered = decision.apply(validation)
    np.testing.assert_array_equal(answered.probabilities, validation.probabilities)
    assert answered.predicted[targets == 1].sum() == n_found
    assert decision.threshold is not None
    higher = replace(decision, threshold=np.nextafter(decision.threshold, 1))
    assert higher.apply(validation).predicted[targets == 1].sum() == n_found - 1


def test_the_threshold_is_on_calibrated_probabilities() -> None:
    validation = overconfident(offset=1.0)
    both = EvaluationSettings(calibrate=True, at_sensitivity=0.9)
    decision = decide(validation, method="platt", settings=both)
    answered = decision.apply(validation)
    positive = validation.targets == 1
    assert answered.predicted[positive].mean() == pytest.approx(0.9, abs=1e-3)
    assert decision.threshold in answered.probabilities[positive, 1]
    words = decision.in_words()
    assert words.startswith("Platt's slope 0.3756, offset 1.009")
    assert words.endswith(f", positive from {decision.threshold:.4g}")


def test_an_operating_point_without_positive_rows_is_refused() -> None:
    validation = predictions_of(np.zeros(3), np.zeros((3, 2)))
    with pytest.raises(DataError) as caught:
        decide(validation, method="platt", settings=EvaluationSettings(at_sensitivity=0.9))
    assert str(caught.value) == (
        "--at-sensitivity needs positive validation rows, and there are none of 'b': give a "
        "larger --val-fraction"
    )


def test_no_decision_changes_nothing() -> None:
    predictions = overconfident(30)
    after = Decision().apply(predictions)
    assert after.probabilities.tobytes() == predictions.probabilities.tobytes()
    assert after.answers is None
    assert decide(predictions, method="platt", settings=EvaluationSettings()) == Decision()
    assert Decision().in_words() == ""


SOUND = {"method": "temperature", "slope": 0.5, "offset": 0.0, "threshold": None}


@pytest.mark.parametrize(
    "fields",
    [
        None,
        [],
        {},
        {"method": "none"},
        {**SOUND, "method": ["none"]},
        {**SOUND, "method": "isotonic"},
        {**SOUND, "method": "none"},
        {**SOUND, "offset": 1.0},
        *({**SOUND, "slope": slope} for slope in (0.0, -1.0, 1e4, np.nan, True, "1", 10**400)),
        {**SOUND, "method": "platt", "offset": np.inf},
        *({**SOUND, "threshold": threshold} for threshold in (1.5, -0.1, np.nan, [0.5], False)),
    ],
)
def test_what_is_no_decision_is_refused(fields: object) -> None:
    with pytest.raises(
        ValueError,
        match=r"a field is missing|calibration|threshold|slope",
    ):
        decision_from(fields)


def test_fields_of_later_versions_are_passed_over() -> None:
    found = decision_from({**SOUND, "fitted_on": "validation"})
    assert found == Decision(method="temperature", slope=0.5)


def test_a_decision_between_two_classes_refuses_three() -> None:
    three = overconfident(10, 3)
    for decision in (Decision(method="platt"), Decision(threshold=0.5)):
        with pytest.raises(ValueError, match="a decision between two classes, for 3"):
            decision.apply(three)


@pytest.mark.parametrize(
    ("given", "n_classes", "has_validation", "message"),
    [
        (
            {"calibrate": True},
            2,
            False,
            "--calibrate is fixed on validation rows, and there are none: also give "
            "--val-fraction, such as 0.2",
        ),
        (
            {"at_sensitivity": 0.95},
            2,
            False,
            "--at-sensitivity is fixed on validation rows, and there are none: also give "
            "--val-fraction, such as 0.2",
        ),
        (
            {"at_sensitivity": 0.95},
            3,
            True,
            "--at-sensitivity 0.95 needs a binary task, and this one has 3 classes: say with "
            "--positive which of them count as positive",
        ),
        (
            {"prevalence": 0.02},
            6,
            False,
            "--prevalence 0.02 needs a binary task, and this one has 6 classes: say with "
            "--positive which of them count as positive",
        ),
        ({"prevalence": 0.02, "calibrate": True, "at_sensitivity": 0.95}, 2, True, None),
        ({"calibrate": True}, 6, True, None),
        ({}, 6, False, None),
    ],
)
def test_options_a_task_cannot_follow_are_refused(
    given: dict[str, float], n_classes: int, has_validation: bool, message: str | None
) -> None:
    found = None
    try:
        refuse_undecidable(
            EvaluationSettings(**given), n_classes=n_classes, has_validation=has_validation
        )
    except ConfigError as error:
        found = str(error)
    assert found == message
