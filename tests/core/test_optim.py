"""SAM against algebra and the schedules against the published tables."""

import copy
import io
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from saddlebook import optim, schedules
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


BASES = {
    "sgd": (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "weight_decay": 1e-3}),
    "adam": (torch.optim.Adam, {"lr": 0.01}),
    "adagrad": (torch.optim.Adagrad, {"lr": 0.1}),  # has a state before any step
}
every_base = pytest.mark.parametrize("base", BASES)


def around(model, base, rho=0.3, **options):
    kind, settings = BASES[base]
    return optim.SAM(model.parameters(), kind, rho=rho, **options, **settings)


def through_torch(pair):
    file = io.BytesIO()
    torch.save(pair, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def through_a_state(pair):
    model, stepper = pair
    other = network()
    other.load_state_dict(copy.deepcopy(model.state_dict()))
    resumed = optim.SAM(other.parameters(), type(stepper.base_optimizer), lr=7.0)
    resumed.load_state_dict(copy.deepcopy(stepper.state_dict()))
    return other, resumed


def pickled(pair):
    return pickle.loads(pickle.dumps(pair))


def weights_of(model):
    return [p.detach().tolist() for p in model.parameters()]


def second_half(model, stepper):
    train_on(model, stepper, 3, seed=2)
    return weights_of(model)


@every_base
@pytest.mark.parametrize(
    "way", [copy.deepcopy, pickled, through_torch, through_a_state]
)
def test_a_copy_steps_on_with_the_same_bits(way, base):
    model = network()
    stepper = around(model, base)
    train_on(model, stepper, 3)
    other, copied = way((model, stepper))
    expected = second_half(model, stepper)
    assert second_half(other, copied) == expected
    assert copied.state is copied.base_optimizer.state
    assert len(copied.state) == len(expected)


def test_a_copy_between_the_two_steps_knows_the_unperturbed_weights():
    w, _, closure = quadratic([1.0, 3.0], [1.0, 1.0])
    stepper = optim.SAM([w], torch.optim.SGD, rho=0.5, lr=0.1)
    closure()
    stepper.first_step()
    other, copied = copy.deepcopy((w, stepper))
    copied.restore()
    assert other.tolist() == [1.0, 1.0]
    assert w.tolist() != [1.0, 1.0]


def test_schedulers_and_replaced_groups_act_in_both_ways_of_stepping():
    w, _, closure = quadratic([1.0, 1.0], [1.0, 1.0])
    stepper = optim.SAM([w], torch.optim.SGD, rho=0.0, lr=0.1)
    stepper.param_groups = [dict(group) for group in stepper.param_groups]
    schedule = torch.optim.lr_scheduler.StepLR(stepper, 1)
    for expected in (0.9, 0.9 * 0.99):
        closure()
        stepper.first_step(zero_grad=True)
        closure()
        stepper.second_step(zero_grad=True)
        schedule.step()  # warns, and so fails, where no step was seen
        assert w.tolist() == pytest.approx([expected, expected])
    stepper.step(closure)
    assert w.tolist() == pytest.approx([0.9 * 0.99 * 0.999] * 2)


def test_a_closure_after_first_step_is_the_second_pass():
    ends = []
    for climbed in (False, True):
        w, _, closure = quadratic([1.0, 3.0], [1.0, 1.0])
        stepper = optim.SAM([w], torch.optim.SGD, rho=0.5, lr=0.1)
        if climbed:
            closure()
            stepper.first_step()
        stepper.step(closure)
        ends.append(w.tolist())
    assert ends[0] == ends[1]


def trained(base):
    model = network()
    kind, settings = BASES[base]
    plain = kind(model.parameters(), **settings)
    train_on(model, plain, 2)
    return model, plain


@every_base
def test_a_state_of_the_base_optimizer_is_taken_and_the_radii_stay(base):
    model, plain = trained(base)
    stepper = optim.SAM(model.parameters(), BASES[base][0], rho=0.3, adaptive=True)
    stepper.load_state_dict(plain.state_dict())
    (group,) = stepper.param_groups
    assert (group["rho"], group["adaptive"]) == (0.3, True)
    assert group["lr"] == BASES[base][1]["lr"]
    assert len(stepper.state) == len(plain.state)
    train_on(model, stepper, 1)


@pytest.mark.parametrize(("ours", "theirs"), [("sgd", "adam"), ("adam", "sgd")])
def test_a_state_of_another_optimizer_is_refused_and_nothing_changes(ours, theirs):
    stepper = around(network(), ours)
    before = copy.deepcopy(stepper.state_dict())
    with pytest.raises(UsageError, match="lacks"):
        stepper.load_state_dict(trained(theirs)[1].state_dict())
    assert stepper.state_dict() == before


def twice(stepper, backward):
    stepper.first_step(zero_grad=True)
    backward()  # and then nothing: the second pass was skipped
    stepper.first_step()


def second_alone(stepper, backward):
    stepper.second_step()


def without_closure(stepper, backward):
    stepper.step()


def without_gradient(stepper, backward):
    stepper.zero_grad()
    stepper.first_step()


def saved_between(stepper, backward):
    stepper.first_step()
    try:
        stepper.state_dict()
    finally:
        stepper.restore()


def loaded_between(stepper, backward):
    state = stepper.state_dict()
    stepper.first_step()
    try:
        stepper.load_state_dict(state)
    finally:
        stepper.restore()


def negative_group(stepper, backward):
    stepper.param_groups[0]["rho"] = -1.0
    stepper.first_step()


def negative_second_group(stepper, backward):
    extra = nn.Parameter(torch.ones(1))
    extra.grad = torch.ones(1)
    stepper.add_param_group({"params": [extra]})
    stepper.param_groups[1]["rho"] = -1.0
    try:
        stepper.first_step()
    finally:
        assert extra.item() == 1.0


def sparse_second_group(stepper, backward):
    extra = nn.Embedding(4, 2, sparse=True)
    stepper.add_param_group({"params": extra.parameters()})
    extra(torch.tensor([1, 1])).sum().backward()
    stepper.first_step()


def negative_new_group(stepper, backward):
    stepper.add_param_group({"params": [nn.Parameter(torch.ones(1))], "rho": -1.0})


def negative_in_state(stepper, backward):
    state = stepper.state_dict()
    state["param_groups"][0]["rho"] = -1.0
    stepper.load_state_dict(state)


@pytest.mark.parametrize(
    ("misuse", "message"),
    [
        (twice, "twice"),
        (second_alone, "first_step"),
        (without_closure, "closure"),
        (without_gradient, "backward"),
        (saved_between, "between"),
        (loaded_between, "between"),
        (negative_group, "rho -1.0"),
        (negative_second_group, "rho -1.0"),
        (sparse_second_group, "sparse"),
        (negative_new_group, "rho -1.0"),
        (negative_in_state, "rho -1.0"),
    ],
)
def test_misuse_is_an_error_and_leaves_the_weights(misuse, message):
    w, _, closure = quadratic([1.0, 3.0], [1.0, 1.0])
    stepper = optim.SAM([w], torch.optim.SGD, rho=0.5, lr=0.1)
    closure()
    with pytest.raises(UsageError, match=message):
        misuse(stepper, closure)
    assert w.tolist() == [1.0, 1.0]


def test_maximising_climbs_to_where_it_is_lower():
    """One step up on −w² equals one step down on w², climbs included."""
    ends = []
    for sign in (1, -1):
        w = torch.ones(1, requires_grad=True)
        sam = optim.SAM([w], torch.optim.SGD, rho=0.5, lr=0.1, maximize=sign < 0)

        def closure(w=w, sam=sam, sign=sign):
            sam.zero_grad()
            (loss := sign * w.square().sum()).backward()
            return loss

        sam.step(closure)
        ends.append(w.item())
    assert ends == [pytest.approx(1 - 0.1 * 2 * 1.5)] * 2


def test_an_optimizer_that_asks_for_many_losses_is_refused():
    with pytest.raises(UsageError, match="LBFGS"):
        optim.SAM(network().parameters(), torch.optim.LBFGS)


@pytest.mark.parametrize(
    "bad", ["sgd", torch.optim.SGD([torch.zeros(1)], lr=0.1), None]
)
def test_what_is_no_optimizer_class_is_refused(bad):
    with pytest.raises(UsageError, match=r"such as torch.optim.SGD"):
        optim.SAM(network().parameters(), bad, lr=0.1)


@pytest.mark.parametrize("adaptive", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("gradient", [5000.0, 6e-5, 0.0])
def test_half_precision_climbs_as_float32_does(dtype, gradient, adaptive):
    def climbed(kind):
        p = nn.Parameter(torch.linspace(-0.1, 0.1, 1000).to(dtype).to(kind))
        p.grad = torch.full((1000,), gradient).to(dtype).to(kind)
        stepper = optim.SAM([p], torch.optim.SGD, rho=0.5, adaptive=adaptive, lr=0.1)
        stepper.first_step()
        return p.detach()

    assert torch.equal(climbed(dtype), climbed(torch.float32).to(dtype))


def test_the_perturbation_has_length_rho_over_all_parameters_together():
    model = network()
    stepper = around(model, "sgd", rho=0.7)
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
    group = {"params": list(network().parameters()), "rho": rho}
    for params, radius in ((group["params"], rho), ([group], 0.1)):
        with pytest.raises(UsageError, match="rho"):
            optim.SAM(params, torch.optim.SGD, rho=radius, lr=0.1)


@pytest.mark.parametrize("rho", [1, np.float32(0.5), np.int64(2)])
def test_a_radius_may_be_any_real_number(rho):
    stepper = optim.SAM(network().parameters(), torch.optim.SGD, rho=rho, lr=0.1)
    assert stepper.param_groups[0]["rho"] == float(rho)


@pytest.mark.parametrize("value", [1.0, float("inf"), float("nan")])
@pytest.mark.parametrize("momentum", [0.1, 1.0, None])
@pytest.mark.parametrize("training", [True, False])
def test_frozen_statistics_leave_every_buffer_alone(training, momentum, value):
    model = network().train(training)
    model[1].momentum = momentum
    images = torch.randn(8, 3, 6, 6).double()
    model(images)
    before = copy.deepcopy(model.state_dict())
    plain = model(images)
    model.load_state_dict(before)
    with optim.frozen_statistics(model), optim.frozen_statistics(model):
        assert torch.equal(model(images), plain)
        model(images * value)
    after = model.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before)
    model(images + 1)
    moved = not torch.equal(model[1].running_mean, before["1.running_mean"])
    assert moved == training


def test_freeze_keeps_the_second_pass_from_the_statistics():
    once, sam_frozen, sam_both = network(), network(), network()
    images, labels = torch.randn(8, 3, 6, 6).double(), torch.arange(8) % 3
    once(images)
    for model, freeze in ((sam_frozen, sam_frozen), (sam_both, None)):
        stepper = around(model, "sgd")

        def closure(model=model, stepper=stepper):
            stepper.zero_grad()
            loss = nn.functional.cross_entropy(model(images), labels)
            loss.backward()
            return loss

        stepper.step(closure, freeze=freeze)
    assert torch.equal(once[1].running_mean, sam_frozen[1].running_mean)
    assert int(sam_frozen[1].num_batches_tracked) == 1
    assert not torch.equal(once[1].running_mean, sam_both[1].running_mean)


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
    assert schedules.learning_rate(epoch, lr=0.1, **PAPER) == pytest.approx(lr)


def test_drw_starts_with_the_161st_epoch():
    on = [
        schedules.reweighted(e, reweight="drw", drw_epoch=160)
        for e in (1, 160, 161, 200)
    ]
    assert on == [False, False, True, True]
    assert schedules.reweighted(1, reweight="effective", drw_epoch=160)
    assert not schedules.reweighted(200, reweight="none", drw_epoch=160)


def test_half_time_sam_switches_with_drw():
    def path(when):
        return [
            schedules.radius(e, rho=0.5, sam_epochs=when, drw_epoch=160)
            for e in (160, 161)
        ]

    assert path("all") == [0.5, 0.5]
    assert path("before") == [0.5, 0.0]
    assert path("after") == [0.0, 0.5]


def test_an_epoch_outside_the_schedule_is_refused():
    for epoch in (0, 201):
        with pytest.raises(UsageError, match="epoch"):
            schedules.learning_rate(epoch, lr=0.1, **PAPER)
