import json
import logging
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from kd.inference import load
from kd.runs.results import read
from scripts import export
from tests import processes
from tests.common import ROOT

EXAMPLE = ROOT / "examples" / "without_torch.py"


@pytest.fixture
def program(on_a_run, monkeypatch):
    monkeypatch.setattr(logging.root, "handlers", [])  # those of runs in this process before
    monkeypatch.setitem(sys.modules, "executorch", None)  # also where it is installed
    return on_a_run(export)


def test_export_script_writes_a_file_and_compares_it_on_the_runs_own_images(tmp_path, finished):
    arguments = (finished / "run", "--preprocessing", "--out", "student.onnx")
    done = processes.run(ROOT / "scripts" / "export.py", *arguments, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    file, same, accuracy = done.stdout.splitlines()
    assert file.endswith("uint8 pixels (batch, 16, 16, 3) -> probabilities (batch, 10)")
    assert same.startswith("digits, 359 test images: 100.00% the same prediction as PyTorch")
    record = read(finished / "run" / "result.json")
    assert accuracy.startswith(f"accuracy of the file {record.test_acc:.2%} [")
    folder = tmp_path / "photos"
    folder.mkdir()
    photos(folder)
    (folder / "notes.txt").write_text("no image")
    (folder / "older").mkdir()
    without = f"import runpy, sys; sys.modules |= dict(torch=None, kd=None); runpy.run_path({str(EXAMPLE)!r})"
    command = [sys.executable, "-c", without, "student.onnx", "photos"]
    shown = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    lines, predictor = shown.stdout.splitlines(), load(finished / "run")
    assert len(lines) == 5, shown.stderr
    for line, path in zip(lines, sorted(folder.glob("?.*")), strict=True):
        (best,) = predictor.predict(path)
        name, label, share = re.fullmatch(r"(.*): (.*), (\d+\.\d)%", line).groups()
        assert (name, label) == (path.name, best.label)
        assert float(share) == pytest.approx(100 * best.probability, abs=0.15)


def photos(folder):
    """Images as they lie in folders: RGB, turned by EXIF, transparent, grey with 16 bits, and with a palette."""
    rows = np.linspace(0, 255, 30 * 20).reshape(30, 20).astype(np.uint8)
    picture = Image.fromarray(np.stack([rows, rows.T.reshape(30, 20), 255 - rows], axis=2))
    picture.save(folder / "a.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # lies on its side
    picture.save(folder / "b.jpg", exif=exif, quality=95)
    alpha = Image.fromarray(np.where(np.arange(30)[:, None] < 15, 0, np.full((30, 20), 255)).astype(np.uint8))
    clear = picture.copy()
    clear.putalpha(alpha)
    clear.save(folder / "c.png")
    Image.fromarray(np.linspace(0, 65535, 600).reshape(30, 20).astype(np.uint16)).save(folder / "d.png")
    picture.quantize(16).save(folder / "e.gif")


def test_export_writes_int8_and_refuses_what_loses_too_much(program, monkeypatch, tmp_path):
    arguments = ("run", "--int8", "data=digits", "data.source.image_size=16", "--calibrate", "200")
    code, printed, errors = program(*arguments)
    assert (code, errors) == (0, "")
    assert "int8 changes it by " in printed
    assert (tmp_path / "run" / "student.int8.onnx").is_file()
    monkeypatch.setattr(export, "MOST_LOST", -1.0)  # nothing is good enough
    code, printed, errors = program(*arguments, "--out", "other.onnx")
    assert (code, printed) == (1, "")
    assert "points on 1,238 training images that it was not calibrated on; --calibrate more images" in errors
    assert not (tmp_path / "other.onnx").exists()
    assert program(*arguments, "--out", "other.onnx", "--force")[0] == 0


def test_export_writes_half_the_weights_with_their_temperature(program, tmp_path):
    temperature = tmp_path / "run" / "student.temperature.json"
    temperature.write_text('{"temperature": 2.0}')
    code, printed, errors = program("run", "data=digits", "--format", "safetensors", "--bf16")
    assert (code, errors) == (0, "")
    assert "student.bf16.safetensors: " in printed
    half = load(tmp_path / "run" / "student.bf16.safetensors")
    assert half.temperature == 2
    temperature.unlink()
    assert program("run", "--format", "safetensors", "--bf16", "--overwrite")[0] == 0
    assert load(tmp_path / "run" / "student.bf16.safetensors").temperature == 1
    sizes = [(tmp_path / "run" / f"student{kind}.safetensors").stat().st_size for kind in ("", ".bf16")]
    assert 0.4 < sizes[1] / sizes[0] < 0.7


def test_export_refuses_a_file_that_computes_something_else(program, tmp_path, monkeypatch):
    import kd.deploy.export as forms

    def wrong(path):
        return lambda images: np.eye(10, dtype=np.float32)[np.arange(len(images)) % 10]

    monkeypatch.setattr(forms, "onnx_runner", wrong)
    code, printed, errors = program("run", "data=digits")
    assert (code, printed, errors.count("\n")) == (1, "", 1)
    assert "a network of CNN was exported, but the file classifies only " in errors
    assert not (tmp_path / "run" / "student.onnx").exists()


@pytest.mark.parametrize(
    ("arguments", "answer"),
    [
        (("run", "--int8", "--format", "torch_export"), "--int8 goes with --format onnx, not torch_export"),
        (("run", "--out", "a.pb"), "--out a.pb: a file of onnx ends in .onnx"),
        (("run", "--out", "no/a.onnx"), "no folder no; see --help"),
        (("run", "--out", "there.onnx"), "there.onnx is there; give another --out, or --overwrite"),
        (("run", "seed=1"), "seed=1: only settings of the data are taken here"),
        (("run", "data.rot=x"), "data.rot"),
        (("run", "--int8", "--calibrate", "1438"), "--calibrate 1438: there are 1,438 training images"),
        (("alone.safetensors",), "no record of a run beside alone.safetensors; name the images by data=NAME"),
        (("nowhere",), "no weights at nowhere"),
        (("run", "--format", "tflite"), "invalid choice"),
        (("run", "--bf16"), "--bf16 goes with --format safetensors, not onnx"),
        (("run", "--format", "safetensors"), "student.safetensors is there; give another --out, or --overwrite"),
        (("run", "--format", "safetensors", "--overwrite"), "student.safetensors is what is to be exported; give"),
        (("run/no/such",), "no weights at run/no/such"),
        (("run", "--format", "safetensors", "--preprocessing"), "--preprocessing does not go with"),
        (("run", "--format", "executorch"), "this needs executorch, which is not installed: pip install"),
        (("run", "--out", "/proc/a.onnx"), "/proc"),
    ],
)
def test_export_refuses_in_a_line(program, tmp_path, arguments, answer):
    (tmp_path / "there.onnx").touch()
    shutil.copy("run/student.safetensors", "alone.safetensors")
    before = sorted(path.name for path in tmp_path.rglob("*"))
    code, printed, errors = program(*arguments)
    assert (code, printed, errors.count("\n")) == (1, "", 1)
    assert answer in errors
    assert sorted(path.name for path in tmp_path.rglob("*")) == before


@pytest.mark.parametrize("changes", [{"command": "data=digits data.source._target_=os.system"}, {"config_dir": "mine"}])
def test_export_takes_no_code_from_a_record(program, tmp_path, changes):
    group = tmp_path / "mine" / "data"
    group.mkdir(parents=True)
    (group / "digits.yaml").write_text("source: {_target_: pathlib.Path.touch, self: ran}")  # would be called
    record = tmp_path / "run" / "result.json"
    record.write_text(json.dumps({**json.loads(record.read_text()), **changes}))
    code, _, errors = program("run")
    assert (code, errors.count("\n")) == (1, 1)
    assert "which may run code; name the images by data=NAME data.root=DIR" in errors
    assert not (tmp_path / "ran").exists()


def test_export_interrupted_ends_without_a_traceback(program, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(export, "_writing", interrupt)
    assert program("run") == (130, "", "")


def test_export_of_logits_tells_of_the_temperature(program, tmp_path):
    onnx = pytest.importorskip("onnx")
    (tmp_path / "run" / "student.temperature.json").write_text('{"temperature": 2.5}')
    code, printed, errors = program("run", "--overwrite")
    assert (code, errors) == (0, "")
    assert "divide its logits by the temperature, 2.5, which is in the file's metadata" in printed
    facts = {entry.key: entry.value for entry in onnx.load(tmp_path / "run" / "student.onnx").metadata_props}
    assert float(facts["temperature"]) == 2.5
    code, printed, _ = program("run", "--overwrite", "--preprocessing")  # probabilities, which have it
    assert code == 0
    assert "temperature" not in printed
