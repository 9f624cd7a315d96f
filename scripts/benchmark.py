"""How fast training is, measured side by side with the loop of the textbooks.

The processes take turns, a few steps each, so that the machine's moods meet all of them alike:

  textbook    torchvision transforms in a DataLoader with two workers, fp32, a teacher that is asked every step
  bare        our batches, precision and teacher in a plain loop
  train.py    what `python train.py` does, Trainer and all
  changed     the same with the settings that are given here, if any: what is `speed.packed_dropout=false` worth?

The networks, batch size and augmentation are the same, and the images are noise, as speed does not depend on them.
A ratio is the median over rounds of one turn's images per second divided by the textbook's in the same round.
"""

import argparse
import json
import logging
import multiprocessing as mp
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import datetime, timezone
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from kd.report.speed import BRIEF, IMAGES, LOOPS, overhead, ratio, remarks, to_markdown, to_rich  # noqa: E402

WORKLOADS = {
    "teacher": ["method=teacher"],
    "student": ["method=standard"],
    "logits_live": ["method=logits", "speed.stored_logits=false"],
    "logits_stored": ["method=logits", "speed.stored_logits=true"],
    "feature_live": ["method=feature"],
}
TEACHER = "teacher.safetensors"


class Enough(Exception):  # noqa: N818 - not an error
    """Ends a training that would otherwise go on."""


class Turns:
    """The side of a loop: waits until it is its turn, and measures it.

    `step` is called after every step of training. The first steps of a turn are not timed, so that workers that
    rested while others ran have caught up.
    """

    def __init__(self, pipe: Any, options: argparse.Namespace, device: Any) -> None:
        self.pipe, self.synchronize = pipe, synchronizer(device)
        self.settle, self.steps, self.batch = options.settle, options.steps, options.batch
        self.done, self.started = 0, 0.0
        self.wait()

    def wait(self) -> None:
        """Until told to go on; raises Enough if there are no more turns."""
        self.pipe.send("ready")
        if self.pipe.recv() == "enough":
            raise Enough
        self.done = 0

    def step(self) -> None:
        self.done += 1
        if self.done == self.settle:
            self.synchronize()
            self.started = time.perf_counter()
        if self.done == self.settle + self.steps:
            self.synchronize()
            self.pipe.send(self.steps * self.batch / (time.perf_counter() - self.started))
            self.wait()


def noise() -> Any:
    """A data set of CIFAR-10's shape, for configurations here."""
    import torch

    from kd.data.images import Images

    generator = torch.Generator().manual_seed(0)
    x = torch.randint(256, (IMAGES + 10_000, 3, 32, 32), dtype=torch.uint8, generator=generator)
    y = torch.arange(len(x)) % 10
    return Images("noise", tuple("abcdefghij"), x[:IMAGES], y[:IMAGES], x[IMAGES:], y[IMAGES:])


def settings(workload: str, options: argparse.Namespace, folder: Path) -> Any:
    """The configuration that `train.py` would compose."""
    import textbook as book
    from hydra import compose, initialize_config_dir

    dropout = [f"{role}.{name}={p}" for role in ("teacher", "student") for name, p in book.DROPOUT.items()]
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return compose(
            "config",
            [
                *WORKLOADS[workload],
                "~data.source.root",
                "data.source._target_=benchmark.noise",
                f"trainer={options.device}",
                f"data.batch_size={options.batch}",
                "data.epochs=1000000",
                f"teacher_store={folder}",
                *dropout,
                "trainer.enable_progress_bar=false",
                *([] if workload in ("teacher", "student") else [f"teacher_weights={folder / TEACHER}"]),
                *options.overrides,
            ],
        )


def textbook(workload: str, options: argparse.Namespace, folder: Path, pipe: Any) -> None:
    """See `textbook.py`."""
    import textbook as book

    device = chosen(options)
    turns = Turns(pipe, options, device)
    for _ in book.train(workload, noise(), folder / TEACHER, options.batch, device):
        turns.step()


def bare(workload: str, options: argparse.Namespace, folder: Path, pipe: Any) -> None:
    """Ours, without Lightning: no metrics, no logs, no checkpoints."""
    import torch

    import train
    from kd.training.modules import Classifier, Distiller
    from kd.training.optim import parameter_groups

    cfg = settings(workload, options, folder)
    make = train.Workshop(cfg)
    device = chosen(options)
    net = make.net(cfg.teacher if workload == "teacher" else cfg.student)
    parts = make.parts(make.speed.trained(net), cfg.recipe)
    if workload in ("teacher", "student"):
        module = Classifier(**parts)
    else:
        teacher = train.find_teacher(make, train.Result(method="", seed=0, dataset="", epochs=0, status=""))[0]
        method = make.method(net, teacher.net)
        stored = make.stored_logits(teacher) if method.logits_only else None
        module = Distiller(**parts, teacher=stored or teacher, method=method)
    module.to(device).train()
    data = make.data(cfg.recipe, cfg.seed)
    data.trainer = SimpleNamespace(world_size=1, global_rank=0, strategy=SimpleNamespace(root_device=device))
    loader = data.train_dataloader()
    if workload == "logits_stored":
        for batch in islice(loader, options.rounds * (options.settle + options.steps)):
            stored(batch)
    optimizer = parts["optimizer"](parameter_groups(module))
    half = make.precision == "bf16-mixed"
    turns = Turns(pipe, options, device)
    while True:
        for batch in loader:
            with torch.autocast(device.type, torch.bfloat16, enabled=half):
                output = module.net(batch.x)
                loss = sum(module.losses(output, batch).values())
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(module.parameters(), 5.0)
            optimizer.step()
            turns.step()
        if workload != "logits_stored":  # there the first epoch's views, which are stored, come again and again
            loader.sampler.set_epoch(loader.sampler.epoch + 1)


def through_the_trainer(workload: str, options: argparse.Namespace, folder: Path, pipe: Any) -> None:
    """`train.run` itself, with one callback more."""
    import lightning as L

    import train

    class Pace(L.Callback):
        def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
            if workload == "logits_stored":
                trainer.train_dataloader.sampler.set_epoch = lambda epoch: None
            self.turns = Turns(pipe, options, pl_module.device)

        def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
            self.turns.step()

    class Paced(train.Workshop):
        def trainer(self, recipe: Any, **where: Any) -> Any:
            make = super().trainer(recipe, **where)
            return lambda callbacks=(), **more: make(callbacks=[*callbacks, Pace()], **more)

    cfg = settings(workload, options, folder)
    record = train.Result(method=workload, seed=0, dataset="noise", epochs=1, status="running")
    plain, train.Workshop = train.Workshop, Paced  # type: ignore[misc]
    try:
        with tempfile.TemporaryDirectory(dir=folder) as directory:
            train.run(cfg, record, Path(directory))
    finally:
        train.Workshop = plain  # type: ignore[misc]


def chosen(options: argparse.Namespace) -> Any:
    import torch

    return torch.device("cuda" if options.device == "gpu" else "cpu")


def synchronizer(device: Any) -> Callable[[], None]:
    import torch

    return torch.cuda.synchronize if device.type == "cuda" else lambda: None


def child(loop: str, options: argparse.Namespace, folder: Path, pipe: Any) -> None:
    """One loop's process: every workload in turn."""
    loops = {"textbook": textbook, "bare": bare, "train.py": through_the_trainer, "changed": through_the_trainer}
    if loop != "changed":
        options.overrides = []
    sys.modules["benchmark"] = sys.modules[__name__]  # where the configuration looks for `noise`
    for name in ("lightning.pytorch", "lightning.fabric"):
        for part in ("", ".utilities.rank_zero"):
            logging.getLogger(name + part).setLevel(logging.ERROR)
    while (workload := pipe.recv()) != "stop":
        try:
            loops[loop](workload, options, folder, pipe)
        except Enough:
            pipe.send(memory(options))
        except BaseException as error:
            pipe.send(f"{type(error).__name__}: {error}")
            raise


def memory(options: argparse.Namespace) -> float:
    """The most that this process and its workers have held so far, in GB; on a GPU, of its memory."""
    if options.device == "gpu":
        import torch

        return torch.cuda.max_memory_allocated() / 1e9
    own, workers = (resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return (own + 2 * workers) * 1024 / 1e9


def race(workload: str, pipes: dict[str, Any], options: argparse.Namespace) -> dict[str, Any]:
    """Let the loops take turns; images per second of every round, and memory in GB."""
    for pipe in pipes.values():
        pipe.send(workload)
        hear(pipe)  # one after the other: preparing is not to disturb
    rates: dict[str, list[float]] = {loop: [] for loop in pipes}
    for _ in range(options.rounds):
        for loop, pipe in pipes.items():
            pipe.send("go")
            rates[loop].append(hear(pipe))
            hear(pipe)
    for pipe in pipes.values():
        pipe.send("enough")
    return {"images_per_second": rates, "memory_gb": {loop: hear(pipe) for loop, pipe in pipes.items()}}


def hear(pipe: Any) -> Any:
    said = pipe.recv()
    if isinstance(said, str) and said != "ready":
        raise SystemExit(f"error: {said}")
    return said


def first_step(options: argparse.Namespace, folder: Path) -> float:
    """Seconds from the command `train.py data=digits method=standard` to the end of its first training step."""
    code = (
        "import sys, runpy, lightning.pytorch.callbacks as c, os\n"
        "c.ModelCheckpoint.on_train_batch_end = lambda *a, **k: os._exit(7)\n"
        f"sys.argv = ['train.py', 'data=digits', 'method=standard', 'hydra.run.dir={folder}/first']\n"
        f"runpy.run_path({str(ROOT / 'train.py')!r}, run_name='__main__')\n"
    )
    started = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    if done.returncode != 7:
        raise SystemExit(f"error: the first step was not reached: {done.stderr[-500:]}")
    return time.perf_counter() - started


def evaluation(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Images per second of the teacher asked in the textbook's way and in ours, in turns; and FLOP/s."""
    import torch
    from safetensors.torch import load_file
    from torch.utils.flop_counter import FlopCounterMode

    import train
    from kd.data.batch import Batch
    from kd.teachers.frozen import FrozenTeacher

    device = chosen(options)
    synchronize = synchronizer(device)
    cfg = settings("student", options, folder)
    make = train.Workshop(cfg)
    net = make.net(cfg.teacher)
    net.load_state_dict(load_file(folder / TEACHER))
    plain = FrozenTeacher(make.net(cfg.teacher).to(device), "")
    ours = FrozenTeacher(net, "", make.frozen)
    x = torch.randn(options.batch, 3, 32, 32, device=device)
    nothing = torch.zeros(0)
    batches = {
        "textbook": (plain, Batch(x, nothing, nothing, nothing)),
        "ours": (ours, Batch(x.contiguous(memory_format=make.speed.memory_format), nothing, nothing, nothing)),
    }
    dtype = torch.bfloat16 if make.precision == "bf16-mixed" else torch.float32
    n = 2048 if device.type == "cpu" else 8192
    a, b = torch.randn(n, n, dtype=dtype, device=device), torch.randn(n, n, dtype=dtype, device=device)
    with FlopCounterMode(display=False) as counter:
        plain(batches["textbook"][1])
    flops = counter.get_total_flops() / options.batch

    def timed(work: Callable[[], Any]) -> float:
        synchronize()
        started = time.perf_counter()
        for _ in range(5):
            work()
        synchronize()
        return (time.perf_counter() - started) / 5

    rates: dict[str, list[float]] = {name: [] for name in batches}
    ceiling = []
    for _ in range(1 + options.rounds):
        for name, (teacher, batch) in batches.items():
            rates[name].append(options.batch / timed(lambda t=teacher, b=batch: t(b)))  # type: ignore[misc]
        ceiling.append(2 * n**3 / timed(lambda: a @ b))
    return {
        "images_per_second": {name: figures[1:] for name, figures in rates.items()},
        "matmul_flops": statistics.median(ceiling[1:]),
        "teacher_forward_flops": flops,
    }


def training_flops(options: argparse.Namespace, folder: Path) -> dict[str, float]:
    """Floating point operations per image, forward and backward, of the two networks alone."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from kd.models.cnn import CNN

    counts = {}
    for name, scale in (("teacher", 32), ("student", 16)):
        net = CNN(scale, 10, 32, "relu", 0.25, 0.5)
        with FlopCounterMode(display=False) as counter:
            net(torch.zeros(8, 3, 32, 32)).logits.sum().backward()
        counts[name] = counter.get_total_flops() / 8
    return counts


def measure(options: argparse.Namespace) -> dict[str, Any]:
    import train

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        make_teacher(folder)
        context = mp.get_context("spawn")
        pipes, processes = {}, []
        for loop in loops_of(options):
            # Read when libgomp loads. `train.py` sets it, and who follows a textbook does not.
            for name in train.WAITING:
                os.environ.pop(name, None)
            if loop != "textbook" or options.passive_textbook:
                os.environ |= train.WAITING
            pipes[loop], far = context.Pipe()
            processes.append(context.Process(target=child, args=(loop, options, folder, far)))
            processes[-1].start()
        try:
            races = {workload: race(workload, pipes, options) for workload in options.workloads}
            for pipe in pipes.values():
                pipe.send("stop")
        finally:
            for process in processes:
                process.join(timeout=10)
                process.terminate()
        figures = {
            "machine": machine(options),
            "overrides": options.overrides,
            "workloads": races,
            "evaluation": evaluation(options, folder),
            "training_flops": training_flops(options, folder),
            "first_step_seconds": [first_step(options, folder) for _ in range(1 if options.quick else 3)],
        }
    figures["ratios"] = {name: ratio(entry, "train.py") for name, entry in races.items()}
    figures["ratios_bare"] = {name: ratio(entry, "bare") for name, entry in races.items()}
    figures["lightning_overhead"] = {name: overhead(entry) for name, entry in races.items()}
    return figures


def loops_of(options: argparse.Namespace) -> tuple[str, ...]:
    return (*LOOPS, "changed") if options.overrides else LOOPS


def make_teacher(folder: Path) -> None:
    """An untrained teacher: nothing here depends on what it knows."""
    import torch

    from kd.models.cnn import CNN
    from kd.runs.weights import save_weights

    torch.manual_seed(0)
    save_weights(CNN(32, 10, 32, "relu", 0.25, 0.5), folder / TEACHER, {})


def machine(options: argparse.Namespace) -> dict[str, Any]:

    from kd.runs.status import git_revision, versions
    from kd.training.fit import device_name

    device = chosen(options)
    return {
        "device": device_name(device),
        "system": platform.platform(),
        "versions": versions(),
        "git": git_revision(),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": " ".join(["python", "scripts/benchmark.py", *sys.argv[1:]]),
        "batch_size": options.batch,
        "rounds": options.rounds,
        "steps": options.steps,
    }


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example: python scripts/benchmark.py --quick --json speed.json",
    )
    parser.add_argument("overrides", nargs="*", help="settings of the loop `changed`, as for train.py")
    parser.add_argument("--device", choices=("cpu", "gpu"), help="default: gpu if there is one")
    parser.add_argument("--workloads", nargs="+", choices=WORKLOADS, default=list(WORKLOADS), metavar="NAME")
    parser.add_argument("--batch", type=int, default=256, help="images a step (default: 256)")
    parser.add_argument("--rounds", type=int, help="turns of each loop")
    parser.add_argument("--steps", type=int, help="timed steps of a turn")
    parser.add_argument("--quick", action="store_true", help="fewer and shorter turns: under two minutes on two cores")
    parser.add_argument(
        "--passive-textbook",
        action="store_true",
        help="spare the textbook's loop the threads that spin while they wait",
    )
    parser.add_argument("--markdown", action="store_true", help="print a table for a README as well")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures")
    options = parser.parse_intermixed_args()
    import torch

    if options.device is None:
        options.device = "gpu" if torch.cuda.is_available() else "cpu"
    if options.device == "gpu" and not torch.cuda.is_available():
        parser.exit(1, "error: there is no GPU that torch can use; leave out --device\n")
    steps = 100 if options.device == "gpu" else 12
    options.rounds = options.rounds or (2 if options.quick else 7)
    options.steps = options.steps or (steps // 3 if options.quick else steps)
    options.settle = max(4, options.steps // 4)  # the four batches that two workers have ready
    return options


def main() -> None:
    from rich.console import Console

    import train  # noqa: F401  # sets what has to be set before torch is imported

    options = arguments()
    figures = measure(options)
    if options.markdown:
        print(to_markdown(figures, BRIEF))
    Console(width=110, soft_wrap=True).print(to_rich(figures), *remarks(figures), sep="\n", highlight=False)
    if options.json is not None:
        options.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
