import pytest
import torch

from kd.data.by_name import by_name
from kd.data.decode import decode
from kd.data.tiny_imagenet import tiny_imagenet
from kd.errors import UserError

WNIDS = ("n02", "n01", "n03")


@pytest.fixture
def root(tmp_path, pixels, encode):
    """Three classes, two training images and one test image of each."""
    top = tmp_path / "tiny-imagenet-200"
    encoded = iter([encode(image, "JPEG") for image in pixels])
    for wnid in WNIDS:
        (top / "train" / wnid / "images").mkdir(parents=True)
        for i in range(2):
            (top / "train" / wnid / "images" / f"{wnid}_{i}.JPEG").write_bytes(next(encoded))
    (top / "val" / "images").mkdir(parents=True)
    for i in range(3):
        (top / "val" / "images" / f"val_{i}.JPEG").write_bytes(next(encoded))
    (top / "val" / "val_annotations.txt").write_text(
        "".join(f"val_{i}.JPEG\t{wnid}\t0\t32\t44\t62\n" for i, wnid in enumerate(("n03", "n02", "n01")))
    )
    (top / "wnids.txt").write_text("\n".join(WNIDS) + "\n")
    (top / "words.txt").write_text("n01\tcrane\nn02\tgoldfish, Carassius auratus\nn03\tcrane, bird\nn04\tother\n")
    return tmp_path


@pytest.mark.parametrize("in_memory", [True, False])
def test_tiny_imagenet_reads_the_published_folders(root, in_memory):
    images = tiny_imagenet(root, image_size=32, in_memory=in_memory)
    assert images.classes == ("goldfish", "n01", "n03")  # two are called crane
    assert images.train_y.tolist() == [0, 0, 1, 1, 2, 2]
    assert images.test_y.tolist() == [2, 0, 1]
    assert images.summary == "Tiny ImageNet: 6 training and 3 test images, 3 classes, val/ taken as the test split"
    assert torch.equal(images.train_x[:], tiny_imagenet(root / "tiny-imagenet-200", 32).train_x)
    top = root / "tiny-imagenet-200"
    train = [path for wnid in WNIDS for path in sorted((top / "train" / wnid / "images").iterdir())]
    for x, files in (
        (images.train_x, train),
        (images.test_x, [top / "val/images" / f"val_{i}.JPEG" for i in range(3)]),
    ):
        assert torch.equal(x[:], decode([(str(path), path.read_bytes()) for path in files], len(files), 32).x)
    assert by_name(root, images.name, 32).id == images.id


def test_tiny_imagenet_refuses_what_is_missing(root, tmp_path):
    top = root / "tiny-imagenet-200"
    (top / "val" / "val_annotations.txt").write_text("val_0.JPEG\tn03\nval_1.JPEG\tn01\n")
    with pytest.raises(UserError, match="val: no images of n02; unpack http"):
        tiny_imagenet(root)
    (top / "wnids.txt").write_text("n01\n")
    with pytest.raises(UserError, match=r"val: images of n03, which wnids.txt lacks"):
        tiny_imagenet(root)
    (top / "wnids.txt").unlink()
    with pytest.raises(UserError, match=r"wnids.txt: No such file.*; data.root must be what http"):
        tiny_imagenet(root)
