import pytest

from kd.report.html.page import unpacked
from tests.report.html.test_page import made, put_result


def test_figures_of_the_page_by_hand(tmp_path):
    alone, taught = (0.80, 0.82, 0.87), (0.90, 0.91, 0.95)
    for seed in range(3):
        climb = {"epoch_val_acc": [0.1, 0.2 + 0.1 * seed], "epoch_val_loss": [2.0, 1.0]}
        put_result(tmp_path / f"s{seed}", seed=seed, test_acc=alone[seed], **climb)
        more = {"method": "logits", "teacher": "t", "teacher_params": 9, "teacher_test_acc": 0.96}
        put_result(tmp_path / f"l{seed}", seed=seed, test_acc=taught[seed], **more)
    shown = unpacked(made([tmp_path]))
    first, second = shown["rows"]
    assert (first["label"], first["acc"], first["std"]) == ("standard", 83.0, pytest.approx(3.6056, abs=1e-3))
    reach = 4.30265 * 3.60555 / 3**0.5
    assert first["interval"] == pytest.approx([83 - reach, 83 + reach], abs=1e-3)
    assert (second["acc"], second["teacher"]) == (92.0, 96.0)
    assert second["difference"]["mean"] == 9.0
    assert second["difference"]["seeds"] == [10.0, 9.0, 8.0]
    assert second["difference"]["interval"] == pytest.approx([9 - 4.30265 / 3**0.5, 9 + 4.30265 / 3**0.5], abs=1e-3)
    (curve,) = (curve for curve in shown["curves"] if curve["title"] == "validation accuracy, %")
    line = curve["lines"][first["id"]]
    assert line["epochs"] == [1, 2]
    assert (line["mean"], line["std"]) == (pytest.approx([10, 30]), pytest.approx([0, 10], abs=1e-6))


def test_page_draws_a_random_search_as_dots_in_one_chart(tmp_path):
    for i in range(20):
        knobs = {"T": 1 + i / 7, "alpha": (i * 7 % 20) / 20}
        changes = {"test_acc": 0.5 + i / 100, "variant": f"lr={0.1 + i / 100:.2f}"}
        put_result(tmp_path / f"t{i}", method="logits", knobs=knobs, val_acc=0.6 + i / 100, **changes)
    (sweep,) = unpacked(made([tmp_path]))["sweeps"]
    assert sweep["axes"] == ["alpha", "T"]
    assert sweep["loose"]
    assert {point["line"] for point in sweep["points"]} == {"logits"}
    assert len(sweep["points"]) == 20
    assert max(point["acc"] for point in sweep["points"]) == 79.0


def test_page_draws_some_of_many_lines(tmp_path):
    for i in range(40):
        about = {"method": "logits", "knobs": {"T": 1.0 + i % 2}, "variant": f"policy=p{i // 2}"}
        put_result(tmp_path / f"t{i}", val_acc=0.5 + i / 100, **about)
    (sweep,) = unpacked(made([tmp_path]))["sweeps"]
    assert len({point["line"] for point in sweep["points"]}) == 12
    assert sweep["remark"] == "the highest 12 of 20 combinations"
    assert min(point["acc"] for point in sweep["points"]) == 66.0


def test_page_counts_the_rows_that_have_no_place_in_a_sweep(tmp_path):
    for i, knobs in enumerate(({"T": 1.0}, {"T": 2.0}, {"T": 4.0}, {})):
        put_result(tmp_path / f"t{i}", method="logits", knobs=knobs, val_acc=0.5 + i / 100)
    (sweep,) = unpacked(made([tmp_path]))["sweeps"]
    assert (len(sweep["points"]), sweep["remark"]) == (3, "1 without a place here left out")


def test_headline_tells_accuracies_of_the_seeds_it_compares(tmp_path):
    for seed, acc in enumerate([0.80, 0.81, 0.82, 0.99, 0.99]):
        put_result(tmp_path / f"s{seed}", seed=seed, test_acc=acc, val_acc=0.5)
    for seed, acc in enumerate([0.83, 0.84, 0.851]):
        put_result(tmp_path / f"l{seed}", method="logits", taught=True, seed=seed, test_acc=acc, val_acc=0.9)
    said = " ".join(unpacked(made([tmp_path]))["datasets"][0]["headline"]).replace("\N{NO-BREAK SPACE}", " ")
    assert "84.03 ± 1.05 % against 81.00 ± 1.00 %" in said


def test_headline_counts_the_rows_whose_baseline_is_the_best(tmp_path):
    for student, acc in (("a", 0.95), ("b", 0.8)):
        own = {"student": student, "variant": f"student={student}"}
        put_result(tmp_path / f"s{student}", test_acc=acc, val_acc=acc, **own)
        put_result(tmp_path / f"l{student}", method="logits", taught=True, test_acc=0.7, val_acc=0.7, **own)
    said = " ".join(unpacked(made([tmp_path]))["datasets"][0]["headline"])
    assert "It is the baseline of 1 other row." in said


def test_headline_does_not_call_a_row_with_diverged_runs_outdone(tmp_path):
    """Such a row ranks behind all others, whatever the accuracy of what is left of it."""
    put_result(tmp_path / "s0", test_acc=0.8, val_acc=0.80)
    put_result(tmp_path / "l0", method="logits", taught=True, test_acc=0.9, val_acc=0.95)
    put_result(tmp_path / "l1", method="logits", taught=True, seed=1, test_acc=0.1, diverged=True)
    said = " ".join(unpacked(made([tmp_path]))["datasets"][0]["headline"]).replace("\N{NO-BREAK SPACE}", " ")
    assert "standard reaches 80.00 %" in said
    assert "the highest validation accuracy, 80.00 %, of 1 without diverged runs." in said


def test_methods_beyond_the_hues_have_another_point(tmp_path):
    for i in range(12):
        put_result(tmp_path / f"m{i}", method=f"m{i:02}", test_acc=0.5)
    rows = unpacked(made([tmp_path]))["rows"]
    looks = [(row["colour"][0], row["shape"]) for row in rows]
    assert looks[10][0] == looks[0][0]
    assert len(set(looks)) == 12


def test_table_has_every_column_that_the_notes_explain(tmp_path):
    for seed, (alone, taught) in enumerate([(0.80, 0.83), (0.81, 0.83), (0.82, 0.85)]):
        put_result(tmp_path / f"s{seed}", seed=seed, test_acc=alone)
        put_result(tmp_path / f"l{seed}", method="logits", taught=True, seed=seed, test_acc=taught)
    shown = unpacked(made([tmp_path]))
    headers = [header for header, _ in shown["table"]["headers"]]
    assert {"P(better), %", "detectable, points", "seeds needed"} <= set(headers)
    assert {len(line) for line in shown["table"]["cells"]} == {len(headers)}
    cells = dict(zip(headers, shown["table"]["cells"][1], strict=True))
    assert float(cells["detectable, points"]) > 1
