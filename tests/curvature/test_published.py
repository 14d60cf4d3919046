import copy
import json
from collections import Counter

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call

from saddlebook import data
from saddlebook.curvature import hessian
from saddlebook.curvature.lanczos import diagonal_share, lanczos, released, starts
from saddlebook.curvature.problem import Problem
from saddlebook.curvature.resnet import best_product
from saddlebook.data import augment, epoch_order, normalise
from saddlebook.errors import UsageError

STEPS = 12


def small(count=12, pixels=8, seed=0):
    """A small network with lively batch norms, and uint8 images of three classes."""
    from saddlebook import models

    model = models.build_model("resnet8", 4, 2, False, seed)
    generator = torch.Generator().manual_seed(seed)
    for m in model.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.running_mean.normal_(0, 0.3, generator=generator)
            m.running_var.uniform_(0.5, 2, generator=generator)
    images = torch.randint(
        0, 256, (count, 3, pixels, pixels), dtype=torch.uint8, generator=generator
    )
    return model, nn.CrossEntropyLoss(), images, torch.arange(count) % 3


class Drawn:
    """A loader that redraws its images, as the released analysis has it."""

    def __init__(self, images, labels, seed):
        self.images, self.labels, self.seed = images, labels, seed
        self.draws = 0

    def __iter__(self):
        fresh = hessian.redraw(self.images, self.seed, self.draws, torch.float32)
        self.draws += 1
        return iter([(fresh, self.labels)])


def pyhessian_extremes(model, loss, data, steps, start, monkeypatch):
    """Lowest and highest node of PyHessian's own density, for a given start."""
    from pyhessian import hessian as peer

    def eig(matrix, eigenvectors=True):
        values, vectors = torch.linalg.eigh(matrix.double())
        return torch.stack([values, 0 * values], 1), vectors

    pending = list(start.split([p.numel() for p in model.parameters()]))
    parts = [(p.sign() + 1) / 2 for p in pending]
    # raising=False: current torch has no torch.eig, which the package still calls
    monkeypatch.setattr(torch, "eig", eig, raising=False)
    monkeypatch.setattr(
        torch, "randint_like", lambda p, **_: parts.pop(0).view_as(p).clone()
    )
    made = peer(model.eval(), loss, dataloader=data, cuda=False)
    (nodes,), (weights,) = made.density(iter=steps, n_v=1)
    return nodes, weights


@pytest.mark.oracle
@pytest.mark.filterwarnings("ignore")  # PyHessian's own
@pytest.mark.parametrize("operator", ["fixed", "redrawn"])
def test_released_recurrence_is_pyhessian_step_by_step(operator, monkeypatch):
    model, loss, images, labels = small()
    plain = normalise(images)
    product = best_product(Problem(model, loss, plain, labels), torch.float32)
    start = starts(product.size, 0, 0).float()
    if operator == "fixed":
        matvec, data = product, [(plain, labels)]
    else:
        matvec = hessian.redrawn_product(product, images, seed=3)
        data = Drawn(images, labels, seed=3)
    ours, vectors, _ = released(matvec, start, STEPS).ritz()
    theirs, weights = pyhessian_extremes(model, loss, data, STEPS, start, monkeypatch)
    assert ours.numpy() == pytest.approx(np.array(theirs), rel=1e-3, abs=1e-3)
    assert (vectors[0] ** 2).numpy() == pytest.approx(np.array(weights), abs=1e-3)


def test_on_a_fixed_operator_neither_recurrence_nor_beta_matters():
    model, loss, images, labels = small()
    product = best_product(
        Problem(model, loss, normalise(images), labels), torch.float32
    )
    start = starts(product.size, 0, 0).float()
    ends = []
    for beta in ("before", "after"):
        nodes = released(product, start, 30, beta).ritz()[0]
        ends.append([float(nodes[0]), float(nodes[-1])])
    clean = hessian.spectrum(model, loss, normalise(images), labels, steps=30)
    ends.append([clean.lambda_min, clean.lambda_max])
    assert ends[0] == pytest.approx(ends[2], rel=1e-4)
    assert ends[1] == pytest.approx(ends[2], rel=1e-4)


def changing(dimensions=400, outliers=4, rank=40, seed=0):
    """Positive semi-definite at every call; heavy-tailed terms drawn anew each time."""
    generator = torch.Generator().manual_seed(seed)
    shared = torch.randn(outliers, dimensions, generator=generator)
    shared /= shared.norm(dim=1, keepdim=True)

    def matvec(vector):
        own = torch.randn(rank, dimensions, generator=generator)
        own /= own.norm(dim=1, keepdim=True)
        sizes = torch.exp(2.5 * torch.randn(rank, generator=generator)) / rank
        return shared.T @ (shared @ vector) * 0.1 + own.T @ (sizes * (own @ vector))

    return matvec


def test_a_changing_positive_operator_fakes_a_mirrored_spectrum_only_with_beta_before():
    start = starts(400, 0, 0).float()
    ratios = {}
    for beta in ("before", "after"):
        state = released(changing(), start, 60, beta)
        nodes = state.ritz()[0]
        ratios[beta] = -float(nodes[0] / nodes[-1])
    assert ratios["before"] > 0.9
    assert ratios["after"] < ratios["before"]
    assert diagonal_share(released(changing(), start, 60)) < 0.35


def test_each_draw_is_another_and_the_same_draw_is_the_same():
    images = small()[2]
    first, again, other = (
        hessian.redraw(images, 0, draw, torch.float32) for draw in (5, 5, 6)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_redrawn_products_change_from_call_to_call_and_repeat_from_the_start():
    model, loss, images, labels = small()
    product = best_product(
        Problem(model, loss, normalise(images), labels), torch.float32
    )
    vector = starts(product.size, 0, 0)
    one, two = (hessian.redrawn_product(product, images, seed=0) for _ in range(2))
    first, second = one(vector), one(vector)
    assert not torch.equal(first, second)
    assert torch.equal(two(vector), first)


def test_frozen_holds_every_image_in_each_draw():
    images, labels = small()[2:]
    fixed, targets = hessian.mode_inputs(hessian.MODES["frozen"], images, labels, 1, 3)
    assert fixed.shape == (36, 3, 8, 8)
    assert torch.equal(fixed[12:24], hessian.redraw(images, 1, 1, torch.float32))
    assert torch.equal(targets, labels.repeat(3))


def test_views_are_all_that_training_draws_and_nothing_else():
    images = small()[2][:1]
    views = {bytes(view.numpy().tobytes()) for view in data.all_views(images)}
    first = torch.tensor([0])
    drawn = Counter(
        bytes(augment(images, 0, epoch, first).numpy().tobytes())
        for epoch in range(1800)
    )
    assert len(views) == 18
    assert set(drawn) == views
    assert min(drawn.values()) > 60  # of 100 each


def test_augmented_measures_the_mean_loss_over_all_views():
    model, loss, images, labels = small(count=6)
    found = hessian.measure(model, loss, images, labels, "augmented", steps=STEPS)
    products = [
        best_product(Problem(model, loss, normalise(view), labels), torch.float64)
        for view in data.all_views(images)
    ]
    assert found["loss"] == pytest.approx(np.mean([p.value() for p in products]))
    slope = sum(p.gradient() for p in products) / len(products)
    assert found["gradient_norm"] == pytest.approx(float(slope.norm()), rel=1e-4)
    whole = lanczos(
        lambda v: sum(p(v) for p in products) / len(products), products[0].size, STEPS
    )
    assert found["lambda_max"] == pytest.approx(whole.lambda_max, rel=1e-4)
    assert found["judged_on"] == "augmented"


class TestMeasure:
    def measured(self, mode, **settings):
        model, loss, images, labels = small(count=30)
        return hessian.measure(
            model, loss, images, labels, mode, class_=1, steps=STEPS, **settings
        )

    @pytest.mark.parametrize("mode", hessian.MODES)
    def test_every_mode_gives_small_json(self, mode):
        found = self.measured(mode, epoch=7)
        text = json.dumps(found, allow_nan=False)
        assert len(text) < 3000
        assert (found["class"], found["epoch"], found["mode"]) == (1, 7, mode)
        assert found["images"] == 10
        assert found["steps"] == STEPS
        assert len(found["nodes"][0]) == STEPS
        assert found["loss"] > 0
        assert found["gradient_norm"] >= abs(found["gradient_along"])
        assert "nodes" not in self.measured(mode, quadrature=False)

    def test_clean_reports_what_it_can_measure_again(self):
        found = self.measured("clean", rtol=1e-3)
        assert found["rayleigh_clean"] == pytest.approx(found["lambda_min"], rel=1e-5)
        assert found["lambda_min_bound"] <= 2e-3 * abs(found["lambda_min"])
        assert found["trace_method"] == "exact"

    def test_released_modes_report_the_ritz_value_and_how_far_off_it_is(self):
        found = self.measured("as_published")
        assert found["lambda_min"] == pytest.approx(found["nodes"][0][0], rel=1e-5)
        miss = abs(found["lambda_min"] - found["rayleigh_clean"])
        assert found["lambda_min_bound"] >= 0.999 * miss
        assert found["trace_method"] == "probes"

    def test_the_line_holds_the_loss_and_its_second_difference_the_curvature(self):
        found = self.measured("clean")
        steps, losses = np.array(found["line_steps"]), np.array(found["line_losses"])
        assert losses[5] == pytest.approx(found["loss"], rel=1e-5)
        far = steps[-1]
        assert 0.5 * abs(found["lambda_min"]) * far**2 == pytest.approx(0.1, rel=1e-4)
        slope = (losses[6] - losses[4]) / (2 * steps[6])
        assert slope == pytest.approx(found["gradient_along"], rel=0.05)

    def test_rayleigh_on_fresh_draws_moves_with_the_augmentation_only(self):
        found = self.measured("clean")
        assert found["rayleigh_fresh_error"] > 0
        assert found["rayleigh_fresh"] != pytest.approx(found["rayleigh_clean"])
        model, loss, images, labels = small(count=30)
        black = hessian.measure(  # crops and flips of black images are black
            model, loss, 0 * images, labels, "clean", class_=1, steps=STEPS
        )
        assert black["rayleigh_fresh"] == pytest.approx(black["rayleigh_clean"], 1e-5)
        assert black["rayleigh_fresh_error"] < 1e-5 * abs(black["rayleigh_clean"])

    def test_limit_cuts_the_class_by_seed(self):
        ends = [
            self.measured("clean", limit=4, seed=seed)["loss"] for seed in (0, 0, 1)
        ]
        assert ends[0] == ends[1] != ends[2]
        assert self.measured("clean", limit=4)["images"] == 4
        assert self.measured("clean", limit=400)["images"] == 10

    def test_batch_statistics_measure_another_function(self):
        batch, clean = self.measured("batch_statistics"), self.measured("clean")
        assert batch["loss"] != pytest.approx(clean["loss"], rel=1e-3)
        assert batch["rayleigh_clean"] == pytest.approx(batch["lambda_min"], rel=1e-4)

    @pytest.mark.parametrize("places", [slice(0, 40), slice(100, 150)])
    def test_mixed_batches_hold_other_classes_whose_losses_do_not_count(self, places):
        """The class stands in the first batch of two only, or in both."""
        model, loss, images, labels = small(count=150)
        labels[epoch_order(5, 0, 150)] = 2 * (torch.arange(150) % 2)
        labels[epoch_order(5, 0, 150)[places]] = 1
        size = int((labels == 1).sum())
        count = {"class_": 1, "steps": 60, "rtol": 1e-3, "seed": 5}
        mode = "mixed_statistics"
        found = hessian.measure(model, loss, images, labels, mode, **count)
        twin = copy.deepcopy(model).double().train()
        shapes = {name: p.shape for name, p in twin.named_parameters()}
        flat = torch.cat([p.detach().flatten() for p in twin.parameters()])

        def class_mean(flat):
            parts = flat.split([shape.numel() for shape in shapes.values()])
            params = {n: p.view(shapes[n]) for n, p in zip(shapes, parts, strict=True)}
            nats = 0
            for batch in epoch_order(5, 0, 150).split(128):
                inputs = normalise(images[batch]).double()
                logits = functional_call(twin, params, (inputs,))
                each = F.cross_entropy(logits, labels[batch], reduction="none")
                nats = nats + each[labels[batch] == 1].sum()
            return nats / size

        matrix = torch.autograd.functional.hessian(class_mean, flat)
        low, *_, high = torch.linalg.eigvalsh(matrix).tolist()
        assert found["loss"] == pytest.approx(float(class_mean(flat)), rel=1e-4)
        assert found["lambda_min"] == pytest.approx(low, rel=1e-3)
        assert found["lambda_max"] == pytest.approx(high, rel=1e-3)
        assert (found["images"], found["judged_on"]) == (size, "mixed batches")
        with pytest.raises(UsageError, match=f"all {size} images: no limit 20"):
            hessian.measure(model, loss, images, labels, mode, class_=1, limit=20)

    def test_wrong_arguments_are_refused(self):
        with pytest.raises(UsageError, match="did you mean 'as_published'"):
            self.measured("as_publishd")
        with pytest.raises(UsageError, match="limit"):
            self.measured("clean", limit=0)
        model, loss, images, labels = small(count=3)
        with pytest.raises(UsageError, match="class 1"):
            hessian.measure(model, loss, images, labels * 2, class_=1)
