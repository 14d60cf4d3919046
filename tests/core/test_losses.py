"""Losses against algebra, published constants and finite differences."""

import copy
import itertools
import math
from collections import Counter

import numpy as np
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
    assert torch.equal(losses.class_weights((9, 3), 0.0), torch.ones(2))
    nearly = losses.class_weights((9, 3), 1 - 1e-9, torch.float64)
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


def test_focal_takes_labels_of_any_width_and_no_foreign_ones():
    logits, labels = torch.randn(3, 3), torch.tensor([2, 0, 1])
    loss = losses.FocalLoss(1.5, weight=[1.0, 2.0, 3.0], ignore_index=255)
    assert loss(logits, labels.to(torch.uint8)) == loss(logits, labels)
    with pytest.raises((IndexError, RuntimeError)):
        loss(logits, torch.tensor([2, 0, -100]))
    with pytest.raises(UsageError, match="class weights"):
        losses.FocalLoss(weight=0.25)
    counted = losses.VSLoss.from_labels(np.array([0, 1, 1], np.uint16))
    assert counted.classes == 2


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


C = (9, 4, 1)
EVERY = {
    "ldam": (losses.LDAMLoss, (C, 0.5, 3.0)),
    "vs": (losses.VSLoss, (C, 0.4, 0.8)),
    "focal": (losses.FocalLoss, (1.5,)),
}
every_loss = pytest.mark.parametrize("name", EVERY)


def make(name, **options):
    kind, arguments = EVERY[name]
    return kind(*arguments, **options)


def published(name, z, y):
    """The loss of one example in plain arithmetic, as its paper prints it."""
    if name == "ldam":
        rarest = max(n**-0.25 for n in C)
        z = [
            3.0 * (v - (j == y) * 0.5 * C[j] ** -0.25 / rarest) for j, v in enumerate(z)
        ]
    if name == "vs":
        delta = [(max(C) / n) ** 0.4 for n in C]
        z = [
            v / d + 0.8 * math.log(n / sum(C))
            for v, d, n in zip(z, delta, C, strict=True)
        ]
    p = math.exp(z[y]) / sum(map(math.exp, z))
    return -((1 - p) ** 1.5 if name == "focal" else 1) * math.log(p)


@every_loss
@pytest.mark.parametrize("ignored", [False, True])
@pytest.mark.parametrize("weight", [None, [1, 2, 6]])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_losses_reduce_the_published_formulas_as_torch_does(
    name, reduction, weight, ignored
):
    logits, targets = example()
    loss = make(name, reduction=reduction, weight=weight, ignore_index=-7)
    if ignored:
        targets[2:4] = -7
    w = [0 if y < 0 else (weight or [1, 1, 1])[y] for y in targets.tolist()]
    nats = [
        w_y * published(name, z, max(y, 0))
        for w_y, z, y in zip(w, logits.tolist(), targets.tolist(), strict=True)
    ]
    kept = sum(y >= 0 for y in targets.tolist())
    by = kept if name == "focal" else sum(w)
    expected = {"none": nats, "sum": sum(nats), "mean": sum(nats) / by}[reduction]
    assert loss(logits, targets).tolist() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("weight", [None, [1.0, 2.0, 6.0]])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_without_their_terms_they_smooth_and_mix_as_torch_does(reduction, weight):
    logits, targets = example()
    ours = losses.VSLoss(C, 0.0, 0.0, weight, reduction=reduction, label_smoothing=0.2)
    given = None if weight is None else torch.tensor(weight).double()
    theirs = torch.nn.CrossEntropyLoss(given, reduction=reduction, label_smoothing=0.2)
    for of in (targets, logits.flip(0).softmax(1)):
        assert torch.allclose(ours(logits, of), theirs(logits, of), rtol=1e-12)


@pytest.mark.parametrize("name", ["ldam", "vs"])
def test_probabilities_of_one_class_are_its_label(name):
    logits, targets = example()
    shares = F.one_hot(targets, 3).double()
    loss = make(name)
    assert float(loss(logits, shares)) == pytest.approx(float(loss(logits, targets)))
    half = loss(logits, shares.roll(1, 1) / 2 + shares / 2)
    assert half.isfinite()


def test_a_mixture_pays_for_each_of_its_labels():
    logits, targets = example()
    loss, others = make("vs"), targets.roll(1)
    share = 0.7 * F.one_hot(targets, 3) + 0.3 * F.one_hot(others, 3)
    each = 0.7 * loss(logits, targets) + 0.3 * loss(logits, others)
    assert float(loss(logits, share)) == pytest.approx(float(each), rel=1e-6)


@every_loss
def test_targets_and_logits_that_do_not_fit_are_refused(name):
    logits, targets = example()
    loss = make(name, weight=[1, 2, 6])
    for z, y in (
        (logits, F.one_hot(targets, 3)),
        (logits[:, :1], torch.zeros(6).long()),
        (logits[:, :2], targets.clamp_max(1)),
        (logits[0], targets[0]),
        (logits, targets[:5]),
        (logits, F.one_hot(targets, 4).double()),
    ):
        with pytest.raises(UsageError, match="shape"):
            loss(z, y)


@every_loss
def test_buffers_follow_to_and_the_state_is_the_weight(name):
    logits, targets = example()
    loss = make(name, weight=np.array([1.0, 2.0, 6.0]))
    moved = copy.deepcopy(loss).to(torch.float32)
    assert {b.dtype for b in moved.buffers()} == {torch.float32}
    assert all(
        b.device.type == "meta" for b in copy.deepcopy(loss).to("meta").buffers()
    )
    assert list(loss.state_dict()) == ["weight"]
    for half in (torch.float16, torch.bfloat16):
        found = moved(logits.to(half), targets)
        assert found.dtype == torch.float32
        assert float(found) == pytest.approx(float(loss(logits, targets)), rel=0.05)


@pytest.mark.parametrize("form", [list, tuple, np.array, torch.tensor, Counter])
def test_counts_and_labels_come_in_any_form(form):
    labels = [2] + [1] * 4 + [0] * 9
    given = Counter(labels) if form is Counter else form(C)
    expected = losses.LDAMLoss(C).margin
    assert torch.equal(losses.LDAMLoss(given).margin, expected)
    assert torch.equal(losses.class_weights(given, 0.9), losses.class_weights(C, 0.9))
    labels = labels if form is Counter else form(labels)
    made = losses.LDAMLoss.from_labels(labels, max_margin=0.2)
    assert torch.allclose(made.margin, expected * 0.4)


def test_counts_come_once_and_named_ones_in_the_order_of_their_names():
    assert torch.equal(losses.LDAMLoss(n for n in C).margin, losses.LDAMLoss(C).margin)
    names = Counter({"c": 1, "a": 9, "b": 4})
    assert torch.equal(losses.LDAMLoss(names).margin, losses.LDAMLoss(C).margin)


def test_torchs_own_loss_takes_the_class_weights():
    weight = losses.class_weights(C, 0.999)
    logits, targets = example()
    loss = torch.nn.CrossEntropyLoss(weight)(logits.float(), targets)
    ours = losses.VSLoss(C, 0.0, 0.0, weight)(logits.float(), targets)
    assert float(loss) == pytest.approx(float(ours))


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
        lambda: losses.class_weights(5, 0.9),
        lambda: losses.LDAMLoss((5, float("nan"))),
        lambda: losses.LDAMLoss({0: 5, "dog": 2}),
        lambda: losses.LDAMLoss.from_labels(["cat", "dog"]),
        lambda: losses.class_weights((5, 2), 1.0),
        lambda: losses.LDAMLoss((5, 2), max_margin=0.0),
        lambda: losses.LDAMLoss((5, 2), scale=float("inf")),
        lambda: losses.VSLoss((5, 2), gamma=-0.1),
        lambda: losses.VSLoss((5, 2), tau=float("nan")),
        lambda: losses.VSLoss((5, 2), weight=torch.ones(3)),
        lambda: losses.VSLoss((5, 2), weight=torch.zeros(2)),
        lambda: losses.FocalLoss(-1.0),
        lambda: losses.VSLoss((5, 2))(torch.zeros(0, 2), torch.zeros(0).long()),
        lambda: losses.VSLoss((5, 2), reduction="average"),
        lambda: losses.LDAMLoss((5, 2), label_smoothing=1.5),
        lambda: losses.LDAMLoss.from_labels([0, 0, 2]),
        lambda: losses.LDAMLoss.from_labels([0, -1]),
        lambda: losses.LDAMLoss.from_labels([0.0, 1.0]),
        lambda: losses.FocalLoss(1.0)(torch.zeros(2, 3), torch.ones(2, 3) / 3),
    ],
)
def test_bad_arguments_are_refused_in_one_line(call):
    with pytest.raises(UsageError) as error:
        call()
    assert "\n" not in str(error.value)
