"""Write the tables of README, docs and reports anew from the records in docs/results: `python scripts/readme.py`."""

import argparse
import json
import sys
from pathlib import Path

from kd.errors import UserError
from kd.report.comparison import Comparison, compare
from kd.report.html.page import to_html, unpacked
from kd.report.html.view import Json, view
from kd.report.page import report
from kd.report.rows import Row
from kd.report.speed import to_markdown
from kd.report.summary import Summary, summarize
from kd.report.tables import to_brief, to_csv
from kd.runs.results import collect

ROOT = Path(__file__).resolve().parents[1]
PAGES = {
    "README.md": ("results",),
    "docs/seed_anomaly.md": ("anomaly",),
    "docs/results/README.md": ("matters",),
    "docs/speed.md": ("speed",),
}
"""Tables by page, which has them between marks such as <!-- speed --> and <!-- /speed -->."""
TABLES = {"results": "seed_table", "anomaly": "seed_anomaly", "matters": "what_matters"}
"""Folders of result records in docs/results, by table."""
INDEX = "docs/results/seed_table/index.html"
"""The example of a report's page. Its part with images is made by `scripts/report.py --images`, and stays as it is."""
BASELINES = {"anomaly": "logits mistake=LabelsOnly"}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if something differs")
    check = parser.parse_args().check
    try:
        results = ROOT / "docs" / "results"
        reports = {results / folder: report(*_records(name)) for name, folder in TABLES.items()}
        wanted = {ROOT / page: filled(page) for page in PAGES}
        wanted[results / "seed_table.csv"] = to_csv(*_rows("results"))
        wanted |= {folder / name: text for folder, made in reports.items() for name, text in made.texts.items()}
        page = (ROOT / INDEX).read_text(encoding="utf-8")
        shown = page_view(page)
        if check:
            stale = [path for path, text in wanted.items() if path.read_text(encoding="utf-8") != text]
            stale += [] if unpacked(page) == json.loads(json.dumps(shown)) else [ROOT / INDEX]
            for path in stale:
                print(f"{path.relative_to(ROOT)} differs from the records: python scripts/readme.py")
            return 1 if stale else 0
        for path, text in wanted.items():
            path.write_text(text, encoding="utf-8")
        for folder, made in reports.items():
            made.write(folder)
        (ROOT / INDEX).write_text(to_html(shown), encoding="utf-8")
    except (UserError, OSError, ValueError) as error:
        print(f"readme.py: {error}", file=sys.stderr)
        return 1
    return 0


def page_view(page: str) -> Json:
    """Return what the page shall show: the records as they are, predictions and images as they were."""
    return view(*_records("results")) | {"fidelity": unpacked(page)["fidelity"]}


def filled(page: str) -> str:
    """Return the page with its tables made from the records."""
    text = (ROOT / page).read_text(encoding="utf-8")
    for name in PAGES[page]:
        before, mark, rest = text.partition(f"<!-- {name} -->\n")
        _, end, after = rest.partition(f"<!-- /{name} -->\n")
        if not (mark and end):
            raise UserError(f"{page} has no place for a table: <!-- {name} --> to <!-- /{name} -->")
        text = f"{before}{mark}{_table(name)}{end}{after}"
    return text


def _table(name: str) -> str:
    if name in TABLES:
        return to_brief(*_rows(name))
    measured = json.loads((ROOT / "docs" / "results" / "speed" / "two_cores.json").read_text(encoding="utf-8"))
    return to_markdown(measured)


def _rows(name: str) -> tuple[list[Row], list[Comparison]]:
    summary, comparisons = _records(name)
    return summary.rows, comparisons


def _records(name: str) -> tuple[Summary, list[Comparison]]:
    summary = summarize(*collect([ROOT / "docs" / "results" / TABLES[name]]))
    return summary, compare(summary.rows, BASELINES.get(name))


if __name__ == "__main__":
    sys.exit(main())
