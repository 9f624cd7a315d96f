"""Make the folder of a run as the Hugging Face hub wants it: weights, model card, record."""

import argparse
import shutil
import sys
from dataclasses import replace
from pathlib import Path

from kd.app.programs import command_line
from kd.deploy.card import card
from kd.deploy.runtime import SUFFIXES
from kd.errors import UserError
from kd.files import replaced
from kd.report.text import visible
from kd.runs.given import weights_file
from kd.runs.results import CARD, FILE, read, write
from kd.terminal import Parser, tolerant_stdout


def main() -> int:
    tolerant_stdout()
    try:
        args = _arguments()
        folder = publish(args.run, args.to, args.license)
    except UserError as error:
        print(f"publish.py: {visible(str(error))}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"publish.py: {visible(str(error.filename))}: {error.strerror}", file=sys.stderr)
        return 1
    print(f"{visible(str(folder))}: {', '.join(sorted(path.name for path in folder.iterdir()))}")
    print(f"to upload it: {command_line(['hf', 'upload', 'USER/NAME', str(folder), '.'])}")
    return 0


def publish(run: Path, to: Path, license_name: str | None) -> Path:
    """Copy what others need of a run to a new folder, with its model card.

    Raises:
        UserError: for a run without weights or whole figures, or a folder that holds anything.
    """
    weights = weights_file(run)
    if not run.is_dir():
        raise UserError(f"{run}: give the directory of a run, which has its {FILE}")
    from kd.runs.weights import load_weights  # loads torch

    load_weights(weights)  # damaged ones are refused
    record = read(run / FILE)
    text = card(record, weights.name, license_name)
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise UserError(f"{to} is there and not empty; name a new folder")
    to.mkdir(parents=True, exist_ok=True)
    suffixes = {*SUFFIXES.values(), ".json"}
    exported = [path for path in run.glob(f"{weights.stem}*") if path.suffix in suffixes and path != weights]
    for path in [weights, *exported]:
        shutil.copyfile(path, to / path.name)
    write(replace(record, cwd="", config_dir=None), to / FILE)  # the folders of this machine are nobody's business
    with replaced(to / CARD) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return to


def _arguments() -> argparse.Namespace:
    parser = Parser(
        description="Make a folder to publish from a run: weights, exported files, record and model card. Nothing is\n"
        "uploaded; the command for that is printed.",
        epilog="example:\n  python scripts/publish.py RUN_DIR --to published/cnn16 --license mit",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", type=Path, metavar="RUN_DIR", help="directory of a run that is done")
    parser.add_argument("--to", type=Path, required=True, metavar="FOLDER", help="a new folder")
    parser.add_argument("--license", metavar="NAME", help="of the weights, as the hub names it, such as mit")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
