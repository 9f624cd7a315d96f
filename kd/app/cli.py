"""The command line of `train.py`, as far as it is not Hydra's: help for a person, and resuming."""

import os
import re
import shlex
from collections.abc import Sequence
from pathlib import Path

import yaml

from kd.errors import UserError
from kd.runs.results import FILE, read

HELP = """\
Train a network on images, or distil a small student from a larger teacher.

  python train.py [GROUP=CHOICE ...] [KNOB=VALUE ...]        one run
  python train.py -m KNOB=A,B,C ...                          one run for every combination
  python train.py resume=RUN_DIR                             continue an interrupted run

The teacher is trained first if there is none yet of that recipe, and kept in teachers/ for all later runs.

Methods (method=...)
{methods}

Knobs of the methods; those that a method lacks are refused
  T         temperature of the soft loss, > 0: higher shows more of what the teacher thinks of the wrong classes
  alpha     weight of the labels, 0 to 1
  beta      weight of the method's own further term

Groups
{groups}
  recipe/optimizer=, recipe/schedule=    {optimizers}; {schedules}
  (for the teacher: recipe/optimizer@teacher_recipe.optimizer= and recipe/schedule@teacher_recipe.schedule=)

Knobs of the run
  seed=0                         of the student: initial weights, order, augmentation, dropout
  data.root=DIR                  where the data set is, as archive, parquet mirror or folder tree, or is downloaded to
  data.val_fraction=0.1          share of the training images kept for validation, 0 to below 1; 0 for final numbers
  data.in_memory=false           for images that do not fit into memory: decoded once into DIR/.decoded, looked up there
                                 by data.workers=2 processes
  recipe.epochs=N                likewise recipe.batch_size, recipe.optimizer.lr, recipe.optimizer.weight_decay,
                                 recipe.schedule.warmup (0 to 1), recipe.label_smoothing (0 to 1), recipe.clip_norm
  teacher_recipe.epochs=N        the same for the teacher
  data.epochs=N                  for both
  student.scale=S                width; likewise student.conv_dropout, student.head_dropout (0 to below 1),
                                 student.activation (relu, elu), and teacher.scale ...
  teacher_seed=0                 seed of the teacher
  ensemble=N                     N teachers with seeds from teacher_seed on, whose logits are averaged for a student
  teacher_weights=FILE           use this safetensors file instead of a teacher from teachers/
  trainer.precision=auto         bf16-mixed where the device multiplies in bf16 by itself, else 32-true
  speed=reference                what `speed` switches all off; with trainer.precision=32-true the plain loop
  speed.stored_logits=auto       keep the teacher's logits beside the teachers: true, false, auto (on processors)
  threads=N                      of the processor, for one run; all cores unless set
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

GROUPS = ("data", "student", "teacher", "trainer", "speed", "logger", "experiment")


def help_text(conf: Path) -> str:
    """What `--help` prints; choices and their one-line descriptions are read from the files in `conf`."""
    methods = "\n".join(f"  {name:<10}{text}" for name, text in _choices(conf / "method"))
    groups = "\n".join(
        f"  {group + '=':<13}{', '.join(name for name, _ in _choices(conf / group))}" for group in GROUPS
    )
    return HELP.format(
        methods=methods,
        groups=groups,
        optimizers=", ".join(name for name, _ in _choices(conf / "recipe" / "optimizer")),
        schedules=", ".join(name for name, _ in _choices(conf / "recipe" / "schedule")),
    )


def _choices(group: Path) -> list[tuple[str, str]]:
    return [(path.stem, _description(path)) for path in sorted(group.glob("*.yaml"))]


def _description(path: Path) -> str:
    comments = [line[1:].strip() for line in path.read_text().splitlines() if line.startswith("#")]
    return next((comment for comment in comments if not comment.startswith("@package")), "")


def explain(error: Exception, arguments: Sequence[str]) -> str:
    """What an error says, in one or two lines; Hydra's messages run over many."""
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
        chosen = [argument for argument in arguments if argument.startswith("method=")] or ["the default method"]
        return f"there is no setting '{unknown[1]}' with {chosen[-1]}; add --cfg job to see all, or try --help"
    lines = [line.strip() for line in message.removeprefix("In 'config': ").splitlines() if line.strip()]
    return re.sub(r"(?<!:) Available options", ". Available options", " ".join(lines))


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
