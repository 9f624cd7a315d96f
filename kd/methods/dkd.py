"""Decoupled knowledge distillation: Zhao et al. 2022, arXiv 2203.08679."""

from torch import Tensor

from kd.data.batch import Batch
from kd.losses import hard_loss, nckd_loss, tckd_loss
from kd.methods.base import Method, Pair, compared, require_z_scores
from kd.models.output import Output
from kd.ranges import require


class DKD(Method):
    r"""hard + r * (alpha * tckd + beta * nckd), with r rising from 0 to 1 over the warm-up.

    The soft loss is taken apart: how sure of the label (target class), and what it resembles (other classes). For
    logits $z$ (B, C), labels $y$ (B,), $p = \mathrm{softmax}(z / T)$ and $\hat p$ the softmax over the C - 1 other
    classes:

    $$
    \mathrm{tckd} = \frac{T^2}{B} \sum_i \mathrm{KL} \big( (p^t_{iy}, 1 - p^t_{iy}) \Vert
    (p^s_{iy}, 1 - p^s_{iy}) \big), \qquad
    \mathrm{nckd} = \frac{T^2}{B} \sum_i \mathrm{KL} (\hat p^t_i \Vert \hat p^s_i)
    $$

    The soft loss is tckd + (1 - p_y of the teacher) * nckd, image by image: where the teacher is sure, it hides the
    second part. Here beta has nothing to do with the teacher's certainty. With `standardize`, both are of the z-scores
    of the logits, see `kd.losses.standardized`.

    Scaling:
        Means over the batch, independent of B. With two classes nckd is 0.

    Use:
        With a confident teacher: the surer it is of the labels, the larger beta may be. The terms need one label an
        image, so that images are not to be mixed.

    Deviations:
        * Published warm-up: 20 of 240 epochs, in steps of an epoch from 1/20 on. Here: each step, from 0 on.
        * Popular code masks the label by -1000 and takes the logarithm of a sum of probabilities: infinite at T = 1
          with a gap of 105 between logits. Here the column is dropped and all is in log space.
        * Published with `standardize`: T = 2, and alpha and beta 9 to 18 times as large. Of 10 classes, a teacher's
          z-scores never give more than p = 0.351 at T = 2.

    Args:
        T: temperature of all softmaxes, in [0.001, 1e6].
        alpha: weight of tckd, at least 0.
        beta: weight of nckd, at least 0; published 8 for most pairs, 6 for WRN and VGG pairs, 2 for weak teachers.
        warmup: share of training over which r rises, in [0, 1); published 20 of 240 epochs.
        label_smoothing: of the hard loss, in [0, 1].
        standardize: whether tckd and nckd read z-scores.

    Raises:
        ValueError: for a value outside its range; in `setup`, for z-scores of two classes.
    """

    needs_labels = True

    def __init__(
        self,
        T: float = 4.0,
        alpha: float = 1.0,
        beta: float = 8.0,
        warmup: float = 0.0833,
        label_smoothing: float = 0.0,
        standardize: bool = False,
    ) -> None:
        super().__init__()
        require("T", T, "[0.001, 1e6]")
        require("alpha", alpha, "[0, inf)")
        require("beta", beta, "[0, inf)")
        require("warmup", warmup)
        require("label_smoothing", label_smoothing)
        require("method.standardize", standardize)
        self.T, self.alpha, self.beta, self.warmup, self.label_smoothing = T, alpha, beta, warmup, label_smoothing
        self.standardize = standardize

    def setup(self, pair: Pair) -> None:
        require_z_scores(pair.num_classes, self.standardize)

    def forward(self, student: Output, teacher: Output, batch: Batch) -> dict[str, Tensor]:
        ramp, logits = self.ramp(self.warmup), compared(student, teacher, self.standardize)
        return {
            "hard": hard_loss(student.logits, batch.y, self.label_smoothing),
            "tckd": ramp * self.alpha * tckd_loss(*logits, batch.y, self.T),
            "nckd": ramp * self.beta * nckd_loss(*logits, batch.y, self.T),
        }
