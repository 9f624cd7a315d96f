import numpy as np
import pytest
import torch

from kd.errors import UserError
from kd.runs.predictions import Predictions, read, write


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
