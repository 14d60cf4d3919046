"""Crops, flips and normalisation: exact, stateless, the same in any batch."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchvision.transforms import functional as tv

from saddlebook import data
from saddlebook.data.augmentation import MEAN, STD
from saddlebook.errors import ResourceError, UsageError


def images(count, size, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(
        0, 256, (count, 3, size, size), generator=generator, dtype=torch.uint8
    )


@pytest.mark.parametrize(("size", "pad"), [(32, 4), (16, 2), (8, 1)])
def test_every_crop_and_flip_equals_torchvision(size, pad):
    image = images(1, size)[0]
    choices = [(r, c, f) for r in range(2 * pad + 1) for c in range(2 * pad + 1)
               for f in (False, True)]  # fmt: skip
    expected = []
    for row, column, flip in choices:
        cut = tv.crop(tv.pad(tv.to_pil_image(image), pad), row, column, size, size)
        cut = tv.hflip(cut) if flip else cut
        expected.append(tv.normalize(tv.to_tensor(cut), MEAN, STD))
    offsets = torch.tensor([choice[:2] for choice in choices])
    flips = torch.tensor([choice[2] for choice in choices])
    ours = data.crop_flip(image.expand(len(choices), -1, -1, -1), offsets, flips)
    assert torch.equal(data.normalise(ours), torch.stack(expected))


@given(
    st.integers(0, 2**63),
    st.integers(0, 10_000),
    st.lists(st.integers(0, 60), min_size=1, max_size=20),
)
def test_an_image_is_augmented_alike_in_any_batch(seed, epoch, chosen):
    everything = images(61, 8)
    plan = data.epoch_plan(seed, epoch, 61, 8)
    whole = data.crop_flip(everything, plan.offsets, plan.flips)
    part = data.augment(everything[chosen], seed, epoch, torch.tensor(chosen))
    assert torch.equal(part, whole[chosen])


def test_augmenting_nothing_gives_nothing():
    nothing = data.augment(images(0, 8), 0, 1, torch.zeros(0, dtype=torch.int64))
    assert nothing.shape == (0, 3, 8, 8)


def test_the_plan_of_an_epoch_is_pinned():
    plan = data.epoch_plan(seed=3, epoch=7, count=8, image_size=32)
    assert plan.order.tolist() == [0, 1, 2, 7, 4, 6, 3, 5]
    assert plan.offsets[:, 0].tolist() == [5, 0, 5, 0, 7, 6, 6, 2]
    assert plan.offsets[:, 1].tolist() == [5, 1, 4, 4, 5, 2, 1, 6]
    assert plan.flips.tolist() == [False, True, True, True, True, False, False, True]


@given(st.integers(0, 2**63), st.integers(0, 2**63), st.integers(0, 300))
def test_an_order_visits_every_sample_once(seed, epoch, count):
    order = data.epoch_order(seed, epoch, count)
    assert order.dtype == torch.int64
    assert sorted(order.tolist()) == list(range(count))


def test_seeds_epochs_and_purposes_draw_apart():
    drawn = [data.epoch_plan(s, e, 1000, 32) for s, e in ((0, 1), (1, 0), (0, 2))]
    for i, one in enumerate(drawn):
        for other in drawn[:i]:
            assert not torch.equal(one.order, other.order)
            assert 0.4 < (one.flips ^ other.flips).double().mean() < 0.6


@pytest.mark.parametrize(("size", "choices"), [(32, 9), (16, 5), (8, 3)])
def test_crops_and_flips_are_uniform_and_independent(size, choices):
    count = 90_000
    plan = data.epoch_plan(0, 1, count, size)
    cells = (plan.offsets[:, 0] * choices + plan.offsets[:, 1]) * 2 + plan.flips
    seen = np.bincount(cells.numpy(), minlength=2 * choices**2)
    assert len(seen) == 2 * choices**2
    expected = count / len(seen)
    chi_squared = ((seen - expected) ** 2 / expected).sum()
    freedom = len(seen) - 1
    assert abs(chi_squared - freedom) < 4 * (2 * freedom) ** 0.5


def test_a_visit_early_in_the_order_says_nothing_about_the_crop():
    plan = data.epoch_plan(0, 1, 20_000, 32)
    visited = torch.empty(20_000)
    visited[plan.order] = torch.arange(20_000.0)
    for values in (plan.offsets[:, 0], plan.offsets[:, 1], plan.flips):
        pair = torch.stack([visited, values.float()])
        assert abs(torch.corrcoef(pair)[0, 1]) < 4 / 20_000**0.5


def test_normalising_in_double_is_exact_and_in_half_rounds_once():
    pixels = images(4, 8)
    mean, std = (np.array(v).reshape(3, 1, 1) for v in (MEAN, STD))
    exact = (pixels.numpy() / 255 - mean) / std
    double = data.normalise(pixels, torch.float64)
    np.testing.assert_allclose(double.numpy(), exact, rtol=0, atol=1e-15)
    half = data.normalise(pixels, torch.bfloat16)
    assert torch.equal(half, data.normalise(pixels).to(torch.bfloat16))


def test_normalising_leaves_the_images_alone():
    pixels = images(2, 8)
    before = pixels.clone()
    data.normalise(pixels)
    assert torch.equal(pixels, before)


@pytest.mark.parametrize("size", [16, 8, 4])
def test_resizing_is_the_box_average_rounded_half_up(size):
    pixels = images(5, 32)
    box = 32 // size
    boxes = pixels.numpy().reshape(5, 3, size, box, size, box).astype(float)
    expected = np.floor(boxes.mean((3, 5)) + 0.5).astype(np.uint8)
    assert np.array_equal(data.resize(pixels, size).numpy(), expected)


def test_resizing_up_repeats_pixels_and_back_again_changes_nothing():
    pixels = images(3, 8)
    large = data.resize(pixels, 32)
    assert large.shape == (3, 3, 32, 32)
    assert torch.equal(large[:, :, ::4, ::4], pixels)
    assert torch.equal(data.resize(large, 8), pixels)


@pytest.mark.parametrize("size", [0, -8, 5, 12, 33])
def test_a_size_that_does_not_fit_is_refused(size):
    with pytest.raises(UsageError, match="does not fit images of 32 pixels"):
        data.resize(images(1, 32), size)


def test_all_views_beyond_memory_are_refused():
    image = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
    assert len(data.all_views(image, most=162 * 3 * 32 * 32 * 4)) == 162
    with pytest.raises(ResourceError, match="--limit"):
        data.all_views(image, most=162 * 3 * 32 * 32 * 4 - 1)
