"""Parquet, class folders and labels that are damaged or of another dataset."""

import io
import os
import struct
import subprocess
import zlib

import numpy as np
import pyarrow as arrow
import pyarrow.parquet as parquet
import pytest
import torch
from copies import (
    BINARY,
    NAMES,
    batch_files,
    load,
    made_up,
    splits,
    write_batches,
    write_class_folders,
    write_parquet,
)
from PIL import EpsImagePlugin, Image

from saddlebook import data
from saddlebook.data import folders, sources
from saddlebook.errors import DataError


@pytest.mark.parametrize("content", [b"", b"PAR1 damaged PAR1", b"<html>404</html>"])
def test_a_damaged_parquet_file_is_refused(tmp_path, content):
    write_parquet(tmp_path)
    file = tmp_path / "test-00000-of-00001.parquet"
    file.write_bytes(content)
    with pytest.raises(DataError, match=f"{file.name} (cannot be read|is a web page)"):
        load(tmp_path)


@pytest.mark.parametrize("where", [0.3, 0.6, 0.9])
def test_a_parquet_file_with_changed_bytes_is_refused(tmp_path, where):
    write_parquet(tmp_path)
    file = tmp_path / "train-00000-of-00001.parquet"
    content = bytearray(file.read_bytes())
    start = int(where * len(content))
    content[start : start + 200] = bytes(200)
    file.write_bytes(content)
    with pytest.raises(DataError):
        load(tmp_path)


@pytest.mark.parametrize("name", NAMES)
def test_another_dataset_under_this_name_is_refused(tmp_path, name):
    other = {"cifar10": "cifar100", "cifar100": "cifar10"}[name]
    write_parquet(tmp_path, other)
    with pytest.raises(DataError, match=r"no column|another dataset"):
        load(tmp_path, name)
    write_parquet(tmp_path, other, column="label")
    with pytest.raises(DataError, match="another dataset"):
        load(tmp_path, name)


def test_coarse_labels_are_refused(tmp_path):
    images, labels = made_up("cifar100", 2, 0)
    coarse = (images, labels // 5)
    write_parquet(tmp_path, "cifar100", given=(coarse, coarse))
    with pytest.raises(DataError, match=r"20 values .* coarse labels"):
        load(tmp_path, "cifar100")


@pytest.mark.parametrize("label", [-1, 10, 255, 3])
def test_a_label_out_of_place_is_refused(tmp_path, label):
    (images, labels), test = splits()
    labels[0] = label
    write_parquet(tmp_path, given=((images, labels), test))
    with pytest.raises(DataError, match=r"10 classes|class 0 \(airplane\) has 4"):
        load(tmp_path)


def test_a_missing_image_is_noticed(tmp_path):
    write_class_folders(tmp_path)
    (tmp_path / "test" / "ship" / "00008.png").unlink()
    with pytest.raises(
        DataError, match=r"class 8 \(ship\) has 1 test images, others 2"
    ):
        load(tmp_path)


def test_a_missing_class_folder_is_named(tmp_path):
    write_class_folders(tmp_path)
    (tmp_path / "train" / "ship").rename(tmp_path / "train" / "boat")
    with pytest.raises(DataError, match=r"\['boat', 'ship'\]"):
        load(tmp_path)


def test_jpeg_copies_are_refused_as_lossy(tmp_path):
    write_class_folders(tmp_path, form="JPEG")
    with pytest.raises(DataError, match="lossy copy"):
        load(tmp_path)


@pytest.mark.parametrize(
    "image",
    [
        Image.new("RGB", (31, 32)),
        Image.new("L", (32, 32)),
        Image.new("RGBA", (32, 32)),
        Image.new("I;16", (32, 32)),
        Image.new("RGB", (1000, 32)),
    ],
)
def test_an_image_of_another_size_or_kind_is_named(tmp_path, image):
    write_class_folders(tmp_path)
    file = tmp_path / "train" / "cat" / "00013.png"
    image.save(file)
    with pytest.raises(DataError, match=r"cat/00013\.png: no 32x32 RGB image"):
        load(tmp_path)


def test_an_image_that_claims_to_be_huge_is_refused_before_it_is_decoded(tmp_path):
    write_class_folders(tmp_path)
    file = tmp_path / "train" / "cat" / "00013.png"
    content = bytearray(file.read_bytes())
    content[16:24] = struct.pack(">II", 40_000, 40_000)
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    file.write_bytes(content)
    with pytest.raises(DataError, match=r"00013\.png: .*decompression bomb"):
        load(tmp_path)


GHOSTSCRIPT = b"""%!PS-Adobe-3.0 EPSF-3.0
%%BoundingBox: 0 0 32 32
%%EndComments
showpage
%%EOF
"""


@pytest.fixture
def no_program(monkeypatch):
    """Fails as soon as a program is started."""

    def started(*arguments, **options):
        pytest.fail(f"started {arguments}")

    monkeypatch.setattr(subprocess, "Popen", started)
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", "gs")


@pytest.mark.parametrize("ending", ["png", "tiff", "webp"])
def test_a_program_in_an_image_is_not_run(tmp_path, no_program, ending):
    with (
        Image.open(io.BytesIO(GHOSTSCRIPT)) as image,
        pytest.raises(pytest.fail.Exception),
    ):
        image.load()  # with Pillow alone it is
    write_class_folders(tmp_path / "folders")
    file = tmp_path / "folders/train/cat/00013.png"
    file.unlink()
    file.with_suffix(f".{ending}").write_bytes(GHOSTSCRIPT)
    with pytest.raises(DataError, match=r"00013.*no 32x32 RGB image"):
        load(tmp_path / "folders")
    write_parquet(tmp_path)
    file = tmp_path / "train-00000-of-00001.parquet"
    table = parquet.read_table(file)
    rows = table.column("img").to_pylist()
    rows[17] = {"bytes": GHOSTSCRIPT, "path": f"a.{ending}"}
    parquet.write_table(arrow.table({"img": rows, "label": table["label"]}), file)
    with pytest.raises(DataError, match=r"row 17: no 32x32 RGB image"):
        load(tmp_path)
    (tmp_path / "own/a").mkdir(parents=True)
    (tmp_path / f"own/a/x.{ending}").write_bytes(GHOSTSCRIPT)
    with pytest.raises(DataError, match=r"x\..* cannot be read as an image"):
        folders.find_images(str(tmp_path / "own")).read(0, torch.arange(1))


def many(rows):
    """Labels without end, in a kilobyte."""
    return arrow.table({"img": rows[:1] * 200_000, "label": [3] * 200_000})


def wide(rows):
    """One image of a megabyte in every row, kept once in the file."""
    large = [{"bytes": bytes(2**20)}] * 300
    return arrow.table({"img": large, "label": [3] * 300})


PARQUETS = {
    "many rows": (many, "200000 rows"),
    "large images": (wide, "row 0: no 32x32 RGB image"),
    "labels of text": (
        lambda rows: arrow.table({"img": rows, "label": ["a"] * 50}),
        "label holds",
    ),
    "labels of floats": (
        lambda rows: arrow.table({"img": rows, "label": [0.5] * 50}),
        "label holds",
    ),
    "images of text": (
        lambda rows: arrow.table({"img": ["a"] * 50, "label": [1] * 50}),
        "cannot be read",
    ),
    "images of numbers": (
        lambda rows: arrow.table({"img": [{"bytes": 1}] * 50, "label": [1] * 50}),
        "image",
    ),
    "no images": (lambda rows: arrow.table({"label": [1] * 50}), "cannot be read"),
    "labels of nothing": (
        lambda rows: arrow.table(
            {"img": rows, "label": arrow.array([None] * 50, arrow.int64())}
        ),
        "cannot be read",
    ),
    "nothing": (
        lambda rows: arrow.table({"img": rows, "label": [1] * 50})[:0],
        "cannot be read|0 values",
    ),
}


@pytest.mark.parametrize("attack", PARQUETS)
def test_a_parquet_file_of_another_form_is_refused_at_no_cost(tmp_path, attack):
    write_parquet(tmp_path)
    file = tmp_path / "train-00000-of-00001.parquet"
    make, message = PARQUETS[attack]
    table = make(parquet.read_table(file).column("img").to_pylist())
    parquet.write_table(table, file, compression="zstd")
    assert file.stat().st_size < 2**20
    usual = arrow.default_memory_pool()
    counted = arrow.proxy_memory_pool(usual)
    arrow.set_memory_pool(counted)
    with pytest.raises(DataError, match=message):
        load(tmp_path)
    arrow.set_memory_pool(usual)
    assert counted.max_memory() < 2**27


NO_FILES = {
    "pipe": os.mkfifo,
    "folder": os.mkdir,
    "device": lambda path: os.symlink("/dev/zero", path),
    "nothing": lambda path: os.symlink("nowhere", path),
}


@pytest.mark.parametrize("kind", NO_FILES)
def test_what_is_no_file_is_not_waited_for(tmp_path, kind):
    write_class_folders(tmp_path / "folders")
    (tmp_path / "own/a").mkdir(parents=True)
    write_batches(tmp_path)
    write_parquet(tmp_path / "parquet")
    own = tmp_path / "own/a/x.png"
    for file, read in {
        tmp_path / "folders/train/cat/00013.png": lambda: load(tmp_path / "folders"),
        own: lambda: folders.find_images(str(own.parents[1])).read(0, torch.arange(1)),
        tmp_path / "cifar-10-batches-py/data_batch_2": lambda: load(tmp_path),
        tmp_path / "parquet/test-00000-of-00001.parquet": lambda: load(
            tmp_path / "parquet"
        ),
    }.items():
        file.unlink(missing_ok=True)
        NO_FILES[kind](file)
        with pytest.raises(DataError):
            read()


def test_an_image_cut_short_is_named(tmp_path):
    write_class_folders(tmp_path)
    file = tmp_path / "train" / "cat" / "00013.png"
    for content, message in [
        (file.read_bytes()[:-2000], "no 32x32 RGB image"),
        (b"", "no image"),
    ]:
        file.write_bytes(content)
        with pytest.raises(DataError, match=rf"cat/00013\.png: {message}"):
            load(tmp_path)


@pytest.mark.parametrize("image", [None, {"bytes": None, "path": "a.png"}])
def test_a_parquet_row_without_an_image_is_named(tmp_path, image):
    write_parquet(tmp_path)
    file = tmp_path / "train-00000-of-00001.parquet"
    table = parquet.read_table(file)
    rows = table.column("img").to_pylist()
    rows[17] = image
    parquet.write_table(arrow.table({"img": rows, "label": table["label"]}), file)
    with pytest.raises(DataError, match="row 17: no image"):
        load(tmp_path)


def test_a_full_copy_with_one_pixel_changed_is_refused(cifar_root, tmp_path):
    cifar = data.load("cifar10", cifar_root)
    order = np.random.default_rng(0).permutation(50_000)
    train = cifar.train_images.numpy()[order], cifar.train_labels.numpy()[order]
    test = cifar.test_images.numpy(), cifar.test_labels.numpy()
    files = batch_files(kind=BINARY, given=(train, test))
    folder = write_batches(tmp_path, "cifar10", BINARY, files)
    (images, _), _ = sources.find_source("cifar10", tmp_path).read()
    assert np.array_equal(images, train[0])
    with (folder / "data_batch_3.bin").open("r+b") as batch:
        batch.seek(12_345)
        batch.write(bytes([files["data_batch_3.bin"][12_345] ^ 1]))
    with pytest.raises(DataError, match="a pixel or a label differs"):
        sources.find_source("cifar10", tmp_path).read()
