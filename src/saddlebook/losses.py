"""Defines losses for long-tailed classes, and the weights of the classes.

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
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saddlebook.errors import UsageError, one_of

# Class counts in label order, or by label, as collections.Counter has them
Counts = Iterable[int] | Mapping[Any, int]


def effective_number(count: int, beta: float) -> float:
    """(1 − βⁿ)/(1 − β): how many images n correlated ones are worth (Cui, Prop. 1)."""
    if beta == 0:
        return 1.0
    return -math.expm1(count * math.log(beta)) / (1 - beta)


def class_weights(
    class_counts: Counts, beta: float, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Weight each class by the inverse of its effective number of images.

    E_y = (1 − β^{n_y}) / (1 − β); weights are proportional to 1/E_y with mean 1.

    Args:
        class_counts: Training images per class, integers of at least 1. [C], or a
            mapping such as ``Counter(labels)``, whose keys are sorted.
        beta: In [0, 1). 0 gives equal weights, β → 1 inverse frequency.
        dtype: Of the weights; torch's own losses want that of the logits.

    Returns:
        Weights with mean 1. [C].

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
    return (inverse / inverse.mean()).to(dtype)


def ldam_margins(class_counts: Counts, max_margin: float = 0.5) -> Tensor:
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
        """Adjust logits [N, C] for labels [N], or for probabilities [N, C].

        Of probabilities, each class has its margin in proportion to its share.
        """
        if targets.is_floating_point():
            true = targets.to(logits)
        else:
            classes = torch.arange(logits.shape[1], device=logits.device)
            true = (classes == targets[:, None]).to(logits.dtype)
        shifted = self.scale * (logits - self.margin.to(logits) * true)
        return shifted / self.delta.to(logits) + self.offset.to(logits)


def adjustment(
    loss: str,
    class_counts: Counts,
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
    class_counts = _counts(class_counts)
    counts = torch.tensor(class_counts, dtype=torch.float64)
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


class _ClassLoss(nn.Module):
    """What a loss shares with torch's: weight, reduction, ignored labels, checks."""

    weight: Tensor | None

    def __init__(
        self, classes: int | None, weight: Any, reduction: str, ignore_index: int
    ) -> None:
        super().__init__()
        self.reduction = one_of("reduction", reduction, ("mean", "sum", "none"))
        self.ignore_index, self.classes = ignore_index, classes
        if weight is not None:
            weight = check_weight(weight, classes or torch.as_tensor(weight).numel())
            self.classes = len(weight)
        self.register_buffer("weight", weight)

    def _checked(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Logits in float32 at least; UsageError for shapes that do not fit."""
        shape, wanted = tuple(logits.shape), self.classes or "C"
        if logits.ndim != 2 or (self.classes and shape[1] != self.classes):
            raise UsageError(f"logits have shape {shape}; the loss needs [N, {wanted}]")
        soft = targets.is_floating_point()
        if targets.shape != (logits.shape if soft else logits.shape[:1]):
            raise UsageError(
                f"{targets.dtype} targets have shape {tuple(targets.shape)}; give "
                f"labels [{len(logits)}], or probabilities [N, {wanted}] as floats"
            )
        if len(targets) == 0:
            raise UsageError("a loss needs at least one example")
        return logits.to(torch.promote_types(logits.dtype, torch.float32))


class _AdjustedLoss(_ClassLoss):
    """Weighted cross-entropy of adjusted logits; mean over the summed weights."""

    margin: Tensor
    delta: Tensor
    offset: Tensor

    def __init__(
        self,
        tensors: Adjustment,
        weight: Any,
        *,
        reduction: str = "mean",
        label_smoothing: float = 0.0,
        ignore_index: int = -100,
    ) -> None:
        super().__init__(len(tensors.margin), weight, reduction, ignore_index)
        if not 0 <= label_smoothing <= 1:
            raise UsageError(f"label_smoothing {label_smoothing} must be in [0, 1]")
        self.scale, self.label_smoothing = tensors.scale, label_smoothing
        for name in ("margin", "delta", "offset"):  # they follow from the counts
            self.register_buffer(name, getattr(tensors, name), persistent=False)

    @classmethod
    def from_labels(cls, labels: Any, **options: Any) -> Self:
        """The loss of training labels, which are counted.

        Args:
            labels: Integers from 0, as a list, array or tensor. [N]
            **options: Of the loss.

        Raises:
            UsageError: No integers from 0, or a class without an example.
        """
        try:
            numbers = torch.as_tensor(labels)
            if not numbers.is_floating_point():
                numbers = numbers.long()  # counting takes no other width
        except (TypeError, ValueError):  # names, or rows of several lengths
            numbers = torch.empty(0, 0)
        if numbers.is_floating_point() or numbers.ndim != 1 or (numbers < 0).any():
            raise UsageError("labels to count must be integers from 0, [N]")
        make: Callable[..., Self] = cls
        return make(torch.bincount(numbers).tolist(), **options)

    @property
    def tensors(self) -> Adjustment:
        """The four tensors of the loss, where they are now."""
        return Adjustment(self.scale, self.margin, self.delta, self.offset)

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        logits = self._checked(logits, targets)
        if targets.is_floating_point():
            targets = targets.to(logits)
        return F.cross_entropy(
            self.tensors(logits, targets),
            targets,
            None if self.weight is None else self.weight.to(logits),
            ignore_index=self.ignore_index,
            reduction=self.reduction,
            label_smoothing=self.label_smoothing,
        )


class LDAMLoss(_AdjustedLoss):
    """Label-distribution-aware margin loss on the cosines of a ``CosineHead``.

    Cross-entropy of scale·(z_j − m_y·[j = y]), m_y ∝ n_y^(−1/4), max ``max_margin``. In
    a mixture of labels each class has its margin in proportion to its share.

    Args:
        class_counts: Training images per class, [C] or a ``Counter`` of labels; see
            ``from_labels``.
        max_margin: Margin of the rarest class (0.5 for CIFAR).
        scale: Inverse temperature (30).
        weight: Class weights [C], also as a list or array, or None.
        **as_torch: ``reduction``, ``label_smoothing`` and ``ignore_index`` of
            ``nn.CrossEntropyLoss``.

    References:
        Cao et al. 2019, eqs. (12) and (13).
    """

    def __init__(
        self,
        class_counts: Counts,
        max_margin: float = 0.5,
        scale: float = 30.0,
        weight: Any = None,
        **as_torch: Any,
    ) -> None:
        tensors = adjustment(
            "ldam", class_counts, ldam_max_margin=max_margin, ldam_scale=scale
        )
        super().__init__(tensors, weight, **as_torch)


class VSLoss(_AdjustedLoss):
    """Vector-scaling loss: cross-entropy of z_j/Δ_j + τ·log(n_j/N).

    Args:
        class_counts: Training images per class, [C] or a ``Counter`` of labels; see
            ``from_labels``.
        gamma: Δ_j = (n_max/n_j)^γ, at least 0 (0.3).
        tau: Weight of the log prior (1.0).
        weight: Class weights [C], also as a list or array, or None.
        **as_torch: ``reduction``, ``label_smoothing`` and ``ignore_index`` of
            ``nn.CrossEntropyLoss``.

    References:
        Kini et al. 2021, eq. (2).
    """

    def __init__(
        self,
        class_counts: Counts,
        gamma: float = 0.3,
        tau: float = 1.0,
        weight: Any = None,
        **as_torch: Any,
    ) -> None:
        tensors = adjustment("vs", class_counts, vs_gamma=gamma, vs_tau=tau)
        super().__init__(tensors, weight, **as_torch)


class FocalLoss(_ClassLoss):
    """Focal loss, mean over the labelled examples of −w_y·(1 − p_y)^γ·log p_y.

    The weight multiplies the term and does not enter the modulating factor. A mixture
    of labels has no p_y and is refused.

    Args:
        gamma: Focusing exponent, at least 0; 0 is cross-entropy (1.0).
        weight: Class weights [C], also as a list or array, or None.
        reduction: ``mean``, ``sum`` or ``none``.
        ignore_index: Label of examples that do not count.

    References:
        Lin et al. 2017, eq. (5).
    """

    # DEVIATION(focal-weight): the released code raises the weight inside the exponent

    def __init__(
        self,
        gamma: float = 1.0,
        weight: Any = None,
        *,
        reduction: str = "mean",
        ignore_index: int = -100,
    ) -> None:
        super().__init__(None, weight, reduction, ignore_index)
        _finite(focal_gamma=gamma)
        self.gamma = gamma

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Loss of logits [N, C] and labels [N], in nats."""
        logits = self._checked(logits, targets)
        if targets.is_floating_point():
            raise UsageError("focal loss is defined for labels [N], not probabilities")
        kept = targets != self.ignore_index
        labels = torch.where(kept, targets.long(), 0)
        nats = focal_nats(logits, labels, self.gamma, self.weight)
        nats = torch.where(kept, nats, 0.0)
        if self.reduction == "none":
            return nats
        return nats.sum() / (kept.sum() if self.reduction == "mean" else 1)


def focal_nats(
    logits: Tensor, targets: Tensor, gamma: float, weight: Tensor | None = None
) -> Tensor:
    """Focal loss of each example, nats [N]; see ``FocalLoss``."""
    no_label = torch.iinfo(torch.int64).min  # −100 is a mistake here
    nats = F.cross_entropy(logits, targets, reduction="none", ignore_index=no_label)
    missing = -torch.expm1(-nats)  # 1 − p_y, exact also when p_y is near 1
    if gamma:
        nats = missing.clamp_min(torch.finfo(nats.dtype).tiny) ** gamma * nats
    return nats if weight is None else weight.to(nats)[targets] * nats


def check_weight(weight: Any, classes: int) -> Tensor:
    """Return ``weight`` as floats if it is [C], finite, not negative, not all zero."""
    tensor = torch.as_tensor(weight)
    if tensor.shape != (classes,):
        raise UsageError(
            f"class weights have shape {tuple(tensor.shape)}; {classes} classes need "
            f"({classes},)"
        )
    if not (tensor.isfinite().all() and (tensor >= 0).all() and tensor.any()):
        raise UsageError("class weights must be finite, not negative and not all zero")
    return tensor if tensor.is_floating_point() else tensor.float()


def _counts(class_counts: Counts) -> list[int]:
    try:
        if isinstance(class_counts, Mapping):
            class_counts = [class_counts[label] for label in sorted(class_counts)]
        counts = [int(n) if n == int(n) else 0 for n in class_counts]
    except (TypeError, ValueError, OverflowError):  # NaN, no numbers, mixed labels
        counts = []
    bad = [y for y, n in enumerate(counts) if n < 1]
    if bad or not counts:
        raise UsageError(
            "class counts must be integers of at least 1, one a class in label order"
            + f"; those of classes {bad[:5]} are not" * bool(bad)
        )
    return counts


def _finite(**values: float) -> None:
    for name, value in values.items():
        if not math.isfinite(value) or (value < 0 and name != "vs_tau"):
            raise UsageError(f"{name} {value} must be finite and not negative")
