"""Docstrings for Sphinx: text in backticks is code, and nothing else is markup."""

import re

from sphinx.application import Sphinx


def as_rst(lines: list[str]) -> list[str]:
    """Return a docstring's lines in reStructuredText; indented formulas and examples are left alone."""
    written = []
    for line in lines:
        pieces = re.split(r"(`[^`]+`)", line)
        pieces = [f"`{p}`" if p.startswith("`") else re.sub(r"([*|]|(?<=\w)_(?!\w))", r"\\\1", p) for p in pieces]
        written.append(line if line.lstrip().startswith(">>>") else "".join(pieces))
    return written


def process(app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    lines[:] = as_rst(lines)


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("autodoc-process-docstring", process, priority=400)  # before napoleon, which adds markup
    return {"parallel_read_safe": True, "parallel_write_safe": True}
