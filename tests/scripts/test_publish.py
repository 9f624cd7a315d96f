import shutil
from dataclasses import replace

import pytest

import kd
from kd.errors import UserError
from kd.runs.results import read, write
from scripts import publish as program
from scripts.publish import _in_override, _in_sentence, publish, without_folders
from tests import processes
from tests.common import ROOT


def test_publish_makes_a_folder_that_loads(tmp_path, finished):
    program = ROOT / "scripts" / "publish.py"
    done = processes.run(program, finished / "run", "--to", "out", "--license", "mit", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "README.md",
        "result.json",
        "student.safetensors",
    ]
    assert "hf upload USER/NAME out ." in done.stdout
    assert kd.load(tmp_path / "out").classes == tuple("0123456789")
    record = read(tmp_path / "out" / "result.json")
    assert (record.cwd, record.test_acc) == ("", read(finished / "run" / "result.json").test_acc)
    again = processes.run(program, finished / "run", "--to", "out", cwd=tmp_path)
    assert (again.returncode, again.stderr) == (1, "publish.py: out is there and not empty; name a new folder\n")


def test_publish_takes_every_form_that_was_exported(tmp_path, finished):
    shutil.copytree(finished / "run", tmp_path / "run")
    forms = {"student.onnx", "student.int8.onnx", "student.pt2", "student.pte", "student.bf16.safetensors"}
    beside = {"student.temperature.json", "student.bf16.temperature.json"}
    for name in forms | beside:
        (tmp_path / "run" / name).write_text('{"temperature": 2.0}' if name.endswith(".json") else name)
    published = {path.name for path in publish(tmp_path / "run", tmp_path / "out", None).iterdir()}
    assert published == forms | beside | {"README.md", "result.json", "student.safetensors"}
    text = (tmp_path / "out" / "README.md").read_text()
    assert "student.bf16.safetensors, student.int8.onnx, student.onnx, student.pt2, student.pte" in text
    assert "| negative log-likelihood, before its logits are divided by 2 |" in text


def test_publish_that_fails_leaves_nothing_that_the_next_one_would_refuse(tmp_path, finished, monkeypatch):
    def full(*_):
        raise OSError("No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(program, "write", full)
        with pytest.raises(OSError, match="No space"):
            publish(finished / "run", tmp_path / "out", None)
    publish(finished / "run", tmp_path / "out", None)


def test_publish_refuses_what_is_no_whole_run(tmp_path, finished):
    with pytest.raises(UserError, match="give the directory of a run"):
        publish(finished / "run" / "student.safetensors", tmp_path / "out", None)
    shutil.copytree(finished / "run", tmp_path / "run")
    weights = tmp_path / "run" / "student.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(UserError, match="is not a whole safetensors file"):
        publish(tmp_path / "run", tmp_path / "out", None)
    weights.unlink()
    with pytest.raises(UserError, match="no weights in"):
        publish(tmp_path / "run", tmp_path / "out", None)
    assert not (tmp_path / "out").exists()


def test_publish_tells_nothing_of_the_folders_of_this_machine(tmp_path, finished):
    shutil.copytree(finished / "run", tmp_path / "run")
    record = read(tmp_path / "run" / "result.json")
    record = replace(
        record,
        command="data=folder 'data.root=/home/jdoe/my images' 'teacher_weights=/mnt/lab 7/t.pt' T=4.0",
        cwd="/home/jdoe/secret work",
        variant="data.root=/home/jdoe/my images",
        knobs={**record.knobs, "maps": "/home/jdoe/maps.pt", "layers": ["/home/jdoe/a", "b/c"]},
        warnings=[
            "/home/jdoe/secret work/runs/t.pt does not say what it was trained on",
            "teacher_weights=/mnt/lab 7/t.pt comes from 30 images/s, of other classes",
        ],
    )
    write(record, tmp_path / "run" / "result.json")
    folder = publish(tmp_path / "run", tmp_path / "out", None)
    published = read(folder / "result.json")
    assert published.command == "data=folder 'data.root=my images' teacher_weights=t.pt T=4.0"
    assert (published.cwd, published.variant) == ("", "data.root=my images")
    assert (published.knobs["maps"], published.knobs["layers"]) == ("maps.pt", ["a", "b/c"])
    assert published.warnings == [
        "t.pt does not say what it was trained on",
        "teacher_weights=t.pt comes from 30 images/s, of other classes",
    ]
    for name in ("result.json", "README.md"):
        text = (folder / name).read_text()
        assert "t.pt" in text
        assert not [folder for folder in ("jdoe", "secret", "/mnt", "lab 7") if folder in text]


@pytest.mark.parametrize(
    ("override", "published"),
    [
        ("data.root='/home/jdoe/[v2]/my images/'", "data.root='my images'"),
        ("data.also_test=[/mnt/a b/c, '/mnt/d,e/f', ~/g/h]", "data.also_test=[c, 'f', h]"),
        ("student.settings={weights: /mnt/a/b, width: 3/4}", "student.settings={weights: b, width: 3/4}"),
        ("hydra.run.dir=~/runs/x", "hydra.run.dir=x"),
        ("~hydra/launcher=slurm", "~hydra/launcher=slurm"),
        ("recipe/optimizer=adamw", "recipe/optimizer=adamw"),
        ("data.root=../images/x", "data.root=../images/x"),
        ("logger.url=https://example.com/a/b", "logger.url=https://example.com/a/b"),
        ("logger.url=file:///home/jdoe/b", "logger.url=b"),
        ("data.root=/", "data.root=/"),
    ],
)
def test_publish_keeps_the_last_part_of_a_path_in_a_setting(override, published):
    assert _in_override(override) == published


def test_publish_keeps_what_is_no_path_in_a_sentence():
    told = 'see https://example.com/a/b, "/mnt/a/b" and (~/c/d); 30 images/s, 2/3, and/or, a / b, ../e/f'
    assert _in_sentence(told) == 'see https://example.com/a/b, "b" and (d); 30 images/s, 2/3, and/or, a / b, ../e/f'


def test_publish_of_a_run_at_the_root_keeps_its_sentences(finished):
    record = replace(read(finished / "run" / "result.json"), cwd="/", warnings=["of two :a/b, /c/d"])
    assert without_folders(record).warnings == ["of two :a/b, d"]


def test_publish_interrupted_ends_without_a_traceback(monkeypatch, capsys):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(program, "publish", interrupt)
    monkeypatch.setattr("sys.argv", ["publish.py", "run", "--to", "out"])
    assert (program.main(), *capsys.readouterr()) == (130, "", "")
