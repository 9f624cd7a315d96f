"""Names and sentences as plain text, wherever a report puts them: terminal, Markdown, CSV, file names.

Records may be a stranger's. For every medium there is one function, called where the text is written:
`kd.terminal.visible` for a terminal, and for all others first; `escaped` for Markdown, `latex` for LaTeX,
`comma_separated` for CSV, `slug` for file names, and for matplotlib `kd.report.style.literal`.
"""

import csv
import io
import re
from collections.abc import Iterable, Sequence

from kd.hashing import digest

_LOOKALIKES = str.maketrans({"±": "+/-", "‖": "||", "×": "x", "≥": ">=", "“": '"', "”": '"', "…": "...", "²": "^2"})
_LATEX = str.maketrans(
    {char: f"\\{char}" for char in "#$%&_{}"}
    | {char: rf"\text{name}{{}}" for char, name in {"\\": "backslash", "^": "asciicircum", "~": "asciitilde"}.items()}
    | {"[": "{[}"}  # behind the end of a table's line it would be a length
    | {char: f"${name}$" for char, name in {"<": "<", ">": ">", "±": r"\pm", "×": r"\times"}.items()}
)
_LONGEST = 100
"""Bytes of a file name's stem; file systems take 255."""
_SHOWN = 120
"""Characters of a name."""
_FORMULA = re.compile(r"[=+\-@]")
"""What a cell begins with that spreadsheets compute."""
NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?", re.IGNORECASE)


def encodable(text: str, encoding: str) -> str:
    """Return the text in characters of an encoding, such as "+/-" for "±" in ASCII."""
    try:
        text.encode(encoding)
        return text
    except UnicodeEncodeError:
        return text.translate(_LOOKALIKES).encode(encoding, "backslashreplace").decode(encoding)


def shortened(text: str, most: int = _SHOWN) -> str:
    """Return both ends of a text that is longer than `most` characters, and between them a hash of all of it.

    Texts that differ remain different.
    """
    if len(text) <= most:
        return text
    middle = f"...{digest(text)[:6]}..."
    tail = (most - len(middle)) // 3
    return text[: most - len(middle) - tail] + middle + text[-tail:]


def fewer(lines: Sequence[str], most: int, what: str) -> list[str]:
    """Return the first lines, and how many more of what there are."""
    return [*lines[:most], *([f"{len(lines) - most:,} more {what}."] if len(lines) > most else [])]


def escaped(text: str, brackets: bool = False) -> str:
    """Return Markdown that shows the text as it is.

    No cell, emphasis, code, formula, link, tag or entity begins or ends with it; nor a heading, list, quotation or
    definition of a link, if it begins a line.

    Args:
        text: on one line, see `visible`.
        brackets: whether it goes into brackets, as the description of a picture does.
    """
    special = r"[\\|`*$~]|(?<![^\W_])_|_(?![^\W_])|<(?=[\w/!?])|&(?=[#\w])|" + (r"[\[\]]" if brackets else r"(?<=\])\(")
    text = re.sub(special, r"\\\g<0>", text.strip())
    block = r"^(?:(?=#{1,6}(?:\s|$)|[-+](?:\s|$)|>|=+$|-+$|\[.*\]:)|(\d{1,9})(?=[.)](?:\s|$)))"
    return re.sub(block, r"\1\\", text)


def latex(text: str) -> str:
    """Return LaTeX that shows the text as it is."""
    return text.translate(_LATEX)


def comma_separated(headers: Sequence[str], lines: Iterable[dict[str, object]]) -> str:
    """Return a CSV of `cell`s; those without a value are empty."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(map(cell, headers))
    writer.writerows([cell(line.get(header)) for header in headers] for line in lines)
    return file.getvalue()


def cell(value: object) -> object:
    """Return a cell of a CSV.

    A text that a spreadsheet would compute, as it begins with = + - or @, gets an apostrophe before it; a number does
    not.
    """
    formula = isinstance(value, str) and _FORMULA.match(value) and not NUMBER.fullmatch(value)
    return f"'{value}" if formula else value


def slug(text: str) -> str:
    """Return a name as part of a file name."""
    short = re.sub(r"[^\w.=-]+", "_", text).encode()[:_LONGEST].decode(errors="ignore")
    return short.strip("_") or "_"
