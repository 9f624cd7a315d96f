import numpy as np
import pytest
import torch

from kd.errors import UserError
from kd.runs.predictions import Predictions, near_chance, read, write


def example(with_teacher=True):
    logits = torch.randn(7, 3, generator=torch.Generator().manual_seed(0)).bfloat16().float().numpy()
    return Predictions(np.array([0, 1, 2, 0, 1, 2, 0]), logits, -logits if with_teacher else None)


@pytest.mark.parametrize("with_teacher", [True, False])
def test_predictions_restore_bf16_logits_to_the_bit(tmp_path, with_teacher):
    write(example(with_teacher), tmp_path / "p.npz")
    restored = read(tmp_path / "p.npz")
    for written, loaded in zip(example(with_teacher), restored, strict=True):
        assert np.array_equal(written, loaded) if with_teacher or written is not None else loaded is None
    assert restored.labels.dtype == np.int64
    assert restored.correct.tolist() == (example().logits.argmax(1) == example().labels).tolist()


def test_predictions_clip_logits_beyond_half_precision(tmp_path):
    write(Predictions(np.array([0]), np.array([[1e6, -1e6]], np.float32)), tmp_path / "p.npz")
    assert read(tmp_path / "p.npz").logits.tolist() == [[65504.0, -65504.0]]


@pytest.mark.parametrize("damage", ["missing", "cut", "other", "short"])
def test_predictions_read_refuses_a_damaged_file(tmp_path, damage):
    path = tmp_path / "p.npz"
    if damage != "missing":
        write(example(), path)
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:100])
    elif damage == "other":
        with open(path, "wb") as file:
            np.savez(file, answers=np.zeros(3))
    elif damage == "short":
        with open(path, "wb") as file:
            np.savez(file, labels=np.zeros(3), logits=np.zeros((4, 2)))
    with pytest.raises(UserError, match=r"p\.npz"):
        read(path)


def labels(*counts):
    return np.repeat(np.arange(len(counts)), counts)


@pytest.mark.parametrize(
    ("accuracy", "counts", "verdict"),
    [
        # 1.645 sqrt(0.1 * 0.9 / 10,000) is half a point; a twentieth of the way to 1 is 4.5 points
        (0.05, [1000] * 10, "no better than chance (10.0 % with 10 classes)"),
        (0.104, [1000] * 10, "no better than chance (10.0 % with 10 classes)"),
        (0.11, [1000] * 10, "hardly better than chance (10.0 % with 10 classes)"),
        (0.144, [1000] * 10, "hardly better than chance (10.0 % with 10 classes)"),
        (0.146, [1000] * 10, None),
        # of 40 images it is 7.8 points: 7 right are no evidence
        (7 / 40, [4] * 10, "no better than chance (10.0 % with 10 classes)"),
        (8 / 40, [4] * 10, None),
        # nine in ten are of one class
        (0.9, [900, 50, 50], "no better than chance (90.0 % with 3 classes)"),
        (0.93, [900, 50, 50], None),
        (0.5, [500, 500, 0], "no better than chance (50.0 % with 2 classes)"),
        (0.06, [10] * 100, None),
        (1.0, [1, 1], "which 2 test images cannot tell from chance (50.0 %)"),
        (1.0, [5], "no better than chance (100.0 % with 1 classes)"),
    ],
)
def test_near_chance_tells_ignorance_from_knowledge(accuracy, counts, verdict):
    assert near_chance(accuracy, labels(*counts)) == verdict
