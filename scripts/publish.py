"""Make the folder of a run as the Hugging Face hub wants it: weights, model card, record."""

import argparse
import re
import shlex
import shutil
import sys
from collections.abc import Iterable
from dataclasses import asdict, replace
from pathlib import Path, PurePosixPath
from typing import Any

from kd.app.programs import command_line
from kd.deploy.card import card
from kd.deploy.runtime import SUFFIXES
from kd.errors import UserError
from kd.files import replaced
from kd.runs.given import weights_file
from kd.runs.results import CARD, FILE, Result, read, typed, write
from kd.terminal import Parser, outcome, visible

START = r"(?<![\w./~)\]}-])(?:file://|(?<!:)/+|(?<=:)/(?!/)|~/)"
"""The beginning of an absolute path or of one in the home folder, and of no address such as https://example.com."""


def main() -> int:
    return outcome("publish.py", work)


def work() -> None:
    """Do what the command line selects."""
    args = _arguments()
    folder = publish(args.run, args.to, args.license)
    print(f"{visible(str(folder))}: {', '.join(sorted(path.name for path in folder.iterdir()))}")
    print(f"to upload it: {command_line(['hf', 'upload', 'USER/NAME', str(folder), '.'])}")


def publish(run: Path, to: Path, license_name: str | None) -> Path:
    """Copy what others need of a run to a new folder, with its model card.

    Raises:
        UserError: for a run without weights or whole figures, or a folder that holds anything.
    """
    weights = weights_file(run)
    if not run.is_dir():
        raise UserError(f"{run}: give the directory of a run, which has its {FILE}")
    from kd.inference import temperature_of  # loads torch
    from kd.runs.weights import load_weights

    load_weights(weights)  # damaged ones are refused
    suffixes = {*SUFFIXES.values(), ".json"}
    exported = sorted(path for path in run.glob(f"{weights.stem}*") if path.suffix in suffixes and path != weights)
    record, beside = without_folders(read(run / FILE)), [path.name for path in exported]
    text = card(record, weights.name, license_name, temperature_of(weights), beside)
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise UserError(f"{to} is there and not empty; name a new folder")
    to.mkdir(parents=True, exist_ok=True)
    try:
        for path in [weights, *exported]:
            shutil.copyfile(path, to / path.name)
        write(record, to / FILE)
        with replaced(to / CARD) as temporary:
            temporary.write_text(text, encoding="utf-8")
    except BaseException:
        shutil.rmtree(to)  # a part of it would be refused the next time
        raise
    return to


def without_folders(record: Result) -> Result:
    """Return a record that tells nothing of the folders of this machine.

    Where the command was typed is left out, and so is its `--config-dir`. Of every absolute path in a text, only the
    last part stays.
    """
    overrides = typed(record)
    values = [override.partition("=")[2].strip("'\"") for override in overrides]
    # Paths that are known whole may have spaces; in a sentence any other one ends at a space.
    places = [*values, record.cwd, record.config_dir or ""]
    known = {place.rstrip("/") for place in places if place.startswith("/")} - {""}

    def shortened(value: Any) -> Any:
        if isinstance(value, list):
            return [shortened(item) for item in value]
        return _in_sentence(value, known) if isinstance(value, str) else value

    changes = {name: shortened(value) for name, value in asdict(record).items() if isinstance(value, str | list)}
    changes |= {"cwd": "", "config_dir": None}
    changes["knobs"] = {name: shortened(value) for name, value in record.knobs.items()}
    if overrides:
        changes["command"] = shlex.join(map(_in_override, overrides))
    return replace(record, **changes)


def _in_override(override: str) -> str:
    """Shorten the paths in a setting, which may be its whole value or parts of a list, in quotes or not."""
    name, equals, value = override.partition("=")
    if re.match(START, value):
        return f"{name}={_last(value)}"  # whole, with what ends a path in a list
    parts = re.split(r"""("[^"]*"|'[^']*')""", value)
    parts[::2] = [re.sub(rf"{START}[^,\[\]{{}}]*", lambda found: _last(found[0]), part) for part in parts[::2]]
    parts[1::2] = [part[0] + _in_quotes(part[1:-1]) + part[-1] for part in parts[1::2]]
    return name + equals + "".join(parts)


def _in_quotes(text: str) -> str:
    return _last(text) if re.match(START, text) else _in_sentence(text)


def _in_sentence(text: str, known: Iterable[str] = ()) -> str:
    """Shorten the paths in a text.

    Args:
        text: with paths that end at a space, a comma or a quote.
        known: absolute paths of files and folders that do not end there.
    """
    longest_first = sorted(map(re.escape, known), key=len, reverse=True)
    start = "|".join([*(rf"(?<![\w./~)\]}}-]){path}(?=[\s/,;:\"')\]}}]|$)" for path in longest_first), START])
    return re.sub(rf"(?:{start})[^\s,;\"'\[\]{{}}]*", lambda found: _last(found[0]), text)


def _last(path: str) -> str:
    """Return the last part of a path; the path itself if it has none, as "/"."""
    return PurePosixPath(path).name or path


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
