"""What the site adds to pages of docs/: parts made at build time, in place of comments as in `<!-- site: knobs -->`.

On GitHub these comments are invisible, and each page says where the same is to be found.
"""

import json
import os
import re
from pathlib import Path

import yaml
from sphinx.application import Sphinx

from kd.ranges import KINDS, RANGES

ROOT = Path(__file__).resolve().parents[2]
CONF = ROOT / "conf"
LINK = re.compile(r"(?<=\]\()(?!\w+:|#|<)([^)#\s]+)(#[\w-]+)?(?=\))")
PAGES_FOR = {
    "README.md": "docs/index.md",
    "SECURITY.md": "docs/guide/security.md",
    "notebooks/distillation.ipynb": "docs/guide/notebook.md",
}
"""Files outside of docs/ that the site shows as a page; all others are offered for download."""


def fill(app: Sphinx, page: str, content: list[str]) -> None:
    """Make a page's Markdown that of the site."""
    place = f"docs/{page}.md"
    text = re.sub(r"^<!-- site: (\w+) -->$", lambda match: PARTS[match[1]](place), content[0], flags=re.MULTILINE)
    text = moved(text, place, place)
    text = re.sub(r"(?<!`)\$`([^`\n]+)`\$(?!`)", r"{math}`\1`", text)  # GitHub's form of a formula within a line
    content[0] = one_title(text)


def moved(text: str, source: str, place: str) -> str:
    """Return Markdown from one file, as in "SECURITY.md", with its links as they are to be in another one."""

    def link(match: re.Match[str]) -> str:
        target = os.path.normpath(os.path.join(os.path.dirname(source), match[1]))
        return os.path.relpath(PAGES_FOR.get(target, target), os.path.dirname(place)) + (match[2] or "")

    return LINK.sub(link, text)


def one_title(text: str) -> str:
    """Return Markdown with one first-level heading: where there are more, all after the first are one level deeper."""
    pieces = re.split(r"(^```.*?^```$)", text, flags=re.MULTILINE | re.DOTALL)
    titles = sum(len(re.findall(r"^# ", piece, re.MULTILINE)) for piece in pieces[::2])
    if titles > 1:
        pieces[::2] = [re.sub(r"^(#+ )", r"#\1", piece, flags=re.MULTILINE) for piece in pieces[::2]]
        pieces[0] = pieces[0].replace("## ", "# ", 1)
    return "".join(pieces)


# The notebook


def notebook(place: str) -> str:
    """Return the cells of the notebook, and what they printed and drew when they were run last."""
    source = "notebooks/distillation.ipynb"
    cells = json.loads((ROOT / source).read_text(encoding="utf-8"))["cells"]
    parts = []
    for cell in cells:
        text = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            text = re.sub(r"\$([^$\n]+)\$", r"{math}`\1`", re.sub(r"^# .*\n", "", text))
            parts.append(moved(text, source, place))
        else:
            parts.append(f"```python\n{text}\n```")
            parts += [printed(output, cell["id"]) for output in cell["outputs"]]
    return "\n\n".join(parts)


def printed(output: dict, name: str) -> str:
    """Return one output of a cell as Markdown."""
    data = output.get("data", {})
    if "image/png" in data:
        png = "".join(data["image/png"]).strip().replace("\n", "")
        return f'<img class="output" src="data:image/png;base64,{png}" alt="Output of the cell above: {name}">'
    if "text/markdown" in data:
        return "".join(data["text/markdown"])
    return f"```text\n{''.join(output.get('text') or data['text/plain']).rstrip()}\n```"


# Settings


def knobs(place: str) -> str:
    """Return tables of all settings and choices, from the files of conf/."""
    folder = os.path.relpath("docs", os.path.dirname(place))
    parts = ["## Of every run", table(settings(CONF / "config.yaml"))]
    parts += ["## Methods", methods(folder)]
    parts += ["## Data", "Every data set has:", table(settings(CONF / "data" / "shared" / "default.yaml", "data."))]
    parts += [choices("data", folder)]
    parts += ["## Recipe", table(settings(CONF / "recipe" / "default.yaml", "recipe.")), choices("recipe", folder)]
    for group in ("optimizer", "schedule"):
        parts += [choices(f"recipe/{group}", folder)]
    parts += ["The teacher's are called `teacher_recipe`: `recipe@teacher_recipe=adamw teacher_recipe.epochs=60`."]
    parts += ["## Networks", "The same names and settings are there for `teacher`.", choices("student", folder)]
    own = settings(CONF / "student" / "custom.yaml", "student.")
    parts += ["Networks of a library or of your own (`custom`, `timm`, `torchvision`) have:", table(own)]
    added = "Other arguments of `lightning.Trainer` can be added, as in `+trainer.accumulate_grad_batches=2`."
    parts += ["## Trainer", added]
    parts += [table(settings(CONF / "trainer" / "auto.yaml", "trainer.")), choices("trainer", folder)]
    parts += ["## Speed", table(settings(CONF / "speed" / "fast.yaml", "speed.")), choices("speed", folder)]
    for group, title in (("logger", "Loggers"), ("debug", "Debugging"), ("experiment", "Experiments")):
        parts += [f"## {title}", choices(group, folder)]
    parts += ["## Launchers", choices("hydra/launcher", folder)]
    return "\n\n".join(parts)


def settings(file: Path, prefix: str = "") -> list[tuple[str, str, str]]:
    """Return name, default and comment of every setting in a file, as they are typed."""
    text = file.read_text(encoding="utf-8")
    lines = text.splitlines()
    found = []

    def walk(node: yaml.Node, path: str) -> None:
        for key, value in node.value:
            name = path + key.value
            if key.value.startswith("_") or key.value in ("defaults", "hydra", "spec"):
                continue
            if isinstance(value, yaml.MappingNode) and not value.flow_style:
                walk(value, f"{name}.")
            else:
                default = text[value.start_mark.index : value.end_mark.index].strip()
                line = lines[key.start_mark.line]
                found.append((name, default, line.partition(" # ")[2].strip()))

    node = yaml.compose(text)
    if isinstance(node, yaml.MappingNode):
        walk(node, prefix)
    return found


def table(rows: list[tuple[str, str, str]]) -> str:
    """Return settings with their ranges as a table."""
    lines = ["| setting | default | range | meaning |", "| :--- | :--- | :--- | :--- |"]
    for name, default, comment in rows:
        last = name.rpartition(".")[2]
        span = RANGES.get(last, KINDS.get(last, ""))
        lines.append(f"| {code(name)} | {code(default)} | {cell(str(span))} | {cell(comment)} |")
    return "\n".join(lines)


def methods(folder: str) -> str:
    """Return all methods with their knobs, which are top-level settings."""
    lines = ["| `method=` | what it does | knobs, defaults and ranges |", "| :--- | :--- | :--- |"]
    for file in sorted((CONF / "method").glob("*.yaml")):
        spans = (yaml.safe_load(file.read_text(encoding="utf-8")).get("spec") or {}).get("ranges", {})
        own = [f"{code(f'{name}={value}')} {cell(spans.get(name, ''))}" for name, value, _ in typed(file)]
        sums = [f"{code(name)} {cell(span)}" for name, span in spans.items() if " + " in name]
        link = f"[{file.stem}]({folder}/methods.md#{file.stem})"
        lines.append(f"| {link} | {cell(description(file))} | {', '.join(part.strip() for part in own + sums)} |")
    return "\n".join(lines)


def typed(file: Path) -> list[tuple[str, str, str]]:
    """Return the settings of a method's file that are to be typed; others pass a knob on."""
    return [row for row in settings(file) if row[0] != "method" and not row[1].startswith("${")]


def choices(group: str, folder: str) -> str:
    """Return the files of a group, what each is, and what it sets."""
    lines = [f"| `{group}=` | what it is | sets |", "| :--- | :--- | :--- |"]
    for file in sorted((CONF / group).glob("*.yaml")):
        anywhere = "@package _global_" in file.read_text(encoding="utf-8")
        rows = settings(file, "" if anywhere else f"{group.replace('/', '.')}.")
        values = {name: re.sub(r"^\$\{oc\.select:\w+,(.+)\}$", r"\1", value) for name, value, _ in rows}
        own = [f"{name}={value}" for name, value in values.items() if value != "null" and not value.startswith("${")]
        lines.append(f"| {code(file.stem)} | {cell(description(file))} | {', '.join(map(code, own))} |")
    return "\n".join(lines)


def description(file: Path) -> str:
    """Return a file's first comment, which describes it in one line."""
    comments = [line[1:].strip() for line in file.read_text(encoding="utf-8").splitlines() if line.startswith("#")]
    return next((comment for comment in comments if not comment.startswith("@package")), "")


def code(text: str) -> str:
    """Return a text as code in a cell of a table."""
    return f"`{one_line(text)}`" if text else ""


def cell(text: str) -> str:
    """Return a comment as a cell of a table, with nothing that Markdown takes as its own."""
    return re.sub(r"([*_<`])", r"\\\1", one_line(text))


def one_line(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


# Others


def security(place: str) -> str:
    """Return SECURITY.md without its title."""
    text = (ROOT / "SECURITY.md").read_text(encoding="utf-8").partition("\n")[2]
    return moved(text, "SECURITY.md", place)


def temperature(place: str) -> str:
    """Return the slider of the temperature, with its script."""
    page = (Path(__file__).parent / "temperature.html").read_text(encoding="utf-8")
    return f"```{{raw}} html\n{page}\n```"


PARTS = {"knobs": knobs, "notebook": notebook, "security": security, "temperature": temperature}


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("source-read", fill)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
