"""The large sets: lists, views, batches, and a run that no number of processes changes.

Longer proofs, with three processes and kills: ``benchmarks/large.py``.
"""

import os
import subprocess
import sys
from dataclasses import replace

import layouts
import pytest
import torch
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as tv

from saddlebook import data, runner, studies
from saddlebook.__main__ import main
from saddlebook.data import large
from saddlebook.errors import CorruptError, DataError, Stopped, UsageError
from saddlebook.experiment import Experiment
from saddlebook.schedules import cosine_rate, stepped_radius
from saddlebook.store import Store
from saddlebook.train.large import Crew, gathered, shared_batches, train_large

FEW = (12, 8, 6, 5, 4, 3, 2, 2, 2)
SET = {
    "model": "resnet8", "width": 4, "schedule": "cosine", "image_size": 32,
    "epochs": 2, "drw_epoch": 1, "shards": 2,
    "batch_size": 20, "precision": "fp64", "lr": 0.02, "rho": 0.1, "sam_climb": "shard",
    "optimizer": "sam", "reweight": "drw", "dataset": "lists:toy", "imbalance": "as_is",
}  # fmt: skip
RUN = Experiment(**SET)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """44 training images in the layout of ImageNet-LT."""
    place = tmp_path_factory.mktemp("images")
    layouts.imagenet(place, counts=FEW, tested=2)
    return place


@pytest.fixture
def copied(tmp_path):
    """As ``folder``, to damage."""
    layouts.imagenet(tmp_path, counts=FEW, tested=2)
    return tmp_path


@pytest.fixture(scope="module")
def whole(folder, tmp_path_factory):
    """The record of an uninterrupted run by one process."""
    work = tmp_path_factory.mktemp("whole")
    return runner.run_large(RUN, large.find_large(RUN, folder), work=work)


def test_labels_are_ranked_and_groups_follow(folder):
    lists = large.find_large(RUN, folder)
    assert lists.class_counts == FEW
    ties = sorted(layouts.SHUFFLED[6:])  # classes of equal size, by label
    assert lists.class_names == tuple(map(str, (*layouts.SHUFFLED[:6], *ties)))
    assert torch.bincount(lists.train.labels).tolist() == list(FEW)
    ours = large.counted_large(RUN, lists)
    assert data.groups(ours, FEW)["tail"] == [6, 7, 8]


@pytest.mark.parametrize(
    ("dataset", "cut"),
    [("imagenet-lt", (390, 445, 165)), ("inaturalist18", (842, 3701, 3599))],
)
def test_the_published_sets_are_cut_as_the_released_scripts_do(dataset, cut, folder):
    exp = studies.large(dataset)[0]
    counts = range(exp.num_classes, 0, -1)
    assert tuple(map(len, data.groups(exp, counts).values())) == cut
    for part in large._PUBLISHED[dataset][:2]:
        source = "train" if "train" in part else "test"
        text = (folder / f"toy_{source}.txt").read_text()
        (folder / f"{part}.txt").write_text(text)
    with pytest.raises(DataError, match="44 and 18 images of 9 classes, not"):
        large.find_large(exp, folder)


def test_inaturalists_layout_is_read_as_well(tmp_path):
    layouts.inaturalist(tmp_path)
    assert large.find_large(RUN, tmp_path).class_counts == layouts.COUNTS


def test_the_schedules_are_the_released_ones():
    steps = [
        stepped_radius(e, (1, 2, 3, 4), epochs=90, drw_epoch=60) for e in range(1, 91)
    ]
    assert [steps.count(value) for value in (1, 2, 3, 4)] == [5, 55, 15, 15]
    rates = [cosine_rate(e, lr=0.2, epochs=90) for e in (1, 46, 90)]
    assert rates == pytest.approx([0.2, 0.1, 6.09e-5], rel=1e-2)
    with pytest.raises(UsageError, match="no scale 'lite': full or quick"):
        studies.large("imagenet-lt", scale="lite")
    sams = [e for e in studies.large("inaturalist18") if e.optimizer == "sam"]
    assert [e.rho_steps for e in sams] == [(0.05, 0.1, 0.1, 0.2), (0.05, 0.1, 0.5, 0.5)]
    assert [e.weight_decay for e in sams] == [2e-4, 1e-4]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda t: t.replace(" 4\n", "\n", 1), "line 1: .* is not 'path label'"),
        (
            lambda t: t.replace(" 8\n", " 9\n"),
            r"10 classes, 2 of them wi.*\[8, 9\]",
        ),
        (
            lambda t: t.replace("train/n00010000", "train/n7"),
            "8 of 62 images.*--images",
        ),
    ],
)
def test_lists_that_do_not_match_are_one_line(copied, damage, message, capsys):
    path = copied / "toy_train.txt"
    path.write_text(damage(path.read_text()))
    code = main(["large", "lists:toy", "--data", str(copied), "--check"])
    line = capsys.readouterr().err
    assert (code, line.count("\n")) == (3, 1)
    with pytest.raises(DataError, match=message):
        large.find_large(RUN, copied)


@pytest.mark.parametrize("readers", [0, 1])
def test_a_truncated_image_is_named_in_one_line(copied, readers):
    lists = large.find_large(RUN, copied)
    path = copied / lists.train.paths[5]
    path.write_bytes(path.read_bytes()[:900])
    keys = iter([[(1, 4), (1, 5)]])
    with pytest.raises(DataError, match=f"{path.name} cannot be read") as error:
        list(large.fetched(large.Views(lists.train, 32), keys, readers))
    assert "\n" not in str(error.value)


def test_a_view_depends_on_seed_epoch_and_image_alone(folder):
    views = large.Views(large.find_large(RUN, folder).train, 32, seed=3)
    torch.manual_seed(0)
    first = views[1, 7]
    torch.rand(5)
    batch = views.__getitems__([(1, 6), (1, 7), (2, 7)])
    assert batch[1].equal(first)
    assert not batch[2].equal(first)
    assert torch.rand(1) != torch.rand(1)


def test_test_images_are_torchvisions_and_the_same_from_the_map(folder, tmp_path):
    lists = large.find_large(RUN, folder)
    floats = v2.ToDtype(torch.float64, True)
    usual = v2.Compose([v2.Resize(36), v2.CenterCrop(32), v2.PILToTensor(), floats])
    image = large.picture(folder / lists.test.paths[3]).convert("RGB")
    normal = tv.normalize(usual(image), *large._USUAL)
    large.pack(lists, 32)
    mapped = replace(RUN, pipeline="mapped")
    stored = large.find_large(mapped, folder)
    assert stored.digest == lists.digest
    for split in (lists.test, stored.test):
        (view,) = large.fetched(large.Views(split, 32), iter([[(0, 3)]]))
        ours = large.input_of(view, "imagenet-lt", 32, torch.float64, None)
        torch.testing.assert_close(ours[0], normal)
    path = lists.map_file(36)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataError, match="cut short"):
        large.find_large(mapped, folder)


def test_crops_on_the_device_are_torchvisions():
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(
        0, 256, (2, 3, 36, 36), dtype=torch.uint8, generator=generator
    )
    same = torch.full((2, 8), 0.5, dtype=torch.float64)  # no mirror, factors 1
    same[:, 0], same[:, 1] = (0.25 - 0.08) / 0.92, 0.5  # a square of half the width
    same[1, 4] = 0.0  # mirrored
    ours = data.augmentation.random_crops(images, 27, same)
    theirs = tv.resized_crop(images.double(), 9, 9, 18, 18, [27, 27], antialias=False)
    inner = (..., slice(1, -1), slice(1, -1))  # at the rim they see nothing outside
    torch.testing.assert_close(ours[0][inner], theirs[0][inner])
    torch.testing.assert_close(ours[1].flip(-1)[inner], theirs[1][inner])
    factors = torch.tensor([[1.3, 0.7, 1.4], [0.6, 1.2, 0.8]], dtype=torch.float64)
    jittered = data.augmentation.jittered(images.double(), factors)
    for image, row, found in zip(images, factors.tolist(), jittered, strict=True):
        bright = tv.adjust_brightness(image.double() / 255, row[0])
        wanted = tv.adjust_saturation(tv.adjust_contrast(bright, row[1]), row[2])
        torch.testing.assert_close(found / 255, wanted, atol=2e-3, rtol=0)
    numbers = data.view_numbers(0, 1, 5, 4000)
    assert 0 <= numbers.min() < 0.01
    assert numbers.mean(0) == pytest.approx(torch.full((8,), 0.5).tolist(), abs=0.02)


@pytest.mark.parametrize("world", [1, 2, 3, 6])
def test_batches_are_the_same_for_any_number_of_processes(world):
    batches = large.Batches(seed=1, count=101, size=24, pieces=6)
    assert len(batches) == 4  # five left over are too few for six pieces
    whole = [key for keys in batches.keys((1, 0), 2, 0, 1) for key in keys]
    shares = [list(batches.keys((1, 2), 2, rank, world)) for rank in range(world)]
    joined = [
        key for step in zip(*shares, strict=True) for keys in step for key in keys
    ]
    assert joined == whole[2 * 24 :]
    assert len(set(whole)) == 2 * 4 * 24


def test_processes_that_cannot_share_a_batch_are_refused():
    cpu = torch.device("cpu")
    with pytest.raises(UsageError, match="3 processes cannot share 2 shards"):
        shared_batches(RUN, 41, Crew(0, 3, cpu))
    alone = replace(RUN, shards=1)
    with pytest.raises(UsageError, match=r"needs GPUs.*shards=2"):
        shared_batches(alone, 41, Crew(0, 2, cpu))
    assert shared_batches(alone, 41, Crew(0, 1, cpu)).pieces == 1


class Once:
    """A watcher that stops the first time it is asked after an epoch."""

    done = asked = False

    def stopped(self):
        stop, self.asked = self.done and not self.asked, self.asked or self.done
        return stop

    def epoch_done(self, experiment, row):
        self.done = True


def test_a_run_that_was_stopped_ends_at_the_same_bits(folder, whole, tmp_path):
    lists = large.find_large(RUN, folder)
    watcher = Once()
    with pytest.raises(Stopped, match="epoch 2 of 2"):
        runner.run_large(RUN, lists, work=tmp_path, watcher=watcher)
    other = replace(lists, digest="0" * 64)
    made_for = large.counted_large(RUN, lists)
    with gathered() as crew, pytest.raises(CorruptError, match="dataset digest"):
        train_large(made_for, other, crew, tmp_path)
    again = runner.run_large(RUN, lists, work=tmp_path, results=tmp_path)
    assert again.curves == whole.curves
    assert again.per_class == whole.per_class
    assert (again.timing["resumes"], again.timing["processes"]) == (1, 1)
    store = Store(tmp_path / "full")
    assert [record.key for record in store.verify()] == [again.key]
    assert runner.run_large(RUN, lists, results=tmp_path) == again
    assert not again.stale


def test_two_processes_of_torchrun_give_the_record_of_one(folder, whole, tmp_path):
    given = [f"{n}={v}" for n, v in SET.items() if n not in ("reweight", "dataset")]
    words = [
        "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2",
        "-m", "saddlebook", "large", "lists:toy", "--method", "CE+DRW+SAM",
        "--data", folder, "--work", tmp_path, "--results", tmp_path, "--readers", "0",
        "--quiet", "--set", *given,
    ]  # fmt: skip
    done = subprocess.run(
        [sys.executable, *map(str, words)],
        capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-1000:]
    (record,) = Store(tmp_path / "full").records()
    assert record.timing["processes"] == 2
    for name in ("train_loss", "lr", "accuracy", "head", "mid", "tail"):
        assert record.curves[name] == pytest.approx(whole.curves[name], abs=1e-5)
    assert record.per_class["train_loss"] == pytest.approx(
        whole.per_class["train_loss"], abs=1e-5
    )
