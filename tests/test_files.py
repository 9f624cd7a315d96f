"""Files written whole or not at all, and what a kill leaves of them."""

import os
import subprocess
import sys
import time

import pytest
from filelock import Timeout

from kd.files import DAY, clear_leftovers, open_regular, replaced, shared_lock, temporary_path

WRITES = """
import os, signal, sys
from pathlib import Path
from kd.files import replaced
with replaced(Path(sys.argv[1])) as temporary:
    temporary.write_text("half")
    print(temporary.name, flush=True)
    {then}
"""


def interrupted(path, then):
    """Start a process that writes until a statement; return it and the name of its temporary file."""
    command = [sys.executable, "-c", WRITES.format(then=then), str(path)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    return process, process.stdout.readline().strip()


def test_replaced_removes_what_a_killed_process_left(tmp_path):
    path = tmp_path / "a.json"
    path.write_text("old")
    process, name = interrupted(path, "os.kill(os.getpid(), signal.SIGKILL)")
    process.communicate()
    assert sorted(os.listdir(tmp_path)) == [name, "a.json"]
    assert path.read_text() == "old"
    with replaced(path) as temporary:
        temporary.write_text("new")
    assert os.listdir(tmp_path) == ["a.json"]
    assert path.read_text() == "new"


def test_replaced_leaves_the_file_of_a_process_that_is_writing(tmp_path):
    path = tmp_path / "a.json"
    process, name = interrupted(path, "input()")
    try:
        with replaced(path) as temporary:
            temporary.write_text("new")
        assert sorted(os.listdir(tmp_path)) == [name, "a.json"]
    finally:
        process.communicate("go on\n")
    assert os.listdir(tmp_path) == ["a.json"]
    assert path.read_text() == "half"  # the last one to finish


@pytest.mark.parametrize("age", [0, DAY - 100, DAY + 100])
def test_clear_leftovers_goes_by_age_for_processes_of_another_machine(tmp_path, age):
    left = tmp_path / f".a.json.{'0' * 32}"
    left.write_text("half")
    os.utime(left, (time.time() - age,) * 2)
    clear_leftovers(tmp_path)
    assert left.exists() == (age < DAY)


def test_clear_leftovers_removes_only_what_has_our_names(tmp_path):
    ours, folder = tmp_path / f".a.json.{'1' * 32}", tmp_path / f".unpacked.{'2' * 32}"
    folder.mkdir()
    (folder / "part").touch()
    link = tmp_path / f".b.{'3' * 32}"
    target = tmp_path / "target"
    target.mkdir()
    (target / "mine").touch()
    link.symlink_to(target)
    others = [tmp_path / name for name in ("a.json", f"a.{'1' * 32}", f".a.{'g' * 32}", f".a.{'1' * 31}", ".hidden")]
    for path in (ours, *others):
        path.touch()
    for path in (ours, folder, link, *others):
        os.utime(path, (0, 0), follow_symlinks=False)
    clear_leftovers(tmp_path, "c.json")
    assert ours.exists()
    clear_leftovers(tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted([*others, target])
    assert (target / "mine").exists()


def test_temporary_path_differs_every_time(tmp_path):
    assert len({temporary_path(tmp_path / "a") for _ in range(100)}) == 100


def test_open_regular_refuses_what_may_never_end(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path / "fifo", "/dev/zero", tmp_path):
        with pytest.raises(OSError, match="not a regular file"):
            open_regular(path)
    (tmp_path / "file").write_text("abc")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    with open_regular(tmp_path / "link") as file:
        assert file.read() == b"abc"


@pytest.mark.parametrize(
    ("folder", "file"), [(0o700, 0o600), (0o755, 0o644), (0o2775, 0o664), (0o777, 0o666), (0o555, 0o644)]
)
def test_shared_lock_is_for_all_who_may_write_the_folder(tmp_path, folder, file):
    shared = tmp_path / "store"
    shared.mkdir()
    shared.chmod(folder)
    with shared_lock(shared / "a.lock"):
        assert (shared / "a.lock").stat().st_mode & 0o777 == file
        with pytest.raises(Timeout):
            shared_lock(shared / "a.lock").acquire(timeout=0)
