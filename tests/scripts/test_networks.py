"""`scripts/networks.py` makes the table of networks, and its figures are the published ones."""

import json
import re
import shutil
from functools import cache
from itertools import pairwise

import pytest

from kd.models.output import multiply_adds
from scripts import networks
from tests.common import CONF, ROOT

PAGE = (ROOT / networks.PAGE).read_text(encoding="utf-8").splitlines()
measured = cache(networks.measured)


@pytest.mark.parametrize("name", networks.names())
def test_figures_of_a_network_are_right_in_the_table_and_in_its_file(name):
    network = measured(name)
    assert networks.row(network) in PAGE
    described = (CONF / "student" / f"{name}.yaml").read_text(encoding="utf-8").splitlines()[0]
    assert described.endswith(f" {network.parameters[0] / 1e6:.2f} M parameters at 10 classes")
    for published, count in zip(networks.PUBLISHED.get(name, ()), network.parameters, strict=False):
        if published.endswith(" M"):
            figure = published.removesuffix(" M")
            assert f"{count / 1e6:.{len(figure.partition('.')[2])}f}" == figure
        elif published:
            assert f"{count:,}" == published
    heights = [height for _, height, width in network.maps if height == width]
    assert heights[0] in (32, 16)
    assert all(before in (after, 2 * after) for before, after in pairwise(heights))
    assert len(heights) == len(network.maps) >= 2


@pytest.mark.parametrize("name", ["resnet8", "vgg8", "mobilenetv2", "resnet9"])
def test_parameters_at_100_classes_are_those_of_such_a_network(name):
    assert measured(name).parameters[1] == sum(p.numel() for p in networks.build(name, 100, "meta").parameters())


@pytest.mark.parametrize(
    ("name", "millions"),
    [
        ("resnet18", 555),  # 557.14 with BatchNorm, NeuralFuse, table 7
        ("resnet34", 1160),  # 1.16 G, DA2Lite
        ("resnet50", 1300),  # 1.30 G, DA2Lite
        ("resnet9", 379.27),  # torchinfo
    ],
)
def test_network_has_the_published_number_of_multiply_adds(name, millions):
    assert measured(name).multiply_adds / 1e6 == pytest.approx(millions, rel=3e-3)


@pytest.mark.parametrize("name", ["resnet8", "shufflenetv1", "mobilenetv2", "vgg8"])
def test_multiply_adds_of_the_table_are_those_of_records(name):
    """Counted here by the layers' shapes, there by torch."""
    assert measured(name).multiply_adds == multiply_adds(networks.build(name, 10), 32)


def test_activations_are_the_outputs_of_convolutions():
    # wrn16_1: stem and first group 5 maps of 16 x 32 x 32; the others 5 each, with half as many numbers a map.
    assert measured("wrn16_1").activations == 5 * 2**14 + 5 * 2**13 + 5 * 2**12


def test_table_is_that_of_the_networks(tmp_path, monkeypatch, capsys):
    page = tmp_path / networks.PAGE
    page.parent.mkdir()
    (tmp_path / "conf" / "student").mkdir(parents=True)
    for name in ("cnn16", "resnet8", "vgg8"):
        shutil.copy(CONF / "student" / f"{name}.yaml", tmp_path / "conf" / "student")
    shutil.copy(networks.ROOT / networks.PAGE, page)
    monkeypatch.setattr(networks, "ROOT", tmp_path)

    def call(*arguments):
        monkeypatch.setattr("sys.argv", ["networks.py", *arguments])
        return networks.main()

    assert call("--check") == 1
    assert capsys.readouterr().out == "docs/models.md differs from the networks: python scripts/networks.py\n"
    assert call() == 0
    assert call("--check") == 0
    assert re.findall(r"^\| `(\w+)` \|.* 16x32, ", page.read_text(encoding="utf-8"), re.MULTILINE) == [
        "resnet8",
        "cnn16",
    ]
    assert "\nNot measured yet: `python scripts/networks.py --time docs/" in page.read_text(encoding="utf-8")
    times = tmp_path / networks.TIMES
    times.parent.mkdir(parents=True)
    few = ("--networks", "resnet8", "--batch", "2", "--rounds", "3", "--steps", "1")
    shutil.copy(CONF / "student" / "resnet20.yaml", tmp_path / "conf" / "student")
    assert call("--time", str(times), *few) == 0
    figures = json.loads(times.read_text(encoding="utf-8"))
    assert figures["machine"].keys() >= {"device", "date", "command", "git", "versions", "precision", "batch_size"}
    assert list(figures["networks"]) == ["resnet20", "resnet8"]
    assert figures["networks"]["resnet20"]["factor"] == 1
    assert figures["networks"]["resnet8"]["factor"] < 1
    assert all(len(row["seconds"]) == 3 and row["ms"] > 0 for row in figures["networks"].values())
    assert re.search(r"^\| `resnet20` \| [\d.]+ \| 1.00 \|$", page.read_text(encoding="utf-8"), re.MULTILINE)
    for wrong, message in (
        (("--networks", "resnet21"), "--networks: no network resnet21 to measure; there are cnn16, resnet20, resnet8"),
        (("--check", "--time", str(times)), "--check writes nothing; leave out --time"),
        (("--time", "nowhere/t.json"), "nowhere/t.json: no folder nowhere"),
        (("--rounds", "0"), "must be at least 1, got 0"),
    ):
        capsys.readouterr()
        assert call(*wrong) == 1
        assert message in capsys.readouterr().err
    page.write_text("# Networks\n", encoding="utf-8")
    assert call() == 1
    assert "docs/models.md has no place for the networks" in capsys.readouterr().err
