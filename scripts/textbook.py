"""The training loop of the textbooks, which `benchmark.py` measures ours against: plain, and without mistakes.

torchvision's transforms in a DataLoader with two workers, fp32, and a teacher that is asked in every step.
"""

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
"""Of both networks here, and so of ours in `benchmark.py`: what such networks usually have. Our defaults have less."""


class Pictures(Dataset[tuple[Tensor, int]]):
    """As torchvision's CIFAR10 does it: an array, made a PIL image, made a tensor."""

    def __init__(self, images: Images) -> None:
        self.x, self.y = images.train_x.permute(0, 2, 3, 1).contiguous().numpy(), images.train_y.tolist()
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
    """Train for ever; yields after every step.

    Args:
        workload: "teacher", "student", or a distillation: "feature..." with the last feature maps, else logits only.
        teacher_file: the teacher's weights.
    """
    loader = DataLoader(
        Pictures(images),
        batch_size=batch_size,
        shuffle=True,
        num_workers=2,
        drop_last=True,
        persistent_workers=True,
        pin_memory=device.type == "cuda",
        multiprocessing_context="fork",  # what a program on Linux has had all along, if it is not itself spawned
    )
    distils, matches_features = workload not in ("teacher", "student"), workload.startswith("feature")
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
            if distils:
                with torch.no_grad():
                    wanted = teacher(x)
                log_student = F.log_softmax(output.logits / T, dim=1)
                soft = T**2 * F.kl_div(log_student, F.softmax(wanted.logits / T, dim=1), reduction="batchmean")
                if matches_features:
                    feature = F.mse_loss(adapter(output.features[-1]), wanted.features[-1])
                    loss = alpha * loss + beta * feature + (1 - alpha - beta) * soft
                else:
                    loss = alpha * loss + (1 - alpha) * soft
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            yield
