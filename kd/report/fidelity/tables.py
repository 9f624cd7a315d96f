"""Tables of a fidelity study, for people and for programs."""

from collections.abc import Iterator, Sequence
from statistics import fmean
from typing import NamedTuple

from kd.report.fidelity.measures import Figures, missing, spread
from kd.report.fidelity.study import COMPARED, Study
from kd.report.knobs import knob_columns, knob_value
from kd.report.numbers import TOO_FEW, p_value
from kd.report.statistics import FEWEST, LEVEL, UNSEEN, Difference, images_interval
from kd.report.tables import markdown
from kd.report.text import comma_separated, escaped


class Quantity(NamedTuple):
    """Name and number format of a figure."""

    words: str
    percent: bool

    def number(self, value: float) -> str:
        return f"{100 * value:.2f}" if self.percent else f"{value:.3f}"

    def signed(self, value: float) -> str:
        return f"{100 * value:+.2f}" if self.percent else f"{value:+.3f}"


QUANTITIES = {
    "accuracy": Quantity("test accuracy", True),
    "agreement": Quantity("agreement with the teacher", True),
    "agreement_right": Quantity("agreement where the teacher is right", True),
    "agreement_wrong": Quantity("agreement where the teacher is wrong", True),
    "kl": Quantity("KL(teacher ‖ student)", False),
    "kl_scaled": Quantity("KL, both temperature scaled", False),
    "nll": Quantity("NLL", False),
    "nll_scaled": Quantity("NLL, temperature scaled", False),
    "ece": Quantity("ECE", True),
    "ece_scaled": Quantity("ECE, temperature scaled", True),
    "temperature": Quantity("fitted temperature", False),
}


# Tables


def fidelity_table(study: Study) -> str:
    """Return a Markdown table of how closely students follow the teacher."""
    names = ("accuracy", "agreement", "agreement_right", "agreement_wrong", "kl", "kl_scaled")
    wrong = study.teacher_figures.errors
    headers = [
        "run",
        "n",
        "test accuracy, %",
        "errors",
        "agreement with teacher, %",
        f"where it is right ({len(study.labels) - wrong:,} images), %",
        f"where it is wrong ({wrong:,}), %",
    ]
    headers += ["between seeds, %", "KL", "KL, scaled"]
    lines = [[study.teacher_name, "", f"{100 * study.teacher_figures.accuracy:.2f}", f"{wrong:,}", *[""] * 6]]
    for student in study.students:
        cells = [_cell(student.figures, name, study) for name in names]
        between = "" if student.between_seeds is None else f"{100 * student.between_seeds:.2f}"
        errors = f"{fmean(figures.errors for figures in student.figures):,.0f}"
        lines.append([student.label, str(student.n), cells[0], errors, *cells[1:4], between, *cells[4:]])
    return markdown(headers, lines)


def confidence_table(study: Study) -> str:
    """Return a Markdown table of NLL and ECE before and after temperature scaling."""
    names = ("nll", "nll_scaled", "ece", "ece_scaled", "temperature")
    headers = ["run", "n", "NLL", "NLL, scaled", "ECE, %", "ECE, scaled, %", "fitted T"]
    networks = [(study.teacher_name, "", [study.teacher_figures])]
    networks += [(student.label, str(student.n), student.figures) for student in study.students]
    lines = [[label, n, *(_cell(figures, name, study) for name in names)] for label, n, figures in networks]
    return markdown(headers, lines)


def worse_scaled(study: Study) -> list[str]:
    """Name the networks whose NLL temperature scaling makes worse, in the digits that the table has."""
    networks = [(study.teacher_name, [study.teacher_figures])]
    networks += [(student.label, student.figures) for student in study.students]
    found = []
    for label, figures in networks:
        before, after = spread(figures, "nll"), spread(figures, "nll_scaled")
        if before and after and round(after.mean, 3) > round(before.mean, 3):
            found.append(label)
    return found


def _cell(figures: Sequence[Figures], name: str, study: Study) -> str:
    """Write mean and spread of a figure, or why there is none."""
    figure = spread(figures, name)
    if figure is None:
        return missing(figures, name, study.teacher_figures)
    number = QUANTITIES[name].number
    return number(figure.mean) + ("" if figure.std is None else f" ± {number(figure.std)}")


def difference_table(study: Study) -> str:
    """Return a Markdown table of students minus the baseline, figure by figure."""
    lines = []
    for compared in study.compared:
        for name, d in compared.differences.items():
            quantity = QUANTITIES[name]
            words = quantity.words + (", points" if quantity.percent else "")
            lines.append([compared.student.label, words, *_difference_cells(d, quantity), d.verdict])
    headers = ["run", "figure", "difference", "95 % interval", "seeds", "p (Holm)", "in words"]
    return markdown(headers, lines, ["figure", "in words"])


def _difference_cells(d: Difference, quantity: Quantity) -> list[str]:
    mean = "" if d.mean is None else quantity.signed(d.mean)
    interval = " to ".join(map(quantity.signed, d.interval)) if d.interval else TOO_FEW if 0 < d.n < FEWEST else ""
    return [mean, interval, "" if d.refused else str(d.n), p_value(d.p)]


def images_table(study: Study) -> str:
    """Return a Markdown table of students minus the baseline on other test images, and of McNemar's test."""
    headers = ["run", "accuracy on other images, points", "pairs of seeds", "more right", "fewer right", UNSEEN]
    lines = []
    for compared in study.compared:
        low, high = images_interval(compared.student.correct, study.baseline.correct)
        signed = QUANTITIES["accuracy"].signed
        pairs = list(zip(compared.changes.p, compared.changes.better, strict=True))
        significant = [better for p, better in pairs if p is not None and p < 1 - LEVEL]
        more = sum(significant)
        counts = (len(pairs), more, len(significant) - more, len(pairs) - len(significant))
        lines.append([compared.student.label, f"{signed(low)} to {signed(high)}", *map(str, counts)])
    return markdown(headers, lines)


def class_table(study: Study, names: Sequence[str]) -> str:
    """Return a Markdown table of accuracy by class, minus the baseline's."""
    base = study.baseline
    headers = ["class", "images", f"{escaped(base.label)}, %"]
    for compared in study.compared:
        headers += [f"{escaped(compared.student.label)}, points", "95 % interval", "in words"]
    lines = []
    for i, name in enumerate(names):
        images, accuracy = (study.labels == i).sum(), base.class_accuracy[:, i].mean()
        line = [name, f"{images:,}", f"{100 * accuracy:.2f}" if images else ""]
        for compared in study.compared:
            mean, interval, _, _ = _difference_cells(compared.classes[i], QUANTITIES["accuracy"])
            line += [mean, interval, compared.classes[i].verdict]
        lines.append(line)
    return markdown(headers, lines, ["in words"])


def change_table(study: Study) -> str:
    """Return a Markdown table of images fixed and broken, beside those that seeds change by themselves."""
    headers = [
        "run",
        "fixed",
        "broken",
        "seeds against seeds",
        "fixed so, mean",
        "broken so, mean",
        f"either between seeds of {escaped(study.baseline.label)}",
    ]
    lines = []
    for compared in study.compared:
        c = compared.changes
        sets = [f"{c.k} : {c.k}", f"{c.fixed_k:.1f}", f"{c.broken_k:.1f}", f"{c.by_seed_k:.1f}"] if c.k else [""] * 4
        lines.append([compared.student.label, str(len(c.fixed)), str(len(c.broken)), *sets])
    return markdown(headers, lines)


# For programs


def to_csv(study: Study, classes: Sequence[str]) -> str:
    """Return a CSV with a line for each figure of each network: fractions of 1 and nats in full precision."""
    knobs = knob_columns((student.row.first for student in study.students), (*_ABOUT, *_FIGURES))
    return comma_separated((*_ABOUT, *knobs, *_FIGURES), _records(study, classes, knobs))


_ABOUT = ("run", "method")
_FIGURES = ("variant", "n", "figure", "mean", "std", "difference", "low", "high", "pairs", "p", "verdict")


def _records(study: Study, classes: Sequence[str], knobs: dict[str, str]) -> Iterator[dict[str, object]]:
    for name in QUANTITIES:
        found = spread([study.teacher_figures], name)
        if found:
            yield {"run": "teacher", "method": "teacher", "n": 1, "figure": name, "mean": found.mean}
    by_student = {id(compared.student): compared for compared in study.compared}
    for student in study.students:
        first, compared = student.row.first, by_student.get(id(student))
        about: dict[str, object] = {
            **{"run": student.label, "method": first.method, "variant": first.variant, "n": student.n},
            **{header: knob_value(first.knobs.get(name)) for header, name in knobs.items()},
        }
        for name in QUANTITIES:
            found = student.spread(name)
            minus = _difference_record(compared.differences[name]) if compared and name in COMPARED else {}
            yield {**about, "figure": name, "mean": found and found.mean, "std": found and found.std, **minus}
        yield {**about, "figure": "between_seeds", "mean": student.between_seeds}
        for i, name in enumerate(classes):
            by_seed = student.class_accuracy[:, i]
            std = float(by_seed.std(ddof=1)) if len(by_seed) > 1 else None
            figures = {"mean": float(by_seed.mean()), "std": std} if (study.labels == i).any() else {}
            minus = _difference_record(compared.classes[i]) if compared else {}
            yield {**about, "figure": f"accuracy of {name}", **figures, **minus}
        if compared:
            yield {**about, "figure": "fixed", "mean": len(compared.changes.fixed)}
            yield {**about, "figure": "broken", "mean": len(compared.changes.broken)}


def _difference_record(d: Difference) -> dict[str, object]:
    low, high = d.interval or (None, None)
    return {
        "difference": d.mean,
        "low": low,
        "high": high,
        "pairs": None if d.refused else d.n,
        "p": d.p,
        "verdict": d.verdict,
    }
