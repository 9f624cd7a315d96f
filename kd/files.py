"""Files that are written whole or not at all, and the removal of what a kill leaves of them."""

import errno
import functools
import hashlib
import os
import platform
import re
import secrets
import shutil
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from filelock import BaseFileLock, FileLock

DAY = 86_400.0
"""Seconds without a change after which a temporary file is left behind, whatever process made it."""

TEMPORARY = re.compile(r"\.(?P<target>.+)\.(?P<place>[0-9a-f]{8})(?P<pid>[0-9a-f]{8})[0-9a-f]{16}")
"""Names that `temporary_path` gives: target, machine, process, and what makes them unique."""


@contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """Yield a temporary path that replaces `path` when the block ends, and is removed if the block fails.

    A reader of `path` sees either the old file or the new one. What a killed process left of an earlier one is removed.
    """
    clear_leftovers(path.parent, path.name)
    temporary = temporary_path(path)
    try:
        temporary.touch()
        mode = temporary.stat().st_mode
        yield temporary
        temporary.chmod(mode)  # some libraries write files that nobody else may read
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def temporary_path(path: Path) -> Path:
    """Return a new hidden name beside a path, for what is to replace it; it names the process that makes it."""
    # Beside the target, as a rename is atomic within one file system only.
    return path.with_name(f".{path.name}.{_place()}{os.getpid():08x}{secrets.token_hex(8)}")


def clear_leftovers(folder: Path, target: str | None = None) -> None:
    """Remove temporary files and folders whose process is gone.

    Each name has its process, which is looked up on the machine that it runs on. Another machine may share the folder:
    its temporary files count as left behind after a day without a change, as clocks differ by less.

    Args:
        folder: where to look.
        target: the file that they were to replace; by default any.
    """
    with suppress(OSError):
        found = [(name, match) for name in os.listdir(folder) if (match := TEMPORARY.fullmatch(name))]
        for name, match in found:
            if target in (None, match["target"]) and _left_behind(folder / name, match):
                if (folder / name).is_dir() and not (folder / name).is_symlink():
                    shutil.rmtree(folder / name, ignore_errors=True)
                else:
                    (folder / name).unlink(missing_ok=True)


def open_regular(path: Path) -> BinaryIO:
    """Open a file for reading, if it is one: reading a FIFO or a device may never end.

    Raises:
        OSError: if it cannot be opened, or is no regular file.
    """
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return open(descriptor, "rb")


def read_regular(path: Path, most: int) -> bytes:
    """Return the content of a regular file.

    Raises:
        OSError: if it cannot be opened, is no regular file, or has more than `most` bytes.
    """
    with open_regular(path) as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise OSError(errno.EFBIG, f"larger than {most >> 20:,} MB", str(path))
    return content


def checksum(path: Path) -> str:
    """Return the SHA-256 of a regular file, in hex."""
    with open_regular(path) as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def shared_lock(path: Path) -> BaseFileLock:
    """Return a lock that everybody can take who may write to its folder."""
    # Else the file is its first user's alone, and only that user can lock it.
    return FileLock(path, mode=path.parent.stat().st_mode & 0o666 | 0o600)


def reserve(file: BinaryIO, size: int) -> None:
    """Allocate the space of a file now: on a full disk this is an error, and a write to a mapped file a crash.

    Args:
        file: open for writing, at its end.
        size: in bytes, of the whole file.
    """
    file.flush()
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file.fileno(), 0, size)
    else:
        for start in range(file.tell(), size, 2**20):
            file.write(bytes(min(2**20, size - start)))


@functools.cache
def _place() -> str:
    """Return 8 hex digits that name the running system, and on it the space in which process numbers are unique."""
    try:
        system = Path("/proc/sys/kernel/random/boot_id").read_text() + os.readlink("/proc/self/ns/pid")
    except OSError:
        system = platform.node()
    return hashlib.blake2b(system.encode(), digest_size=4).hexdigest()


def _left_behind(path: Path, name: re.Match[str]) -> bool:
    if name["place"] == _place() and not _runs(int(name["pid"], 16)):
        return True
    return time.time() - path.lstat().st_mtime > DAY


def _runs(pid: int) -> bool:
    if os.name != "posix":
        return True  # there os.kill ends the process
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        return True  # another user's
    return True
