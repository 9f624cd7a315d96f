import csv
import io
import random

import pytest
from markdown_it import MarkdownIt

from kd.report.page import bullets, linked
from kd.report.sweeps import Picture
from kd.report.tables import markdown
from kd.report.text import comma_separated, encodable, escaped, fewer, shortened, slug
from kd.terminal import visible


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\nb\tc", r"a\nb\tc"),
        ("\x1b[31mred\x9b", r"\x1b[31mred\x9b"),
        ("caf\u00e9 \u732b", "caf\u00e9 \u732b"),
        ("\u202etxt", r"\u202etxt"),  # writes the rest of the line from right to left
        ("\udcff", r"\udcff"),  # a byte of a file name that is not UTF-8
    ],
)
def test_visible_escapes_characters_without_a_shape(text, shown):
    assert visible(text) == shown
    assert visible(shown) == shown


def test_encodable_has_lookalikes_and_escapes():
    assert encodable("80.50 ± 0.71, KL(p ‖ q), 猫", "ascii") == r"80.50 +/- 0.71, KL(p || q), \u732b"
    assert encodable("80.50 ± 0.71, 猫", "utf-8") == "80.50 ± 0.71, 猫"
    assert encodable("80.50 ± 0.71", "latin-1") == "80.50 ± 0.71"


@pytest.mark.parametrize(
    ("text", "markdown"),
    [
        ("a|b", r"a\|b"),
        ("$5_$10", r"\$5\_\$10"),
        ("*a* `b` ~~c~~ d\\", r"\*a\* \`b\` \~\~c\~\~ d" + "\\\\"),
        ("_a_ weight_decay", r"\_a\_ weight_decay"),
        ("[a](b) [1,2] [bold]", r"[a]\(b) [1,2] [bold]"),
        ("<b> p < 0.05", r"\<b> p < 0.05"),
        ("&lt; a & b", r"\&lt; a & b"),
        ("# a #", r"\# a #"),
        ("- a", r"\- a"),
        ("1. a", r"1\. a"),
        ("> a", r"\> a"),
        ("[a]: b", r"\[a]: b"),
        ("student.scale=8 lr=[0.1] (n = 3) -1.2", "student.scale=8 lr=[0.1] (n = 3) -1.2"),
    ],
)
def test_escaped_shows_text_as_it_is(text, markdown):
    assert escaped(text) == markdown


PIECES = [
    *"\\|`*_~$<>[]()!#&;=-+.:\"' \t\n\x1b%01a猫",
    *(
        "<script>",
        "</b>",
        "<!--",
        "](x)",
        "[x]: y",
        "1. ",
        "- ",
        "> ",
        "# ",
        "---",
        "&lt;",
        "```",
        "    ",
        "![a](b)",
        "$$",
    ),
    *("\u202e", "\ud800", "__", "**", "|---|", "\\|"),
]


def shown(tokens):
    """The text of a parsed page; what is not text shows by its kind."""
    inline = [child for token in tokens if token.type == "inline" for child in token.children]
    return [child.content if child.type.startswith("text") else child.type for child in inline if child.content]


def kinds(tokens):
    return [token.type for token in tokens]


def test_escaped_survives_a_parser_of_markdown():
    """Whatever a name is made of, a page shows it as it is: in a paragraph, a cell, a heading, a list and a picture."""
    parse = MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse
    rng = random.Random(0)
    for _ in range(400):
        name = "a" + visible("".join(rng.choices(PIECES, k=8))).strip()
        name = name[1:] if name[1:] and rng.random() < 0.9 else name
        paragraph = parse(escaped(name))
        assert kinds(paragraph) == ["paragraph_open", "inline", "paragraph_close"]
        assert "".join(shown(paragraph)) == name
        table = parse(markdown([escaped(name), "b"], [[name, "c"]]))
        assert kinds(table).count("td_open") == 2
        assert "".join(shown(table)) == f"{name}b{name}c"
        notes = parse(bullets([name, "b"]))
        assert kinds(notes).count("list_item_open") == 2
        assert "".join(shown(notes)) == f"{name}b"
        (picture,) = parse(linked([Picture("x.png", None, name)])[0])[1].children
        assert (picture.type, picture.attrs["src"]) == ("image", "x.png")
        assert "".join(child.content for child in picture.children) == name


def test_comma_separated_has_no_formulas():
    lines = [
        {"@run": "=cmd|' /C calc'!A0", "n": -1.5, "T": "-3e-1"},
        {"@run": 'a,"b"', "n": None},
        {"@run": "+trainer.x=1", "n": 2, "T": "-"},
    ]
    text = comma_separated(["@run", "n", "T"], lines)
    assert list(csv.reader(io.StringIO(text))) == [
        ["'@run", "n", "T"],
        ["'=cmd|' /C calc'!A0", "-1.5", "-3e-1"],
        ['a,"b"', "", ""],
        ["'+trainer.x=1", "2", "'-"],
    ]


def test_shortened_keeps_texts_different():
    assert shortened("a" * 120) == "a" * 120
    first, second = (shortened("a" * 500 + middle + "b" * 500) for middle in "xy")
    assert first != second
    assert len(first) == 120
    assert first.startswith("aaa")
    assert first.endswith("bbb")


def test_fewer_counts_the_rest():
    assert fewer(["a", "b"], 2, "letters") == ["a", "b"]
    assert fewer(["a", "b", "c"], 1, "letters") == ["a", "2 more letters."]


def test_slug_is_part_of_a_file_name():
    assert slug("standard student.scale=8 lr=[0.1]") == "standard_student.scale=8_lr=_0.1"
    assert slug("../a/b") == ".._a_b"
    assert slug("$$") == "_"
    assert len(slug("x" * 1000)) == 100
    assert slug("猫" * 1000) == "猫" * 33  # three bytes each
