"""The library that draws the page's charts: Vega-Lite, from the package vl-convert-python, kept in the user's cache."""

import gzip
import os
import zlib
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from kd.files import open_regular, replaced

PAGE = "index.html"
MISSING = f"{PAGE}, the page to look at, is not written: it needs pip install 'vl-convert-python>=1.8' (extra: page)"
SNIPPET = "window.vegaEmbed = vegaEmbed;"
MOST_BYTES = 8 << 20


def installed() -> bool:
    """Return whether the package is there, without loading it."""
    return find_spec("vl_convert") is not None


def compressed() -> bytes:
    """Return the library as gzip: one script that needs no network.

    Bundling takes seconds, so the outcome stays in the user's cache, by the package's version.
    """
    import vl_convert

    path = _cache() / f"vega-embed-{version('vl-convert-python')}.js.gz"
    try:
        with open_regular(path) as file:
            kept = file.read(MOST_BYTES)
        if gzip.decompress(kept).endswith(b"\n"):
            return kept
    except (OSError, EOFError, zlib.error):
        pass  # not there yet, or damaged
    code: str = vl_convert.javascript_bundle(SNIPPET)
    # Within a function: its hundreds of short names are no globals of the page.
    made = gzip.compress(f"(() => {{{code}\n}})();\n".encode(), 9, mtime=0)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replaced(path) as temporary:
            temporary.write_bytes(made)
    except OSError:
        pass  # a full or read-only home: bundled anew next time
    return made


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "kd"


def code(library: bytes) -> str:
    """Return the library as the browser gets it from `compressed`."""
    return gzip.decompress(library).decode("utf-8")
