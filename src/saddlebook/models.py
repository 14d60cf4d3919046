"""Builds the networks of the paper: the CIFAR ResNet with a linear or cosine head.

Knows architectures, their initialisation and how exactly a GPU computes them; no loss,
no data.
Legend: N images, C classes, D features.

References:
    He et al. 2016, section 4.2 (CIFAR ResNet, shortcut option A);
    Cao et al. 2019 (LDAM), released code (cosine head);
    initialisation and head as in the released code of Rangwani et al. 2022.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saddlebook.errors import UsageError, one_of


class CosineHead(nn.Module):
    """Cosine of the angle between features and class directions, no bias, no scale.

    The loss brings the scale (LDAM: 30). Input [N, D], output [N, C] in [−1, 1].
    """

    def __init__(self, features: int, num_classes: int) -> None:
        super().__init__()
        # PAPER: uniform(−1, 1) columns, each brought to unit length; no He init
        weight = torch.empty(features, num_classes).uniform_(-1, 1)
        self.weight = nn.Parameter(F.normalize(weight, dim=0))

    def forward(self, x: Tensor) -> Tensor:
        """Return cosines [N, C] for features [N, D]."""
        return F.normalize(x, dim=1) @ F.normalize(self.weight, dim=0)


class Block(nn.Module):
    """Two 3×3 convolutions and a parameter-free shortcut (option A)."""

    def __init__(self, planes_in: int, planes: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(planes_in, planes, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.stride = stride
        self.pad = (planes - planes_in) // 2  # new channels, half on each side

    def shortcut(self, x: Tensor) -> Tensor:
        """Subsample in space and pad channels with zeros."""
        if self.stride == 1 and self.pad == 0:
            return x
        x = x[:, :, :: self.stride, :: self.stride]
        return F.pad(x, (0, 0, 0, 0, self.pad, self.pad))

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, C_in, H, W] to [N, C_out, H/stride, W/stride]."""
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return F.relu(out + self.shortcut(x))


class CifarResNet(nn.Module):
    """ResNet of 6·blocks + 2 layers for small images, any size.

    Three stages of ``blocks`` basic blocks with width, 2·width, 4·width channels.
    """

    def __init__(
        self,
        blocks: int,
        num_classes: int,
        width: int,
        cosine_head: bool,
        stem_stride: int = 1,
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, stem_stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        planes = (width, 2 * width, 4 * width)
        self.layer1 = _stage(blocks, width, planes[0], 1)
        self.layer2 = _stage(blocks, planes[0], planes[1], 2)
        self.layer3 = _stage(blocks, planes[1], planes[2], 2)
        self.linear: nn.Module = (
            CosineHead(planes[2], num_classes)
            if cosine_head
            else nn.Linear(planes[2], num_classes)
        )
        self.apply(_initialise)

    def features(self, x: Tensor) -> Tensor:
        """Return pooled features [N, D] for normalised images [N, 3, H, W]."""
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return x.mean(dim=(2, 3))

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (or cosines) [N, C] for normalised images [N, 3, H, W]."""
        return self.linear(self.features(x))


def _stage(blocks: int, planes_in: int, planes: int, stride: int) -> nn.Sequential:
    first = Block(planes_in, planes, stride)
    return nn.Sequential(first, *(Block(planes, planes, 1) for _ in range(blocks - 1)))


def _initialise(module: nn.Module) -> None:
    # PAPER: He normal, fan in, for every convolution and linear weight
    if isinstance(module, nn.Conv2d | nn.Linear):
        nn.init.kaiming_normal_(module.weight)


def resnet32(
    num_classes: int = 10, cosine_head: bool = False, width: int = 16
) -> CifarResNet:
    """CIFAR ResNet-32, 464,154 parameters for 10 classes (464,144 with cosine head).

    Args:
        num_classes: C.
        cosine_head: Cosines instead of logits, as LDAM wants.
        width: Channels of the first stage.

    References:
        He et al. 2016, section 4.2, with shortcut option A.
    """
    return CifarResNet(5, num_classes, width, cosine_head)


def resnet8(
    num_classes: int = 10, cosine_head: bool = False, width: int = 16
) -> CifarResNet:
    """The small twin of ``resnet32`` for `lite` and `quick`, 75,290 parameters.

    One block a stage, and a first convolution of stride 2: a quarter of the work at
    the same number of parameters.
    """
    return CifarResNet(1, num_classes, width, cosine_head, stem_stride=2)


def resnet50(
    num_classes: int, cosine_head: bool = False, name: str = "resnet50"
) -> nn.Module:
    """ResNet-50 of torchvision, from scratch, for the large long-tailed sets.

    Args:
        num_classes: C.
        cosine_head: Cosines instead of logits, as LDAM wants.
        name: Another ResNet of torchvision, such as ``resnet18``.
    """
    from torchvision.models import get_model

    network: Any = get_model(name, weights=None)
    features = network.fc.in_features
    network.fc = (
        CosineHead(features, num_classes)
        if cosine_head
        else nn.Linear(features, num_classes)
    )
    return network


MODELS = {"resnet32": resnet32, "resnet8": resnet8}


def build_model(
    name: str, num_classes: int, width: int, cosine_head: bool, seed: int
) -> CifarResNet:
    """Build a CIFAR network whose initial weights depend on ``seed`` only.

    Raises:
        UsageError: Unknown name, or a width or class count below 1.
    """
    one_of("model", name, MODELS)
    if width < 1 or num_classes < 1:
        raise UsageError(f"width {width} and classes {num_classes} must be at least 1")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return MODELS[name](num_classes, cosine_head, width)


@contextmanager
def arithmetic(precision: str) -> Iterator[None]:
    """TF32 products on CUDA only where ``precision`` says so; ordered reductions."""
    cudnn: Any = torch.backends.cudnn  # its stubs lack ``conv``
    places = (cudnn.conv, torch.backends.cuda.matmul)
    before, ordered = [place.fp32_precision for place in places], cudnn.deterministic
    cudnn.deterministic = True
    for place in places:
        place.fp32_precision = "tf32" if precision == "tf32" else "ieee"
    try:
        yield
    finally:
        cudnn.deterministic = ordered
        for place, precision in zip(places, before, strict=True):
            place.fp32_precision = precision
