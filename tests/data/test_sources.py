"""CIFAR in every layout, and everything that can be wrong with a copy."""

import os
import pickle
import struct

import numpy as np
import pytest
from copies import (
    KINDS,
    NAMES,
    PYTHON,
    assert_same,
    batch_files,
    load,
    splits,
    write_archive,
    write_batches,
    write_class_folders,
    write_parquet,
)

from saddlebook.data import sources
from saddlebook.data.batches import RELEASES


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("part", ["", "{name}", "{name}/data", "plain_text"])
def test_parquet_gives_the_images_in_row_order(tmp_path, name, part):
    write_parquet(tmp_path / part.format(name=name), name)
    assert_same(load(tmp_path, name), splits(name))


def test_shards_are_joined_in_the_order_of_their_names(tmp_path):
    (images, labels), test = splits()
    for shard, half in enumerate((slice(0, 30), slice(30, None))):
        folder = tmp_path / str(shard)
        write_parquet(folder, given=((images[half], labels[half]), test))
        file = folder / "train-00000-of-00001.parquet"
        file.rename(tmp_path / f"train-0000{shard}-of-00002.parquet")
    (folder / "test-00000-of-00001.parquet").rename(tmp_path / "test-0.parquet")
    assert_same(load(tmp_path), splits())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", KINDS)
def test_unpacked_batches_give_the_images_in_file_order(tmp_path, name, kind):
    write_batches(tmp_path, name, kind)
    assert_same(load(tmp_path, name), splits(name))


@pytest.mark.parametrize("protocol", range(6))
def test_batches_are_read_in_every_pickle_protocol(tmp_path, protocol):
    write_batches(tmp_path, files=batch_files(protocol=protocol))
    assert_same(load(tmp_path), splits())


def python2_batch(images, labels):
    """The bytes that Python 2 and NumPy 1 wrote, opcode by opcode, as released."""
    pixels = images.tobytes()
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\0\x85U\x01b\x87R("
        b"K\x01K" + bytes([len(images)]) + b"M\0\x0c\x86cnumpy\ndtype\nU\x02u1K\0K\x01"
        b"\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\0tb\x89"
        b"T" + struct.pack("<I", len(pixels)) + pixels + b"tb"
    )
    numbers = b"".join(b"K" + bytes([label]) for label in labels)
    return b"\x80\x02}(U\x04data" + array + b"U\x06labels](" + numbers + b"eu."


def test_batches_as_python_2_wrote_them_are_read(tmp_path):
    (images, labels), test = splits()
    parts = zip(np.split(images, 5), np.split(labels, 5), strict=True)
    names = RELEASES["cifar10"][PYTHON].files
    files = [python2_batch(*part) for part in (*parts, test)]
    write_batches(tmp_path, files=dict(zip(names, files, strict=True)))
    assert_same(load(tmp_path), splits())


def test_batches_with_bytes_as_keys_are_read(tmp_path):
    files = {
        file: pickle.dumps({k.encode(): v for k, v in pickle.loads(content).items()})
        for file, content in batch_files().items()
    }
    write_batches(tmp_path, files=files)
    assert_same(load(tmp_path), splits())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", KINDS)
def test_an_archive_is_read_without_being_unpacked(tmp_path, name, kind):
    path, release = write_archive(tmp_path, name, kind)
    (images, labels), (test_images, _) = release.read(name, path)
    (expected, expected_labels), (expected_test, _) = splits(name)
    assert np.array_equal(images, expected)
    assert np.array_equal(labels, expected_labels)
    assert np.array_equal(test_images, expected_test)
    assert os.listdir(tmp_path) == [path.name]


def test_class_folders_give_the_images_by_class_and_file_name(tmp_path):
    write_class_folders(tmp_path / "cifar10")
    (images, labels), _ = splits()
    by_class = np.argsort(labels, kind="stable")
    loaded = load(tmp_path)
    assert np.array_equal(loaded.train_images, images[by_class])
    assert np.array_equal(loaded.train_labels, labels[by_class])


def test_every_layout_of_one_dataset_has_one_digest(tmp_path):
    writers = [write_parquet, write_class_folders, write_batches]
    for number, write in enumerate(writers):
        write(tmp_path / str(number))
    digests = {
        load(tmp_path, root=tmp_path / str(number)).digest
        for number in range(len(writers))
    }
    assert len(digests) == 1


def test_the_original_files_come_before_parquet_and_folders(tmp_path):
    write_class_folders(tmp_path / "cifar10", given=splits(each=3))
    write_parquet(tmp_path, given=splits(each=4))
    assert len(load(tmp_path).train_labels) == 40
    write_batches(tmp_path)
    assert len(load(tmp_path).train_labels) == 50


def test_class_names_are_sorted_as_the_labels_are():
    for name, classes in (("cifar10", 10), ("cifar100", 100)):
        assert len(sources.CLASS_NAMES[name]) == classes
        assert list(sources.CLASS_NAMES[name]) == sorted(sources.CLASS_NAMES[name])
