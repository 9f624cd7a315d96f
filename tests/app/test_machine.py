"""What a machine cannot do is refused before anything is trained."""

import pytest
from torch import Tensor, nn

from kd.app.machine import check_devices, check_sync_batchnorm
from kd.errors import UserError


class BatchNormAct(nn.BatchNorm2d):
    """As timm has it: the activation is in the layer's own forward pass."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).relu()


def test_check_devices_refuses_a_gpu_that_is_not_there(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    trainer = {"accelerator": "auto", "sync_batchnorm": False}
    for devices in ("auto", 2, [0], [1, 0]):
        check_devices(trainer | {"devices": devices})
    with pytest.raises(UserError, match=r"^trainer.devices=\[2\]: there are 2 here, counted from 0$"):
        check_devices(trainer | {"devices": [2]})


def test_check_sync_batchnorm_refuses_layers_that_it_would_cut_short():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.SyncBatchNorm(4))
    check_sync_batchnorm(net)
    with pytest.raises(UserError, match=r"^trainer.sync_batchnorm=true: 1 \(BatchNormAct\) does more than BatchNorm"):
        check_sync_batchnorm(nn.Sequential(net, BatchNormAct(4)))
    net[1].register_forward_hook(lambda layer, inputs, output: None)
    with pytest.raises(UserError, match=r": 1 \(BatchNorm2d\) does more"):
        check_sync_batchnorm(net)
