"""Networks and weights that a user brings, through the program itself."""

import importlib
import os
import sys

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torchvision.models import get_model

import kd
from kd.app.compose import compose, plain
from kd.app.identity import by_content, fingerprint, teacher_id
from kd.errors import UserError
from kd.runs.results import read
from tests.common import QUICK

SOURCE = """
from torch import nn

class Net(nn.Module):
    def __init__(self, num_classes, image_size, width=4):
        super().__init__()
        self.layer1 = nn.Sequential(nn.Conv2d(3, width, 3, 2, 1), nn.BatchNorm2d(width), nn.ReLU())
        self.layer2 = nn.Sequential(nn.Conv2d(width, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU())
        self.fc = nn.Linear(8 * (image_size // 4) ** 2, num_classes)

    def forward(self, x):
        return self.fc(self.layer2(self.layer1(x)).flatten(1))
"""
DATA = (*(setting for setting in QUICK if ".scale" not in setting), "trainer.precision=32-true")
STUDENT = ("student=custom", "student.target=own_net.Net")
TEACHER = ("teacher=custom", "teacher.target=own_net.Net", "teacher.settings={width:6}")


@pytest.fixture
def own_net(tmp_path, monkeypatch):
    """A module in a folder on the import path."""
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "own_net.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(tmp_path / "code")
    yield
    sys.modules.pop("own_net", None)


def test_teacher_of_ones_own_is_used_as_it_was_trained(run, tmp_path, own_net):
    """A network with other class order, other size and other normalisation is as accurate as it was by itself."""
    own = ("student.settings={width: 6}", "student.size=12", "student.mean=[.5,.4,.3]", "student.std=[.3,.3,.3]")
    code, printed = run(*DATA, *STUDENT, *own, "method=standard", "epochs=3", "batch_size=64", "hydra.run.dir=first")
    assert code == 0, printed
    first = read(tmp_path / "first" / "result.json")
    assert first.test_acc > 0.5

    order = [3, 1, 4, 0, 5, 9, 2, 6, 8, 7]
    weights = {name.removeprefix("net."): t for name, t in load_file(tmp_path / "first/student.safetensors").items()}
    weights |= {name: weights[name][order] for name in ("module.fc.weight", "module.fc.bias")}
    torch.save({"epoch": 3, "state_dict": weights}, tmp_path / "own.pth")
    view = ("teacher.size=12", "teacher.mean=[.5,.4,.3]", "teacher.std=[.3,.3,.3]")
    names = f"teacher.classes={[str(digit) for digit in order]}"
    given = (*TEACHER, *view, names, "teacher_weights=own.pth", "student.scale=2", "method=logits")
    code, printed = run(*DATA, *given, "hydra.run.dir=second")
    assert code == 0, printed
    second = read(tmp_path / "second" / "result.json")
    assert second.teacher_test_acc == pytest.approx(first.test_acc, abs=1e-6)
    assert "own.pth: the prefix 'module.' was stripped from its names" in printed
    assert "own.pth does not say what it was trained on" in second.warnings[0]

    # As the same network in its run directory, whose metadata say how it was shown its images.
    code, printed = run(*DATA, *TEACHER, *view, "teacher_weights=first", "student.scale=2", "hydra.run.dir=third")
    assert code == 0, printed
    assert read(tmp_path / "third" / "result.json").teacher_test_acc == pytest.approx(first.test_acc, abs=1e-6)

    code, printed = run("resume=first", "threads=1")  # whose command a stranger may have written
    assert code == 1
    assert "student.target=own_net.Net, which may run code" in printed

    loaded = kd.load(tmp_path / "first", trust=True)
    assert loaded.net.view == {"mean": [0.5, 0.4, 0.3], "std": [0.3, 0.3, 0.3], "image_size": 12}
    assert loaded.net.scale is not None
    with pytest.raises(UserError, match="it names a class of other code; pass trust=True"):
        kd.load(tmp_path / "first")


def test_resnet18_of_torchvision_with_weights_of_its_own_teaches_at_64_pixels(run, tmp_path):
    for split, count in (("train", 12), ("test", 4)):
        for i, name in enumerate(("dark", "light")):
            (tmp_path / "mine" / split / name).mkdir(parents=True)
            for k in range(count):
                Image.new("RGB", (64, 64), (150 * i + k,) * 3).save(tmp_path / "mine" / split / name / f"{k}.png")
    torch.manual_seed(0)
    own = get_model("resnet18", num_classes=2).eval()
    torch.save({"state_dict": own.state_dict()}, tmp_path / "own.pth")
    code, printed = run(
        "data=folder", "data.root=mine", "data.image_size=64", "method=at", "epochs=1", "batch_size=8",
        "student=resnet8", "teacher=torchvision", "teacher.name=resnet18", "teacher_weights=own.pth", "trainer=cpu",
        "trainer.precision=32-true", "trainer.enable_progress_bar=false", "logger=none", "hydra.run.dir=run",
    )  # fmt: skip
    assert code == 0, printed
    record = read(tmp_path / "run" / "result.json")
    assert record.teacher_params == sum(p.numel() for p in own.parameters()) == 11_177_538
    predictor = kd.load(tmp_path / "run")
    mean, std = (torch.tensor(values)[:, None, None] for values in (predictor.mean, predictor.std))
    levels = torch.tensor([150.0 * i + k for i in range(2) for k in range(4)])[:, None, None, None]
    found = own((levels.expand(8, 3, 64, 64) / 255 - mean) / std).argmax(dim=1)
    assert record.teacher_test_acc == (found == torch.arange(8) // 4).float().mean().item()


def test_training_begins_with_the_users_weights(run, tmp_path, own_net):
    torch.manual_seed(5)
    from own_net import Net

    net = Net(3, 16)
    torch.save(net.state_dict(), tmp_path / "w.pth")
    begin = ("student.pretrained=w.pth", "recipe.optimizer.lr=0", "method=standard", "epochs=1")
    code, printed = run(*DATA, *STUDENT, *begin, "hydra.run.dir=run")
    assert code == 0, printed
    assert "the classifier is of other classes, and begins with initial weights" in printed
    trained = load_file(tmp_path / "run" / "student.safetensors")
    assert torch.equal(trained["net.module.layer1.0.weight"], net.layer1[0].weight)
    (tmp_path / "w.pth").unlink()
    assert kd.load(tmp_path / "run", trust=True)  # which does not need the file


@pytest.mark.parametrize("how", ["weights", "chain"])
def test_student_of_simkd_can_teach(run, tmp_path, how):
    """It is larger than its plain network: with projector and the teacher's classifier."""
    if how == "weights":
        code, printed = run(*QUICK, "epochs=1", "method=simkd", "hydra.run.dir=first")
        assert code == 0, printed
        size = read(tmp_path / "first" / "result.json").student_params
        given = ("method=logits", "teacher_weights=first")
    else:
        given = ("method=simkd", "chain=[{scale: 3}]")
    code, printed = run(*QUICK, "epochs=1", *given, "hydra.run.dir=second")
    assert code == 0, printed
    record = read(tmp_path / "second" / "result.json")
    if how == "weights":
        assert record.teacher_params == size
        assert record.teacher_test_acc == read(tmp_path / "first" / "result.json").test_acc
    else:
        assert record.teacher == "cnn32 > scale=3"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("student=torchvision",), "the name of a network of torchvision is missing; give name=, such as"),
        (("student=torchvision", "student.name=resnet81"), "torchvision has no network 'resnet81'; did you mean"),
        (("student=timm", "student.name=resnet18"), "timm is not installed: pip install -e '.[timm]'"),
        (("student=custom", "student.target=no_such.Net"), "there is no module no_such on the import path; add its"),
        ((*STUDENT, "student.settings={depth: 3}"), "has no setting 'depth'; leave it out"),
        ((*STUDENT, "student.stages=layer1"), "student.stages must be a list of names, got layer1"),
        ((*STUDENT, "student.stages=[layer3]"), "Net has no module 'layer3'; did you mean"),
        ((*STUDENT, "student.size=0"), "student.size must be a whole number in [1, 4096], got 0"),
        ((*STUDENT, "student.pretrained=nowhere.pth"), "no weights at nowhere.pth"),
        ((*TEACHER, "student.scale=2", "teacher.classes=[a,b]", "method=logits"), "classes lacks '0', a class of the"),
        ((*TEACHER, "student.scale=2", "teacher_weights=code.pth", "method=logits"), "it holds os.PathLike"),
        ((*TEACHER, "student.scale=2", "teacher_weights=code", "method=logits"), "no weights in code: it has neither"),
    ],
)
def test_what_cannot_be_used_is_one_line(run, tmp_path, monkeypatch, own_net, given, message):
    torch.save(os.PathLike, tmp_path / "code.pth")
    monkeypatch.setitem(sys.modules, "timm", None)
    method = () if any(setting.startswith("method=") for setting in given) else ("method=standard",)
    code, printed = run(*DATA, *given, *method, "hydra.run.dir=run")
    assert code == 1
    assert message in printed
    assert len(printed.strip().splitlines()) == 1


def test_teacher_has_an_id_by_its_weights_and_all_its_settings():
    """Stored logits and keys of students in the store are found by it."""
    ours = plain(compose(["teacher=cnn32"]).cfg.teacher)
    named = plain(compose(["teacher=torchvision", "teacher.name=resnet18"]).cfg.teacher)
    views = [{"size": 64}, {"size": 32}, {"mean": [0.5]}, {"classes": ["a"]}, {"stages": ["a"]}, {"preacts": True}]
    networks = [ours, {**ours, "activation": "gelu"}, named, {**named, "name": "resnet34"}]
    networks += [{**named, **view} for view in views]
    assert len({teacher_id("weights", network) for network in networks}) == len(networks)
    assert teacher_id("weights", {**named, "pretrained": "file"}) == teacher_id("weights", named)
    assert teacher_id("others", named) != teacher_id("weights", named)


def test_given_teacher_of_other_settings_has_other_stored_logits(run, tmp_path, monkeypatch):
    """The same file of weights, once in a network that forgets its activation."""
    (tmp_path / "mine.py").write_text(
        "from torch import nn\n"
        "class Net(nn.Module):\n"
        "    def __init__(self, num_classes, act):\n"
        "        super().__init__()\n"
        "        self.body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU() if act else nn.Identity())\n"
        "        self.head = nn.Linear(4, num_classes)\n"
        "    def forward(self, x):\n"
        "        return self.head(self.body(x).mean((2, 3)))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    torch.manual_seed(0)
    torch.save(importlib.import_module("mine").Net(10, True).state_dict(), tmp_path / "net.pth")
    given = ("method=logits", "teacher=custom", "teacher.target=mine.Net", f"teacher_weights={tmp_path / 'net.pth'}")
    stored = ("speed.stored_logits=true", "epochs=1", "student.scale=2", "batch_size=256", "logger=none")
    for name, act in (("wrong", False), ("right", True)):
        code, printed = run(*DATA, *given, *stored, f"teacher.settings={{act: {act}}}", f"hydra.run.dir={name}")
        assert code == 0, printed
    wrong, right = (read(tmp_path / name / "result.json") for name in ("wrong", "right"))
    assert wrong.teacher_id != right.teacher_id
    assert len(list((tmp_path / "teachers").rglob("*.logits"))) == 2
    sys.modules.pop("mine")


def test_weights_that_training_begins_with_count_by_their_content(tmp_path):
    def named(name):
        student = ["student=custom", "student.target=a.B", f"student.pretrained={tmp_path / name}"]
        return plain(compose(["data=digits", *student]).cfg)

    for name, content in (("a", b"1"), ("b", b"1"), ("c", b"2")):
        (tmp_path / name).write_bytes(content)
    first, same, other = (named(name) for name in "abc")
    assert fingerprint(first) == fingerprint(same) != fingerprint(other)
    assert by_content(first["student"]) == by_content(same["student"]) != by_content(other["student"])
    assert by_content({"scale": 2}) == {"scale": 2}
