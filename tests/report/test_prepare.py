from kd.report.prepare import prepared
from tests.report.made import DISTILLED, changed


def test_prepared_writes_characters_without_a_shape_as_escapes():
    evil = "a\nb\x1b[31m\udcff"
    changes = {"method": evil, "dataset": evil, "warnings": [evil], "teacher": evil, "layers": [evil]}
    (run,) = prepared([changed(DISTILLED, **changes)])
    shown = r"a\nb\x1b[31m\udcff"
    assert (run.method, run.dataset, run.warnings, run.teacher) == (shown, shown, [shown], shown)
    assert run.knobs["layers"] == [shown]
    assert prepared([run]) == [run]
    assert prepared([run])[0] is run
