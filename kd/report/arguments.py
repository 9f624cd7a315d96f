"""What the scripts that read result records are given on their command lines."""

import argparse
from pathlib import Path


def parser(description: str, examples: str) -> argparse.ArgumentParser:
    """One that takes directories of runs, `--out` and `--baseline`.

    Args:
        description: of the program; its lines stay as they are, like those of the examples.
        examples: commands, one a line.
    """
    made = argparse.ArgumentParser(
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
