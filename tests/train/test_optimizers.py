"""The flat step against plain PyTorch, written the usual way."""

import copy

import pytest
import torch
import torch.nn.functional as F

from saddlebook import losses, models
from saddlebook.optim import SAM
from saddlebook.train.optimizers import Hyper, Objective, Replica, State

COUNTS = (40, 20, 10, 5, 3)
STEPS = 20


def batches(seed=0, count=STEPS, size=12):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(count):
        images = torch.randn(size, 3, 8, 8, generator=generator, dtype=torch.float64)
        yield images, torch.randint(0, 5, (size,), generator=generator)


def float64(value):
    return torch.tensor(value, dtype=torch.float64)


def network(cosine=False, depth="resnet8", seed=3):
    return models.build_model(depth, 5, 4, cosine, seed).double()


def public_loss(name, weight):
    if name == "ldam":
        return losses.LDAMLoss(COUNTS, weight=weight)
    if name == "vs":
        return losses.VSLoss(COUNTS, weight=weight)
    return torch.nn.CrossEntropyLoss(weight)


def flat_run(name, weight, optimizer, rho, depth="resnet8", **options):
    model = network(name == "ldam", depth)
    objective = Objective(losses.adjustment(name, COUNTS))
    replica = Replica(model, objective, optimizer=optimizer, **options)
    hyper = Hyper(float64(0.05), float64(rho), weight)
    model.train()
    for images, targets in batches():
        replica.step(images, targets, hyper)
    return replica


def plain_run(name, weight, optimizer, rho, depth="resnet8"):
    """The usual loop: modules, torch's SGD, the public SAM."""
    model, criterion = network(name == "ldam", depth), public_loss(name, weight)
    settings = {"lr": 0.05, "momentum": 0.9, "weight_decay": 2e-4}
    if optimizer == "sam":
        stepper = SAM(model.parameters(), torch.optim.SGD, rho=rho, **settings)
    else:
        stepper = torch.optim.SGD(model.parameters(), **settings)
    model.train()
    for images, targets in batches():

        def closure(images=images, targets=targets):
            stepper.zero_grad()
            loss = criterion(model(images), targets)
            loss.backward()
            return loss

        stepper.step(closure)
    return model


def relative(a, b):
    return float((a - b).norm() / b.norm())


def assert_same(ours, theirs):
    """Weights and statistics agree to nine digits."""
    wanted = theirs.state_dict()
    for key, value in ours.state_dict().items():
        assert relative(value, wanted[key]) < 1e-9, key


@pytest.mark.parametrize("optimizer", ["sgd", "sam"])
@pytest.mark.parametrize("name", ["ce", "ce+drw", "ldam", "vs"])
def test_twenty_flat_steps_equal_plain_pytorch(name, optimizer):
    weighted = name in ("ce+drw", "ldam")
    weight = losses.class_weights(COUNTS, 0.999 if weighted else 0.0, torch.float64)
    name = name.partition("+")[0]
    replica = flat_run(name, weight, optimizer, 0.3)
    model = plain_run(name, weight, optimizer, 0.3)
    assert_same(replica.model, model)


def by_class(model, images, targets):
    """Cross-entropy of each image, and which class it is of, [N] and [5, N]."""
    nats = F.cross_entropy(model(images), targets, reduction="none")
    return nats, torch.stack([targets == y for y in range(5)])


def test_sam_on_the_tail_climbs_its_loss_alone():
    weight = losses.class_weights(COUNTS, 0.99, torch.float64)
    replica = flat_run("ce", weight, "sam", 0.3, rare=(3, 4))
    model = network().train()
    params = list(model.parameters())
    stepper = torch.optim.SGD(params, 0.05, momentum=0.9, weight_decay=2e-4)

    def gradient(images, targets, classes):
        nats, member = by_class(model, images, targets)
        chosen = member[classes].any(0)
        loss = (weight[targets] * nats)[chosen].sum() / weight[targets].sum()
        return torch.autograd.grad(loss, params)

    for images, targets in batches():
        start = [p.detach().clone() for p in params]
        climb = gradient(images, targets, [3, 4])
        norm = torch.cat([g.flatten() for g in climb]).norm() + 1e-12
        with torch.no_grad():
            for p, g in zip(params, climb, strict=True):
                p += 0.3 * g / norm
        rare = gradient(images, targets, [3, 4])
        with torch.no_grad():
            for p, kept in zip(params, start, strict=True):
                p.copy_(kept)
        others = gradient(images, targets, [0, 1, 2])
        for p, one, two in zip(params, rare, others, strict=True):
            p.grad = one + two
        stepper.step()
    assert_same(replica.model, model)


def test_group_dro_moves_the_weights_of_classes_by_their_losses():
    replica = flat_run("ce", torch.ones(5).double(), "sgd", 0.0, dro_step=0.5)
    model, q = network().train(), torch.full((5,), 0.2).double()
    stepper = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9, weight_decay=2e-4)
    for images, targets in batches():
        nats, member = by_class(model, images, targets)
        mean = torch.stack(
            [nats[m].mean() if m.any() else nats.sum() * 0 for m in member]
        )
        q = q * torch.exp(0.5 * mean.detach())
        q = q / q.sum()
        stepper.zero_grad()
        (q * mean).sum().backward()
        stepper.step()
    assert_same(replica.model, model)
    assert q.max() / q.min() > 2  # they did move


def test_the_deep_network_agrees_too():
    weight = torch.ones(5).double()
    replica = flat_run("ce", weight, "sam", 0.1, depth="resnet32")
    model = plain_run("ce", weight, "sam", 0.1, depth="resnet32")
    assert_same(replica.model, model)


@pytest.mark.parametrize("depth", ["resnet8", "resnet32"])
@pytest.mark.parametrize("optimizer", ["sgd", "sam"])
@pytest.mark.parametrize("name", ["ce", "ldam", "vs"])
def test_one_flat_step_in_single_precision_equals_plain_pytorch(name, optimizer, depth):
    weight = losses.class_weights(COUNTS, 0.999 if name == "ldam" else 0.0)
    images, targets = next(batches())
    model = network(name == "ldam", depth).float().train()
    replica = Replica(
        copy.deepcopy(model),
        Objective(losses.adjustment(name, COUNTS)),
        optimizer=optimizer,
    )
    replica.step(
        images.float(), targets, Hyper(*map(torch.tensor, (0.05, 0.3)), weight)
    )
    settings = {"lr": 0.05, "momentum": 0.9, "weight_decay": 2e-4}
    plain = torch.optim.SGD(model.parameters(), **settings)
    if optimizer == "sam":
        plain = SAM(model.parameters(), torch.optim.SGD, rho=0.3, **settings)

    def closure():
        plain.zero_grad()
        loss = public_loss(name, weight)(model(images.float()), targets)
        loss.backward()
        return loss

    plain.step(closure)
    theirs = torch.cat([p.detach().flatten() for p in model.parameters()])
    ours = torch.cat([p.detach().flatten() for p in replica.model.parameters()])
    assert relative(ours, theirs) < 1e-6


def test_sam_with_zero_rho_is_sgd_bit_for_bit():
    weight = torch.ones(5).double()
    sam = flat_run("ce", weight, "sam", 0.0, sam_bn="first")
    sgd = flat_run("ce", weight, "sgd", 0.0)
    assert torch.equal(sam.weights, sgd.weights)
    assert torch.equal(sam.statistics, sgd.statistics)


@pytest.mark.parametrize("optimizer", ["pgd", "lpf"])
def test_noise_of_size_zero_is_no_noise(optimizer):
    weight = torch.ones(5).double()
    noisy = flat_run("ce", weight, optimizer, 0.0, noise=0.0, lpf_samples=1)
    sgd = flat_run("ce", weight, "sgd", 0.0)
    assert torch.equal(noisy.weights, sgd.weights)


def one_noisy_step(optimizer, noise, lr=1.0):
    """Change of the weights in one step with zero gradient of the loss."""
    model = network()
    flat = Objective(losses.adjustment("ce", COUNTS)._replace(scale=0.0))
    replica = Replica(model, flat, optimizer=optimizer, noise=noise, weight_decay=0)
    start = replica.weights.clone()
    images, targets = next(batches())
    hyper = Hyper(*(float64(v) for v in (lr, 0.0)), torch.ones(5).double())
    replica.begin_epoch(1)
    replica.step(images, targets, hyper)
    return start, replica


def test_pgd_noise_is_isotropic_with_the_stated_norm():
    start, replica = one_noisy_step("pgd", 0.7)
    moved = start - replica.weights
    parameters = len(moved)
    # the squared norm is 0.49·χ²(P)/P: relative spread sqrt(2/P)
    assert float(moved.norm() ** 2) == pytest.approx(
        0.49, rel=4 * (2 / parameters) ** 0.5
    )
    assert abs(float(moved.mean())) < 4 * 0.7 / parameters  # mean ± 4 standard errors


def test_lpf_restores_the_weights_exactly():
    start, replica = one_noisy_step("lpf", 0.5)
    assert torch.equal(start, replica.weights)


def test_lpf_noise_scales_with_the_norm_of_each_filter():
    replica = Replica(network(), Objective(losses.adjustment("ce", COUNTS)))
    norms = replica._filter_norms().split(replica.sizes)
    by_name = dict(zip(replica.names, norms, strict=True))
    conv = replica.model.layer1[0].conv1.weight
    expected = conv.flatten(1).norm(dim=1).repeat_interleave(conv[0].numel())
    assert torch.allclose(by_name["layer1.0.conv1.weight"], expected)
    bias = replica.model.linear.bias
    assert torch.allclose(by_name["linear.bias"], bias.norm().expand_as(bias))


def test_statistics_move_in_both_passes_unless_frozen():
    images, targets = next(batches())
    plain = network().train()
    plain(images)  # what one pass at the first weights leaves
    means = {}
    for passes in ("both", "first"):
        objective = Objective(losses.adjustment("ce", COUNTS))
        replica = Replica(network(), objective, optimizer="sam", sam_bn=passes)
        replica.model.train()
        hyper = Hyper(float64(0.05), float64(0.3), torch.ones(5).double())
        replica.step(images, targets, hyper)
        means[passes] = replica.model.bn1.running_mean.clone()
    torch.testing.assert_close(means["first"], plain.bn1.running_mean)
    # a second pass adds its share to nine tenths of the first one's
    assert (means["both"] - means["first"]).norm() > 0.5 * means["first"].norm()


def test_a_state_loaded_elsewhere_continues_bit_for_bit():
    weight = torch.ones(5).double()
    hyper = Hyper(float64(0.05), float64(0.2), weight)
    replica = flat_run("ce", weight, "sam", 0.2)
    other = Replica(
        network(seed=9), Objective(losses.adjustment("ce", COUNTS)), optimizer="sam"
    )
    other.load(State(*(t.clone() for t in replica.state)))
    for run in (replica, other):
        run.model.train()
        for images, targets in batches(seed=5, count=3):
            run.step(images, targets, hyper)
    assert all(map(torch.equal, replica.state, other.state))


def test_the_step_ends_at_unperturbed_weights():
    model = network()
    replica = Replica(
        model, Objective(losses.adjustment("ce", COUNTS)), optimizer="sam"
    )
    start = replica.weights.clone()
    images, targets = next(batches())
    zero = float64(0.0)
    replica.step(images, targets, Hyper(zero, zero + 0.5, torch.ones(5).double()))
    assert torch.equal(start, replica.weights)


def test_the_first_tensor_that_is_not_finite_is_named():
    replica = Replica(network(), Objective(losses.adjustment("ce", COUNTS)))
    assert replica.first_nonfinite() == ""
    replica.model.layer2[0].conv1.weight.data[0, 0, 0, 0] = float("nan")
    assert replica.first_nonfinite() == "layer2.0.conv1.weight"


def test_a_model_taken_over_computes_what_it_did_before():
    model = network().eval()
    images, _ = next(batches())
    before = copy.deepcopy(model)(images)
    replica = Replica(model, Objective(losses.adjustment("ce", COUNTS)))
    assert torch.allclose(replica.logits(images), before, rtol=1e-12, atol=1e-12)
    assert F.cross_entropy(before, torch.zeros(len(images), dtype=torch.long)) > 0
