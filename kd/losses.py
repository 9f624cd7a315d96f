"""The mathematics of distillation: pure functions of tensors, in fp32, or in fp64 where fp32 is too coarse."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

FP32_LIMIT = 10.0
"""Highest temperature of a loss in fp32. Of two softmaxes at T the divergence is of the order of 1 / T^2, and so is
soon below the rounding of their logarithms, 1e-7, which the factor T^2 then makes large."""


def require_same_classes(student: Tensor, teacher: Tensor) -> None:
    """Check that logits of two networks (B, C) can be compared.

    Raises:
        ValueError: with both numbers of classes.
    """
    if student.shape[1] != teacher.shape[1]:
        raise ValueError(
            f"the teacher has {teacher.shape[1]} classes and the student {student.shape[1]}: their logits cannot be "
            "compared"
        )


def hard_loss(student: Tensor, y: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Cross-entropy of logits (B, C) with labels (B,) or shares of classes (B, C), in fp32, averaged over the batch.

    Shares that do not sum to 1 weigh their image, also the uniform part of label smoothing.
    """
    if y.is_floating_point() and label_smoothing:
        # torch's own has a uniform part of 1 for any image.
        uniform = y.sum(dim=1, keepdim=True) / y.shape[1]
        y, label_smoothing = y + label_smoothing * (uniform - y), 0.0
    return F.cross_entropy(student.float(), y, label_smoothing=label_smoothing)


def soft_loss(student: Tensor, teacher: Tensor, T: float) -> Tensor:
    """T^2 * KL(teacher_T || student_T) of logits (B, C): summed over classes, averaged over the batch.

    T^2 makes up for its gradient, which falls as 1/T^2 at high T. There it tends to that of |student - teacher|^2 /
    (2 C) of centred logits, at whatever T; from T = 1 to about 10 it still changes. In log space and fp32, above
    `FP32_LIMIT` fp64, so that a confident teacher gives neither log(0) nor a half-precision underflow. The result is
    fp32. With logits of ordinary size its error is below 0.001 up to T = 1e6, where it has come to the mean of
    |student - teacher|^2 / (2 C), of centred logits.

    Raises:
        ValueError: for logits of different numbers of classes.

    Source: Hinton et al. 2015, arXiv 1503.02531.
    """
    require_same_classes(student, teacher)
    log_student = F.log_softmax(softened(student, T), dim=1)
    log_teacher = F.log_softmax(softened(teacher, T), dim=1)
    loss = T**2 * F.kl_div(log_student, log_teacher, reduction="batchmean", log_target=True)
    return loss.to(student.device, torch.float32)


def tckd_loss(student: Tensor, teacher: Tensor, y: Tensor, T: float) -> Tensor:
    """T^2 * KL(b_teacher || b_student) with b = (p_y, 1 - p_y), averaged over the batch.

    How sure both are of the label: p = softmax(z / T) of logits z (B, C), and y (B,) are the labels. Target class
    knowledge distillation. In the precision of `soft_loss`, by log-sigmoids of z_y - logsumexp of the other logits, so
    that it is finite for any gap between logits.

    Source: Zhao et al. 2022, arXiv 2203.08679.
    """
    ours, theirs = _target_margin(softened(student, T), y), _target_margin(softened(teacher, T), y)
    right = F.logsigmoid(theirs).exp() * (F.logsigmoid(theirs) - F.logsigmoid(ours))
    wrong = F.logsigmoid(-theirs).exp() * (F.logsigmoid(-theirs) - F.logsigmoid(-ours))
    return (T**2 * (right + wrong).mean()).to(student.device, torch.float32)


def nckd_loss(student: Tensor, teacher: Tensor, y: Tensor, T: float) -> Tensor:
    """T^2 * KL of the softmax over the C - 1 classes beside the label, averaged over the batch.

    Of logits (B, C) and labels (B,). Non-target class knowledge distillation. The label's column is left out rather
    than masked by a large number. In log space and the precision of `soft_loss`. With two classes it is 0.

    Source: Zhao et al. 2022, arXiv 2203.08679.
    """
    return soft_loss(_without_target(student, y), _without_target(teacher, y), T)


def nce_loss(positive: Tensor, negatives: Tensor, log_mean: Tensor) -> Tensor:
    """Noise-contrastive estimation: tell the one positive of each image from its K negatives, averaged over the batch.

    With h(s) = e^s / Z and noise that draws each of N images with probability 1 / N:

        -log(h(s+) / (h(s+) + K / N)) - sum over k of log((K / N) / (h(s_k) + K / N))

    Z is N times a constant, so that N cancels. While nothing is learnt the sum over negatives is about 1, for any K.

    Args:
        positive: (B,), scores s+, similarities by temperature.
        negatives: (B, K), scores s_k.
        log_mean: scalar, log(Z / N), in practice the log of the mean of e^s over a first batch.

    Source: Tian et al. 2019, arXiv 1910.10699; Gutmann and Hyvarinen 2010.
    """
    log_ratio = log_mean.float() + math.log(negatives.shape[1])
    attracted = F.softplus(log_ratio - positive.float())
    repelled = F.softplus(negatives.float() - log_ratio).sum(dim=1)
    return (attracted + repelled).mean()


def softened(z: Tensor, T: float, exact: bool = False) -> Tensor:
    """Logits divided by T, in the precision that a loss needs: fp64 above `FP32_LIMIT`, or always if `exact`."""
    if T <= FP32_LIMIT and not exact:
        return z.float() / T
    # MPS has no fp64; a processor is fast enough for a batch of logits.
    return (z.cpu() if z.device.type == "mps" else z).double() / T


def standardized(z: Tensor) -> Tensor:
    """Z-scores of each row of logits (B, C), in fp32: mean 0 and standard deviation 1, with C - 1 as the divisor.

    A row of equal logits becomes 0, with a finite gradient. The largest number in a row is at most
    (C - 1) / sqrt(C), so that no softmax of z-scores is surer than 1 / (1 + (C - 1) exp(-sqrt(C) / T)): of 10 classes
    0.724 at T = 1 and 0.351 at T = 2, of 100 classes 0.996 and 0.600.

    Source: Sun et al. 2024, arXiv 2403.01427.
    """
    centred = z.float() - z.float().mean(dim=1, keepdim=True)
    # Within the root, as a root has no derivative at 0; 1e-7 beside the deviation, as published.
    return centred / (centred.square().sum(dim=1, keepdim=True) / (z.shape[1] - 1) + 1e-14).sqrt()


def _without_target(z: Tensor, y: Tensor) -> Tensor:
    """(B, C) without each row's column y: (B, C - 1)."""
    columns = torch.arange(z.shape[1] - 1, device=z.device)
    return z.gather(1, columns + (columns >= y.to(z.device)[:, None]))


def _target_margin(z: Tensor, y: Tensor) -> Tensor:
    """(B,), the log odds of class y: log(p_y / (1 - p_y))."""
    return z.gather(1, y.to(z.device)[:, None]).squeeze(1) - _without_target(z, y).logsumexp(dim=1)
