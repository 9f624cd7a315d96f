import hashlib
import io
import pickle
import tarfile
import threading
import time
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
import torchvision.datasets

from kd.data.cifar import CIFAR100_CLASSES, cifar10, cifar100
from kd.errors import UserError

# torchvision's extraction on Python 3.12 and 3.13.
pytestmark = pytest.mark.filterwarnings("ignore:Python 3.14 will:DeprecationWarning")

NAMES10 = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
NAMES100 = CIFAR100_CLASSES.split()


def make_archive(file: Path, source, files: dict[str, dict], monkeypatch) -> None:
    """Write pickled files as torchvision's archive, and set the checksums that torchvision expects."""
    md5 = {}
    with tarfile.open(file, "w:gz") as archive:
        for name, content in files.items():
            data = pickle.dumps(content)
            md5[name] = hashlib.md5(data).hexdigest()
            info = tarfile.TarInfo(f"{source.base_folder}/{name}")
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    *train, test, meta = files
    monkeypatch.setattr(source, "tgz_md5", hashlib.md5(file.read_bytes()).hexdigest())
    monkeypatch.setattr(source, "train_list", [[name, md5[name]] for name in train])
    monkeypatch.setattr(source, "test_list", [[test, md5[test]]])
    monkeypatch.setattr(source, "meta", {**source.meta, "md5": md5[meta]})


class Handler(SimpleHTTPRequestHandler):
    def log_message(self, format, *args):
        pass


class HalfHandler(Handler):
    """Promises the whole file and closes the connection half way."""

    def copyfile(self, source, outputfile):
        data = source.read()
        outputfile.write(data[: len(data) // 2])


@pytest.fixture
def serve(monkeypatch):
    """Serves a folder and points torchvision's CIFAR-10 at it."""
    monkeypatch.setenv("no_proxy", "*")
    servers = []

    def serve(folder, handler=Handler):
        server = ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=str(folder)))
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        servers.append((server, thread))
        url = f"http://127.0.0.1:{server.server_port}/cifar-10-python.tar.gz"
        monkeypatch.setattr(torchvision.datasets.CIFAR10, "url", url)

    yield serve
    for server, thread in servers:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def no_network(monkeypatch):
    """Points torchvision's CIFAR-10 at a closed port."""
    monkeypatch.setenv("no_proxy", "*")
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        port = server.server_port
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "url", f"http://127.0.0.1:{port}/cifar-10-python.tar.gz")


@pytest.fixture
def archive(tmp_path, pixels, monkeypatch):
    """A CIFAR-10 of two batches of four training images and four test images."""
    rows = pixels.flatten(1).numpy()
    (tmp_path / "mirror").mkdir()
    file = tmp_path / "mirror" / "cifar-10-python.tar.gz"
    files = {
        "data_batch_1": {"data": rows[:4], "labels": [0, 1, 2, 3]},
        "data_batch_2": {"data": rows[4:8], "labels": [4, 5, 6, 7]},
        "test_batch": {"data": rows[8:], "labels": [8, 9, 0, 1]},
        "batches.meta": {"label_names": NAMES10},
    }
    make_archive(file, torchvision.datasets.CIFAR10, files, monkeypatch)
    return file


@pytest.fixture
def root(tmp_path):
    (tmp_path / "root").mkdir()
    return tmp_path / "root"


def assert_is_cifar10(images, pixels):
    assert images.name == "CIFAR-10"
    assert images.classes == tuple(NAMES10)
    assert torch.equal(images.train_x, pixels[:8])
    assert torch.equal(images.test_x, pixels[8:])
    assert images.train_y.tolist() == list(range(8))
    assert images.test_y.tolist() == [8, 9, 0, 1]
    assert (images.train_x.dtype, images.train_y.dtype) == (torch.uint8, torch.int64)
    assert images.train_x.is_contiguous()


def assert_refused(root, *needles, load=cifar10):
    with pytest.raises(UserError) as caught:
        load(root)
    for needle in needles:
        assert str(needle) in str(caught.value)
    assert str(caught.value).count("\n") <= 1
    return caught.value


def file_names(root):
    return sorted(path.name for path in root.iterdir())


def test_cifar10_downloads_once(archive, serve, no_network, tmp_path, pixels, monkeypatch):
    dead = torchvision.datasets.CIFAR10.url
    serve(archive.parent)
    root = tmp_path / "data"  # the default's name: it is created
    assert_is_cifar10(cifar10(str(root)), pixels)
    assert file_names(root) == ["cifar-10-batches-py"]
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "url", dead)
    assert_is_cifar10(cifar10(root), pixels)


def test_cifar10_reads_an_archive_without_network(archive, no_network, root, pixels, monkeypatch):
    archive.rename(root / archive.name)
    monkeypatch.setenv("HOME", str(root.parent))
    assert_is_cifar10(cifar10("~/root"), pixels)
    assert file_names(root) == ["cifar-10-batches-py", "cifar-10-python.tar.gz"]


def test_cifar10_without_network_lists_the_alternatives(archive, no_network, root):
    ways_out = ("cifar-10-python.tar.gz", "*train*.parquet", "train/<class>/*.png", "data.root=", "data=digits")
    assert_refused(root, root, "Connection refused", *ways_out)
    assert file_names(root) == []


def test_cifar10_names_a_server_without_the_file(archive, serve, root):
    serve(root)
    error = assert_refused(root, root, "404", "data=digits")
    error.__cause__.close()  # an HTTPError holds its connection
    assert file_names(root) == []


@pytest.mark.parametrize("damage", ["flipped byte", "cut short", "lost connection"])
def test_cifar10_leaves_nothing_of_a_bad_download(archive, serve, root, pixels, damage):
    good = archive.read_bytes()
    if damage == "flipped byte":
        archive.write_bytes(good[:1000] + bytes([good[1000] ^ 1]) + good[1001:])
    elif damage == "cut short":
        archive.write_bytes(good[:1000])
    serve(archive.parent, HalfHandler if damage == "lost connection" else Handler)
    assert_refused(root, root, "checksum", "data=digits")
    assert file_names(root) == []

    archive.write_bytes(good)
    serve(archive.parent)
    assert_is_cifar10(cifar10(root), pixels)


def test_cifar10_leaves_nothing_of_an_interrupted_extraction(archive, root, pixels, monkeypatch):
    def interrupted(file, target):
        with tarfile.open(file) as tar:
            tar.extract(tar.getmembers()[0], target)
        raise KeyboardInterrupt

    archive.rename(root / archive.name)
    with monkeypatch.context() as patch:
        patch.setattr("torchvision.datasets.utils.extract_archive", interrupted)
        with pytest.raises(KeyboardInterrupt):
            cifar10(root)
    assert file_names(root) == [archive.name]
    assert_is_cifar10(cifar10(root), pixels)


def test_cifar10_is_downloaded_and_extracted_by_one_of_two_runs_at_a_time(archive, serve, root, pixels, monkeypatch):
    """As the jobs of a sweep begin: the other one waits, and reads what the first has made."""
    serve(archive.parent)
    found, extract = [], torchvision.datasets.utils.extract_archive
    other = threading.Thread(target=lambda: found.append(cifar10(root)))
    extracted = []

    def slow(file, target):
        extracted.append(target)
        if len(extracted) == 1:
            other.start()
            time.sleep(0.3)  # in which the other one would begin as well
        extract(file, target)

    monkeypatch.setattr("torchvision.datasets.utils.extract_archive", slow)
    assert_is_cifar10(cifar10(root), pixels)
    other.join(30)
    assert_is_cifar10(found[0], pixels)
    assert len(extracted) == 1
    assert file_names(root) == ["cifar-10-batches-py"]


@pytest.mark.parametrize("left", [0, 1000, -1])
def test_cifar10_names_a_truncated_archive(archive, serve, root, pixels, left):
    serve(archive.parent)
    bad = root / archive.name
    bad.write_bytes(archive.read_bytes()[:left])
    assert_refused(root, bad, "delete it")
    assert file_names(root) == [archive.name]
    bad.unlink()
    assert_is_cifar10(cifar10(root), pixels)


@pytest.mark.parametrize("name", ["data_batch_2", "test_batch", "batches.meta"])
@pytest.mark.parametrize("damage", ["flipped byte", "missing"])
def test_cifar10_names_a_damaged_folder(archive, root, pixels, name, damage):
    (root / archive.name).write_bytes(archive.read_bytes())
    cifar10(root)
    file = root / "cifar-10-batches-py" / name
    if damage == "missing":
        file.unlink()
    else:
        file.write_bytes(bytes([file.read_bytes()[0] ^ 1]) + file.read_bytes()[1:])
    assert_refused(root, file.parent, "delete it")
    file.parent.rename(root.parent / "deleted")
    assert_is_cifar10(cifar10(root), pixels)


def test_cifar100_has_fine_labels(root, pixels, monkeypatch):
    rows = pixels.flatten(1).numpy()
    files = {
        "train": {"data": rows[:8], "fine_labels": list(range(90, 98)), "coarse_labels": [0] * 8},
        "test": {"data": rows[8:], "fine_labels": [0, 1, 2, 99], "coarse_labels": [0] * 4},
        "meta": {"fine_label_names": NAMES100, "coarse_label_names": ["all"]},
    }
    make_archive(root / "cifar-100-python.tar.gz", torchvision.datasets.CIFAR100, files, monkeypatch)
    images = cifar100(root)
    assert images.name == "CIFAR-100"
    assert images.classes == tuple(NAMES100)
    assert torch.equal(images.train_x, pixels[:8])
    assert images.train_y.tolist() == list(range(90, 98))
    assert images.test_y.tolist() == [0, 1, 2, 99]


@pytest.mark.parametrize(
    ("load", "label", "names", "name"),
    [(cifar10, "label", NAMES10, "CIFAR-10"), (cifar100, "fine_label", NAMES100, "CIFAR-100")],
)
@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_cifar_reads_a_parquet_mirror(
    root, no_network, pixels, encode, write_parquet, monkeypatch, load, label, names, name, kind
):
    for split in ("train", "test"):
        encoded = [encode(x, kind) for x in pixels[:3]]
        write_parquet(root / "deeper" / f"{split}.parquet", encoded, [2, 9, 0], names, label=label)
    images = load(root)
    assert images.name == f"{name} ({'JPEG, ' if kind == 'JPEG' else ''}6 of 60,000 images)"
    assert images.classes == tuple(names)
    assert images.test_y.tolist() == [2, 9, 0]
    assert torch.equal(images.train_x, pixels[:3]) is (kind == "PNG")
    monkeypatch.setattr("kd.data.decode.Image.open", None)  # it decodes once
    again = load(root)
    assert (again.id, again.name) == (images.id, images.name)


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_cifar10_reads_a_tree_of_images(root, no_network, pixels, encode, write_tree, kind):
    for split in ("train", "test"):
        write_tree(root / split, {label: [encode(pixels[0], kind)] for label in NAMES10})
    images = cifar10(root)
    assert images.name == f"CIFAR-10 ({'JPEG, ' if kind == 'JPEG' else ''}20 of 60,000 images)"
    assert images.classes == tuple(NAMES10)
    assert_refused(root, root, "not CIFAR-100, but 10 classes (airplane, automobile", "data.root", load=cifar100)


def test_cifar10_refuses_a_mirror_with_other_classes(root, no_network, pixels, encode, write_parquet):
    for split in ("train", "test"):
        write_parquet(root / f"{split}.parquet", [encode(x) for x in pixels[:3]], [0, 1, 2])
    assert_refused(root, f"{root}: not CIFAR-10, but 3 classes (0, 1, 2)", f"with data=parquet data.root={root}")


def test_cifar10_accepts_the_names_of_other_copies(root, no_network, pixels, encode, write_tree):
    """In the published order, which is that of further test sets: a plane sorts behind a horse."""
    names = ["Plane", "car", *NAMES10[2:]]
    for split in ("train", "test"):
        write_tree(root / split, {name: [encode(pixels[label])] for label, name in enumerate(names)})
    images = cifar10(root)
    assert images.name == "CIFAR-10 (20 of 60,000 images)"
    assert list(images.classes) == NAMES10
    for x, y in ((images.train_x, images.train_y), (images.test_x, images.test_y)):
        assert sorted(y.tolist()) == list(range(10))
        assert all(torch.equal(x[place], pixels[label]) for place, label in enumerate(y.tolist()))


@pytest.fixture
def write_many(encode, write_parquet):
    """Write as many images as wanted, all alike."""

    def write_many(root, train, test, image, names=None):
        for split, n in (("train", train), ("test", test)):
            write_parquet(root / f"{split}.parquet", [encode(image)] * n, [i % 10 for i in range(n)], names)

    return write_many


def test_cifar10_refuses_images_of_another_size(root, no_network, pixels, write_many):
    """The ten digits of MNIST, which used to be called CIFAR-10."""
    write_many(root, 20, 10, pixels[0, :, :28, :28])
    assert_refused(root, "not CIFAR-10, but 10 classes (0, 1, 2, 3, 4, ...), 28x28 pixels; set data.root")


def test_cifar10_refuses_more_images_than_there_are(root, no_network, pixels, write_many, monkeypatch):
    monkeypatch.setattr("kd.data.cifar.COUNTS", (20, 10))
    write_many(root, 10, 11, pixels[0], NAMES10)
    assert_refused(root, "not CIFAR-10, but 10 training and 11 test images")


def test_cifar10_takes_numbered_classes_for_its_own_only_if_complete(root, no_network, pixels, write_many, monkeypatch):
    monkeypatch.setattr("kd.data.cifar.COUNTS", (20, 10))
    write_many(root, 20, 10, pixels[0])
    assert cifar10(root).name == "CIFAR-10"
    write_many(root, 19, 10, pixels[0])
    assert_refused(root, "not CIFAR-10, but 10 classes (0, 1, 2, 3, 4, ...)")


@pytest.mark.parametrize("name", ["nope", "nope/data"])
def test_cifar10_creates_no_folder_but_the_default(archive, serve, tmp_path, name):
    serve(archive.parent)
    assert_refused(tmp_path / name, f"no folder {tmp_path / name}; create it", "data.root=")
    assert not (tmp_path / "nope").exists()


def test_cifar10_refuses_a_root_that_is_a_file(tmp_path):
    (tmp_path / "data").touch()
    assert_refused(tmp_path / "data", f"{tmp_path / 'data'} is a file", "data.root=")


def test_cifar10_summary_has_its_counts(archive, root):
    archive.rename(root / archive.name)
    assert cifar10(root).summary == "CIFAR-10: 8 training and 4 test images, 10 classes"


def test_cifar10_prefers_torchvision_files(archive, root, pixels, encode, write_parquet, write_tree):
    write_tree(root / "train", {"cat": [encode(pixels[0])]})
    write_parquet(root / "train.parquet", [encode(pixels[0])], [0])
    assert_refused(root, "*test*.parquet")  # the parquet file before the tree
    archive.rename(root / archive.name)
    assert_is_cifar10(cifar10(root), pixels)


def test_cifar10_names_a_path_without_permission(archive, public_path, no_network, as_nobody, pixels):
    (public_path / archive.name).write_bytes(archive.read_bytes())
    assert_is_cifar10(cifar10(public_path), pixels)
    batch = public_path / "cifar-10-batches-py" / "test_batch"
    batch.parent.chmod(0o755)
    batch.chmod(0)
    with as_nobody():
        assert_refused(public_path, batch, "Permission denied", "data.root")
    empty = public_path / "empty"
    empty.mkdir()
    with as_nobody():
        assert_refused(empty, empty, "Permission denied", "data.root")
        assert_refused(public_path / "data", public_path / "data", "Permission denied", "data.root")
    assert file_names(empty) == []
