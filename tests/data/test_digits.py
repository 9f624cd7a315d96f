import pytest
import torch
from sklearn.datasets import load_digits

from kd.data.digits import _original, digits


def test_digits_holds_every_image_once():
    images = digits(8)
    assert images.name == "digits"
    assert images.classes == tuple("0123456789")
    assert (len(images.train_y), len(images.test_y)) == (1438, 359)
    original = load_digits()
    expected = [
        (y, *(x * 255 / 16).round().flatten().tolist()) for x, y in zip(original.images, original.target, strict=True)
    ]
    x, y = torch.cat([images.train_x, images.test_x]), torch.cat([images.train_y, images.test_y])
    assert torch.equal(x, x[:, :1].expand(-1, 3, -1, -1))
    found = [(label.item(), *image.flatten().tolist()) for image, label in zip(x[:, 0], y, strict=True)]
    # numpy and torch both round to even, so equality is exact
    assert sorted(found) == sorted(expected)


def test_digits_summary_names_the_original_size():
    counts = "digits: 1,438 training and 359 test images, 10 classes"
    assert digits().summary == f"{counts}, resized from 8x8 to 32x32"
    assert digits(8).summary == counts


def test_digits_size_and_dtype():
    images = digits()
    for x, y in ((images.train_x, images.train_y), (images.test_x, images.test_y)):
        assert x.shape == (len(y), 3, 32, 32)
        assert (x.dtype, y.dtype) == (torch.uint8, torch.int64)
        assert x.min() == 0
        assert x.max() == 255


def test_digits_test_split_holds_a_fifth_of_each_class():
    images = digits(8)
    test, every = images.test_y.bincount(), torch.cat([images.train_y, images.test_y]).bincount()
    assert (test - every / 5).abs().max() <= 0.5


def test_digits_is_deterministic():
    first = digits()
    torch.rand(1)
    assert digits().id == first.id
    assert digits(16).id != first.id


def test_digits_are_the_same_where_scikit_learn_keeps_them_elsewhere(monkeypatch):
    """Read by scikit-learn itself then."""
    expected = digits().id
    monkeypatch.setattr("kd.data.digits._original", _original.__wrapped__)  # which the tests keep
    assert digits().id == expected
    monkeypatch.setattr("kd.data.digits.find_spec", lambda name: None)
    assert digits().id == expected


def test_digits_refuses_a_size_below_one():
    with pytest.raises(ValueError, match="image_size"):
        digits(0)
