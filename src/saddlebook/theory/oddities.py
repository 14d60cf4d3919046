"""Settles oddities of the released code that a few lines of arithmetic decide.

Each function computes one number live, from the library's own losses and layers; what
needs trained networks is in the records.

References:
    Rangwani et al. 2022, released code; Cui et al. 2019 (class weights).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.autograd.functional import hessian

from saddlebook import losses


def mean_weight(class_counts: Sequence[int], beta: float = 0.9999) -> float:
    """Weight of a training image under DRW, mean over all images.

    The released loss divides by the summed weights of the batch, so the switch to
    weights multiplies the gradient by no fixed factor. Divided by the number of images
    instead, loss and gradient would be about this many times as large.
    """
    weights = losses.class_weights(class_counts, beta, torch.float64)
    counts = torch.tensor(class_counts, dtype=torch.float64)
    return float(weights @ counts / counts.sum())


def class_shares(class_counts: Sequence[int], beta: float = 0.9999) -> Tensor:
    """Share of each class in the summed weights. [C]"""
    weights = losses.class_weights(class_counts, beta, torch.float64)
    shares = weights * torch.tensor(class_counts, dtype=torch.float64)
    return shares / shares.sum()


def second_pass_share(momentum: float = 0.1) -> float:
    """Share of SAM's second pass in the running statistics of batch norm.

    Measured on a layer: the first passes see zeros, the second ones see ones.
    """
    layer = nn.BatchNorm1d(1, momentum=momentum).double()
    first, second = torch.zeros(4, 1).double(), torch.ones(4, 1).double()
    for _ in range(math.ceil(60 / momentum)):
        layer(first)
        layer(second)
    assert layer.running_mean is not None
    return float(layer.running_mean)


def weight_on_one_class(weight: float, reduction: str = "weighted") -> float:
    """Factor by which a class weight scales the Hessian of that class's loss.

    On a linear classifier of random inputs, float64, by the exact Hessian.

    Args:
        weight: Of the class.
        reduction: ``weighted`` as released (divide by the summed weights), or ``plain``
            (divide by the number of images).
    """
    draw = torch.Generator().manual_seed(0)
    images = torch.randn(12, 3, generator=draw, dtype=torch.float64)
    labels = torch.full((12,), 2)
    start = torch.randn(4, 3, generator=draw, dtype=torch.float64)
    even = torch.ones(4, dtype=torch.float64)
    odd = even.index_fill(0, labels[:1], weight)

    def curvature(weights: Tensor) -> Tensor:
        def loss(matrix: Tensor) -> Tensor:
            logits = images @ matrix.T
            if reduction == "weighted":
                return nn.functional.cross_entropy(logits, labels, weights)
            every = nn.functional.cross_entropy(
                logits, labels, weights, reduction="none"
            )
            return every.mean()

        return torch.as_tensor(hessian(loss, start))

    return float(curvature(odd).norm() / curvature(even).norm())


def cosine_floor(num_classes: int, scale: float = 1.0) -> float:
    """Least cross-entropy of logits that are cosines times ``scale``, nats.

    The released analysis measures LDAM networks under plain cross-entropy of the bare
    cosines, which no network can bring near zero.
    """
    return math.log1p((num_classes - 1) * math.exp(-2 * scale))
