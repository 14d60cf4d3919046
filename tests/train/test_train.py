"""The training loop: resume, isolation, failures; on digits, in float64."""

import os
import random
import signal
from dataclasses import replace

import numpy as np
import pytest
import torch

from saddlebook import data, losses
from saddlebook.disk.files import read_checkpoint, save_checkpoint
from saddlebook.disk.provenance import numerics_digest
from saddlebook.errors import CorruptError, NumericalError, Stopped
from saddlebook.experiment import Experiment
from saddlebook.train import train
from saddlebook.train.loop import Run
from saddlebook.train.run import build_replica, prepare

TINY = Experiment(
    scale="quick", dataset="digits", max_count=40, imbalance_factor=4.0, image_size=8,
    model="resnet8", width=4, epochs=6, drw_epoch=4, batch_size=32, reweight="drw",
    precision="fp64",
)  # fmt: skip
SAM = replace(TINY, optimizer="sam", rho=0.1)
LPF = replace(TINY, optimizer="lpf", noise=0.01, lpf_samples=4)


@pytest.fixture(scope="session")
def digits():
    return data.load("digits")


class Stopper:
    """Stops at one step, counted over the whole training."""

    def __init__(self, at):
        self.at, self.steps, self.rows = at, 0, []

    def stopped(self):
        self.steps += 1
        return self.steps > self.at

    def epoch_done(self, experiment, row):
        self.rows.append(row)


def final_state(experiment, folder):
    meta, tensors = read_checkpoint(folder / experiment.slug / "latest.ckpt")
    assert meta["epoch"] == experiment.epochs
    return tensors, [row["per_class"] for row in meta["history"]]


def same(a, b):
    return a[1] == b[1] and all(torch.equal(a[0][name], b[0][name]) for name in b[0])


@pytest.mark.parametrize("experiment", [TINY, SAM, LPF], ids=["sgd", "sam", "lpf"])
def test_a_run_stopped_anywhere_ends_as_if_it_had_not_been(
    experiment, digits, tmp_path
):
    train([experiment], digits, tmp_path / "whole")
    whole = final_state(experiment, tmp_path / "whole")
    moments = random.Random(0)
    for trial in range(6):
        folder = tmp_path / str(trial)
        done = False
        while not done:
            stopper = Stopper(at=moments.randrange(30))
            try:
                train([experiment], digits, folder, watcher=stopper)
                done = True
            except Stopped:
                pass
        assert same(final_state(experiment, folder), whole)


def killed_while_training(experiment, digits, folder, step):
    """Train in a child that SIGKILLs itself at ``step``; True if it got to the end."""
    child = os.fork()
    if child == 0:
        bomb = Stopper(at=step)
        bomb.stopped = lambda: (
            Stopper.stopped(bomb) and os.kill(os.getpid(), signal.SIGKILL)
        )
        train([experiment], digits, folder, watcher=bomb, save_every=0.0)
        os._exit(0)
    return os.waitpid(child, 0)[1] == 0


@pytest.mark.parametrize("experiment", [TINY, SAM], ids=["sgd", "sam"])
def test_a_run_killed_at_25_random_moments_ends_bit_for_bit_the_same(
    experiment, digits, tmp_path
):
    train([experiment], digits, tmp_path / "whole")
    whole = final_state(experiment, tmp_path / "whole")
    moments, kills, trial = random.Random(1), 0, 0
    while kills < 25:
        trial += 1
        folder = tmp_path / str(trial)
        while not killed_while_training(
            experiment, digits, folder, moments.randrange(40)
        ):
            kills += 1
        assert same(final_state(experiment, folder), whole)


def test_runs_side_by_side_do_not_touch_each_other(digits, tmp_path):
    others = [
        replace(SAM, seed=1),
        replace(TINY, loss="vs", reweight="none"),
        replace(SAM, loss="ldam", rho=0.4, epochs=5),
    ]
    train([SAM], digits, tmp_path / "alone")
    train([*others, SAM], digits, tmp_path / "company")
    alone = final_state(SAM, tmp_path / "alone")
    assert same(final_state(SAM, tmp_path / "company"), alone)


def test_a_run_that_other_code_began_says_so(digits, tmp_path):
    (outcome,) = train([TINY], digits, tmp_path)
    file = tmp_path / TINY.slug / "latest.ckpt"
    meta, tensors = read_checkpoint(file)
    save_checkpoint(file, meta | {"numerics": "of before"}, tensors)
    (again,) = train([TINY], digits, tmp_path)
    assert (outcome.numerics, again.numerics) == (numerics_digest(), "of before")
    del meta["numerics"]
    save_checkpoint(file, meta, tensors)
    assert train([TINY], digits, tmp_path)[0].numerics == ""


@pytest.mark.parametrize("left", [2, 3, 7, 13, 32])
def test_no_part_of_a_batch_of_lpf_holds_a_single_image(digits, tmp_path, left):
    exp = replace(LPF, lpf_samples=8)
    replica = build_replica(exp, prepare(exp, digits, "cpu").class_counts)
    sizes = []
    nothing = torch.zeros(())
    replica._accumulate = lambda part, *_: sizes.append(len(part)) or nothing
    images = torch.zeros(left, 3, 8, 8)
    replica._lpf(images, torch.zeros(left, dtype=torch.long), None)
    assert sum(sizes) == left
    assert min(sizes) > 1


def test_seeds_differ_in_weights_order_and_augmentation(digits, tmp_path):
    first, second = train([TINY, replace(TINY, seed=1)], digits, tmp_path)
    assert first.history != second.history


def test_the_outcome_holds_what_a_record_needs(digits, tmp_path):
    watcher = Stopper(at=10**9)
    (outcome,) = train([TINY], digits, tmp_path, watcher=watcher)
    assert [row["epoch"] for row in watcher.rows] == [1, 2, 3, 4, 5, 6]
    assert [row["epoch"] for row in outcome.history] == [1, 2, 3, 4, 5, 6]
    assert set(outcome.weights) == set(TINY.milestones)
    assert len(outcome.train_loss) == 10
    assert np.isfinite(outcome.train_loss).all()
    assert outcome.class_counts[0] == 40
    assert outcome.class_counts[9] == 10
    assert outcome.numerics == numerics_digest()


def published_schedule(epoch):
    """As the released script writes it, epochs from 0: rate and index of the weights.

    Its rate: warm-up in 5 epochs, factors from the 161st and the 181st; its DRW takes
    entry ``epoch // 160`` of (0, 0.9999) as beta.
    """
    lr, number = 0.1, epoch + 1
    if number <= 5:
        return lr * number / 5, epoch // 160
    if number > 180:
        return lr * 0.0001, epoch // 160
    return (lr * 0.01 if number > 160 else lr), epoch // 160


def test_every_one_of_200_epochs_has_the_published_rate_weights_and_radius(
    digits, tmp_path
):
    exp = Experiment(
        dataset="digits", max_count=20, imbalance_factor=4, image_size=8, width=2,
        model="resnet8", reweight="drw", optimizer="sam", rho=0.5, precision="fp64",
    )  # fmt: skip
    run = Run(exp, prepare(exp, digits), tmp_path, "cpu")
    rare = losses.class_weights(run.task.class_counts, exp.beta, torch.float64)
    for epoch in range(1, 201):
        run.epoch = epoch - 1
        run.begin()
        lr, index = published_schedule(epoch - 1)
        hyper = run.lane.hyper
        assert float(hyper.lr) == pytest.approx(lr, rel=1e-12)
        expected = rare if index else torch.ones(10)
        assert torch.allclose(hyper.weight, expected.double(), rtol=1e-6)
        assert float(hyper.rho) == 0.5
        assert hyper.ascend


def test_learning_happens(digits, tmp_path):
    longer = replace(TINY, epochs=15, drw_epoch=12, width=8)
    (outcome,) = train([longer], digits, tmp_path)
    last = outcome.history[-1]
    assert last["train_loss"] < 0.7 * outcome.history[0]["train_loss"]
    assert sum(last["per_class"]) / 10 > 30


def test_numbers_that_blow_up_stop_the_run_and_keep_the_last_good_state(
    digits, tmp_path
):
    wild = replace(TINY, lr=1e200)
    with pytest.raises(NumericalError, match="epoch 1, first non-finite tensor") as e:
        train([wild], digits, tmp_path)
    assert "\n" not in str(e.value)


def test_numbers_that_blow_up_late_leave_a_checkpoint_of_the_epoch_before(
    digits, tmp_path
):
    with pytest.raises(Stopped):
        train([TINY], digits, tmp_path, watcher=Stopper(at=20))
    file = tmp_path / TINY.slug / "latest.ckpt"
    meta, tensors = read_checkpoint(file)
    tensors["momentum"][3] = float("nan")
    save_checkpoint(file, meta, tensors)
    with pytest.raises(NumericalError, match=f"state of epoch {meta['epoch']}"):
        train([TINY], digits, tmp_path)
    assert read_checkpoint(file)[0]["epoch"] == meta["epoch"]


@pytest.mark.parametrize("damage", ["cut", "flip", "empty", "foreign"])
def test_a_damaged_checkpoint_is_refused_not_trained_over(damage, digits, tmp_path):
    with pytest.raises(Stopped):
        train([TINY], digits, tmp_path, watcher=Stopper(at=20))
    file = tmp_path / TINY.slug / "latest.ckpt"
    whole = file.read_bytes()
    broken = {
        "cut": whole[:-100],
        "flip": whole[:2000] + bytes([whole[2000] ^ 1]) + whole[2001:],
        "empty": b"",
        "foreign": b"PK\x03\x04 something else",
    }[damage]
    file.write_bytes(broken)
    with pytest.raises(CorruptError, match="damaged"):
        train([TINY], digits, tmp_path)
    assert file.read_bytes() == broken


def test_other_images_than_before_are_refused(digits, tmp_path):
    with pytest.raises(Stopped):
        train([TINY], digits, tmp_path, watcher=Stopper(at=20))
    changed = replace(digits, digest="0" * 64)
    with pytest.raises(CorruptError, match="dataset digest"):
        train([TINY], changed, tmp_path)


def test_a_checkpoint_of_another_experiment_is_refused(digits, tmp_path):
    with pytest.raises(Stopped):
        train([TINY], digits, tmp_path, watcher=Stopper(at=20))
    other = replace(TINY, lr=0.05)
    (tmp_path / TINY.slug).rename(tmp_path / other.slug)
    with pytest.raises(CorruptError, match="lr"):
        train([other], digits, tmp_path)


def test_exported_weights_are_those_of_their_epoch(digits, tmp_path):
    (outcome,) = train([TINY], digits, tmp_path)
    meta, tensors = read_checkpoint(outcome.weights[6])
    assert meta["epoch"] == 6
    latest = read_checkpoint(tmp_path / TINY.slug / "latest.ckpt")[1]
    exported = torch.cat(
        [tensors[name].flatten() for name in ("linear.weight", "linear.bias")]
    )
    assert torch.equal(latest["weights"][-len(exported) :], exported)
