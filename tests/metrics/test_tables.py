"""Confusion matrix and classification report, against scikit-learn's."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from sklearn.metrics import classification_report
from sklearn.metrics import confusion_matrix as sklearn_confusion_matrix

from ecgfeat.metrics import classification_table, confusion_matrix

from .samples import binary, noisy, predictions_of


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
        assert classification_table(predictions) == expected

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
        found = classification_table(predictions)
        assert found == expected
        assert "     class 1     0.0000    0.0000    0.0000         1\n" in found

    def test_the_table_of_four_rows_is_what_one_works_out_by_hand(self) -> None:
        table = classification_table(binary([0, 0, 1, 1], [0.1, 0.6, 0.7, 0.8]))
        lines = {line[:12].strip(): line.split()[-4:] for line in table.splitlines() if line}
        assert lines["class 1"] == ["0.6667", "1.0000", "0.8000", "2"]
        assert lines["accuracy"][-2:] == ["0.7500", "4"]
        assert lines["macro avg"][-1] == lines["weighted avg"][-1] == "4"
