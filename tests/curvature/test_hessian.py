import copy
import functools
import gc
import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call, grad, jacrev

from saddlebook import models
from saddlebook.curvature.certify import (
    certified,
    check_fixed,
    exact_trace,
    start,
    with_trace,
)
from saddlebook.curvature.hessian import class_spectra, spectrum
from saddlebook.curvature.lanczos import Memory, advance, distilled, starts
from saddlebook.curvature.problem import Problem, piecewise_affine
from saddlebook.curvature.products import Product
from saddlebook.curvature.resnet import ResNetProduct, best_product
from saddlebook.errors import NumericalError, ResourceError, UsageError, VerifyError
from saddlebook.losses import FocalLoss, LDAMLoss, VSLoss

CLASSES = 4
COUNTS = [40, 20, 10, 5]
LOSSES = {
    "ce": nn.CrossEntropyLoss(),
    "weighted": nn.CrossEntropyLoss(torch.tensor([0.5, 1.0, 2.0, 0.5])),
    "ldam": LDAMLoss(COUNTS),
    "vs": VSLoss(COUNTS),
    "focal": FocalLoss(1.5),
}


def seeded(build, seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build()


def lively(model):
    """Give batch norms statistics and weights that differ from channel to channel."""
    for m in model.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.running_mean.normal_(0, 0.3)
            m.running_var.uniform_(0.5, 2)
            nn.init.uniform_(m.weight, 0.5, 1.5)
            nn.init.normal_(m.bias, 0, 0.3)
    return model


def plain_cnn():
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, stride=2), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(),
        nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, CLASSES),
    )  # fmt: skip


def affine_cnn():
    return lively(
        nn.Sequential(
            nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(),
            nn.MaxPool2d(2), nn.Conv2d(4, 4, 3, groups=2, dilation=2, padding=1),
            nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4, CLASSES),
        )
    )  # fmt: skip


def resnet(cosine_head=False):
    return lively(models.resnet8(CLASSES, cosine_head, width=2))


NETS = {
    "cnn": plain_cnn,
    "affine": affine_cnn,
    "resnet": resnet,
    "cosine": lambda: resnet(cosine_head=True),
}
PIXELS = {"cnn": 6, "affine": 6, "resnet": 8, "cosine": 8}


def case(net, loss="ce", count=9, dtype=torch.float64, seed=0):
    model = seeded(NETS[net], seed).to(dtype).train()
    generator = torch.Generator().manual_seed(seed)
    size = PIXELS[net]
    images = torch.randn(count, 3, size, size, generator=generator).to(dtype)
    labels = torch.randint(0, CLASSES, (count,), generator=generator)
    if loss == "weighted":
        labels[:] = 2
    return model, LOSSES[loss], images, labels


@functools.cache
def known(net, loss="ce", count=9):
    """The dense Hessian of a case. [n, n]"""
    return dense(*case(net, loss, count))


def dense(model, loss, images, labels):
    """The Hessian by torch.func, in float64, eval mode. [n, n]"""
    model = copy.deepcopy(model).double().eval()
    loss = copy.deepcopy(loss).double()
    names = [name for name, _ in model.named_parameters()]
    shapes = [p.shape for p in model.parameters()]

    def mean_loss(flat):
        parts = flat.split([shape.numel() for shape in shapes])
        params = {
            name: part.view(shape)
            for name, part, shape in zip(names, parts, shapes, strict=True)
        }
        return loss(functional_call(model, params, (images.double(),)), labels)

    flat = torch.cat([p.detach().reshape(-1) for p in model.parameters()])
    return jacrev(grad(mean_loss))(flat)


def relative(found, wanted):
    return float((found.double() - wanted).norm() / wanted.norm())


CASES = [
    *itertools.product(["cnn", "resnet"], LOSSES),
    *itertools.product(["affine"], ["ce", "vs", "focal"]),
    *itertools.product(["cosine"], ["ldam", "ce"]),
]


@pytest.mark.parametrize(("net", "loss"), CASES)
def test_both_products_equal_the_dense_hessian(net, loss):
    problem = Problem(*case(net, loss), batch_size=4)
    matrix = known(net, loss)
    vectors = torch.randn(3, len(matrix), dtype=torch.float64)
    for product in (
        Product(problem, torch.float64),
        best_product(problem, torch.float64),
    ):
        for vector in vectors:
            assert relative(product(vector), matrix @ vector) < 1e-10
    narrow = best_product(problem, torch.float32)
    assert relative(narrow(vectors[0].float()), matrix @ vectors[0]) < 1e-5
    assert isinstance(narrow, ResNetProduct) == (net in ("resnet", "cosine"))


@pytest.mark.parametrize(("net", "loss"), CASES)
def test_ends_lie_within_their_bounds_of_the_dense_spectrum(net, loss):
    problem = case(net, loss, dtype=torch.float32)
    values = torch.linalg.eigvalsh(known(net, loss))
    for steps in (8, 40):
        found = spectrum(*problem, steps=steps)
        ends = (
            (found.lambda_min, found.lambda_min_bound, values[0]),
            (found.lambda_max, found.lambda_max_bound, values[-1]),
        )
        for (value, bound, near), sure in zip(ends, found.converged, strict=True):
            assert float((values - value).abs().min()) <= bound
            if sure:
                assert abs(value - float(near)) <= bound
    assert all(found.converged)


@pytest.mark.parametrize(("net", "loss"), CASES)
def test_converged_ends_of_a_float64_model_are_exact(net, loss):
    values = torch.linalg.eigvalsh(known(net, loss))
    found = spectrum(*case(net, loss), steps=60)
    scale = float(values.abs().max())
    for value, bound, near in (
        (found.lambda_min, found.lambda_min_bound, float(values[0])),
        (found.lambda_max, found.lambda_max_bound, float(values[-1])),
    ):
        assert bound < 1e-7 * scale
        assert value == pytest.approx(near, rel=1e-6, abs=1e-9 * scale)


def test_softmax_regression_has_its_closed_form():
    model = nn.Linear(5, CLASSES, bias=False).double()
    images = torch.randn(30, 5, dtype=torch.float64)
    labels = torch.randint(0, CLASSES, (30,))
    p = model(images).softmax(1).detach()
    inner = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
    outer = images[:, :, None] * images[:, None, :]
    matrix = torch.einsum("ncd,nij->cidj", inner, outer).reshape(20, 20) / 30
    product = Product(Problem(model, nn.CrossEntropyLoss(), images, labels, 7),
                      torch.float64)  # fmt: skip
    columns = torch.stack([product(row) for row in torch.eye(20).double()])
    torch.testing.assert_close(columns, matrix, rtol=1e-10, atol=1e-12)
    found = spectrum(model, nn.CrossEntropyLoss(), images, labels, steps=20)
    assert found.trace == pytest.approx(float(matrix.trace()), rel=1e-10)


def test_products_equal_central_differences_of_gradients():
    model, loss, images, labels = case("cnn", "vs")
    product = Product(Problem(model, loss, images, labels), torch.float64)
    vector = torch.randn(product.size, dtype=torch.float64)

    def gradient(step):
        moved = copy.deepcopy(model).eval()
        for p, part in zip(moved.parameters(), product.split(vector), strict=True):
            p.data += step * part
        return product.join(
            torch.autograd.grad(loss(moved(images), labels), tuple(moved.parameters()))
        )

    difference = (gradient(1e-6) - gradient(-1e-6)) / 2e-6
    assert relative(product(vector), difference) < 1e-6


class TestTrace:
    @pytest.mark.parametrize("net", ["affine", "resnet"])
    @pytest.mark.parametrize("loss", ["ce", "vs", "focal"])
    def test_is_exact_where_it_says_so(self, net, loss):
        problem = case(net, loss, dtype=torch.float32)
        truth = float(known(net, loss).trace())
        found = spectrum(*problem, steps=3)
        assert found.trace_method == "exact"
        assert found.trace == pytest.approx(truth, rel=1e-6)
        assert found.trace_error < 1e-5 * abs(truth)

    @pytest.mark.parametrize("net", ["affine", "resnet"])
    def test_exact_in_float32_is_within_its_rounding_of_float64(self, net):
        for seed in range(6):
            problem = Problem(*case(net, dtype=torch.float32, seed=seed))
            product = best_product(problem, torch.float32)
            found = certified(
                product, [distilled(advance(start(product, 0), product, 3))]
            )
            found = with_trace(found, product, start(product, 0))
            wide = best_product(problem, torch.float64)
            assert abs(found.trace - exact_trace(wide)[0]) < found.trace_error

    def test_takes_the_gram_form_with_few_positions(self):
        model = nn.Sequential(nn.Conv2d(8, 6, 3, padding=1), nn.Flatten(),
                              nn.Linear(6 * 4, CLASSES)).double()  # fmt: skip
        images = torch.randn(5, 8, 2, 2, dtype=torch.float64)
        problem = model, LOSSES["ce"], images, torch.arange(5) % CLASSES
        product = Product(Problem(*problem), torch.float64)
        truth = float(dense(*problem).trace())
        assert exact_trace(product)[0] == pytest.approx(truth, rel=1e-10)

    def test_is_refused_where_it_is_not_exact(self):
        tied = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
        tied[2].weight = tied[0].weight
        twice = nn.Linear(4, 4)
        cases = {
            "cosine head": resnet(cosine_head=True),
            "smooth": plain_cnn(),
            "tied": tied,
            "used twice": nn.Sequential(twice, nn.ReLU(), twice),
            "gelu": nn.Sequential(nn.Linear(4, 4), nn.GELU()),
            "own statistics": nn.Sequential(nn.InstanceNorm2d(2)),
            "reflected": nn.Sequential(nn.Conv2d(2, 2, 3, padding=1,
                                                 padding_mode="reflect")),
        }  # fmt: skip
        assert not [name for name, model in cases.items() if piecewise_affine(model)]
        assert piecewise_affine(resnet())
        assert piecewise_affine(models.resnet50(CLASSES))

    def test_estimate_covers_the_truth_where_it_is_refused(self):
        problem = case("cosine", "ldam")
        truth = float(known("cosine", "ldam").trace())
        scores = []
        for seed in range(12):
            found = spectrum(*problem, steps=6, seed=seed)
            assert found.trace_method == "deflated"
            scores.append((found.trace - truth) / found.trace_error)
        assert np.mean(np.abs(scores) < 2.1) >= 0.75
        assert abs(np.mean(scores)) < 3 / math.sqrt(12) * 1.2

    def test_batch_statistics_take_the_estimate(self):
        found = spectrum(*case("resnet"), steps=3, batch_norm="batch")
        assert found.trace_method == "deflated"


class TestInvariance:
    def test_chunks_change_nothing(self):
        problem = case("resnet", count=10)
        ends = [
            spectrum(*problem, steps=25, batch_size=size).lambda_max
            for size in (1, 7, None)
        ]
        assert ends == pytest.approx([ends[0]] * 3, rel=1e-12)

    def test_order_and_repetition_of_images_change_nothing(self):
        model, loss, images, labels = case("cnn", count=8)
        first = spectrum(model, loss, images, labels, steps=20)
        order = torch.randperm(8).repeat(2)
        again = spectrum(model, loss, images[order], labels[order], steps=20)
        assert again.lambda_min == pytest.approx(first.lambda_min, rel=1e-10)
        assert again.trace == pytest.approx(first.trace, rel=1e-8)

    def test_class_hessians_weighted_by_share_give_the_total(self):
        model, loss, images, labels = case("resnet", count=20)
        total = best_product(Problem(model, loss, images, labels), torch.float64)
        vector = torch.randn(total.size, dtype=torch.float64)
        parts = torch.zeros_like(vector)
        for label in labels.unique():
            rows = labels == label
            problem = Problem(model, loss, images[rows], labels[rows])
            product = best_product(problem, torch.float64)
            parts += rows.double().mean() * product(vector)
        assert relative(parts, total(vector)) < 1e-10

    def test_a_class_weight_cancels_on_one_class(self):
        model, _, images, labels = case("resnet")
        labels[:] = 2
        ends = [
            spectrum(model, LOSSES[loss], images, labels, steps=15).lambda_min
            for loss in ("ce", "weighted")
        ]
        assert ends[0] == pytest.approx(ends[1], rel=1e-10)

    def test_the_logits_scale_enters_the_head_curvature_squared(self):
        model = nn.Linear(5, CLASSES).double()
        nn.init.zeros_(model.weight)
        nn.init.zeros_(model.bias)
        images, labels = torch.randn(9, 5, dtype=torch.float64), torch.zeros(9).long()
        ends = [
            spectrum(model, LDAMLoss(COUNTS, 1e-9, scale), images, labels, steps=9)
            for scale in (1.0, 30.0)
        ]
        assert ends[1].lambda_max == pytest.approx(900 * ends[0].lambda_max, rel=1e-6)

    def test_two_products_are_bitwise_equal(self):
        product = best_product(Problem(*case("resnet", dtype=torch.float32)),
                               torch.float32)  # fmt: skip
        vector = torch.randn(product.size)
        assert torch.equal(product(vector), product(vector))

    def test_rebuilt_graphs_and_tapes_equal_kept_ones(self):
        problem = Problem(*case("resnet", count=7), batch_size=3)
        vector = torch.randn(Product(problem).size, dtype=torch.float64)
        for kind in (Product, ResNetProduct):
            kept, rebuilt = (kind(problem, torch.float64, keep) for keep in (2**30, 0))
            first = kept(vector)
            assert torch.equal(rebuilt(vector), first)
            assert torch.equal(kept(vector), first)

    @pytest.mark.parametrize("dtypes", [{}, {"taped": torch.float64}])
    def test_the_product_over_the_first_images_is_that_of_these(self, dtypes):
        problem = Problem(*case("resnet", count=7, dtype=torch.float32), batch_size=2)
        part = problem._replace(images=problem.images[:3], labels=problem.labels[:3])
        product, alone = (ResNetProduct(p, **dtypes) for p in (problem, part))
        vector = torch.randn(product.size)
        before = product(vector)
        assert torch.equal(product.first(3)(vector), alone(vector))
        assert torch.equal(product(vector), before)
        assert product.first(7) is product
        whole = Product(problem._replace(batch_norm="batch"))
        assert whole.first(3) is whole

    @pytest.mark.parametrize("kind", [Product, ResNetProduct])
    def test_a_second_product_trusts_what_was_checked_for_the_first(self, kind):
        """In a whole analysis these passes cost as much as three Hessian products."""
        problem = Problem(*case("resnet", count=7), batch_size=3)
        first, passes = kind(problem, torch.float64), []
        problem.model.register_forward_hook(lambda *_: passes.append(1))
        part = problem._replace(images=problem.images[:5], labels=problem.labels[:5])
        second = kind(part, torch.float64, like=first)
        assert passes == []
        assert (second.whole, second.chunk) == (first.whole, 3)
        vector = torch.randn(first.size, dtype=torch.float64)
        assert torch.equal(second(vector), kind(part, torch.float64)(vector))

    @pytest.mark.parametrize(("free", "kept"), [(9e9, [0, 3, 6]), (4.1e9, [])])
    def test_tapes_are_kept_while_a_quarter_of_memory_is_free(
        self, free, kept, monkeypatch
    ):
        """Beyond what is kept anyway; the product is the same to the bit."""
        problem = Problem(*case("resnet", count=7), batch_size=3)
        monkeypatch.setattr("saddlebook.curvature.resnet.KEEP", 1)
        monkeypatch.setattr(
            "saddlebook.curvature.resnet.memory", lambda _: Memory(free, 16.4e9)
        )
        product, bare = (
            ResNetProduct(problem, torch.float64, keep) for keep in (None, 0)
        )
        vector = torch.randn(product.size, dtype=torch.float64)
        assert torch.equal(product(vector), bare(vector))
        assert torch.equal(product(vector), bare(vector))
        assert list(product._kept) == kept
        assert not bare._kept
        product.forget()
        assert not product._kept
        assert torch.equal(product(vector), bare(vector))

    def test_products_over_other_images_do_not_remember_the_first(self):
        model, loss, images, labels = case("resnet")
        other = torch.flip(images, [0]) * 1.1
        for kind in (Product, ResNetProduct):
            product = kind(Problem(model, loss, images, labels), torch.float64)
            vector = torch.ones(product.size)
            product(vector)
            moved = product.on(other)(vector)
            fresh = kind(Problem(model, loss, other, labels), torch.float64)(vector)
            assert torch.equal(moved, fresh)


def test_the_model_is_left_as_it_was_found():
    model, loss, images, labels = case("resnet", dtype=torch.float32)
    model.bn1.eval()
    model.conv1.weight.grad = torch.ones_like(model.conv1.weight)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    modes = [m.training for m in model.modules()]
    class_spectra(model, loss, images, labels, steps=3)
    spectrum(model, loss, images, labels, steps=3, batch_norm="batch")
    assert [m.training for m in model.modules()] == modes
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert torch.equal(model.conv1.weight.grad, torch.ones_like(model.conv1.weight))
    assert all(p.requires_grad for p in model.parameters())
    assert all(
        p.grad is None for name, p in model.named_parameters() if name[:5] != "conv1"
    )


def test_train_mode_and_dropout_are_measured_in_eval_mode():
    model = nn.Sequential(nn.Linear(5, 8), nn.Dropout(0.5), nn.ReLU(), nn.Linear(8, 4))
    images, labels = torch.randn(9, 5), torch.arange(9) % 4
    ends = []
    for mode in (True, False):
        model.train(mode)
        ends.append(spectrum(model, LOSSES["ce"], images, labels, steps=9).lambda_min)
        assert model.training is mode
    assert ends[0] == ends[1]


def test_batch_statistics_are_those_of_all_images():
    model, loss, images, labels = case("resnet", count=8)
    product = Product(Problem(model, loss, images, labels, 3, "batch"), torch.float64)
    twin = copy.deepcopy(model).train()
    assert product.value() == pytest.approx(loss(twin(images), labels).item())
    vector = torch.randn(product.size, dtype=torch.float64)
    names = [name for name, _ in twin.named_parameters()]

    def mean_loss(flat):
        params = dict(zip(names, product.split(flat), strict=True))
        return loss(functional_call(twin, params, (images,)), labels)

    flat = product.join(tuple(p.detach() for p in twin.parameters()))
    _, wanted = torch.autograd.functional.vhp(mean_loss, flat, vector)
    assert relative(product(vector), wanted) < 1e-10


class Noisy(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(5, 4)

    def forward(self, x):
        return self.linear(F.dropout(x, 0.5, training=True))


def test_a_changing_operator_is_refused_and_says_why():
    images, labels = torch.randn(9, 5), torch.arange(9) % 4
    with pytest.raises(VerifyError, match=r"changed between two passes: loss .* cause"):
        spectrum(Noisy(), LOSSES["ce"], images, labels, steps=5)


class Counting(nn.Module):
    """Remembers how often it was called, and lets that into its outputs."""

    def __init__(self):
        super().__init__()
        self.linear, self.calls = nn.Linear(5, 4), 0

    def forward(self, x):
        self.calls += 1
        return self.linear(x) * (1 + 0.01 * self.calls)


def test_a_forward_that_keeps_a_state_is_refused():
    images, labels = torch.randn(9, 5), torch.arange(9) % 4
    with pytest.raises(VerifyError, match="keeps a state"):
        spectrum(Counting(), LOSSES["ce"], images, labels, steps=5)


def test_products_that_change_under_equal_outputs_are_refused():
    class Unsteady(Product):
        def __call__(self, vector):
            return super().__call__(vector) * (1 + 1e-7 * torch.rand(()).double())

    product = Unsteady(Problem(*case("cnn")), torch.float64)
    with pytest.raises(VerifyError, match="between two products; cause"):
        check_fixed(product)


@pytest.mark.parametrize("shift", [4, 12])
def test_a_memorised_class_keeps_its_digits(shift):
    model, loss, images, labels = case("resnet", dtype=torch.float32)
    labels[:] = 1
    with torch.no_grad():
        model.linear.bias[1] += shift
    values = torch.linalg.eigvalsh(dense(model, loss, images, labels))
    found = spectrum(model, loss, images, labels, steps=40)
    assert abs(found.lambda_max - float(values[-1])) <= found.lambda_max_bound
    assert found.lambda_max == pytest.approx(float(values[-1]), rel=2e-6)
    assert found.lambda_min == pytest.approx(float(values[0]), abs=2e-6 * found.scale)


def test_bf16_products_keep_honest_bounds():
    problem = case("resnet", dtype=torch.float32)
    values = torch.linalg.eigvalsh(known("resnet"))
    found = spectrum(*problem, steps=30, precision="bf16")
    for value, bound in (
        (found.lambda_min, found.lambda_min_bound),
        (found.lambda_max, found.lambda_max_bound),
    ):
        assert float((values - value).abs().min()) <= bound
    assert found.lambda_max == pytest.approx(float(values[-1]), rel=1e-3)
    # both ends are certified without bf16: a Rayleigh quotient off by less than 1e-5
    exact = best_product(Problem(*problem), torch.float64)
    for value, vector in (
        (found.lambda_min, found.vector_min),
        (found.lambda_max, found.vector_max),
    ):
        assert float(vector @ exact(vector)) == pytest.approx(
            value, abs=1e-5 * found.scale
        )


def test_a_width_whose_shortcuts_broadcast_goes_the_generic_way():
    model = models.resnet8(CLASSES, width=1)
    problem = Problem(model, LOSSES["ce"], torch.randn(3, 3, 8, 8), torch.arange(3))
    assert type(best_product(problem, torch.float32)) is Product


def test_bf16_is_refused_for_other_networks():
    with pytest.raises(UsageError, match="ResNets only"):
        spectrum(*case("cnn", dtype=torch.float32), steps=3, precision="bf16")


def test_rounding_is_inside_the_bound():
    problem = Problem(*case("resnet", dtype=torch.float32))
    product = best_product(problem, torch.float32)
    state = advance(start(product, 0), product, 60)
    found = certified(product, [distilled(state)])
    exact = best_product(problem, torch.float64)
    for value, vector, bound in (
        (found.lambda_max, found.vector_max, found.lambda_max_bound),
        (found.lambda_min, found.vector_min, found.lambda_min_bound),
    ):
        assert float((exact(vector) - value * vector).norm()) <= bound
    # the bound leaves room for both: what float32 leaves over and what it gets wrong
    top, vector = found.lambda_max, found.vector_max
    rough = product(vector).double()
    left, wrong = rough - top * vector, exact(vector) - rough
    assert float(left.norm() + wrong.norm()) <= found.lambda_max_bound


def on_the_kink():
    """A float32 network with activations so near zero that rounding sets their sign."""
    model, loss, images, labels = case("resnet")
    norm = model.eval().bn1
    with torch.no_grad():
        for channel in range(norm.num_features):
            before = norm(model.conv1(images[:1]))[0, channel, 2, 2]
            norm.bias[channel] -= before
    return model.float(), loss, images.float(), labels


def test_ends_that_float32_cannot_tell_are_certified_in_float64():
    model, loss, images, labels = on_the_kink()
    problem = Problem(model, loss, images, labels)
    product = best_product(problem, torch.float32)
    exact = best_product(problem, torch.float64)
    vector = starts(product.size, 0, 0)
    wrong = (product(vector) - exact(vector)).norm() / exact(vector).norm()
    assert float(wrong) > 1e-4, "no activation changed its sign"
    found = spectrum(model, loss, images, labels, steps=100)
    values = torch.linalg.eigvalsh(dense(model, loss, images.double(), labels))
    assert all(found.converged)
    for end, value, bound in (
        (0, found.lambda_min, found.lambda_min_bound),
        (-1, found.lambda_max, found.lambda_max_bound),
    ):
        assert abs(value - float(values[end])) <= bound


@pytest.mark.parametrize("seed", range(4))
def test_what_float32_gets_wrong_comes_from_the_tape(seed):
    problem = Problem(*case("resnet", dtype=torch.float32, seed=seed))
    rough, exact = (best_product(problem, d) for d in (torch.float32, torch.float64))
    taped = ResNetProduct(problem, torch.float32, taped=torch.float64)
    vector = starts(rough.size, seed, 0)
    wrong = (rough(vector) - exact(vector)).norm()
    told = (rough(vector) - taped(vector)).norm()
    assert 0.5 < float(wrong / told) < 2


def test_exact_tapes_follow_other_images():
    model, loss, images, labels = case("resnet", dtype=torch.float32)
    problem, others = Problem(model, loss, images, labels), images.flip(0)
    taped = ResNetProduct(problem, torch.float32, taped=torch.float64)
    vector = starts(taped.size, 1, 0)
    taped(vector)
    again = ResNetProduct(
        problem._replace(images=others), torch.float32, taped=torch.float64
    )
    assert torch.equal(taped.on(others)(vector), again(vector))


def test_a_loss_of_several_classes_is_certified_in_one_chunk():
    model, _, images, labels = case("resnet", count=12, dtype=torch.float32)
    loss = nn.CrossEntropyLoss(torch.tensor([0.5, 1.0, 2.0, 0.5]))
    values = torch.linalg.eigvalsh(dense(model, loss, images, labels))
    found = spectrum(model, loss, images, labels, steps=40, batch_size=12)
    assert abs(found.lambda_max - float(values[-1])) <= found.lambda_max_bound
    assert found.lambda_max_bound < 1e-4 * found.scale


class Crowded(nn.Module):
    """Runs out of memory above a number of images."""

    def __init__(self, room):
        super().__init__()
        self.linear = nn.Linear(5, 4).double()
        self.room = room

    def forward(self, x):
        if len(x) > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return self.linear(x)


def test_out_of_memory_halves_the_chunk_and_gives_the_same_result():
    images = torch.randn(40, 5, dtype=torch.float64)
    labels = torch.arange(40) % 4
    ends = []
    for room in (40, 6):
        model = seeded(lambda room=room: Crowded(room))
        ends.append(spectrum(model, LOSSES["ce"], images, labels, steps=9).lambda_max)
    assert ends[0] == pytest.approx(ends[1], rel=1e-12)


def test_out_of_memory_halves_the_chunk_of_the_products_by_hand(monkeypatch):
    problem = Problem(*case("resnet", count=9))
    whole = ResNetProduct(problem, torch.float64)
    vector = torch.randn(whole.size, dtype=torch.float64)
    wanted, record = whole(vector), ResNetProduct._record

    def crowded(self, piece):
        if piece.stop - piece.start > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return record(self, piece)

    monkeypatch.setattr(ResNetProduct, "_record", crowded)
    halved = ResNetProduct(problem, torch.float64)
    assert relative(halved(vector), wanted) < 1e-12
    assert halved.chunk == 3


def test_out_of_memory_with_one_image_is_an_error():
    with pytest.raises(ResourceError, match="out of memory with 1 image"):
        spectrum(Crowded(0), LOSSES["ce"], torch.randn(4, 5).double(),
                 torch.arange(4), steps=3)  # fmt: skip


def test_nothing_is_left_in_memory():
    problem = case("cnn", dtype=torch.float32)

    def tensors():
        gc.collect()
        return sum(issubclass(type(o), torch.Tensor) for o in gc.get_objects())

    spectrum(*problem, steps=4)
    before = tensors()
    for _ in range(3):
        spectrum(*problem, steps=4)
    assert tensors() == before


def test_frozen_parameters_are_left_out():
    model, loss, images, labels = case("resnet")
    model.conv1.weight.requires_grad_(False)
    found = spectrum(model, loss, images, labels, steps=5)
    assert found.size == sum(p.numel() for p in model.parameters()) - 54


def test_a_closure_with_float32_tensors_still_works():
    model, _, images, labels = case("resnet", dtype=torch.float32)
    weight = torch.ones(CLASSES)
    found = spectrum(
        model, lambda z, y: F.cross_entropy(z, y, weight), images, labels, steps=20
    )
    plain = spectrum(model, LOSSES["ce"], images, labels, steps=20)
    assert found.lambda_max == pytest.approx(plain.lambda_max, rel=1e-5)


class TestBadInput:
    @pytest.mark.parametrize("classes", [[-1], [10], ["cat"], [3, 9], [1.0], [True]])
    def test_classes_that_are_not_there(self, classes):
        model, loss, images, labels = case("cnn")
        labels[:] = 3
        with pytest.raises(UsageError, match="class"):
            class_spectra(model, loss, images, labels, classes, steps=3)

    @pytest.mark.parametrize(
        ("change", "match"),
        [
            (lambda x, y: (x[:0], y[:0]), "0 images"),
            (lambda x, y: (x, y[:-1]), "one label an image"),
            (lambda x, y: (x[:, :2], y), "refuses images of shape"),
            (lambda x, y: (x, y + 4), "more than 4 outputs"),
            (lambda x, y: (x, y - 4), "class numbers"),
            (lambda x, y: (x, y.double()), "class numbers"),
            (lambda x, y: (x.to(torch.uint8), y), "normalise"),
        ],
    )
    def test_images_and_labels_that_do_not_fit(self, change, match):
        model, loss, images, labels = case("cnn")
        with pytest.raises(UsageError, match=match):
            spectrum(model, loss, *change(images, labels), steps=3)

    def test_a_label_too_few_is_named_and_an_ignored_one_is_none_too_many(self):
        model, loss, images, labels = case("cnn")
        for wrong in (labels[:-1], torch.cat([labels, labels])):
            with pytest.raises(UsageError, match="a class number per image"):
                class_spectra(model, loss, images, wrong, steps=3)
        labels[0] = 255
        kept = nn.CrossEntropyLoss(ignore_index=255)
        assert spectrum(model, kept, images, labels, steps=3).lambda_max > 0

    def test_targets_and_products_that_are_not_finite(self):
        model = lively(nn.Sequential(nn.Flatten(), nn.Linear(108, 1)))
        images = torch.randn(4, 3, 6, 6)
        mse = lambda z, y: F.mse_loss(z.flatten(), y)  # noqa: E731
        targets = torch.tensor([-1.5, -2.0, 0.0, 1.0])
        assert spectrum(model, mse, images, targets, steps=3).lambda_max > 0
        with pytest.raises(NumericalError, match="labels"):
            spectrum(model, mse, images, targets * math.nan, steps=3)
        with pytest.raises(NumericalError, match=r"not finite|NaN or infinity"):
            spectrum(model, mse, images * 1e25, targets, steps=3)

    def test_a_sum_is_no_mean_however_small(self):
        model, _, images, labels = case("cnn")
        with torch.no_grad():
            model[-1].weight.mul_(1e7)
            labels = model.eval()(images).argmax(1)
        total = nn.CrossEntropyLoss(reduction="sum")
        assert float(total(model(images), labels).detach()) < 1e-9
        with pytest.raises(UsageError, match="no mean over examples"):
            spectrum(model, total, images, labels, steps=3)

    def test_a_negative_seed(self):
        with pytest.raises(UsageError, match="seed -1"):
            spectrum(*case("cnn"), steps=3, seed=-1)

    def test_progress_over_several_probes_does_not_start_again(self):
        seen = []
        spectrum(*case("cnn"), steps=3, probes=2, progress=lambda *at: seen.append(at))
        assert seen == [(i, 6) for i in range(1, 7)]

    @pytest.mark.parametrize("steps", [0, -1, 2.5])
    def test_steps(self, steps):
        with pytest.raises(UsageError, match="steps"):
            spectrum(*case("cnn"), steps=steps)

    def test_settings(self):
        for bad in ({"batch_norm": "train"}, {"precision": "fp8"}, {"batch_size": 0}):
            with pytest.raises(UsageError):
                spectrum(*case("cnn"), steps=3, **bad)

    def test_numbers_that_are_not_finite(self):
        model, loss, images, labels = case("cnn")
        with pytest.raises(NumericalError, match="images"):
            spectrum(model, loss, images * math.nan, labels, steps=3)
        with torch.no_grad():
            model[4].bias[0] = math.inf
        with pytest.raises(NumericalError, match=r"4\.bias"):
            spectrum(model, loss, images, labels, steps=3)

    def test_a_loss_that_is_no_mean_over_examples(self):
        model, _, images, labels = case("cnn")
        total = nn.CrossEntropyLoss(reduction="sum")
        with pytest.raises(UsageError, match="no mean over examples"):
            spectrum(model, total, images, labels, steps=3, batch_size=4)
        none = nn.CrossEntropyLoss(reduction="none")
        with pytest.raises(UsageError, match="one number"):
            spectrum(model, none, images, labels, steps=3)

    def test_a_model_without_trained_parameters(self):
        model, loss, images, labels = case("cnn")
        model.requires_grad_(False)
        with pytest.raises(UsageError, match="requires a gradient"):
            spectrum(model, loss, images, labels, steps=3)


@pytest.mark.oracle
@pytest.mark.filterwarnings("ignore")  # of the other libraries' own imports
@pytest.mark.parametrize("net", ["cnn", "resnet"])
def test_products_and_ends_agree_with_other_libraries(net):
    from curvlinops import HessianLinearOperator
    from hessian_eigenthings import HessianOperator, supervised_loss
    from scipy.sparse.linalg import eigsh

    model, loss, images, labels = case(net)
    model.eval()
    params, data = list(model.parameters()), [(images, labels)]
    curv = HessianLinearOperator(model, loss, params, data, check_deterministic=False)
    things = HessianOperator(model, data, supervised_loss(loss))
    product = best_product(Problem(model, loss, images, labels), torch.float64)
    vector = torch.randn(product.size, dtype=torch.float64)
    assert relative(product(vector), curv @ vector) < 1e-10
    assert relative(product(vector), things.matvec(vector)) < 1e-10
    found = spectrum(model, loss, images, labels, steps=60)
    for end, which in ((found.lambda_min, "SA"), (found.lambda_max, "LA")):
        (value,) = eigsh(curv.to_scipy(), k=1, which=which)[0]
        assert end == pytest.approx(value, rel=1e-5)
