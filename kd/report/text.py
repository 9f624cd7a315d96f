"""Names and sentences as plain text, wherever a report puts them: terminal, Markdown, file names.

matplotlib's own escape is `kd.report.style.literal`.
"""

import re

_LOOKALIKES = str.maketrans({"±": "+/-", "‖": "||", "×": "x", "≥": ">=", "“": '"', "”": '"', "…": "...", "²": "^2"})
_LONGEST = 100
"""Of a file name's stem; file systems take 255 bytes."""


def visible(text: str) -> str:
    r"""Write characters that have no shape as escapes, a line's end as "\n" and ESC as "\x1b".

    A name can then neither break a table nor control a terminal, and can be encoded: surrogates, which stand for bytes
    that are not UTF-8, are among them.
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def encodable(text: str, encoding: str) -> str:
    """Return the text in characters of an encoding, such as "+/-" for "±" in ASCII."""
    try:
        text.encode(encoding)
        return text
    except UnicodeEncodeError:
        return text.translate(_LOOKALIKES).encode(encoding, "backslashreplace").decode(encoding)


def escaped(text: str) -> str:
    """Return Markdown that shows the text as it is: no cell's end, emphasis, code, formula, link or tag."""
    return re.sub(r"[\\|`*$~]|(?<![^\W_])_|_(?![^\W_])|<(?=[\w/!?])|(?<=\])\(", r"\\\g<0>", text)


def slug(text: str) -> str:
    """Return a name as part of a file name."""
    return re.sub(r"[^\w.=-]+", "_", text)[:_LONGEST].strip("_") or "_"
