"""All charts of the page, by the name of their place."""

from kd.report.html import network_charts, row_charts
from kd.report.html.row_charts import Spec

_PICKED: Spec = {"name": "picked", "value": ""}
_COMMON: Spec = {
    "$schema": "https://vega.github.io/schema/vega-lite/v6.json",
    "width": "container",
}


def charts() -> dict[str, Spec]:
    """Return all specifications by the name of their place on the page."""
    specs = {
        "bars": row_charts.bars(),
        "differences": row_charts.differences(),
        "curves": row_charts.curves(),
        "sweep": row_charts.sweep_lines(),
        "map": row_charts.sweep_map(),
        "dots": row_charts.sweep_dots(),
        "costs": row_charts.costs(),
        "variance": row_charts.variance(),
        "classes": network_charts.classes(),
        "confusion": network_charts.confusion(),
        "reliability": network_charts.reliability(),
        "fidelity": network_charts.fidelity(),
    }
    return {name: {**_COMMON, **spec, "params": [_PICKED, *spec.get("params", [])]} for name, spec in specs.items()}
