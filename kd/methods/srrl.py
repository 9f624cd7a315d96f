"""Softmax regression representation learning: Yang et al. 2021, ICLR, openreview.net/forum?id=ZzwDy_wiWv."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kd.data.batch import Batch
from kd.methods.base import Pair, SoftTargets
from kd.methods.maps import classifier_head, connector, is_mean_of_last_map
from kd.models.output import Output
from kd.ranges import require


def srrl_losses(
    embedding: Tensor, teacher: Tensor, logits: Tensor, weight: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Mean squared errors of an embedding and of the logits that the teacher's head makes of it; in fp32.

    Both are averaged over all numbers and do not grow with B, D or C.

    Args:
        embedding: the student's, in the teacher's space, (B, D).
        teacher: the teacher's embedding (B, D).
        logits: the teacher's logits (B, C).
        weight: (C, D) of the teacher's head, not to be trained.
        bias: (C,) of the teacher's head, or None.

    Source: Yang et al. 2021, ICLR.
    """
    with torch.autocast(embedding.device.type, enabled=False):
        embedding = embedding.float()
        ours = F.linear(embedding, weight.float(), None if bias is None else bias.float())
        return F.mse_loss(embedding, teacher.float()), F.mse_loss(ours, logits.float())


class SRRL(SoftTargets):
    r"""alpha * hard + beta * (feature + head_weight * regression) + (1 - alpha) * soft.

    The teacher's own classifier, frozen, is to find in the student's representation what it finds in the teacher's. A
    learned connector r turns the student's last map $F^s$ (B, C_s, H, W) into one with the D channels of the teacher's
    embedding $f^t$ (B, D); its mean over all places is $\bar r$ (B, D). With the teacher's logits $z^t$ (B, C) and its
    head $h^t$:

    $$ \mathrm{feature} = \frac{1}{B D} \lVert \bar r(F^s) - f^t \rVert_2^2, \qquad
    \mathrm{regression} = \frac{1}{B C} \lVert h^t(\bar r(F^s)) - z^t \rVert_2^2 $$

    The gradient passes through the frozen head to connector and student. r is a 1x1 convolution, BatchNorm and ReLU;
    without the ReLU if the teacher's embedding has negative numbers for the probe images.

    Scaling:
        Both terms are means, and do not grow with B, C, D, H or W.

    Use:
        With a single teacher whose classifier is linear; not with an ensemble. In a batch of 1, embeddings that are no
        means of maps have no gradient, as BatchNorm has nothing to compare.

    Deviations:
        * Authors: the connector comes before the mean over places, as here; SimKD's and CTKD's code connect the means.
        * Where either network's embedding is not the mean of its last map, as in the plain CNN with its hidden layer, a
          linear layer with BatchNorm and ReLU connects the embeddings.
        * Authors' code: the connector's kernel begins with a standard deviation of sqrt(2 / D). Here: as PyTorch has
          it, smaller. The output is the same, but early steps turn it further.
        * SimKD's and CTKD's code add soft targets; here they have the weight 1 - alpha, which is 0 by default.

    Args:
        T: temperature of the soft loss, in [0.001, 1e6]; without effect while alpha is 1.
        alpha: weight of the labels, in [0, 1].
        beta: weight of both terms, at least 0; published 1.
        head_weight: of the logits relative to the embedding, at least 0; published 1.
        label_smoothing: of the hard loss, in [0, 1].

    Raises:
        ValueError: for a value outside its range; in `setup`, for a teacher whose logits no linear layer makes of its
            embedding.
    """

    reads = frozenset({"logits", "embedding"})
    weight: Tensor
    bias: Tensor | None

    def __init__(
        self,
        T: float = 4.0,
        alpha: float = 1.0,
        beta: float = 1.0,
        head_weight: float = 1.0,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__(T, alpha, beta, label_smoothing)
        require("head_weight", head_weight, "[0, inf)")
        self.head_weight = head_weight

    def setup(self, pair: Pair) -> None:
        student, teacher = pair.student, pair.teacher_output
        if pair.teacher_net is None:
            raise ValueError("srrl needs the teacher itself, for its classifier, and there are only its outputs")
        head = classifier_head(pair.teacher_net, teacher)
        # Of the teacher, and so no part of the checkpoint.
        self.register_buffer("weight", head.weight.detach().float().clone(), persistent=False)
        bias = None if head.bias is None else head.bias.detach().float().clone()
        self.register_buffer("bias", bias, persistent=False)
        self.connects_maps = is_mean_of_last_map(student) and is_mean_of_last_map(teacher)
        """Whether the last map is connected and not the embedding."""
        width = (student.features[-1] if self.connects_maps else student.embedding).shape[1]
        size = teacher.embedding.shape[1]
        self.connector = connector(width, size)
        if (teacher.embedding >= 0).all():
            self.connector.append(nn.ReLU())

    def own_terms(self, student: Output, teacher: Output, batch: Batch) -> dict[str, Tensor]:
        ours = self._connected(student)
        feature, regression = srrl_losses(ours, teacher.embedding, teacher.logits, self.weight, self.bias)
        return {"feature": feature, "regression": regression}

    def term_weights(self) -> dict[str, float]:
        return {**super().term_weights(), "feature": self.beta, "regression": self.beta * self.head_weight}

    def _connected(self, student: Output) -> Tensor:
        """(B, D), the student's embedding in the teacher's space."""
        maps = student.features[-1] if self.connects_maps else student.embedding[:, :, None, None]
        if len(maps) == 1:  # twice, as BatchNorm refuses a single number
            maps = maps.expand(2, -1, -1, -1)
        connected: Tensor = self.connector(maps)
        return connected[: len(student.logits)].float().mean(dim=(2, 3))
