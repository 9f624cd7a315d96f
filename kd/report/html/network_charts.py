"""Charts of predictions as Vega-Lite specifications: see `kd.report.html.row_charts`."""

from kd.report.html.row_charts import COLOUR, STEP, Spec, along, faded, named, rows, value


def classes() -> Spec:
    """Accuracy by class, a point for each network."""
    tooltip = [{"field": "name", "title": "network"}, {"field": "class", "title": "class"}]
    tooltip += [{"field": "acc", "title": "accuracy, %", "format": ".2f"}]
    return {
        "data": {"name": "classes"},
        "mark": {"type": "point", "filled": True, "size": 90},
        "encoding": {
            "y": {**rows("class"), "axis": {"ticks": False, "domain": False, "grid": True}},
            "x": along("acc", "accuracy on the test images of a class, %", padding=10),
            "color": COLOUR,
            "shape": {"field": "shape", "type": "nominal", "scale": None},
            "opacity": faded(0.9),
            "tooltip": tooltip,
        },
        "height": {"step": 26},
    }


def confusion() -> Spec:
    """Share of each true class by the predicted one: a colour of some `strength`, as most shares are small."""
    sides = {"type": "nominal", "sort": None}
    axis = {"ticks": False, "domain": False, "labelOverlap": False}
    tooltip = [{"field": "true"}, {"field": "predicted"}, {"field": "share", "title": "%", "format": "+.2~f"}]
    return {
        "data": {"name": "cells"},
        "encoding": {
            "x": {**sides, "field": "predicted", "title": "predicted", "axis": {**axis, "labelAngle": -45}},
            "y": {**sides, "field": "true", "title": "true", "axis": axis},
        },
        "layer": [
            {
                "mark": {"type": "rect", "stroke": "var(--rule)", "strokeWidth": 0.5},
                "encoding": {
                    "fill": {"field": "colour", "type": "nominal", "scale": None, "legend": None},
                    "fillOpacity": {"field": "strength", "type": "quantitative", "scale": None, "legend": None},
                    "tooltip": tooltip,
                },
            },
            {
                "transform": [{"filter": "datum.text"}],
                "mark": {"type": "text", "fontSize": 9, "tooltip": None},
                "encoding": {
                    "text": {"field": "text"},
                    "color": {"field": "ink", "type": "nominal", "scale": None, "legend": None},
                },
            },
        ],
        "height": {"step": 22},
    }


def reliability() -> Spec:
    """Accuracy over confidence; the diagonal is a network whose confidence is right."""
    unit = {"scale": {"domain": [0, 1], "nice": False}, "axis": {"tickCount": 5}}
    confidence = {"field": "confidence", "type": "quantitative", "title": "confidence", **unit}
    right = {"field": "accuracy", "type": "quantitative", "title": "accuracy", **unit}
    tooltip = [{"field": "name", "title": "network"}, {"field": "confidence", "format": ".3f"}]
    tooltip += [{"field": "accuracy", "format": ".3f"}, {"field": "share", "title": "images, %", "format": ".2f"}]
    return named(
        "bins",
        {
            "data": {"name": "diagonal"},
            "mark": {"type": "line", "strokeDash": [2, 3], "strokeWidth": 1, "style": "ink", "tooltip": None},
            "encoding": {"x": confidence, "y": right},
        },
        {
            "mark": {"type": "line", "strokeWidth": 2, "tooltip": None},
            "encoding": {"color": COLOUR, "detail": {"field": "id"}, "opacity": faded()},
        },
        {
            "mark": {"type": "point", "filled": True},
            "encoding": {
                "size": {"field": "share", "type": "quantitative", "scale": {"range": [20, 260]}, "legend": None},
                "color": COLOUR,
                "shape": {"field": "shape", "type": "nominal", "scale": None},
                "opacity": faded(0.9),
                "tooltip": tooltip,
            },
        },
        encoding={"x": confidence, "y": right},
        height=320,
    )


def fidelity() -> Spec:
    """One figure of each network: mean and standard deviation over the seeds."""
    tooltip = [{"field": "name", "title": "network"}, {"field": "mean", "format": ".4~r"}]
    tooltip += [{"field": "std", "title": "± std over seeds", "format": ".3~r"}]
    return named(
        "figures",
        {
            "mark": {"type": "rule", "strokeWidth": 2},
            "encoding": {"x": along("from"), "x2": {"field": "to"}, "color": COLOUR, "opacity": faded()},
        },
        {
            "mark": {"type": "point", "filled": True, "size": 110},
            "encoding": {"x": along("mean", padding=12), "color": COLOUR, "opacity": faded(), "tooltip": tooltip},
        },
        value("mean", ".2f"),
        encoding={"y": rows()},
        height={"step": STEP},
    )
