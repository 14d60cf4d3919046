"""Archives and batches that are damaged, foreign or malicious."""

import functools
import io
import os
import pickle
import struct
import tarfile
import tracemalloc

import numpy as np
import pytest
import torch
from copies import (
    BINARY,
    KINDS,
    NAMES,
    batch_files,
    expecting,
    load,
    write_archive,
    write_batches,
)

from saddlebook.data.batches import RELEASES, _python
from saddlebook.errors import DataError


def test_missing_data_says_what_to_run(tmp_path):
    with pytest.raises(DataError, match=r"no cifar10 at .*download=True") as caught:
        load(tmp_path, root=tmp_path / "nowhere")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"\(0 bytes\)"),
        (b"<!DOCTYPE html><html>404</html>", "is a web page"),
        (b"\n <html>", "is a web page"),
        (b"\x1f\x8b cut short", "expected sha256"),
    ],
)
def test_an_archive_that_is_not_the_released_one_is_refused(
    tmp_path, name, kind, content, message
):
    (tmp_path / RELEASES[name][kind].archive).write_bytes(content)
    with pytest.raises(DataError, match=message):
        load(tmp_path, name)


def test_an_archive_with_one_byte_changed_is_refused(tmp_path):
    path, release = write_archive(tmp_path)
    content = bytearray(path.read_bytes())
    content[1000] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match=f"expected sha256 {release.sha256}"):
        release.read("cifar10", path)


@pytest.mark.parametrize("length", [10, 5000, 100_000])
def test_an_archive_cut_short_is_refused_even_if_its_digest_were_known(
    tmp_path, length
):
    path, release = write_archive(tmp_path)
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(DataError, match=r"damaged|lacks"):
        expecting(release, path).read("cifar10", path)


def special(name, kind, target=""):
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, target
    return member


BATCH = "cifar-10-batches-py/data_batch_1"


@pytest.mark.parametrize(
    "member",
    [
        special(BATCH, tarfile.SYMTYPE, "/etc/passwd"),
        special(BATCH, tarfile.LNKTYPE, "cifar-10-batches-py/data_batch_2"),
        special(BATCH, tarfile.FIFOTYPE),
        special(BATCH, tarfile.DIRTYPE),
        special(BATCH, tarfile.CHRTYPE),
        special(BATCH, tarfile.REGTYPE),
    ],
)
def test_a_batch_in_an_archive_is_one_plain_file(tmp_path, member):
    files = batch_files()
    if member.type != tarfile.REGTYPE:
        del files["data_batch_1"]
    path, release = write_archive(tmp_path, files=files, extra=[member])
    with pytest.raises(DataError, match="no single plain file"):
        release.read("cifar10", path)


def test_an_archive_without_one_batch_names_it(tmp_path):
    files = batch_files()
    del files["data_batch_4"]
    path, release = write_archive(tmp_path, files=files)
    with pytest.raises(DataError, match="lacks data_batch_4"):
        release.read("cifar10", path)


def test_strange_members_of_an_archive_are_written_nowhere(tmp_path):
    inside = tmp_path / "root"
    inside.mkdir()
    strange = [
        special("../outside", tarfile.REGTYPE),
        special(str(tmp_path / "absolute"), tarfile.REGTYPE),
        special("link", tarfile.SYMTYPE, "../"),
    ]
    path, release = write_archive(inside, extra=strange)
    assert len(release.read("cifar10", path)[0][1]) == 50
    assert os.listdir(tmp_path) == ["root"]
    assert os.listdir(inside) == [path.name]


class Calls:
    """Pickles to a call of a function, as a malicious file would."""

    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


def malicious(canary):
    """Pickles that would make the canary or reach further."""
    code = f"open({str(canary)!r}, 'w').close()"
    return {
        "os.system": pickle.dumps(Calls(os.system, f"touch {canary}"), 2),
        "eval": pickle.dumps(Calls(eval, code), 2),
        "exec": pickle.dumps(Calls(exec, code), 4),
        "open": pickle.dumps(Calls(open, str(canary), "w"), 2),
        "partial": pickle.dumps(Calls(functools.partial, os.mkdir, str(canary)), 2),
        "mkdir": pickle.dumps({b"data": Calls(os.mkdir, str(canary))}, 5),
        "getattr": pickle.dumps(Calls(getattr, str(canary), "upper"), 2),
        "numpy.load": pickle.dumps(Calls(np.load, str(canary)), 2),
        "tofile": b"\x80\x04\x8c\x05numpy\x8c\x0endarray.tofile\x93.",
        "torch.load": pickle.dumps(Calls(torch.load, str(canary)), 2),
        "subclass": pickle.dumps(np.rec.array([1]), 2),
        "encode": pickle.dumps(Calls(io.FileIO, str(canary), "w"), 2),
    }


@pytest.mark.parametrize("attack", malicious("canary"))
def test_a_malicious_batch_runs_nothing(tmp_path, attack):
    canary = tmp_path / "canary"
    files = batch_files() | {"data_batch_3": malicious(canary)[attack]}
    write_batches(tmp_path, files=files)
    with pytest.raises(DataError, match="may be malicious"):
        load(tmp_path)
    assert not canary.exists()


def text(value):
    return b"X" + struct.pack("<I", len(value)) + value


def dtype(code, state=b""):
    return b"cnumpy\ndtype\n(" + text(code) + b"\x89\x88tR" + state


def array(dtype, content):
    """An array of one item; ``content`` pushes its bytes."""
    made = b"cnumpy._core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00t"
    return made + text(b"b") + b"tR(K\x01(K\x01t" + dtype + b"\x89" + content + b"tb"


# A field that begins a terabyte behind the array's only item
FAR = b"}(" + text(b"a") + b"(" + dtype(b"i8") + b"\x8a\x06" + bytes(5) + b"\x01tu"
FAR = b"(K\x03" + text(b"|") + b"N(" + text(b"a") + b"t" + FAR + b"K\x08K\x01K\x00tb"
OUTSIDE = array(dtype(b"V8", FAR), b"C\x08" + bytes(8))
LAUGHS = b"](K\x01K\x01e" + b"".join(
    b"q" + bytes([n]) + b"](" + 30 * (b"h" + bytes([n])) + b"e" for n in range(9)
)
PAIRS = b")" + b"".join(
    b"q" + bytes([n]) + b"h" + bytes([n]) + b"\x86" for n in range(60)
)
HOSTILE = {
    "writes behind an array": OUTSIDE + b"(" + text(b"a") + b"K\x01u",
    "reads behind an array": b"}("
    + text(b"labels")
    + b"]"
    + text(b"data")
    + OUTSIDE
    + b"u",
    "array of pointers": b"}"
    + text(b"data")
    + array(dtype(b"O"), b"C\x08AAAAAAAA")
    + b"s",
    "state of a function": b"cnumpy\nndarray\n}" + text(b"__module__") + b"K\x01sb",
    "gigabytes for one number": b"}r" + struct.pack("<I", 2**29),
    "gigabytes of text": b"\x8d" + struct.pack("<Q", 2**33),
    "gigabytes of bytes": b"\x96" + struct.pack("<Q", 2**33),
    "a list of lists of lists": b"}" + text(b"data") + LAUGHS + b"s",
    "labels of lists": b"}(" + text(b"data") + LAUGHS + text(b"labels") + LAUGHS + b"u",
    "a key that takes for ever": b"}" + PAIRS + b"K\x01s",
    "deep": 40_000 * b"]" + 39_999 * b"a",
    "long": 100_100 * b"N",
    "numbers of 9999 digits": b"I" + 9999 * b"7" + b"\n",
    "persistent": b"Pos.system\n",
    "extension": b"\x82\x01",
    "instance": b"(ios\nsystem\n",
}


@pytest.mark.parametrize("attack", HOSTILE)
def test_a_batch_that_attacks_its_reader_is_refused_at_no_cost(
    tmp_path, monkeypatch, attack
):
    monkeypatch.setattr("saddlebook.data.batches._MAX_STEPS", 100_000)
    content = b"\x80\x04" + HOSTILE[attack] + b"."
    write_batches(tmp_path, files=batch_files() | {"data_batch_3": content})
    tracemalloc.start()
    with pytest.raises(DataError) as caught:
        load(tmp_path)
    assert tracemalloc.get_traced_memory()[1] < 50 * 2**20
    tracemalloc.stop()
    assert "\n" not in str(caught.value)


def test_a_batch_as_python_2_pickled_it_is_read():
    def short(value):
        return b"U" + bytes([len(value)]) + value

    kind = b"cnumpy\ndtype\nq\x03(" + short(b"u1") + b"K\x00K\x01tR(K\x03" + short(b"|")
    kind += b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    pixels = bytes(range(256)) * 12
    made = b"cnumpy.core.multiarray\n_reconstruct\nq\x01(cnumpy\nndarray\nq\x02(K\x00t"
    made += short(b"b") + b"tR(K\x01K\x01M\x00\x0c\x86" + kind + b"\x89"
    made += b"T" + struct.pack("<I", 3072) + pixels + b"tb"
    labels = short(b"labels") + b"](K\x07e"
    batch = b"\x80\x02}q\x00(" + short(b"data") + made + labels + b"u."
    assert pickle.loads(batch, encoding="latin1")["data"].shape == (1, 3072)
    images, labels = _python("cifar10", batch)
    assert images.tobytes() == pixels
    assert labels.tolist() == [7]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cannot be read"),
        (b"\x80\x02}q", "cannot be read"),
        (pickle.dumps([1, 2]), "cannot be read"),
        (pickle.dumps({b"data": np.zeros((10, 3072), np.uint8)}), "no labels"),
        (pickle.dumps({"data": np.zeros((9, 3072), np.uint8), "labels": [0]}), "pixel"),
        (pickle.dumps({"data": np.zeros((1, 3072)), "labels": [0]}), "float64"),
        (pickle.dumps({"data": b"x", "labels": ["cat"]}), "holds"),
    ],
)
def test_a_damaged_batch_is_refused(tmp_path, content, message):
    write_batches(tmp_path, files=batch_files() | {"data_batch_2": content})
    with pytest.raises(DataError, match=message):
        load(tmp_path)


def test_binary_batches_of_the_wrong_length_are_refused(tmp_path):
    files = batch_files(kind=BINARY)
    files["test_batch.bin"] = files["test_batch.bin"][:-1]
    write_batches(tmp_path, "cifar10", BINARY, files)
    with pytest.raises(DataError, match=r"test_batch\.bin of cifar10 cannot be read"):
        load(tmp_path)


def test_a_folder_without_one_batch_names_it(tmp_path):
    (write_batches(tmp_path) / "data_batch_4").unlink()
    with pytest.raises(DataError, match="lacks data_batch_4"):
        load(tmp_path)
