"""Overhaul of feature distillation: Heo et al. 2019, arXiv 1904.01866."""

import copy
import math

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from kd.data.batch import Batch
from kd.methods.base import Pair, SoftTargets
from kd.methods.maps import common_preacts, connector, of_one_size
from kd.models.output import Output


def ofd_loss(student: Tensor, teacher: Tensor, margin: Tensor) -> Tensor:
    """Partial squared distance of maps before the activation (B, C, H, W), summed over C, H and W, in fp32.

    The teacher's are raised to its channels' margins (C,), negative numbers. Where both are at most 0 and the student's
    is the lower, nothing is counted. Averaged over the batch.

    Source: Heo et al. 2019, arXiv 1904.01866.
    """
    student = student.float()
    target = torch.maximum(teacher.float(), margin.float()[:, None, None])
    skipped = (student <= target) & (target <= 0)
    difference: Tensor = (student - target).masked_fill(skipped, 0.0)
    return difference.square().sum(dim=(1, 2, 3)).mean()


def mean_of_negatives(mean: Tensor, std: Tensor) -> Tensor:
    """E[x | x < 0] of normal distributions, from their means and standard deviations (C,), in fp64 on the processor.

    That is mean - std * phi(r) / Phi(-r) with r = mean / std; by erfcx, finite for any r.
    """
    mean, std = mean.cpu().double(), std.cpu().double().clamp(min=1e-12)  # MPS has no fp64
    hazard: Tensor = math.sqrt(2 / math.pi) / torch.special.erfcx((mean / std).clamp(max=1e6) / math.sqrt(2))
    return (mean - std * hazard).clamp(max=0.0)


class OFD(SoftTargets):
    r"""alpha * hard + beta * ofd + (1 - alpha) * soft.

    Maps are matched before the activation, where the teacher's negative responses still differ; but values
    are imitated only where the activation lets them pass; elsewhere the student has only to be low.

    $$
    \mathrm{ofd} = \sum_{i=1}^n \frac{2^{i - n}}{B} \sum_{b,c,h,w} d\big(r_i(F^s_i), \max(F^t_i, m_{ic})\big), \qquad
    d(s, t) = \begin{cases} 0 & s \le t \le 0 \\ (s - t)^2 & \text{otherwise} \end{cases}
    $$

    $F_i$ are the maps of stage i before its last activation, those of the teacher (B, C_i, H_i, W_i). $r_i$ is a
    learned 1x1 convolution and BatchNorm. All n stages that both networks have are matched, from the deepest up, whose
    weight is 1; the larger of two maps is averaged to the height and width of the smaller. The margin of channel c is

    $$
    m_{ic} = E[x \mid x \lt 0], \qquad x \sim \mathcal{N}(\mathrm{bias}_c, \mathrm{weight}_c^2)
    $$

    with weight and bias of the teacher's BatchNorm that makes the map. It is found with hooks on a copy. Where none
    does, as in residual networks that add before they activate, the margin is the mean of the channel's negative
    responses in the batch. The teacher stays in eval mode, and nothing of it changes.

    Scaling:
        Constant in B; a batch of one image needs maps larger than 1x1, for BatchNorm. A stage's part grows with
        C_t H W, so that beta belongs to a family of teachers and a size of images; published 0.001 for CIFAR.

    Use:
        Where the networks show maps before their activation: all of this program do but resnet9, those of others by
        preacts=true or kd.wrap(net, preacts=True). It assumes that the teacher's activation is ReLU or alike.

    Deviations:
        * Authors' code and mdistiller leave the teacher in train mode, so that its BatchNorm statistics drift. Here:
          in eval mode.
        * Authors' code: -3 |weight| as margin of channels that are negative with a probability below 0.001. Here: the
          expectation for these, too, which goes on without a jump.
        * Authors' code, for residual networks: the last BatchNorm before the sum, which has other statistics. Here: the
          batch.
        * Authors' code: kernels before BatchNorm begin with a standard deviation of sqrt(2 / C_i). Here: as PyTorch has
          them, smaller. The output is the same, but early steps turn them three to six times as far.

    Args:
        T: temperature of the soft loss, in [0.001, 1e6]; without effect while alpha is 1.
        alpha: weight of the labels, in [0, 1]; published 1, for the labels and this term alone.
        beta: weight of the distance, at least 0.
        label_smoothing: of the hard loss, in [0, 1].

    Raises:
        ValueError: for a value outside its range; in `setup`, for a network without maps before the activation.
    """

    reads = frozenset({"logits", "preacts"})
    term_name = "ofd"

    def __init__(self, T: float = 4.0, alpha: float = 1.0, beta: float = 0.001, label_smoothing: float = 0.0) -> None:
        super().__init__(T, alpha, beta, label_smoothing)
        self.connectors = nn.ModuleList()

    def setup(self, pair: Pair) -> None:
        student, teacher = pair.student, pair.teacher_output
        self.stages = common_preacts("ofd", student, teacher)
        layers: list[_BatchNorm | None] = [None] * len(teacher.preacts)
        if pair.teacher_net is not None and pair.images is not None:
            layers = _batchnorms(pair.teacher_net, pair.images[:2])
        for i, stage in enumerate(self.stages):
            self.connectors.append(connector(student.preacts[stage].shape[1], teacher.preacts[stage].shape[1]))
            layer = layers[stage]
            margin = None
            if layer is not None:
                found = mean_of_negatives(layer.bias.detach(), layer.weight.detach().abs())
                margin = found.float().to(layer.weight.device)
            self.register_buffer(f"margin{i}", margin)

    def term(self, student: Output, teacher: Output, batch: Batch) -> Tensor:
        losses = []
        for i, (connect, stage) in enumerate(zip(self.connectors, self.stages, strict=True)):
            target, margin = teacher.preacts[stage].float(), getattr(self, f"margin{i}")
            if margin is None:
                margin = target.clamp(max=0).sum(dim=(0, 2, 3)) / (target < 0).sum(dim=(0, 2, 3)).clamp(min=1)
            connected, target = of_one_size(connect(student.preacts[stage]), target)
            losses.append(ofd_loss(connected, target, margin) / 2 ** (-1 - stage))
        return torch.stack(losses).sum()


@torch.no_grad()
def _batchnorms(net: nn.Module, images: Tensor) -> list[_BatchNorm | None]:
    """The BatchNorm that makes each preact of a network, or None; found by images (B, C, H, W) shown to a copy.

    What is added to a BatchNorm's output in place has its address, so that values are compared, too.
    """
    probed, made = copy.deepcopy(net).eval(), list[tuple[_BatchNorm, Tensor, Tensor]]()
    for layer in probed.modules():
        if isinstance(layer, _BatchNorm) and layer.affine:
            layer.register_forward_hook(lambda layer, _, result: made.append((layer, result, result.clone())))

    def maker(preact: Tensor) -> _BatchNorm | None:
        return next((layer for layer, result, then in made if result is preact and torch.equal(result, then)), None)

    return [maker(preact) for preact in probed(images).preacts]
