"""Losses for long-tailed classes, class weights and when they are switched on.

Knows logits, targets and class counts; no network, no optimizer.
Legend: N examples, C classes, n_y training images of class y.

Every loss but focal is one formula, cross-entropy of adjusted logits
    z'_j = scale·(z_j − margin_j·[j = y]) / delta_j + offset_j,
so runs that differ only in the loss differ only in tensors (``Adjustment``).

References:
    Cui et al. 2019 (effective number); Cao et al. 2019 (LDAM, DRW);
    Kini et al. 2021 (VS); Lin et al. 2017 (focal).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saddlebook.errors import UsageError


def effective_number(count: int, beta: float) -> float:
    """(1 − βⁿ)/(1 − β): how many images n correlated ones are worth (Cui, Prop. 1)."""
    if beta == 0:
        return 1.0
    return -math.expm1(count * math.log(beta)) / (1 - beta)


def class_weights(class_counts: Sequence[int], beta: float) -> Tensor:
    """Weight each class by the inverse of its effective number of images.

    E_y = (1 − β^{n_y}) / (1 − β); weights are proportional to 1/E_y with mean 1.

    Args:
        class_counts: Training images per class. [C], integers of at least 1.
        beta: In [0, 1). 0 gives equal weights, β → 1 inverse frequency.

    Returns:
        Weights with mean 1. [C], float64.

    Raises:
        UsageError: A count below 1 or a beta outside [0, 1).

    References:
        Cui et al. 2019, eq. (2) and Prop. 1; switched on late by DRW (Cao et al. 2019).
    """
    counts = _counts(class_counts)
    if not 0 <= beta < 1:
        raise UsageError(f"beta {beta} must be in [0, 1); the paper uses 0.9999")
    inverse = torch.tensor(
        [1 / effective_number(n, beta) for n in counts], dtype=torch.float64
    )
    return inverse / inverse.mean()


def ldam_margins(class_counts: Sequence[int], max_margin: float = 0.5) -> Tensor:
    """Margins n_y^(−1/4), scaled so that the rarest class has ``max_margin``.

    Returns:
        [C], float64.

    References:
        Cao et al. 2019, eq. (13).
    """
    if not (math.isfinite(max_margin) and max_margin > 0):
        raise UsageError(f"ldam_max_margin {max_margin} must be positive and finite")
    counts = torch.tensor(_counts(class_counts), dtype=torch.float64)
    margins = counts**-0.25
    return margins * (max_margin / margins.max())


class Adjustment(NamedTuple):
    """The four tensors that make cross-entropy into CE, LDAM or VS."""

    scale: float
    margin: Tensor  # [C], subtracted from the true class's logit
    delta: Tensor  # [C], divides
    offset: Tensor  # [C], added

    def __call__(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Adjust logits [N, C] for targets [N]."""
        classes = torch.arange(logits.shape[1], device=logits.device)
        true = (classes == targets[:, None]).to(logits.dtype)
        shifted = self.scale * (logits - self.margin.to(logits) * true)
        return shifted / self.delta.to(logits) + self.offset.to(logits)


def adjustment(
    loss: str,
    class_counts: Sequence[int],
    *,
    ldam_max_margin: float = 0.5,
    ldam_scale: float = 30.0,
    vs_gamma: float = 0.3,
    vs_tau: float = 1.0,
) -> Adjustment:
    """Tensors of the named loss: ``ce``, ``ldam`` or ``vs``.

    VS: Δ_y = (n_max/n_y)^γ divides and ι_y = τ·log(n_y/N) is added.

    References:
        Cao et al. 2019, eq. (12); Kini et al. 2021, eq. (2), signs and defaults as in
        the released code of Rangwani et al. 2022.
    """
    counts = torch.tensor(_counts(class_counts), dtype=torch.float64)
    zero, one = torch.zeros_like(counts), torch.ones_like(counts)
    if loss == "ldam":
        if not (math.isfinite(ldam_scale) and ldam_scale > 0):
            raise UsageError(f"ldam_scale {ldam_scale} must be positive and finite")
        return Adjustment(
            ldam_scale, ldam_margins(class_counts, ldam_max_margin), one, zero
        )
    if loss == "vs":
        _finite(vs_gamma=vs_gamma, vs_tau=vs_tau)
        delta = (counts.max() / counts) ** vs_gamma
        return Adjustment(1.0, zero, delta, vs_tau * (counts / counts.sum()).log())
    return Adjustment(1.0, zero, one, zero)


class _AdjustedLoss(nn.Module):
    """Weighted cross-entropy of adjusted logits; mean over the summed weights."""

    def __init__(self, tensors: Adjustment, weight: Tensor | None) -> None:
        super().__init__()
        self.tensors = tensors
        classes = len(tensors.margin)
        self.weight = None if weight is None else check_weight(weight, classes)

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        if len(targets) == 0:
            raise UsageError("a loss needs at least one example")
        weight = None if self.weight is None else self.weight.to(logits)
        return F.cross_entropy(self.tensors(logits, targets), targets, weight)


class LDAMLoss(_AdjustedLoss):
    """Label-distribution-aware margin loss on the cosines of a ``CosineHead``.

    Cross-entropy of scale·(z_j − m_y·[j = y]), m_y ∝ n_y^(−1/4), max ``max_margin``.

    Args:
        class_counts: Training images per class. [C].
        max_margin: Margin of the rarest class (0.5 for CIFAR).
        scale: Inverse temperature (30).
        weight: Class weights [C] or None.

    References:
        Cao et al. 2019, eqs. (12) and (13).
    """

    def __init__(
        self,
        class_counts: Sequence[int],
        max_margin: float = 0.5,
        scale: float = 30.0,
        weight: Tensor | None = None,
    ) -> None:
        tensors = adjustment(
            "ldam", class_counts, ldam_max_margin=max_margin, ldam_scale=scale
        )
        super().__init__(tensors, weight)


class VSLoss(_AdjustedLoss):
    """Vector-scaling loss: cross-entropy of z_j/Δ_j + τ·log(n_j/N).

    Args:
        class_counts: Training images per class. [C].
        gamma: Δ_j = (n_max/n_j)^γ, at least 0 (0.3).
        tau: Weight of the log prior (1.0).
        weight: Class weights [C] or None.

    References:
        Kini et al. 2021, eq. (2).
    """

    def __init__(
        self,
        class_counts: Sequence[int],
        gamma: float = 0.3,
        tau: float = 1.0,
        weight: Tensor | None = None,
    ) -> None:
        tensors = adjustment("vs", class_counts, vs_gamma=gamma, vs_tau=tau)
        super().__init__(tensors, weight)


class FocalLoss(nn.Module):
    """Focal loss, mean over the batch of −w_y·(1 − p_y)^γ·log p_y.

    The weight multiplies the term and does not enter the modulating factor.

    Args:
        gamma: Focusing exponent, at least 0; 0 is cross-entropy (1.0).
        weight: Class weights [C] or None.

    References:
        Lin et al. 2017, eq. (5).
    """

    # DEVIATION(focal-weight): the released code raises the weight inside the exponent

    def __init__(self, gamma: float = 1.0, weight: Tensor | None = None) -> None:
        super().__init__()
        _finite(focal_gamma=gamma)
        self.gamma = gamma
        self.weight = None if weight is None else check_weight(weight, len(weight))

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Mean loss over logits [N, C] and targets [N], in nats."""
        if len(targets) == 0:
            raise UsageError("a loss needs at least one example")
        nats = F.cross_entropy(logits, targets, reduction="none")
        missing = -torch.expm1(-nats)  # 1 − p_y, exact also when p_y is near 1
        if self.gamma:
            nats = missing.clamp_min(torch.finfo(nats.dtype).tiny) ** self.gamma * nats
        if self.weight is not None:
            nats = self.weight.to(nats)[targets] * nats
        return nats.mean()


def check_weight(weight: Tensor, classes: int) -> Tensor:
    """Return ``weight`` if it is [C], finite, not negative and not all zero."""
    if weight.shape != (classes,):
        raise UsageError(
            f"class weights have shape {tuple(weight.shape)}; {classes} classes need "
            f"({classes},)"
        )
    if not (weight.isfinite().all() and (weight >= 0).all() and weight.any()):
        raise UsageError("class weights must be finite, not negative and not all zero")
    return weight


def _counts(class_counts: Sequence[int]) -> list[int]:
    counts = list(class_counts)
    bad = [n for n in counts if n != int(n) or n < 1]
    if bad or not counts:
        raise UsageError(f"class counts must be integers of at least 1, got {bad}")
    return [int(n) for n in counts]


def _finite(**values: float) -> None:
    for name, value in values.items():
        if not math.isfinite(value) or (value < 0 and name != "vs_tau"):
            raise UsageError(f"{name} {value} must be finite and not negative")
