"""Command line and output that the scripts on result records share."""

import argparse
import io
import signal
import sys
from pathlib import Path


def parser(description: str, examples: str) -> argparse.ArgumentParser:
    """Make a parser of directories of runs, `--out` and `--baseline`.

    Args:
        description: text on the program; its lines are kept, like those of the examples.
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


def tolerant_stdout() -> None:
    """Let neither the terminal's encoding nor a pipe's end, as in `| head`, end a script with a traceback.

    Characters that the encoding lacks are printed as escapes.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    if hasattr(signal, "SIGPIPE"):
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
