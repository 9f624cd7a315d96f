import io
import tracemalloc
import warnings
import zipfile

import numpy as np
import pytest
import torch

from kd.errors import UserError
from kd.runs.predictions import Predictions, near_chance, read, write
from tests.common import put_no_file


def example(with_teacher=True):
    logits = torch.randn(7, 3, generator=torch.Generator().manual_seed(0)).bfloat16().float().numpy()
    return Predictions(np.array([0, 1, 2, 0, 1, 2, 0]), logits, -logits if with_teacher else None)


@pytest.mark.parametrize("with_teacher", [True, False])
def test_predictions_restore_bf16_logits_to_the_bit(tmp_path, with_teacher):
    write(example(with_teacher), tmp_path / "p.npz")
    restored = read(tmp_path / "p.npz")
    for written, loaded in zip(example(with_teacher), restored, strict=True):
        assert np.array_equal(written, loaded) if with_teacher or written is not None else loaded is None
    assert restored.labels.dtype == np.int64
    assert restored.correct.tolist() == (example().logits.argmax(1) == example().labels).tolist()


def test_class_accuracy_is_each_classs_own():
    logits = np.eye(4, dtype=np.float32)[[0, 0, 1, 0, 3]]
    accuracy = Predictions(np.array([0, 0, 0, 1, 3]), logits).class_accuracy
    assert accuracy.tolist() == pytest.approx([2 / 3, 0, np.nan, 1], nan_ok=True)


def test_predictions_clip_logits_beyond_half_precision(tmp_path):
    write(Predictions(np.array([0]), np.array([[1e6, -1e6]], np.float32)), tmp_path / "p.npz")
    assert read(tmp_path / "p.npz").logits.tolist() == [[65504.0, -65504.0]]


def test_rounding_changes_no_predicted_class(tmp_path):
    """Logits that are apart by less than half precision tells, as of a network that has hardly learnt."""
    rng = np.random.default_rng(0)
    logits = (1 + 1e-4 * rng.random((1000, 5)) * rng.choice([1, 0.1, 30], (1000, 1))).astype(np.float32)
    teacher = -logits[:, ::-1]
    assert (logits.astype(np.float16).argmax(1) != logits.argmax(1)).mean() > 0.1
    write(Predictions(np.zeros(1000, np.int64), logits, teacher), tmp_path / "p.npz")
    restored = read(tmp_path / "p.npz")
    for exact, rounded in ((logits, restored.logits), (teacher, restored.teacher_logits)):
        assert np.array_equal(exact.argmax(1), rounded.argmax(1))
        np.testing.assert_allclose(rounded, exact, rtol=2**-9)


@pytest.mark.parametrize("scale", [1e4, 65504, 1e6, -1e6, 1e30])
def test_rounding_beyond_half_precision_changes_no_predicted_class(tmp_path, scale):
    logits = np.float32(scale) * np.array([[1, 1, 2, 1], [2, 1, 1, 2], [1, 1.00001, 1, 1], [1, 1, 1, 1]], np.float32)
    write(Predictions(np.zeros(4, np.int64), logits), tmp_path / "p.npz")
    restored = read(tmp_path / "p.npz").logits
    assert np.array_equal(restored.argmax(1), logits.argmax(1))


@pytest.mark.parametrize("damage", ["missing", "cut", "other", "short"])
def test_predictions_read_refuses_a_damaged_file(tmp_path, damage):
    path = tmp_path / "p.npz"
    if damage != "missing":
        write(example(), path)
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:100])
    elif damage == "other":
        with open(path, "wb") as file:
            np.savez(file, answers=np.zeros(3))
    elif damage == "short":
        with open(path, "wb") as file:
            np.savez(file, labels=np.zeros(3), logits=np.zeros((4, 2)))
    with pytest.raises(UserError, match=r"p\.npz"):
        read(path)


def npy(array):
    file = io.BytesIO()
    np.lib.format.write_array(file, array, allow_pickle=True)
    return file.getvalue()


def header(dtype, shape):
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": dtype, "fortran_order": False, "shape": shape})
    return file.getvalue()


LABELS = np.arange(6, dtype=np.int16) % 3
LOGITS = np.eye(3, dtype=np.float16)[LABELS]


def archive(path, labels=LABELS, logits=LOGITS, compression=zipfile.ZIP_DEFLATED, **more):
    """Write a file of arrays, or of bytes in their place."""
    with zipfile.ZipFile(path, "w", compression) as file:
        for name, array in {"labels": labels, "logits": logits, **more}.items():
            file.writestr(f"{name}.npy", array if isinstance(array, bytes) else npy(array))
    return path


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"logits": header("<f2", (10**11, 3))}, "said to have the shape (100000000000, 3)"),
        ({"labels": header("<i2", (10**11,))}, "said to have the shape (100000000000,)"),
        ({"logits": npy(LOGITS) + b"more"}, "its size is another"),
        ({"logits": np.array([[print] * 3] * 6, dtype=object)}, "logits is no array of numbers"),
        ({"logits": np.zeros((6, 3), dtype=[("a", "f4")])}, "logits is no array of numbers"),
        ({"logits": b"\x93NUMPY\x01\x00" + (9000).to_bytes(2, "little") + b"-" * 9000}, "no array of numbers"),
        ({"logits": LOGITS.astype("c8")}, "no array of numbers"),
        ({"logits": LABELS.astype("f2")}, "float16 of shape (6,), not floating-point numbers in 2 dimensions"),
        ({"labels": LABELS.astype("f4")}, "labels is float32 of shape (6,), not whole numbers in 1 dimensions"),
        ({"labels": LABELS + 1}, "labels from 1 to 3, but 3 classes"),
        ({"labels": LABELS - 1}, "labels from -1 to 1, but 3 classes"),
        ({"labels": LABELS[:4]}, "4 labels, logits of 6 images"),
        ({"labels": LABELS[:0], "logits": LOGITS[:0]}, "0 labels"),
        ({"logits": LOGITS * np.float16("nan")}, "NaN or infinite: the network diverged"),
        ({"logits": np.where(LOGITS > 0, np.float32("inf"), 0)}, "NaN or infinite"),
        ({"logits": LOGITS.astype("f8") * 1e300}, "beyond ±65504"),
        ({"teacher_logits": LOGITS[:, :2]}, "the teacher's logits are (6, 2), the student's (6, 3)"),
        ({f"more{i}": b"" for i in range(20)}, "not an archive of a few arrays"),
        ({"compression": zipfile.ZIP_LZMA}, "compressed in another way"),
    ],
)
def test_predictions_read_refuses_what_predictions_cannot_be(tmp_path, arrays, message):
    with pytest.raises(UserError) as error:
        read(archive(tmp_path / "p.npz", **arrays))
    assert str(tmp_path / "p.npz") in str(error.value)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_predictions_read_takes_no_memory_for_a_bomb(tmp_path):
    """A file of 1.9 MB used to take 6.2 GB. This one of 0.1 MB holds 70 MB, as its headers say."""
    images = 10_000_000
    with zipfile.ZipFile(tmp_path / "p.npz", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as file:
        file.writestr("labels.npy", header("|i1", (images,)) + bytes(images))
        with file.open("logits.npy", "w", force_zip64=True) as member:
            member.write(header("<f2", (images, 3)))
            for _ in range(60):
                member.write(bytes(1_000_000))
    tracemalloc.start()
    with pytest.raises(UserError, match="its arrays are larger than a file of"):
        read(tmp_path / "p.npz")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1_000_000


def test_predictions_read_refuses_encrypted_and_double_members(tmp_path):
    path = archive(tmp_path / "p.npz")
    content = bytearray(path.read_bytes())
    for mark, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        content[content.index(mark) + flags] |= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match="labels is encrypted"):
        read(path)
    archive(path)
    with warnings.catch_warnings(), zipfile.ZipFile(path, "a") as file:
        warnings.simplefilter("ignore")
        file.writestr("labels.npy", npy(LABELS))
    with pytest.raises(UserError, match="an array is there twice"):
        read(path)


def test_predictions_read_refuses_other_than_the_recorded_number_of_images(tmp_path):
    assert read(archive(tmp_path / "p.npz"), 6).logits.shape == (6, 3)
    with pytest.raises(UserError, match="logits of 6 images, the record tells of 7"):
        read(tmp_path / "p.npz", 7)


@pytest.mark.parametrize("kind", ["fifo", "device", "loop", "directory", "gigabytes"])
def test_predictions_read_refuses_what_is_no_file(tmp_path, kind):
    path = tmp_path / "p.npz"
    put_no_file(path, kind)
    with pytest.raises(UserError, match=r"p\.npz"):
        read(path)


def test_predictions_read_takes_other_layouts_of_numpy(tmp_path):
    path = archive(tmp_path / "p.npz", LABELS.astype(">i8"), np.asfortranarray(LOGITS.astype("<f8")), later=b"new")
    assert np.array_equal(read(path).logits, LOGITS)
    assert np.array_equal(read(path).labels, LABELS)


def test_predictions_read_survives_random_damage(tmp_path):
    """Whatever is changed, it is refused, or what is read is what was written."""
    whole, path = archive(tmp_path / "p.npz").read_bytes(), tmp_path / "q.npz"
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(200):
        content = bytearray(whole)
        for place in rng.integers(0, len(content), 3):
            content[place] = rng.integers(256)
        path.write_bytes(content[: rng.integers(1, 2 * len(content))])
        try:
            assert np.array_equal(read(path).logits, LOGITS)
        except UserError:
            refused += 1
    assert refused > 100


def labels(*counts):
    return np.repeat(np.arange(len(counts)), counts)


@pytest.mark.parametrize(
    ("accuracy", "counts", "verdict"),
    [
        # 1.645 sqrt(0.1 * 0.9 / 10,000) is half a point; a twentieth of the way to 1 is 4.5 points
        (0.05, [1000] * 10, "no better than chance (10.0 % with 10 classes)"),
        (0.104, [1000] * 10, "no better than chance (10.0 % with 10 classes)"),
        (0.11, [1000] * 10, "hardly better than chance (10.0 % with 10 classes)"),
        (0.144, [1000] * 10, "hardly better than chance (10.0 % with 10 classes)"),
        (0.146, [1000] * 10, None),
        # of 40 images it is 7.8 points: 7 right are no evidence
        (7 / 40, [4] * 10, "no better than chance (10.0 % with 10 classes)"),
        (8 / 40, [4] * 10, None),
        # nine in ten are of one class
        (0.9, [900, 50, 50], "no better than chance (90.0 % with 3 classes)"),
        (0.93, [900, 50, 50], None),
        (0.5, [500, 500, 0], "no better than chance (50.0 % with 2 classes)"),
        (0.06, [10] * 100, None),
        (1.0, [1, 1], "which 2 test images cannot tell from chance (50.0 %)"),
        (1.0, [5], "no better than chance (100.0 % with 1 classes)"),
    ],
)
def test_near_chance_tells_ignorance_from_knowledge(accuracy, counts, verdict):
    assert near_chance(accuracy, labels(*counts)) == verdict


def test_predictions_read_refuses_a_damaged_name_which_would_leave_the_teacher_out(tmp_path):
    path = tmp_path / "p.npz"
    logits = np.zeros((2, 2), np.float32)
    write(Predictions(np.array([0, 1]), logits, logits), path)
    first, _, last = path.read_bytes().rpartition(b"teacher_logits")
    path.write_bytes(first + b"teacher_loGits" + last)
    with pytest.raises(UserError, match="does not hold whole predictions"):
        read(path)


def test_predictions_read_refuses_a_damaged_length_which_would_leave_the_teacher_out(tmp_path):
    path = tmp_path / "p.npz"
    logits = np.zeros((2, 2), np.float32)
    write(Predictions(np.array([0, 1]), logits, logits), path)
    content = bytearray(path.read_bytes())
    second = content.rindex(b"logits.npy", 0, content.rindex(b"teacher_logits")) - 46  # its entry in the list
    assert content[second : second + 4] == b"PK\x01\x02"
    content[second + 32] = 64  # bytes of a comment: the next entry
    path.write_bytes(content)
    with pytest.raises(UserError, match="does not hold whole predictions: 2 arrays can be read of 3"):
        read(path)
