import json

from PIL import Image

from kd.deploy import predict
from tests import processes
from tests.common import ROOT


def test_predict_classifies_an_image_with_a_finished_run(tmp_path, finished):
    Image.new("L", (8, 8), 77).save(tmp_path / "grey.png")
    done = processes.run(ROOT / "scripts" / "predict.py", finished / "run", "grey.png", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["image"] == "grey.png"
    assert answer["top"][0]["label"] in list("0123456789")


def test_predict_interrupted_ends_without_a_traceback(monkeypatch, capsys):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(predict, "load", interrupt)
    monkeypatch.setattr(predict, "end_with_the_pipe", lambda: None)  # for the whole process
    monkeypatch.setattr("sys.argv", ["predict.py", "run", "cat.png"])
    assert (predict.main(), *capsys.readouterr()) == (130, "", "")
