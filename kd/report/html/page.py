"""The page put together: one file with style, scripts, library and data, which needs no network."""

import base64
import gzip
import hashlib
import html
import json
import re
from collections.abc import Sequence
from functools import partial
from importlib.resources import files
from pathlib import Path

from kd.report.comparison import Comparison
from kd.report.fidelity.pixels import read
from kd.report.html import bundle
from kd.report.html.charts import charts
from kd.report.html.fidelity import fidelity
from kd.report.html.view import Json, view
from kd.report.summary import Summary

SCRIPTS = ("core.js", "table.js", "charts.js", "rows.js", "fidelity.js", "start.js")
"""Parts of the page's script, in order."""


def page(summary: Summary, comparisons: Sequence[Comparison], dirs: Sequence[Path], images: Path | None = None) -> str:
    """Return the page of a report.

    Args:
        summary, comparisons: of the rows that are shown.
        dirs: where runs are looked for whose predictions are shown.
        images: `data.root` of the runs, to show some of their test images.

    Raises:
        UserError: for images that are not those of the runs.
    """
    pixels = None if images is None else partial(read, images)
    return to_html(view(summary, comparisons) | {"fidelity": fidelity(summary.rows, comparisons, dirs, pixels)})


def to_html(shown: Json) -> str:
    """Return the page of a view.

    Whatever a record brings in is data: packed, so that it ends no element of the page, and only ever written as text
    by the script. The page's policy lets nothing run but its own two scripts, by their hashes, and nothing load.
    """
    script = "".join(['(async () => {\n"use strict";\n', *map(_static, SCRIPTS), "})();\n"])
    library = bundle.compressed()
    code = bundle.code(library)
    policy = (
        f"default-src 'none'; script-src {_hash(script)} {_hash(code)}; style-src 'unsafe-inline'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
    parts = {
        "title": html.escape(shown["title"]),
        "policy": policy,
        "style": _static("page.css"),
        "licence": _static("licence.txt"),
        "data": packed({"view": shown, "charts": charts()}),
        "library": base64.b64encode(library).decode(),
        "script": script,
    }
    # In one pass: a name that looks like a place of the template stays what it is.
    return re.sub(r"\{\{(\w+)\}\}", lambda found: parts[found[1]], _static("page.html"))


def packed(value: object) -> str:
    """Return JSON as gzip in base64: a tenth of its size, and in no character that HTML knows."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return base64.b64encode(gzip.compress(text.encode(), 9, mtime=0)).decode()


def unpacked(page: str) -> Json:
    """Return the view that a page shows."""
    data = re.search(r'<script type="text/plain" id="data">([\w+/=]*)</script>', page)
    if data is None:
        raise ValueError("not a page of a report")
    content: Json = json.loads(gzip.decompress(base64.b64decode(data[1])))
    shown: Json = content["view"]
    return shown


def _static(name: str) -> str:
    return (files("kd.report.html") / "static" / name).read_text(encoding="utf-8")


def _hash(script: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"
