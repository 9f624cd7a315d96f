import io
import json
import sys
import weakref

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from safetensors.torch import save_file

from kd.data.augment import Augment
from kd.data.decode import decode
from kd.data.module import DataModule
from kd.errors import UserError
from kd.inference import Predictor, load, read_image
from kd.models.cnn import CNN
from kd.runs.results import read
from kd.runs.weights import load_weights, save_weights
from tests.common import ROOT

FACTS = {
    "model": {
        "_target_": "kd.models.cnn.CNN",
        "scale": 2,
        "activation": "relu",
        "conv_dropout": 0.5,
        "head_dropout": 0.5,
    },
    "num_classes": 3,
    "image_size": 8,
    "classes": ["cat", "dog", "eel"],
    "mean": [0.5, 0.25, 0.125],
    "std": [0.5, 0.25, 0.2],
}


def network():
    torch.manual_seed(0)
    return CNN(2, 3, 8, "relu", 0.5, 0.5)


def saved(path, **changes):
    facts = {name: value for name, value in {**FACTS, **changes}.items() if value is not None}
    save_weights(network(), path, facts)
    return path


def pixels(*shape):
    return torch.randint(256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def test_load_normalises_a_channel_without_contrast_as_in_training(tmp_path, noise):
    images = noise()
    images.train_x[:, 2] = 255
    mean, std = images.mean_std
    assert std[2] == 1 / 255
    batch = next(iter(DataModule(images, 0, 0, Augment(0, False, 0), batch_size=20, seed=0).train_dataloader()))
    assert batch.x[:, 2].abs().max() < 1e-4
    shown = load(saved(tmp_path / "student.safetensors", mean=mean, std=std)).preprocess(images.train_x)
    torch.testing.assert_close(shown[batch.index], batch.x)


@pytest.mark.parametrize("name", ["student.safetensors", "teacher.safetensors"])
def test_load_rebuilds_the_network_of_a_run_or_a_file(tmp_path, name):
    path = saved(tmp_path / name)
    x = torch.randn(4, 3, 8, 8)
    for source in (path, str(path), tmp_path):
        predictor = load(source)
        assert torch.equal(predictor(x).logits, network().eval()(x).logits)
        assert predictor(x).features[0].shape == (4, 2, 8, 8)
        assert not predictor.training
        assert (predictor.classes, predictor.image_size) == (("cat", "dog", "eel"), 8)
        assert (predictor.mean, predictor.std) == ((0.5, 0.25, 0.125), (0.5, 0.25, 0.2))


def test_load_refuses_damaged_and_quantised_weights(tmp_path):
    """As for a teacher; see `kd.runs.weights.fill`."""
    tensors, metadata = load_weights(saved(tmp_path / "w"))
    texts = {name: json.dumps(value) for name, value in metadata.items()}
    name = "classifier.weight" if "classifier.weight" in tensors else sorted(tensors)[0]
    for value, message in (
        (torch.full_like(tensors[name], torch.nan), f"is useless: its {name} holds NaN"),
        (tensors[name].to(torch.int8), f": {name} is int8"),
    ):
        save_file({**tensors, name: value}, tmp_path / "w", texts)
        with pytest.raises(UserError, match=f"^{tmp_path / 'w'} ?{message}"):
            load(tmp_path / "w")


def test_load_prefers_the_student(tmp_path):
    saved(tmp_path / "student.safetensors", classes=["a", "b", "c"])
    saved(tmp_path / "teacher.safetensors")
    assert load(tmp_path).classes == ("a", "b", "c")


def test_weights_of_a_finished_run_can_be_used(finished):
    predictor = load(finished / "run")
    images = torch.zeros(5, 3, 20, 20, dtype=torch.uint8)
    assert [prediction.label in predictor.classes for prediction in predictor.predict(images)] == [True] * 5


def test_predict_returns_the_most_probable_class(tmp_path):
    predictor = load(saved(tmp_path / "student.safetensors"))
    images = pixels(7, 3, 8, 8)
    mean, std = (torch.tensor(FACTS[name])[None, :, None, None] for name in ("mean", "std"))
    probabilities = network().eval()((images / 255 - mean) / std).logits.softmax(1)
    for mine, expected in zip(predictor.predict(images), probabilities, strict=True):
        assert mine.label == FACTS["classes"][expected.argmax()]
        assert mine.probability == pytest.approx(expected.max().item(), abs=1e-5)


def test_preprocess_takes_images_in_every_form(tmp_path):
    predictor = load(saved(tmp_path / "student.safetensors"))
    image = pixels(8, 8, 3)
    picture = Image.fromarray(image.numpy())
    picture.save(tmp_path / "image.png")
    expected = predictor.preprocess(image)
    assert expected.shape == (1, 3, 8, 8)
    assert expected[0, 1, 2, 3] == pytest.approx((image[2, 3, 1].item() / 255 - 0.25) / 0.25, abs=1e-5)
    first = image.permute(2, 0, 1)
    content = (tmp_path / "image.png").read_bytes()
    for form in (
        content,
        image.numpy(),
        first,
        first[None],
        image[None],
        picture,
        tmp_path / "image.png",
        [image],
        (picture,),
    ):
        assert torch.equal(predictor.preprocess(form), expected)
    assert predictor.preprocess([str(tmp_path / "image.png"), first, pixels(2, 3, 8, 8)]).shape == (4, 3, 8, 8)


def test_preprocess_holds_few_images_in_full_size(tmp_path, monkeypatch):
    predictor = load(saved(tmp_path / "student.safetensors"))
    made, most = [], 0

    def read(path):
        nonlocal most
        image = Image.new("RGB", (300, 200))
        made.append(weakref.ref(image))
        most = max(most, sum(one() is not None for one in made))
        return image

    monkeypatch.setattr("kd.inference.read_image", read)
    assert predictor.preprocess(["photo.png"] * 7).shape == (7, 3, 8, 8)
    assert most <= 2


def test_preprocess_resizes_and_converts_as_data_sets_are(tmp_path):
    predictor = load(saved(tmp_path / "student.safetensors"))
    scale, shift = 255 * torch.tensor(FACTS["std"])[:, None, None], 255 * torch.tensor(FACTS["mean"])[:, None, None]
    grey16 = (pixels(5, 8).numpy().astype(np.uint16) << 8) + 7
    pictures = (
        Image.fromarray(pixels(13, 30, 3).numpy()),
        Image.fromarray(pixels(5, 8, 3).numpy()).convert("L"),
        Image.fromarray(pixels(5, 8, 4).numpy()),  # with transparency
        Image.fromarray(grey16),
    )
    for picture in pictures:
        file = io.BytesIO()
        picture.save(file, "PNG")
        expected = decode([("image", file.getvalue())], 1, 8).x
        restored = predictor.preprocess(picture) * scale + shift
        assert torch.equal(restored.round().to(torch.uint8), expected)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_preprocess_turns_a_photo_upright_once(tmp_path, orientation):
    """A file, its content, the image that PIL opens, and what `read_image` returns, are seen alike."""
    predictor = load(saved(tmp_path / "w.safetensors"))
    grey = np.arange(16 * 24, dtype=np.uint16).reshape(16, 24)
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "photo.jpg"
    Image.fromarray(np.dstack([grey // 2, grey[::-1] // 2, grey[:, ::-1] // 2]).astype(np.uint8)).save(path, exif=exif)
    with Image.open(path) as opened:
        expected = predictor.preprocess(np.asarray(ImageOps.exif_transpose(opened)))
        assert torch.equal(predictor.preprocess(opened), expected)
    for form in (path, path.read_bytes(), read_image(path)):
        assert torch.equal(predictor.preprocess(form), expected)


def test_preprocess_follows_the_network(tmp_path):
    predictor = load(saved(tmp_path / "student.safetensors")).bfloat16()
    assert predictor.preprocess(pixels(8, 8, 3)).dtype == torch.bfloat16
    assert 0 < predictor.predict(pixels(8, 8, 3))[0].probability <= 1


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ([], "no images were given"),
        (3, "images must be files, PIL images or uint8 pixels, got int"),
        (torch.zeros(3, 8, 8), "pixels must be uint8, from 0 to 255, got float32"),
        (torch.zeros(3, 8, 8, dtype=torch.bfloat16), "pixels must be uint8, from 0 to 255, got bfloat16"),
        (torch.zeros(3, 8, 8, requires_grad=True), "pixels must be uint8, from 0 to 255, got float32"),
        (np.zeros((8, 8), np.uint8), r"pixels must be \(H, W, 3\), .*, got \(8, 8\)"),
        (np.zeros((8, 8, 4), np.uint8), r"pixels must be \(H, W, 3\), .*, got \(8, 8, 4\)"),
        ("missing.png", "no image at missing.png"),
        (__file__, f"{__file__}: damaged, or not an image .*"),
        (b"GIF89a", "the image: damaged, or not an image .*"),
        ("/dev/zero", "/dev/zero: not a regular file"),
    ],
)
def test_preprocess_names_what_is_no_image(images, message):
    predictor = Predictor(network(), *(FACTS[name] for name in ("classes", "image_size", "mean", "std")))
    with pytest.raises(UserError, match=f"^{message}$"):
        predictor.preprocess(images)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": None, "mean": None}, "was not written by kd, or not whole: its metadata lack model, mean"),
        ({"model": "CNN"}, "the metadata's model cannot be used"),
        ({"classes": "abc", "std": [1, 1, 0]}, "the metadata's classes and std cannot be used"),
        ({"image_size": "8"}, "the metadata's image_size cannot be used"),
        ({"mean": [float("nan"), 0.0, 0.0]}, "the metadata's mean cannot be used"),
        ({"mean": [True, 0.0, 0.0]}, "the metadata's mean cannot be used"),
        ({"std": [1.0, float("inf"), 1.0]}, "the metadata's std cannot be used"),
        ({"std": [1.0, -1.0, 1.0]}, "the metadata's std cannot be used"),
        (
            {"model": {**FACTS["model"], "scale": 512}, "image_size": 512},
            r"a network of [\d,]{15,} parameters, and it holds",
        ),
        ({"classes": ["a", "b"]}, "holds another architecture .* classifier.bias is .3,. there and .2,. here"),
        ({"model": {**FACTS["model"], "scale": 3}}, "holds another architecture"),
        ({"model": {**FACTS["model"], "scale": 0}}, "cannot build its network, kd.models.cnn.CNN: scale must be"),
        ({"model": {**FACTS["model"], "color": 1}}, "cannot build its network, .* unexpected keyword argument 'color'"),
        ({"model": {"_target_": "kd.models.gone.Net"}}, "cannot build its network, kd.models.gone.Net: No module"),
        ({"model": {"_target_": "kd.models.cnn.Net"}}, "kd.models.cnn.Net: .*no attribute.* by another version of kd"),
    ],
)
def test_load_names_what_is_wrong_with_a_file(tmp_path, changes, message):
    path = saved(tmp_path / "student.safetensors", **changes)
    with pytest.raises(UserError, match=f"^{path}:? .*{message}") as error:
        load(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "target",
    [
        "torch.nn.Linear",
        "os.system",
        "kd.models.cnn.nn.Linear",  # which kd.models.cnn imports
        "kd.models.wrap.copy.deepcopy",
        "kd.models.wrap.partial",
        "kd.models_of_a_stranger.Net",
        "system",
    ],
)
@pytest.mark.parametrize("nested", [False, True])
def test_load_calls_nothing_of_a_stranger(tmp_path, target, nested, monkeypatch):
    node = {"_target_": target}
    model = {**FACTS["model"], "scale": [node]} if nested else node
    path = saved(tmp_path / "student.safetensors", model=model)
    with pytest.raises(UserError, match=r"cannot build its network, .*(trust=True|No module named)"):
        load(path)


EXTERNAL = {
    **dict.fromkeys(("stages", "head", "pretrained", "size", "mean", "std", "classes")),
    "preacts": False,
}


@pytest.mark.parametrize(
    "model",
    [
        {"_target_": "kd.models.external.custom", "target": "os.mkdir", "settings": {"path": "executed"}, **EXTERNAL},
        {"_target_": "kd.models.external._located", "target": "os.mkdir"},
        {
            "_target_": "kd.models.external.External",
            "make": {"_target_": "kd.models.external._located", "target": "os.mkdir"},
            "title": "it",
            **EXTERNAL,
        },
        {"_target_": "kd.models.external.torchvision", "name": "../executed", **EXTERNAL},
    ],
    ids=["custom", "private", "nested", "name"],
)
def test_load_builds_nothing_that_names_code(tmp_path, monkeypatch, model):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"cannot build its network, kd\.models\.external"):
        load(saved(tmp_path / "w.safetensors", model=model))
    assert [path.name for path in tmp_path.iterdir()] == ["w.safetensors"]


def test_trusted_file_may_name_other_networks(tmp_path, monkeypatch):
    (tmp_path / "my_networks.py").write_text(
        "from kd.models.cnn import CNN\n"
        "def make(num_classes, image_size, parts):\n"
        "    return CNN(parts[0]['p'], num_classes, image_size, 'relu', 0.5, 0.5)\n"
        "def number(of):\n"
        "    return of\n"
        "def nothing(num_classes, image_size):\n"
        "    return None\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    model = {"_target_": "my_networks.make", "parts": [{"p": {"_target_": "my_networks.number", "of": 2}}]}
    path = saved(tmp_path / "student.safetensors", model=model)
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(load(path, trust=True)(x).logits, network().eval()(x).logits)
    with pytest.raises(UserError, match=r"my_networks.* does not lie in kd\.models; pass trust=True if"):
        load(path)
    path = saved(tmp_path / "student.safetensors", model={"_target_": "my_networks.nothing"})
    with pytest.raises(UserError, match=r"my_networks\.nothing makes no network"):
        load(path, trust=True)


def test_load_says_what_to_do_about_a_network_of_ones_own(tmp_path, monkeypatch):
    def load_custom(target):
        model = {"_target_": "kd.models.external.custom", "target": target, "settings": {}, **EXTERNAL}
        return load(saved(tmp_path / "w.safetensors", model=model), trust=True)

    (tmp_path / "broken_networks.py").write_text("class Net:\n  def")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match=r"no module nets_of_mine on the import path; add its folder to PYTHONPATH$"):
        load_custom("nets_of_mine.Net")
    with pytest.raises(UserError, match=r"of broken_networks\.Net: invalid syntax \(broken_networks.py, line 2\)$"):
        load_custom("broken_networks.Net")
    with pytest.raises(UserError, match=r"of broken_networks\.Net: it names a class .*trust \(a program: --trust\)$"):
        load(tmp_path / "w.safetensors")


def test_load_names_what_is_missing_or_damaged(tmp_path):
    with pytest.raises(UserError, match=f"^no weights in {tmp_path}: it has neither student.safetensors nor teacher"):
        load(tmp_path)
    with pytest.raises(UserError, match=f"^no weights at {tmp_path / 'gone'}$"):
        load(tmp_path / "gone")
    path = saved(tmp_path / "student.safetensors")
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(UserError, match="is not a whole safetensors file"):
        load(path)


def test_load_names_the_library_that_a_network_needs(tmp_path, monkeypatch):
    unset = dict.fromkeys(("stages", "head", "preacts", "pretrained", "size", "mean", "std", "classes"))
    model = {"_target_": "kd.models.external.timm", "name": "resnet18", **unset}
    path = saved(tmp_path / "student.safetensors", model=model)
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UserError, match=r"cannot build its network, which needs timm: pip install timm$"):
        load(path)


def test_load_refuses_weights_of_another_program(tmp_path):
    path = tmp_path / "model.safetensors"
    save_file({"weight": torch.zeros(2)}, path, {"format": "pt", "classes": json.dumps(["a"])})
    with pytest.raises(UserError, match=f"^{path} was not written by kd.* lack model, image_size, mean, std$"):
        load(path)


@pytest.mark.parametrize(("channels", "size"), [(1, [8, 12]), (3, [12, 8]), (4, [8, 12])])
def test_preprocess_takes_the_size_and_channels_that_the_network_does(tmp_path, channels, size):
    stats = {"mean": [0.5] * channels, "std": [0.25] * channels, "image_size": size}
    torch.manual_seed(0)
    net = CNN(2, 3, size, "relu", 0.5, 0.5, channels)
    save_weights(net, tmp_path / "student.safetensors", {**FACTS, **stats})
    predictor = load(tmp_path)
    x = pixels(5, *size, channels)
    shown = predictor.preprocess(x)
    assert shown.shape == (5, channels, *size)
    torch.testing.assert_close(shown, (x.permute(0, 3, 1, 2) / 255 - 0.5) / 0.25)
    assert torch.equal(predictor.preprocess(x.permute(0, 3, 1, 2)), shown)
    assert predictor.preprocess(pixels(20, 30, channels)).shape == (1, channels, *size)
    assert len(predictor.predict(x)) == 5
    colour = Image.fromarray(pixels(9, 9, 3).numpy())
    if channels == 4:
        with pytest.raises(UserError, match=r"^images must be pixels of 4 channels, as the network's; a file is"):
            predictor.preprocess(colour)
    else:
        assert predictor.preprocess(colour).shape == (1, channels, *size)
    if channels == 1:
        assert torch.equal(predictor.preprocess(x[0, ..., 0]), shown[:1])
        torch.testing.assert_close(predictor.preprocess(colour), predictor.preprocess(colour.convert("L")))


def test_load_takes_the_teacher_of_the_repository():
    """Its figures are those of its record, and it is the default teacher, so that `teacher_weights=` takes it."""
    file = ROOT / "docs" / "results" / "weights" / "cnn32_trivialaugment.safetensors"
    teacher = load(file)
    record = read(ROOT / "docs" / "results" / "what_matters" / "teacher_80_0" / "result.json")
    assert load_weights(file)[1]["test_acc"] == record.test_acc
    assert sum(p.numel() for p in teacher.parameters()) == record.teacher_params == 4_271_530
    assert teacher.classes[3] == "cat"
    assert teacher(torch.zeros(2, 3, 32, 32)).logits.dtype == torch.float32
