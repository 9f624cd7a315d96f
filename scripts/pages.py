"""Text between the marks of a page, and files that are written or compared with what is there."""

from collections.abc import Mapping
from pathlib import Path

from kd.errors import UserError
from kd.terminal import Parser


def filled(text: str, page: str, what: str, name: str, content: str) -> str:
    """Return the text of a page with content between the marks of that name, as in <!-- pairs --> and <!-- /pairs -->.

    Args:
        text: of the page.
        page, what: its path and what belongs there, for the error.
        name: of the marks.
        content: ends with a line end.

    Raises:
        UserError: for a page without them.
    """
    mark, end = f"<!-- {name} -->\n", f"<!-- /{name} -->\n"
    before, found, rest = text.partition(mark)
    _, found_end, after = rest.partition(end)
    if not (found and found_end):
        raise UserError(f"{page} has no place for {what}: {mark.strip()} to {end.strip()}")
    return f"{before}{mark}{content}{end}{after}"


def write_or_check(root: Path, wanted: Mapping[str, str], check: bool, source: str) -> int:
    """Write the files that differ from what is wanted, or with `check` name them, and return 1 if there are any.

    Args:
        root: what the names of the files are relative to.
        wanted: texts by file.
        check: whether to write nothing.
        source: what they differ from, and what makes them anew.
    """
    stale = [name for name, text in wanted.items() if not _holds(root / name, text)]
    for name in stale:
        if check:
            print(f"{name} differs from {source}")
        else:
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text(wanted[name], encoding="utf-8")
    return int(check and bool(stale))


def wants_check(description: str | None) -> bool:
    """Read the command line of a program that writes pages: whether it is to compare only."""
    parser = Parser(description=description)
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if something differs")
    return bool(parser.parse_args().check)


def _holds(path: Path, text: str) -> bool:
    return path.is_file() and path.read_text(encoding="utf-8") == text
