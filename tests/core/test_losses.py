"""Losses against algebra, published constants and finite differences."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from saddlebook import losses
from saddlebook.errors import UsageError

CIFAR10_LT = (5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50)
counts = st.lists(st.integers(1, 5000), min_size=2, max_size=20)


def example(classes=3, size=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(size, classes, generator=generator, dtype=torch.float64)
    return logits, torch.arange(size) % classes


def test_drw_weights_are_the_published_ones():
    published = [0.0506, 0.0769, 0.1211, 0.1950, 0.3188]
    published += [0.5246, 0.8683, 1.4426, 2.4092, 3.9927]
    ours = losses.class_weights(CIFAR10_LT, 0.9999)
    assert ours.tolist() == pytest.approx(published, abs=5e-5)


def test_ldam_margins_are_the_published_ones():
    published = [0.1581, 0.1797, 0.2042, 0.2321, 0.2638]
    published += [0.2998, 0.3407, 0.3872, 0.4405, 0.5]
    assert losses.ldam_margins(CIFAR10_LT).tolist() == pytest.approx(
        published, abs=5e-5
    )


def test_vs_terms_are_the_published_ones():
    vs = losses.adjustment("vs", CIFAR10_LT)
    assert vs.delta[[1, 8, 9]].tolist() == pytest.approx([1.166, 3.42, 3.981], abs=6e-4)
    assert vs.offset[[0, 9]].tolist() == pytest.approx([-0.909, -5.514], abs=6e-4)


@given(counts, st.floats(0.0, 0.9999))
def test_class_weights_have_mean_one_and_favour_the_rare(counts, beta):
    weights = losses.class_weights(counts, beta)
    assert float(weights.mean()) == pytest.approx(1)
    ordered = [float(w) for _, w in sorted(zip(counts, weights, strict=True))]
    assert all(a >= b - 1e-12 for a, b in itertools.pairwise(ordered))


def test_beta_runs_from_equal_weights_to_inverse_frequency():
    assert torch.equal(losses.class_weights((9, 3), 0.0), torch.ones(2).double())
    nearly = losses.class_weights((9, 3), 1 - 1e-9)
    assert float(nearly[1] / nearly[0]) == pytest.approx(3, rel=1e-6)


def test_effective_number_is_the_geometric_sum():
    series = sum(0.99**k for k in range(50))
    assert losses.effective_number(50, 0.99) == pytest.approx(series, rel=1e-12)


def test_ldam_on_a_hand_worked_example():
    # two classes, 16 and 1 images: margins 0.25 and 0.5, scale 2
    logits = torch.tensor([[0.5, 0.0]], dtype=torch.float64)
    loss = losses.LDAMLoss((16, 1), max_margin=0.5, scale=2.0)
    expected = math.log1p(math.exp(2 * (0.0 - 0.25)))
    assert float(loss(logits, torch.tensor([0]))) == pytest.approx(expected)


def test_vs_on_a_hand_worked_example():
    logits = torch.tensor([[1.0, 2.0]], dtype=torch.float64)
    loss = losses.VSLoss((16, 1), gamma=0.5, tau=1.0)
    adjusted = [1.0 + math.log(16 / 17), 2.0 / 4 + math.log(1 / 17)]
    expected = math.log1p(math.exp(adjusted[1] - adjusted[0]))
    assert float(loss(logits, torch.tensor([0]))) == pytest.approx(expected)


def test_vs_without_its_terms_is_cross_entropy():
    logits, targets = example()
    loss = losses.VSLoss((9, 4, 1), gamma=0.0, tau=0.0)(logits, targets)
    assert float(loss) == pytest.approx(float(F.cross_entropy(logits, targets)))


def test_ldam_with_a_vanishing_margin_is_scaled_cross_entropy():
    logits, targets = example()
    loss = losses.LDAMLoss((9, 4, 1), max_margin=1e-14, scale=5.0)(logits, targets)
    assert float(loss) == pytest.approx(float(F.cross_entropy(5 * logits, targets)))


def test_focal_without_focus_is_cross_entropy_and_focus_lowers_it():
    logits, targets = example()
    ce = float(F.cross_entropy(logits, targets))
    assert float(losses.FocalLoss(0.0)(logits, targets)) == pytest.approx(ce)
    assert float(losses.FocalLoss(2.0)(logits, targets)) < ce


def test_the_weight_divides_by_its_sum_over_the_batch():
    logits, targets = example()
    weight = torch.tensor([1.0, 2.0, 6.0], dtype=torch.float64)
    nats = F.cross_entropy(logits, targets, reduction="none")
    expected = (weight[targets] * nats).sum() / weight[targets].sum()
    loss = losses.VSLoss((9, 4, 1), 0.0, 0.0, weight)(logits, targets)
    assert float(loss) == pytest.approx(float(expected))


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("name", ["ldam", "vs", "focal"])
def test_first_and_second_derivatives_match_finite_differences(name, weighted):
    weight = losses.class_weights((9, 4, 1), 0.99) if weighted else None
    loss = {
        "ldam": losses.LDAMLoss((9, 4, 1), scale=3.0, weight=weight),
        "vs": losses.VSLoss((9, 4, 1), weight=weight),
        "focal": losses.FocalLoss(1.5, weight),
    }[name]
    logits, targets = example()
    logits.requires_grad_()
    assert torch.autograd.gradcheck(lambda z: loss(z, targets), logits)
    assert torch.autograd.gradgradcheck(lambda z: loss(z, targets), logits)


@given(st.permutations(range(4)))
def test_renaming_classes_changes_no_loss(order):
    counts, (logits, targets) = (40, 20, 10, 5), example(4, 8)
    order = torch.tensor(order)
    place = torch.argsort(order)
    renamed = tuple(counts[i] for i in order)
    for kind in (losses.LDAMLoss, losses.VSLoss):
        before = kind(counts)(logits, targets)
        after = kind(renamed)(logits[:, order], place[targets])
        assert float(after) == pytest.approx(float(before), rel=1e-12)


def test_cross_entropy_gradients_sum_to_zero_over_classes():
    logits, targets = example()
    logits.requires_grad_()
    losses.LDAMLoss((9, 4, 1))(logits, targets).backward()
    assert logits.grad.sum(1).abs().max() < 1e-12


def test_a_weight_cancels_on_a_single_class():
    logits, _ = example()
    targets = torch.full((6,), 2)
    plain = losses.VSLoss((9, 4, 1))(logits, targets)
    weighted = losses.VSLoss((9, 4, 1), weight=torch.tensor([1.0, 1.0, 7.0]).double())
    assert float(weighted(logits, targets)) == pytest.approx(float(plain))


@pytest.mark.parametrize("size", [1e4, 1e30])
def test_huge_logits_stay_finite(size):
    logits = torch.tensor([[size, 0.0, -size]], dtype=torch.float64)
    for loss in (losses.VSLoss((9, 4, 1)), losses.FocalLoss(1.0)):
        assert loss(logits, torch.tensor([0])).isfinite()


@pytest.mark.parametrize(
    "call",
    [
        lambda: losses.class_weights((5, 0), 0.9),
        lambda: losses.class_weights((5, 2.5), 0.9),
        lambda: losses.class_weights((), 0.9),
        lambda: losses.class_weights((5, 2), 1.0),
        lambda: losses.LDAMLoss((5, 2), max_margin=0.0),
        lambda: losses.LDAMLoss((5, 2), scale=float("inf")),
        lambda: losses.VSLoss((5, 2), gamma=-0.1),
        lambda: losses.VSLoss((5, 2), tau=float("nan")),
        lambda: losses.VSLoss((5, 2), weight=torch.ones(3)),
        lambda: losses.VSLoss((5, 2), weight=torch.zeros(2)),
        lambda: losses.FocalLoss(-1.0),
        lambda: losses.VSLoss((5, 2))(torch.zeros(0, 2), torch.zeros(0).long()),
    ],
)
def test_bad_arguments_are_refused_in_one_line(call):
    with pytest.raises(UsageError) as error:
        call()
    assert "\n" not in str(error.value)
