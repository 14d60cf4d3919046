"""The cache of decoded images: written once, checked on reading, never in the way."""

import os
import tempfile
from hashlib import sha256

import pytest
import torch
from copies import write_parquet

from saddlebook import data
from saddlebook.errors import DataError


def test_images_are_decoded_once(tmp_path):
    root, cache = write_parquet(tmp_path / "data"), tmp_path / "cache"
    first = data.load("cifar10", root, cache=cache)
    source = root / "train-00000-of-00001.parquet"
    before = source.stat()
    source.write_bytes(b"\0" * before.st_size)
    os.utime(source, ns=(before.st_atime_ns, before.st_mtime_ns))
    again = data.load("cifar10", root, cache=cache)
    assert torch.equal(first.train_images, again.train_images)
    assert torch.equal(first.test_images, again.test_images)
    assert torch.equal(first.train_labels, again.train_labels)
    assert torch.equal(first.test_labels, again.test_labels)
    assert first.digest == again.digest


@pytest.mark.parametrize("where", [0, 25, 40, 400, 5000, -1])
@pytest.mark.parametrize("damage", ["flip", "cut"])
def test_a_damaged_cache_is_decoded_again(tmp_path, where, damage):
    root, cache = write_parquet(tmp_path / "data"), tmp_path / "cache"
    first = data.load("cifar10", root, cache=cache)
    (file,) = cache.iterdir()
    content = bytearray(file.read_bytes())
    content[where] ^= 1
    file.write_bytes(content if damage == "flip" else content[:where])
    again = data.load("cifar10", root, cache=cache)
    assert torch.equal(first.train_images, again.train_images)
    assert first.digest == again.digest


def test_a_cache_that_cannot_be_written_costs_time_and_a_warning_only(tmp_path):
    root = write_parquet(tmp_path / "data")
    (tmp_path / "file").write_text("not a folder")
    with pytest.warns(UserWarning, match="decoded again next time"):
        loaded = data.load("cifar10", root, cache=tmp_path / "file" / "cache")
    assert len(loaded.train_labels) == 50


def test_without_a_home_nothing_is_kept_where_others_could_put_it(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    root = write_parquet(tmp_path / "data")
    loaded = data.load("cifar10", root, cache="~no_such_user/cache")
    assert len(loaded.train_labels) == 50
    assert not (tmp_path / "temporary").exists()
    with pytest.raises(DataError, match="no home folder"):
        data.load("cifar10", cache="~no_such_user/cache")


def test_a_cache_that_is_no_cache_is_decoded_again(tmp_path):
    root, cache = write_parquet(tmp_path / "data"), tmp_path / "cache"
    first = data.load("cifar10", root, cache=cache)
    (file,) = cache.iterdir()
    for header in (b"[]", b"{}", 5000 * b"[", b'{"digest": 1, "shapes": [[-1], 2]}'):
        rest = header + b"\n" + bytes(99)
        start = file.read_bytes().split(b"\n")[0][:-64]
        file.write_bytes(start + sha256(rest).hexdigest().encode() + b"\n" + rest)
        assert data.load("cifar10", root, cache=cache).digest == first.digest
    file.unlink()
    os.mkfifo(file)
    assert data.load("cifar10", root, cache=cache).digest == first.digest
