import pytest

from kd.report.text import encodable, escaped, slug, visible


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
        ("student.scale=8 lr=[0.1] (n = 3) -1.2", "student.scale=8 lr=[0.1] (n = 3) -1.2"),
    ],
)
def test_escaped_shows_text_as_it_is(text, markdown):
    assert escaped(text) == markdown


def test_slug_is_part_of_a_file_name():
    assert slug("standard student.scale=8 lr=[0.1]") == "standard_student.scale=8_lr=_0.1"
    assert slug("../a/b") == ".._a_b"
    assert slug("$$") == "_"
    assert len(slug("x" * 1000)) == 100
