"""The command line that the scripts on result records share."""

import argparse
from pathlib import Path

from kd.errors import UserError
from kd.runs.results import REPORT
from kd.terminal import Parser


def parser(description: str, examples: str) -> Parser:
    """Make a parser of directories of runs, `--out` and `--baseline`.

    Args:
        description: text on the program; its lines are kept, like those of the examples.
        examples: commands, one a line.
    """
    made = Parser(
        description=description,
        epilog=f"example:\n{examples}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("dirs", nargs="+", type=Path, metavar="DIR", help="where runs were written to, at any depth")
    made.add_argument("--out", type=Path, help="where the result goes (default: DIR/report of the first DIR)")
    made.add_argument(
        "--baseline",
        metavar="NAME",
        help="label or method of the row to compare with (default: the only student trained on labels alone)",
    )
    return made


def out_dir(args: argparse.Namespace) -> Path:
    """Return where the result goes.

    Raises:
        UserError: if nobody named the place, and a link there leads to another.
    """
    if args.out is not None:
        return Path(args.out)
    default: Path = args.dirs[0] / REPORT
    if default.is_symlink():
        raise UserError(f"{default} is a link; name the place of the report by --out")
    return default
