"""The studies of docs/results: what is compared in them, and what their rows are called. `readme.py` uses it."""

from kd.report.contrasts import Contrast, Measure

STUDENTS = {"standard": "labels alone", "logits": "logits", "feature": "feature"}
"""What the rows of seed_table are called."""
GAINS = {
    "logits minus labels alone": Contrast("logits", "logits", "standard"),
    "feature minus labels alone": Contrast("feature", "feature", "standard"),
    "logits minus feature": Contrast("", "logits", "feature"),
}
LOOKS = tuple(
    tuple(Contrast(f"{method}, {when}", method, "standard", seeds) for method in ("logits", "feature"))
    for when, seeds in (("first three seeds", range(3)), ("three more", range(3, 6)))
)
LONG = "recipe.batch_size=128 recipe.epochs=40 recipe.optimizer.lr=0.08"
CHANGES = (
    Contrast("first teacher, logits", "logits ensemble=1", "standard"),
    Contrast("two more teachers, logits", "logits", "logits ensemble=1"),
    Contrast("all three teachers, logits", "logits", "standard"),
    Contrast("all three teachers, feature", "feature", "standard"),
    Contrast("long recipe, labels alone", f"standard {LONG}", "standard"),
    Contrast("long recipe, logits", f"logits {LONG}", "logits"),
    Contrast("long recipe, feature", f"feature {LONG}", "feature"),
)
LENGTH = (
    Contrast("logits of one teacher, short, minus labels alone, long", "logits ensemble=1", f"standard {LONG}"),
    Contrast("logits of three teachers, short, minus labels alone, long", "logits", f"standard {LONG}"),
)
NETWORKS = {
    "teacher": "teacher, 30 epochs",
    "teacher teacher_recipe.epochs=75": "teacher, 75 epochs",
    "standard": "labels alone, short",
    f"standard {LONG}": "labels alone, long",
    "feature": "feature, three teachers, short",
    f"feature {LONG}": "feature, three teachers, long",
    "logits ensemble=1": "logits, one teacher, short",
    "logits": "logits, three teachers, short",
    f"logits {LONG}": "logits, three teachers, long",
}
"""What the rows of what_matters are called."""
DROPLESS = "student.conv_dropout=0 student.head_dropout=0"
UNEQUAL = ("Right", "CachedWithoutAugmentation", "OtherView", "NoTSquared", "MeanReductionNoTSquared")
"""Rows of seed_anomaly that are compared with labels alone without dropout, too."""
MISTAKES = {name: name for name in UNEQUAL} | {
    f"Right {DROPLESS}": "Right, no dropout in either",
    "MeanReduction": "MeanReduction",
    "OtherImages": "OtherImages",
    "SoftmaxForLogSoftmax": "SoftmaxForLogSoftmax",
    "TeacherInTrainMode": "TeacherInTrainMode",
    "LabelsOnly recipe.optimizer.lr=0.015": "LabelsOnly, a tenth of the learning rate",
    f"LabelsOnly {DROPLESS}": "LabelsOnly, no dropout",
}
"""What the rows of seed_anomaly are called."""
FIGURES = {
    "agreement": ("same class as the teachers, %", 100, 1),
    "agreement_wrong": ("the same where the teachers are wrong, %", 100, 1),
    "kl": ("KL(teacher ‖ student), nats", 1, 3),
    "kl_scaled": ("the same, both temperature scaled", 1, 3),
    "nll": ("NLL, nats", 1, 3),
    "nll_scaled": ("the same, temperature scaled", 1, 3),
    "ece": ("expected calibration error, %", 100, 2),
    "ece_scaled": ("the same, temperature scaled", 100, 2),
}
"""Figures of docs/fidelity/fidelity.csv: what they are called, their factor, their digits."""
CROSSED = ("logits", "feature", "srd", "sp")
CORRUPTED = "corrupted (8 of 15 corruptions)"
CHANGED = {
    "test accuracy, %": Measure(lambda run: run.test_acc),
    "NLL, nats": Measure(lambda run: run.test_nll, 1, 3),
    "expected calibration error, %": Measure(lambda run: run.test_ece),
    "accuracy on corrupted images, %": Measure(lambda run: run.also_test_acc[CORRUPTED]),
} | {
    f"{kind.replace('_', ' ')}, severity {severity}": Measure(
        lambda run, part=f"corrupted/{kind}/{severity}": run.also_test_acc[part]  # type: ignore[misc]
    )
    for kind in ("gaussian_noise", "impulse_noise", "defocus_blur", "contrast", "jpeg_compression")
    for severity in (1, 5)
}
"""Figures of crossed that are compared."""
