"""Damaged, edited, forged and foreign records: each refused with its reason."""

import json
import os
import re

import pytest
from records import EXPERIMENT, LAST, record

from saddlebook.disk.files import sha256
from saddlebook.errors import CorruptError, VerifyError
from saddlebook.store import Record, Store


def test_a_record_cut_short_anywhere_is_refused(tmp_path):
    store = Store(tmp_path)
    path = store.add(record())
    content = path.read_bytes()
    for length in range(0, len(content) - 1, 101):
        path.write_bytes(content[:length])
        with pytest.raises(CorruptError, match=re.escape(path.name)):
            store.get(EXPERIMENT)


def test_a_record_with_one_bit_flipped_is_refused_or_means_the_same(tmp_path):
    store = Store(tmp_path)
    path = store.add(record())
    content = path.read_bytes()
    refused = 0
    for position in range(0, len(content), 67):
        changed = bytearray(content)
        changed[position] ^= 1 << position % 8
        path.write_bytes(changed)
        try:
            assert store.get(EXPERIMENT) == record()
        except CorruptError:
            refused += 1
    assert refused > 0.95 * len(content) / 67


@pytest.mark.parametrize("part", ["last_accuracy", "best_accuracy", "train_loss"])
def test_a_record_edited_by_hand_is_refused(tmp_path, part):
    store = Store(tmp_path)
    path = store.add(record())
    content = json.loads(path.read_text())
    content["per_class"][part][3] += 1
    path.write_text(json.dumps(content))
    with pytest.raises(CorruptError, match="digest mismatch"):
        store.get(EXPERIMENT)
    with pytest.raises(VerifyError, match=f"{path.name}: digest mismatch"):
        store.verify()


def forged(change):
    """A record changed by ``change`` whose digest was made to fit."""
    content = record().to_dict()
    change(content)
    content.pop("digest", None)
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return content | {"digest": sha256(text.encode())}


def put(part, name, value):
    def change(content):
        content[part][name] = value

    return change


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (put("per_class", "last_accuracy", [101.0, *LAST[1:]]), "no percentage"),
        (put("per_class", "last_accuracy", [-1.0, *LAST[1:]]), "no percentage"),
        (put("per_class", "last_accuracy", LAST[1:]), "not 10 numbers"),
        (put("per_class", "last_accuracy", [*LAST[:9], 50]), "disagree"),
        (put("per_class", "best_accuracy", [20.0] * 10), "not the best"),
        (put("per_class", "train_loss", ["low"] * 10), "not 10 numbers"),
        (put("per_class", "class_counts", [5000] * 10), "class_counts are others"),
        (put("curves", "lr", [0.1]), "differ in length"),
        (put("curves", "epoch", [1] * 41), "do not end at epoch 200"),
        (put("curves", "tail", [200.0] * 41), "tail is no percentage"),
        (put("experiment", "rhoo", 0.1), "did you mean 'rho'"),
        (put("experiment", "lr", 0.2), "not that of its experiment"),
        (put("experiment", "imbalance_factor", 0.01), "100 means 100:1"),
        (put("provenance", "commit", "/home/someone/x"), "names a path"),
        (put("provenance", "device", "C:\\Users"), "names a path"),
        (lambda content: content.update(best_epoch=201), "best_epoch out of range"),
        (lambda content: content.update(schema=99), "schema 1"),
        (lambda content: content.update(host="mine"), "host"),
        (lambda content: content.pop("curves"), "curves"),
        (lambda content: content["provenance"].pop("commit"), "lacks commit"),
        (lambda content: content.update(curves=[]), "curves lacks epoch"),
        (lambda content: content.update(curves=3), "int"),
        (lambda content: content.update(spectra=[{"class": 3}]), "of no class"),
        (lambda content: content["spectra"][0].update(epoch=3), "of no class"),
        (lambda content: content["spectra"][0].update(trace=float("inf")), "JSON"),
    ],
)
def test_an_impossible_record_is_refused_even_with_a_fitting_digest(change, reason):
    with pytest.raises(CorruptError, match=re.escape(reason)):
        Record.from_dict(forged(change))


@pytest.mark.parametrize(
    "content",
    [b"", b"null", b"[]", b"{}", b'{"schema": 1}', b"[" * 60_000, b"\xff\xfe", b"NaN"],
)
def test_a_file_that_is_no_record_is_refused(tmp_path, content):
    path = tmp_path / f"{EXPERIMENT.slug}.json"
    path.write_bytes(content)
    with pytest.raises(CorruptError, match=re.escape(str(path))) as caught:
        Store(tmp_path).get(EXPERIMENT)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("make", [os.mkdir, lambda path: os.symlink("nowhere", path)])
def test_a_folder_or_a_dead_link_in_place_of_a_record_is_refused(tmp_path, make):
    make(tmp_path / f"{EXPERIMENT.slug}.json")
    with pytest.raises(CorruptError, match=EXPERIMENT.key):
        Store(tmp_path).get(EXPERIMENT)
