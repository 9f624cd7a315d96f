"""Deep mutual learning: Zhang et al. 2017, arXiv 1706.00384."""

from torch import Tensor, nn

from kd.data.batch import Batch
from kd.losses import hard_loss, soft_loss
from kd.methods.base import Method, Pair, Step, Teacher
from kd.models.output import Output, checked
from kd.ranges import require


class DML(Method):
    r"""hard + soft for the student, peer_hard + peer_soft for a peer like it that is trained along.

    There is no teacher: each of the two learns from the labels and from the other. For logits $z$ (B, C) of the student
    and $z'$ of its peer, $p$ and $p'$ their softmaxes of $z / T$:

    $$
    \mathrm{soft} = T^2 \mathrm{KL}(p' \Vert p), \qquad \mathrm{soft}' = T^2 \mathrm{KL}(p \Vert p')
    $$

    and soft' is logged as peer_soft. Neither's gradients reach the other. The peer has initial weights of its own and
    sees the same images. The student is what is tested and kept; nothing sets the two apart, so that its choice is not
    a choice of the better one. `train/peer_acc` is the peer's accuracy.

    Scaling:
        Means over the batch, independent of B.

    Use:
        Where no teacher is at hand. A run costs two trainings of the student.

    Deviations:
        * Paper: the networks are updated in turn, the second sees what the first has become. Here, as in most code,
          both at once.
        * One optimiser trains both, so that `recipe.clip_norm` is of both gradients together.
        * Popular code lets gradients through both sides of the KL, or has an epsilon inside the logarithm. Here:
          detached, log space.

    Args:
        T: temperature of all softmaxes, in [0.001, 1e6]; published 1.
        label_smoothing: of both hard losses, in [0, 1].

    Raises:
        ValueError: for a value outside its range.
    """

    reads = frozenset()
    matches = frozenset({"logits"})

    def __init__(self, T: float = 1.0, label_smoothing: float = 0.0) -> None:
        super().__init__()
        require("T", T, "[0.001, 1e6]")
        require("label_smoothing", label_smoothing)
        self.T, self.label_smoothing = T, label_smoothing

    def setup(self, pair: Pair) -> None:
        self.peer = pair.new_student()

    def step(self, student: nn.Module, teacher: Teacher | None, batch: Batch) -> Step:
        output, peer = checked(student(batch.x), student), checked(self.peer(batch.x), self.peer)
        peer_acc = (peer.logits.argmax(dim=1) == batch.labels).float().mean()
        return Step(output, self(output, peer, batch), {"peer_acc": peer_acc})

    def forward(self, student: Output, teacher: Output, batch: Batch) -> dict[str, Tensor]:
        """The terms of both networks; `teacher` is the peer's output, with gradients."""
        ours, peers = student.logits, teacher.logits
        return {
            "hard": hard_loss(ours, batch.y, self.label_smoothing),
            "soft": soft_loss(ours, peers.detach(), self.T),
            "peer_hard": hard_loss(peers, batch.y, self.label_smoothing),
            "peer_soft": soft_loss(peers, ours.detach(), self.T),
        }
