import json

from PIL import Image

from tests import processes
from tests.common import ROOT


def test_predict_classifies_an_image_with_a_finished_run(tmp_path, finished):
    Image.new("L", (8, 8), 77).save(tmp_path / "grey.png")
    done = processes.run(ROOT / "scripts" / "predict.py", finished / "run", "grey.png", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["image"] == "grey.png"
    assert answer["top"][0]["label"] in list("0123456789")
