"""Speed-ups must not change what is computed."""

import copy
import sys

import pytest
import torch
import yaml
from torch import nn

from kd.models.cnn import CNN
from kd.models.wrap import wrap
from kd.training.performance import PackedDropout, Speed
from tests import processes
from tests.common import ROOT

CPU = torch.device("cpu")

CONF = ROOT / "conf" / "speed"


def speed(name="fast", **changes):
    settings = yaml.safe_load((CONF / f"{name}.yaml").read_text())
    del settings["_target_"]
    return Speed(**{**settings, **changes})


@pytest.fixture
def trained_cnn():
    """A network whose BatchNorm has running statistics."""
    torch.manual_seed(0)
    net = CNN(8, 10, 16, "relu", 0.25, 0.5)
    for _ in range(20):
        net(2 * torch.randn(32, 3, 16, 16) + 0.5)
    return net.eval()


def test_speed_reference_switches_everything_off():
    settings = yaml.safe_load((CONF / "reference.yaml").read_text())
    assert not any(value for name, value in settings.items() if name != "_target_")
    assert settings.keys() == yaml.safe_load((CONF / "fast.yaml").read_text()).keys()


class TestPrepareTeacher:
    def test_prepare_teacher_gives_the_same_outputs(self, trained_cnn):
        x = torch.randn(16, 3, 16, 16)
        frozen = speed().prepare_teacher(trained_cnn, half=False)
        assert not any(isinstance(module, nn.BatchNorm2d) for module in frozen.modules())
        theirs, ours = trained_cnn(x), frozen(x)
        torch.testing.assert_close(ours.logits, theirs.logits, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(ours.embedding, theirs.embedding, rtol=1e-4, atol=1e-5)
        assert len(ours.features) == len(theirs.features) == 2
        for mine, other in zip(ours.features, theirs.features, strict=True):
            torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-4)

    def test_prepare_teacher_in_bf16_gives_nearly_the_same_logits(self, trained_cnn):
        x = torch.randn(64, 3, 16, 16)
        exact, rounded = (
            trained_cnn(x).logits,
            speed().prepare_teacher(trained_cnn, half=True)(x.bfloat16()).logits.float(),
        )
        assert (exact - rounded).abs().max() < 0.03 * exact.abs().max()

    def test_prepare_teacher_returns_a_frozen_copy(self, trained_cnn):
        before = copy.deepcopy(trained_cnn.state_dict())
        frozen = speed().prepare_teacher(trained_cnn, half=True)
        assert all(not p.requires_grad for p in frozen.parameters())
        after = trained_cnn.state_dict()
        assert all(
            torch.equal(before[name], after[name]) and after[name].dtype == before[name].dtype for name in before
        )

    def test_prepare_teacher_keeps_batchnorm_where_a_hook_holds_the_features(self):
        """torch.fx traces past the hooks of layers: what they keep is not there, a KeyError where it is a dict."""

        class Hooked(nn.Module):
            def __init__(self):
                super().__init__()
                self.layers = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))

            def forward(self, x):
                kept = {}
                handle = self.layers[0].register_forward_hook(lambda module, args, output: kept.update(map=output))
                try:
                    return self.layers(x) + kept["map"]
                finally:
                    handle.remove()

        net = Hooked().eval()
        ready = speed().prepare_teacher(net, half=False)
        assert any(isinstance(module, nn.BatchNorm2d) for module in ready.modules())
        x = torch.rand(2, 3, 8, 8)
        torch.testing.assert_close(ready(x), net(x))

    def test_prepare_teacher_keeps_batchnorm_where_tracing_fails(self):
        class DataDependent(nn.Module):
            def __init__(self):
                super().__init__()
                self.layers = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))

            def forward(self, x):
                return self.layers(x) if x.mean() > 0 else -self.layers(x)

        net = DataDependent().eval()
        frozen = speed().prepare_teacher(net, half=False)
        assert any(isinstance(module, nn.BatchNorm2d) for module in frozen.modules())
        bright = torch.rand(2, 3, 8, 8)
        for x in (bright, -bright):
            torch.testing.assert_close(frozen(x), net(x))


class TestPrepareStudent:
    def test_prepare_student_keeps_weights_and_gradients(self):
        torch.manual_seed(0)
        plain = CNN(8, 10, 16, "relu", 0.0, 0.0)
        prepared = speed().prepare_student(copy.deepcopy(plain))
        assert plain.state_dict().keys() == prepared.state_dict().keys()
        x = torch.randn(16, 3, 16, 16)
        for net in (plain, prepared):
            net(x).logits.square().mean().backward()
        for mine, other in zip(prepared.parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(mine.grad, other.grad, rtol=1e-3, atol=1e-5)

    def test_prepare_student_replaces_dropout_and_nothing_else(self):
        net = speed().prepare_student(CNN(4, 10, 16, "relu", 0.25, 0.5))
        assert {m.p for m in net.modules() if isinstance(m, nn.Dropout)} == {0.25, 0.5}
        assert all(type(m) is PackedDropout for m in net.modules() if isinstance(m, nn.Dropout))
        plain = speed("reference").prepare_student(CNN(4, 10, 16, "relu", 0.25, 0.5))
        assert all(type(m) is nn.Dropout for m in plain.modules() if isinstance(m, nn.Dropout))

    def test_prepare_student_keeps_gradients_of_feature_maps_channels_last(self):
        net = speed().prepare_student(CNN(4, 10, 16, "relu", 0.25, 0.5))
        received = []
        net.downsample.register_full_backward_pre_hook(lambda module, grads: received.append(grads[0]))
        net(torch.randn(8, 3, 16, 16).contiguous(memory_format=torch.channels_last)).logits.sum().backward()
        assert [tuple(grad.shape) for grad in received] == [(8, 8, 4, 4), (8, 4, 8, 8)]
        assert all(grad.is_contiguous(memory_format=torch.channels_last) for grad in received)

    def test_prepare_student_compiled_has_the_same_gradients(self, tmp_path):
        """In a process of its own, as it changes torch."""
        program = tmp_path / "program.py"
        program.write_text(
            "import copy, functools, torch\n"
            "from kd.models.cnn import CNN\n"
            "from kd.training.performance import Speed\n"
            # Traced and differentiated as in training, but not compiled to code: that needs minutes and a compiler.
            "torch.nn.Module.compile = functools.partialmethod(torch.nn.Module.compile, backend='aot_eager')\n"
            "plain = CNN(2, 10, 8, 'relu', 0.0, 0.0)\n"
            "prepared = Speed(True, True, True, True, False, False, True, False, 0.0)\n"
            "net = prepared.prepare_student(copy.deepcopy(plain))\n"
            "assert list(net.state_dict()) == list(plain.state_dict()) and net._compiled_call_impl is not None\n"
            "x = torch.randn(8, 3, 8, 8)\n"
            "for model in (plain, net): model(x).logits.square().mean().backward()\n"
            "for a, b in zip(plain.parameters(), net.parameters(), strict=True):\n"
            "    torch.testing.assert_close(a.grad, b.grad, rtol=1e-3, atol=1e-5)\n"
        )
        done = processes.run(program, cwd=ROOT)
        assert done.returncode == 0, done.stderr


class TestPackedDropout:
    @pytest.mark.parametrize("p", [0.1, 0.25, 0.5, 0.9])
    @pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
    def test_packed_dropout_drops_at_its_rate_and_keeps_the_mean(self, p, memory_format):
        torch.manual_seed(1)
        x = torch.ones(50, 20, 16, 16).to(memory_format=memory_format)
        y = PackedDropout(p)(x)
        assert (y == 0).double().mean().item() == pytest.approx(p, abs=4 * (p * (1 - p) / x.numel()) ** 0.5)
        torch.testing.assert_close(y[y != 0], torch.full_like(y[y != 0], 1 / (1 - p)))
        assert y.is_contiguous(memory_format=memory_format)

    def test_packed_dropout_is_uniform_and_independent_over_elements(self):
        torch.manual_seed(1)
        drop = PackedDropout(0.5)
        draws = torch.stack([drop(torch.ones(13)) for _ in range(4000)]) / 2
        assert (draws.mean(dim=0) - 0.5).abs().max() < 5 * 0.5 / 4000**0.5
        correlations = torch.corrcoef(draws.T) - torch.eye(13)
        assert correlations.abs().max() < 5 / 4000**0.5

    def test_packed_dropout_takes_any_shape_and_stride(self):
        torch.manual_seed(1)
        for x in (torch.ones(7), torch.ones(3, 5), torch.ones(8, 6).T, torch.ones(4, 6)[:, ::2], torch.ones(0, 4)):
            y = PackedDropout(0.5)(x)
            assert y.shape == x.shape
            assert set(y.flatten().tolist()) <= {0.0, 2.0}

    def test_packed_dropout_passes_gradients_where_it_passed_values(self):
        torch.manual_seed(1)
        x = torch.randn(40, 8, requires_grad=True)
        y = PackedDropout(0.25)(x)
        y.sum().backward()
        assert torch.equal(x.grad == 0, y == 0)

    def test_packed_dropout_is_the_identity_in_evaluation_and_at_rate_zero(self):
        x = torch.randn(10, 3)
        assert torch.equal(PackedDropout(0.5).eval()(x), x)
        assert torch.equal(PackedDropout(0.0)(x), x)

    def test_prepare_student_keeps_hooks_on_dropout(self):
        layers = [nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Dropout(), nn.MaxPool2d(2)]
        layers += [nn.Conv2d(4, 6, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(96, 10)]
        net = wrap(nn.Sequential(*layers), image_size=8)
        assert net.stages == ("2", "5")
        assert len(speed().prepare_student(net)(torch.randn(2, 3, 8, 8)).features) == 2

    def test_packed_dropout_is_reproducible_by_seed(self):
        x, drop = torch.ones(100, 100), PackedDropout(0.5)
        torch.manual_seed(3)
        first = drop(x)
        assert not torch.equal(first, drop(x))
        torch.manual_seed(3)
        assert torch.equal(first, drop(x))


def test_speed_refuses_an_unknown_stored_logits():
    with pytest.raises(ValueError, match=r"speed\.stored_logits must be true, false or auto, got never"):
        speed(stored_logits="never")


def test_configure_process_sets_threads(request):
    before = torch.get_num_threads()
    request.addfinalizer(lambda: torch.set_num_threads(before))
    speed(keep_memory=False).configure_process(2, CPU)
    assert torch.get_num_threads() == 2
    speed(keep_memory=False).configure_process(None, CPU)
    assert torch.get_num_threads() == 2


@pytest.mark.skipif(sys.platform != "linux", reason="glibc only")
def test_keep_memory_saves_page_faults(tmp_path):
    program = tmp_path / "program.py"
    program.write_text(
        "import resource, sys, torch\n"
        "from kd.training.performance import keep_memory\n"
        "if sys.argv[1] == 'keep': keep_memory()\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "for _ in range(50): torch.ones(40_000_000, dtype=torch.uint8)\n"  # the first few extend the heap
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)\n"
    )
    kept, returned = (int(processes.run(program, word, cwd=ROOT).stdout) for word in ("keep", "give back"))
    assert kept < returned / 2
