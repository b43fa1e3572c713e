"""Runs set side by side, and those that can't be."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from ecgfeat.calibration import Decision
from ecgfeat.comparison import compare, differing_settings
from ecgfeat.errors import RunError
from ecgfeat.metrics import evaluate, holm, mcnemar_p_value
from ecgfeat.predictions import Predictions
from ecgfeat.runs import Cost, Result, Run, write_run

COST = Cost(
    wall_s=4.2,
    features_s=0.0,
    images_per_s=9000.0,
    peak_memory_mib=812.0,
    arch="resnet18",
    batch_size=64,
    device="cpu",
    precision="fp32",
)
TARGETS = np.arange(40) % 2


def predictions_of(seed: int, *, signal: float = 1.0, n: int = 40) -> Predictions:
    random = np.random.default_rng(seed)
    positive = 1 / (1 + np.exp(-random.normal(size=n) - signal * (2 * TARGETS[:n] - 1)))
    return Predictions(
        ids=tuple(f"test/{index:03d}.png" for index in range(n)),
        classes=("normal", "mi"),
        targets=TARGETS[:n],
        probabilities=np.stack([1 - positive, positive], axis=1),
        groups=("",) * n,
        split="test",
        folds=np.zeros(n, dtype=np.int64),
    )


def run_of(name: str, predictions: Predictions, *, kind: str = "linear") -> Run:
    """A finished run that was never on disk."""
    run = Run(
        path=Path("/runs") / name,
        config={"kind": kind, "data": "pages"},
        metrics={"cost": dataclasses.asdict(COST), "test_rows": f"all {len(predictions)}"},
    )
    run.__dict__["predictions"] = predictions
    return run


def rows_of(predictions: Predictions, rows: Sequence[int]) -> Predictions:
    return dataclasses.replace(
        predictions,
        ids=tuple(predictions.ids[row] for row in rows),
        targets=predictions.targets[rows],
        probabilities=predictions.probabilities[rows],
        groups=tuple(predictions.groups[row] for row in rows),
        folds=predictions.folds[rows],
    )


def refusal(*runs: Run) -> str:
    with pytest.raises(RunError) as caught:
        compare(runs)
    return str(caught.value)


class TestCompare:
    def test_three_runs_give_three_scores_and_three_pairs(self) -> None:
        runs = [
            run_of("a", predictions_of(0)),
            run_of("b", predictions_of(1), kind="logreg"),
            run_of("c", predictions_of(2), kind="finetune"),
        ]
        comparison = compare(runs)
        assert [run.name for run in comparison.runs] == ["a", "b", "c"]
        assert [run.label for run in comparison.runs] == [
            "Linear head",
            "Logistic regression",
            "Fine-tuning",
        ]
        assert [(pair.first, pair.second) for pair in comparison.pairs] == [
            ("a", "b"),
            ("a", "c"),
            ("b", "c"),
        ]
        assert comparison.title == "3 runs on pages, same test rows: all 40, positive: mi"
        assert comparison.runs[0].cost == COST

    def test_scores_are_those_the_runs_were_kept_with(self) -> None:
        first, second = predictions_of(0), predictions_of(1)
        comparison = compare([run_of("a", first), run_of("b", second)])
        assert comparison.runs[0].scores == evaluate(first)
        assert comparison.runs[1].scores == evaluate(second)

    def test_a_difference_is_the_second_minus_the_first(self) -> None:
        weak, strong = predictions_of(0, signal=0.2), predictions_of(0, signal=2.0)
        (pair,) = compare([run_of("weak", weak), run_of("strong", strong)]).pairs
        n_weak, n_strong = (np.sum(p.predicted == p.targets) for p in (weak, strong))
        gain = pair.differences["accuracy"]
        assert n_strong > n_weak
        assert gain.value == pytest.approx((n_strong - n_weak) / 40)
        assert 0 < gain.low < gain.value < gain.high < 1
        assert pair.n_second_only - pair.n_first_only == n_strong - n_weak
        assert not pair.is_identical

    def test_rows_in_another_order_are_matched_by_id(self) -> None:
        first, second = predictions_of(0), predictions_of(1)
        shuffled = rows_of(second, np.random.default_rng(0).permutation(40))
        in_order = compare([run_of("a", first), run_of("b", second)])
        assert compare([run_of("a", first), run_of("b", shuffled)]) == in_order

    def test_identical_runs_differ_by_exactly_nothing(self) -> None:
        predictions = predictions_of(0)
        (pair,) = compare([run_of("a", predictions), run_of("b", predictions)]).pairs
        assert pair.is_identical
        assert (pair.n_first_only, pair.n_second_only, pair.p_value) == (0, 0, 1.0)
        for score in pair.differences.values():
            assert (score.value, score.low, score.high) == (0.0, 0.0, 0.0)

    def test_groups_of_several_rows_are_resampled_and_tested_whole(self) -> None:
        groups = tuple(f"patient {row // 4}" for row in range(40))
        runs = [
            run_of(name, dataclasses.replace(predictions_of(seed), groups=groups))
            for seed, name in enumerate(("a", "b"))
        ]
        comparison = compare(runs)
        (pair,) = comparison.pairs
        assert comparison.n_groups == 10
        assert comparison.p_value_method == "McNemar, exact, by group"
        assert pair.differences["auroc"].method == "group bootstrap"
        assert comparison.runs[0].scores["accuracy"].method == "group bootstrap"

    def test_json_holds_plain_values_only(self) -> None:
        one_class = rows_of(predictions_of(0), [1, 3, 5])
        comparison = compare([run_of("a", one_class), run_of("b", one_class)])
        found = json.loads(json.dumps(comparison.as_json(), allow_nan=False))
        assert found["runs"][0]["scores"]["auroc"] is None
        assert found["pairs"][0]["differences"]["auroc"] is None
        assert found["runs"][1]["cost"]["peak_memory_mib"] == 812.0
        assert found["n_rows"] == 3
        assert found["p_value_method"] == "McNemar, exact"

    def test_runs_kept_on_disk_can_be_compared(self, tmp_path: Path) -> None:
        runs = []
        for seed, kind in enumerate(("logreg", "finetune")):
            result = Result(
                kind=kind,
                data_name="pages",
                config={},
                history=(),
                predictions=dataclasses.replace(predictions_of(seed), split="test-subset"),
                n_test_total=100,
                cost=COST,
                model={},
                model_card={},
            )
            (tmp_path / kind).mkdir()
            runs.append(write_run(tmp_path / kind, result))
        comparison = compare(runs)
        assert comparison.test_rows == "subset of 40 of 100"
        for compared, run in zip(comparison.as_json()["runs"], runs):
            assert compared["scores"] == run.metrics["scores"]

    def test_a_pairs_tests_are_mcnemars_and_delongs_adjusted_over_all_pairs(self) -> None:
        runs = [run_of(name, predictions_of(i, signal=0.5 * i)) for i, name in enumerate("abcd")]
        comparison = compare(runs)
        assert comparison.auroc_method == "DeLong"
        assert comparison.adjustment == "Holm, 6 pairs"
        pairs = comparison.pairs
        assert [pair.p_adjusted for pair in pairs] == holm([pair.p_value for pair in pairs])
        raw = [pair.auroc_test.p_value for pair in pairs]
        assert [pair.auroc_p_adjusted for pair in pairs] == holm(raw)
        last = pairs[2]
        assert last.auroc_test.value == pytest.approx(last.differences["auroc"].value)
        assert last.auroc_test.low < last.auroc_test.value < last.auroc_test.high
        found = json.loads(json.dumps(comparison.as_json(), allow_nan=False))
        assert found["pairs"][2]["auroc_test"]["p_value"] == raw[2]

    def test_groups_are_tested_by_obuchowskis_form(self) -> None:
        groups = tuple(f"patient {row // 4}" for row in range(40))
        runs = [
            run_of(name, dataclasses.replace(predictions_of(seed), groups=groups))
            for seed, name in enumerate("ab")
        ]
        grouped = compare(runs)
        assert grouped.auroc_method == "DeLong, by group (Obuchowski)"
        alone = compare([run_of("a", predictions_of(0)), run_of("b", predictions_of(1))])
        tests = [each.pairs[0].auroc_test for each in (grouped, alone)]
        assert tests[0].value == tests[1].value
        assert tests[0].p_value != tests[1].p_value

    def test_other_thresholds_on_the_same_probabilities_are_another_run(self) -> None:
        predictions = predictions_of(0)
        eager = Decision(threshold=0.2).apply(predictions)
        (pair,) = compare([run_of("a", predictions), run_of("b", eager)]).pairs
        assert not pair.is_identical
        assert pair.differences["sensitivity"].value > 0 > pair.differences["specificity"].value
        assert pair.differences["auroc"].value == 0
        assert (pair.auroc_test.value, pair.auroc_test.p_value) == (0, 1)

    def test_many_classes_have_no_delong(self) -> None:
        three = [
            dataclasses.replace(
                predictions_of(seed),
                classes=("a", "b", "c"),
                targets=np.arange(40) % 3,
                probabilities=np.random.default_rng(seed).dirichlet(np.ones(3), 40),
            )
            for seed in (0, 1)
        ]
        (pair,) = compare([run_of("a", three[0]), run_of("b", three[1])]).pairs
        assert pair.auroc_test is pair.auroc_p_adjusted is None
        assert "sensitivity" not in pair.differences


class TestRefusals:
    def test_one_run_is_refused(self) -> None:
        expected = "a comparison needs at least two runs; found 1"
        assert refusal(run_of("a", predictions_of(0))) == expected

    def test_a_name_given_twice_is_refused(self) -> None:
        run = run_of("a", predictions_of(0))
        assert refusal(run, run) == (
            "two of the runs are called a (/runs/a and /runs/a). Give each run once; rename a "
            "folder where different runs share a name."
        )

    def test_different_classes_are_refused(self) -> None:
        other = dataclasses.replace(predictions_of(0), classes=("rest", "mi"))
        assert refusal(run_of("a", predictions_of(0)), run_of("b", other)) == (
            "a and b can't be compared, their classes differ: normal, mi in the one, rest, mi in "
            "the other. Make both runs on the same data with the same --positive."
        )

    def test_a_subset_against_all_rows_is_refused_with_counts_and_an_example(self) -> None:
        subset = rows_of(predictions_of(1), range(0, 40, 4))
        subset = dataclasses.replace(subset, split="test-subset")
        assert refusal(run_of("a", predictions_of(0)), run_of("b", subset)) == (
            "a and b can't be compared, their test rows differ: 40 rows (test) and 10 rows "
            "(test-subset), 10 of them in both; test/001.png is only in a. Make both runs on the "
            "same data with the same split, --test-subset and --cv."
        )

    def test_a_row_only_in_the_later_run_is_named_so(self) -> None:
        fewer = rows_of(predictions_of(0), range(1, 40))
        message = refusal(run_of("a", fewer), run_of("b", predictions_of(1)))
        assert "39 rows (test) and 40 rows (test), 39 of them in both" in message
        assert "test/000.png is only in b" in message

    def test_a_row_predicted_twice_is_not_dropped_silently(self) -> None:
        twice = rows_of(predictions_of(0), [*range(40), 7])
        message = refusal(run_of("a", predictions_of(0)), run_of("b", twice))
        assert "40 rows (test) and 41 rows (test), 40 of them in both" in message
        assert "test/007.png" in message

    def test_different_targets_are_refused(self) -> None:
        targets = TARGETS.copy()
        targets[[3, 5]] = 0
        other = dataclasses.replace(predictions_of(1), targets=targets)
        assert refusal(run_of("a", predictions_of(0)), run_of("b", other)) == (
            "a and b can't be compared, the class of 2 of their 40 test rows differs: "
            "test/003.png has 'mi' in the one, 'normal' in the other. Make both runs on the same "
            "version of the data."
        )

    def test_different_groups_are_refused(self) -> None:
        other = dataclasses.replace(predictions_of(1), groups=("patient 1",) * 2 + ("",) * 38)
        message = refusal(run_of("a", predictions_of(0)), run_of("b", other))
        assert "the group of 2 of their 40 test rows differs" in message
        assert "test/000.png has '' in the one, 'patient 1' in the other" in message

    def test_the_third_run_is_checked_too(self) -> None:
        short = rows_of(predictions_of(2), range(10))
        runs = [run_of("a", predictions_of(0)), run_of("b", predictions_of(1)), run_of("c", short)]
        assert refusal(*runs).startswith("a and c can't be compared")


class TestLeavingAside:
    def test_the_largest_comparable_set_is_compared_and_the_others_are_named(self) -> None:
        short = [run_of(f"s{i}", rows_of(predictions_of(i), range(10))) for i in range(2)]
        whole = [run_of(f"w{i}", predictions_of(i)) for i in range(3)]
        other = dataclasses.replace(predictions_of(0), classes=("rest", "mi"))
        given = [short[0], whole[0], run_of("other", other), whole[1], short[1], whole[2]]
        found = compare(given, leave_aside=True)
        assert [run.name for run in found.runs] == ["w0", "w1", "w2"]
        assert [aside.name for aside in found.left_aside] == ["s0", "s1", "other"]
        assert "w0 and s1 can't be compared, their test rows differ" in found.left_aside[1].reason
        assert "their classes differ" in found.left_aside[2].reason
        assert found.pairs == compare(whole).pairs
        assert json.loads(json.dumps(found.as_json()))["left_aside"][0]["name"] == "s0"

    def test_of_sets_of_one_size_the_first_is_compared(self) -> None:
        whole = [run_of(f"w{i}", predictions_of(i)) for i in range(2)]
        short = [run_of(f"s{i}", rows_of(predictions_of(i), range(10))) for i in range(2)]
        found = compare([*whole, *short], leave_aside=True)
        assert [run.name for run in found.runs] == ["w0", "w1"]

    def test_two_runs_that_differ_stay_an_error(self) -> None:
        short = run_of("b", rows_of(predictions_of(1), range(10)))
        with pytest.raises(RunError, match=r"^a and b can't be compared, their test rows differ"):
            compare([run_of("a", predictions_of(0)), short], leave_aside=True)

    def test_no_two_alike_are_an_error(self) -> None:
        runs = [run_of(f"r{n}", rows_of(predictions_of(n), range(n))) for n in (10, 20, 30)]
        with pytest.raises(RunError, match=r"^no two of the 3 runs can be compared: r10 and r20"):
            compare(runs, leave_aside=True)

    def test_what_is_no_run_is_left_aside(self, tmp_path: Path) -> None:
        (tmp_path / "notes").mkdir()
        runs = [run_of("a", predictions_of(0)), run_of("b", predictions_of(1))]
        found = compare([str(tmp_path / "notes"), *runs], leave_aside=True)
        assert [run.name for run in found.runs] == ["a", "b"]
        assert found.left_aside[0].name == "notes"
        assert "is not a run" in found.left_aside[0].reason


class TestMcNemar:
    @staticmethod
    def p_value(n_first_only: int, n_second_only: int, n_alike: int = 5) -> float:
        first = np.repeat([True, False, True], [n_first_only, n_second_only, n_alike])
        second = np.repeat([False, True, True], [n_first_only, n_second_only, n_alike])
        return mcnemar_p_value(first, second, np.arange(len(first)))

    @pytest.mark.parametrize(
        ("n_first_only", "n_second_only"),
        [(0, 1), (1, 1), (0, 10), (3, 12), (12, 3), (20, 25), (100, 160), (400, 700)],
    )
    def test_single_rows_give_the_exact_binomial_test(
        self, n_first_only: int, n_second_only: int
    ) -> None:
        expected = stats.binomtest(n_first_only, n_first_only + n_second_only).pvalue
        found = self.p_value(n_first_only, n_second_only)
        assert found == pytest.approx(expected, rel=1e-9)

    def test_without_a_row_answered_differently_it_is_one(self) -> None:
        assert self.p_value(0, 0) == 1.0

    def test_groups_give_the_test_over_every_swap_of_whole_groups(self) -> None:
        random = np.random.default_rng(0)
        units = random.integers(8, size=60)
        units[:8] = np.arange(8)
        first, second = random.random((2, 60)) < [[0.5], [0.8]]
        gains = np.array([np.sum(second[units == u]) - np.sum(first[units == u]) for u in range(8)])
        signs = 1 - 2 * ((np.arange(2**8)[:, None] >> np.arange(8)) & 1)
        expected = np.mean(np.abs(signs @ gains) >= abs(gains.sum()))
        assert mcnemar_p_value(first, second, units) == pytest.approx(expected)

    def test_one_group_alone_proves_nothing(self) -> None:
        first, second = np.zeros(30, dtype=bool), np.ones(30, dtype=bool)
        assert mcnemar_p_value(first, second, np.zeros(30, dtype=np.int64)) == 1.0
        assert mcnemar_p_value(first, second, np.arange(30)) < 1e-8


def test_runs_say_where_their_pages_were_prepared_otherwise():
    def run_with(decoder: str = "", resampling: str = "pillow-bilinear") -> Run:
        how = {"crop_mode": "squash", "width_px": 64, "height_px": 64, "resampling": resampling}
        config = {"kind": "logreg", "data": "d", "preprocessing": how, "decoder": decoder}
        return Run(path=Path("run"), config=config, metrics={})

    usual = run_with()
    found = differing_settings([usual, run_with(resampling="pillow-bilinear+photo1")])
    assert found == [{"clean": "none"}, {"clean": "photo"}]
    found = differing_settings([usual, run_with("pillow 13, pypdfium2 5.0 at 300 dpi")])
    assert found == [{"dpi": "150"}, {"dpi": "300"}]
