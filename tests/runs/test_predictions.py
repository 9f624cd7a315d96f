import numpy as np
import pytest
import torch

from kd.errors import UserError
from kd.runs.predictions import Predictions, read, write


def some(taught=True):
    logits = torch.randn(7, 3, generator=torch.Generator().manual_seed(0)).bfloat16().float().numpy()
    return Predictions(np.array([0, 1, 2, 0, 1, 2, 0]), logits, -logits if taught else None)


@pytest.mark.parametrize("taught", [True, False])
def test_what_bf16_computed_comes_back_to_the_bit(tmp_path, taught):
    write(some(taught), tmp_path / "p.npz")
    back = read(tmp_path / "p.npz")
    for ours, theirs in zip(some(taught), back, strict=True):
        assert np.array_equal(ours, theirs) if taught or ours is not None else theirs is None
    assert back.labels.dtype == np.int64
    assert back.correct.tolist() == (some().logits.argmax(1) == some().labels).tolist()


def test_logits_beyond_half_precision_stay_finite(tmp_path):
    write(Predictions(np.array([0]), np.array([[1e6, -1e6]], np.float32)), tmp_path / "p.npz")
    assert read(tmp_path / "p.npz").logits.tolist() == [[65504.0, -65504.0]]


@pytest.mark.parametrize("damage", ["missing", "cut", "other", "short"])
def test_what_is_not_whole_is_refused(tmp_path, damage):
    path = tmp_path / "p.npz"
    if damage != "missing":
        write(some(), path)
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
