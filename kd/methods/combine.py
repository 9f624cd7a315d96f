"""Several methods at once: their terms, weighted, beside the labels."""

import importlib
import inspect
import pkgutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, cast

from torch import Tensor, nn

from kd.data.batch import Batch
from kd.losses import hard_loss
from kd.methods.base import Method, Pair
from kd.models.output import Output
from kd.ranges import require


class Combine(Method):
    r"""alpha * hard + sum over methods of weight * (its terms without hard).

    The labels count once. Of every method m that is named, with weight w_m, all terms but the labels' are added up,
    each with the weight that it has in its own objective, such as the 1 - alpha = 0.9 of logits:

    $$\alpha \mathrm{hard} + \sum_m w_m \sum_{i \in \mathrm{terms}(m), i \neq \mathrm{hard}} \ell_{m,i}$$

    A method in two stages (fitnet, ab, fsp) has its term in the first one only, beside the labels and the other terms.
    It reads of the teacher what they read: stored logits serve where that is logits alone.
    A term is logged as METHOD_TERM, such as `logits_soft`. Each method has its published defaults, or what is given
    beside its weight: `method.terms={at: 1.0, logits: {weight: 0.5, T: 4.0}}`. A method may take part more than once,
    under names of one's own: `{low: {method: feature, stages: [0]}, high: {method: feature, stages: [1]}}`.

    A weight may change with the progress of training: with `rise` it grows from 0 over that share of it, with `end` it
    is 0 from that share on, as in early-stopped distillation: `{logits: {weight: 0.9, end: 0.5}}`.

    Scaling:
        As its terms, see each method.

    Use:
        To see whether what two methods transfer adds up. Weights are to be tuned anew: two terms with their published
        weights pull twice as much against the labels as each was meant to.

    Deviations:
        * None: published combinations, such as CRD with soft targets, are sums of this form. Not to be combined are
          dml, which trains another network, funmatch and mlkd, which show other images, and simkd, which keeps another.
          kd, takd and ban are logits here: write logits.

    Args:
        terms: weights by the name of the method, at least 0; or `weight`, by default 1, `rise`, in [0, 1], `end`, in
            (0, 1], and `method`, by default the name, along with arguments of the method's constructor. None for
            {logits: 1.0}.
        alpha: weight of the labels, in [0, 1].
        label_smoothing: of the hard loss, in [0, 1].

    Raises:
        ValueError: for a method that there is not, one that has a step of its own or changes the network that is kept,
            or a value outside its range.
    """

    def __init__(
        self,
        terms: Mapping[str, float | Mapping[str, Any]] | None = None,
        alpha: float = 1.0,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__()
        require("alpha", alpha, "[0, 1]")
        require("label_smoothing", label_smoothing)
        terms = {"logits": 1.0} if terms is None else terms
        if not isinstance(terms, Mapping) or not terms:
            raise ValueError(f"method.terms must be weights of methods, as in {{at: 1.0, rkd: 0.5}}, got {terms}")
        self.alpha, self.label_smoothing = alpha, label_smoothing
        self.weights: dict[str, Weight] = {}
        made: dict[str, Method] = {}
        for name, given in terms.items():
            arguments: dict[str, Any] = dict(given) if isinstance(given, Mapping) else {"weight": given}
            self.weights[name] = Weight(*(arguments.pop(part, usual) for part, usual in Weight._field_defaults.items()))
            self.weights[name].check(f"method.terms.{name}")
            made[name] = _method(name, arguments.pop("method", name), arguments)
        # By place, as a ModuleDict refuses names such as "half"; sorted, as terms in another order are the same run.
        self.names = sorted(made)
        self.parts = nn.ModuleList(made[name] for name in self.names)
        self.reads = frozenset({"logits"}).union(*(part.reads for part in made.values()))
        self.needs_labels = any(part.needs_labels for part in made.values())
        self.reads_labels = alpha > 0  # the parts' own terms of labels are left out

    @property
    def methods(self) -> dict[str, Method]:
        """The methods by the names of their parts, sorted: so is what they draw."""
        return {name: cast(Method, part) for name, part in zip(self.names, self.parts, strict=True)}

    def setup(self, pair: Pair) -> None:
        for name, part in self.methods.items():
            try:
                part.setup(pair)
            except ValueError as error:
                raise ValueError(f"method.terms.{name}: {error}") from error

    def forward(self, student: Output, teacher: Output, batch: Batch) -> dict[str, Tensor]:
        terms = {"hard": self.alpha * hard_loss(student.logits, batch.y, self.label_smoothing)}
        for name, part in self.methods.items():
            part.progress = self.progress
            for term, value in part(student, teacher, batch).items():
                if term != "hard":
                    terms[f"{name}_{term}"] = self.weights[name].at(self.progress) * value
        return terms

    def monitors(self) -> dict[str, Tensor]:
        own = {name: part.monitors() for name, part in self.methods.items()}
        return {f"{name}_{what}": value for name, values in own.items() for what, value in values.items()}


class Weight(NamedTuple):
    """The weight of a method over the progress of training, which goes from 0 to 1."""

    weight: float = 1.0
    rise: float = 0.0
    """Share over which it grows from 0."""
    end: float = 1.0
    """Share from which on it is 0."""

    def check(self, name: str) -> None:
        """Refuse values outside their ranges.

        Raises:
            ValueError: naming the setting.
        """
        require(name, self.weight, "[0, inf)")
        require(f"{name}.rise", self.rise, "[0, 1]")
        require(f"{name}.end", self.end, "(0, 1]")

    def at(self, progress: float) -> float:
        if self.end < 1 and progress >= self.end:
            return 0.0
        return float(self.weight) * (min(1.0, progress / self.rise) if self.rise else 1.0)


def _method(part: str, name: str, arguments: Mapping[str, Any]) -> Method:
    """Make a method by its name, that of its module, for the part that the settings call so.

    Raises:
        ValueError: if there is none, it cannot be combined, or an argument is wrong.
    """
    cls = _class(name)
    if cls is None:
        known = [other for other in _modules() if _obstacle(_class(other)) is None]
        raise ValueError(f"method.terms: there is no method {name} here; there are {', '.join(known)}")
    obstacle = _obstacle(cls)
    if obstacle is not None:
        raise ValueError(f"method.terms: {name} {obstacle}, so that it cannot be combined; write method={name}")
    known = list(inspect.signature(cls).parameters)
    for argument in arguments.keys() - set(known):
        own = [*known, *Weight._fields]
        raise ValueError(f"method.terms.{part}: {name} has no setting '{argument}'; it has {', '.join(own)}")
    try:
        return cls(**arguments)
    except (TypeError, ValueError) as error:
        raise ValueError(f"method.terms.{part}: {error}") from error


def _modules() -> list[str]:
    return [module.name for module in pkgutil.iter_modules([str(Path(__file__).parent)])]


def _class(name: str) -> type[Method] | None:
    """Return the method that the module of that name defines, the last if there are several; None without one."""
    if name not in _modules():
        return None
    module = importlib.import_module(f"{__package__}.{name}")
    classes = (value for value in vars(module).values() if isinstance(value, type) and issubclass(value, Method))
    own = [value for value in classes if value.__module__ == module.__name__]
    return own[-1] if own and name != "base" else None


def _obstacle(cls: type[Method] | None) -> str | None:
    """What keeps a method from being combined; None for nothing."""
    if cls is None:
        return "is no method"
    if cls is Combine:
        return "is made of other methods"
    if cls.step is not Method.step:
        return "has a step of its own, such as with other images"
    if cls.inference_net is not Method.inference_net:
        return "changes the network that is kept"
    return None
