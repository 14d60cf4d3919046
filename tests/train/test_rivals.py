"""PGD and LPF-SGD: the law of their noise, and resuming them bit for bit."""

from dataclasses import replace

import pytest
import torch

from saddlebook import data, losses, models
from saddlebook.disk.files import read_checkpoint
from saddlebook.errors import Stopped, UsageError
from saddlebook.experiment import Experiment
from saddlebook.scales import at_scale
from saddlebook.train import train
from saddlebook.train.optimizers import Hyper, Objective, Replica

COUNTS = (40, 20, 10, 5, 3)
BASE = at_scale(Experiment(reweight="drw"), "quick")
RIVALS = {
    "pgd": replace(BASE, optimizer="pgd", noise=0.05),
    "lpf": replace(BASE, optimizer="lpf", noise=2e-3),
}
ALL = RIVALS | {
    "adam": replace(BASE, optimizer="adam", lr=1e-3),
    "dro": replace(BASE, reweight="dro"),
}


def replica(**options):
    model = models.build_model("resnet8", 5, 4, False, 3).double()
    return Replica(model, Objective(losses.adjustment("ce", COUNTS)), **options)


def hyper():
    return Hyper(
        torch.tensor(0.0).double(), torch.tensor(0.0).double(), torch.ones(5).double()
    )


def test_each_part_of_a_batch_sees_filter_sized_noise_of_its_own():
    gamma, parts = 0.3, 4
    run = replica(optimizer="lpf", noise=gamma, lpf_samples=parts)
    run.begin_epoch(1)
    start, seen = run.weights.clone(), []
    run.model.register_forward_pre_hook(lambda *_: seen.append(run.weights - start))
    images = torch.randn(16, 3, 8, 8, dtype=torch.float64)
    run.step(images, torch.arange(16) % 5, hyper())
    assert len(seen) == parts
    scale = gamma * run._filter_norms()
    moved = scale > 0
    standard = torch.stack(seen)[:, moved] / scale[moved]
    # mean and variance of a standard normal, four standard errors
    count = standard.numel()
    assert abs(float(standard.mean())) < 4 / count**0.5
    assert abs(float(standard.var()) - 1) < 4 * (2 / count) ** 0.5
    assert not torch.equal(seen[0], seen[1])
    # parameters of norm zero stay where they are
    assert not torch.stack(seen)[:, ~moved].any()


def test_the_gradient_is_the_mean_over_the_parts():
    images = torch.randn(16, 3, 8, 8, dtype=torch.float64)
    labels = torch.arange(16) % 5
    whole = replica(optimizer="lpf", noise=0.0, lpf_samples=4, weight_decay=0)
    whole.step(images, labels, hyper())
    grads = []
    for part in range(4):
        one = replica(weight_decay=0)
        some = slice(4 * part, 4 * part + 4)
        one.step(images[some], labels[some], hyper())
        grads.append(one.grad.clone())
    assert torch.allclose(whole.grad, torch.stack(grads).mean(0), rtol=1e-12)


@pytest.mark.parametrize("name", RIVALS)
def test_noise_is_the_seeds_own(name):
    model = {}
    for seed in (0, 0, 1):
        options = {"optimizer": name, "noise": 0.1, "noise_seed": seed}
        run = replica(**options)
        run.begin_epoch(2)
        model.setdefault(seed, []).append(run._gaussian())
    assert torch.equal(*model[0])
    assert not torch.equal(model[0][0], model[1][0])


class StopAfter:
    """Stops a training in the middle of an epoch."""

    def __init__(self, epoch):
        self.epoch, self.steps = epoch, None

    def stopped(self):
        if self.steps is not None:
            self.steps += 1
        return self.steps is not None and self.steps > 2

    def epoch_done(self, experiment, row):
        if row["epoch"] == self.epoch:
            self.steps = 0


@pytest.mark.parametrize("name", ALL)
def test_a_stopped_rival_ends_where_an_unstopped_one_does(tmp_path, name):
    exp, digits = ALL[name], data.load("digits")
    (whole,) = train([exp], digits, tmp_path / "whole")
    with pytest.raises(Stopped):
        train([exp], digits, tmp_path / "parts", watcher=StopAfter(4))
    (parts,) = train([exp], digits, tmp_path / "parts")
    assert parts.resumes == 1
    assert parts.history == whole.history
    _, ours = read_checkpoint(parts.weights[exp.epochs])
    _, theirs = read_checkpoint(whole.weights[exp.epochs])
    assert set(ours) == set(theirs)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optimizer": "lpf", "lpf_samples": 7}, "lpf_samples 7 must divide"),
        ({"optimizer": "pdg"}, "did you mean 'pgd'"),
        ({"optimizer": "sam", "rho": -0.1}, "rho -0.1 must be at least 0"),
        ({"optimizer": "sam", "rho": float("inf")}, "finite"),
        ({"reweight": "dro", "optimizer": "sam", "rho": 0.1}, "goes with 'sgd'"),
        ({"sam_classes": "tail"}, "no effect with optimizer 'sgd'"),
        (
            {"reweight": "dro", "spectra_at": (10,), "spectra_plan": "total"},
            "change with every step",
        ),
        ({"weight_decay": -1e-4}, "weight_decay -0.0001 must be at least 0"),
        ({"optimizer": "pgd", "noise": float("nan")}, "finite"),
    ],
)
def test_bad_settings_are_refused_by_name(changes, message):
    with pytest.raises(UsageError, match=message):
        replace(BASE, **changes)


def test_adam_is_torchs_and_sign_moves_every_weight_by_the_rate():
    images = torch.randn(16, 3, 8, 8, dtype=torch.float64)
    labels = torch.arange(16) % 5
    one = torch.ones(5).double()
    rates = [torch.tensor(rate).double() for rate in (0.01, 0.003, 0.01)]
    ours, theirs = (replica(optimizer="adam", weight_decay=0.1) for _ in range(2))
    torchs = torch.optim.AdamW(theirs.model.parameters(), weight_decay=0.1)
    for rate in rates:
        ours.step(images, labels, Hyper(rate, rate * 0, one))
        torchs.param_groups[0]["lr"] = float(rate)
        theirs._pass(images, labels, Hyper(rate, rate * 0, one))
        torchs.step()
        assert torch.allclose(ours.weights, theirs.weights, rtol=1e-12, atol=1e-15)
    sign = replica(optimizer="sign", weight_decay=0.0)
    before = sign.weights.clone()
    sign.step(images, labels, Hyper(rates[0], rates[0] * 0, one))
    moved = (sign.weights - before)[sign.grad != 0]
    assert torch.allclose(moved.abs(), rates[0].expand_as(moved), rtol=1e-12)
    assert torch.equal(moved.sign(), -sign.grad[sign.grad != 0].sign())
