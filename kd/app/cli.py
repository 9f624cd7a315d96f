"""The command line: help, resuming, error lines and exit codes; `main` is the program."""

import os
import re
import signal
import sys
import textwrap
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, cast

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from kd.app.arguments import Arguments, choices, in_shell, read_arguments, refuse_wrong_choices, sweeps
from kd.app.check import check_command, leaves
from kd.app.compose import VERSION_BASE, Command, compose, conf_dir, plain, refuse_bombs, run_composed, settings_of
from kd.app.explain import EXPECTED, explain
from kd.app.identity import fingerprint
from kd.app.resume import expand_resume, refuse_other_settings
from kd.app.run import execute
from kd.app.trainer import several_processes
from kd.errors import UserError
from kd.runs.results import Result
from kd.runs.status import check_free, first_process, recorded, refuse_another
from kd.terminal import tolerant_stdout
from kd.training.threads import SPINNING

if TYPE_CHECKING:
    from kd.app.build import Builder

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
  alpha is the weight of the labels (of dkd that of its first term), beta that of the method's own further term.
  Where alpha is 1, as by default in most methods on embeddings and maps, there is no soft loss: T changes nothing.

Groups
{groups}
  recipe/optimizer=, recipe/schedule=    {optimizers}; {schedules}
  For the teacher: recipe@teacher_recipe=, recipe/optimizer@teacher_recipe.optimizer= and so on.

Knobs of the run
  epochs=N batch_size=N lr=X     of both networks; separately: recipe.epochs, recipe.batch_size,
                                 recipe.optimizer.lr and teacher_recipe. ...; likewise recipe.optimizer.weight_decay,
                                 recipe.schedule.warmup, recipe.label_smoothing, recipe.clip_norm
  seed=0                         of the student: initial weights, order, augmentation, dropout
  data.root=DIR                  where the data set is, as archive, parquet mirror or folder tree, or is downloaded to
  data.val_fraction=0.1          share of the training images kept for validation, 0 to below 1; 0 for final numbers
  data.image_size=64             pixels that all images are resized to; image files of your own become 32x32 without it
  data.balance=weights           or sampling, for classes of different size
  data.in_memory=false           for images that do not fit into memory: decoded once into DIR/.decoded, looked up there
                                 by data.workers=2 processes
  student.scale=S                width; likewise student.conv_dropout, student.head_dropout (0 to below 1),
                                 student.activation (relu, elu), and teacher.scale ...; of other networks docs/models.md
  teacher_seed=0                 seed of the teacher
  ensemble=N                     N teachers with seeds from teacher_seed on, whose logits are averaged for a student
  'chain=[{{scale:24}}]'           networks between teacher and student, each taught by the one before: settings that
                                 differ from the student's, or how many
  student=torchvision            with student.name=resnet18; student=timm likewise; student=custom with
                                 student.target=my_pkg.Net for a network of your own; the same for teacher=
  teacher_weights=FILE           use these weights (safetensors, a .pth of torch.save, or a run directory) instead of a
                                 teacher from teachers/; [A,B] for an ensemble
  trainer.precision=auto         bf16-mixed where the hardware supports bf16, else 32-true
  trainer=ddp                    the student on all GPUs of this machine, a teacher on one (docs/runs.md)
  speed=reference                all speed-ups off; with trainer.precision=32-true the plain loop
  speed.stored_logits=auto       keep the teacher's logits beside the teachers: true, false, auto (CPU only)
  threads=N                      CPU threads of one run; all cores unless set
  debug=fast_dev_run             one batch of everything; limit, overfit, profiler
  hydra.run.dir=DIR              where the run is written instead of runs/DATE/TIME; hydra.sweep.dir for sweeps
  -m hydra/launcher=auto         all cores or GPUs; also cohort, local, joblib, slurm (docs/sweeps.md)
  --config-dir=DIR               a folder with methods and experiments of your own (docs/extending.md)

Examples
  python train.py data=digits method=logits T=4              first run, no download, under a minute
  python train.py method=feature T=4 alpha=0.1 beta=0.3      on CIFAR-10
  python train.py -m method=logits T=1,2,4,8 seed=0,1,2      twelve runs
  python train.py experiment=seed_table                      teacher, standard, logits and feature, three seeds each
  python train.py experiment=cifar100/vgg13_vgg8             a pair of the published tables (docs/cifar100.md)
  python train.py data=folder data.root=my_images            your own images: train/CLASS/*.png and test/CLASS/*.png

More: --cfg job --resolve shows all values without running anything, --hydra-help what Hydra itself offers,
`python scripts/report.py DIR...` makes tables and pictures of finished runs, `python scripts/watch.py DIR` shows runs
that are at work, `python scripts/fidelity.py DIR...` compares students with their teacher image by image,
`python scripts/search.py DIR ...` looks for the knobs that give the best validation accuracy.
"""

GROUPS = ("data", "recipe", "student", "teacher", "trainer", "speed", "logger", "debug", "experiment")


def help_text(*folders: Path) -> str:
    """What `--help` prints; choices and their one-line descriptions are read from the files in these folders."""
    methods = "\n".join(f"  {path.stem:<10}{_description(path)}" for path in _files("method", folders))
    groups = "\n".join(
        textwrap.fill(
            ", ".join(path.stem for path in _files(group, folders)),
            width=120,
            initial_indent=f"  {group + '=':<13}",
            subsequent_indent=" " * 15,
            break_on_hyphens=False,
        )
        for group in GROUPS
    )
    knobs = "\n".join(f"  {path.stem:<10}{line}" for path in _files("method", folders) if (line := _knobs(path)))
    return HELP.format(
        methods=methods,
        knobs=knobs,
        groups=groups,
        optimizers=", ".join(path.stem for path in _files("recipe/optimizer", folders)),
        schedules=", ".join(path.stem for path in _files("recipe/schedule", folders)),
    )


def _knobs(path: Path) -> str:
    """A method's knobs as in "T=2.0 in (0, inf), alpha=0.1 in [0, 1]", read from its file."""
    settings = settings_of(path)
    spans = (settings.get("spec") or {}).get("ranges") or {}
    knobs = {name: value for name, value in settings.items() if not isinstance(value, dict | None)}
    shown = [
        f"{name}={_typed(value)}" + (f" in {spans[name]}" if name in spans else "") for name, value in knobs.items()
    ]
    sums = [f"{name} in {span}" for name, span in spans.items() if " + " in name]
    return ", ".join([*(text for text in shown if "${" not in text), *sums])


def _typed(value: object) -> str:
    """A value as one types it on the command line: [{scale:24}]."""
    return str(value).replace("'", "").replace(": ", ":")


def _files(group: str, folders: Sequence[Path]) -> list[Path]:
    """The files of a group by name; of those with one name that of the first folder, which Hydra takes."""
    found = {path.stem: path for folder in reversed(folders) for path in (folder / group).glob("*.yaml")}
    return [found[name] for name in sorted(found)]


def _description(path: Path) -> str:
    text = path.read_text(encoding="utf-8", errors="replace")  # what is wrong with it is said by `settings_of`
    comments = [line[1:].strip() for line in text.splitlines() if line.startswith("#")]
    return next((comment for comment in comments if not comment.startswith("@package")), "")


def main() -> None:
    """Run the program: every mistake in one line and exit code 1, unless HYDRA_FULL_ERROR=1 requests the traceback."""
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ |= SPINNING  # torch reads it
    tolerant_stdout()
    # A data-parallel run starts its further processes with the value that is set two lines below.
    wants_traceback = os.environ.get("HYDRA_FULL_ERROR") == "1" and "LOCAL_RANK" not in os.environ
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra is to raise, not to print
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # stopped is stopped: resumable, exit code 130
    arguments, outcome = sys.argv[1:], None
    try:
        Path.cwd()  # an error where the folder is gone
        if {"-h", "--help"} & set(arguments):
            folder = None
            with suppress(UserError):  # of whatever else is typed beside --help
                folder = read_arguments(arguments).config_dir
            if folder:
                refuse_bombs(folder)
            print(help_text(conf_dir(), *([folder] if folder else [])).replace("python train.py", program()))
            return
        known, command = prepared(arguments)
        sys.argv[1:] = arguments = known.argv
        if command is None:
            _main()
        else:
            outcome = run_composed(command, _single)
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:  # Hydra's own may be any
        if wants_traceback:
            raise
        fail(error, arguments)
    if isinstance(outcome, Exception):
        if wants_traceback or not isinstance(outcome, EXPECTED):
            raise outcome
        fail(outcome, arguments)


def fail(error: Exception, arguments: Sequence[str]) -> NoReturn:
    """Print what is wrong, in a line, and leave with exit code 1."""
    expected = isinstance(error, EXPECTED) or isinstance(error.__cause__, OSError)
    more = "" if expected else f" ({type(error).__name__}; HYDRA_FULL_ERROR=1 shows where)"
    print(f"error: {explain(error, arguments)}{more}", file=sys.stderr)
    sys.exit(1)


def prepared(argv: list[str]) -> tuple[Arguments, Command | None]:
    """Take the command line apart, and refuse what is wrong with it before Hydra makes a directory for the run.

    Returns:
        The command line, and for a single run what was composed of it.

    Raises:
        UserError, HydraException, OmegaConfBaseException: for a mistake in it.
    """
    typed = read_arguments(argv)
    arguments, record = expand_resume(typed, program())
    refuse_wrong_choices(arguments.overrides, arguments.config_dir)
    several = sweeps(arguments.overrides)
    single = [override for override in arguments.overrides if override not in several]
    if not arguments.runs:
        return arguments, None
    if several:
        arguments = for_all_choices(arguments, several, single)
        single = [override for override in single if override in arguments.overrides]
    command = None if arguments.multirun else compose(single, config_dir=arguments.config_dir)
    if command is None or command.hydra.mode is RunMode.MULTIRUN:
        _refuse_run_dir(single)
        return arguments, None
    if several:
        name, _, values = several[0].partition("=")
        others = "" if "(" in values else f"; a list is written {name}=[{values}], a text \"{name}='{values}'\""
        raise UserError(f"{several[0]}: several values are several runs, {program()} -m {in_shell(several[0])}{others}")
    for override in single:
        if override.startswith(("hydra/launcher", "hydra.launcher", "hydra/sweeper", "hydra.sweep")):
            raise UserError(f"{override} is for several runs, and this is one; add -m, or leave it out")
    check_command(command)
    directory = Path(command.hydra.run.dir)
    if first_process(several_processes(plain(command.cfg.trainer))):
        check_free(directory)
    previous = recorded(directory, before_hydra=True)
    if record is not None:
        refuse_other_settings(record, command, typed, program())
    refuse_another(previous, fingerprint(plain(command.cfg)), directory)
    return arguments, command


def for_all_choices(arguments: Arguments, several: Sequence[str], single: Sequence[str]) -> Arguments:
    """Prepare the command line of a multirun, whose jobs are checked one by one.

    A setting that the default choice of a swept group lacks becomes a sweep of one value: Hydra composes the others for
    itself first, without the sweeps.
    """

    def is_group(override: str) -> bool:
        group = override.lstrip("+~").partition("=")[0].partition("@")[0]  # without its package
        return bool(choices(group, [conf_dir()]))

    values = [override for override in single if not is_group(override) and re.match(r"(?!hydra\.)[\w.]+=", override)]
    if not values or not any(map(is_group, several)):
        return arguments
    chosen = [override for override in single if is_group(override) or override.startswith("hydra.searchpath=")]
    by_default = compose(chosen, config_dir=arguments.config_dir)
    known = [f"{name}." for name, _ in leaves(cast(dict[str, Any], OmegaConf.to_container(by_default.cfg)))]

    def prepared_for_all(override: str) -> str:
        name, _, value = override.partition("=")
        lacking = override in values and not any(setting.startswith(f"{name}.") for setting in known)
        return f"{name}=choice({value})" if lacking else override

    return replace(arguments, overrides=tuple(map(prepared_for_all, arguments.overrides)))


def _refuse_run_dir(overrides: Sequence[str]) -> None:
    for override in overrides:
        if override.startswith("hydra.run.dir="):
            raise UserError(f"{override} is for one run, and these are several; give hydra.sweep.dir in its place")


def job(cfg: DictConfig, make_builder: "Callable[[Command], Builder] | None" = None) -> Result:
    """One run as Hydra starts it, by itself or as a job of a multirun."""
    warnings.filterwarnings("ignore", message="The `srun` command is available")  # whoever wants Slurm chooses it
    node = cast(DictConfig, HydraConfig.get())
    launcher = node.launcher._target_ if node.mode is RunMode.MULTIRUN else None
    os.chdir(node.runtime.cwd)  # what data.root, teacher_store and teacher_weights are relative to, job.chdir or not
    return execute(Command.of(cfg, node, launcher), Path(node.runtime.output_dir), make_builder, program())


def program() -> str:
    """How this program is started, for hints on how to go on."""
    name = Path(sys.argv[0]).name
    return "python train.py" if name.endswith(".py") or not name.startswith("kd-") else name


@hydra.main(version_base=VERSION_BASE, config_path=str(conf_dir()), config_name="config")
def _main(cfg: DictConfig) -> float | None:
    """A job of a multirun. Returns the last epoch's validation accuracy, for whatever searches over runs."""
    return job(cfg).val_acc


def _single(cfg: DictConfig) -> None:
    """A run by itself, with its result printed."""
    result = job(cfg)
    if first_process(several_processes(plain(cfg.trainer))):
        from rich.text import Text

        from kd.report.tables import single
        from kd.sweeps.progress import console

        printed = console()
        printed.print(single(result))
        # A path is one line, to be copied, however narrow the terminal.
        printed.print(Text(HydraConfig.get().runtime.output_dir, style="dim"), soft_wrap=True)


if __name__ == "__main__":
    main()
