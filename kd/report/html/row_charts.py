"""Charts of rows as Vega-Lite specifications. Data and the look of the theme are filled in by the page's script.

Each datum has the `id` of its row, which a click picks, and its `colour`. The parameter `picked` is the id of the
picked row, or "".
"""

from typing import Any

Spec = dict[str, Any]

STEP = 30
"""Pixels of a row."""
COLOUR: Spec = {"field": "colour", "type": "nominal", "scale": None, "legend": None}


def faded(opacity: float = 1.0) -> Spec:
    """Return an opacity that is low while another row is picked."""
    return {"condition": {"test": "!picked || picked === datum.id", "value": opacity}, "value": 0.2 * opacity}


def named(data: str, *layers: Spec, **rest: Any) -> Spec:
    return {"data": {"name": data}, "layer": list(layers), **rest}


def along(field: str, title: str | None = None, **scale: Any) -> Spec:
    return {
        **{"field": field, "type": "quantitative", "title": title, "axis": {"tickCount": 6}},
        "scale": {"zero": False, "nice": False, **scale},
    }


def rows(field: str = "name") -> Spec:
    return {"field": field, "type": "nominal", "sort": None, "title": None, "axis": {"ticks": False, "domain": False}}


def value(field: str, form: str) -> Spec:
    """Return numbers right of the axes, where no mark can run through them."""
    return {
        "mark": {"type": "text", "align": "left", "dx": 6, "fontWeight": 600, "tooltip": None},
        "encoding": {
            "x": {"value": {"expr": "width"}},
            "text": {"field": field, "type": "quantitative", "format": form},
            "opacity": faded(),
        },
    }


def bars() -> Spec:
    """Accuracy of each row: a bar, its seeds as points, the interval of the mean, and the teacher as a line."""
    ends = {"domainMin": {"expr": "low"}, "domainMax": {"expr": "high"}}
    tooltip = [{"field": "name", "title": "run"}, {"field": "acc", "title": "test accuracy, %", "format": ".2f"}]
    tooltip += [{"field": "between", "title": "95 % interval"}, {"field": "verdict", "title": "in words"}]
    return named(
        "rows",
        {
            "mark": {"type": "bar", "clip": True, "cornerRadiusEnd": 2, "height": {"band": 0.66}},
            "encoding": {
                "x": {**along("acc", "test accuracy, %", **ends), "stack": None},
                "color": COLOUR,
                "opacity": faded(0.72),
                "tooltip": tooltip,
            },
        },
        {
            "mark": {"type": "tick", "clip": True, "thickness": 2, "size": 24, "style": "ink"},
            "encoding": {
                "x": {**along("teacher", "test accuracy, %", **ends)},
                "opacity": faded(),
                "tooltip": [{"field": "teacher", "title": "its teacher, %", "format": ".2f"}],
            },
        },
        {
            "mark": {"type": "rule", "strokeWidth": 1.6, "style": "ink", "clip": True},
            "encoding": {"x": along("from", "test accuracy, %", **ends), "x2": {"field": "to"}, "opacity": faded()},
        },
        {
            "data": {"name": "seeds"},
            "mark": {"type": "point", "filled": True, "size": 34, "strokeWidth": 1, "style": "seed", "clip": True},
            "encoding": {
                "x": along("acc", "test accuracy, %", **ends),
                "yOffset": {"field": "place", "type": "quantitative", "scale": {"domain": [-1.5, 1.5]}},
                "opacity": faded(),
                "tooltip": [
                    {"field": "name", "title": "run"},
                    {"field": "seed", "title": "seed"},
                    {"field": "acc", "title": "test accuracy, %", "format": ".2f"},
                ],
            },
        },
        value("acc", ".2f"),
        params=[{"name": "low", "value": 0}, {"name": "high", "value": 100}],
        encoding={"y": rows()},
        resolve={"scale": {"yOffset": "independent"}},
        height={"step": STEP},
    )


def differences() -> Spec:
    """Each row's accuracy minus the baseline's: mean, interval and seeds."""
    title = "difference, points"
    tooltip = [{"field": "name", "title": "run"}, {"field": "mean", "title": title, "format": "+.2f"}]
    tooltip += [{"field": "between", "title": "95 % interval"}, {"field": "verdict", "title": "in words"}]
    return named(
        "rows",
        {
            "data": {"name": "zero"},
            "mark": {"type": "rule", "style": "ink"},
            "encoding": {"x": along("mean", title), "y": {"value": 0}, "y2": {"value": {"expr": "height"}}},
        },
        {
            "mark": {"type": "rule", "strokeWidth": 2.4},
            "encoding": {"x": along("from", title), "x2": {"field": "to"}, "color": COLOUR, "opacity": faded()},
        },
        {
            "data": {"name": "seeds"},
            "mark": {"type": "point", "filled": True, "size": 34},
            "encoding": {"x": along("mean", title, padding=10), "color": COLOUR, "opacity": faded(0.45)},
        },
        {
            "mark": {"type": "point", "filled": True, "shape": "diamond", "size": 130, "opacity": 1},
            "encoding": {"x": along("mean", title), "color": COLOUR, "opacity": faded(), "tooltip": tooltip},
        },
        value("mean", "+.2f"),
        encoding={"y": rows()},
        height={"step": STEP},
    )


def curves() -> Spec:
    """Mean over the seeds by epoch, with a band of one standard deviation. The point near the pointer is marked.

    It has no tooltip: that of a nearest point lacks what is no number in Vega-Lite 6.4. The script writes all values of
    its epoch below.
    """
    y = {"zero": False, "domainMin": {"expr": "low"}, "domainMax": {"expr": "high"}, "nice": False}
    x = {"field": "epoch", "type": "quantitative", "title": "epoch", "scale": {"nice": False, "zero": False}}
    x["axis"] = {"tickMinStep": 1, "tickCount": 10, "grid": False}
    mean = {"field": "mean", "type": "quantitative", "title": None, "scale": y}
    return named(
        "lines",
        {
            "mark": {"type": "area", "clip": True, "tooltip": None},
            "encoding": {
                "y": {"field": "below", "type": "quantitative", "title": None, "scale": y},
                "y2": {"field": "above"},
                "color": COLOUR,
                "detail": {"field": "id"},
                "opacity": faded(0.18),
            },
        },
        {
            "mark": {"type": "line", "clip": True, "strokeWidth": 2, "point": {"expr": "alone"}, "tooltip": None},
            "encoding": {
                "y": mean,
                "color": COLOUR,
                "detail": {"field": "id"},
                "opacity": faded(),
                "strokeDash": {"field": "dash", "type": "nominal", "scale": None},
            },
        },
        {
            "mark": {"type": "point", "filled": True, "size": 60, "clip": True, "tooltip": None},
            "encoding": {
                "y": mean,
                "color": COLOUR,
                "opacity": {"condition": {"param": "near", "empty": False, "value": 1}, "value": 0},
            },
            "params": [
                {
                    "name": "near",
                    "select": {"type": "point", "nearest": True, "on": "pointermove", "clear": "pointerout"},
                }
            ],
        },
        params=[{"name": "low", "value": 0}, {"name": "high", "value": 100}],
        encoding={"x": x},
        height=320,
    )


def sweep_lines() -> Spec:
    """Accuracy over one swept knob, or over the students' size."""
    x = {"field": "x", "type": "quantitative", "title": "x", "scale": {"zero": False, "nice": False, "padding": 16}}
    tooltip = [{"field": "name", "title": "run"}, {"field": "x", "title": "value"}]
    tooltip += [{"field": "acc", "title": "accuracy, %", "format": ".2f"}]
    # Of one colour, unlike its points: where colours differ, Vega-Lite begins another line.
    line = {"color": {**COLOUR, "field": "hue"}, "detail": {"field": "line"}, "opacity": faded(0.8)}
    return named(
        "points",
        {"mark": {"type": "line", "strokeWidth": 1.6, "tooltip": None}, "encoding": {"y": along("acc"), **line}},
        {
            "mark": {"type": "rule", "strokeWidth": 1.4},
            "encoding": {"y": along("from"), "y2": {"field": "to"}, "color": COLOUR, "opacity": faded()},
        },
        {
            "mark": {"type": "point", "filled": True, "size": 80},
            "encoding": {"y": along("acc"), "color": COLOUR, "opacity": faded(), "tooltip": tooltip},
        },
        encoding={"x": x},
        height=280,
    )


def sweep_map() -> Spec:
    """Accuracy over two swept knobs."""
    tooltip = [{"field": "name", "title": "run"}, {"field": "acc", "title": "accuracy, %", "format": ".2f"}]
    place = {"type": "ordinal", "title": "x", "axis": {"labelAngle": 0, "ticks": False}}
    return {
        "data": {"name": "points"},
        "encoding": {"x": {**place, "field": "x"}, "y": {**place, "field": "y", "sort": "descending"}},
        "layer": [
            {
                "mark": {"type": "rect", "strokeWidth": 2.5},
                "encoding": {
                    "color": {
                        "field": "acc",
                        "type": "quantitative",
                        "scale": {"scheme": "cividis"},
                        "legend": {"title": None, "gradientLength": {"expr": "height"}},
                    },
                    "stroke": {"condition": {"test": "picked === datum.id", "value": "#d55e00"}, "value": None},
                    "tooltip": tooltip,
                },
            },
        ],
        "height": {"step": STEP},
    }


def sweep_dots() -> Spec:
    """Accuracy over two swept knobs, as of a random search."""
    tooltip = [{"field": "name", "title": "run"}, {"field": "acc", "title": "accuracy, %", "format": ".2f"}]
    place = {"type": "quantitative", "title": "x", "scale": {"zero": False, "nice": False, "padding": 16}}
    colour = {"field": "acc", "type": "quantitative", "scale": {"scheme": "cividis"}}
    return {
        "data": {"name": "points"},
        "mark": {"type": "point", "filled": True, "size": 90, "strokeWidth": 2.5},
        "encoding": {
            "x": {**place, "field": "x"},
            "y": {**place, "field": "y"},
            "color": {**colour, "legend": {"title": None, "gradientLength": {"expr": "height"}}},
            "stroke": {"condition": {"test": "picked === datum.id", "value": "#d55e00"}, "value": None},
            "tooltip": tooltip,
        },
        "height": 280,
    }


def costs() -> Spec:
    """Accuracy against what a network or its training takes."""
    tooltip = [{"field": "name", "title": "run"}, {"field": "x", "title": "cost", "format": ",.4~r"}]
    tooltip += [{"field": "acc", "title": "test accuracy, %", "format": ".2f"}]
    x = {"field": "x", "type": "quantitative", "title": "x", "axis": {"format": "~s", "tickCount": 5}}
    x["scale"] = {"type": "log", "nice": False, "padding": 24}
    return named(
        "points",
        {
            "mark": {"type": "rule", "strokeWidth": 1.4},
            "encoding": {
                "y": along("from", "test accuracy, %"),
                "y2": {"field": "to"},
                "color": COLOUR,
                "opacity": faded(),
            },
        },
        {
            "mark": {"type": "point", "filled": True, "size": 110},
            "encoding": {
                "y": along("acc", "test accuracy, %", padding=12),
                "color": COLOUR,
                "opacity": faded(0.9),
                "shape": {"field": "shape", "type": "nominal", "scale": None},
                "tooltip": tooltip,
            },
        },
        encoding={"x": x},
        height=280,
    )


def variance() -> Spec:
    """Standard deviations of a row's accuracy by where they come from."""
    sources = {"field": "source", "type": "nominal", "title": None}
    return {
        "data": {"name": "parts"},
        "mark": {"type": "bar", "cornerRadiusEnd": 2},
        "encoding": {
            "y": rows(),
            "yOffset": {"field": "source"},
            "x": {
                "field": "std",
                "type": "quantitative",
                "title": "standard deviation, points",
                "axis": {"tickCount": 6},
            },
            "color": {**sources, "scale": {"range": ["#0072b2", "#e69f00"]}, "legend": {"orient": "top"}},
            "opacity": faded(0.85),
            "tooltip": [{"field": "name", "title": "run"}, {"field": "source"}, {"field": "std", "title": "points"}],
        },
        "height": {"step": STEP},
    }
