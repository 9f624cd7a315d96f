import os
import signal

import numpy as np
import pytest
import torch

from kd.data.fetch import BatchIndices, OnDisk
from kd.data.images import Images
from kd.data.stored import StoredPixels
from kd.errors import UserError


@pytest.fixture
def file(pixels, tmp_path):
    np.save(tmp_path / "x.npy", pixels.numpy())
    return tmp_path / "x.npy"


def test_stored_pixels_are_those_of_the_file(file, pixels):
    stored = StoredPixels(file)
    assert (len(stored), stored.shape, stored.dtype) == (12, pixels.shape, torch.uint8)
    for rows in (slice(None), slice(3, 100), slice(5, 5), torch.tensor([7, 0, 7]), torch.tensor([], dtype=torch.int64)):
        assert torch.equal(stored[rows], pixels[rows])
    y = torch.arange(12) % 2
    of_file, in_memory = (Images("a", ("b", "c"), x, y, x, y) for x in (stored, pixels))
    assert (of_file.id, of_file.mean_std) == (in_memory.id, in_memory.mean_std)


def test_stored_pixels_leave_no_file_open(file):
    before = os.listdir("/proc/self/fd")
    StoredPixels(file)[:]
    assert os.listdir("/proc/self/fd") == before


@pytest.mark.parametrize("workers", [0, 1])
def test_stored_pixels_name_a_file_that_is_cut_while_it_is_in_use(file, pixels, workers):
    """Through a mapping this was the end of the process (SIGBUS)."""
    stored = StoredPixels(file)
    on_disk = OnDisk(stored, torch.zeros(12), torch.device("cpu"), workers)
    os.truncate(file, 8000)
    assert torch.equal(stored[:2], pixels[:2])
    with pytest.raises(UserError, match=r"^\S+x\.npy: was cut while it was in use; give the same command again$"):
        list(on_disk.fetch([BatchIndices(torch.arange(12), torch.zeros(12), None)]))
    os.truncate(file, 0)
    with pytest.raises(UserError, match="was cut"):
        print(Images("a", ("b", "c"), stored, torch.zeros(12), stored, torch.zeros(12)).id)


@pytest.mark.parametrize(("device", "waits"), [("cpu", True), ("mps", True), ("cuda", False)])
def test_pixels_on_disk_are_copied_without_waiting_from_pinned_memory_alone(pixels, monkeypatch, device, waits):
    """A copy to MPS that nobody waits for reads memory that may be another batch's by then."""
    asked = []
    monkeypatch.setattr(torch.Tensor, "to", lambda x, device, non_blocking=False: asked.append(non_blocking) or x)
    monkeypatch.setattr("kd.data.fetch.DataLoader", lambda data, sampler, **_: (data[step] for step in sampler))
    on_disk = OnDisk(pixels, torch.zeros(12), torch.device(device), workers=0)
    list(on_disk.fetch([BatchIndices(torch.arange(12), torch.zeros(12), None)]))
    assert asked == [not waits] * 2


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded")
def test_worker_process_that_dies_is_told_in_a_line(pixels):
    """As by the bus error of too little shared memory."""

    class Deadly:
        shape = pixels.shape

        def __getitem__(self, index):
            os.kill(os.getpid(), signal.SIGKILL)

    steps = [BatchIndices(torch.arange(2), torch.zeros(2, dtype=torch.int64), None)]
    disk = OnDisk(Deadly(), torch.arange(len(pixels)), torch.device("cpu"), workers=1)
    with pytest.raises(UserError, match=r"a process that reads images has died \(DataLoader worker.*data.workers=0"):
        list(disk.fetch(steps))


def test_stored_pixels_are_read_in_parts(file, pixels, monkeypatch):
    monkeypatch.setattr("kd.data.stored.AT_ONCE", 5 * 3 * 32 * 32)
    assert torch.equal(StoredPixels(file)[1:], pixels[1:])
    with pytest.raises(ValueError, match="not in steps of 2"):
        StoredPixels(file)[::2]


@pytest.mark.parametrize(
    "array", [np.zeros((2, 3, 4), np.uint8), np.zeros((2, 3, 4, 4), np.int8), np.zeros((4, 4, 3, 2), np.uint8).T]
)
def test_stored_pixels_refuse_other_arrays(tmp_path, array):
    np.save(tmp_path / "x.npy", array)
    with pytest.raises(ValueError, match="not images"):
        StoredPixels(tmp_path / "x.npy")
