"""Places and circumstances that a run has to bear: other users, full disks, limits, clocks that jump."""

import os
import resource
import stat
import subprocess
import time
from dataclasses import replace

import pytest

from kd.errors import UserError
from kd.files import replaced
from kd.runs import results
from kd.runs.status import tracked
from kd.runs.weights import load_weights, save_weights
from kd.teachers.store import find_or_train
from tests.report.made import ALONE

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="changes the user, which only root can")
STRANGER = 65534  # nobody


def in_child(work, *, user=None):
    """Call a function in a forked process, as another user if one is given; return "" or its error as a line."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        line = ""
        try:
            if user is not None:
                os.setgroups([])
                os.setgid(user)
                os.setuid(user)
            work()
        except BaseException as error:
            line = f"{type(error).__name__}: {error}"
        finally:
            os.write(write, line.encode()[:4000])
            os._exit(0)
    os.close(write)
    with os.fdopen(read) as result:
        line = result.read()
    os.waitpid(pid, 0)
    return line


def train_into(net):
    def train(folder):
        save_weights(net, folder / "teacher.safetensors", {})
        results.write(ALONE, folder / results.FILE)

    return train


@pytest.fixture
def shared(tmp_path):
    """A folder that other users reach, as tmp_path is its owner's alone."""
    for folder in (tmp_path, *tmp_path.parents):
        if folder.stat().st_uid == os.geteuid() and not folder.stat().st_mode & 0o001:
            folder.chmod(folder.stat().st_mode | 0o011)
    return tmp_path


@as_root
@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_a_second_user_reads_a_shared_store_or_is_told_of_the_permission(shared, tiny_net, umask):
    before = os.umask(umask)
    try:
        store = shared / "teachers"
        find_or_train(store, {"a": 1}, train_into(tiny_net()))
    finally:
        os.umask(before)
    line = in_child(lambda: find_or_train(store, {"a": 1}, lambda _: 1 // 0), user=STRANGER)
    if umask == 0o022:
        assert line == ""
    else:
        assert "ermission denied" in line or "cannot be" in line
        assert "damaged" not in line
        assert "remove" not in line
        assert "UserError" in line


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_every_file_has_the_mode_that_the_umask_gives(tmp_path, tiny_net, umask, mode):
    before = os.umask(umask)
    try:
        train_into(tiny_net())(tmp_path)
    finally:
        os.umask(before)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    assert modes == {"teacher.safetensors": mode, "result.json": mode}


@as_root
def test_a_folder_that_cannot_be_written_is_told_in_a_line(shared, tiny_net):
    store = shared / "store"
    store.mkdir(mode=0o755)
    line = in_child(lambda: find_or_train(store, {"a": 1}, train_into(tiny_net())), user=STRANGER)
    assert line.startswith(f"UserError: teacher_store={store} cannot be written: ")
    assert "Permission denied" in line
    assert list(store.iterdir()) == []


def test_a_file_above_the_size_limit_leaves_the_old_one(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")

    def write():
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        with replaced(path) as temporary:
            temporary.write_bytes(bytes(5000))

    assert "File too large" in in_child(write)
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_a_run_above_the_size_limit_ends_in_a_line_and_can_be_continued(tmp_path):
    def run(record):
        (tmp_path / "run" / "large").write_bytes(bytes(50_000))

    def work():
        (tmp_path / "run").mkdir()
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
        tracked(replace(ALONE, status="running"), tmp_path / "run", run)

    line = in_child(work)
    assert "UserError: cannot save the run: File too large; once there is space, continue with: " in line
    assert results.read(tmp_path / "run" / results.FILE).status == "failed"


@as_root
def test_a_full_disk_leaves_the_old_file_and_is_told(tmp_path, tiny_net):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", disk], capture_output=True)
    if mounted.returncode:
        pytest.skip("tmpfs cannot be mounted here")
    try:
        net = tiny_net()
        save_weights(net, disk / "w.safetensors", {})
        space = os.statvfs(disk)
        (disk / "fill").write_bytes(bytes((space.f_bavail - 1) * space.f_bsize))
        with pytest.raises((UserError, OSError), match=r"No space|full"):
            save_weights(tiny_net(width=400), disk / "w.safetensors", {})
        tensors, _ = load_weights(disk / "w.safetensors")
        assert all(tensor.equal(net.state_dict()[name]) for name, tensor in tensors.items())
        assert sorted(path.name for path in disk.iterdir()) == ["fill", "w.safetensors"]
    finally:
        subprocess.run(["umount", "--lazy", disk], check=True)  # a loaded tensor may still be mapped


def test_a_clock_that_jumps_back_changes_no_file_and_no_result(tmp_path, tiny_net, monkeypatch):
    store = tmp_path / "teachers"
    entry = find_or_train(store, {"a": 1}, train_into(tiny_net()))
    tomorrow = time.time() + 86_400
    for path in (*store.rglob("*"), store):
        os.utime(path, (tomorrow, tomorrow))
    monkeypatch.setattr(time, "time", lambda: 0.0)
    assert find_or_train(store, {"a": 1}, lambda _: 1 // 0) == entry
    with replaced(tmp_path / "file") as temporary:
        temporary.write_text("new")
    assert (tmp_path / "file").read_text() == "new"


def test_a_run_that_is_done_is_not_repeated_though_its_files_are_from_the_future(tmp_path):
    results.write(ALONE, tmp_path / results.FILE)
    os.utime(tmp_path / results.FILE, (2**31, 2**31))
    assert tracked(ALONE, tmp_path, lambda _: 1 // 0) == ALONE
