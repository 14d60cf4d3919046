"""SAM against algebra and the schedules against the published tables."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from saddlebook import optim
from saddlebook.errors import UsageError
from saddlebook.theory.saddles import amplification


def quadratic(curvatures, start):
    """½·Σ λᵢwᵢ² and its parameter."""
    curvatures = torch.tensor(curvatures, dtype=torch.float64)
    w = nn.Parameter(torch.tensor(start, dtype=torch.float64))

    def closure():
        w.grad = None
        loss = 0.5 * (curvatures * w * w).sum()
        loss.backward()
        return loss

    return w, curvatures, closure


@given(st.floats(0.0, 5.0), st.floats(-3.0, 3.0), st.floats(-3.0, 3.0))
def test_one_sam_step_on_a_quadratic_is_the_closed_form(rho, a, b):
    start = [0.7, -1.3]
    w, curvature, closure = quadratic([a, b], start)
    optim.SAM([w], torch.optim.SGD, rho=rho, lr=0.1).step(closure)
    g = curvature * torch.tensor(start, dtype=torch.float64)
    climbed = torch.tensor(start, dtype=torch.float64) + rho * g / (g.norm() + 1e-12)
    expected = torch.tensor(start, dtype=torch.float64) - 0.1 * curvature * climbed
    assert torch.allclose(w.detach(), expected, rtol=1e-12, atol=1e-12)


def test_the_negative_curvature_component_is_scaled_as_theorem_1_says():
    w, _, closure = quadratic([2.0, -0.5], [0.3, 0.4])
    closure()
    plain, norm = w.grad.clone(), float(w.grad.norm())
    sam = optim.SAM([w], torch.optim.SGD, rho=0.8, lr=0.1)
    sam.first_step()
    closure()
    measured = float((w.grad[1] / plain[1]) ** 2)
    assert measured == pytest.approx(amplification(0.8, -0.5, norm), rel=1e-10)


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)
    ).double()


def train_on(model, stepper, steps, seed=1):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        x = torch.randn(8, 3, 6, 6, generator=generator, dtype=torch.float64)
        y = torch.randint(0, 3, (8,), generator=generator)

        def closure(x=x, y=y):
            stepper.zero_grad()
            loss = nn.functional.cross_entropy(model(x), y)
            loss.backward()
            return loss

        stepper.step(closure)


def sam(model, rho=0.3, **options):
    settings = {"lr": 0.1, "momentum": 0.9, "weight_decay": 1e-3}
    return optim.SAM(
        model.parameters(), torch.optim.SGD, rho=rho, **options, **settings
    )


def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit():
    whole = network()
    stepper = sam(whole)
    train_on(whole, stepper, 6)
    train_on(whole, stepper, 6, seed=2)

    first = network()
    stepper = sam(first)
    train_on(first, stepper, 6)
    second = network()
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    resumed = sam(second)
    resumed.load_state_dict(copy.deepcopy(stepper.state_dict()))
    train_on(second, resumed, 6, seed=2)
    for a, b in zip(whole.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)


def test_the_state_holds_the_momentum_of_the_base_optimizer():
    model = network()
    stepper = sam(model)
    train_on(model, stepper, 2)
    buffers = [s["momentum_buffer"] for s in stepper.state_dict()["state"].values()]
    assert len(buffers) == len(list(model.parameters()))


def test_the_perturbation_has_length_rho_over_all_parameters_together():
    model = network()
    stepper = sam(model, rho=0.7)
    model(torch.randn(8, 3, 6, 6).double()).sum().backward()
    before = [p.detach().clone() for p in model.parameters()]
    stepper.first_step()
    moved = [
        (p.detach() - b).norm() for p, b in zip(model.parameters(), before, strict=True)
    ]
    assert float(torch.stack(moved).norm()) == pytest.approx(0.7, rel=1e-9)
    stepper.param_groups[0]["lr"] = 0.0
    stepper.second_step()
    for p, b in zip(model.parameters(), before, strict=True):
        assert torch.equal(p, b)


def test_a_failing_second_pass_leaves_the_unperturbed_weights():
    w, _, closure = quadratic([1.0], [1.0])
    calls = []

    def failing():
        calls.append(1)
        if len(calls) == 2:
            raise RuntimeError("second pass")
        return closure()

    with pytest.raises(RuntimeError, match="second pass"):
        optim.SAM([w], torch.optim.SGD, rho=0.5, lr=0.1).step(failing)
    assert w.item() == 1.0


def test_a_zero_gradient_is_a_defined_step():
    w, _, closure = quadratic([1.0, 1.0], [0.0, 0.0])
    optim.SAM([w], torch.optim.SGD, rho=0.5, lr=0.1).step(closure)
    assert torch.equal(w.detach(), torch.zeros(2).double())


def test_adaptive_climbs_in_proportion_to_the_squared_weights():
    w, _curvature, closure = quadratic([1.0, 1.0], [2.0, 0.5])
    stepper = optim.SAM([w], torch.optim.SGD, rho=0.5, adaptive=True, lr=0.1)
    closure()
    g, start = w.grad.clone(), w.detach().clone()
    stepper.first_step()
    expected = 0.5 * start.square() * g / (start.abs() * g).norm()
    assert torch.allclose(w.detach() - start, expected)


def test_scaling_the_loss_leaves_the_perturbation():
    moved = []
    for scale in (1.0, 100.0):
        w, _, closure = quadratic([scale, 3 * scale], [1.0, 1.0])
        stepper = optim.SAM([w], torch.optim.SGD, rho=0.5, lr=0.1)
        closure()
        stepper.first_step()
        moved.append(w.detach() - 1)
    assert torch.allclose(*moved, rtol=1e-9)


@pytest.mark.parametrize("rho", [-0.1, float("nan"), float("inf"), "0.5", None])
def test_a_bad_radius_is_refused(rho):
    with pytest.raises(UsageError, match="rho"):
        optim.SAM(network().parameters(), torch.optim.SGD, rho=rho, lr=0.1)


def test_wrong_order_is_refused_with_a_reason():
    stepper = sam(network())
    with pytest.raises(UsageError, match="closure"):
        stepper.step()
    with pytest.raises(UsageError, match="backward"):
        stepper.first_step()


def test_saving_between_the_two_steps_is_refused():
    model = network()
    stepper = sam(model)
    model(torch.randn(8, 3, 6, 6).double()).sum().backward()
    stepper.first_step()
    with pytest.raises(UsageError, match="between"):
        stepper.state_dict()


def test_frozen_statistics_stay_and_the_momentum_comes_back():
    model = network().train()
    norm = model[1]
    mean = norm.running_mean.clone()
    with optim.frozen_statistics(model), optim.frozen_statistics(model):
        model(torch.randn(8, 3, 6, 6).double())
    assert torch.equal(norm.running_mean, mean)
    assert norm.momentum == 0.1


PAPER = {"epochs": 200, "drw_epoch": 160}


@pytest.mark.parametrize(
    ("epoch", "lr"),
    [
        (1, 0.02),
        (4, 0.08),
        (5, 0.1),
        (6, 0.1),
        (160, 0.1),
        (161, 0.001),
        (180, 0.001),
        (181, 1e-05),
        (200, 1e-05),
    ],
)
def test_the_learning_rate_has_the_published_corners(epoch, lr):
    assert optim.learning_rate(epoch, lr=0.1, **PAPER) == pytest.approx(lr)


def test_drw_starts_with_the_161st_epoch():
    on = [
        optim.reweighted(e, reweight="drw", drw_epoch=160) for e in (1, 160, 161, 200)
    ]
    assert on == [False, False, True, True]
    assert optim.reweighted(1, reweight="effective", drw_epoch=160)
    assert not optim.reweighted(200, reweight="none", drw_epoch=160)


def test_half_time_sam_switches_with_drw():
    def path(when):
        return [
            optim.radius(e, rho=0.5, sam_epochs=when, drw_epoch=160) for e in (160, 161)
        ]

    assert path("all") == [0.5, 0.5]
    assert path("before") == [0.5, 0.0]
    assert path("after") == [0.0, 0.5]


def test_an_epoch_outside_the_schedule_is_refused():
    for epoch in (0, 201):
        with pytest.raises(UsageError, match="epoch"):
            optim.learning_rate(epoch, lr=0.1, **PAPER)
