"""Cases of command lines and configuration files: what is accepted is in the composed configuration as it was typed."""

import math
import random
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from omegaconf import OmegaConf

from kd.app.compose import conf_dir
from kd.runs.results import FILE, Result, write
from tests.fuzz import mutate
from tests.fuzz.originals import call, patched, settings
from tests.fuzz.workers import NonsenseError, RefusedError, printed

NETWORKS = tuple(sorted(file.stem for file in (conf_dir() / "student").glob("*.yaml")))
KNOBS: dict[str, tuple[str, ...]] = {
    "T": ("1", "2.5", "4", "1e3"),
    "alpha": ("0", "0.1", "1", ".5"),
    "beta": ("0", "0.3", "1"),
    "epochs": ("1", "2", "30"),
    "batch_size": ("1", "8", "12"),
    "lr": ("0.1", "1e-3"),
    "seed": ("0", "1", "12345"),
    "teacher_seed": ("0", "3"),
    "ensemble": ("1", "2"),
    "chain": ("[]", "1", "[{scale:2}]"),
    "threads": ("1", "2", "null"),
    "data.val_fraction": ("0", "0.25", "0.5"),
    "data.split_seed": ("0", "5"),
    "data.workers": ("0", "1"),
    "data.augment.crop": ("0", "2"),
    "data.augment.flip": ("true", "false"),
    "data.augment.cutout": ("0", "4"),
    "data.source.image_size": ("8", "12"),
    "data.image_size": ("null", "12", "[8,12]"),
    "data.channels": ("null", "1", "3"),
    "recipe.optimizer.lr": ("0.1", "0.01"),
    "recipe.optimizer.weight_decay": ("0", "5e-4"),
    "recipe.label_smoothing": ("0.0", "0.1"),
    "recipe.clip_norm": ("5.0", "null"),
    "recipe.epochs": ("1", "3"),
    "recipe.schedule.warmup": ("0.2", "0.0"),
    "teacher_recipe.batch_size": ("8",),
    "student.scale": ("1", "2"),
    "student.conv_dropout": ("0.0", "0.2"),
    "student.activation": ("relu", "elu"),
    "teacher.scale": ("1", "2"),
    "speed.channels_last": ("true", "false"),
    "speed.stored_logits": ("true", "false", "auto"),
    "speed.stored_logits_gb": ("1.0", "0.001"),
    "trainer.precision": ("32-true", "auto"),
    "+trainer.limit_test_batches": ("1", "1.0"),
    "teacher_weights": ("null", "missing.safetensors", "[missing.safetensors,other]"),
    "teacher_store": ("teachers", "a b"),
    "hydra.run.dir": ("run", "runs/0"),
    "hydra.job.name": ("train", "other"),
    "hydra.output_subdir": (".hydra", "null"),
    "hydra.verbose": ("false",),
    "hydra.job.chdir": ("true", "false"),
}
GROUPS: dict[str, tuple[str, ...]] = {
    "method": ("logits", "feature", "standard", "dkd", "dml", "teacher", "crd", "takd"),
    "data": ("folder", "parquet", "digits"),
    "recipe": ("default", "published", "adamw"),
    "student": NETWORKS,
    "teacher": NETWORKS,
    "speed": ("fast", "reference"),
    "trainer": ("cpu", "auto"),
    "debug": ("fast_dev_run", "limit"),
    "recipe/optimizer": ("sgd", "adamw"),
    "recipe/schedule": ("cosine", "one_cycle"),
    "logger": ("none", "tensorboard", "wandb"),
    "experiment": ("best_1m",),
    "hydra/launcher": ("basic", "none_such"),
}
FLAGS = ("-m", "--cfg=job", "--cfg", "--info", "--help", "-h", "--epochs=2", "--resolve", "--config-dir=nowhere",
         "--config-name=other", "--version", "-x", "--", "-", "--multirun", "--experimental-rerun=x", "--hydra-help",
         "--config-path=/", "--package=x", "--run", "--shell-completion")  # fmt: skip
PRINTING = ("-h", "--help", "--cfg", "--info", "--hydra-help", "--version", "--shell-completion")
"""Flags with which nothing is run."""
ODD = (
    "nan", "inf", "-inf", "1e400", "-1", "0x10", "1_000", "1e1000000", "1" * 400, "true", "null", "???", "[]", "{}",
    "[1,2]", "{a:1}", "{a:{b:[1,{c:2}]}}", "[" * 300, "{a:" * 100, "'quoted'", '"x"', "'", '"', "\\", "\\'", "a b",
    "ä", "４", "−1", "١", "\u202e1", "\udc80", "\x1b[31m", "\n", "\t1", "1,2", "1,,2", ",", "range(1,4)", "choice(1,2)",
    "glob(*)", "sort(3,1)", "shuffle(1,2)", "interval(0,1)", "int(1.5)", "float(x)", "extend_list(1)", "${seed}",
    "${lr}", "${T}", "${nothing}", "${oc.env:HOME}", "${oc.env:NO_SUCH}", "${now:%Y}", "${.x}", "${..x}", "${", "$",
    "${seed", "${${seed}}", "${oc.decode:'1'}", "${oc.create:{a:1}}", "${hydra:job.name}", "x" * 100_000, "=", "==1",
    "1;2", "1 epochs=2", "%s", "{}{}", "~", "*", "../..", "/", "/dev/zero", "/dev/null", "os.system", "9" * 30,
    "1000000", "100000000", "1e-300", "0.30000000000000004",
)  # fmt: skip
NAMES = (
    "epoch", "Epochs", "temperature", "hydra", "hydra.runtime.cwd", "hydra.mode", "hydra.searchpath", "_target_",
    "method._target_", "student._target_", "spec", "spec.ranges", "data", "recipe.optimizer", "trainer.max_epochs",
    "trainer.callbacks", "a" * 5000, "é", "x y", ".", "..", "a.", ".a", "a..b", "a[0]", "chain[0]", "@", "a@b", "a@b:c",
    "data@teacher", "recipe@teacher_recipe", "/method", "method/", "", "resume", "\x1b", "\udcff", "hydra/sweeper",
    "hydra.sweep.dir", "hydra.sweeper._target_", "hydra.help.template", "defaults", "override", "student.nothing",
)  # fmt: skip


class Line(NamedTuple):
    """A command line."""

    argv: list[str]
    expected: dict[str, str]
    """Text of the last value of each setting."""
    jobs: int | None
    """How many runs it is; None if that cannot be told from its form."""


def line(rng: random.Random, fixed: list[str]) -> Line:
    """Return a command line: settings that are right, with others that mostly are not."""
    argv, jobs = [], 1
    for _ in range(rng.choice((1, 1, 2, 3, 5))):
        argv.append(_argument(rng))
    if rng.random() < 0.12:
        argv.append(rng.choice(FLAGS))
    if rng.random() < 0.08:
        argv.append(rng.choice(argv))
    sweep: int | None = 1
    if rng.random() < 0.06:
        name = rng.choice(("seed", "teacher_seed", "T"))
        count = rng.choice((2, 3))
        argv = ["-m", f"{name}={','.join(str(i + 1) for i in range(count))}", *argv[:1]]
        sweep = count if not re.search(r"[,(*{\[]|experiment", argv[-1]) else None
    jobs = sweep if "-m" in argv or "--multirun" not in argv else None
    argv = [*fixed, *argv]
    if rng.random() < 0.1:
        rng.shuffle(argv)
    expected = {}
    for argument in argv:
        name, _, value = argument.partition("=")
        expected[name.lstrip("+")] = value
    return Line(argv, expected, jobs)


def _argument(rng: random.Random) -> str:
    kind = rng.random()
    if kind < 0.25:
        name = rng.choice(sorted(GROUPS))
        value = rng.choice(GROUPS[name])
    else:
        name = rng.choice(sorted(KNOBS))
        value = rng.choice(KNOBS[name])
    odd = rng.random()
    if odd < 0.35:
        value = rng.choice(ODD)
    elif odd < 0.45:
        name = _misspelt(rng, name)
    elif odd < 0.5:
        name = rng.choice(NAMES)
    elif odd < 0.55:
        name = rng.choice(("+", "++", "~", "--", "+++", " ")) + name
    elif odd < 0.58:
        return rng.choice((name, f"{name}=", f"={value}", "=", "", " ", value, f"~{name}", f"{name} = {value}"))
    elif odd < 0.62:
        value = _misspelt(rng, value)
    return f"{name}={value}"


def _misspelt(rng: random.Random, text: str) -> str:
    letters = list(text) or ["x"]
    place = rng.randrange(len(letters))
    how = rng.randrange(4)
    if how == 0:
        del letters[place]
    elif how == 1:
        letters.insert(place, rng.choice("aeE19-._,:'\"[]{}()$é\x00".replace("\x00", "\x7f")))
    elif how == 2:
        letters[place] = letters[place].swapcase()
    else:
        letters.append(letters[place])
    return "".join(letters)


def command(rng: random.Random, originals: Path, here: Path) -> None:
    """Try a command line with the whole program, up to and with the dry run of everything."""
    typed = line(rng, [*settings(originals), f"teacher_store={originals / 'teachers'}"])
    out = started(typed.argv)
    if any(argument.startswith(PRINTING) for argument in typed.argv):
        if not out.strip():
            raise NonsenseError("nothing printed")
        return
    records = [path for path in here.rglob(FILE) if path.parent.name != "mine"]
    if typed.jobs is not None and "-m" in typed.argv and len(records) != typed.jobs:
        raise NonsenseError(f"{len(records)} runs of {typed.jobs}: {typed.argv}")
    if not records:
        raise NonsenseError(f"no record of the run: {typed.argv}")
    if "-m" not in typed.argv:
        compare(records[0].parent, typed.expected)


def started(argv: list[str]) -> str:
    """Call the program with a run that ends after its dry run; return what it printed, or raise RefusedError."""
    with patched(__import__("kd.app.run", fromlist=["run"]), "run", _dry):
        code = call(argv)
    out, err = printed()
    if "Traceback (most recent" in out + err:
        raise RuntimeError(f"a traceback, exit code {code}: {(out + err)[-1500:]}")
    if code == 0:
        return out
    if code != 1:
        raise NonsenseError(f"exit code {code}: {argv!r:.500} {err[-300:]}")
    if "error: " not in err:
        raise NonsenseError(f"no line of an error: {argv!r:.500} {err[-300:]!r}")
    raise RefusedError(err[err.rindex("error: ") :])


def _dry(build: Any, record: Result, directory: Path, callbacks: Any = ()) -> Result:
    """Do what a run does until the first weights are trained."""
    from kd.runs.status import refusals

    with refusals():
        build.dry_run(directory)
    done = replace(record, status="done", dataset=build.images.name)
    write(done, directory / FILE)
    return done


def compare(directory: Path, expected: dict[str, str]) -> None:
    """Raise NonsenseError if the composed configuration has other values than typed."""
    files = sorted(directory.glob("*/config.yaml"))
    if not files:  # hydra.output_subdir
        return
    config = OmegaConf.load(files[0])
    chosen = OmegaConf.load(files[0].parent / "hydra.yaml").hydra.runtime.choices
    for name, value in expected.items():
        if not value or name.startswith(("hydra", "-", "~", "resume")):
            continue
        if name in GROUPS:
            got = chosen.get(name)
            if got != value.strip("'\" "):
                raise NonsenseError(f"{name}={value} became {got}")
        elif "@" in name or "/" in name:
            continue
        else:
            got = OmegaConf.select(config, name, throw_on_missing=False)
            if not same(got, value):
                raise NonsenseError(f"{name}={value} became {got!r}")


def same(got: Any, typed: str) -> bool:
    """Return whether a setting's value is what was typed, where the text has a plain meaning."""
    text = typed.strip()
    if "${" in text or "(" in text or got is None:
        return got is not None or text.lower() in ("null", "") or "${" in text
    if isinstance(got, bool):
        return text.lower() == str(got).lower()
    if isinstance(got, int | float):
        try:
            number = float(text)
        except ValueError:
            return False
        return number == got or (math.isnan(number) and math.isnan(got))
    if isinstance(got, str):
        return re.sub(r"[\\'\" ]", "", got) == re.sub(r"[\\'\" ]", "", text)
    return text[:1] in "[{"


# --- configuration files

FILES: dict[str, tuple[str, str]] = {
    "method": ("", "logits feature dkd standard dml crd funmatch"),
    "student": ("student", "cnn16 wrn22_2"),
    "recipe": ("recipe", "default published adamw"),
    "recipe/optimizer": ("recipe.optimizer", "sgd adamw"),
    "recipe/schedule": ("recipe.schedule", "one_cycle cosine multistep"),
    "speed": ("speed", "fast reference"),
    "experiment": ("", "best_1m"),
}
"""By group, where its settings go and the files of ours that are taken."""


def configuration(rng: random.Random, originals: Path, here: Path) -> None:
    """Try a damaged configuration file in a folder that `--config-dir` gives."""
    group = rng.choice(sorted(FILES))
    package, names = FILES[group]
    text = (conf_dir() / group / f"{rng.choice(names.split())}.yaml").read_text()
    content = _text(rng, text) if rng.random() < 0.5 else _values(rng, text)
    file = here / "mine" / group / "own.yaml"
    file.parent.mkdir(parents=True)
    file.write_bytes(content)
    fixed = [*settings(originals), f"teacher_store={originals / 'teachers'}", "hydra.run.dir=run"]
    started([f"--config-dir={here / 'mine'}", *fixed, f"{group}=own"])
    records = list((here / "run").glob(FILE)) or list((here / "multirun").rglob(FILE))
    if not records:
        raise NonsenseError("no record of the run")
    config = OmegaConf.load(next(records[0].parent.glob("*/config.yaml")))
    at = content.decode("utf-8", "replace").splitlines()[:1] == ["# @package _global_"]
    if package == "" and not at:
        return  # its settings went elsewhere, which the checks of knobs refuse or not
    given = {setting.partition("=")[0] for setting in fixed}
    for name, value in OmegaConf.to_container(OmegaConf.load(file), resolve=False).items():
        place = f"{package}.{name}".lstrip(".")
        if place in given or name == "defaults" or not isinstance(value, int | float):
            continue
        got = OmegaConf.select(config, place)
        if got != value:
            raise NonsenseError(f"{place}: {value!r} became {got!r}")


def _values(rng: random.Random, text: str) -> bytes:
    head = "".join(row for row in text.splitlines(True) if row.startswith("# @package"))
    changed = mutate.structure(rng, yaml.safe_load(text))
    try:
        return (head + yaml.dump(changed, allow_unicode=rng.random() < 0.5)).encode("utf-8", "surrogatepass")
    except (yaml.YAMLError, ValueError, RecursionError):
        return head.encode() + b"a: !!python/object:os.system {}\n"


def _text(rng: random.Random, text: str) -> bytes:
    rows = text.splitlines(True)
    place = rng.randrange(len(rows))
    how = rng.randrange(12)
    changes: list[Callable[[], Any]] = [
        lambda: rows.pop(place),
        lambda: rows.insert(place, rows[rng.randrange(len(rows))]),
        lambda: rows.insert(place, "\t" + rows[place]),
        lambda: rows.insert(place, "  " + rows[place]),
        lambda: rows.insert(place, bomb(rng)),
        lambda: rows.insert(place, "deep: " + "[" * rng.choice((50, 3000, 100_000)) + "\n"),
        lambda: rows.insert(place, "deep: " + "{a: " * rng.choice((20, 500)) + "1" + "}" * 20 + "\n"),
        lambda: rows.insert(place, rng.choice(("<<: *x\n", "x: &x [*x]\n", "? [a]\n: 1\n", "1: 2\n", "null: 1\n"))),
        lambda: rows.insert(place, f"{rng.choice(('T', 'lr', 'x', '_target_'))}: {rng.choice(ODD)}\n"),
        lambda: rows.insert(
            place, rng.choice(("--- \n", "...\n", "%YAML 9.9\n", "!!binary x\n", "\ufeff", "x:\x01\n"))
        ),
    ]
    if how < len(changes):
        changes[how]()
        return "".join(rows).encode("utf-8", "surrogateescape")
    return mutate.damage(rng, text.encode())


def bomb(rng: random.Random) -> str:
    """Return aliases of aliases: 10 to the power of the depth values in some lines."""
    depth = rng.choice((3, 6, 9))
    rows = ["b0: &b0 [1,1,1,1,1,1,1,1,1,1]"]
    rows += [f"b{i}: &b{i} [{','.join([f'*b{i - 1}'] * 10)}]" for i in range(1, depth)]
    return "\n".join(rows) + "\n"
