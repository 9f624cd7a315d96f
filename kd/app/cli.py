"""The command line: help, resuming, error lines and exit codes; `main` is the program."""

import ast
import importlib.util
import os
import re
import shlex
import signal
import sys
import warnings
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import hydra
import yaml
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from kd.app.check import SET_ELSEWHERE, nearest, several_processes
from kd.app.compose import VERSION_BASE, Command, compose, conf_dir, plain
from kd.app.run import execute
from kd.errors import UserError
from kd.runs.results import FILE, Result, read
from kd.runs.status import first_process

if TYPE_CHECKING:
    from kd.app.build import Builder

THREAD_WAITING = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "1000"}
"""How idle threads wait. Those that spin for long make two busy cores many times slower than one, those that do not
spin at all are late at every operation: a few microseconds it is. libgomp reads this when it is loaded, with torch."""

HELP = """\
Train a network on images, or distil a small student from a larger teacher.

  python train.py [GROUP=CHOICE ...] [KNOB=VALUE ...]        one run
  python train.py -m KNOB=A,B,C ...                          one run for every combination
  python train.py resume=RUN_DIR                             continue an interrupted run

The teacher is trained first if there is none yet of that recipe, and kept in teachers/ for all later runs.

Methods (method=...)
{methods}

Knobs of the methods, with their defaults; those that a method lacks are refused
{knobs}
  T is the temperature of the soft loss: higher shows more of the teacher's probabilities of the wrong classes.
  alpha is the weight of the labels, beta that of the method's own further term.

Groups
{groups}
  recipe/optimizer=, recipe/schedule=    {optimizers}; {schedules}
  For the teacher: recipe@teacher_recipe=, recipe/optimizer@teacher_recipe.optimizer= and so on.

Knobs of the run
  epochs=N batch_size=N lr=X     of student and teacher; apart: recipe.epochs, recipe.batch_size,
                                 recipe.optimizer.lr and teacher_recipe. ...; likewise recipe.optimizer.weight_decay,
                                 recipe.schedule.warmup, recipe.label_smoothing, recipe.clip_norm
  seed=0                         of the student: initial weights, order, augmentation, dropout
  data.root=DIR                  where the data set is, as archive, parquet mirror or folder tree, or is downloaded to
  data.val_fraction=0.1          share of the training images kept for validation, 0 to below 1; 0 for final numbers
  data.in_memory=false           for images that do not fit into memory: decoded once into DIR/.decoded, looked up there
                                 by data.workers=2 processes
  student.scale=S                width; likewise student.conv_dropout, student.head_dropout (0 to below 1),
                                 student.activation (relu, elu), and teacher.scale ...
  teacher_seed=0                 seed of the teacher
  ensemble=N                     N teachers with seeds from teacher_seed on, whose logits are averaged for a student
  chain=[{{scale:24}}]             networks between teacher and student, each taught by the one before: settings that
                                 differ from the student's, or how many
  teacher_weights=FILE           use this safetensors file instead of a teacher from teachers/
  trainer.precision=auto         bf16-mixed where the device multiplies in bf16 by itself, else 32-true
  speed=reference                what `speed` switches all off; with trainer.precision=32-true the plain loop
  speed.stored_logits=auto       keep the teacher's logits beside the teachers: true, false, auto (on processors)
  threads=N                      of the processor, for one run; all cores unless set
  debug=fast_dev_run             one batch of everything; limit, overfit, profiler
  hydra.run.dir=DIR              where the run is written instead of runs/DATE/TIME; hydra.sweep.dir for sweeps

Examples
  python train.py data=digits method=logits T=4              first run, no download, under a minute
  python train.py method=feature T=4 alpha=0.1 beta=0.3      on CIFAR-10
  python train.py -m method=logits T=1,2,4,8 seed=0,1,2      twelve runs
  python train.py experiment=seed_table                      teacher, standard, logits and feature, three seeds each
  python train.py data=folder data.root=my_images            your own images: train/CLASS/*.png and test/CLASS/*.png

More: --cfg job shows the whole configuration without running it, --hydra-help what Hydra itself offers,
`python scripts/report.py DIR...` makes tables and pictures of finished runs, `python scripts/fidelity.py DIR...`
compares students with their teacher image by image, `python scripts/search.py DIR ...` looks for the knobs that give
the best validation accuracy.
"""

EXTRAS = {"joblib": "parallel", "submitit": "slurm"}
"""Which of the extras in pyproject.toml brings a launcher, by the first word of its name."""

GROUPS = ("data", "recipe", "student", "teacher", "trainer", "speed", "logger", "debug", "experiment")


def help_text(conf: Path) -> str:
    """What `--help` prints; choices and their one-line descriptions are read from the files in `conf`."""
    methods = "\n".join(f"  {name:<10}{text}" for name, text in _choices(conf / "method"))
    groups = "\n".join(
        f"  {group + '=':<13}{', '.join(name for name, _ in _choices(conf / group))}" for group in GROUPS
    )
    knobs = "\n".join(
        f"  {path.stem:<10}{line}" for path in sorted((conf / "method").glob("*.yaml")) if (line := _knobs(path))
    )
    return HELP.format(
        methods=methods,
        knobs=knobs,
        groups=groups,
        optimizers=", ".join(name for name, _ in _choices(conf / "recipe" / "optimizer")),
        schedules=", ".join(name for name, _ in _choices(conf / "recipe" / "schedule")),
    )


def _knobs(path: Path) -> str:
    """A method's knobs as in "T=2.0 in (0, inf), alpha=0.1 in [0, 1]", read from its file."""
    settings = _settings(path)
    spans = (settings.get("spec") or {}).get("ranges", {})
    knobs = {name: value for name, value in settings.items() if not isinstance(value, dict | None)}
    shown = [
        f"{name}={_typed(value)}" + (f" in {spans[name]}" if name in spans else "") for name, value in knobs.items()
    ]
    sums = [f"{name} in {span}" for name, span in spans.items() if " + " in name]
    return ", ".join([*(one for one in shown if "${" not in one), *sums])


def _settings(path: Path) -> dict[str, Any]:
    """What a method's file sets."""
    settings: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return settings


def _typed(value: object) -> str:
    """A value as one types it on the command line: [{scale:24}]."""
    return str(value).replace("'", "").replace(": ", ":")


def _choices(group: Path) -> list[tuple[str, str]]:
    return [(path.stem, _description(path)) for path in sorted(group.glob("*.yaml"))]


def _description(path: Path) -> str:
    comments = [line[1:].strip() for line in path.read_text().splitlines() if line.startswith("#")]
    return next((comment for comment in comments if not comment.startswith("@package")), "")


def explain(error: Exception, arguments: Sequence[str]) -> str:
    """Return an error's message in one or two lines; Hydra's run over many."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, OSError) and error.strerror:
        return f"cannot use {error.filename}: {error.strerror}" if error.filename else error.strerror
    message = str(error).split("Config search path")[0]
    launchers = re.findall(r"not (?:find|load) 'hydra/launcher/([a-z]+)", message)
    if launchers and launchers[0] in EXTRAS:
        return f"this launcher is not installed: pip install -e '.[{EXTRAS[launchers[0]]}]'"
    unknown = re.match(r"Could not override '(.+?)'", message)
    if unknown:
        return _unknown_setting(unknown[1], arguments)
    lines = [line.strip() for line in message.removeprefix("In 'config': ").splitlines() if line.strip()]
    return re.sub(r"(?<!:) Available options", ". Available options", " ".join(lines))


def _unknown_setting(name: str, arguments: Sequence[str]) -> str:
    """Say that there is no such setting, and what was probably meant."""
    chosen = [argument for argument in arguments if argument.startswith("method=")] or ["the default method"]
    group, _, key = name.rpartition(".")
    if group == "trainer" and SET_ELSEWHERE.get(key):
        return f"trainer.{key} is set by the run itself; give {SET_ELSEWHERE[key]} instead"
    if group == "trainer" and key in trainer_arguments() - SET_ELSEWHERE.keys():
        return f"trainer.{key} is an argument of the Trainer without a value here; add it as +trainer.{key}=VALUE"
    try:
        choices = [argument for argument in arguments if re.fullmatch(r"[a-z_]+=[\w/-]+", argument)]
        known = plain(compose([choice for choice in choices if not choice.startswith(f"{name}=")])[0].cfg)
    except (HydraException, OmegaConfBaseException):
        known = plain(compose([])[0].cfg)
    owners = [path.stem for path in sorted((conf_dir() / "method").glob("*.yaml")) if name in _settings(path)]
    if owners and "." not in name:
        return f"there is no setting '{name}' with {chosen[-1]}; it is a knob of {', '.join(owners)}"
    similar = nearest(name, known, (f"trainer.{argument}" for argument in trainer_arguments() - SET_ELSEWHERE.keys()))
    meant = f"; did you mean {' or '.join(similar)}?" if similar else ";"
    return f"there is no setting '{name}' with {chosen[-1]}{meant} --cfg job shows all, --help the most useful"


@cache
def trainer_arguments() -> frozenset[str]:
    """The names of the Trainer's arguments, read from its source: to import it would take seconds."""
    package = importlib.util.find_spec("lightning")
    if package is None or package.origin is None:
        return frozenset()
    source = Path(package.origin).parent / "pytorch" / "trainer" / "trainer.py"
    try:
        tree = ast.parse(source.read_text(encoding="utf-8"))
    except (OSError, SyntaxError):
        return frozenset()
    functions = [
        part
        for node in tree.body
        if isinstance(node, ast.ClassDef) and node.name == "Trainer"
        for part in node.body
        if isinstance(part, ast.FunctionDef) and part.name == "__init__"
    ]
    return frozenset(argument.arg for one in functions for argument in one.args.kwonlyargs + one.args.args[1:])


def expand_resume(arguments: Sequence[str]) -> list[str]:
    """Replace `resume=RUN_DIR` by the overrides that the run was started with, and go to where it was started from.

    Raises:
        UserError: if that is not the directory of a run.
    """
    given = [argument.removeprefix("resume=") for argument in arguments if argument.startswith("resume=")]
    if not given:
        return list(arguments)
    directory = Path(given[-1]).expanduser().resolve()
    try:
        # Not by Hydra's own file, which a refused command with the same hydra.run.dir has already written over.
        overrides = shlex.split(read(directory / FILE).command or "")
        origin = yaml.safe_load((directory / ".hydra" / "hydra.yaml").read_text())["hydra"]["runtime"]["cwd"]
        os.chdir(origin)  # what data.root and teacher_store are relative to
    except (UserError, OSError, yaml.YAMLError, KeyError, TypeError) as error:
        raise UserError(
            f"resume={given[-1]}: not the directory of a run, or of one that was started elsewhere"
        ) from error
    rest = [argument for argument in arguments if not argument.startswith("resume=")]
    # An experiment may ask for a multirun; the one job of it that is resumed is a run. What it was started with stays
    # on record, whatever comes of this attempt.
    return [*overrides, *rest, "hydra.mode=RUN", f"hydra.run.dir='{directory}'", "hydra.output_subdir=null"]


def main() -> None:
    """Run the program: every mistake in one line and exit code 1, unless HYDRA_FULL_ERROR=1 requests the traceback."""
    if {"-h", "--help"} & set(sys.argv[1:]):
        print(help_text(conf_dir()).replace("python train.py", program()))
        return
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ |= THREAD_WAITING
    # A data-parallel run starts its further processes with the value that is set two lines below.
    wants_traceback = os.environ.get("HYDRA_FULL_ERROR") == "1" and "LOCAL_RANK" not in os.environ
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra is to raise, not to print
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # stopped is stopped: resumable, exit code 130
    try:
        sys.argv[1:] = expand_resume(sys.argv[1:])
        _main()
    except KeyboardInterrupt:
        sys.exit(130)
    except (UserError, HydraException, OmegaConfBaseException, OSError) as error:
        if wants_traceback:
            raise
        print(f"error: {explain(error, sys.argv[1:])}", file=sys.stderr)
        sys.exit(1)


def job(cfg: DictConfig, make_builder: "Callable[[Command], Builder] | None" = None) -> Result:
    """One run as Hydra starts it, by itself or as a job of a multirun."""
    warnings.filterwarnings("ignore", message="The `srun` command is available")  # whoever wants Slurm chooses it
    node = cast(DictConfig, HydraConfig.get())
    launcher = node.launcher._target_ if node.mode is RunMode.MULTIRUN else None
    return execute(Command.of(cfg, node, launcher), Path(node.runtime.output_dir), make_builder, program())


def program() -> str:
    """How this program is started, for hints on how to go on."""
    name = Path(sys.argv[0]).name
    return "python train.py" if name.endswith(".py") or not name.startswith("kd-") else name


@hydra.main(version_base=VERSION_BASE, config_path=str(conf_dir()), config_name="config")
def _main(cfg: DictConfig) -> float | None:
    """One run. Returns the last epoch's validation accuracy, for whatever searches over runs."""
    result = job(cfg)
    if first_process(several_processes(plain(cfg.trainer))) and HydraConfig.get().mode is RunMode.RUN:
        from rich.console import Console

        from kd.report.tables import single

        directory = HydraConfig.get().runtime.output_dir
        Console().print(single(result), f"[dim]{directory}[/dim]", sep="\n")
    return result.val_acc
