"""Settings of the documentation site: `sphinx-build -W -b html docs build/site`."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "docs" / "_ext")]

project = "kd"
smartquotes_action = "D"  # dashes alone: quotes may be code
author = "The kd authors"
copyright = "The kd authors"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "docstrings", "made", "mathml"]
exclude_patterns = ["_ext", "_static", "results/*/results.md", "results/deploy/deploy.md"]  # as programs wrote them

html_theme = "furo"
html_title = "kd"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sphinx = False
pygments_style, pygments_dark_style = "friendly", "github-dark"

myst_fence_as_directive = ["math"]
myst_heading_anchors = 4
myst_links_external_new_tab = False

python_use_unqualified_type_names = True
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
napoleon_use_rtype = False
