"""Folders as people and programs leave them: what is read, and what is passed over, counted by reason."""

import os
import stat
import unicodedata
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from kd.errors import UserError
from kd.terminal import visible

SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("test", "testing"), "test"),
    **dict.fromkeys(("val", "valid", "validation"), "val"),
}
"""Which split a folder or file is of that is called so, in any case."""

SYSTEM = {"thumbs.db", "ehthumbs.db", "desktop.ini", "__macosx", "@eadir", "$recycle.bin", "system volume information"}
"""What operating systems leave behind, in lower case; names with a leading dot are hidden anyway."""

CACHE = ".decoded"
"""Our own folder for decoded pixels, under data.root."""


LONGEST_NAME = 500
"""Characters of a class name."""


class Entries(NamedTuple):
    files: list[Path]
    folders: list[Path]


class Tree:
    """The files with certain suffixes under a root, and a count of everything else that was met on the way.

    Hidden and system files and folders, FIFOs, devices, broken links and links to folders that leave the root are
    passed over.

    Args:
        root: the folder.
        suffixes: of the files to read, in lower case; upper case is accepted.
        links_out: whether to read files through links that leave the root, as those of a Hugging Face hub cache do.
    """

    def __init__(self, root: Path, suffixes: Iterable[str], links_out: bool = False) -> None:
        self.root, self.suffixes, self.links_out = root, frozenset(suffixes), links_out
        self.real_root = os.path.realpath(root)
        self.files_passed_over: Counter[str] = Counter()
        self.folders_passed_over: list[str] = []

    def entries(self, folder: Path) -> Entries:
        """Return the files and folders directly in a folder, sorted by name.

        Raises:
            OSError: for a folder that cannot be read; a broken link whose suffix is one of ours.
        """
        found = Entries([], [])
        with os.scandir(folder) as scan:
            scanned = sorted(scan, key=lambda entry: entry.name)
        for entry in scanned:
            path = folder / entry.name
            kind, out = self._kind(entry, path)
            system = "hidden" if entry.name.startswith(".") else entry.name.lower() in SYSTEM and "system"
            if kind == "folder" and (system or out):
                self.pass_over_folder(path, "a link out of data.root" if out else "")
            elif kind == "folder":
                found.folders.append(path)
            elif system:
                self.files_passed_over[system] += 1
            elif path.suffix.lower() not in self.suffixes:
                self.files_passed_over[_suffix(path)] += 1
            elif kind == "broken":
                os.stat(path)  # raises with the reason
            elif kind == "special":
                self.files_passed_over["FIFO or device"] += 1
            elif out and not self.links_out:
                self.files_passed_over["link out of data.root"] += 1
            else:
                found.files.append(path)
        return found

    def files(self, folder: Path) -> list[Path]:
        """Return the files in a folder and below, sorted by path. Links to folders are passed over.

        Raises:
            OSError: as `entries`.
        """
        files, todo = [], [folder]
        while todo:
            found = self.entries(todo.pop())
            files += found.files
            for below in found.folders:
                if below.is_symlink():  # it could lead back up, or count images twice
                    self.pass_over_folder(below, "a link")
                else:
                    todo.append(below)
        return sorted(files)

    def pass_over(self, files: list[Path], reason: str) -> None:
        if files:
            self.files_passed_over[reason] += len(files)

    def pass_over_folder(self, folder: Path, reason: str = "") -> None:
        if folder.name != CACHE:
            self.folders_passed_over.append(visible(folder.name) + (f" ({reason})" if reason else ""))

    def notes(self) -> tuple[str, ...]:
        """Return what was passed over, for `Images.notes`."""
        notes = []
        if self.files_passed_over:
            total = self.files_passed_over.total()
            by_count = sorted(self.files_passed_over.items(), key=lambda item: (-item[1], item[0]))
            reasons = ", ".join(f"{n:,} {reason}" for reason, n in by_count)
            notes.append(f"{total:,} {'file' if total == 1 else 'files'} passed over ({reasons})")
        if self.folders_passed_over:
            names = list(dict.fromkeys(self.folders_passed_over))
            more = f" and {len(names) - 3:,} more" if len(names) > 3 else ""
            notes.append(f"folders passed over: {', '.join(names[:3])}{more}")
        return tuple(notes)

    def _kind(self, entry: os.DirEntry[str], path: Path) -> tuple[str, bool]:
        """Return what an entry is, or leads to, and whether it is a link that leaves the root."""
        if not entry.is_symlink():
            file, folder = entry.is_file(follow_symlinks=False), entry.is_dir(follow_symlinks=False)
            return "file" if file else "folder" if folder else "special", False
        try:
            mode = os.stat(path).st_mode
        except OSError:
            return "broken", False
        real = os.path.realpath(path)
        out = os.path.commonpath([real, self.real_root]) != self.real_root
        return "folder" if stat.S_ISDIR(mode) else "file" if stat.S_ISREG(mode) else "special", out


def check_class_names(names: Iterable[str], where: object) -> None:
    """Check that class names can be stored, printed and drawn: any text in one line.

    Raises:
        UserError: for a name that is not valid UTF-8, has a control character or a line break, is empty, or longer
            than `LONGEST_NAME`.
    """
    for name in names:
        if len(name) > LONGEST_NAME:
            raise UserError(
                f"{visible(where)}: a class name of {len(name):,} characters, '{visible(name[:40])}...'; shorten it"
            )
        if not name or not all(map(_plain, name)):
            utf8 = not any(unicodedata.category(character) == "Cs" for character in name)
            wrong = "is not UTF-8" if not utf8 else "has control characters or line breaks" if name else "is empty"
            raise UserError(f"{visible(where)}: a class name {wrong}: '{visible(name)}'; rename the class")


def in_order(names: Iterable[str]) -> list[str]:
    """Return class names sorted: by value if all of them are whole numbers, so that "10" follows "9", else as text."""
    names = list(names)
    numbers = all(name.isascii() and name.isdigit() for name in names)
    return sorted(names, key=lambda name: (int(name) if numbers else 0, name))


def split_folders(folders: Iterable[Path]) -> dict[str, Path]:
    """Return the folders that are called train, test or val, or the like, by split.

    Raises:
        UserError: for two folders of one split.
    """
    found: dict[str, Path] = {}
    for folder in folders:
        split = SPLITS.get(folder.name.lower())
        if split in found:
            raise UserError(
                f"{visible(folder.parent)}: both {found[split].name}/ and {folder.name}/ are there; delete or "
                "rename one of them"
            )
        if split is not None:
            found[split] = folder
    return found


def _plain(character: str) -> bool:
    return unicodedata.category(character) not in ("Cc", "Cs", "Zl", "Zp")


def _suffix(path: Path) -> str:
    suffix = path.suffix.lower()
    return suffix if suffix[1:].isalnum() and len(suffix) <= 10 else "without a suffix"
