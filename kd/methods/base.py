"""The contract of a distillation method, and the two terms that nearly all of them share.

The objectives, where hard is `hard_loss` and soft is `soft_loss`:

* standard:            hard
* logits:              alpha * hard + (1 - alpha) * soft
* feature:             alpha * hard + beta * feature + (1 - alpha - beta) * soft
* any further method:  alpha * hard + (1 - alpha) * soft + beta * term
"""

from collections.abc import Callable

from torch import Tensor, nn

from kd.data.batch import Batch
from kd.models.output import Output


class Method(nn.Module):
    """What a student is taught with. Subclasses are final; their own layers are trained along with the student."""

    logits_only = False
    """Whether all that is read of the teacher are its logits; then they need not be computed anew each time."""

    def build(self, student: Output, teacher: Output) -> None:
        """Make the layers that depend on both networks' shapes.

        Called once, before training, with what the networks return for a probe batch. Most methods have none.

        Raises:
            ValueError: if this method cannot work with such a pair of networks.
        """

    def ask(self, teacher: Callable[[Batch], Output], batch: Batch) -> Output:
        """What the teacher says to a batch: for a method to override that asks about other images, or otherwise."""
        return teacher(batch)

    def forward(self, student: Output, teacher: Output, batch: Batch) -> dict[str, Tensor]:
        """The weighted, named terms of the loss, scalars in fp32. The loss is their sum."""
        raise NotImplementedError
