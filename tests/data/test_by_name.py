"""The images of a run found again: by the name in its record and the folder that it read."""

import pytest
import torch

from kd.data.arrays import fashion_mnist, stl10, svhn
from kd.data.by_name import by_name
from kd.data.digits import digits
from kd.data.npy import npy
from tests.data.test_arrays import put_fashion, put_stl10, put_svhn
from tests.data.test_npy import whole

SOURCES = {svhn: put_svhn, fashion_mnist: put_fashion, stl10: put_stl10, npy: lambda root: whole(root, 6, 8, 3)}


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.__name__)
@pytest.mark.parametrize("size", [None, 12])
def test_by_name_reads_what_the_run_read(tmp_path, source, size):
    SOURCES[source](tmp_path)
    images = source(tmp_path) if size is None else source(tmp_path, image_size=size)
    found = by_name(tmp_path, images.name, size)
    assert (found.id, found.classes) == (images.id, images.classes)
    assert torch.equal(found.test_x[:], images.test_x[:])


def test_by_name_takes_a_folder_called_like_cifar_for_what_it_is(tmp_path):
    whole(tmp_path / "CIFAR-10-mine", 6, 8, 3)
    images = npy(tmp_path / "CIFAR-10-mine")
    assert images.name == "CIFAR-10-mine"
    assert by_name(tmp_path / "CIFAR-10-mine", images.name).id == images.id


def test_by_name_needs_no_folder_for_digits(tmp_path):
    assert by_name(tmp_path, "digits", 16).id == digits(16).id
