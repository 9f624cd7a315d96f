"""Formulas as MathML, which browsers draw themselves: neither scripts nor a network are needed."""

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.application import Sphinx
from sphinx.util import logging

LEFT = {"\\Vert": "\u2225"}
"""Commands that the converter leaves as they are, and what they mean."""


def formula(node: nodes.math | nodes.math_block, display: str) -> str:
    """Return the MathML of a formula; a command that is not understood is a warning, and so an error of the build."""
    made = convert(node.astext(), display=display)
    for command, symbol in LEFT.items():
        made = made.replace(command, symbol)
    if "\\" in made:
        logging.getLogger(__name__).warning("a command is unknown in %s", node.astext(), location=node)
    return made


def visit_inline(self, node: nodes.math) -> None:
    self.body.append(formula(node, "inline"))
    raise nodes.SkipNode


def visit_block(self, node: nodes.math_block) -> None:
    self.body.append(f'<div class="formula">{formula(node, "block")}</div>')
    raise nodes.SkipNode


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_html_math_renderer("mathml", (visit_inline, None), (visit_block, None))
    app.config.html_math_renderer = "mathml"
    return {"parallel_read_safe": True, "parallel_write_safe": True}
