"""kd works as installed: from its wheel, in an empty directory, without the checkout."""

import os
import subprocess
import sys

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from PIL import Image

from kd.runs.results import collect
from tests.common import ROOT


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder with what the wheel installs, and an environment in which Python imports that and not the checkout."""
    folder = tmp_path_factory.mktemp("installed")
    pytest.importorskip("pip", reason="an environment without pip cannot build the wheel")

    def pip(*arguments):
        command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q", *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr

    pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, ROOT)
    (wheel,) = folder.glob("kd-*.whl")
    pip("install", "--no-deps", "--target", folder / "site", wheel)
    return folder / "site", {**os.environ, "PYTHONPATH": str(folder / "site")}


def kd_train(installed, tmp_path, *arguments):
    return installed_program(installed, "kd-train", tmp_path, *arguments)


def installed_program(installed, name, tmp_path, *arguments):
    site, environment = installed
    command = [sys.executable, str(site / "bin" / name), *arguments]
    return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)


def test_wheel_holds_the_packages_and_the_configuration(installed):
    site, environment = installed
    code = (
        "import kd, kd.app.compose as c, hydra_plugins.kd as p; print(kd.__file__, c.conf_dir(), p.__file__, sep='\\n')"
    )
    done = subprocess.run([sys.executable, "-c", code], env=environment, cwd=site, capture_output=True, text=True)
    assert [line.startswith(str(site)) for line in done.stdout.splitlines()] == [True] * 3, done.stderr
    shipped = {path.relative_to(site / "kd" / "conf") for path in (site / "kd" / "conf").rglob("*.yaml")}
    assert shipped == {path.relative_to(ROOT / "conf") for path in (ROOT / "conf").rglob("*.yaml")}
    page = {path.name for path in (site / "kd" / "report" / "html" / "static").iterdir()}
    assert page == {path.name for path in (ROOT / "kd" / "report" / "html" / "static").iterdir()} >= {"page.html"}
    assert not {path.name for path in site.iterdir()} & {"train.py", "tests", "scripts", "conf"}


def test_kd_train_distils_in_an_empty_directory(installed, tmp_path):
    small = (
        "data=digits",
        "data.source.image_size=16",
        "batch_size=256",
        "epochs=1",
        "teacher.scale=2",
        "student.scale=2",
        "trainer=cpu",
    )
    done = kd_train(installed, tmp_path, *small, "method=logits", "T=4")
    assert done.returncode == 0, done.stderr
    (record,) = collect([tmp_path / "runs"]).results
    assert (record.status, record.knobs["T"]) == ("done", 4)
    Image.new("L", (8, 8), 77).save(tmp_path / "grey.png")
    (run,) = (tmp_path / "runs").glob("*/*")
    classified = installed_program(installed, "kd-predict", tmp_path, str(run), "grey.png")
    assert (classified.returncode, classified.stdout.split()[:1]) == (0, ["grey.png"]), classified.stderr
    assert "kd-train" not in done.stderr
    # A sweep uses the plugins, which find the program again in every job.
    sweep = ("-m", *small, "method=standard,logits", "hydra.sweep.dir=sweep", "hydra/launcher=cohort")
    done = kd_train(installed, tmp_path, *sweep)
    assert done.returncode == 0, done.stderr
    assert [record.status for record in collect([tmp_path / "sweep"]).results] == ["done", "done"]


def test_kd_train_reports_a_mistake_in_one_line_with_its_own_name(installed, tmp_path):
    done = kd_train(installed, tmp_path, "data=digits", "data.epochs=3")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("error: there is no setting 'data.epochs'")
    assert "kd-train resume=RUN_DIR" in kd_train(installed, tmp_path, "--help").stdout


def test_lock_holds_a_version_within_the_range_of_every_dependency():
    project = pytest.importorskip("tomllib").loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    wanted = [Requirement(text) for text in (*project["dependencies"], *extras["dev"])]
    own = [requirement for requirement in wanted if requirement.name == "kd"]
    wanted += [Requirement(text) for requirement in own for extra in requirement.extras for text in extras[extra]]
    lines = (ROOT / ".ci" / "constraints.txt").read_text().splitlines()
    locked = dict(line.split("==") for line in lines if not line.startswith("#"))
    for requirement in (requirement for requirement in wanted if requirement not in own):
        name = canonicalize_name(requirement.name)
        assert name in locked, f"{name}: see docs/dependencies.md"
        assert requirement.specifier.contains(locked[name]), name
