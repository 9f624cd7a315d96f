"""Exported files: what they compute, what they say of themselves, and what is refused."""

import json
import os
import zipfile

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from kd.deploy.check import check, own_labels
from kd.deploy.export import (
    OPSET,
    Deployed,
    onnx_runner,
    required,
    to_onnx,
    to_torch_export,
    torch_export_runner,
)
from kd.deploy.quantise import to_int8
from kd.errors import UserError
from kd.inference import Predictor, load
from kd.models.output import Output
from tests.common import ROOT
from tests.deploy.common import CLASSES, weights

FACTS = {"classes": CLASSES, "mean": [0.5, 0.25, 0.125]}


@pytest.fixture(scope="module")
def predictor(tmp_path_factory):
    return load(weights(tmp_path_factory.mktemp("weights") / "student.safetensors"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory, predictor):
    """The network as ONNX with preprocessing and without, and as torch.export's archive."""
    folder = tmp_path_factory.mktemp("exported")
    to_onnx(Deployed(predictor, True), folder / "pixels.onnx", FACTS)
    to_onnx(Deployed(predictor, False), folder / "normalised.onnx", FACTS)
    to_torch_export(Deployed(predictor, True), folder / "pixels.pt2", FACTS)
    return folder


def pixels(n):
    return torch.randint(256, (n, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(n))


@pytest.mark.parametrize("n", [1, 5, 300])
def test_exported_files_compute_what_the_network_does_for_any_batch(folder, predictor, n):
    expected = predictor(predictor.preprocess(pixels(n))).logits.detach()
    images = pixels(n).permute(0, 2, 3, 1)
    for run in (onnx_runner(folder / "pixels.onnx", threads=1), torch_export_runner(folder / "pixels.pt2")):
        np.testing.assert_allclose(run(images), expected.softmax(1), atol=1e-5)
    mean, std = (torch.tensor(values)[:, None, None] for values in (predictor.mean, predictor.std))
    logits = onnx_runner(folder / "normalised.onnx")((pixels(n) / 255 - mean) / std)
    np.testing.assert_allclose(logits, expected, atol=1e-4)


def test_onnx_file_is_one_file_that_describes_itself(folder):
    assert sorted(os.listdir(folder)) == ["normalised.onnx", "pixels.onnx", "pixels.pt2"]
    model = onnx.load(folder / "pixels.onnx")
    onnx.checker.check_model(model, full_check=True)
    assert {prop.key: json.loads(prop.value) for prop in model.metadata_props} == FACTS
    assert [opset.version for opset in model.opset_import if not opset.domain] == [OPSET]
    (given,), (made,) = model.graph.input, model.graph.output
    assert (given.name, given.type.tensor_type.elem_type) == ("images", onnx.TensorProto.UINT8)
    assert [d.dim_value for d in given.type.tensor_type.shape.dim] == [0, 8, 8, 3]  # 0: any number
    assert made.name == "probabilities"
    assert not any(node.op_type == "BatchNormalization" for node in model.graph.node)


@pytest.mark.parametrize("name", ["pixels.onnx", "normalised.onnx", "pixels.pt2"])
def test_exported_file_names_no_path_of_this_machine(folder, name):
    file = folder / name
    archive = zipfile.ZipFile(file) if name.endswith(".pt2") else None
    parts = [archive.read(part) for part in archive.namelist()] if archive else [file.read_bytes()]
    assert not any(path.encode() in part for part in parts for path in (str(ROOT), "site-packages"))


def test_committed_student_runs_and_describes_itself():
    file = ROOT / "docs" / "results" / "weights" / "cnn16_logits_int8.onnx"
    probabilities = onnx_runner(file)(torch.randint(256, (3, 32, 32, 3), dtype=torch.uint8))
    assert probabilities.shape == (3, 10)
    np.testing.assert_allclose(probabilities.sum(1), 1, atol=1e-5)
    facts = {prop.key: json.loads(prop.value) for prop in onnx.load(file).metadata_props}
    assert (facts["classes"][3], facts["dataset"], facts["license"]) == ("cat", "CIFAR-10 (JPEG)", "mit")


def test_torch_export_archive_holds_the_facts(folder):
    extra = {"kd.json": ""}
    with open(folder / "pixels.pt2", "rb") as file:
        torch.export.load(file, extra_files=extra)
    assert json.loads(extra["kd.json"]) == FACTS


def unoptimised(file):
    """Return ONNX Runtime with the file's operations as they are written: a convolution of floats, then rounding."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    return lambda images: session.run(None, {"images": images.numpy()})[0]


def test_int8_keeps_predictions_and_metadata_and_is_integer_arithmetic(predictor, tmp_path):
    deployed = Deployed(predictor, True)
    to_int8(deployed, tmp_path / "int8.onnx", FACTS, pixels(200))
    model = onnx.load(tmp_path / "int8.onnx")
    assert {prop.key: json.loads(prop.value) for prop in model.metadata_props} == FACTS
    arrays = {array.name: array for array in model.graph.initializer}
    convolutions = [node for node in model.graph.node if node.op_type == "Conv"]
    producers = {output: node for node in model.graph.node for output in node.output}
    for convolution in convolutions:
        weight = producers[convolution.input[1]]
        assert weight.op_type == "DequantizeLinear"
        quantised, scale = arrays[weight.input[0]], arrays[weight.input[1]]
        assert quantised.data_type == onnx.TensorProto.INT8
        assert list(scale.dims) == [quantised.dims[0]]  # of every channel
        largest = abs(onnx.numpy_helper.to_array(quantised).astype(int)).max()
        assert 2 * 255 * largest < 2**15  # two products with an activation, in 16 bits
    assert convolutions
    found = check(onnx_runner(tmp_path / "int8.onnx"), deployed, predictor, pixels(500), torch.zeros(500).long())
    assert 1e-4 < found.largest < 0.1
    in_floats = unoptimised(tmp_path / "int8.onnx")(pixels(500).permute(0, 2, 3, 1))
    in_integers = onnx_runner(tmp_path / "int8.onnx")(pixels(500).permute(0, 2, 3, 1))
    exact = predictor(predictor.preprocess(pixels(500))).logits.detach().softmax(1)
    second, first = exact.sort(1).values[:, -2:].numpy().T
    same, lead = (
        exact.numpy().argmax(1) == in_integers.argmax(1),
        first - second,
    )  # of an untrained network
    assert same[lead > 0.005].mean() > 0.95
    assert same[lead > 0.02].all()
    assert (lead > 0.02).mean() > 0.5
    assert (in_floats.argmax(1) == in_integers.argmax(1)).mean() > 0.98
    np.testing.assert_allclose(in_floats, in_integers, atol=0.02)  # no sum beyond its bits, on any processor


def test_an_activation_s_range_is_averaged_over_batches_so_that_one_image_does_not_set_it(predictor, tmp_path):
    black = torch.zeros(64, 3, 8, 8, dtype=torch.uint8)
    to_int8(Deployed(predictor, True), tmp_path / "int8.onnx", FACTS, torch.cat([black, 255 - black]))
    graph = onnx.load(tmp_path / "int8.onnx").graph
    first = next(node for node in graph.node if node.op_type == "QuantizeLinear" and "images" not in node.input)
    scale = next(onnx.numpy_helper.to_array(value) for value in graph.initializer if value.name == first.input[1])
    inputs = [predictor.preprocess(images) for images in (black, 255 - black)]
    low, high = [x.min().item() for x in inputs], [x.max().item() for x in inputs]
    assert scale == pytest.approx((sum(high) / 2 - sum(low) / 2) / 255, rel=1e-3)
    assert scale < 0.9 * (max(high) - min(low)) / 255


def test_check_counts_what_a_file_gets_wrong(predictor):
    """A runner that is wrong on purpose for one image in four."""
    deployed, images = Deployed(predictor, True), pixels(400)
    labels = predictor(predictor.preprocess(images)).logits.argmax(1)
    labels[:40] = (labels[:40] + 1) % 3

    def wrong(x):
        output = deployed(x).numpy()
        output[::4] = np.roll(output[::4], 1, axis=1)
        return output

    found = check(wrong, deployed, predictor, images, labels)
    assert found.same == 0.75
    assert found.reference_right.mean() == 0.9
    assert found.change == pytest.approx(found.accuracy - 0.9)
    low, high = found.change_interval
    assert low < found.change < high < 0
    with pytest.raises(UserError, match=r"returns \(256, 2\) for 256 images"):
        check(lambda x: deployed(x).numpy()[:, :2], deployed, predictor, images, labels)


def test_own_labels_follow_the_networks_order_of_classes(predictor):
    labels = own_labels(torch.tensor([0, 1, 2, 2]), ("eel", "cat", "=dog"), predictor)
    assert [CLASSES[label] for label in labels] == ["eel", "cat", "=dog", "=dog"]
    with pytest.raises(UserError, match="the network has no fox, a class of the images"):
        own_labels(torch.tensor([0]), ("cat", "fox"), predictor)
    with pytest.raises(UserError, match="the network has 3 classes, the images 1"):
        own_labels(torch.tensor([0]), ("cat",), predictor)


class Peculiar(nn.Module):
    """Its shape depends on the pixels."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(1, 3)

    def forward(self, x):
        bright = x[x > 0.5][:4]
        embedding = bright.sum().expand(len(x), 1) if bright.sum().item() > 0 else x.mean((1, 2, 3))[:, None]
        return Output(self.head(embedding), (), embedding)


@pytest.mark.parametrize("write", [to_onnx, to_torch_export])
def test_network_that_cannot_be_traced_is_refused_in_a_line(tmp_path, write):
    deployed = Deployed(Predictor(Peculiar(), ["a", "b", "c"], 8, [0.5] * 3, [0.2] * 3), False)
    with pytest.raises(UserError, match=r"^a network of Peculiar cannot be exported .*GuardOnDataDependent") as error:
        write(deployed, tmp_path / "file", {})
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


def test_missing_extra_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    with pytest.raises(UserError, match=r"needs onnxruntime, which is not installed: pip install -e '.\[export\]'"):
        required("onnxruntime")
