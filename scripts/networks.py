"""Write the table of networks in docs/models.md anew: `python scripts/networks.py`."""

import argparse
import sys
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

import torch
import yaml
from torch import nn

from kd.errors import UserError
from kd.models.output import Output

ROOT = Path(__file__).resolve().parents[1]
PAGE = "docs/models.md"
MARK, END = "<!-- networks -->\n", "<!-- /networks -->\n"

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
    """Of one image in convolutions and linear layers, at 10 classes."""
    activations: int
    """Numbers that convolutions make of one image."""
    maps: list[tuple[int, ...]]
    """Channels, height and width of each stage's feature."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if something differs")
    check = parser.parse_args().check
    try:
        page = (ROOT / PAGE).read_text(encoding="utf-8")
        before, mark, rest = page.partition(MARK)
        _, end, after = rest.partition(END)
        if not (mark and end):
            raise UserError(f"{PAGE} has no place for the networks: {MARK.strip()} to {END.strip()}")
        wanted = f"{before}{mark}{table(networks())}{end}{after}"
        if not check:
            (ROOT / PAGE).write_text(wanted, encoding="utf-8")
        elif wanted != page:
            print(f"{PAGE} differs from the networks: python scripts/networks.py")
            return 1
    except (UserError, OSError) as error:
        print(f"networks.py: {error}", file=sys.stderr)
        return 1
    return 0


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
    count = sum(p.numel() for p in net.parameters())
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
    module, _, cls = settings.pop("_target_").rpartition(".")
    with torch.device(device):
        net: nn.Module = getattr(import_module(module), cls)(
            **{**settings, **changes}, num_classes=num_classes, image_size=image_size
        )
    return net


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
