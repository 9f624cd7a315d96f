"""Write the experiments on CIFAR-100 and the tables of docs/cifar100.md from one table: `python scripts/pairs.py`."""

import csv
import re
import sys
from pathlib import Path
from typing import NamedTuple

import yaml
from pages import filled, wants_check, write_or_check

from kd.errors import UserError
from kd.terminal import outcome

ROOT = Path(__file__).resolve().parents[1]
TABLE = "docs/results/cifar100_published.csv"
"""Accuracies in % by pair, a line a network or method; then lines of settings, such as `dkd beta`."""
PAGE = "docs/cifar100.md"
FOLDER = "conf/experiment/cifar100"

SLOW = ("mobilenetv2", "shufflenetv1", "shufflenetv2")
"""Students with a fifth of the learning rate, 0.01."""
RECIPES = {"": ("cifar100_published", 0.01), "fast/": ("cifar100_fast", 0.08)}
"""The base of the files in a folder, and the learning rate that it is replaced by for the slow ones."""


class Pair(NamedTuple):
    """A teacher, a student, and what is published of them by the first column of the table."""

    teacher: str
    student: str
    published: dict[str, str]

    @property
    def name(self) -> str:
        return f"{self.teacher}_{self.student}"

    @property
    def of_one_family(self) -> bool:
        teacher, student = (re.sub(r"\d.*", "", name) for name in (self.teacher, self.student))
        return teacher == student


def main() -> int:
    return outcome("pairs.py", work)


def work() -> int:
    """Write the files, or check them; return 1 where a check finds that something differs."""
    check = wants_check(__doc__)
    pairs, sources = read()
    wanted = experiments(pairs) | {PAGE: page(pairs, sources)}
    code = write_or_check(ROOT, wanted, check, f"{TABLE}: python scripts/pairs.py")
    found = {path.relative_to(ROOT).as_posix() for path in (ROOT / FOLDER).rglob("*.yaml")}
    for name in sorted(found - wanted.keys()):
        raise UserError(f"{name} is of no pair in {TABLE}; remove it")
    return code


def read() -> tuple[list[Pair], dict[str, str]]:
    """Return the pairs, and the source of each line of the table by its first column."""
    with open(ROOT / TABLE, encoding="utf-8", newline="") as file:
        (_, _, *names), *lines = csv.reader(file)
    for place, line in enumerate(lines, start=2):
        if len(line) != len(names) + 2:
            raise UserError(f"{TABLE}: line {place} has {len(line)} columns, the first {len(names) + 2}")
    pairs = []
    for column, name in enumerate(names, start=2):
        teacher, arrow, student = name.partition(" > ")
        if not arrow:
            raise UserError(f"{TABLE}: a pair is written TEACHER > STUDENT, got {name!r}")
        pairs.append(Pair(teacher, student, {line[0]: line[column] for line in lines if line[column]}))
    return pairs, {what: source for what, source, *_ in lines}


def experiments(pairs: list[Pair]) -> dict[str, str]:
    """Return the files of the experiments by their names."""
    return {f"{FOLDER}/{folder}{pair.name}.yaml": experiment(pair, folder) for folder in RECIPES for pair in pairs}


def experiment(pair: Pair, folder: str) -> str:
    """Return the file of a pair in one of the folders of `RECIPES`."""
    base, lr = RECIPES[folder]
    figures = ", ".join(f"{name} {pair.published[name]} %" for name in ("teacher", "student", "kd"))
    lines = [
        "# @package _global_",
        f"# {pair.teacher} teaches {pair.student}{' in short' if folder else ''}; published: {figures}",
        f"# Made by scripts/pairs.py from {TABLE}.",
        "defaults:",
        f"  - shared/{base}",
        f"  - override /teacher: {pair.teacher}",
        f"  - override /student: {pair.student}",
    ]
    if pair.student in SLOW:
        lines += ["", "recipe:", "  optimizer:", f"    lr: ${{oc.select:lr,{lr}}}"]
    return "\n".join([*lines, ""])


def page(pairs: list[Pair], sources: dict[str, str]) -> str:
    """Return the page with its tables made from the pairs."""
    text = (ROOT / PAGE).read_text(encoding="utf-8")
    same = [pair for pair in pairs if pair.of_one_family]
    tables = {
        "pairs": commands(pairs),
        "same": accuracies(same, sources),
        "different": accuracies([pair for pair in pairs if not pair.of_one_family], sources),
    }
    for name, table in tables.items():
        text = filled(text, PAGE, "a table", name, table)
    return text


def commands(pairs: list[Pair]) -> str:
    """Return a line a pair: its experiment, its figures, and settings that are published for it alone."""
    lines = [
        "| `experiment=` | teacher | student | kd | published for this pair |",
        "| :--- | ---: | ---: | ---: | :--- |",
    ]
    for pair in pairs:
        figures = " | ".join(pair.published[name] for name in ("teacher", "student", "kd"))
        lines.append(f"| `cifar100/{pair.name}` | {figures} | {', '.join(own_settings(pair))} |")
    return "\n".join([*lines, ""])


def own_settings(pair: Pair) -> list[str]:
    """Return what to add for each method whose published settings for a pair are not its defaults."""
    added: dict[str, list[str]] = {}
    for what, value in pair.published.items():
        method, _, knob = what.partition(" ")
        if knob and float(value) != yaml.safe_load((ROOT / f"conf/method/{method}.yaml").read_text())[knob]:
            added.setdefault(method, []).append(f"{knob}={value}")
    return [f"`method={method} {' '.join(settings)}`" for method, settings in added.items()]


def accuracies(pairs: list[Pair], sources: dict[str, str]) -> str:
    """Return a table of accuracies, a line a network or method of which some are published."""
    lines = [
        f"| | {' | '.join(f'{pair.teacher} > {pair.student}' for pair in pairs)} | source |",
        f"| :--- | {'---: | ' * len(pairs)}:--- |",
    ]
    for what, source in sources.items():
        figures = [pair.published.get(what, "") for pair in pairs]
        if " " not in what and any(figures):
            lines.append(f"| {what} | {' | '.join(figures)} | {source} |".replace("|  |", "| |").replace("|  |", "| |"))
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    sys.exit(main())
