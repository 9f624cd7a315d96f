"""Write the tables of networks in docs/models.md anew: `python scripts/networks.py`.

With `--time FILE` measure a training step of each network first: forward and backward pass of the cross-entropy on
images of noise, 32x32 pixels, in the precision that training has here. All networks take turns of a few steps: what
slows the machine slows them all. A factor is the median over rounds of a network's time divided by that of `resnet20`
in the same round.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
import yaml
from pages import filled, write_or_check
from steps import timed
from torch import nn

from kd.errors import UserError
from kd.models.output import Output, parameter_count
from kd.report.speed import median_ratio
from kd.runs.described import build_network
from kd.runs.provenance import measured_by
from kd.terminal import Parser, file, outcome, positive, save
from kd.training.device import choose_device, choose_precision, device_name

ROOT = Path(__file__).resolve().parents[1]
PAGE = "docs/models.md"
TIMES = "docs/results/network_time/two_cores.json"
"""Figures that the page shows."""
BASELINE = "resnet20"

HE = "[He et al. 2015](https://arxiv.org/abs/1512.03385), table 6"
CRD = "[CRD](https://arxiv.org/abs/1910.10699), counted in the authors' code"
WRN = "[WRN](https://arxiv.org/abs/1605.07146), table 4"
AT = "[AT](https://arxiv.org/abs/1612.03928), table 1"
IMGCLSMOB = "[imgclsmob](https://github.com/osmr/imgclsmob)"
NEURALFUSE = "[NeuralFuse](https://arxiv.org/abs/2306.16869), table 7"
DA2LITE = "[DA2Lite](https://github.com/da2so/DA2Lite)"
PAGE9 = "[Page 2018](https://github.com/davidcpage/cifar10-fast), counted by others"
TAKD = "[TAKD](https://github.com/imirzadeh/Teacher-Assistant-Knowledge-Distillation), in its issues"

PUBLISHED: dict[str, tuple[str, str, str]] = {
    "densenet_bc_100_12": ("769,162", "800,032", IMGCLSMOB),
    "mobilenetv2": ("", "0.813 M", CRD),
    "resnet8": ("0.078 M", "", TAKD),
    "resnet20": ("272,474", "278,324", IMGCLSMOB),
    "resnet32": ("", "0.473 M", CRD),
    "resnet44": ("0.66 M", "", HE),
    "resnet56": ("855,770", "861,620", IMGCLSMOB),
    "resnet110": ("1,730,714", "1,736,564", IMGCLSMOB),
    "resnet8x4": ("", "1.234 M", CRD),
    "resnet32x4": ("", "7.434 M", CRD),
    "resnet9": ("6,573,120", "", PAGE9),
    "resnet18": ("11,173,962", "11.22 M", f"{NEURALFUSE}; {DA2LITE}"),
    "resnet34": ("21.28 M", "21.33 M", DA2LITE),
    "resnet50": ("23,520,842", "23.7 M", f"{NEURALFUSE}; {CRD}"),
    "se_resnet56": ("862,889", "868,739", IMGCLSMOB),
    "shufflenetv1": ("", "0.949 M", CRD),
    "shufflenetv2": ("", "1.356 M", CRD),
    "vgg8": ("", "3.965 M", CRD),
    "vgg11": ("9,231,114", "", NEURALFUSE),
    "vgg13": ("", "9.462 M", CRD),
    "vgg16": ("14,728,266", "", NEURALFUSE),
    "vgg19": ("20,040,522", "20.09 M", f"{NEURALFUSE}; {DA2LITE}"),
    "wrn16_1": ("0.2 M", "", AT),
    "wrn16_2": ("0.7 M", "0.703 M", f"{AT}; {CRD}"),
    "wrn16_8": ("11.0 M", "", WRN),
    "wrn28_10": ("36,479,194", "36,536,884", IMGCLSMOB),
    "wrn40_1": ("0.6 M", "0.570 M", f"{WRN}; {CRD}"),
    "wrn40_2": ("2.2 M", "2.255 M", f"{WRN}; {CRD}"),
}
"""Numbers of parameters at 10 and at 100 classes, as printed, and where; of networks for which some were found."""


class Network(NamedTuple):
    """A network at 32 pixels."""

    name: str
    parameters: tuple[int, int]
    """At 10 and at 100 classes."""
    multiply_adds: int
    """Multiply-adds of one image in convolutions and linear layers, at 10 classes."""
    activations: int
    """Numbers that convolutions make of one image."""
    maps: list[tuple[int, ...]]
    """Channels, height and width of each stage's feature."""


def main() -> int:
    return outcome("networks.py", work)


def work() -> int:
    """Do what the command line selects; return 1 where a check finds that something differs."""
    options = arguments()
    if options.time is not None:
        save(options.time, json.dumps(times(options), indent=2) + "\n")
    page = (ROOT / PAGE).read_text(encoding="utf-8")
    wanted = filled(page, PAGE, "the networks", "networks", table(networks()))
    wanted = filled(wanted, PAGE, "their step time", "step time", time_table())
    return write_or_check(ROOT, {PAGE: wanted}, options.check, "the networks: python scripts/networks.py")


def arguments() -> argparse.Namespace:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--check", action="store_true", help="write nothing; exit with 1 if something differs")
    add("--time", type=file, metavar="FILE", help=f"measure steps first, and write the figures; shown is {TIMES}")
    add("--networks", nargs="+", metavar="NAME", help="those to measure (default: all of conf/student)")
    add("--batch", type=positive, default=64, metavar="B", help="images a step (default: 64)")
    add("--rounds", type=positive, default=5, help="turns of each network (default: 5)")
    add("--steps", type=positive, default=2, help="timed steps of a turn (default: 2)")
    options = parser.parse_args()
    if options.check and options.time is not None:
        raise UserError("--check writes nothing; leave out --time")
    known = names()
    for name in options.networks or ():
        if name not in known:
            raise UserError(f"--networks: no network {name} to measure; there are {', '.join(known)}")
    return options


def times(options: argparse.Namespace) -> dict[str, Any]:
    """Measure a step of each network, and of `BASELINE`, in turns."""
    device = choose_device("auto", 1)
    half = choose_precision("auto", "auto").startswith("bf16")
    chosen = list(dict.fromkeys([BASELINE, *(options.networks or names())]))
    steps = {name: training(name, options.batch, device, half) for name in chosen}
    seconds = timed(steps, options.rounds, options.steps, device)
    return {
        "machine": {
            **measured_by("scripts/networks.py", device_name(device)),
            "precision": "bf16-mixed" if half else "32-true",
            "batch_size": options.batch,
            "rounds": options.rounds,
            "steps": options.steps,
        },
        "networks": {
            name: {
                "ms": statistics.median(taken) * 1e3,
                "factor": median_ratio(taken, seconds[BASELINE]),
                "seconds": taken,
            }
            for name, taken in seconds.items()
        },
    }


def training(name: str, batch: int, device: torch.device, half: bool) -> Callable[[], None]:
    """Return a function that does one step: forward and backward pass."""
    net = build(name, 10).to(device, memory_format=torch.channels_last)
    x = torch.randn(batch, 3, 32, 32, device=device).to(memory_format=torch.channels_last)
    y = torch.arange(batch, device=device) % 10

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=half):
            logits = net(x).logits
        F.cross_entropy(logits.float(), y).backward()
        net.zero_grad()

    return step


def time_table() -> str:
    """Return the table of step times from the figures in the repository; a line where there are none."""
    path = ROOT / TIMES
    if not path.is_file():
        return f"Not measured yet: `python scripts/networks.py --time {TIMES}`.\n"
    figures = json.loads(path.read_text(encoding="utf-8"))
    machine, found = figures["machine"], figures["networks"]
    ordered = sorted(found, key=lambda name: found[name]["factor"])
    rows = [f"| `{name}` | {found[name]['ms']:.1f} | {found[name]['factor']:.2f} |" for name in ordered]
    note = (
        f"{machine['device']}, {machine['precision']}, {machine['batch_size']} images; medians over "
        f"{machine['rounds']} rounds of {machine['steps']} steps, {machine['date'][:10]}: `{machine['command']}`."
    )
    return "\n".join([f"| network | ms | × {BASELINE} |", "| :--- | ---: | ---: |", *rows, "", note, ""])


def networks() -> list[Network]:
    """Return every network of conf/student, the smallest first."""
    return sorted(map(measured, names()), key=lambda network: network.parameters[0])


def names() -> list[str]:
    """Return the files of conf/student that stand for one network, and not for any of a library or of your own."""
    files = sorted((ROOT / "conf" / "student").glob("*.yaml"))
    return [path.stem for path in files if "kd.models.external" not in path.read_text(encoding="utf-8")]


def measured(name: str) -> Network:
    """Count what a network of conf/student has and does, without memory for its weights."""
    net, made = build(name, 10, "meta"), list[tuple[nn.Module, int]]()
    for layer in net.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            layer.register_forward_hook(lambda layer, _, output: made.append((layer, output.numel())))
    output: Output = net.eval()(torch.zeros(1, 3, 32, 32, device="meta"))
    count = parameter_count(net)
    per_class = sum(p[0].numel() for p in net.classifier.parameters())
    return Network(
        name,
        (count, count + 90 * per_class),
        sum(count * layer.weight[0].numel() for layer, count in made),
        sum(count for layer, count in made if isinstance(layer, nn.Conv2d)),
        [tuple(feature.shape[1:]) for feature in output.features],
    )


def build(name: str, num_classes: int, device: str = "cpu", image_size: int = 32, **changes: object) -> nn.Module:
    """Return a network of conf/student, with some of its settings changed."""
    settings = yaml.safe_load((ROOT / "conf" / "student" / f"{name}.yaml").read_text(encoding="utf-8"))
    with torch.device(device):
        return build_network({**settings, **changes, "num_classes": num_classes, "image_size": image_size})


def table(found: list[Network]) -> str:
    """Return the table, a line a network."""
    lines = [
        "| network | parameters, 10 classes | published | 100 classes | published | multiply-adds | activations "
        "| stages: channels x height | source |",
        "| :--- | ---: | ---: | ---: | ---: | ---: | ---: | :--- | :--- |",
    ]
    return "\n".join([*lines, *map(row, found), ""])


def row(network: Network) -> str:
    """Return the line of a network."""
    ours, theirs, source = PUBLISHED.get(network.name, ("", "", ""))
    stages = ", ".join(f"{channels}x{height}" for channels, height, _ in network.maps)
    return (
        f"| `{network.name}` | {network.parameters[0]:,} | {ours} | {network.parameters[1]:,} | {theirs} "
        f"| {network.multiply_adds / 1e6:.1f} M | {network.activations / 1e6:.2f} M | {stages} | {source} |"
    )


if __name__ == "__main__":
    sys.exit(main())
