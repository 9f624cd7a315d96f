"""Versions and commit, as records name them."""

import subprocess
from importlib.metadata import PackageNotFoundError

from kd.runs.provenance import git_revision, versions


def test_versions_accepts_a_package_that_is_not_installed(monkeypatch):
    monkeypatch.setattr("kd.runs.provenance.version", raise_not_found)
    assert versions().endswith("kd unknown")


def raise_not_found(name):
    raise PackageNotFoundError(name)


def test_git_revision_is_that_of_the_code_and_of_no_repository_around_it(tmp_path, monkeypatch):
    """As where kd is installed below another project, which ignores the folder."""

    def git(*arguments):
        who = ("-c", "user.name=a", "-c", "user.email=a@b")
        subprocess.run(["git", *who, *arguments], cwd=tmp_path, check=True, capture_output=True)

    (tmp_path / "kd").mkdir()
    (tmp_path / "kd" / "provenance.py").touch()
    (tmp_path / "paper.txt").touch()
    monkeypatch.setattr("kd.runs.provenance.__file__", str(tmp_path / "kd" / "provenance.py"))
    assert git_revision() == ""
    git("init")
    git("add", "paper.txt")
    git("commit", "-m", "paper")
    assert git_revision() == ""
    git("add", "kd")
    git("commit", "-m", "code")
    whole = git_revision()
    assert len(whole) >= 7
    (tmp_path / "kd" / "provenance.py").write_text("# changed")
    assert git_revision() == f"{whole}-dirty"
