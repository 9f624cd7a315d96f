"""From an exception to the line that a user reads: what is wrong, and what to type instead. No torch import."""

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from hydra.errors import HydraException, InstantiationException
from omegaconf.errors import OmegaConfBaseException

from kd.app.check import nearest
from kd.app.compose import compose, conf_dir, plain, settings_of
from kd.app.trainer import SET_ELSEWHERE, trainer_arguments
from kd.errors import BUGS, UserError, described, reason_of
from kd.terminal import visible

EXPECTED = (UserError, HydraException, OmegaConfBaseException, OSError)
"""Errors that a line explains. Of others a run shows where they come from."""

LAUNCHERS = {"joblib": "parallel", "submitit": "slurm"}
"""Which of the extras in pyproject.toml brings a launcher, by the first word of its name."""

PACKAGES = ("wandb", "mlflow", "timm")
"""Packages of loggers and libraries of networks; the extra that brings one has its name."""

OTHER_NAMES = {
    "batch": "batch_size",
    "bs": "batch_size",
    "checkpoint": "resume=RUN_DIR",
    "ckpt": "resume=RUN_DIR",
    "ckpt_path": "resume=RUN_DIR",
    "cuda": "trainer=gpu",
    "dataset": "data",
    "device": "trainer",
    "devices": "trainer.devices",
    "dropout": "student.conv_dropout",
    "gpu": "trainer=gpu",
    "gpus": "trainer.devices",
    "learning_rate": "lr",
    "max_epochs": "epochs",
    "model": "student",
    "num_epochs": "epochs",
    "num_workers": "data.workers",
    "optim": "recipe/optimizer",
    "optimizer": "recipe/optimizer",
    "optimiser": "recipe/optimizer",
    "output_dir": "hydra.run.dir",
    "precision": "trainer.precision",
    "pretrained": "teacher_weights",
    "schedule": "recipe/schedule",
    "scheduler": "recipe/schedule",
    "tau": "T",
    "temp": "T",
    "temperature": "T",
    "width": "student.scale",
    "workers": "data.workers",
}
"""Names that are usual elsewhere, and ours for the same thing."""

LONGEST_WORD = 160
LONGEST_LINE = 2000


def explain(error: Exception, arguments: Sequence[str]) -> str:
    """Return an error's message in one or two lines; Hydra's run over many.

    Args:
        error: what was raised.
        arguments: the command line.
    """
    return printable(_message(error, arguments)) or type(error).__name__


def printable(text: str) -> str:
    """Return a text fit for a terminal: no control characters, and nothing of thousands of characters in it."""
    clean = "\n".join(map(visible, text.split("\n")))
    words = re.sub(rf"\S{{{LONGEST_WORD},}}", lambda found: f"{found[0][:60]}...{found[0][-20:]}", clean)
    return words if len(words) <= LONGEST_LINE else f"{words[:LONGEST_LINE]}..."


def _message(error: Exception, arguments: Sequence[str]) -> str:
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, OSError) and error.strerror:
        name = os.fsdecode(error.filename) if isinstance(error.filename, str | bytes | os.PathLike) else None
        return f"cannot use {name}: {error.strerror}" if name else error.strerror
    if isinstance(error.__cause__, OSError):  # such as that of a log file, behind the logging module's ValueError
        return _message(error.__cause__, arguments)
    message = str(error).split("Config search path")[0]
    launchers = re.findall(r"not (?:find|load) 'hydra/launcher/([a-z]+)", message)
    if launchers and launchers[0] in LAUNCHERS:
        return f"this launcher is not installed: pip install -e '.[{LAUNCHERS[launchers[0]]}]'"
    if isinstance(error, ImportError):
        return missing_package(error)
    unknown = re.match(r"Could not override '(.+?)'|Key '(.+?)' is not in struct", message)
    if unknown:
        return _unknown_setting(unknown[1] or unknown[2], arguments)
    present = re.match(r"Could not append to config\. An item is already at '(.+?)'", message)
    if present:
        return f"+{present[1]}: there is such a setting already; write {present[1]}=VALUE, without +"
    merged = re.match(r"Error merging override (.+)", message)
    if merged:
        return f"{merged[1]}: this is another kind of value than the setting has, such as a list or single settings"
    missing = re.match(r"Interpolation key '(.+?)' not found(?:\s+full_key: (\S+))?", message)
    if missing:
        return f"there is no setting '{missing[1]}', of which {missing[2] or 'another'} takes its value"
    if "Config was not set" in message:  # that of Hydra, by ${hydra:...}
        return "${hydra:...} has no value before a run begins; write the value itself, or ${oc.env:NAME}"
    if message.startswith("Recursive interpolation"):
        return "a setting takes its own value, by way of ${...}; give it one"
    lines = [line.strip() for line in message.removeprefix("In 'config': ").splitlines() if line.strip()]
    return re.sub(r"(?<!:) Available options", ". Available options", " ".join(lines))


def missing_package(error: ImportError) -> str:
    """Name the package that is missing, and the extra that brings it if one does."""
    package = re.search(r"(?:module named|Requirement) '?([\w.-]+)", str(error))
    name = error.name if isinstance(error, ModuleNotFoundError) and error.name else package and package[1]
    if not name:  # such as a _target_ that is no name of a module
        return " ".join(str(error).split())
    extra = next((package for package in PACKAGES if package in name), None)
    return f"{name} is not installed: pip install " + (f"-e '.[{extra}]'" if extra else name)


def _unknown_setting(name: str, arguments: Sequence[str]) -> str:
    """Return the message that there is no such setting, with what was probably meant."""
    typed = next((argument for argument in arguments if argument.lstrip("+~").startswith(f"{name}=")), f"{name}=VALUE")
    value = typed.partition("=")[2]
    chosen = [argument for argument in arguments if argument.startswith("method=")] or ["the default method"]
    group, _, key = name.rpartition(".")
    if group == "trainer" and key in SET_ELSEWHERE:
        other = SET_ELSEWHERE[key]
        instead = other if "=" in other else f"{other}={value}"
        return f"trainer.{key} is set by the run itself" + (f"; give {instead} instead" if other else "")
    if group == "trainer" and key in trainer_arguments():
        return f"trainer.{key} is an argument of the Trainer that has no value here; write +trainer.{key}={value}"
    owners = [path.stem for path in sorted((conf_dir() / "method").glob("*.yaml")) if name in settings_of(path)]
    if owners and "." not in name:
        if "," in chosen[-1]:
            return f"not all of {chosen[-1]} have {name}, a knob of {', '.join(owners)}; sweep the others by themselves"
        return f"there is no setting '{name}' with {chosen[-1]}; it is a knob of {', '.join(owners)}"
    if name in OTHER_NAMES:
        ours = OTHER_NAMES[name]
        return f"there is no setting '{name}'; it is {ours if '=' in ours else f'{ours}={value}'} here"
    try:
        choices = [argument for argument in arguments if re.fullmatch(r"[a-z_]+=[\w/-]+", argument)]
        known = plain(compose([choice for choice in choices if not choice.startswith(f"{name}=")]).cfg)
    except (HydraException, OmegaConfBaseException):
        known = plain(compose([]).cfg)
    more = [f"trainer.{argument}" for argument in trainer_arguments() - SET_ELSEWHERE.keys()]
    similar = nearest(name, known, [*more, *(other for other in OTHER_NAMES if len(other) > 5)])
    similar = [OTHER_NAMES.get(found, found) for found in similar if found != name]
    meant = f"; did you mean {' or '.join(dict.fromkeys(similar))}?" if similar else ";"
    return f"there is no setting '{name}' with {chosen[-1]}{meant} --cfg job shows all, --help the most useful"


@contextmanager
def user_errors() -> Iterator[None]:
    """Turn what a constructor raises about a setting into a message for the user who set it."""
    try:
        yield
    except InstantiationException as error:
        located = re.match(r"Error locating target '([\w.]+)'", str(error))
        raise UserError(_not_located(located[1], error) if located else _refused(error.__cause__ or error)) from error
    except UserError:
        raise
    except Exception as error:  # constructors raise anything about their arguments
        raise UserError(_refused(error)) from error


def _not_located(target: str, error: BaseException) -> str:
    """Why a class or function that settings name was not found: there is none, or its module has a fault."""
    while error.__cause__ is not None:
        error = error.__cause__
    missing = isinstance(error, ModuleNotFoundError) and f"{target}.".startswith(f"{error.name}.")
    if missing or (isinstance(error, AttributeError) and f"'{target.rpartition('.')[2]}'" in str(error)):
        return f"_target_={target}: there is no such class or function"
    return f"_target_={target}: its module cannot be imported, {described(error)}"


def _refused(error: BaseException) -> str:
    """What is wrong with the settings that something could not be made from."""
    text = reason_of(error)
    surplus = re.match(r"(\w+)(?:\.__init__)?\(\) got an unexpected keyword argument '(\w+)'", text)
    if surplus and surplus[2] in ("num_classes", "image_size"):
        return (
            f"{surplus[1]} takes no {surplus[2]}, which every network is given here: write a function that takes "
            "num_classes and image_size and returns kd.wrap(net), and name it as _target_; see docs/extending.md"
        )
    if surplus and surplus[2] == "in_channels":
        return f"{surplus[1]} takes no in_channels, so that it is for RGB images alone; write data.channels=3"
    if surplus:
        return f"{surplus[1]} has no setting '{surplus[2]}'; leave it out"
    wanted = re.search(r"tried to allocate (\d+) bytes", text)
    if wanted:
        return f"there is no memory for {int(wanted[1]) / 1e9:.0f} GB at once; choose smaller networks or batches"
    if isinstance(error, ModuleNotFoundError):
        return missing_package(error)
    if isinstance(error, BUGS):
        return f"{described(error)}; HYDRA_FULL_ERROR=1 shows the traceback"
    return f"a setting has a value of the wrong type: {text}" if isinstance(error, TypeError) else text
