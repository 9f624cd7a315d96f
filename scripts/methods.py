"""Write docs/methods.md anew from the docstrings and files of the methods: `python scripts/methods.py`."""

import inspect
import re
import sys
import textwrap
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from pages import filled, wants_check, write_or_check

from kd.app.check import knobs
from kd.app.compose import compose, plain
from kd.methods.base import Method
from kd.terminal import outcome

ROOT = Path(__file__).resolve().parents[1]
PAGE = "docs/methods.md"
SECTIONS = ("Scaling", "Use", "Deviations", "Args", "Raises")
FAMILIES = {
    "Logits": lambda reads: reads == {"logits"},
    "Embeddings": lambda reads: "embedding" in reads and not reads & {"features", "preacts"},
    "Maps": lambda reads: bool(reads & {"features", "preacts"}),
    "Without a teacher": lambda reads: not reads,
}
"""Headings, and which methods are under each, by what they read of the teacher."""


class Entry(NamedTuple):
    """One method: its name in the command line, its class, and what its file sets."""

    name: str
    cls: type[Method]
    knobs: dict[str, Any]
    ranges: dict[str, str]


def main() -> int:
    return outcome("methods.py", work)


def work() -> int:
    """Write page and pictures, or check them; return 1 where a check finds that something differs."""
    check = wants_check(__doc__)
    page = (ROOT / PAGE).read_text(encoding="utf-8")
    entries = methods()
    wanted = {PAGE: filled(page, PAGE, "the methods", "methods", text(entries))}
    wanted |= dict(picture(entry.cls) for entry in entries)
    return write_or_check(ROOT, wanted, check, "the docstrings: python scripts/methods.py")


def methods() -> list[Entry]:
    """Return every method of conf/method whose file names a class of that name, in alphabetical order."""
    entries = []
    for file in sorted((ROOT / "conf" / "method").glob("*.yaml")):
        node = yaml.safe_load(file.read_text(encoding="utf-8"))["method"]
        if node is None or not node["_target_"].startswith(f"kd.methods.{file.stem}."):
            continue  # labels alone, and chains that another method's class teaches
        module, _, name = node["_target_"].rpartition(".")
        settings = plain(compose(["data=digits", f"method={file.stem}"]).cfg)
        own = knobs(settings)
        entries.append(Entry(file.stem, getattr(import_module(module), name), own, settings["spec"]["ranges"]))
    return entries


def text(entries: list[Entry]) -> str:
    """Return a table of the methods by family, and a section for each."""
    lines = ["| method | loss | reads of the teacher | stored logits |", "| :--- | :--- | :--- | :--- |"]
    sections = []
    for title, belongs in FAMILIES.items():
        family = [entry for entry in entries if belongs(entry.cls.reads)]
        sections.append(f"# {title}\n")
        for entry in family:
            reads = ", ".join(sorted(entry.cls.reads)) or "nothing"
            stored = "yes" if entry.cls.reads and entry.cls.reads <= {"logits"} and not entry.cls.own_images else ""
            loss = _dots(objective(entry.cls)).replace("|", "\\|")
            lines.append(f"| [{entry.name}](#{entry.name}) | {loss} | {reads} | {stored} |")
            sections.append(section(entry))
    return "\n".join([*lines, "", *sections])


def objective(cls: type) -> str:
    """Return the first line of a method's docstring, which is its loss."""
    return (inspect.getdoc(cls) or "").partition("\n")[0].removesuffix(".")


def section(entry: Entry) -> str:
    """Return a method's part of the page."""
    source = (inspect.getdoc(import_module(entry.cls.__module__)) or "").partition("\n")[0].removesuffix(".")
    source = re.sub(r"arXiv (\d{4}\.\d{4,5})", r"[arXiv \1](https://arxiv.org/abs/\1)", source)
    parts = docstring(entry.cls)
    defaults = " ".join(f"{name}={' '.join(v) if isinstance(v, list) else v}" for name, v in entry.knobs.items())
    lines = [f"## {entry.name}", "", f"{source}.", "", _dots(objective(entry.cls)), ""]
    lines += [f"![What is matched]({picture(entry.cls)[0].removeprefix('docs/')})", "", parts["body"], ""]
    if defaults:
        lines += [f"* Defaults: `{defaults}`"]
    lines += [f"* {name}: {_one_line(parts[name])}" for name in ("Scaling", "Use") if name in parts]
    if "Deviations" in parts:
        lines += ["* Departures:", textwrap.indent(parts["Deviations"], "  ")]
    arguments = {name: meaning for name, meaning in _arguments(parts["Args"]) if name != "label_smoothing"}
    if arguments:
        lines += ["", "| setting | default | range | meaning |", "| :--- | ---: | :--- | :--- |"]
        signature = inspect.signature(entry.cls).parameters
        for name, meaning in arguments.items():
            setting = name if name in entry.knobs else f"method.{name}"
            default = entry.knobs.get(name, signature[name].default)
            default = {None: "null", True: "true", False: "false"}.get(default, default) if _plain(default) else default
            default = list(default) if isinstance(default, tuple) else default
            span = entry.ranges.get(name, "").replace("|", "\\|")
            lines.append(f"| `{setting}` | {default} | {span} | {_one_line(meaning)} |".replace(" |  | ", " | | "))
    return _fenced("\n".join(lines) + "\n")


def _fenced(content: str) -> str:
    """Put formulas where Markdown leaves backslashes and underscores alone: $$ in a block, $ with backticks."""
    content = re.sub(r"\$\$\s*(.*?)\s*\$\$", r"```math\n\1\n```", content, flags=re.DOTALL)
    return re.sub(r"(?<!`)\$([^$`\n]+)\$(?!`)", r"$`\1`$", content)


def _plain(value: object) -> bool:
    return value is None or isinstance(value, bool)


def docstring(cls: type) -> dict[str, str]:
    """Return a class's docstring in parts: `body`, without the first line, and its sections by their names."""
    pieces = re.split(rf"^({'|'.join(SECTIONS)}):\n", inspect.getdoc(cls) or "", flags=re.MULTILINE)
    parts = {name: textwrap.dedent(content).strip() for name, content in zip(pieces[1::2], pieces[2::2], strict=True)}
    return {"body": pieces[0].partition("\n")[2].strip(), "Args": "", **parts}


def _arguments(args: str) -> list[tuple[str, str]]:
    """Return names and meanings; several names before one colon have the meaning in common."""
    found = re.findall(r"^(\w+(?:, \w+)*): (.*(?:\n +.*)*)", args, re.MULTILINE)
    return [(name, meaning) for names, meaning in found for name in names.split(", ")]


def _one_line(content: str) -> str:
    return " ".join(content.split()).replace("|", "\\|")


def _dots(formula: str) -> str:
    return formula.replace(" * ", " · ")


INK, MATCH = "#57606a", "#0969da"


MAPS = {"maps": (0, 1, 2), "middle map": (1,), "last map": (2,)}
"""Which of the three maps of a picture a name of `Method.matches` means."""


def picture(cls: type[Method]) -> tuple[str, str]:
    """Return the file and the drawing of what a method matches: teacher above, student below, an arrow for each part.

    A part that is matched has an arrow from the teacher's to the student's, with a peer in its place also back; labels
    teach the logits of all networks that are trained.
    """
    parts = _matched(cls)
    maps = {place for part in parts for place in MAPS.get(part, ())}
    other = "teacher" if cls.reads else "peer"
    words = sorted(part.replace(" ", "-") for part in (cls.reads if cls.matches is None else parts))
    words += [*(["own-images"] if cls.own_images else []), *([] if cls.reads_labels else ["no-labels"])]
    name = "-".join([*(["peer"] if parts and not cls.reads else []), *words]) or "no-teacher"
    rows = [(other, 50)] * bool(parts) + [("student", 150 if parts else 60)]
    shapes = []
    for role, y in rows:
        shapes.append(_label(20, y - 18, role, "start"))
        shapes.append(_box(20, y, 60, "images" + ("′" if cls.own_images else ""), INK))
        for i, height in enumerate((44, 36, 28)):
            shapes.append(
                _box(140 + 80 * i, y + (44 - height) / 2, 50, f"map {i + 1}", MATCH if i in maps else INK, height)
            )
        shapes.append(_box(394, y + 8, 82, "embedding", MATCH if "embedding" in parts else INK, 28))
        taught = "logits" in parts or (role == "student" and cls.reads_labels)
        shapes.append(_box(500, y + 8, 60, "logits", MATCH if taught else INK, 28))
        for left, right in ((80, 140), (190, 220), (270, 300), (350, 394), (476, 500)):
            shapes.append(_arrow(left, y + 22, right, y + 22, INK))
    matched = [place for i, place in enumerate(((165, 44), (245, 36), (325, 28))) if i in maps]
    matched += [(435, 28)] * ("embedding" in parts) + [(530, 28)] * ("logits" in parts)
    for x, height in matched:
        shapes.append(_arrow(x, 73 + height / 2, x, 171 - height / 2, MATCH))
        if not cls.reads:
            shapes.append(_arrow(x + 12, 171 - height / 2, x + 12, 73 + height / 2, MATCH))
    if "preacts" in cls.reads:
        shapes.append(_label(331, 126, "before activation", "start"))
    for role, y in rows:
        if cls.reads_labels and role != "teacher":
            shapes.append(_arrow(600, y + 22, 562, y + 22, MATCH))
            shapes.append(_label(604, y + 26, "labels", "start"))
    height = rows[-1][1] + 60
    style = "font-family:system-ui,sans-serif;font-size:12px"
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 660 {height}" width="660" role="img" style="{style}">'
    tips = "".join(
        f'<marker id="tip{color[1:]}" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" markerHeight="8" '
        f'markerUnits="userSpaceOnUse" orient="auto"><path d="M0 0L8 4L0 8z" fill="{color}"/></marker>'
        for color in (INK, MATCH)
    )
    title = f"<title>{', '.join(sorted(parts)) or 'labels alone'}</title>"
    ground = f'<rect width="660" height="{height}" fill="#ffffff"/>'
    lines = [head, title, f"<defs>{tips}</defs>", ground, *shapes, "</svg>"]
    return f"docs/methods/{name}.svg", "\n".join(lines) + "\n"


def _matched(cls: type[Method]) -> frozenset[str]:
    """Return what a method matches, as `Method.matches` says or, by default, all that it reads."""
    if cls.matches is not None:
        return cls.matches
    return frozenset({"features": "maps", "preacts": "maps"}.get(part, part) for part in cls.reads)


def _box(x: float, y: float, width: float, name: str, color: str, height: float = 44) -> str:
    fill = "#ddf4ff" if color == MATCH else "#f6f8fa"
    return (
        f'<rect x="{x}" y="{y:g}" width="{width}" height="{height:g}" rx="4" fill="{fill}" stroke="{color}"/>'
        + _label(x + width / 2, y + height / 2 + 4, name)
    )


def _label(x: float, y: float, name: str, anchor: str = "middle") -> str:
    return f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}" fill="#24292f">{name}</text>'


def _arrow(x1: float, y1: float, x2: float, y2: float, color: str) -> str:
    width = 2 if color == MATCH else 1
    return (
        f'<line x1="{x1:g}" y1="{y1:g}" x2="{x2:g}" y2="{y2:g}" stroke="{color}" stroke-width="{width}" '
        f'marker-end="url(#tip{color[1:]})"/>'
    )


if __name__ == "__main__":
    sys.exit(main())
