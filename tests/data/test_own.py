"""A user's own images, from class folders to a record."""

import dataclasses
import os
import shutil
from itertools import product

import pytest
import torch
from PIL import Image

import saddlebook as sb
from saddlebook import data, studies
from saddlebook.__main__ import main
from saddlebook.errors import DataError, UsageError
from saddlebook.findings import report

COUNTS = {"ant": 4, "bee": 20, "cat": 10, "dog": 30}


def picture(path, size=(8, 8), colour=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (colour, 0, 0)).save(path)


def one_folder(root, counts=COUNTS, **size):
    for label, (name, count) in enumerate(counts.items()):
        for n in range(count):
            picture(
                root / "mine" / name / f"{n:03d}.png", colour=50 * label + n, **size
            )
    return root


def load(root):
    return data.load("folder:mine", root, cache=root / "cache")


def counts_of(labels):
    return torch.bincount(labels).tolist()


def test_one_folder_is_split_by_class_and_always_alike(tmp_path):
    one_folder(tmp_path)
    first = load(tmp_path)
    assert first.class_names == ("ant", "bee", "cat", "dog")
    assert counts_of(first.test_labels) == [1, 4, 2, 6]
    assert counts_of(first.train_labels) == [3, 16, 8, 24]
    trained, tested = (
        {tuple(image[:, 0, 0].tolist()) for image in images}
        for images in (first.train_images, first.test_images)
    )
    assert len(trained) == 51
    assert not trained & tested
    shutil.rmtree(tmp_path / "cache")
    assert load(tmp_path).digest == first.digest


def test_folders_written_from_a_dataset_are_that_dataset(tmp_path):
    digits = data.load("digits")
    data.to_folders(digits, tmp_path / "mine")
    for _ in range(2):  # decoded, then from the cache
        found = load(tmp_path)
        order = torch.argsort(digits.train_labels, stable=True)
        assert torch.equal(found.train_images, digits.train_images[order])
        assert torch.equal(found.train_labels, digits.train_labels[order])
        assert len(found.test_images) == len(digits.test_images)
        assert found.class_names == digits.class_names


def test_folders_written_again_replace_only_what_changed(tmp_path):
    """Another process may be reading them."""
    digits = data.load("digits")
    data.to_folders(digits, tmp_path)
    before = {path: path.stat().st_ino for path in tmp_path.rglob("*.png")}
    spoilt = min(before)
    spoilt.write_bytes(b"half of a picture")
    data.to_folders(digits, tmp_path)
    after = {path: path.stat().st_ino for path in tmp_path.rglob("*.png")}
    assert [path for path in before if before[path] != after[path]] == [spoilt]


@pytest.mark.parametrize(
    ("names", "order"),
    [
        (["b", "a", "B"], ["B", "a", "b"]),
        (["10", "9", "2"], ["2", "9", "10"]),
        (["010", "009", "2x"], ["009", "010", "2x"]),
    ],
)
def test_classes_are_in_torchvisions_order_and_integers_in_their_own(
    tmp_path, names, order
):
    one_folder(tmp_path, dict.fromkeys(names, 2))
    picture(tmp_path / "mine" / order[0] / "deeper" / "x.PNG")
    (tmp_path / "mine" / order[0] / "notes.txt").write_text("no image")
    found = load(tmp_path)
    assert list(found.class_names) == order
    assert len(found.train_labels) + len(found.test_labels) == 7


def test_more_classes_than_a_byte_counts_survive_the_cache(tmp_path):
    one_folder(tmp_path, {f"{n:03d}": 2 for n in range(300)})
    load(tmp_path)
    assert load(tmp_path).train_labels.tolist() == list(range(300))


@pytest.mark.parametrize(
    ("size", "kept"), [((16, 16), 16), ((28, 28), 64), ((90, 70), 64), ((200, 200), 64)]
)
def test_images_come_at_one_size(tmp_path, size, kept):
    one_folder(tmp_path, dict.fromkeys("abc", 2), size=size)
    assert load(tmp_path).train_images.shape == (3, 3, kept, kept)


def spoil(root, how):
    mine = root / "mine"
    if how == "absent":
        shutil.rmtree(mine)
    elif how == "two classes":
        for name in ("ant", "bee"):
            shutil.rmtree(mine / name)
    elif how == "empty":
        (mine / "eel").mkdir()
    elif how == "single":
        picture(mine / "eel" / "x.png")
    elif how == "no image":
        (mine / "ant" / "000.png").write_bytes(b"<html>")
    elif how == "pipe":  # opening it would wait for ever
        (mine / "ant" / "000.png").unlink()
        os.mkfifo(mine / "ant" / "000.png")
    else:
        picture(mine / "train" / "ant" / "x.png")
        picture(mine / "test" / "bee" / "x.png")


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("absent", "no folder mine"),
        ("two classes", "three classes"),
        ("empty", r"1 without images \['eel'\]"),
        ("single", "class eel has one image"),
        ("no image", "000.png cannot be read"),
        ("pipe", "000.png cannot be read"),
        ("other classes", "three classes"),
    ],
)
def test_what_cannot_be_trained_on_is_refused_in_one_line(tmp_path, how, message):
    spoil(one_folder(tmp_path), how)
    with pytest.raises(DataError, match=message) as error:
        load(tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dataset": "folder:../mine"}, "folder:NAME"),
        ({"dataset": "folder:"}, "folder:NAME"),
        ({"imbalance": "as_is"}, "imbalance_factor=1"),
        ({"classes": 5}, "folder:NAME only"),
        ({"images_digest": "0" * 16}, "folder:NAME only"),
        (
            {"dataset": "folder:a", "imbalance": "as_is", "imbalance_factor": 9},
            "no effect",
        ),
    ],
)
def test_experiments_that_make_no_sense_are_refused(changes, message):
    with pytest.raises(UsageError, match=message):
        sb.Experiment(**changes)


def test_groups_are_thirds_by_count(tmp_path):
    images = load(one_folder(tmp_path))
    exp = data.counted(OWN, images)
    groups = data.groups(exp, counts_of(images.train_labels))
    assert {name: list(group) for name, group in groups.items()} == {
        "head": [3], "mid": [1, 2], "tail": [0],
    }  # fmt: skip


OWN = sb.at_scale(
    sb.Experiment(
        dataset="folder:mine", imbalance="as_is", optimizer="sam", rho=0.1,
        spectra_at=(200,),
    ),
    "quick",
)  # fmt: skip


def test_own_images_train_into_a_record_like_all_others(tmp_path):
    one_folder(tmp_path)
    where = {
        "data_root": tmp_path, "work": tmp_path / "work", "results": tmp_path / "out",
    }  # fmt: skip
    record = sb.run(OWN, **where)
    exp = record.experiment
    assert (exp.classes, len(exp.images_digest)) == (4, 16)
    assert record.per_class["class_counts"] == [3, 16, 8, 24]
    assert record.per_class["class_names"] == list(COUNTS)
    assert record.accuracy.tail == record.per_class["last_accuracy"][0]
    assert {s["class"] for s in record.spectra} == {0, 1, 2, 3}
    assert exp.slug.startswith("mine-as-is_ce-sam_s0_")
    again = sb.run(OWN, **where)  # read, not trained
    assert again.to_bytes() == record.to_bytes()
    assert sb.Store(tmp_path / "out/quick").verify() == [record]
    assert report.per_class([record])["group"].tolist() == [
        "tail",
        "mid",
        "mid",
        "head",
    ]
    assert "as is, 24 to 3 images" in report.setting([record])
    picture(tmp_path / "mine" / "ant" / "one_more.png")
    stale = sb.Experiment.from_dict(exp.to_dict() | {"seed": 1})
    with pytest.raises(DataError, match="other images"):
        sb.run(stale, **where)
    # beside a run on today's images, too, where nothing is measured
    both = [dataclasses.replace(e, spectra_at=()) for e in (OWN, stale)]
    with pytest.raises(DataError, match="other images"):
        sb.run_all(both, **where, group=2)
    assert len(sb.Store(tmp_path / "out/quick").records()) == 2


def test_a_long_tail_is_drawn_from_as_many_as_the_smallest_class_has(tmp_path):
    images = load(one_folder(tmp_path, dict.fromkeys("abcd", 50)))
    exp = sb.Experiment(dataset="folder:mine", imbalance_factor=10)
    exp = data.counted(sb.at_scale(exp, "quick"), images)
    assert (exp.max_count, exp.imbalance_factor) == (40, 10.0)
    record = sb.run(exp, data_root=tmp_path, work=tmp_path / "work")
    assert record.per_class["class_counts"] == [40, 18, 8, 4]


def test_a_study_runs_on_own_images_from_the_command_line(tmp_path, capsys):
    data.to_folders(data.load("digits"), tmp_path / "mine")
    options = ["--scale", "quick", "--seeds", "0", "--dataset", "folder:mine"]
    options += ["--data", str(tmp_path), "--results", str(tmp_path / "out")]
    options += ["--work", str(tmp_path / "work")]
    assert main(["run", "table1", *options, "--only", "CE,CE+SAM", "--quiet"]) == 0
    assert main(["status", "table1", *options]) == 0
    assert capsys.readouterr().out.count("done") == 2
    table = report.by_method(sb.Store(tmp_path / "out/quick").records())
    assert set(table["method"]) == {"CE", "CE+SAM"}


def test_studies_go_over_to_own_images_as_a_whole():
    for name, scale in product(studies.STUDIES, ("full", "lite")):
        ours, theirs = (studies.named(name, scale, (0,), of) for of in ("", "folder:a"))
        assert len(ours) == len(theirs)
        assert {e.imbalance for e in theirs} == {"as_is"}
        named = ["noise", "epochs", "image_size"]
        # at lite CIFAR-100-LT has radii of its own; own images take CIFAR-10-LT's
        named += ["rho"] * (scale == "full" or not name.endswith("cifar100"))
        kept = [getattr(e, field) for e in ours for field in named]
        assert kept == [getattr(e, field) for e in theirs for field in named]
