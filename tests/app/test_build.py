"""What the builder makes of settings."""

import pytest
import torch

from kd.app.build import Builder
from kd.app.compose import compose


@pytest.mark.parametrize(("device", "devices"), [("cpu", 1), ("cuda:0", [0]), ("cuda:2", [2])])
def test_teacher_is_trained_on_the_device_of_the_run(monkeypatch, device, devices):
    """Lightning takes `devices=1` for the first GPU, whichever the user has chosen."""
    build = Builder(compose(["data=digits", "trainer.devices=[2,3]", "method=logits"])[0])
    monkeypatch.setattr(Builder, "device", torch.device(device))
    (teacher,) = build.first_teachers
    assert build.trainer(teacher).keywords["devices"] == devices
    assert "devices" not in build.trainer(build.student).keywords or build.trainer(build.student).keywords[
        "devices"
    ] == [2, 3]
