"""Networks and losses as people have them: right, or one line that names the cause."""

import copy
import types
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call
from torch.nn.utils import parametrizations, prune
from torch.optim.swa_utils import AveragedModel
from torch.utils.checkpoint import checkpoint

from saddlebook.curvature.hessian import class_spectra, spectrum
from saddlebook.curvature.lanczos import Memory, starts
from saddlebook.curvature.problem import Problem
from saddlebook.curvature.products import Product
from saddlebook.errors import ResourceError, UsageError

CE = nn.CrossEntropyLoss()
LABELS = torch.arange(12) % 3


def images(count=12, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 3, 6, 6, generator=generator, dtype=torch.float64)


def convolutions(activation=None, norm=None):
    """A small network; its layers may be changed afterwards."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 2, 3), norm or nn.BatchNorm2d(2), activation or nn.ReLU(),
        nn.Conv2d(2, 3, 3), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(3, 3),
    ).double()  # fmt: skip


def dense(model, loss, x, y):
    """The Hessian by double backward, its graph kept whole."""
    params = {n: p.detach().clone() for n, p in model.named_parameters()}
    sizes = [p.numel() for p in params.values()]
    flat = torch.cat([p.flatten() for p in params.values()]).requires_grad_()

    def value(vector):
        parts = zip(params.items(), vector.split(sizes), strict=True)
        return loss(
            functional_call(model, {n: v.view_as(p) for (n, p), v in parts}, x), y
        )

    return torch.autograd.functional.hessian(value, flat)


class InPlaceFunctions(nn.Module):
    """In-place functions and sums, as residual networks have them."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 1)
        self.last = nn.Linear(3, 3)

    def forward(self, x):
        y = self.first(x)
        z = self.second(F.relu(y, inplace=True))
        z += y
        return self.last(F.relu_(z).mean((2, 3)))


class Doubled(nn.ReLU):
    """What its type says it is not."""

    def forward(self, x):
        return super().forward(x) ** 2


def hooked():
    model = convolutions()
    model[2].register_forward_hook(lambda module, inputs, output: output**2)
    return model


def pruned():
    model = convolutions()
    prune.l1_unstructured(model[3], "weight", amount=0.5)
    return model


def tied():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Flatten(), nn.Linear(108, 3), nn.ReLU(), nn.Linear(3, 3), nn.Linear(3, 3)
    ).double()
    model[4].weight = model[3].weight
    return model


def weight_norm(made):
    model = convolutions()
    with warnings.catch_warnings(action="ignore"):
        model[3] = made(model[3])
    return model


KINDS = {
    "in place": (lambda: convolutions(nn.ReLU(inplace=True)), "exact"),
    "in-place functions": (lambda: InPlaceFunctions().double(), "exact"),
    "a smooth activation": (lambda: convolutions(nn.GELU()), "deflated"),
    "hooks": (hooked, "deflated"),
    "pruning": (pruned, "deflated"),
    "a subclass": (lambda: convolutions(Doubled()), "deflated"),
    "tied layers": (tied, "deflated"),
    "parametrizations": (lambda: weight_norm(parametrizations.weight_norm), "deflated"),
    "weight norm by hooks": (lambda: weight_norm(nn.utils.weight_norm), "deflated"),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_trace_is_exact_or_not_called_so(kind, dtype):
    made, method = KINDS[kind]
    model = made().eval()
    truth = float(dense(model, CE, images(), LABELS).trace())
    found = spectrum(model.to(dtype), CE, images().to(dtype), LABELS, steps=20)
    assert found.trace_method == method
    assert (
        abs(found.trace - truth) < (1 if method == "exact" else 4) * found.trace_error
    )


@pytest.mark.parametrize("kind", KINDS)
def test_products_are_differences_of_gradients_whatever_autograd_says(kind):
    """A truth without second derivatives: torch has wrong ones, as of weight norm."""
    model, x = KINDS[kind][0]().eval(), images()
    params = [p for p in model.parameters() if p.requires_grad]
    sizes = [p.numel() for p in params]
    direction = starts(sum(sizes), 0, 0)

    def slope(step):
        moved = KINDS[kind][0]().eval()  # the same weights
        own = [p for p in moved.parameters() if p.requires_grad]
        with torch.no_grad():
            for p, part in zip(own, direction.split(sizes), strict=True):
                p.add_(step * part.view_as(p))
        found = torch.autograd.grad(CE(moved(x), LABELS), own)
        return torch.cat([g.flatten() for g in found])

    wanted = (slope(1e-5) - slope(-1e-5)) / 2e-5
    found = Product(Problem(model, CE, x, LABELS), torch.float64)(direction)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-7)


def test_autocast_around_a_measurement_changes_nothing():
    model, x = convolutions().float().eval(), images().float()
    alone = spectrum(model, CE, x, LABELS, steps=15)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = spectrum(model, CE, x, LABELS, steps=15)
    assert inside.trace == alone.trace
    assert inside.lambda_max == alone.lambda_max


def test_a_softmax_that_is_sure_beyond_float64_has_no_curvature():
    model = convolutions(norm=nn.Identity()).eval()
    with torch.no_grad():
        model[7].weight.mul_(1e9)
        labels = model(images()).argmax(1)
    found = spectrum(model, CE, images(), labels, steps=5)
    assert (found.trace, found.lambda_max) == (0.0, 0.0)


def test_an_estimated_trace_has_a_rounding_floor():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(10, 4), nn.LeakyReLU(), nn.Linear(4, 3))
    x = torch.randn(60, 10)
    y = torch.arange(60) % 3
    found = spectrum(model, CE, x, y, steps=59)  # the basis spans the space
    true = dense(model.double(), CE, x.double(), y).trace()
    assert abs(found.trace - float(true)) < found.trace_error < 1e-4 * float(true)


@pytest.mark.parametrize("count", [1, 10, 60])
def test_a_sum_is_refused_for_every_size_of_class(count):
    with pytest.raises(UsageError, match="every image twice"):
        spectrum(convolutions(), nn.CrossEntropyLoss(reduction="sum"),
                 images(count), torch.arange(count) % 3, steps=5)  # fmt: skip


class Centred(nn.Module):
    """Takes the mean over the batch away."""

    def forward(self, x):
        return x - 0.5 * x.mean(0)


MIXING = {
    "batch norm without statistics": (
        lambda: convolutions(norm=nn.BatchNorm2d(2, track_running_stats=False)),
        CE,
    ),
    "a layer of the user's": (lambda: convolutions(norm=Centred()), CE),
    "a weighted mean": (
        convolutions,
        nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 5.0])),
    ),
    "1-d batch norm": (
        lambda: nn.Sequential(
            nn.Flatten(),
            nn.Linear(108, 3),
            nn.BatchNorm1d(3, track_running_stats=False),
            nn.Tanh(),
            nn.Linear(3, 3),
        ).double(),
        CE,
    ),
}


@pytest.mark.parametrize("kind", MIXING)
def test_the_size_of_a_chunk_changes_no_result(kind):
    made, loss = MIXING[kind]
    model, x, y = made().eval(), images(51), torch.arange(51) % 3
    values = torch.linalg.eigvalsh(dense(copy.deepcopy(model), loss.double(), x, y))
    for size in (None, 7, 51):
        found = spectrum(model, loss, x, y, steps=60, batch_size=size)
        assert found.lambda_max == pytest.approx(float(values[-1]), rel=1e-6)


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.inner = nn.TransformerEncoderLayer(6, 2, 8, batch_first=True)
        self.last = nn.Linear(6, 3)

    def forward(self, x):
        return self.last(self.inner(x.flatten(2).mT.reshape(len(x), -1, 6)).mean(1))


class Checkpointed(nn.Module):
    def __init__(self, reentrant):
        super().__init__()
        self.inner, self.reentrant = convolutions(nn.Tanh()), reentrant

    def forward(self, x):
        return checkpoint(self.inner, x, use_reentrant=self.reentrant)


class Wrapped(nn.Module):
    """Its logits among other outputs."""

    def __init__(self, wrap):
        super().__init__()
        self.inner, self.wrap = convolutions(), wrap

    def forward(self, x):
        return self.wrap(self.inner(x))


# how a network is wrapped, the settings that need, and the network inside
NETWORKS = {
    "attention": (Attention, {}, lambda m: m),
    "hardsigmoid": (lambda: convolutions(nn.Hardsigmoid()), {}, lambda m: m),
    "hardswish": (lambda: convolutions(nn.Hardswish()), {}, lambda m: m),
    "checkpointed": (lambda: Checkpointed(False), {}, lambda m: m.inner),
    "checkpointed, reentrant": (lambda: Checkpointed(True), {}, lambda m: m.inner),
    "parallel": (lambda: nn.DataParallel(convolutions()), {}, lambda m: m.module),
    "averaged": (lambda: AveragedModel(convolutions()), {}, lambda m: m.module),
    "tuple": (lambda: Wrapped(lambda z: (2 * z, z)), {"output": 1}, lambda m: m.inner),
    "dictionary": (
        lambda: Wrapped(lambda z: {"logits": z}),
        {"output": "logits"},
        lambda m: m.inner,
    ),
    "attribute": (
        lambda: Wrapped(lambda z: types.SimpleNamespace(logits=z)),
        {"output": "logits"},
        lambda m: m.inner,
    ),
}


@pytest.mark.parametrize("kind", NETWORKS)
def test_networks_as_people_have_them_are_measured_right(kind):
    made, settings, inside = NETWORKS[kind]
    model = made().double().eval()
    values = eigenvalues(inside(model))
    found = spectrum(model, CE, images(), LABELS, steps=500, **settings)
    assert found.lambda_max == pytest.approx(values[-1], rel=1e-5)
    assert found.lambda_min == pytest.approx(values[0], rel=1e-4, abs=1e-6)


def eigenvalues(model):
    """Of the Hessian, by finite differences of gradients."""
    params = {n: p.detach() for n, p in model.named_parameters()}
    sizes = [p.numel() for p in params.values()]
    flat = torch.cat([p.flatten() for p in params.values()])

    def slope(vector):
        parts = zip(params.items(), vector.split(sizes), strict=True)
        moved = {n: v.view_as(p).clone().requires_grad_() for (n, p), v in parts}
        found = CE(functional_call(model, moved, images()), LABELS)
        slopes = torch.autograd.grad(found, list(moved.values()))
        return torch.cat([g.flatten() for g in slopes])

    rows = [
        (slope(flat + 1e-5 * e) - slope(flat - 1e-5 * e)) / 2e-5
        for e in torch.eye(len(flat), dtype=torch.float64)
    ]
    matrix = torch.stack(rows)
    return torch.linalg.eigvalsh((matrix + matrix.T) / 2).tolist()


REFUSED = {
    "cdist": (lambda: Wrapped(lambda z: torch.cdist(z, z[:3])), "cdist"),
    "several outputs": (lambda: Wrapped(lambda z: (z, z)), "tuple of 2.*output=0"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_measured_names_the_cause(kind):
    made, names = REFUSED[kind]
    with pytest.raises(UsageError, match=names) as refusal:
        spectrum(made().double(), CE, images(), LABELS, steps=3)
    assert "\n" not in str(refusal.value)


LINEAR = nn.Sequential(nn.Flatten(), nn.Linear(108, 3)).double()


@pytest.mark.parametrize(
    "classes", [0, np.unique([0, 1]), torch.tensor([1]), [np.int64(2)]]
)
def test_labels_and_classes_may_be_arrays(classes):
    found = class_spectra(LINEAR, CE, images(), LABELS.numpy(), classes, steps=400)
    assert set(found) == set(np.atleast_1d(classes).tolist())
    assert all(type(number) is int for number in found)


@torch.inference_mode()
def test_inference_mode_outside_changes_nothing():
    found = class_spectra(LINEAR, CE, images() + 0, LABELS, 0, steps=5)[0]
    assert found.lambda_max > 0


BINARY = nn.functional.binary_cross_entropy_with_logits
TARGETS = {
    "one logit": (1, lambda z, y: BINARY(z[:, 0], y.to(z)), LABELS.clamp(max=1)),
    "soft labels": (3, CE, torch.softmax(images()[:, :, 0, 0], 1)),
    "several labels": (3, nn.BCEWithLogitsLoss(), images()[:, :, 0, 0].gt(0).double()),
}


@pytest.mark.parametrize("kind", TARGETS)
def test_other_targets_than_one_class_of_many(kind):
    outputs, loss, targets = TARGETS[kind]
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(108, outputs)).double()
    found = spectrum(model, loss, images(), targets, steps=400)
    values = torch.linalg.eigvalsh(dense(model, loss, images(), targets))
    assert found.lambda_max == pytest.approx(float(values[-1]), rel=1e-8)


def test_a_label_per_pixel():
    torch.manual_seed(0)
    model = nn.Conv2d(3, 4, 3, padding=1).double()
    targets = torch.arange(12 * 36).reshape(12, 6, 6) % 4
    found = spectrum(model, CE, images(), targets, steps=400)
    matrix = dense(model, CE, images(), targets)
    assert found.lambda_max == pytest.approx(
        float(torch.linalg.eigvalsh(matrix)[-1]), rel=1e-8
    )
    assert abs(found.trace - float(matrix.trace())) < 4 * found.trace_error


def test_more_steps_than_parameters_are_as_many_as_there_are():
    found = spectrum(nn.Linear(2, 3), CE, torch.randn(9, 2), LABELS[:9])
    assert found.steps <= 9


def test_a_basis_that_does_not_fit_is_said_with_its_size(monkeypatch):
    little = Memory(free=2**20, total=2**34)
    monkeypatch.setattr("saddlebook.curvature.lanczos.memory", lambda device: little)
    with pytest.raises(ResourceError, match=r"100 Lanczos steps .* 3,003 parameters"):
        spectrum(nn.Linear(1000, 3), CE, torch.randn(9, 1000), LABELS[:9])
