"""The mathematics of distillation: pure functions of tensors, in fp32."""

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
