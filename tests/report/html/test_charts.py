"""The charts of the page, drawn by Vega-Lite."""

import re

import pytest

from kd.report.html.charts import charts
from tests.common import ROOT

vl_convert = pytest.importorskip("vl_convert", reason="the extra page")


def test_lines_of_a_sweep_are_lines():
    """Vega-Lite begins another one where the colour is another, which the colours of a line's rows are."""
    spec = charts()["sweep"] | {"width": 400}
    points = [(1, 80, "#111"), (2, 82, "#222"), (4, 83, "#333"), (8, 81, "#444")]
    data = [
        {"id": colour, "name": "n", "colour": colour, "hue": "#111", "x": x, "acc": acc, "line": "logits"}
        for x, acc, colour in points
    ]
    svg = vl_convert.vegalite_to_svg(spec | {"datasets": {"points": data}})
    (line,) = re.findall(r'aria-roledescription="line mark" d="([^"]*)"', svg)
    assert line.count("L") == 3


def test_label_of_a_row_keeps_its_end():
    """What distinguishes rows and their number of seeds stand there."""
    script = (ROOT / "kd" / "report" / "html" / "static" / "charts.js").read_text(encoding="utf-8")
    (expression,) = re.findall(r"labelExpr = `(.*)`", script)
    spec = charts()["variance"] | {"width": 400}
    spec["encoding"]["y"]["axis"]["labelExpr"] = expression.replace("${characters}", "20")
    data = [{"id": "r0", "name": "standard recipe.optimizer.weight_decay=0.0005 (n = 3)", "source": "x", "std": 1}]
    svg = vl_convert.vegalite_to_svg(spec | {"datasets": {"parts": data}})
    assert re.search(r">standard \S*…\S*5 \(n = 3\)<", svg)


@pytest.mark.parametrize("name", ["map", "dots"])
def test_each_run_of_two_swept_settings_has_a_mark(name):
    data = [{"id": f"r{i}", "name": "n", "x": i, "y": i % 2, "acc": 80 + i} for i in range(5)]
    spec = charts()[name] | {"width": 400, "height": 200}
    svg = vl_convert.vegalite_to_svg(spec | {"datasets": {"points": data}})
    assert len(re.findall(r'aria-roledescription="(?:point|rect mark)"', svg)) == 5
