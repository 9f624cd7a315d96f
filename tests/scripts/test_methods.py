"""`scripts/methods.py` makes the page of methods from docstrings, and detects one that differs from them."""

import shutil
import xml.etree.ElementTree as ET
from functools import cache

import pytest

from kd.methods.logits import Logits
from scripts import methods
from tests.methods.every import METHODS

entries = cache(methods.methods)


@pytest.fixture
def copied(tmp_path, monkeypatch):
    """Copies page and files of the methods; returns a function that runs the script there."""
    shutil.copytree(methods.ROOT / "docs" / "methods", tmp_path / "docs" / "methods")
    shutil.copy(methods.ROOT / methods.PAGE, tmp_path / methods.PAGE)
    shutil.copytree(methods.ROOT / "conf" / "method", tmp_path / "conf" / "method")
    monkeypatch.setattr(methods, "ROOT", tmp_path)
    monkeypatch.setattr(methods, "methods", entries)  # composed once

    def call(*arguments):
        monkeypatch.setattr("sys.argv", ["methods.py", *arguments])
        return methods.main()

    return call


def test_page_is_that_of_the_docstrings(copied, tmp_path, capsys):
    assert copied("--check") == 0
    page = tmp_path / methods.PAGE
    right = page.read_text(encoding="utf-8")
    page.write_text(right.replace("`T=2.0 alpha=0.1`", "`T=3.0 alpha=0.1`"), encoding="utf-8")
    (tmp_path / "docs" / "methods" / "logits.svg").unlink()
    assert copied("--check") == 1
    assert capsys.readouterr().out.splitlines() == [
        "docs/methods.md differs from the docstrings: python scripts/methods.py",
        "docs/methods/logits.svg differs from the docstrings: python scripts/methods.py",
    ]
    assert copied() == 0
    assert page.read_text(encoding="utf-8") == right
    page.write_text("# Methods\n", encoding="utf-8")
    assert copied() == 1
    assert "docs/methods.md has no place for the methods" in capsys.readouterr().err


def test_methods_are_those_with_a_class_of_their_own():
    assert [entry.name for entry in entries()] == METHODS


@pytest.mark.parametrize("name", METHODS)
def test_docstring_has_the_parts_of_a_section(name):
    """What the page of methods promises of each: formula, scaling, use, departures, every argument."""
    entry = next(entry for entry in entries() if entry.name == name)
    parts = methods.docstring(entry.cls)
    assert parts.keys() >= {"body", "Scaling", "Use", "Deviations", "Args", "Raises"}
    assert parts["body"].count("$$") >= 2
    arguments = dict(methods._arguments(parts["Args"]))
    assert set(arguments) == set(methods.inspect.signature(entry.cls).parameters)
    section = methods.section(entry)
    assert section.count("```") == parts["body"].count("$$")
    assert "$$" not in section
    assert "arXiv" in section or "CVPR" in section or "ICLR" in section or entry.name == "combine"
    assert all(f"| `{name}` | {value} |" in section for name, value in entry.knobs.items())
    root = ET.fromstring(methods.picture(entry.cls)[1])
    assert root.tag.endswith("svg")


def test_picture_has_an_arrow_for_each_part_that_is_read():
    class Reading(Logits):
        reads = frozenset({"logits", "features"})

    def arrows(cls):
        return [line for line in methods.picture(cls)[1].splitlines() if line.startswith("<line") and "#0969da" in line]

    assert len(arrows(Logits)) == 2  # logits, and the labels
    assert len(arrows(Reading)) == 5
    assert methods.picture(Reading)[0] == "docs/methods/features-logits.svg"

    class Last(Reading):
        matches = frozenset({"last map"})

    class Unlabelled(Logits):
        reads_labels = False

    class Peers(Logits):
        reads = frozenset()
        matches = frozenset({"logits"})

    assert [len(arrows(cls)) for cls in (Last, Unlabelled, Peers)] == [2, 1, 4]  # peers: two ways, and labels for both
    names = {methods.picture(cls)[0] for cls in (Logits, Reading, Last, Unlabelled, Peers)}
    assert len(names) == 5  # a file for each
