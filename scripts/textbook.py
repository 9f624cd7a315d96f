"""A textbook training loop, which `benchmark.py` compares `train.py` with: plain and correct, but not tuned.

It has torchvision's transforms in a DataLoader with two workers (more on larger machines), fp32, and a teacher's
forward pass at every step.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from kd.data.images import Images
from kd.models.cnn import CNN

DROPOUT = {"conv_dropout": 0.25, "head_dropout": 0.5}
"""Dropout rates of both networks in all loops of the benchmark. They are common ones; those of conf/ are lower."""
WORKERS = max(2, min(8, (os.cpu_count() or 2) // 2))
"""Processes that make images: with a GPU two would be what a step waits for."""


class Pictures(Dataset[tuple[Tensor, int]]):
    """A dataset like torchvision's CIFAR10: each image goes from an array to a PIL image to a tensor."""

    def __init__(self, images: Images) -> None:
        self.x, self.y = images.train_x[:].permute(0, 2, 3, 1).contiguous().numpy(), images.train_y.tolist()
        self.transform = transforms.Compose(
            [
                transforms.RandomCrop(32, padding=4),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize((0.4914, 0.4822, 0.4465), (0.247, 0.243, 0.261)),
            ]
        )

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.x[i])), self.y[i]


def train(workload: str, images: Images, teacher_file: Path, batch_size: int, device: torch.device) -> Iterator[None]:
    """Train without end; yield after every step.

    Args:
        workload: "teacher" or "student" for training on labels. All else is distillation: "feature..." with the last
            feature maps and the logits, any other name with the logits only.
        images: the data set.
        teacher_file: the teacher's weights, as safetensors.
        batch_size: images a step.
        device: where the networks are.
    """
    loader = DataLoader(
        Pictures(images),
        batch_size=batch_size,
        shuffle=True,
        num_workers=WORKERS,
        drop_last=True,
        persistent_workers=True,
        pin_memory=device.type == "cuda",
        multiprocessing_context="fork",  # Linux's default up to Python 3.13, but not in a spawned process
    )
    distills, matches_features = workload not in ("teacher", "student"), workload.startswith("feature")
    net = CNN(32 if workload == "teacher" else 16, 10, 32, "relu", **DROPOUT).to(device)
    teacher = CNN(32, 10, 32, "relu", **DROPOUT).to(device)
    teacher.load_state_dict(load_file(teacher_file))
    teacher.eval()
    adapter = nn.Conv2d(32, 64, 1).to(device)
    parameters = [*net.parameters(), *(adapter.parameters() if matches_features else [])]
    optimizer = torch.optim.SGD(parameters, lr=0.05, momentum=0.9, nesterov=True, weight_decay=5e-4)
    alpha, beta, T = 0.1, 0.3, 4.0
    while True:
        for x, y in loader:
            x, y = x.to(device, non_blocking=True), y.to(device, non_blocking=True)
            output = net(x)
            loss = F.cross_entropy(output.logits, y)
            if distills:
                with torch.no_grad():
                    target = teacher(x)
                log_student = F.log_softmax(output.logits / T, dim=1)
                soft = T**2 * F.kl_div(log_student, F.softmax(target.logits / T, dim=1), reduction="batchmean")
                if matches_features:
                    feature = F.mse_loss(adapter(output.features[-1]), target.features[-1])
                    loss = alpha * loss + beta * feature + (1 - alpha - beta) * soft
                else:
                    loss = alpha * loss + (1 - alpha) * soft
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            yield
