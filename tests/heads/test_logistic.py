from __future__ import annotations

import operator
import threading
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

import ecgfeat.heads.logistic as logistic_module
from ecgfeat.errors import DataError, Interrupted
from ecgfeat.heads import (
    LogisticFit,
    as_pipeline,
    fit_logistic,
    fit_logistic_path,
    head_probabilities,
)

from .test_linear import some_features

CS = [10.0, 0.001, 0.1]


@pytest.fixture
def in_small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several tasks of several chunks, the last of each with fewer rows, as large data have."""
    monkeypatch.setattr(logistic_module, "TASK_ROWS", 64)
    monkeypatch.setattr(logistic_module, "CHUNK_BYTES", 8 * 12 * 10)


def scikit_learns(
    X: NDArray[np.float32], y: NDArray[np.int64], *, C: float, balanced: bool = False
) -> Pipeline:
    weights = "balanced" if balanced else None
    model = LogisticRegression(C=C, tol=1e-9, max_iter=20_000, class_weight=weights)
    return make_pipeline(StandardScaler(), model).fit(X.astype(np.float64), y)


def objective(
    pipeline: Pipeline, X: NDArray[np.float32], y: NDArray[np.int64], C: float, balanced: bool
) -> float:
    log_likelihood = pipeline.predict_log_proba(X.astype(np.float64))[np.arange(len(y)), y]
    counts = np.bincount(y)
    weights = (len(y) / (len(counts) * counts))[y] if balanced else np.ones(len(y))
    return -float(weights @ log_likelihood) * C + (pipeline[-1].coef_ ** 2).sum() / 2


@pytest.mark.usefixtures("in_small_pieces")
@pytest.mark.parametrize("balanced", [False, True])
@pytest.mark.parametrize("n_classes", [2, 4])
def test_a_path_is_scikit_learns_optimum_at_each_c(n_classes: int, balanced: bool) -> None:
    X, y = some_features(n=340, n_classes=n_classes)
    rows = np.random.default_rng(0).permutation(np.arange(10, 310))
    fits = fit_logistic_path(X, y, rows, Cs=CS, balanced=balanced)
    assert [fit.C for fit in fits] == CS
    for C, fit in zip(CS, fits):
        expected = scikit_learns(X[rows], y[rows], C=C, balanced=balanced)
        found = as_pipeline(fit.tensors, range(n_classes))
        assert fit.converged
        least = objective(expected, X[rows], y[rows], C, balanced)
        loss = objective(found, X[rows], y[rows], C, balanced)
        assert loss == pytest.approx(least, rel=1e-6)
        probabilities = expected.predict_proba(X.astype(np.float64))
        np.testing.assert_allclose(head_probabilities(fit.tensors, X), probabilities, atol=1e-4)
        scaler = expected[0]
        np.testing.assert_allclose(fit.tensors["mean"], scaler.mean_, rtol=1e-12)
        np.testing.assert_allclose(fit.tensors["scale"], scaler.scale_, rtol=1e-12)


@pytest.mark.parametrize("balanced", [False, True])
@pytest.mark.parametrize("n_classes", [2, 4])
def test_few_rows_of_many_features_have_the_same_optimum(
    n_classes: int, balanced: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    X, y = some_features(n=70, width=160, n_classes=n_classes)
    X[:, 4] = 0.1
    rows = np.random.default_rng(0).permutation(np.arange(5, 65))
    fits = fit_logistic_path(X, y, rows, Cs=CS, balanced=balanced)
    monkeypatch.setattr(logistic_module, "SPAN_SHARE", 0.0)
    expected = fit_logistic_path(X, y, rows, Cs=CS, balanced=balanced)
    for C, fit, other in zip(CS, fits, expected):
        assert fit.converged
        np.testing.assert_array_equal(fit.tensors["mean"], other.tensors["mean"])
        np.testing.assert_allclose(fit.tensors["coef"], other.tensors["coef"], atol=1e-3)
        np.testing.assert_allclose(fit.tensors["coef"][:, 4], 0, atol=1e-9)
        least = objective(
            scikit_learns(X[rows], y[rows], C=C, balanced=balanced), X[rows], y[rows], C, balanced
        )
        found = as_pipeline(fit.tensors, range(n_classes))
        assert objective(found, X[rows], y[rows], C, balanced) == pytest.approx(least, rel=1e-6)


@pytest.mark.parametrize("C", [1.0, 100.0])
@pytest.mark.parametrize("width", [20, 100])
def test_classes_that_can_be_told_apart_exactly_are_no_harder(width: int, C: float) -> None:
    X, y = some_features(n=60, width=width)
    X[:, 3] += 100 * y
    fit = fit_logistic(X, y, np.arange(60), C=C)
    assert fit.converged
    least = objective(scikit_learns(X, y, C=C), X, y, C, False)
    found = objective(as_pipeline(fit.tensors, "ab"), X, y, C, False)
    assert found == pytest.approx(least, rel=1e-6)


def test_features_that_repeat_each_other_share_the_weight() -> None:
    X, y = some_features()
    once = fit_logistic(X, y, np.arange(200), C=0.2)
    twice = fit_logistic(np.hstack([X, X]), y, np.arange(200), C=0.1)
    for half in (slice(12), slice(12, 24)):
        coef = twice.tensors["coef"][:, half]
        np.testing.assert_allclose(2 * coef, once.tensors["coef"], atol=1e-4)


def test_features_far_from_zero_lose_nothing() -> None:
    X, y = some_features()
    far = (X + 4096).astype(np.float32)
    near = far - np.float32(4096)
    rows = np.arange(200)
    expected = head_probabilities(fit_logistic(near, y, rows, C=1.0).tensors, near)
    found = head_probabilities(fit_logistic(far, y, rows, C=1.0).tensors, far)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_a_feature_that_is_constant_in_training_is_only_centred() -> None:
    X, y = some_features()
    X[:, 4] = 0.1
    X[150:, 4] = 7
    fit = fit_logistic(X, y, np.arange(150), C=1.0)
    assert fit.tensors["mean"][4] == pytest.approx(np.float32(0.1))
    assert fit.tensors["scale"][4] == 1
    np.testing.assert_allclose(fit.tensors["coef"][:, 4], 0, atol=1e-12)
    assert np.isfinite(head_probabilities(fit.tensors, X)).all()


def test_the_path_goes_from_the_strongest_penalty_on_and_tells_each_fit() -> None:
    X, y = some_features()
    told: list[tuple[int, LogisticFit]] = []
    fits = fit_logistic_path(
        X, y, np.arange(200), Cs=CS, on_fit=lambda index, fit: told.append((index, fit))
    )
    assert [(index, fit.C) for index, fit in told] == [(1, 0.001), (2, 0.1), (0, 10.0)]
    assert all(fits[index] is fit for index, fit in told)
    again = fit_logistic_path(X, y, np.arange(200), Cs=[1.0, 1.0])
    assert all(fit.converged for fit in again)


def test_balanced_and_plain_fits_share_a_path() -> None:
    X, y = some_features()
    y[:60] = 1
    rows = np.arange(200)
    told: list[int] = []
    mixed = fit_logistic_path(
        X,
        y,
        rows,
        Cs=[1.0, 0.01, 1.0, 0.01],
        balanced=[True, True, False, False],
        on_fit=lambda index, fit: told.append(index),
    )
    assert told == [1, 3, 0, 2]
    for is_balanced, fits in ((True, mixed[:2]), (False, mixed[2:])):
        alone = fit_logistic_path(X, y, rows, Cs=[1.0, 0.01], balanced=is_balanced)
        for fit, other in zip(fits, alone):
            assert (fit.C, fit.converged) == (other.C, True)
            np.testing.assert_allclose(fit.tensors["coef"], other.tensors["coef"], atol=1e-4)
    assert np.abs(mixed[0].tensors["coef"] - mixed[2].tensors["coef"]).max() > 1e-2


def test_roots_that_take_too_much_memory_are_kept_a_few_at_a_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    X, y = some_features()
    together = fit_logistic_path(X, y, np.arange(200), Cs=CS)
    monkeypatch.setattr(logistic_module, "ROOT_BYTES", 1)
    apart = fit_logistic_path(X, y, np.arange(200), Cs=CS)
    for fit, other in zip(together, apart):
        np.testing.assert_allclose(fit.tensors["coef"], other.tensors["coef"], atol=1e-5)


def test_two_runs_are_bit_for_bit_the_same() -> None:
    X, y = some_features(width=41)
    Cs = np.geomspace(1e-4, 10, 13).tolist()
    runs = [fit_logistic_path(X, y, np.arange(200), Cs=Cs) for _ in range(3)]
    for fits in runs[1:]:
        for fit, other in zip(fits, runs[0]):
            np.testing.assert_array_equal(fit.tensors["coef"], other.tensors["coef"])


@pytest.mark.parametrize("place", ["_Likelihood._losses", "_SharedPasses.evaluate"])
def test_a_fit_that_fails_ends_those_that_wait_for_it(
    place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    X, y = some_features()
    usual = operator.attrgetter(place)(logistic_module)

    def fail(*arguments: Any) -> object:
        if place == "_Likelihood._losses" or arguments[1] == 1:  # of C = 0.1, which others await
            raise MemoryError
        return usual(*arguments)

    monkeypatch.setattr(f"{logistic_module.__name__}.{place}", fail)
    with ThreadPoolExecutor(1) as thread:
        fit = thread.submit(fit_logistic_path, X, y, np.arange(200), Cs=CS)
        assert isinstance(fit.exception(timeout=30), MemoryError)


def test_what_can_not_be_fitted_is_refused_in_words() -> None:
    X, y = some_features(n_classes=3)
    for rows in (np.flatnonzero(y == 0), np.flatnonzero(y > 0), np.flatnonzero(y < 2)):
        with pytest.raises(DataError, match="a class has no row to train on"):
            fit_logistic(X, y, rows, C=1.0)
    X[3, 2] = np.nan
    with pytest.raises(DataError, match="some features aren't finite"):
        fit_logistic(X, y, np.arange(200), C=1.0)


def test_what_the_caller_raises_ends_the_path() -> None:
    X, y = some_features()
    told = []
    n_threads = threading.active_count()

    def stop(index: int, fit: LogisticFit) -> None:
        told.append(index)
        raise Interrupted

    with pytest.raises(Interrupted):
        fit_logistic_path(X, y, np.arange(200), Cs=CS, on_fit=stop)
    assert told == [1]
    assert threading.active_count() == n_threads


@pytest.mark.usefixtures("in_small_pieces")
def test_the_number_of_threads_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    X, y = some_features()
    coefs = []
    for n_threads in (1, 3):
        monkeypatch.setattr(logistic_module, "n_cpus", lambda n=n_threads: n)
        fits = fit_logistic_path(X, y, np.arange(200), Cs=[0.1, 1.0, 10.0])
        coefs.append([fit.tensors["coef"] for fit in fits])
    np.testing.assert_array_equal(*coefs)


def test_the_features_are_never_copied_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logistic_module, "n_cpus", lambda: 2)  # each core holds some of them
    random = np.random.default_rng(0)
    X = random.normal(size=(40_000, 120)).astype(np.float32)
    y = (X[:, 0] + random.normal(size=len(X)) > 0).astype(np.int64)
    fit_logistic(X[:200], y[:200], np.arange(200), C=1.0)  # what is imported late doesn't count
    tracemalloc.start()
    fit_logistic(X, y, np.arange(len(X)), C=1.0)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < X.nbytes


def test_features_that_go_together_take_no_more_iterations() -> None:
    random = np.random.default_rng(0)
    hidden = random.normal(size=(2000, 6)) * np.geomspace(10, 0.1, 6)
    X = (hidden @ random.normal(size=(6, 80)) + 0.01 * random.normal(size=(2000, 80))).astype("f4")
    y = (hidden[:, 3:].sum(axis=1) + random.normal(size=2000) > 0).astype(np.int64)
    for fit in fit_logistic_path(X, y, np.arange(2000), Cs=[0.001, 1.0, 100.0]):
        assert fit.converged
        assert fit.n_iterations <= 40
        least = objective(scikit_learns(X, y, C=fit.C), X, y, fit.C, False)
        found = objective(as_pipeline(fit.tensors, (0, 1)), X, y, fit.C, False)
        assert found <= least * (1 + 1e-6)


@pytest.mark.parametrize("n_classes", [2, 3])
def test_stored_arrays_make_a_scikit_learn_pipeline(n_classes: int) -> None:
    X, y = some_features(n_classes=n_classes)
    tensors = fit_logistic(X, y, np.arange(200), C=1.0).tensors
    names = ["normal", "abnormal", "other"][:n_classes]
    pipeline = as_pipeline(tensors, names)
    probabilities = head_probabilities(tensors, X)
    exact = X.astype(np.float64)
    np.testing.assert_allclose(pipeline.predict_proba(exact), probabilities, atol=1e-14)
    np.testing.assert_allclose(pipeline.predict_proba(X), probabilities, atol=1e-4)
    assert pipeline.predict(exact).tolist() == [names[i] for i in probabilities.argmax(1)]
    assert isinstance(pipeline[0], StandardScaler)
    assert isinstance(pipeline[1], LogisticRegression)


def test_a_pipeline_is_made_of_logistic_regression_only() -> None:
    linear = {"weight": np.zeros((2, 3), np.float32), "bias": np.zeros(2, np.float32)}
    with pytest.raises(ValueError, match=r"need the arrays of a logistic regression .* 2 classes"):
        as_pipeline(linear, ["a", "b"])


def test_huge_logits_give_probabilities_of_zero_and_one() -> None:
    tensors = {"coef": np.array([[1e6]]), "intercept": np.zeros(1)}
    scaling = {"mean": np.zeros(1), "scale": np.ones(1)}
    X = np.array([[-1], [1]], np.float32)
    np.testing.assert_array_equal(head_probabilities(tensors | scaling, X), [[1, 0], [0, 1]])
