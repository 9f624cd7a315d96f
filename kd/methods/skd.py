"""Streamlined knowledge distillation: CVPR 2026, github.com/HyunJunSik/StreamLined."""

import torch
import torch.nn.functional as F
from torch import Tensor

from kd.data.batch import Batch
from kd.methods.base import SoftTargets
from kd.models.output import Output
from kd.ranges import require


def skd_loss(student: Tensor, teacher: Tensor, tikhonov: float) -> Tensor:
    """Mahalanobis distance between Gram matrices of logits (B, C), of length 1 each, averaged over the B rows.

    A row of the difference of both, (B, B) and divided by C, is measured by the covariance of all rows, to whose
    diagonal `tikhonov` is added: by the length of what the Cholesky factor's inverse makes of it. In fp32, also under
    autocast. 0, with gradient 0, for equal networks and in a batch of one image.

    Source: Streamlined Knowledge Distillation, CVPR 2026.
    """
    with torch.autocast(student.device.type, enabled=False):
        ours, theirs = (F.normalize(z.float(), dim=1, eps=1e-4) for z in (student, teacher))
        difference = (ours @ ours.T - theirs @ theirs.T) / student.shape[1]
        centred = difference - difference.mean(dim=0)
        covariance = centred.T @ centred / max(1, len(centred) - 1)
        diagonal = tikhonov * torch.eye(len(centred), device=centred.device)
        # cholesky_ex does not wait for the device to tell whether it succeeded; with the diagonal it does.
        factor = torch.linalg.cholesky_ex(covariance + diagonal).L
        whitened = torch.linalg.solve_triangular(factor, difference.T, upper=False)
        distance: Tensor = torch.linalg.vector_norm(whitened, dim=0).mean()
        return distance


class SKD(SoftTargets):
    r"""alpha * hard + beta * skd + (1 - alpha) * soft.

    Beside the soft loss of each image, the directions of the logits of all images in a batch are compared, by the
    Mahalanobis distance, which counts less what differs everywhere. With the logits $z$ (B, C):

    $$
    G = \frac{1}{C} \hat Z \hat Z^\top, \quad \hat Z_i = \frac{z_i}{\lVert z_i \rVert}, \qquad
    D = G^s - G^t, \qquad \Sigma = \mathrm{Cov}(D) + \lambda I
    $$

    $$
    \mathrm{skd} = \frac{1}{B} \sum_i \sqrt{D_i^\top \Sigma^{-1} D_i} = \frac{1}{B} \sum_i \lVert L^{-1} D_i \rVert,
    \qquad \Sigma = L L^\top
    $$

    $G$, $D$ and $\Sigma$ are (B, B), $D_i$ is a row of $D$, $\mathrm{Cov}$ takes rows as samples and divides by
    $B - 1$.

    Scaling:
        While $\lambda$ outweighs the covariance, the term is $\lVert D_i \rVert / \sqrt \lambda$, which grows as
        $\sqrt B / C$; beyond, it grows more slowly. Published for C = 100: with 10 classes it is up to 10 times as
        large. One Cholesky factor of (B, B) a step.

    Use:
        Where batches hold many images: in a batch of 1 the term is 0. Published figures on CIFAR-100 are above the soft
        loss by 0.4 to 2.8 points, from one source.

    Deviations:
        * The paper was not at hand. Followed are its abstract and the released code.
        * Code: multiplies either term, already a mean, by a mask of the half of images, or of classes, of which the
          teacher is unsure, and so by about 1/2. Here: no mask, and weights as written there.
        * Code: the root of a quadratic form with the inverse, without a derivative at 0. Here: a norm of what a
          triangular solve gives.

    Args:
        T: temperature of the soft loss, in [0.001, 1e6]; published 4.
        alpha: weight of the labels, in [0, 1]; published 0.1.
        beta: weight of skd, at least 0; published 0.9.
        tikhonov: $\lambda$, at least 1e-4; published 0.1.
        label_smoothing: of the hard loss, in [0, 1].

    Raises:
        ValueError: for a value outside its range.
    """

    term_name = "skd"

    def __init__(
        self,
        T: float = 4.0,
        alpha: float = 0.1,
        beta: float = 0.9,
        tikhonov: float = 0.1,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__(T, alpha, beta, label_smoothing)
        require("method.tikhonov", tikhonov, "[1e-4, inf)")
        self.tikhonov = tikhonov

    def term(self, student: Output, teacher: Output, batch: Batch) -> Tensor:
        return skd_loss(student.logits, teacher.logits, self.tikhonov)
