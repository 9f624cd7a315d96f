"""A picture of runs in a terminal: what is done, what runs, curves, the best so far, the expected end. No torch."""

import math
from collections.abc import Sequence
from datetime import datetime, timedelta
from operator import attrgetter
from typing import cast

from rich.cells import cell_len
from rich.console import Group, JustifyMethod, RenderableType
from rich.table import Table
from rich.text import Text

from kd.errors import UserError
from kd.report.ranking import by_validation
from kd.report.rows import Row
from kd.report.summary import summarize
from kd.report.text import encodable
from kd.runs.results import Result
from kd.sweeps.look import LEFT, ORDER, Run, State, Sweep
from kd.sweeps.progress import COLOURS, duration
from kd.terminal import visible

LEVELS = "▁▂▃▄▅▆▇█"
PLAIN_LEVELS = "_.-~=+*#"
"""For an encoding that lacks the others."""
ROWS = 20
"""Jobs, and methods, that a picture without a height has at most."""
BAR = 40
CURVE = 20
GAP = 2
"""Blanks between two columns."""
SWEEPS = 5
"""Sweeps that are listed."""
NARROW, WIDE = 70, 140
"""Widths from which on the accuracy has a curve, and the loss, too."""


class Dashboard:
    """Draws states of one directory.

    Args:
        width, height: of the terminal, in characters; a height of None is one without end.
        encoding: of the terminal.
    """

    def __init__(self, width: int = 100, height: int | None = None, encoding: str = "utf-8") -> None:
        self.width, self.height, self.encoding = max(40, width), height, encoding
        self._ranked: tuple[tuple[int, ...], list[Row]] = (), []

    def frame(self, state: State, notes: Sequence[str]) -> RenderableType:
        """Return what is shown of a state.

        Args:
            state: the state.
            notes: further lines for the end.
        """
        above: list[RenderableType] = [*self._heading(state)]
        if len(state.sweeps) > 1:
            above.append(self._sweeps(state))
        below = [self._line(note, "yellow") for note in (*_unread(state), *notes)]
        # A table has a blank line, a heading, and a line on what it leaves out.
        room = 3 * ROWS
        if self.height is not None:
            room = self.height - 1 - len(above) - len(below) - 3 - (2 + SWEEPS if len(state.sweeps) > 1 else 0)
        reasons = [self._line(line, "dim") for line in _reasons(state.runs, "running")[: room // 8]]
        reasons += [self._line(line, "red") for line in _reasons(state.runs, "failed", "refused")[: room // 6]]
        room -= len(reasons)
        methods = self._best(state) if room >= 7 else []
        shares = min(len(methods), ROWS, (room - 3) // 2)
        room -= 3 + shares if methods else 0
        parts = [*above, self._jobs(state, max(1, min(ROWS, room))), *reasons]
        if methods:
            parts.append(self._methods(methods, shares))
        return Group(*parts, *below)

    # Parts

    def _line(self, text: str, style: str) -> Text:
        return Text(_short(self._encoded(text), self.width), style, no_wrap=True, overflow="crop")

    def _encoded(self, text: str) -> str:
        return encodable(visible(text), self.encoding)

    def _heading(self, state: State) -> list[Text]:
        counts = state.counts()
        total = sum(counts.values())
        listed = Text(f"{total:,} {'run' if total == 1 else 'runs'}: ")
        for i, status in enumerate(status for status in ORDER if counts[status]):
            listed.append(", " if i else "").append(f"{counts[status]:,} {status}", COLOURS.get(status, ""))
        earlier = sum(sweep.earlier for sweep in state.sweeps)
        listed.append(f"; {earlier:,} earlier" if earlier else "", "dim")
        left = sum(counts[status] for status in LEFT)
        begun = (*LEFT, "interrupted")
        wanted = [run for run in state.runs if run.status in ("done", "skipped", *begun)]
        share = sum(run.trained if run.status in begun else 1.0 for run in wanted) / len(wanted) if wanted else 1.0
        filled = int(share * BAR)
        full, empty = self._glyphs("━", "="), self._glyphs("─", "-")
        bar = Text().append(full * filled, "green").append(empty * (BAR - filled), "dim")
        bar.append(f" {math.floor(100 * share)} %  ").append(
            _ending(state, left), "yellow" if left and state.over else ""
        )
        return [self._line(str(state.root), "bold"), _cropped(listed, self.width), _cropped(bar, self.width)]

    def _glyphs(self, wanted: str, plain: str) -> str:
        return wanted if encodable(wanted, self.encoding) == wanted else plain

    def _sweeps(self, state: State) -> RenderableType:
        """Return a table of the sweeps, those that go on first."""
        goes_on = sorted(state.sweeps, key=lambda sweep: sweep.over(state.at))
        lines = []
        for sweep in goes_on[:SWEEPS]:
            seconds = None if sweep.over(state.at) else sweep.seconds_left(state.at)
            kinds = (("done", "skipped"), ("running",), ("waiting",), ("failed", "refused", "unreadable"))
            numbers = [f"{number:,}" if (number := sweep.count(*kind)) else "" for kind in kinds]
            lines.append([_relative(sweep, state), *numbers, "" if seconds is None else duration(seconds)])
        headers = ["sweep", "done", "running", "waiting", "failed", "left"]
        return self._table(headers, lines, "sweep", more=len(goes_on) - len(lines))

    def _jobs(self, state: State, most: int) -> RenderableType:
        """Return a table of the runs that run, then of those that ended last."""
        running = [run for run in state.runs if run.status == "running"]
        ended = [run for run in state.runs if run.status not in ("running", "waiting", "skipped", "refused")]
        latest = [run for runs in (running, ended) for run in sorted(runs, key=attrgetter("changed"), reverse=True)]
        if not latest:
            return Text("no run has begun", "dim")
        shown = latest[:most]
        validation = all(run.curves.validation for run in shown if run.curves.epochs)
        split = "val" if validation else "train"
        headers = ["run", "status", "settings", "epoch", f"{split} acc %"]
        headers += ["accuracy"] if self.width >= NARROW else []
        headers += [f"{split} loss", "loss"] if self.width >= WIDE else []
        headers += ["changed"] if self.width >= NARROW else []
        lines = []
        for run in shown:
            # Of another split than the heading says, a curve is left out.
            comparable = run.curves.validation is validation
            acc, loss = (run.curves.acc, run.curves.loss) if comparable else ([], [])
            total = run.record.epochs if run.record is not None else 0
            epoch = f"{run.curves.epochs}/{total}" if total > 0 else ""
            line = [_name(run, state), run.status, run.settings or run.why, epoch, _percent(acc)]
            line += [self.sparkline(acc)] if self.width >= NARROW else []
            line += [_number(loss), self.sparkline(loss)] if self.width >= WIDE else []
            lines.append([*line, _ago(state.at - run.changed)] if self.width >= NARROW else line)
        return self._table(headers, lines, "settings", ("status", "accuracy", "loss"), len(latest) - len(shown))

    def _best(self, state: State) -> list[Row]:
        """Return the best row of each method on each data set by validation accuracy, those without one last."""
        records = [run.record for run in state.runs if run.record is not None]
        key = tuple(map(id, records))
        if key != self._ranked[0]:
            self._ranked = key, _ranked(records)
        return self._ranked[1]

    def _methods(self, rows: Sequence[Row], most: int) -> RenderableType:
        several = len({row.first.dataset for row in rows}) > 1
        lines = []
        for row in rows[:most]:
            val = row.val_acc
            shown = "no split" if val is None else f"{100 * val.mean:.2f}"
            shown += f" ± {100 * val.std:.2f}" if val is not None and val.std is not None else ""
            line = [row.first.method, *([row.first.dataset] if several else [])]
            # Without a validation split nothing is chosen.
            line += ["" if val is None else " ".join(row.pieces), str(row.n), shown]
            lines.append([*line, self.sparkline(row.first.epoch_val_acc)])
        headers = ["best so far", *(["data"] if several else []), "settings", "seeds", "val acc %", "accuracy"]
        return self._table(headers, lines, "settings", ("data", "accuracy"), len(rows) - len(lines))

    def _table(
        self,
        headers: Sequence[str],
        lines: Sequence[Sequence[str]],
        flexible: str,
        left: Sequence[str] = (),
        more: int = 0,
    ) -> RenderableType:
        """Return a table in which no cell takes two lines.

        Args:
            headers: of the columns.
            lines: the cells.
            flexible: the column that has what the others leave of the width, all the same at least 8 characters.
            left: the columns that are aligned to the left, beside that one and the first.
            more: how many lines were left out.
        """
        cells = [[_short(self._encoded(cell), max(12, self.width // 3)) for cell in line] for line in lines]
        place = headers.index(flexible)
        widths = [max(map(cell_len, [header, *(line[i] for line in cells)])) for i, header in enumerate(headers)]
        room = max(8, self.width - sum(widths) + widths[place] - GAP * (len(headers) - 1))
        for line, whole in zip(cells, lines, strict=True):
            line[place] = _short(self._encoded(whole[place]), room)
        table = Table(box=None, padding=(0, GAP, 0, 0), pad_edge=False)
        for header in headers:
            justify = "left" if header in (*left, headers[0], flexible) else "right"
            table.add_column(Text(header, "bold"), justify=cast(JustifyMethod, justify), no_wrap=True, overflow="crop")
        for line in cells:
            table.add_row(*(Text(cell, COLOURS.get(cell, "")) for cell in line))
        return Group("", table, *([Text(f"{more:,} more", "dim")] if more else []))

    def sparkline(self, values: Sequence[float], width: int = CURVE) -> str:
        """Return a curve in characters, at most `width`: from its lowest value to its highest; a gap where none is."""
        levels = self._glyphs(LEVELS, PLAIN_LEVELS)
        n = min(len(values), width)
        # The last value of each piece: at the end stands what the curve has come to.
        points = [values[(i + 1) * len(values) // n - 1] for i in range(n)]
        finite = [point for point in points if math.isfinite(point)]
        if not finite:
            return ""
        low, high = min(finite) / 2, max(finite) / 2  # so that their difference is finite
        middle, scale = (0, (len(levels) - 1) / (high - low)) if high > low else (len(levels) // 2, 0.0)
        return "".join(levels[middle + round((p / 2 - low) * scale)] if math.isfinite(p) else " " for p in points)


def headline(state: State) -> str:
    """Return a state as one line of plain text, for a file or a pipe."""
    counts = state.counts()
    listed = ", ".join(f"{counts[status]} {status}" for status in ORDER if counts[status])
    left = sum(counts[status] for status in LEFT)
    return f"{datetime.fromtimestamp(state.at):%H:%M:%S} {listed} | {_ending(state, left)}"


def _ending(state: State, left: int) -> str:
    """Return the time gone and the expected end of what goes on."""
    if not left:
        interrupted = state.counts()["interrupted"]
        return f"{interrupted:,} to be continued by the same command" if interrupted else "nothing left to do"
    if state.over:
        return "stopped: no process is known to be at work here"
    began = [sweep.began for sweep in state.sweeps if sweep.began is not None and not sweep.over(state.at)]
    gone = f"{duration(max(0.0, state.at - min(began)))} gone, " if began else ""
    seconds = state.seconds_left()
    if seconds is None or seconds > 1e8:
        return f"{gone}end not known yet"
    end = datetime.fromtimestamp(state.at) + timedelta(seconds=seconds)
    day = "" if end.date() == datetime.fromtimestamp(state.at).date() else f"{end:%a %d %b} "
    return f"{gone}about {duration(seconds)} left, until {day}{end:%H:%M}"


def _ranked(records: Sequence[Result]) -> list[Row]:
    try:
        rows = summarize(records).rows
    except UserError:  # no finished run yet, or all have diverged
        return []
    best: dict[tuple[str, str], Row] = {}
    for row in [*by_validation(rows), *(row for row in rows if row.val_acc is None)]:
        best.setdefault((row.first.dataset, row.first.method), row)
    return list(best.values())


def _reasons(runs: Sequence[Run], *statuses: str) -> list[str]:
    """Return a line for each reason of what has one of the statuses, the most frequent first."""
    reasons: dict[tuple[str, str], list[Run]] = {}
    for run in runs:
        if run.status in statuses and run.why:
            reasons.setdefault((run.status, " ".join(run.why.split())), []).append(run)
    ordered = sorted(reasons.items(), key=lambda item: -len(item[1]))
    return [f"{status} {_together(group)}: {why}" for (status, why), group in ordered]


def _together(runs: Sequence[Run]) -> str:
    return runs[0].settings if len(runs) == 1 else f"{len(runs):,} runs"


def _unread(state: State) -> list[str]:
    number = len(state.unread)
    if not number:
        return []
    return [f"{number:,} {'file' if number == 1 else 'files'} cannot be read: {state.unread[0]}"]


def _relative(sweep: Sweep, state: State) -> str:
    return str(sweep.directory.relative_to(state.root)) if sweep.directory != state.root else "."


def _name(run: Run, state: State) -> str:
    if run.directory is None:
        return ""
    return str(run.directory.relative_to(state.root)) if run.directory != state.root else run.directory.absolute().name


def _percent(values: Sequence[float]) -> str:
    return f"{100 * values[-1]:.2f}" if values and math.isfinite(values[-1]) else ""


def _number(values: Sequence[float]) -> str:
    return f"{values[-1]:.3g}" if values and math.isfinite(values[-1]) else ""


def _ago(seconds: float) -> str:
    if not math.isfinite(seconds):
        return ""
    return duration(max(0.0, seconds)) if seconds < 86_400 else f"{seconds / 86_400:.0f} d"


def _cropped(text: Text, width: int) -> Text:
    text.no_wrap, text.overflow = True, "crop"
    text.truncate(width)
    return text


def _short(text: str, width: int) -> str:
    """Return both ends of a text that is wider than `width` characters of a terminal."""
    if cell_len(text) <= width:
        return text
    tail = (width - 2) // 3
    head = width - 2 - tail
    shortened = f"{text[:head]}..{text[len(text) - tail :]}"
    return shortened if cell_len(shortened) <= width else shortened[: width // 2]
