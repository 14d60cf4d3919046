"""Spectra whose numbers are pinned: what may not move without being said.

If one of these moves, measured spectra move: say why in CHANGELOG.md, empty
``provenance.SAME_SPECTRA``, and measure the studies again.
"""

import copy

import pytest
import torch
from torch import nn

from saddlebook import data, models
from saddlebook.curvature import hessian
from saddlebook.losses import VSLoss

SETTINGS = {"class_": 9, "steps": 12, "seed": 1, "limit": 16}
NAMES = (
    "lambda_min", "lambda_max", "lambda_min_bound", "lambda_max_bound", "trace",
    "trace_error", "diagonal_share", "rayleigh_clean", "rayleigh_fresh",
    "rayleigh_fresh_error", "loss", "gradient_norm", "gradient_along",
)  # fmt: skip
# fmt: off
MEASURED = {
    "clean": [
        -85.5688, 589.73, 0.905392, 2.24801e-07, 1647.92, 1.17092e-11, 1.33167,
        -85.5688, -15.3669, 3.11219, 2.89613, 19.3336, 0.894784,
    ],
    "augmented": [
        -69.9636, 511.186, 4.16072, 1.88868e-06, 2421.15, 1.72033e-11, 1.29805,
        -23.5688, -85.0303, 8.65925, 5.59142, 38.1365, -2.4383,
    ],
    "frozen": [
        -74.1532, 582.816, 3.97683, 1.61639e-06, 2362.64, 1.67876e-11, 1.32967, -17.767,
        -79.4929, 9.79362, 2.89613, 19.3336, 0.364763,
    ],
    "batch_statistics": [
        -186.771, 174.339, 0.00864146, 0.0304778, 3.82883, 65.5138, 0.307861, -186.771,
        4.48864, 8.17176, 5.7404, 14.916, 0.0746835,
    ],
    "mixed_statistics": [
        -28.5796, 192.507, 4.26618, 2.58762e-05, 983.315, 45.0126, 1.42088, 2.34288,
        19.5938, 1.13774, 2.74826, 9.25345, -2.01546,
    ],
    "as_published": [
        -587.969, 777.921, 588.36, 733.433, 3503.2, 0.0, 0.319644, -0.804556, 14.4788,
        11.2713, 2.89613, 19.3336, 0.108383,
    ],
    "redrawn": [
        -233.172, 592.115, 244.811, 558.655, 3503.2, 0.0, 0.643946, 7.86329, 40.6178,
        19.4802, 2.89613, 19.3336, -0.968635,
    ],
    "fixed_before": [
        -85.5688, 589.73, 0.905392, 5.14412e-05, 3093.69, 0.0, 1.33167, -85.5688,
        -15.3669, 3.11219, 2.89613, 19.3336, 0.894784,
    ],
    "held out": [
        -79.7493, 509.685, 3.10867, 0.00066167, 2180.92, 1.54964e-11, 1.39909, -79.7493,
        -29.2102, 6.54138, 2.5931, 23.416, -1.90746,
    ],
    "cut": [
        -51.1184, 769.554, 3.59692, 2.60377e-08, 1987.54, 1.41223e-11, 1.87131,
        -51.1184, 11.409, 10.0437, 2.49043, 15.1347, -1.85196,
    ],
    "cut as published": [
        -1058.42, 1081.91, 1138.49, 983.817, 462.181, 0.0, 0.113609, 65.7206, 0.936732,
        14.3627, 2.49043, 15.1347, 2.23278,
    ],
    "stopped at an accuracy": [
        -83.4071, 589.73, 11.7248, 0.000714218, 1647.92, 1.17092e-11, 1.43539, -83.4071,
        -13.7999, 3.86913, 2.89613, 19.3336, -0.69029,
    ],
}
SPECTRA = {
    "ours": (14, "exact", [
        -93.843016, 559.31643, 1567.9432, 2.6647655, 2.7705785e-06, 1.1140907e-11,
        26.64786, 0.015128928,
    ]),
    "two probes": (26, "exact", [
        -93.934127, 559.31643, 1567.9432, 1.4887336, 2.7705785e-06, 1.1140907e-11,
        26.64786, 0.015128928,
    ]),
    "any module": (14, "deflated", [
        -10.745986, 16.831274, 46.416847, 0.94703814, 0.88204061, 7.9067421,
        0.045793774, 0.87835145,
    ]),
    "batch statistics": (14, "deflated", [
        -15.300306, 16.268995, -1.4312944, 0.006829923, 0.0046995062, 8.7297121,
        -0.38403073, 0.4025266,
    ]),
    "chunks": (14, "deflated", [
        -10.745986, 16.831274, 46.416847, 0.94703814, 0.88204061, 7.9067421,
        0.045793774, 0.87835145,
    ]),
    "float32": (14, "exact", [
        -93.843015, 559.31645, 1567.943,
    ]),
    "bf16": (14, "exact", [
        -93.838793, 559.3023, 1567.943,
    ]),
}
# fmt: on


@pytest.fixture(scope="module")
def digits():
    return data.load("digits")


@pytest.fixture(scope="module")
def network(digits):
    """Float64, its running statistics those of digits, shrunk to look trained."""
    model = models.build_model("resnet8", 10, 2, False, 0).double()
    with torch.no_grad():
        for norm in model.modules():
            if isinstance(norm, nn.BatchNorm2d):
                norm.momentum = 1.0
        model(data.normalise(digits.train_images[:200], torch.float64))
        model.linear.weight *= 3
    return model


def plain():
    """A network that is not ours, smooth, with batch norm."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, stride=2), nn.BatchNorm2d(4), nn.Tanh(), nn.Flatten(),
        nn.Linear(36, 10),
    ).double()  # fmt: skip


def measured(network, digits, mode, held_out=False, **changes):
    images, labels = digits.train_images, digits.train_labels
    if held_out:
        images, labels = digits.test_images, digits.test_labels
    settings = SETTINGS | changes
    loss = nn.CrossEntropyLoss()
    return hessian.measure(network, loss, images, labels, mode, **settings)


CASES = {mode: (mode, {}) for mode in hessian.MODES} | {
    "held out": ("clean", {"held_out": True}),
    "cut": ("clean", {"limit": 5, "seed": 2}),
    "cut as published": ("as_published", {"limit": 5, "seed": 2}),
    "stopped at an accuracy": ("clean", {"rtol": 0.3, "steps": 30}),
    "mixed_statistics": ("mixed_statistics", {"limit": None}),
}


@pytest.mark.parametrize("name", CASES)
def test_every_mode_measures_the_pinned_numbers(network, digits, name):
    mode, changes = CASES[name]
    found = measured(network, digits, mode, **changes)
    assert [found[field] or 0 for field in NAMES] == pytest.approx(
        MEASURED[name], rel=1e-5, abs=1e-5
    )


# loss and images as users give them; float32 rounds bounds and nodes its own way on
# every machine, so only ends and trace are pinned
PRODUCTS = {
    "ours": ("ours", {}, 1e-5),
    "two probes": ("ours", {"probes": 2}, 1e-5),
    "any module": ("any", {}, 1e-5),
    "batch statistics": ("any", {"batch_norm": "batch"}, 1e-5),
    "chunks": ("any", {"batch_size": 7}, 1e-5),
    "float32": ("float32", {}, 1e-4),
    "bf16": ("float32", {"precision": "bf16"}, 1e-3),
}


@pytest.mark.parametrize("name", PRODUCTS)
def test_class_spectra_are_the_pinned_ones(network, digits, name):
    which, settings, tolerance = PRODUCTS[name]
    images = data.normalise(digits.train_images[:120], torch.float64)
    model = plain() if which == "any" else copy.deepcopy(network)
    if which == "float32":
        model, images = model.float(), images.float()
    loss = VSLoss(range(1, 11), gamma=0.3, tau=1.0)
    found = hessian.class_spectra(
        model,
        loss,
        images,
        digits.train_labels[:120],
        [9],
        steps=12,
        seed=1,
        **settings,
    )[9]
    ours = [found.lambda_min, found.lambda_max, found.trace]
    if which != "float32":
        ours += [found.lambda_min_bound, found.lambda_max_bound, found.trace_error]
        ours += [float(found.nodes[0, 5]), float(found.weights[0, 5])]
    products, method, pinned = SPECTRA[name]
    assert (found.products, found.trace_method) == (products, method)
    assert ours == pytest.approx(pinned, rel=tolerance, abs=1e-5)


@pytest.mark.parametrize("class_", [5, 9])
def test_bf16_knows_a_small_end_as_well_as_full_precision(network, digits, class_):
    """Its recurrence finds λmin, a twelfth of λmax; its vector alone would miss 1 %."""
    rows = (digits.train_labels == class_).nonzero().flatten()[:60]
    images, labels = (
        data.normalise(digits.train_images[rows]),
        digits.train_labels[rows],
    )
    model, loss = copy.deepcopy(network).float(), nn.CrossEntropyLoss()
    full, rough = (
        hessian.spectrum(model, loss, images, labels, rtol=1e-2, precision=precision)
        for precision in ("full", "bf16")
    )
    assert rough.converged == full.converged == (True, True)
    assert rough.products > rough.steps + 2  # it went on in full precision
    away = abs(rough.lambda_min - full.lambda_min)
    assert away <= rough.lambda_min_bound + full.lambda_min_bound
    assert rough.nonconvexity == pytest.approx(full.nonconvexity, rel=2e-3)
