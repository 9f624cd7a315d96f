"""Small data sets with known pixels, and fixtures that damage them."""

import io
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torch import Tensor

from tests.data.parquets import LABELS, NAMES

NOBODY = 65534


@pytest.fixture
def pixels() -> Tensor:
    """(12, 3, 32, 32), uint8: noise, so that no two images and no two places are alike."""
    return torch.randint(256, (12, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def encode() -> Callable[..., bytes]:
    def encode(image: Tensor, kind: str = "PNG", mode: str = "RGB") -> bytes:
        file = io.BytesIO()
        Image.fromarray(image.permute(1, 2, 0).contiguous().numpy()).convert(mode).save(file, kind)
        return file.getvalue()

    return encode


@pytest.fixture
def write_parquet() -> Callable[..., None]:
    def write_parquet(
        file: Path,
        encoded: Sequence[bytes | None],
        labels: Sequence[int | None],
        names: Sequence[str] | None = None,
        image: str = "img",
        label: str = "label",
    ) -> None:
        column = pa.array(
            [{"bytes": data, "path": None} for data in encoded],
            pa.struct([("bytes", pa.binary()), ("path", pa.string())]),
        )
        table = pa.table({image: column, label: pa.array(labels, pa.int64())})
        if names is not None:
            info = {"info": {"features": {image: {"_type": "Image"}, label: {"names": names, "_type": "ClassLabel"}}}}
            table = table.replace_schema_metadata({"huggingface": json.dumps(info)})
        file.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, file, compression="none")

    return write_parquet


@pytest.fixture
def write_tree() -> Callable[..., None]:
    def write_tree(split: Path, encoded: dict[str, Sequence[bytes]], suffix: str = ".png") -> None:
        for label, images in encoded.items():
            (split / label).mkdir(parents=True)
            for i, data in enumerate(images):
                (split / label / f"{i}{suffix}").write_bytes(data)

    return write_tree


@pytest.fixture
def public_path() -> Iterator[Path]:
    """Like tmp_path, but every user can reach it."""
    with tempfile.TemporaryDirectory() as path:
        os.chmod(path, 0o755)
        yield Path(path)


@pytest.fixture
def as_nobody() -> Callable[[], AbstractContextManager[None]]:
    """A user whom file permissions bind, even if the tests run as root."""

    @contextmanager
    def as_nobody() -> Iterator[None]:
        user = os.geteuid()
        if user == 0:
            os.seteuid(NOBODY)
        try:
            yield
        finally:
            os.seteuid(user)

    return as_nobody


@pytest.fixture
def root(tmp_path: Path, pixels: Tensor, encode: Callable[..., bytes], write_parquet: Callable[..., None]) -> Path:
    """A folder with six training images in train.parquet, six test images in test.parquet."""
    write_parquet(tmp_path / "set" / "train.parquet", [encode(x) for x in pixels[:6]], LABELS, NAMES)
    write_parquet(tmp_path / "set" / "test.parquet", [encode(x) for x in pixels[6:]], LABELS, NAMES)
    return tmp_path / "set"
