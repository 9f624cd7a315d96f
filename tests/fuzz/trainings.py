"""Cases of checkpoints and the teacher store, whose runs have to end with the weights of the undamaged ones."""

import hashlib
import io
import json
import math
import random
import shutil
from pathlib import Path
from typing import Any

import torch

from kd.files import checksum
from kd.runs import results
from kd.runs.given import TEACHER_WEIGHTS
from kd.runs.weights import load_weights
from kd.teachers.store import ENTRY
from kd.training.checkpoints import MARK, SEAL
from tests.fuzz import mutate
from tests.fuzz.files import replace
from tests.fuzz.originals import TEACHER, call, settings
from tests.fuzz.workers import NonsenseError, RefusedError, printed


def checkpoints(rng: random.Random, originals: Path, here: Path) -> None:
    """Try a damaged last.ckpt of an interrupted run with resume=: refused, or the undisturbed run's weights."""
    shutil.copytree(originals / "interrupted", here / "run")
    last = here / "run" / "checkpoints" / "last.ckpt"
    how, edited = rng.random(), False
    if how < 0.5:
        last.write_bytes(mutate.damage(rng, last.read_bytes()))
    elif how < 0.95:
        edited = _checkpoint(rng, last)
    else:
        replace(rng, last, here)
    _finish([f"resume={here / 'run'}"], originals, here / "run", edited)


def _checkpoint(rng: random.Random, last: Path) -> bool:
    """Write other content; return whether nothing tells it from another training's, as one finite weight differs."""
    content = torch.load(last, weights_only=True)
    key = rng.choice([name for name in content if name in _DECISIVE or rng.random() < 0.3] or list(content))
    how, edited = rng.randrange(5), False
    changed: Any = content
    if how == 0:
        changed.pop(key)
    elif how == 1:
        changed[key] = mutate.strange(rng)
    elif how == 2:
        tensors = changed["state_dict"]
        name = rng.choice(sorted(tensors))
        value = tensors[name]
        tensors[name] = rng.choice(
            (value * math.nan, value[None], value.double(), value + 1, value.to(torch.int8), torch.ones(5))
        )
        edited = torch.equal(tensors[name], value + 1)
    elif how == 3:
        name = rng.choice(("epoch", "global_step"))
        changed[name] = rng.choice((-1, 0, 2, 5, 10**9, 10**30, 0.5, "1", None))
    else:
        changed = rng.choice(({}, [], [content], None, 5, {"state_dict": {}}, torch.ones(3)))
    _write(rng, changed, last)
    return edited


_DECISIVE = ("state_dict", "optimizer_states", "lr_schedulers", "epoch", "global_step", "loops", "callbacks")


def _write(rng: random.Random, content: Any, last: Path) -> None:
    """Write a checkpoint as torch does, without the program's checksum or with the right one."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    archive = buffer.getvalue()
    if rng.random() < 0.7:
        archive = archive[:-2] + SEAL.to_bytes(2, "little")
        archive += MARK + hashlib.sha256(archive).hexdigest().encode()
    last.write_bytes(archive)


def store(rng: random.Random, originals: Path, here: Path) -> None:
    """Try a store with a damaged teacher or damaged logits: refused, or the weights of the undamaged store."""
    shutil.copytree(originals / TEACHER, here / TEACHER)
    entry = next(path.parent for path in (here / TEACHER).glob(f"*/{ENTRY}"))
    logits = next((here / TEACHER / "logits").glob("*.logits"))
    file = rng.choice((entry / ENTRY, entry / TEACHER_WEIGHTS, logits, logits, entry / results.FILE))
    how = rng.random()
    if how < 0.15:
        replace(rng, file, here)
    elif file.suffix == ".json" and how < 0.7:
        text = json.dumps(mutate.structure(rng, json.loads(file.read_text())))
        file.write_bytes(rng.choice((text.encode("utf-8", "surrogatepass"),) * 4 + (b"[" * 100_000, b"null", b"")))
    else:
        file.write_bytes(mutate.damage(rng, file.read_bytes()))
    if file.name == TEACHER_WEIGHTS and rng.random() < 0.6:  # by someone who knows of the checksum
        facts = json.loads((entry / ENTRY).read_text())
        (entry / ENTRY).write_text(json.dumps(facts | {"sha256": _sum(file)}))
    run = [*settings(originals), "method=logits", "teacher_store=teachers", "hydra.run.dir=run"]
    _finish(run, originals, here / "run", edited=file.name == TEACHER_WEIGHTS)


def _sum(file: Path) -> str:
    return checksum(file) if file.is_file() and file.stat().st_size < 10**9 else ""


def _finish(arguments: list[str], originals: Path, run: Path, edited: bool = False) -> None:
    """Do a run to its end, and raise NonsenseError unless its weights are those of the undisturbed one."""
    code = call(arguments)
    out, err = printed()
    if "Traceback (most recent" in out + err:
        raise RuntimeError(f"a traceback, exit code {code}: {(out + err)[-1500:]}")
    if code == 1 and "error: " in err:
        raise RefusedError(err[err.rindex("error: ") :])
    if code:
        raise NonsenseError(f"exit code {code}: {err[-300:]!r}")
    ours, _ = load_weights(run / "student.safetensors")
    theirs, _ = load_weights(originals / "finished" / "student.safetensors")
    if not all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items()) and not edited:
        raise NonsenseError("other weights than those of the undisturbed run")
