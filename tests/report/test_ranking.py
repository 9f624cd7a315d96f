"""The best row is that of the highest validation accuracy; the test split selects nothing."""

from dataclasses import replace
from itertools import chain

from kd.report.ranking import best, leaders
from kd.report.summary import summarize
from tests.report.test_comparison import ALONE, STANDARD, TAUGHT, TEACHER, seeds


def test_best_is_chosen_by_validation_accuracy():
    flashy = seeds(TAUGHT, 0.99, 0.98, T=1.0, val_acc=0.80)
    solid = [*seeds(TAUGHT, 0.82, T=4.0, val_acc=0.83), *seeds(TAUGHT, 0.84, first=1, T=4.0, val_acc=0.85)]
    teacher = seeds(TEACHER, 0.95, val_acc=0.95)
    assert best(summarize([*flashy, *solid, *teacher]).rows) == (
        "CIFAR-10: best by validation accuracy, of 2: logits T=4 (n = 2), 84.00 ± 1.41 %; test accuracy 83.00 ± 1.41 %."
    )


def test_best_is_not_chosen_without_validation():
    sentence = best(summarize([*STANDARD, *seeds(TAUGHT, 0.99)]).rows)
    assert sentence == "CIFAR-10: no validation accuracy is known, so no run is chosen as the best."
    sentence = best(summarize([*STANDARD, *seeds(TAUGHT, 0.99, val_acc=0.5)]).rows)
    assert "of the 1 (of 2) that have one: logits (n = 1), 50.00 %; test accuracy 99.00 %." in sentence


def test_best_of_teachers_where_there_are_no_students():
    sentence = best(summarize([*seeds(TEACHER, 0.9, val_acc=0.9), *seeds(TEACHER, 0.95, val_acc=0.8, epochs=50)]).rows)
    assert "teacher epochs=30 (n = 1), 90.00 %" in sentence


def test_leaders_are_the_best_of_each_method_and_of_the_rest():
    sweep = [seeds(TAUGHT, 0.99 - T / 100, T=float(T), val_acc=0.5 + T / 100) for T in range(10)]
    rows = summarize([*seeds(ALONE, 0.9, val_acc=0.1), *chain(*sweep)]).rows
    places, remark = leaders(rows, 4)
    assert [rows[i].label for i in places] == ["standard", "logits T=7", "logits T=8", "logits T=9"]
    assert remark == "4 of 11 rows, the best of each method and of the rest by validation accuracy"
    assert leaders(rows, 11) == (list(range(11)), "")


def test_leaders_have_the_best_row_of_a_method_whose_other_rows_are_bad():
    two = [seeds(TAUGHT, 0.5, T=1.0, val_acc=0.9), seeds(TAUGHT, 0.5, T=2.0, val_acc=0.1)]
    others = [seeds(replace(TAUGHT, method=name), 0.5, val_acc=0.5) for name in "bcdefgh"]
    rows = summarize(chain(*two, *others)).rows
    places, _ = leaders(rows, 7)
    assert "logits T=1" in [rows[i].label for i in places]
    assert "logits T=2" not in [rows[i].label for i in places]


def test_leaders_do_not_follow_the_test_split():
    rows = summarize(chain(*(seeds(TAUGHT, 0.5 + T / 100, T=float(T)) for T in range(10)))).rows
    assert leaders(rows, 3) == ([0, 1, 2], "3 of 10 rows, the first of the table")


def test_best_prefers_rows_without_diverged_runs():
    lucky = [*seeds(TAUGHT, 0.9, val_acc=0.81), *seeds(TAUGHT, 0.1, 0.1, first=1, diverged=True)]
    steady = seeds(replace(TAUGHT, method="dkd"), 0.8, 0.8, 0.8, val_acc=0.80)
    sentence = best(summarize([*lucky, *steady]).rows)
    assert "of 2, the 1 with diverged runs last: dkd (n = 3)" in sentence
    sentence = best(summarize(lucky).rows)
    assert "logits (n = 1, 2 more diverged)" in sentence
