"""Flow of the solution procedure: Yim et al. 2017, CVPR."""

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from kd.data.batch import Batch
from kd.methods.base import Pair, TwoStages
from kd.methods.maps import common_stages, of_one_size
from kd.models.output import Output


def fsp_loss(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
    """Mean squared difference of two networks' FSP matrices, summed over consecutive stages, in fp32.

    Each network's maps (B, C_i, H_i, W_i) are given shallow to deep; C_i are the same for both, sizes may differ. The
    FSP matrix of stages i and i + 1 is (B, C_i, C_(i+1)): products of their channels, averaged over places, with the
    larger map averaged to the size of the smaller. The mean is over the batch and all pairs of channels.

    Source: Yim et al. 2017, CVPR, whose sum of squares is the mean here.
    """
    losses = [
        F.mse_loss(_flow(*ours), _flow(*theirs))
        for ours, theirs in zip(pairwise(student), pairwise(teacher), strict=True)
    ]
    return torch.stack(losses).sum()


def _flow(shallow: Tensor, deep: Tensor) -> Tensor:
    with torch.autocast(shallow.device.type, enabled=False):
        a, b = (feature.flatten(2) for feature in of_one_size(shallow.float(), deep.float()))
        flow: Tensor = a @ b.mT / a.shape[2]
    return flow


class FSP(TwoStages):
    r"""beta * fsp first, then alpha * hard + (1 - alpha) * soft.

    In a first stage the student learns how the teacher comes from one stage's map to the next one's, as products of
    their channels; in a second one it learns from the labels, or with alpha < 1 from softened logits, too.

    $$
    \mathrm{fsp} = \sum_{i=1}^{n-1} \frac{1}{B C_i C_{i+1}} \sum_b \lVert G^s_{ib} - G^t_{ib} \rVert_F^2, \qquad
    G_{ib} = \frac{1}{H W} \sum_{h,w} F_{i,bhw}\, F_{i+1,bhw}^\top
    $$

    $F_i$ are the maps of stage i, (B, C_i, H_i, W_i), and $G_i$ the FSP matrices, (B, C_i, C_{i+1}). Of two consecutive
    maps the larger is averaged to the height and width H, W of the smaller. All n stages that both networks have take
    part, from the deepest up. They need equally many channels in both, as there is nothing to learn beside the student.
    The first stage is the share `warmup` of training; with 0 there is none, and all terms are trained together from the
    first step to the last. Terms that rest are multiplied by 0. A training loop of one's own has to give the progress.

    Scaling:
        Constant in B, C, H and W, for maps of equal spread; it grows with the fourth power of their spread.

    Use:
        For a teacher that is deeper than the student and as wide. In published tables (CIFAR-100) it is -0.4 to 1.1
        points above the student alone.

    Deviations:
        * Paper: a first stage without labels, then training from its result. Popular code: 30 epochs before 240. Here:
          a share of training, so that all methods have equal budgets, with one learning rate schedule.
        * Paper: sums of squares, and maximum pooling where sizes differ. Here and in RepDistiller: means and average
          pooling; the pooling changes values several times over. torchdistill has norms of columns, not squared.
        * RepDistiller's weight of 50 has no effect in its first stage, which takes the sum as it is. Here it has.
        * RepDistiller begins with the map of the stem, one matrix more. Here: with the first stage.
        * Peers take the maps of a WRN before BatchNorm and ReLU. Here: after them.

    Args:
        T: temperature of the soft loss, in [0.001, 1e6]; without effect while alpha is 1.
        alpha: weight of the labels, in [0, 1]; published 1, for the labels alone.
        beta: weight of the matrices, at least 0.
        warmup: share of training in which the matrices alone are learnt, in [0, 1); 0 for all terms together.
        label_smoothing: of the hard loss, in [0, 1].

    Raises:
        ValueError: for a value outside its range; in `setup`, for networks that differ in their channels, or with
            fewer than two stages.
    """

    reads = frozenset({"logits", "features"})
    term_name = "fsp"

    def __init__(
        self,
        T: float = 4.0,
        alpha: float = 1.0,
        beta: float = 50.0,
        warmup: float = 0.125,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__(T, alpha, beta, warmup, label_smoothing)

    def setup(self, pair: Pair) -> None:
        student, teacher = pair.student.features, pair.teacher_output.features
        self.count = len(common_stages(student, teacher))
        if self.count < 2:
            raise ValueError(
                f"fsp needs two stages of each network at least, and the student has {len(student)}, the teacher "
                f"{len(teacher)}; name more, as in kd.wrap(net, stages=[...]), or take a method for single maps, as at"
            )
        ours, theirs = ([feature.shape[1] for feature in maps[-self.count :]] for maps in (student, teacher))
        if ours != theirs:
            raise ValueError(
                f"fsp needs stages of equally many channels, and the student's have {', '.join(map(str, ours))}, the "
                f"teacher's {', '.join(map(str, theirs))}; take networks that differ in depth alone, or a method that "
                "does without, such as at, nst or vid"
            )

    def term(self, student: Output, teacher: Output, batch: Batch) -> Tensor:
        return fsp_loss(student.features[-self.count :], teacher.features[-self.count :])
