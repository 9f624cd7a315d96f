import csv
import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from kd.runs.predictions import Predictions, write
from kd.runs.results import Result
from kd.runs.results import write as write_result
from tests import processes
from tests.common import ROOT

SCRIPT = ROOT / "scripts" / "fidelity.py"
CLASSES = [f"c{i}" for i in range(10)]
LABELS = np.repeat(np.arange(10), 8)


def fidelity(*arguments, cwd, **env):
    return processes.run(SCRIPT, *arguments, cwd=cwd, env={**os.environ, **env})


@pytest.fixture
def runs(tmp_path):
    rng = np.random.default_rng(0)
    teacher = (rng.normal(0, 1, (80, 10)) + 3 * np.eye(10)[LABELS]).astype(np.float32)
    student = {"student": "cnn16", "student_params": 1_000, "dataset": "own", "epochs": 1, "status": "done"}
    by_teacher = {"teacher_params": 4_000, "teacher_id": "a", "knobs": {"T": 4.0}}
    for seed in range(3):
        for method, taught in (("standard", {}), ("logits", by_teacher)):
            directory = tmp_path / "runs" / f"{method}{seed}"
            directory.mkdir(parents=True)
            logits = rng.normal(0, 1, (80, 10)) + 2 * np.eye(10)[LABELS] + (teacher if taught else 0)
            write(
                Predictions(LABELS, logits.astype(np.float32), teacher if taught else None),
                directory / "predictions.npz",
            )
            write_result(Result(method=method, seed=seed, **student, **taught), directory / "result.json")
    return tmp_path


def weigh(directory, size=16):
    metadata = {"classes": json.dumps(CLASSES), "image_size": json.dumps(size)}
    save_file({"w": np.zeros(1, np.float32)}, directory / "student.safetensors", metadata)


def tree(root, order=1):
    """Ten classes of images as files; the test images in the runs' order, or one image less."""
    rng = np.random.default_rng(1)
    for split, images in (("train", 1), ("test", 8)):
        for name in CLASSES:
            here = root / split / name
            here.mkdir(parents=True)
            for i in range(images if order == 1 or name != "c0" else 7):
                Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(here / f"{i}.png")


def test_fidelity_writes_page_table_and_pictures(runs):
    done = fidelity("runs", "--out", "page", cwd=runs)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    names = ["fidelity.md", "fidelity.csv", "fidelity_bars.png", "fidelity_calibration.png", "fidelity_classes.png"]
    assert done.stdout.splitlines() == [str(Path("page", name)) for name in names]
    page = (runs / "page" / "fidelity.md").read_text("utf-8")
    assert re.search(r"^\| logits \| agreement with the teacher, points \| \+.* \| 3 \| .* \| higher \|$", page, re.M)
    assert "--images ROOT" in page
    assert "80 test images" in page
    with open(runs / "page" / "fidelity.csv", newline="") as file:
        lines = {(line["run"], line["figure"]): line for line in csv.DictReader(file)}
    agreement = lines["logits", "agreement"]
    assert f"| logits | 3 | {100 * float(lines['logits', 'accuracy']['mean']):.2f} ± " in page
    assert float(agreement["difference"]) == pytest.approx(
        float(agreement["mean"]) - float(lines["standard", "agreement"]["mean"])
    )
    assert lines["teacher", "accuracy"]["std"] == ""
    assert lines["logits", "accuracy of class 3"]["verdict"].startswith("too few errors (")  # of eight images


def test_fidelity_names_own_classes_without_images(runs):
    weigh(runs / "runs" / "logits0")
    assert fidelity("runs", cwd=runs, PYTHONIOENCODING="ascii", LANG="C").returncode == 0
    page = (runs / "runs" / "report" / "fidelity.md").read_text("utf-8")
    assert "| c9 | 8 |" in page
    assert "class 9" not in page


def test_fidelity_shows_own_images_and_class_names(runs):
    """Images of a folder, at the size that the runs had, not CIFAR-10's."""
    tree(runs / "data")
    weigh(runs / "runs" / "logits0")
    done = fidelity("runs", "--images", "data", cwd=runs)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == str(Path("runs", "report", "fidelity_images_logits.png"))
    page = (runs / "runs" / "report" / "fidelity.md").read_text("utf-8")
    assert "](fidelity_images_logits.png)" in page
    assert "| c9 |" in page


def test_fidelity_refuses_other_images(runs, one_line):
    tree(runs / "data", order=-1)
    assert "tested on, their labels differ" in one_line(fidelity("runs", "--images", "data", cwd=runs))
    tree(runs / "more")
    weigh(runs / "runs" / "logits0")
    for folder in (runs / "more").glob("*/c9"):
        folder.rename(folder.with_name("cat"))
    assert "tested on, their classes differ" in one_line(fidelity("runs", "--images", "more", cwd=runs))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["missing"], "missing: no such directory"),
        (["empty"], "empty: no result.json in it or below it"),
        (["runs", "--baseline", "nobody"], "give one of: 'standard', 'logits'"),
        (["runs", "--images", "missing"], "missing: no such directory"),
        (["runs", "--out", "taken"], "cannot be written to taken"),
    ],
)
def test_fidelity_answers_a_mistake_in_one_line(runs, arguments, message, one_line):
    (runs / "empty").mkdir()
    (runs / "taken").touch()
    assert message in one_line(fidelity(*arguments, cwd=runs))


def test_fidelity_help_has_an_example(tmp_path):
    done = fidelity("--help", cwd=tmp_path)
    assert done.returncode == 0
    assert "python scripts/fidelity.py multirun/final --images data" in done.stdout
    missing = fidelity(cwd=tmp_path)
    assert (missing.returncode, missing.stderr) == (
        1,
        "fidelity.py: the following arguments are required: DIR; see --help\n",
    )
