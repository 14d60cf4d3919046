"""Epochs on the device: against plain PyTorch, in company, and recorded."""

from dataclasses import replace

import pytest
import torch
from tape import Tapes
from test_optimizers import (
    COUNTS,
    STEPS,
    batches,
    float64,
    network,
    plain_run,
    relative,
)  # fmt: skip
from test_train import LPF, SAM, TINY, final_state, same

import saddlebook.train.loop as loop
from saddlebook import data, losses
from saddlebook.errors import UsageError
from saddlebook.models import arithmetic
from saddlebook.train import train
from saddlebook.train.loop import SideBySide
from saddlebook.train.optimizers import Hyper, Objective, Replica
from saddlebook.train.run import Lane

PGD = replace(TINY, optimizer="pgd", noise=0.01)
BEFORE = replace(SAM, sam_epochs="before")


@pytest.fixture(scope="session")
def digits():
    return data.load("digits")


def hyper(rho, weight):
    return Hyper(float64(0.05), float64(rho), weight)


def lane_of(name="ce", optimizer="sgd", rho=0.0, *, depth="resnet8", seed=3, data=0):
    """A lane at the start of an epoch of 20 batches of 12 images."""
    weighted = name in ("ce+drw", "ldam")
    weight = losses.class_weights(COUNTS, 0.999 if weighted else 0.0, torch.float64)
    name = name.partition("+")[0]
    objective = Objective(losses.adjustment(name, COUNTS))
    model = network(name == "ldam", depth, seed).train()
    images, labels = map(torch.cat, zip(*batches(data), strict=True))
    replica = Replica(model, objective, optimizer=optimizer)
    images = images.to(memory_format=torch.channels_last)
    lane = Lane(replica, len(images), images[:50], labels[:50])
    lane.begin(images, labels, hyper(rho, weight))
    return lane


def trained(lanes, steps=STEPS):
    together = SideBySide()
    for _ in range(steps):
        together.step(lanes, 12)
    return lanes[0]


@pytest.mark.parametrize("depth", ["resnet8", "resnet32"])
@pytest.mark.parametrize("optimizer", ["sgd", "sam"])
@pytest.mark.parametrize("name", ["ce", "ce+drw", "ldam", "vs"])
def test_twenty_steps_on_the_device_equal_plain_pytorch(name, optimizer, depth):
    lane = trained([lane_of(name, optimizer, 0.1, depth=depth)])
    weight = lane.hyper.weight
    model = plain_run(name.partition("+")[0], weight, optimizer, 0.1, depth)
    ours, theirs = lane.replica.model.state_dict(), model.state_dict()
    for key in ours:
        assert relative(ours[key], theirs[key]) < 1e-9, key


def test_the_reported_loss_and_accuracy_are_those_of_plain_pytorch():
    lane = trained([lane_of()])
    lane.test()
    (report,) = SideBySide().reports([lane])
    model = lane.replica.model.eval()
    answers = model(lane.test_images).argmax(1)
    for label in range(5):
        of_class = lane.test_labels == label
        share = (answers == label)[of_class].double().mean()
        assert report.accuracy[label] == pytest.approx(100 * float(share))
    first = lane_of()
    images, labels = next(batches())
    loss = torch.nn.functional.cross_entropy(first.replica.model(images), labels)
    trained([first], steps=1)
    assert float(first.total) == pytest.approx(12 * float(loss.detach()))
    assert report.finite


@pytest.mark.parametrize(
    "other", [{"data": 7}, {"rho": 0.9}, {"name": "vs"}, {"seed": 8}], ids=str
)
def test_a_run_is_the_same_bit_for_bit_whatever_runs_beside_it(other):
    alone = trained([lane_of("ce", "sam", 0.1)])
    beside = {"name": "ldam", "optimizer": "sam", "rho": 0.3} | other
    ours = trained([lane_of("ce", "sam", 0.1), lane_of(**beside)])
    assert all(map(torch.equal, ours.replica.state, alone.replica.state))
    assert torch.equal(ours.total, alone.total)


def test_numbers_that_are_not_finite_are_reported():
    lane = trained([lane_of()], steps=1)
    lane.replica.momentum[5] = float("inf")
    assert not SideBySide().reports([lane])[0].finite


@pytest.fixture
def tapes(monkeypatch):
    """Training whose steps are recorded and replayed, as on CUDA."""
    tapes = Tapes()
    monkeypatch.setattr(loop, "SideBySide", lambda graphs: SideBySide(tapes))
    return tapes


# full batch, last batch, test pass; SAM without its climb has its own
@pytest.mark.parametrize(
    ("experiment", "recordings"),
    [(TINY, 3), (SAM, 3), (PGD, 3), (LPF, 3), (BEFORE, 6)],
    ids=["sgd", "sam", "pgd", "lpf", "sam-before"],
)
def test_replayed_steps_are_the_steps_bit_for_bit(
    experiment, recordings, digits, tmp_path, monkeypatch
):
    train([experiment], digits, tmp_path / "eager")
    tapes = Tapes()
    monkeypatch.setattr(loop, "SideBySide", lambda graphs: SideBySide(tapes))
    train([experiment], digits, tmp_path / "replayed")
    eager = final_state(experiment, tmp_path / "eager")
    assert same(final_state(experiment, tmp_path / "replayed"), eager)
    # warm-up, switch of weights and rate: nothing was recorded again
    assert len(tapes.recordings) == recordings


def test_replayed_company_is_the_run_alone(digits, tmp_path, tapes):
    others = [replace(SAM, seed=1, lr=0.03), replace(SAM, loss="vs", epochs=5)]
    train([*others, SAM], digits, tmp_path / "company")
    train([SAM], digits, tmp_path / "alone")
    alone = final_state(SAM, tmp_path / "alone")
    assert same(final_state(SAM, tmp_path / "company"), alone)


def test_focal_loss_and_bf16_can_be_recorded(digits, tmp_path, tapes):
    focal = replace(TINY, loss="focal", precision="bf16", epochs=5)
    (outcome,) = train([focal], digits, tmp_path)
    assert len(tapes.recordings) == 3
    assert outcome.history[-1]["train_loss"] < outcome.history[0]["train_loss"]


def test_runs_of_different_images_or_batches_are_not_trained_together(digits, tmp_path):
    for name, value in (("batch_size", 16), ("imbalance_factor", 2.0)):
        with pytest.raises(UsageError, match=name):
            train([TINY, replace(TINY, **{name: value})], digits, tmp_path)


def test_tf32_is_used_where_asked_for_and_nowhere_else():
    def found():
        return torch.backends.cudnn.conv.fp32_precision

    before = found()
    for precision, expected in (("tf32", "tf32"), ("fp32", "ieee"), ("bf16", "ieee")):
        with arithmetic(precision):
            assert found() == expected
            assert torch.backends.cudnn.deterministic
    assert found() == before
