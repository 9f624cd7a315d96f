import json

import numpy as np
import pytest
import torch

from kd.deploy.evaluate import Evaluation, evaluate, most_confused, store_temperature
from kd.errors import UserError
from kd.inference import load
from tests.deploy.common import CLASSES, weights


@pytest.fixture
def made():
    """Six images of three classes, and logits by hand: four are right."""
    logits = np.log(np.array([[8, 1, 1], [6, 3, 1], [1, 8, 1], [1, 1, 8], [1, 8, 1], [7, 2, 1]]) / 10)
    return Evaluation(("a", "b", "c"), np.array([0, 0, 1, 2, 2, 2]), logits.astype(np.float32))


def test_evaluation_has_the_figures_of_a_table_by_hand(made):
    assert made.accuracy == pytest.approx(4 / 6)
    assert made.balanced_accuracy == pytest.approx((1 + 1 + 1 / 3) / 3)
    assert made.confusion.tolist() == [[2, 0, 0], [0, 1, 0], [1, 1, 1]]
    assert made.nll == pytest.approx(-np.log([0.8, 0.6, 0.8, 0.8, 0.1, 0.1]).mean(), rel=1e-5)
    low, high = made.interval
    # Wilson's interval, computed from its formula for 4 of 6
    z, p, n = 1.959964, 4 / 6, 6
    middle, half = p + z * z / (2 * n), z * np.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    assert (low, high) == pytest.approx([(middle + sign * half) / (1 + z * z / n) for sign in (-1, 1)], rel=1e-4)
    assert most_confused(made) == [None, None, ("a", pytest.approx(1 / 3))]
    assert json.loads(json.dumps(made.to_json()))["confusion"][2] == [1, 1, 1]


def test_evaluate_follows_the_order_of_classes_of_the_images(tmp_path):
    network = load(weights(tmp_path / "student.safetensors"))
    images = torch.randint(256, (50, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    own = network(network.preprocess(images)).logits.argmax(1)
    assert len(set(own.tolist())) > 1
    order = ("eel", "cat", "=dog")
    labels = torch.tensor([order.index(CLASSES[label]) for label in own])
    assert evaluate(network, images, labels, order).accuracy == 1.0
    assert evaluate(network, images, own, order).accuracy < 0.5
    with pytest.raises(UserError, match="the network has no fox"):
        evaluate(network, images, labels, ("eel", "cat", "fox"))


def test_stored_temperature_is_used_by_load_and_lowers_the_nll(tmp_path):
    file = weights(tmp_path / "student.safetensors")
    images = torch.randint(256, (300, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    network = load(file)
    labels = network(network.preprocess(images)).logits.argmax(1)
    labels[::3] = (labels[::3] + 1) % 3  # some must be wrong, or no temperature is the best
    before = evaluate(network, images, labels, CLASSES)
    value = store_temperature(file, before, "these images")
    calibrated = load(tmp_path)
    after = evaluate(calibrated, images, labels, CLASSES)
    assert calibrated.temperature == value != 1
    assert after.nll < before.nll
    assert (after.accuracy, after.ece < before.ece) == (before.accuracy, True)
    x = calibrated.preprocess(images[:1])
    expected = torch.softmax(calibrated(x).logits / value, 1).max()
    assert calibrated.predict(images[0])[0].probability == pytest.approx(expected.item())


@pytest.mark.parametrize(
    "text", ["{}", "[]", '{"temperature": -1.0}', '{"temperature": "2"}', '{"temperature": NaN}', "{"]
)
def test_damaged_temperature_is_refused(tmp_path, text):
    file = weights(tmp_path / "student.safetensors")
    (tmp_path / "student.temperature.json").write_text(text)
    with pytest.raises(UserError, match=r"student\.temperature\.json: no temperature in it"):
        load(file)
