import pytest

from kd.report.html.page import unpacked
from tests.report.html.test_page import made, put_result


def test_figures_of_the_page_by_hand(tmp_path):
    alone, taught = (0.80, 0.82, 0.87), (0.90, 0.91, 0.95)
    for seed in range(3):
        climb = {"epoch_val_acc": [0.1, 0.2 + 0.1 * seed], "epoch_val_loss": [2.0, 1.0]}
        put_result(tmp_path / f"s{seed}", seed=seed, test_acc=alone[seed], **climb)
        more = {"method": "logits", "teacher": "t", "teacher_params": 9, "teacher_test_acc": 0.96}
        put_result(tmp_path / f"l{seed}", seed=seed, test_acc=taught[seed], agreement=0.7 + seed / 10, **more)
    shown = unpacked(made([tmp_path]))
    first, second = shown["rows"]
    assert (first["label"], first["acc"], first["std"]) == ("standard", 83.0, pytest.approx(3.6056, abs=1e-3))
    reach = 4.30265 * 3.60555 / 3**0.5
    assert first["interval"] == pytest.approx([83 - reach, 83 + reach], abs=1e-3)
    assert (second["acc"], second["agreement"], second["teacher"]) == (92.0, 80.0, 96.0)
    assert second["difference"]["mean"] == 9.0
    assert second["difference"]["seeds"] == [10.0, 9.0, 8.0]
    assert second["difference"]["interval"] == pytest.approx([9 - 4.30265 / 3**0.5, 9 + 4.30265 / 3**0.5], abs=1e-3)
    (curve,) = (curve for curve in shown["curves"] if curve["title"] == "validation accuracy, %")
    line = curve["lines"][first["id"]]
    assert line["epochs"] == [1, 2]
    assert (line["mean"], line["std"]) == (pytest.approx([10, 30]), pytest.approx([0, 10], abs=1e-6))
