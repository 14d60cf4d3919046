"""Networks: published parameter counts, shortcut, head and seeding."""

import pytest
import torch

from saddlebook import models
from saddlebook.errors import UsageError


def parameters(model):
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    ("classes", "cosine", "count"),
    [
        (10, False, 464154),
        (10, True, 464144),
        (100, False, 470004),
        (100, True, 469904),
    ],
)
def test_resnet32_has_the_published_number_of_parameters(classes, cosine, count):
    assert parameters(models.resnet32(classes, cosine)) == count


def test_the_small_twin_has_the_stated_number_of_parameters():
    assert parameters(models.resnet8(10)) == 75290


def test_the_shortcut_subsamples_and_pads_channels_on_both_sides():
    block = models.Block(2, 4, stride=2)
    x = torch.arange(32.0).view(1, 2, 4, 4)
    out = block.shortcut(x)
    assert out.shape == (1, 4, 2, 2)
    assert not out[:, [0, 3]].any()
    assert torch.equal(out[:, 1:3], x[:, :, ::2, ::2])


def test_a_cosine_head_ignores_the_length_of_features_and_weights():
    head = models.CosineHead(6, 3).double()
    x = torch.randn(5, 6, dtype=torch.float64)
    out = head(x)
    assert out.abs().max() <= 1
    assert torch.allclose(head(7 * x), out)
    head.weight.data *= torch.tensor([1.0, 2.0, 3.0])
    assert torch.allclose(head(x), out)


def test_a_cosine_head_starts_with_unit_columns():
    norms = models.CosineHead(6, 3).weight.norm(dim=0)
    assert torch.allclose(norms, torch.ones(3))


def test_weights_follow_he_initialisation():
    weight = (
        models.build_model("resnet32", 10, 16, False, seed=0).layer3[1].conv1.weight
    )
    expected = (2 / (64 * 9)) ** 0.5
    relative = float(weight.detach().std()) / expected - 1
    assert abs(relative) < 4 / (2 * weight.numel()) ** 0.5


def test_initial_weights_depend_on_the_seed_alone():
    torch.manual_seed(1)
    first = models.build_model("resnet8", 10, 4, False, seed=5)
    torch.manual_seed(2)
    state = torch.get_rng_state()
    second = models.build_model("resnet8", 10, 4, False, seed=5)
    other = models.build_model("resnet8", 10, 4, False, seed=6)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first.conv1.weight, second.conv1.weight)
    assert not torch.equal(first.conv1.weight, other.conv1.weight)


@pytest.mark.parametrize("size", [8, 16, 32])
def test_any_image_size_gives_logits(size):
    for build in (models.resnet8, models.resnet32):
        model = build(7, width=4).eval()
        assert model(torch.zeros(2, 3, size, size)).shape == (2, 7)


def test_resnet50_is_fit_with_either_head():
    assert models.resnet50(1000).fc.out_features == 1000
    assert isinstance(models.resnet50(10, cosine_head=True).fc, models.CosineHead)


def test_an_unknown_model_is_answered_with_the_nearest_name():
    with pytest.raises(UsageError, match="did you mean 'resnet32'"):
        models.build_model("resnet23", 10, 16, False, 0)
    with pytest.raises(UsageError, match="at least 1"):
        models.build_model("resnet8", 10, 0, False, 0)
