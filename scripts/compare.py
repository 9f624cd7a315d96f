"""Tell two runs apart: settings that differ, what else their records have, and their figures side by side."""

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from rich.table import Table
from rich.text import Text

from kd.app.check import leaves
from kd.app.compose import plain
from kd.app.programs import run_program
from kd.errors import UserError
from kd.report.numbers import decimals, percent
from kd.runs.results import FILE, Result, read
from kd.sweeps.progress import console
from kd.terminal import Parser, visible

CIRCUMSTANCES = (
    "status",
    "trial",
    "diverged",
    "git",
    "versions",
    "device",
    "precision",
    "dataset",
    "data_id",
    "train_images",
    "noisy_labels",
    "teacher",
    "teacher_id",
    "teacher_test_acc",
)
"""Fields of a record that may differ although no setting does."""


def main() -> int:
    return run_program("compare.py", arguments, compare)


def arguments() -> argparse.Namespace:
    parser = Parser(
        description="Tell two runs apart: settings that differ, what else differs, and their figures.",
        epilog="example:\n  python scripts/compare.py runs/DATE/TIME multirun/DATE/TIME/0",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("runs", metavar="RUN_DIR", nargs=2, type=Path, help="directory of a run")
    return parser.parse_args()


def compare(args: argparse.Namespace) -> None:
    records = [_record(run) for run in args.runs]
    settings = [_settings(run) for run in args.runs]
    names = [str(run) for run in args.runs]
    circumstances = [{name: getattr(record, name) for name in CIRCUMSTANCES} for record in records]
    ours, theirs = map(figures, records)
    parts = {
        "settings that differ": _differing(*settings),
        "what else differs": _differing(*circumstances),
        "figures": {name: (ours[name], theirs[name]) for name in ours},
    }
    out = console()
    for title, lines in parts.items():
        if not lines:
            out.print(Text(f"{title}: none\n", style="bold"))
            continue
        table = Table(box=None, pad_edge=False)
        table.add_column("")
        for name in names:
            table.add_column(visible(name), justify="right" if title == "figures" else "left", overflow="fold")
        for name, values in lines.items():
            table.add_row(visible(name), *(visible(value) for value in values))
        out.print(Text(title, style="bold"), table, "", sep="\n")


def _record(run: Path) -> Result:
    if not (run / FILE).is_file():
        raise UserError(f"{run}: not the directory of a run, which holds a {FILE}")
    return read(run / FILE)


def _settings(run: Path) -> dict[str, Any]:
    """Return the resolved settings of a run by their full names."""
    file = run / ".hydra" / "config.yaml"
    try:
        settings = plain(OmegaConf.load(file))
        if not isinstance(settings, dict):
            raise ValueError("not a mapping of settings")
        return dict(leaves(settings))
    except (OSError, ValueError, yaml.YAMLError, OmegaConfBaseException) as error:
        raise UserError(f"{file} cannot be read: {' '.join(str(error).split())}") from error


def _differing(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """Return both values of each name that has two."""
    both = {name: (ours.get(name), theirs.get(name)) for name in {**ours, **theirs}}
    return {name: (str(a), str(b)) for name, (a, b) in both.items() if a != b}


def figures(record: Result) -> dict[str, str]:
    """Return the figures of a run as text, by name."""
    loss, acc = (curve[-1] if curve else None for curve in (record.epoch_train_loss, record.epoch_train_acc))
    return {
        "test accuracy, %": percent(record.test_acc),
        "validation accuracy, %": percent(record.val_acc),
        "NLL": decimals(record.test_nll),
        "ECE, %": percent(record.test_ece),
        "retention": percent(record.retention, 1, " %"),
        "agreement, %": percent(record.agreement),
        "last training loss": decimals(loss),
        "last training accuracy, %": percent(acc),
    }


if __name__ == "__main__":
    sys.exit(main())
