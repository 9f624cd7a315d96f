"""Multi-level logit distillation: Jin et al., CVPR 2023."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kd.data.batch import Batch
from kd.losses import hard_loss
from kd.methods.base import Method, Pair, Step, Teacher, compared, require_z_scores
from kd.models.output import Output, checked
from kd.ranges import require

TEMPERATURES = (2.0, 3.0, 4.0, 5.0, 6.0)
"""Published: the base temperature 4, and these around it."""


def level_losses(
    student: Tensor, teacher: Tensor, images: Tensor | None = None, classes: Tensor | None = None
) -> dict[str, Tensor]:
    """Compare softmax(z / T) of logits (B, C) by image, by pairs of images, by pairs of classes; summed over T.

    With P (B, C) of the teacher and Q of the student, at each of `TEMPERATURES`:

        instance = T^2 * KL of each row, averaged over B rows
        batch = |P P' - Q Q'|^2 / B
        class = |P' P - Q' Q|^2 / C

    In fp32, also under autocast.

    Args:
        student, teacher: (B, C), logits.
        images: (B,), 1 for rows that count and 0 for others, in `instance` and in columns of the (B, B) of `batch`.
        classes: (C,), likewise in columns of the (C, C) of `class`.

    Source: Jin et al., CVPR 2023.
    """
    count, width = student.shape
    with torch.autocast(student.device.type, enabled=False):
        log_q, log_p = (
            torch.stack([z.float() / T for T in TEMPERATURES]).log_softmax(dim=2) for z in (student, teacher)
        )
        p, q = log_p.exp(), log_q.exp()
        divergences = F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(dim=2)
        instance = torch.stack([T**2 * each for T, each in zip(TEMPERATURES, divergences, strict=True)])
        of_images = (p @ p.mT - q @ q.mT).square()
        of_classes = (p.mT @ p - q.mT @ q).square()
    if images is not None:
        instance, of_images = instance * images, of_images * images
    if classes is not None:
        of_classes = of_classes * classes
    return {"instance": instance.sum() / count, "batch": of_images.sum() / count, "class": of_classes.sum() / width}


def unsure_half(teacher: Tensor) -> tuple[Tensor, Tensor]:
    """(B,) and (C,), fp32: 1 for images of which the teacher is less sure than the median, and so for classes.

    Of an image the largest probability at T = 1 counts, of a class the sum of its probabilities over the batch.
    """
    p = teacher.float().softmax(dim=1)
    sureness, size = p.amax(dim=1), p.sum(dim=0)
    return (sureness <= sureness.quantile(0.5)).float(), (size <= size.quantile(0.5)).float()


def strong_view(x: Tensor) -> Tensor:
    """Change contrast and brightness of each image (C, H, W) of a batch, and blot out a square of half its sides.

    Contrast by a factor of 0.5 to 1.5 about the image's mean, brightness by up to half a standard deviation of the
    data; the square lies anywhere, partly beyond the edge, and is 0, the mean of the data.
    """
    count, _, height, width = x.shape
    contrast, brightness, y, z = torch.rand(4, count, 1, 1, 1, device=x.device).unbind()
    rows, columns = torch.arange(height, device=x.device)[:, None], torch.arange(width, device=x.device)
    blot = ((rows + 0.5 - height * y).abs() < height / 4) & ((columns + 0.5 - width * z).abs() < width / 4)
    mean = x.mean(dim=(1, 2, 3), keepdim=True)
    changed = (x - mean) * (0.5 + contrast.to(x.dtype)) + mean + (brightness - 0.5).to(x.dtype)
    return changed * ~blot


class MLKD(Method):
    r"""alpha * hard + beta * (instance + batch + class), for a weak and a strong view of each image.

    Predictions are compared at five temperatures and three levels: of each image, between the images of a batch, and
    between classes. With logits $z$ (B, C) and $P_T = \mathrm{softmax}(z / T)$:

    $$
    \mathrm{instance} = \sum_T \frac{T^2}{B} \sum_i m_i \mathrm{KL}(P^t_{T,i} \Vert P^s_{T,i}), \qquad
    \mathrm{batch} = \sum_T \frac{1}{B} \sum_{ij} m_j \bigl(P^t_T P_T^{t\top} - P^s_T P_T^{s\top}\bigr)_{ij}^2
    $$

    $$
    \mathrm{class} = \sum_T \frac{1}{C} \sum_{cd} n_d \bigl(P_T^{t\top} P^t_T - P_T^{s\top} P^s_T\bigr)_{cd}^2, \qquad
    T = 2, 3, 4, 5, 6
    $$

    The weak view is the batch as it is. In it only those images and classes count of which the teacher is no surer
    than of the median one: for these the masks $m_i$ and $n_c$ are 1, for others 0. The strong view has another
    contrast and brightness, and a blot half as wide as the image; there all masks are 1. Its terms are logged as
    `train/strong_hard` and so on. Both networks see both views, two passes each, and the teacher's logits cannot be
    stored.

    Scaling:
        instance is independent of B and C. batch grows as $B / C^2$ and class as $B^2 / C^3$: weights published for
        B = 64 and C = 100 let class count about 1000 times as much with 10 classes. `rescale` multiplies batch by
        64 / B and class by its square, so that weights hold for any B; nothing is done about C.

    Use:
        Where twice the time per step is at hand; its baselines deserve it, too. Its published figures on
        CIFAR-100, 1 to 4 points above the soft loss, are of 480 epochs and more where others had 240.

    Deviations:
        * Paper: RandAugment makes the strong view. Here: contrast, brightness and a blot, on the device.
        * Paper's code: masks multiply what is already a mean, and so halve it. Here: they choose images and classes.
        * Paper's code: the strong view's instance term uses the weak view's logits at T = 2 and 6, and its batch and
          class terms are computed and not added. Here: all terms of both views, each of its own logits.
        * Paper: a learning rate of 0.025 and up to 960 epochs. Here: those of the recipe.

    Args:
        alpha: weight of the labels, at least 0; published 0.1.
        beta: weight of each of the other terms, at least 0; published 0.9.
        rescale: whether batch and class are made independent of B; false is the published form.
        label_smoothing: of the hard loss, in [0, 1].
        standardize: whether all terms but the labels' read z-scores of the logits, see `kd.losses.standardized`.

    Raises:
        ValueError: for a value outside its range; in `setup`, for z-scores of two classes.
    """

    own_images = True

    def __init__(
        self,
        alpha: float = 0.1,
        beta: float = 0.9,
        rescale: bool = True,
        label_smoothing: float = 0.0,
        standardize: bool = False,
    ) -> None:
        super().__init__()
        require("alpha", alpha, "[0, inf)")
        require("beta", beta, "[0, inf)")
        require("method.rescale", rescale)
        require("label_smoothing", label_smoothing)
        require("method.standardize", standardize)
        self.alpha, self.beta, self.rescale, self.label_smoothing = alpha, beta, rescale, label_smoothing
        self.reads_labels = alpha > 0
        self.standardize = standardize

    def setup(self, pair: Pair) -> None:
        require_z_scores(pair.num_classes, self.standardize)

    def step(self, student: nn.Module, teacher: Teacher | None, batch: Batch) -> Step:
        if teacher is None:
            raise ValueError("MLKD needs a teacher")
        output, terms, _ = super().step(student, teacher, batch)
        strong = Batch.of(strong_view(batch.x), batch.y)
        ours, theirs = checked(student(strong.x), student), checked(teacher(strong), teacher)
        others = self._weighted(ours, strong.y, level_losses(*compared(ours, theirs, self.standardize)))
        return Step(output, {**terms, **{f"strong_{name}": term for name, term in others.items()}})

    def forward(self, student: Output, teacher: Output, batch: Batch) -> dict[str, Tensor]:
        """The terms of the weak view."""
        levels = level_losses(*compared(student, teacher, self.standardize), *unsure_half(teacher.logits))
        return self._weighted(student, batch.y, levels)

    def _weighted(self, student: Output, y: Tensor, levels: dict[str, Tensor]) -> dict[str, Tensor]:
        scale = 64 / len(y) if self.rescale else 1.0
        factors = {"instance": self.beta, "batch": scale * self.beta, "class": scale**2 * self.beta}
        hard = self.alpha * hard_loss(student.logits, y, self.label_smoothing)
        return {"hard": hard, **{name: factors[name] * level for name, level in levels.items()}}
