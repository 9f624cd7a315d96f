"""The mathematics of distillation: pure functions of tensors, in fp32."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def hard_loss(student: Tensor, y: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Cross-entropy of logits (B, C) with labels (B,), in fp32, averaged over the batch."""
    return F.cross_entropy(student.float(), y, label_smoothing=label_smoothing)


def soft_loss(student: Tensor, teacher: Tensor, T: float) -> Tensor:
    """T^2 * KL(teacher_T || student_T) of logits (B, C): summed over classes, averaged over the batch.

    T^2 keeps its gradient at the scale of the hard loss whatever T is. In log space and fp32 throughout, so that
    a confident teacher gives neither log(0) nor a half-precision underflow.

    Source: Hinton et al. 2015, arXiv 1503.02531.
    """
    log_student = F.log_softmax(student.float() / T, dim=1)
    log_teacher = F.log_softmax(teacher.float() / T, dim=1)
    return T**2 * F.kl_div(log_student, log_teacher, reduction="batchmean", log_target=True)


def tckd_loss(student: Tensor, teacher: Tensor, y: Tensor, T: float) -> Tensor:
    """T^2 * KL(b_teacher || b_student) with b = (p_y, 1 - p_y), averaged over the batch.

    How sure both are of the label: p = softmax(z / T) of logits z (B, C), and y (B,) are the labels. Target class
    knowledge distillation. In fp32, by log-sigmoids of z_y - logsumexp of the other logits, so that it is finite for
    any gap between logits.

    Source: Zhao et al. 2022, arXiv 2203.08679.
    """
    ours, theirs = _target_margin(student.float() / T, y), _target_margin(teacher.float() / T, y)
    right = F.logsigmoid(theirs).exp() * (F.logsigmoid(theirs) - F.logsigmoid(ours))
    wrong = F.logsigmoid(-theirs).exp() * (F.logsigmoid(-theirs) - F.logsigmoid(-ours))
    return T**2 * (right + wrong).mean()


def nckd_loss(student: Tensor, teacher: Tensor, y: Tensor, T: float) -> Tensor:
    """T^2 * KL of the softmax over the C - 1 classes beside the label, averaged over the batch.

    Of logits (B, C) and labels (B,). Non-target class knowledge distillation. The label's column is left out rather
    than masked by a large number. In log space and fp32. With two classes it is 0.

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


def _without_target(z: Tensor, y: Tensor) -> Tensor:
    """(B, C) without each row's column y: (B, C - 1)."""
    columns = torch.arange(z.shape[1] - 1, device=z.device)
    return z.gather(1, columns + (columns >= y[:, None]))


def _target_margin(z: Tensor, y: Tensor) -> Tensor:
    """(B,), the log odds of class y: log(p_y / (1 - p_y))."""
    return z.gather(1, y[:, None]).squeeze(1) - _without_target(z, y).logsumexp(dim=1)
