"""The teacher's logits on disk: the same as live, and never wrong ones."""

import errno
import multiprocessing
import os
import signal
import time

import numpy as np
import pytest
import torch

from kd.data.batch import Batch
from kd.models.output import Output
from kd.teachers.logit_cache import HEADER, RoundedLogits, StoredLogits, open_logits, prepare_file
from tests import processes

IMAGES, VIEWS, CLASSES = 12, 18, 10
SHAPE = {"images": IMAGES, "views": VIEWS, "classes": CLASSES}
KEY = {"teacher": "abc", "data": "def", "crop": 1}


class Teacher:
    """Says something else to every view, and counts the images it was shown."""

    def __init__(self, scale=3.0):
        self.asked, self.scale = 0, scale

    def __call__(self, batch):
        self.asked += len(batch.y)
        places = (batch.index * VIEWS + batch.view).float()[:, None]
        logits = self.scale * torch.sin(places + torch.arange(CLASSES) * 0.7)
        return Output(logits, (batch.x,), logits)


def batch(index, view):
    index, view = torch.tensor(index), torch.tensor(view)
    return Batch(torch.zeros(len(index), 3, 2, 2), torch.zeros(len(index), dtype=torch.long), index, view)


def everything():
    rows = torch.arange(IMAGES * VIEWS)
    return batch((rows // VIEWS).tolist(), (rows % VIEWS).tolist())


def opened(folder, key=KEY, teacher=None, limit_gb=1.0):
    path = prepare_file(folder, key, **SHAPE, limit_gb=limit_gb)
    return StoredLogits(teacher or Teacher(), path, key, **SHAPE)


def test_stored_is_live_to_rounding_and_the_teacher_is_asked_once(tmp_path):
    first = opened(tmp_path)
    whole = everything()
    live = Teacher()(whole).logits
    fresh = first(whole).logits
    torch.testing.assert_close(fresh, live, rtol=2**-11, atol=1e-6)
    second = opened(tmp_path)
    assert torch.equal(second(whole).logits, fresh)  # a run comes out the same with an empty and with a full file
    assert torch.equal(first(whole).logits, fresh)
    assert (first.teacher.asked, second.teacher.asked) == (IMAGES * VIEWS, 0)
    assert second.summary().startswith("teacher's logits: 216 of 216 were in ")


def test_a_batch_that_is_there_in_part(tmp_path):
    stored = opened(tmp_path)
    stored(batch([0, 1], [3, 4]))
    mixed = batch([5, 1, 0, 0], [0, 4, 3, 2])
    torch.testing.assert_close(stored(mixed).logits, Teacher()(mixed).logits, rtol=2**-11, atol=1e-6)
    assert (stored.requested, stored.found, stored.teacher.asked) == (6, 2, 4)


def test_test_images_and_views_without_a_number_are_asked_live(tmp_path):
    stored = opened(tmp_path)
    for odd in (batch([IMAGES], [4]), batch([3], [-1])):
        for _ in range(2):
            assert torch.equal(stored(odd).logits, Teacher()(odd).logits)
    assert (stored.requested, stored.teacher.asked) == (0, 4)


def test_logits_beyond_float16_are_passed_on_and_not_kept(tmp_path):
    stored = opened(tmp_path, teacher=Teacher(scale=1e6))
    for _ in range(2):
        assert torch.equal(stored(batch([1], [1])).logits, Teacher(scale=1e6)(batch([1], [1])).logits)
    assert stored.found == 0


@pytest.mark.parametrize("key", [{**KEY, "teacher": "xyz"}, {**KEY, "data": "xyz"}, {**KEY, "crop": 2}])
def test_another_teacher_or_data_set_has_its_own(tmp_path, key):
    opened(tmp_path)(everything())
    other = opened(tmp_path, key=key)
    other(everything())
    assert other.found == 0


def test_a_file_under_the_wrong_name_is_said_and_made_again(tmp_path, caplog):
    ours, theirs = opened(tmp_path), opened(tmp_path, key={**KEY, "teacher": "xyz"})
    theirs(everything())
    os.replace(theirs.path, ours.path)
    again = opened(tmp_path)
    assert "is of another teacher or data set than its name says; it is made again" in caplog.text
    again(everything())
    assert again.found == 0


def test_entries_of_another_teacher_are_not_believed(tmp_path):
    """Even with our header: the checksums are the other's."""
    ours, theirs = opened(tmp_path), opened(tmp_path, key={**KEY, "teacher": "xyz"})
    theirs(everything())
    ours.path.write_bytes(ours.path.read_bytes()[:HEADER] + theirs.path.read_bytes()[HEADER:])
    again = opened(tmp_path)
    again(everything())
    assert (again.found, again.damaged) == (0, IMAGES * VIEWS)


@pytest.mark.parametrize("length", [0, 100, HEADER, HEADER + 1000])
def test_a_truncated_file_is_said_and_made_again(tmp_path, caplog, length):
    stored = opened(tmp_path)
    stored(everything())
    os.truncate(stored.path, length)
    again = opened(tmp_path)
    assert "is cut short or not whole; it is made again" in caplog.text
    torch.testing.assert_close(again(everything()).logits, Teacher()(everything()).logits, rtol=2**-11, atol=1e-6)
    assert again.found == 0


@pytest.mark.parametrize("length", [0, HEADER, HEADER + 1000])
def test_file_that_is_cut_during_a_run_is_no_crash(tmp_path, length):
    """Through a mapping, reading behind the end is SIGBUS, the end of the process."""
    stored, whole = opened(tmp_path), everything()
    wanted = stored(whole).logits
    os.truncate(stored.path, length)
    assert torch.equal(stored(whole).logits, wanted)
    assert stored.damaged <= 1  # an entry that was cut in two
    assert stored.teacher.asked == 2 * IMAGES * VIEWS - (length - HEADER) // (2 * (CLASSES + 2)) * (length > HEADER)
    found = stored.found
    assert torch.equal(stored(whole).logits, wanted)
    assert stored.found == found + IMAGES * VIEWS  # all are there again


def test_file_that_cannot_be_written_is_read(as_nobody, public_path):
    folder = public_path / "logits"
    first, half = opened(folder), batch(list(range(IMAGES)), [0] * IMAGES)
    wanted = first(half).logits
    first.path.chmod(0o444)
    with as_nobody():
        stored = opened(folder)
        assert torch.equal(stored(half).logits, wanted)
        stored(everything())
    assert not stored.writable
    assert (stored.found, stored.teacher.asked) == (2 * IMAGES, IMAGES * (VIEWS - 1))


def test_file_that_cannot_be_read_is_said(as_nobody, public_path, caplog):
    opened(public_path / "logits").path.chmod(0)
    with as_nobody():
        assert prepare_file(public_path / "logits", KEY, **SHAPE, limit_gb=1) is None
    assert ".logits: Permission denied" in caplog.text


def test_full_disk_while_logits_are_added_is_a_warning(tmp_path, monkeypatch, caplog):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    stored, whole = opened(tmp_path), everything()
    monkeypatch.setattr(os, "pwrite", full)
    for _ in range(2):
        torch.testing.assert_close(stored(whole).logits, Teacher()(whole).logits, rtol=2**-11, atol=1e-6)
    assert caplog.text.count("No space left on device; the teacher's logits are no longer added to it") == 1


def test_what_a_kill_left_of_other_files_is_removed(tmp_path):
    left = tmp_path / f".0123456789abcdef.logits.{'0' * 32}"
    left.touch()
    os.utime(left, (0, 0))
    opened(tmp_path)
    assert not left.exists()


def test_stored_logits_close_their_file(tmp_path):
    files = os.listdir("/proc/self/fd")
    stored = opened(tmp_path)
    stored(everything())
    del stored
    assert os.listdir("/proc/self/fd") == files


def test_every_damaged_bit_is_noticed(tmp_path, caplog):
    stored = opened(tmp_path)
    wanted = stored(everything()).logits
    content = bytearray(stored.path.read_bytes())
    generator = np.random.default_rng(0)
    width = 2 * (CLASSES + 2)
    for entry in range(IMAGES * VIEWS):
        content[HEADER + entry * width + generator.integers(2 * CLASSES)] ^= 1 << generator.integers(8)
    stored.path.write_bytes(content)
    again = opened(tmp_path)
    assert torch.equal(again(everything()).logits, wanted)
    assert (again.found, again.damaged) == (0, IMAGES * VIEWS)
    assert caplog.text.count("has entries that are damaged or just being written") == 1
    assert opened(tmp_path)(everything()).logits.equal(wanted)


def test_entries_that_changed_places_are_noticed(tmp_path):
    stored = opened(tmp_path)
    wanted = stored(everything()).logits
    content, width = stored.path.read_bytes(), 2 * (CLASSES + 2)
    stored.path.write_bytes(content[:HEADER] + content[HEADER + width :] + content[HEADER : HEADER + width])
    again = opened(tmp_path)
    assert torch.equal(again(everything()).logits, wanted)
    assert again.found == 0


def test_too_large_is_said(tmp_path, caplog):
    caplog.set_level("INFO")
    assert prepare_file(tmp_path, KEY, **SHAPE, limit_gb=1e-6) is None
    assert (
        "the teacher's logits are not kept: 0.0 GB for 18 views of each image, and speed.stored_logits_gb=1e-06"
        in caplog.text
    )
    assert not list(tmp_path.iterdir())


def everywhere(folder, **changes):
    options = {"views": VIEWS, "limit_gb": 1.0, **changes}
    return open_logits(Teacher(), folder, KEY, images=IMAGES, classes=CLASSES, **options)


def test_logits_are_the_same_to_the_bit_with_and_without_a_file(tmp_path):
    (tmp_path / "taken").write_text("")
    kept, whole = everywhere(tmp_path), everything()
    too_large, no_folder = everywhere(tmp_path, limit_gb=1e-6), everywhere(tmp_path / "taken")
    assert [type(one) for one in (kept, too_large, no_folder)] == [StoredLogits, RoundedLogits, RoundedLogits]
    assert not torch.equal(kept(whole).logits, Teacher()(whole).logits)
    for batch_ in (whole, batch([IMAGES], [3]), batch([3], [-1])):
        first, *others = (one(batch_) for one in (kept, too_large, no_folder))
        assert all(torch.equal(other.logits, first.logits) for other in others)
        assert all(len(other.features) == len(first.features) for other in others)


def test_logits_beyond_float16_are_passed_on_without_a_file(tmp_path):
    huge, whole = RoundedLogits(Teacher(scale=1e6), IMAGES), everything()
    assert torch.equal(huge(whole).logits, Teacher(scale=1e6)(whole).logits)


def test_views_without_a_number_are_not_kept(tmp_path, caplog):
    caplog.set_level("INFO")
    assert everywhere(tmp_path, views=None) is None
    assert "too many views" in caplog.text


def test_no_space_is_said_and_nothing_half_written_stays(tmp_path):
    program = tmp_path / "program.py"
    program.write_text(
        "import resource, logging, signal\n"
        "from pathlib import Path\n"
        "from kd.teachers.logit_cache import prepare_file\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192))\n"
        "logging.basicConfig(format='%(message)s')\n"
        f"print(prepare_file(Path('logits'), {KEY!r}, images=12, views=18, classes=10, limit_gb=1))\n"
    )
    done = processes.run(program, cwd=tmp_path)
    assert done.stdout == "None\n"
    assert "the teacher's logits are not kept: " in done.stderr
    assert "File too large" in done.stderr
    assert [path.suffix for path in (tmp_path / "logits").iterdir()] == [".lock"]


def test_a_folder_that_cannot_be_made_is_said(tmp_path, caplog):
    (tmp_path / "taken").write_text("")
    assert prepare_file(tmp_path / "taken", KEY, **SHAPE, limit_gb=1) is None
    assert "the teacher's logits are not kept" in caplog.text


def fill_for_ever(folder):
    stored = opened(folder)
    generator = torch.Generator().manual_seed(os.getpid())
    while True:
        rows = torch.randint(IMAGES * VIEWS, (40,), generator=generator)
        stored._write(
            rows.numpy(), np.zeros((40, CLASSES + 2), np.uint16)
        )  # so that there is always something to write
        stored(batch((rows // VIEWS).tolist(), (rows % VIEWS).tolist()))


def test_processes_that_write_at_once_and_are_killed_leave_nothing_wrong(tmp_path):
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=fill_for_ever, args=(tmp_path,)) for _ in range(2)]
    for writer in writers:
        writer.start()
    reader, whole = opened(tmp_path), everything()
    live = Teacher()(whole).logits
    until, latest = time.monotonic() + 0.7, time.monotonic() + 20
    try:
        while time.monotonic() < (until if reader.found else latest):
            torch.testing.assert_close(reader(whole).logits, live, rtol=2**-11, atol=1e-6)
    finally:
        for writer in writers:
            writer.kill()
            writer.join()
    assert [writer.exitcode for writer in writers] == [-signal.SIGKILL] * 2  # until then both were at it
    torch.testing.assert_close(opened(tmp_path)(whole).logits, live, rtol=2**-11, atol=1e-6)
    assert reader.found > 0
