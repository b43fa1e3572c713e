from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from ecgfeat.config import EvaluationSettings
from ecgfeat.errors import ConfigError, DataError
from ecgfeat.protocol import (
    LEAK,
    Leaks,
    Partition,
    class_order,
    define_task,
    find_leaks,
    group_numbers,
    has_validation,
    inner_folds,
    keep_rows,
    partitions,
    positive_in_words,
    refuse_thin_validation,
    same_pictures,
    stratified_subset,
    training_share,
)


def lay_down(
    labels: str | list[str],
    *,
    splits: str = "",
    groups: list[str] | None = None,
    ids: list[str] | None = None,
    **settings: float,
) -> list[Partition]:
    """Partitions of rows given as letters: labels, and r(train), v(val) or e(test)."""
    n_rows = len(labels)
    return partitions(
        define_task(list(labels)),
        ids=ids or [f"{row}.png" for row in range(n_rows)],
        splits=[{"r": "train", "v": "val", "e": "test"}[split] for split in splits or "r" * n_rows],
        groups=groups or [""] * n_rows,
        settings=EvaluationSettings(**settings),
    )


def as_lists(plan: list[Partition]) -> list[tuple[int, list[int], list[int], list[int], str]]:
    return [
        (
            part.fold,
            *(rows.tolist() for rows in (part.train, part.validation, part.test)),
            part.split,
        )
        for part in plan
    ]


# A validation part that the data name


def test_a_named_validation_part_chooses_and_is_neither_trained_on_nor_tested() -> None:
    (part,) = lay_down("abababab", splits="rrrrvvee")
    assert as_lists([part]) == [(0, [0, 1, 2, 3], [4, 5], [6, 7], "test")]
    assert part.whole is part
    (drawn,) = lay_down("abababab", splits="rrrrrree", val_fraction=0.3)
    assert len(drawn.validation) == 2
    assert len(drawn.whole.train) == 6


def test_a_named_validation_part_and_a_drawn_one_are_refused_together() -> None:
    with pytest.raises(ConfigError) as caught:
        lay_down("abababab", splits="rrrrvvee", val_fraction=0.2)
    assert str(caught.value) == (
        "--val-fraction would draw validation rows, and the data name 2 of their own: leave it out"
    )


def test_a_cross_validation_passes_over_a_named_validation_part() -> None:
    plan = lay_down("abababab", splits="rrrrvvee", cv=2)
    assert sorted(row for part in plan for row in part.test.tolist()) == list(range(8))
    assert all(not len(part.validation) for part in plan)


@pytest.mark.parametrize(
    ("splits", "settings", "there"),
    [
        (["train", "val"], {}, True),
        (["train", "test"], {}, False),
        (["train", "test"], {"val_fraction": 0.2}, True),
        (["train", "val"], {"cv": 5}, False),
    ],
)
def test_whether_rows_are_kept_for_choices(splits, settings, there: bool) -> None:
    assert has_validation(splits, EvaluationSettings(**settings)) is there


# The same picture twice


SIDES = [(np.array([0, 1, 2]), np.array([3, 4, 5]))]


def test_what_a_test_knows_already_is_counted() -> None:
    alone = [""] * 6
    assert find_leaks("uvwxyz", "abcabc", alone, SIDES) == Leaks(3, 0, 0, 0)
    assert find_leaks("uvwuxv", "abcabc", alone, SIDES) == Leaks(3, 2, 0, 1)
    # Twice in train, or twice in test, flatters nobody.
    assert find_leaks("uuwxyy", "aacabb", alone, SIDES) == Leaks(3, 0, 0, 0)
    groups = ["p", "", "q", "p", "q", ""]
    assert find_leaks("uvwxyz", "abcabc", groups, SIDES) == Leaks(3, 0, 2, 0)
    # Of every fold.
    both_ways = [*SIDES, (np.array([3, 4, 5]), np.array([0, 1, 2]))]
    assert find_leaks("uvwuxv", "abcabc", alone, both_ways) == Leaks(6, 4, 0, 1)


def test_every_picture_that_is_there_twice_is_found() -> None:
    pictures = [bytes([n]) * 16 for n in (5, 1, 2, 1, 5, 5, 3)]
    assert same_pictures(pictures) == [[0, 4, 5], [1, 3]]
    assert same_pictures(pictures[1:3]) == []


def test_a_leak_stops_unless_it_is_allowed_and_two_labels_are_only_told() -> None:
    assert Leaks(3, 0, 0, 0).refuse("c.h5", allowed=False) == []
    (told,) = Leaks(3, 0, 0, 2).refuse("c.h5", allowed=False)
    assert told.startswith("2 pictures lie under two labels, byte for byte: correct the labels")
    with pytest.raises(DataError) as error:
        Leaks(3, 2, 0, 1).refuse("my c.h5", allowed=False)
    assert str(error.value) == (
        "my c.h5: 2 of 3 test images are also among those trained on, byte for byte, which "
        "flatters every score. Write a clean split with `ecgfeat split 'my c.h5'`, look closer "
        "with `ecgfeat audit CACHE`, or give --allow-leak, which every result then says."
    )
    with pytest.raises(
        DataError, match=r"^c\.h5: 1 of 3 test images are of a group that is trained"
    ):
        Leaks(3, 0, 1, 0).refuse("c.h5", allowed=False)
    leak, labels = Leaks(3, 1, 0, 1).refuse("c.h5", allowed=True)
    assert leak.startswith(LEAK + "1 of 3 test images is also among those trained on")
    assert labels.startswith("1 picture lies under two labels")
    told = Leaks(3, 1, 2, 1).refuse("c.h5", allowed=True)
    assert [line.startswith(LEAK) for line in told] == [True, True, False]
    with pytest.raises(DataError, match=r"byte for byte, .*; 2 of 3 test images are of a group"):
        Leaks(3, 1, 2, 1).refuse("c.h5", allowed=False)


# Classes and tasks


@pytest.mark.parametrize(
    ("labels", "order"),
    [
        (["mi", "normal", "mi"], ("mi", "normal")),
        (["10", "9", "-1", "2.5"], ("-1", "2.5", "9", "10")),
        (["1", "01", "1.0"], ("01", "1", "1.0")),
        (["10", "9", "none"], ("10", "9", "none")),
        (["nan", "2", "10"], ("10", "2", "nan")),
        (["inf", "2", "10"], ("10", "2", "inf")),
        ([], ()),
    ],
)
def test_classes_are_ordered_by_value_or_else_by_name(
    labels: list[str], order: tuple[str, ...]
) -> None:
    assert all(class_order(some) == order for some in itertools.permutations(labels))


def test_two_classes_make_a_binary_task_whose_positive_is_the_last() -> None:
    task = define_task(["1", "0", "1"])
    assert task.classes == ("0", "1")
    assert task.targets.tolist() == [1, 0, 1]
    assert task.targets.dtype == np.int64
    assert define_task(["b", "a"]).classes == ("a", "b")


@pytest.mark.parametrize(
    "normal",
    [
        *("normal", "NORM", "Healthy", "control", "negative", "sinus rhythm", "Sinus_Rhythm", "0"),
        *("false", "no-mi", "non mi", "not_mi", "No MI", " normal"),
    ],
)
@pytest.mark.parametrize("other", ["-1", "mi", "zz", "abnormal"])
def test_of_two_classes_the_positive_is_the_one_that_is_not_plainly_normal(
    normal: str, other: str
) -> None:
    task = define_task([normal, other, normal])
    assert task.classes == (normal, other)
    assert task.targets.tolist() == [0, 1, 0]
    assert define_task([normal, other], normal).classes == (other, normal)


@pytest.mark.parametrize(
    "labels", [("mi", "noisy"), ("af", "notched"), ("control", "normal"), ("abnormal", "norma")]
)
def test_where_neither_or_both_are_plainly_normal_the_positive_is_the_last(
    labels: tuple[str, str],
) -> None:
    assert define_task(labels).classes == labels
    assert "the last in order" in positive_in_words(labels, "")


def test_more_than_two_classes_keep_their_order_whatever_they_are_called() -> None:
    assert define_task(["normal", "mi", "af"]).classes == ("af", "mi", "normal")
    assert positive_in_words(("af", "mi", "normal"), "") == ""


def test_the_positive_class_is_told_with_its_reason_and_how_to_turn_it() -> None:
    assert positive_in_words(("normal", "mi"), "") == (
        "mi ('normal' is the normal one; to turn it: --positive normal)"
    )
    assert positive_in_words(("a b", "c"), "") == (
        "c (the last in order; to turn it: --positive 'a b')"
    )
    assert positive_in_words(("rest", "mi"), "mi") == "mi, as --positive says"


def test_more_classes_are_numbered_in_their_order() -> None:
    task = define_task(list("cabc"))
    assert task.classes == ("a", "b", "c")
    assert task.targets.tolist() == [2, 0, 1, 2]


@pytest.mark.parametrize(
    ("labels", "positive", "classes", "targets"),
    [
        ("ab", "a", ("b", "a"), [1, 0]),
        ("abcc", "b", ("rest", "b"), [0, 1, 0, 0]),
        ("abcc", "c, a", ("b", "a+c"), [1, 0, 1, 1]),
        ("abcd", "a,b", ("rest", "a+b"), [1, 1, 0, 0]),
        (["rest", "a", "b"], "rest", ("not rest", "rest"), [1, 0, 0]),
        (["a", "b", "a+b"], "a,b", ("not a+b", "a+b"), [1, 1, 0]),
        (["a,b", "a", "b"], "a,b", ("rest", "a,b"), [1, 0, 0]),
    ],
)
def test_named_classes_are_set_against_the_rest(
    labels: list[str], positive: str, classes: tuple[str, str], targets: list[int]
) -> None:
    task = define_task(list(labels), positive)
    assert task.classes == classes
    assert task.targets.tolist() == targets


@pytest.mark.parametrize(("labels", "found"), [("aa", "a"), ("", "none")])
def test_one_class_only_is_refused(labels: str, found: str) -> None:
    with pytest.raises(DataError) as caught:
        define_task(list(labels))
    assert str(caught.value) == (
        f"at least two classes are needed; found only {found}. Check the label column or the "
        "folder names."
    )


def test_a_positive_class_that_is_not_there_is_refused() -> None:
    with pytest.raises(ConfigError) as caught:
        define_task(list("abc"), "a,x,y")
    assert str(caught.value) == "--positive names 'x', 'y', but the classes are a, b, c"


def test_every_class_positive_is_refused() -> None:
    with pytest.raises(ConfigError) as caught:
        define_task(list("ab"), "b,a")
    assert str(caught.value) == ("--positive names every class: leave at least one for the rest")


def test_a_group_and_a_row_of_the_same_name_are_two_units() -> None:
    assert group_numbers(["x", "y", "z", "w"], ["y", "", "y", "x"]).tolist() == [1, 2, 1, 0]


# The data's own split


def test_the_data_s_split_is_kept() -> None:
    assert as_lists(lay_down("aabba", splits="rerer")) == [(0, [0, 2, 4], [], [1, 3], "test")]


@pytest.mark.parametrize(("splits", "empty"), [("rrrr", "test"), ("eeee", "train")])
def test_an_empty_split_is_refused(splits: str, empty: str) -> None:
    with pytest.raises(DataError) as caught:
        lay_down("abab", splits=splits)
    assert str(caught.value) == (
        f"the split {empty!r} is empty. Add {empty} rows to the data, or ignore the split and "
        "cross-validate with --cv 5."
    )


def test_a_class_in_test_that_train_lacks_is_refused() -> None:
    with pytest.raises(DataError) as caught:
        lay_down("abcda", splits="rreee")
    assert str(caught.value) == (
        "the test rows hold 'c', 'd', which no training row has. Add such rows to train, take "
        "them out of test, or cross-validate with --cv 5."
    )


def test_a_class_that_test_lacks_is_fine() -> None:
    assert len(lay_down("abca", splits="rrre")) == 1


def test_training_rows_of_one_class_are_refused() -> None:
    with pytest.raises(DataError) as caught:
        lay_down("aaab", splits="rree")
    assert str(caught.value) == (
        "the training rows hold one class only ('a'). Check the split column, or cross-validate "
        "with --cv 5."
    )


# The test subset


labels_and_splits = st.lists(
    st.tuples(st.sampled_from("abc"), st.sampled_from("re")), min_size=8, max_size=80
)


@given(rows=labels_and_splits, share=st.floats(0.01, 1), seeds=st.tuples(*[st.integers(0, 99)] * 2))
def test_the_subset_is_stratified_and_the_same_under_any_seed(
    rows: list[tuple[str, str]], share: float, seeds: tuple[int, int]
) -> None:
    labels, splits = ("".join(column) for column in zip(*rows))
    trained = {label for label, split in rows if split == "r"}
    tested = [label for label, split in rows if split == "e"]
    assume(tested and len(trained) > 1 and set(tested) <= trained)
    n_rows = max(1, int(share * len(tested)))
    first, second = (
        lay_down(labels, splits=splits, test_subset=n_rows, seed=seed)[0] for seed in seeds
    )
    assert first.split == "test-subset"
    assert first.test.tolist() == second.test.tolist() == sorted(set(first.test.tolist()))
    assert len(first.test) == n_rows
    taken = Counter(labels[row] for row in first.test)
    for label, n in Counter(tested).items():
        assert abs(taken[label] - n * n_rows / len(tested)) < 1


def test_the_subset_depends_on_the_rows_names_alone() -> None:
    ids = [f"{row}.png" for row in range(40)]
    targets = np.arange(40) % 2
    rows = np.arange(40)
    subset = stratified_subset(rows, targets, ids, 10)
    back = stratified_subset(rows, targets[::-1], ids[::-1], 10)
    assert sorted(ids[row] for row in subset) == sorted(ids[::-1][row] for row in back)
    assert subset.tolist() != list(range(10))


def test_a_subset_larger_than_the_test_rows_is_refused() -> None:
    with pytest.raises(ConfigError) as caught:
        lay_down("abab", splits="rree", test_subset=3)
    assert str(caught.value) == (
        "--test-subset 3 asks for more rows than the 2 test rows there are"
    )


# Cross-validation


grouped_rows = st.lists(
    st.tuples(st.sampled_from("ab"), st.sampled_from(["", *"pqrstuvw"])), min_size=10, max_size=60
)


@given(
    rows=grouped_rows,
    cv=st.integers(2, 4),
    seed=st.integers(0, 99),
    val_fraction=st.sampled_from([0.0, 0.3]),
)
def test_every_row_is_predicted_once_by_a_model_that_saw_neither_it_nor_its_group(
    rows: list[tuple[str, str]], cv: int, seed: int, val_fraction: float
) -> None:
    labels, groups = (list(column) for column in zip(*rows))

    def plan() -> list[Partition]:
        return lay_down(labels, groups=groups, cv=cv, seed=seed, val_fraction=val_fraction)

    try:
        parts = plan()
    except DataError:
        assume(False)
    assert as_lists(parts) == as_lists(plan())
    assert [part.fold for part in parts] == list(range(cv))
    assert {part.split for part in parts} == {"cv"}
    assert sorted(row for part in parts for row in part.test) == list(range(len(rows)))
    for part in parts:
        check_apart(part, groups)
        assert len(part.train) + len(part.validation) + len(part.test) == len(rows)
        assert {labels[row] for row in part.train} == {"a", "b"}
        assert len(part.validation) == 0 or val_fraction


def check_apart(part: Partition, groups: list[str]) -> None:
    kinds = (part.train, part.validation, part.test)
    for one, other in itertools.combinations(kinds, 2):
        assert not set(one.tolist()) & set(other.tolist())
        assert not {groups[row] for row in one if groups[row]} & {groups[row] for row in other}
    for rows in kinds:
        assert rows.dtype == np.int64
        assert rows.tolist() == sorted(rows.tolist())


@pytest.mark.parametrize("groups", [None, [f"g{row // 2}" for row in range(60)]])
def test_folds_are_stratified_and_follow_the_seed(groups: list[str] | None) -> None:
    labels = "aaaabb" * 10
    plan = lay_down(labels, groups=groups, cv=5)
    for part in plan:
        counts = Counter(labels[row] for row in part.test)
        assert counts == {"a": 8, "b": 4}
    assert as_lists(plan) != as_lists(lay_down(labels, groups=groups, cv=5, seed=1))


def test_folds_of_grouped_rows_are_scikit_learn_s() -> None:
    from sklearn.model_selection import StratifiedGroupKFold

    labels = "abbab" * 8
    groups = [f"patient-{row // 2}" for row in range(40)]
    plan = lay_down(labels, groups=groups, cv=5, seed=3)
    reference = StratifiedGroupKFold(5, shuffle=True, random_state=3)
    for part, (train, test) in zip(plan, reference.split(labels, list(labels), groups)):
        assert part.train.tolist() == train.tolist()
        assert part.test.tolist() == test.tolist()


def test_too_few_groups_for_the_folds_are_refused() -> None:
    with pytest.raises(DataError) as caught:
        lay_down("aaaabb", groups=["", "", "", "", "p", "p"], cv=3)
    assert str(caught.value) == (
        "--cv 3 needs at least 3 groups (or ungrouped rows) of every class; 'b' has 1. Give a "
        "smaller --cv."
    )


def test_a_fold_that_would_train_without_a_class_is_refused() -> None:
    with pytest.raises(DataError) as caught:
        lay_down("aabb", groups=["p", "q", "p", "r"], cv=2)
    assert str(caught.value) == (
        "fold 1 of 2 would have no training rows of 'b': groups are too large or too few. Give a "
        "smaller --cv, or another --seed."
    )


# Validation rows


def homes_of(names: list[str], labels: list[str]) -> dict[str, str]:
    """Each group's class: its most frequent one, of equals the first in order."""
    return {
        name: min(
            Counter(label for other, label in zip(names, labels) if other == name).items(),
            key=lambda item: (-item[1], item[0]),
        )[0]
        for name in names
    }


@given(rows=grouped_rows, val_fraction=st.floats(0.05, 0.95), seed=st.integers(0, 99))
def test_validation_takes_a_share_of_each_class_in_whole_groups(
    rows: list[tuple[str, str]], val_fraction: float, seed: int
) -> None:
    labels, groups = (list(column) for column in zip(*[*rows, ("a", ""), ("b", "")]))
    splits = "r" * len(rows) + "ee"
    assume(len({label for label, _ in rows}) == 2)
    settings = {"val_fraction": val_fraction, "seed": seed}
    try:
        (part,) = lay_down(labels, splits=splits, groups=groups, **settings)
    except DataError:
        assume(False)
    check_apart(part, groups)
    assert sorted([*part.train, *part.validation]) == list(range(len(rows)))
    homes = homes_of([groups[row] or str(row) for row in range(len(rows))], labels)
    kept_out = Counter(homes[unit] for unit in {groups[row] or str(row) for row in part.validation})
    for label, n_units in Counter(homes.values()).items():
        assert kept_out[label] == min(max(1, round(val_fraction * n_units)), n_units - 1)


def test_a_group_has_the_class_of_most_of_its_rows_whichever_comes_first() -> None:
    labels = ["b", "a", "a", *"aaabbb", "a", "b"]
    groups = ["mixed"] * 3 + [""] * 8
    (part,) = lay_down(labels, splits="r" * 9 + "ee", groups=groups, val_fraction=0.9)
    kept_out = {groups[row] or row for row in part.validation.tolist()}
    assert len(kept_out & {"mixed", 3, 4, 5}) == 3
    assert len(kept_out & {6, 7, 8}) == 2


def test_validation_rows_follow_the_seed() -> None:
    plans = [
        lay_down("ab" * 20, splits="rrrrr" * 7 + "eeeee", val_fraction=0.2, seed=s)
        for s in (0, 0, 1)
    ]
    first, again, other = (plan[0].validation.tolist() for plan in plans)
    assert first == again != other


def test_a_class_of_one_group_stays_in_training() -> None:
    (part,) = lay_down("aaab" + "ab", splits="rrrree", val_fraction=0.5)
    assert 3 in part.train
    assert len(part.validation) == 2


def test_a_class_that_is_in_no_group_s_first_row_is_no_obstacle() -> None:
    groups = ["p", "p", "q", "q", "r", "r", "", ""]
    (part,) = lay_down("abababab", splits="rrrrrree", groups=groups, val_fraction=0.3)
    assert len(part.validation) == 2


def test_validation_that_takes_all_rows_of_a_class_is_refused() -> None:
    groups = ["p", "p", "q", "r", "", ""]
    caught = []
    for seed in range(10):
        try:
            lay_down("abaaab", splits="rrrree", groups=groups, val_fraction=0.3, seed=seed)
        except DataError as error:
            caught.append(str(error))
    assert 0 < len(caught) < 10
    assert set(caught) == {
        "--val-fraction 0.3 leaves no training rows of 'b': their groups, which hold other classes "
        "too, are all kept out. Give a smaller fraction or another --seed."
    }


# Folds inside the training rows


@given(rows=grouped_rows, n_folds=st.integers(2, 4), seed=st.integers(0, 99))
def test_inner_folds_hold_out_each_training_row_once_and_no_group_in_part(
    rows: list[tuple[str, str]], n_folds: int, seed: int
) -> None:
    labels, groups = (list(column) for column in zip(*rows))
    assume(len(set(labels)) == 2)
    ids = [f"{row}.png" for row in range(len(rows))]
    task = define_task(labels)
    try:
        (outer, _) = lay_down(labels, groups=groups, cv=2, seed=seed)
        inner = inner_folds(outer, task, ids=ids, groups=groups, n_folds=n_folds, seed=seed)
    except DataError:
        assume(False)
    assert [part.fold for part in inner] == list(range(n_folds))
    assert sorted(row for part in inner for row in part.validation) == outer.train.tolist()
    for part in inner:
        check_apart(part, groups)
        assert sorted([*part.train, *part.validation]) == outer.train.tolist()
        assert part.test is outer.test
        assert {labels[row] for row in part.train} == {"a", "b"}


def test_too_few_groups_for_the_inner_folds_are_refused() -> None:
    (part,) = lay_down("abab" + "ab", splits="rrrree")
    with pytest.raises(DataError) as caught:
        inner_folds(
            part, define_task(list("ababab")), ids="123456", groups=[""] * 6, n_folds=3, seed=0
        )
    assert str(caught.value) == (
        "--folds 3 needs at least 3 groups (or ungrouped rows) of every class; 'a' has 2. Give a "
        "smaller --folds."
    )


# Shares of the training rows


@given(
    rows=grouped_rows,
    fractions=st.tuples(st.floats(0.01, 1), st.floats(0.01, 1)),
    seed=st.integers(0, 99),
)
def test_a_larger_share_of_the_training_rows_holds_every_smaller_one(
    rows: list[tuple[str, str]], fractions: tuple[float, float], seed: int
) -> None:
    labels, groups = (list(column) for column in zip(*[*rows, ("a", ""), ("b", "")]))
    assume(len({label for label, _ in rows}) == 2)
    (part,) = lay_down(labels, splits="r" * len(rows) + "ee", groups=groups)
    ids = [f"{row}.png" for row in range(len(labels))]

    def share(fraction: float) -> set[int]:
        drawn = training_share(
            part, define_task(labels), ids=ids, groups=groups, fraction=fraction, seed=seed
        )
        assert drawn.test is part.test
        return set(drawn.train.tolist())

    small, large = (share(fraction) for fraction in sorted(fractions))
    assert small <= large <= share(1) == set(part.train.tolist())
    names = [groups[row] or str(row) for row in range(len(rows))]
    assert {names[row] for row in small}.isdisjoint(
        names[row] for row in set(part.train.tolist()) - small
    )
    homes = homes_of(names, labels)
    drawn = Counter(homes[name] for name in {names[row] for row in small})
    n_added = 0  # groups beyond the share, for a class that would be absent
    for label, n_units in Counter(homes.values()).items():
        n_added += drawn[label] - max(1, round(min(fractions) * n_units))
        assert drawn[label] >= max(1, round(min(fractions) * n_units))
    assert n_added <= 1
    assert {labels[row] for row in small} == {"a", "b"}


def test_a_class_that_is_in_no_group_s_first_row_is_in_every_share() -> None:
    labels = ["a", "b", *"ab" * 20, "c"]
    groups = ["", "", *(f"g{row // 2}" for row in range(40)), "g5"]
    (part,) = lay_down(labels, splits="ee" + "r" * 41, groups=groups)
    ids = [f"{row}.png" for row in range(43)]
    shares = [
        training_share(
            part, define_task(labels), ids=ids, groups=groups, fraction=fraction, seed=0
        ).train.tolist()
        for fraction in (0.05, 0.2)
    ]
    for rows in shares:
        assert {labels[row] for row in rows} == {"a", "b", "c"}
        assert {12, 13, 42} <= set(rows)
    assert set(shares[0]) < set(shares[1])


def test_shares_follow_the_seed() -> None:
    (part,) = lay_down("ab" * 20, splits="rrrrr" * 7 + "eeeee")
    task, ids = define_task(list("ab" * 20)), [str(row) for row in range(40)]
    first, again, other = (
        training_share(part, task, ids=ids, groups=[""] * 40, fraction=0.3, seed=seed).train
        for seed in (0, 0, 1)
    )
    assert first.tolist() == again.tolist() != other.tolist()


def test_validation_rows_can_be_put_back_among_the_training_rows() -> None:
    (apart,) = lay_down("ab" * 10, splits="rrrrr" * 3 + "eeeee", val_fraction=0.3)
    (together,) = lay_down("ab" * 10, splits="rrrrr" * 3 + "eeeee")
    assert as_lists([apart.whole]) == as_lists([together])
    assert as_lists([together.whole]) == as_lists([together])


def test_validation_rows_without_a_class_are_refused() -> None:
    labels = "aaaab" + "ab"
    plan = lay_down(labels, splits="rrrrree", val_fraction=0.3)
    with pytest.raises(DataError) as caught:
        refuse_thin_validation(plan, define_task(list(labels)))
    assert str(caught.value) == (
        "there would be no validation rows of 'b', so nothing could be chosen, calibrated or "
        "decided: too few groups (or ungrouped rows) hold these classes. Add data, give another "
        "--val-fraction, --folds or --seed, or join classes with --positive."
    )
    labels = "aaaabb" + "ab"
    plan = lay_down(labels, splits="rrrrrree", val_fraction=0.3)
    refuse_thin_validation(plan, define_task(list(labels)))


# Rows that can't be used


def test_rows_without_features_leave_everyone_else_where_they_were():
    labels = list("abababababab")
    task = define_task(labels)
    plan = lay_down(labels, cv=3)
    kept = np.arange(12) != 5
    number = {row: index for index, row in enumerate(np.flatnonzero(kept).tolist())}
    for before, after in zip(plan, keep_rows(plan, task, kept)):
        for name in ("train", "validation", "test"):
            expected = [number[row] for row in getattr(before, name).tolist() if row != 5]
            assert getattr(after, name).tolist() == expected


def test_a_class_none_of_whose_training_rows_can_be_used_is_named():
    labels = list("ababab")
    plan = lay_down(labels, splits="rrrree")
    kept = np.array([False, True, False, True, True, True])
    with pytest.raises(DataError) as caught:
        keep_rows(plan, define_task(labels), kept)
    assert str(caught.value) == (
        "none of the training images of 'a' could be used when the features were extracted. The "
        "list beside the cache, ending in -quarantine.csv, says why."
    )


def test_test_rows_none_of_which_can_be_used_are_an_error():
    labels = list("ababab")
    plan = lay_down(labels, splits="rrrree")
    kept = np.array([True, True, True, True, False, False])
    with pytest.raises(DataError, match="none of the test images could be used"):
        keep_rows(plan, define_task(labels), kept)
