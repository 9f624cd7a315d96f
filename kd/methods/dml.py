"""Deep mutual learning: Zhang et al. 2017, arXiv 1706.00384."""

from torch import Tensor, nn

from kd.data.batch import Batch
from kd.losses import hard_loss, soft_loss
from kd.methods.base import Method, Pair, Step, Teacher
from kd.models.output import Output, checked
from kd.ranges import require


class DML(Method):
    """hard + soft for the student, peer_hard + peer_soft for a peer like it that is trained along.

    There is no teacher: each of the two learns from the labels and from the other. For logits (B, C):

    * soft = T^2 * KL(peer_T || student_T), with the peer's logits detached;
    * peer_soft = T^2 * KL(student_T || peer_T), with the student's detached.

    Every term is averaged over the batch. The peer has initial weights of its own and sees the same images. Both take
    their step at once, where the paper's second network sees what the first has become. The student is what is tested
    and kept; nothing sets the two apart, so that its choice is not a choice of the better one.

    Args:
        T: temperature of all softmaxes, in [0.001, 1e6]; published 1.
        label_smoothing: of both hard losses, in [0, 1].

    Raises:
        ValueError: for a value outside its range.
    """

    reads = frozenset()

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
