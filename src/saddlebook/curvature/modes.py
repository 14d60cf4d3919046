"""Defines the modes of measurement: on which images, and by which recurrence.

A mode is a row of ``MODES``. The corrected measurement is in ``hessian``, the released
one here. What that does differently: random crops and flips are redrawn in every
product, so the operator changes under the recurrence, and β is taken before
re-orthogonalisation, so it counts what that removes.

Legend: n parameters, K steps, N images, V views of each.

References:
    Rangwani et al. 2022, released code (hessian.py, hessian_analysis.py);
    Yao et al. 2020 (PyHessian, whose recurrence it uses).
"""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import product
from typing import NamedTuple

import torch
from torch import Tensor

from saddlebook.curvature.lanczos import KrylovState, Matvec, Progress
from saddlebook.curvature.products import Product
from saddlebook.curvature.spectrum import Spectrum
from saddlebook.data import augment, crop_flip, normalise, padding

_STREAM = 2**32  # training draws its augmentations below this seed


class Mode(NamedTuple):
    """A way to measure one class.

    Attributes:
        label: For readers.
        images: ``clean``, ``all`` crops and flips, ``drawn`` once, or ``redrawn`` in
            every product.
        beta: Empty: the corrected recurrence. Else the released one, and whether it
            takes β ``before`` or ``after`` re-orthogonalisation.
        batch_norm: As in ``Problem``.
    """

    label: str
    images: str = "clean"
    beta: str = ""
    batch_norm: str = "running"


MODES = {
    "clean": Mode("fixed"),
    "augmented": Mode("all crops and flips", "all"),
    "frozen": Mode("drawn once", "drawn"),
    "batch_statistics": Mode("batch statistics", batch_norm="batch"),
    "as_published": Mode("as published", "redrawn", "before"),
    "redrawn": Mode("redrawn", "redrawn", "after"),
    "fixed_before": Mode("fixed, β before", beta="before"),
}


def mode_inputs(
    mode: Mode, images: Tensor, labels: Tensor, seed: int, draws: int
) -> tuple[Tensor, Tensor]:
    """What the operator of a mode is made of, normalised, with labels. [V·N, 3, H, W]

    Args:
        mode: Of measurement.
        images: uint8. [N, 3, H, W]
        labels: [N]
        seed: Of the draws.
        draws: V, for ``drawn``.
    """
    if mode.images == "drawn":
        parts = [redraw(images, seed, draw, torch.float32) for draw in range(draws)]
    elif mode.images == "all":
        parts = [normalise(view) for view in all_views(images)]
    else:
        parts = [normalise(images)]
    return torch.cat(parts), labels.repeat(len(parts))


def redraw(images: Tensor, seed: int, draw: int, dtype: torch.dtype) -> Tensor:
    """Crops and flips number ``draw`` of uint8 images, normalised. [N, 3, H, W]"""
    indices = torch.arange(len(images))
    return normalise(augment(images, _STREAM + seed, draw, indices), dtype)


def all_views(images: Tensor) -> list[Tensor]:
    """All images training can make of each, every one as likely: 162 at 32 pixels.

    Args:
        images: uint8. [N, 3, H, W]

    Returns:
        A tensor [N, 3, H, W] per window, and mirrored.
    """
    places = range(2 * padding(images.shape[-1]) + 1)
    kinds = product(places, places, (False, True))
    count, device = len(images), images.device
    return [
        crop_flip(
            images,
            torch.tensor([[row, column]], device=device).expand(count, 2),
            torch.tensor([flip], device=device).expand(count),
        )
        for row, column, flip in kinds
    ]


_TINY = 1e-6  # PAPER: PyHessian divides by norm + 1e-6


def redrawn(product: Product, images: Tensor, seed: int, first: int = 0) -> Matvec:
    """The product over uint8 ``images``, cropped and flipped anew at every call."""
    calls = iter(range(first, 2**31))

    def matvec(vector: Tensor) -> Tensor:
        fresh = redraw(images, seed, next(calls), product.dtype)
        return product.on(fresh)(vector)

    return matvec


def released(
    matvec: Matvec,
    start: Tensor,
    steps: int,
    beta: str = "before",
    progress: Progress | None = None,
) -> KrylovState:
    """The released recurrence: one probe, modified Gram-Schmidt, no residual check.

    With an operator that is the same at every call, ``beta`` makes no difference.

    Args:
        matvec: [n] to [n], float32; may change from call to call.
        start: Signs; normalised here. [n]
        steps: K.
        beta: Norm of the remainder ``before`` (as released) or ``after``
            re-orthogonalisation.
        progress: Called with (steps done, K).

    Returns:
        The recurrence; its Ritz values are what the paper calls eigenvalues.
    """
    basis = [_normalised(start)]
    state = KrylovState(start[None])
    previous = torch.zeros_like(start)
    for k in range(steps):
        product = matvec(basis[k])
        state.alpha.append(float(product @ basis[k]))
        last = state.beta[-1] if state.beta else 0.0
        rest = product - state.alpha[-1] * basis[k] - last * previous
        previous = basis[k]
        clean = rest
        for row in basis:
            clean = clean - (clean @ row) * row
        state.beta.append(float((rest if beta == "before" else clean).norm()))
        basis.append(_normalised(clean))
        if progress is not None:
            progress(k + 1, steps)
    state.basis = torch.stack(basis)
    return state


def _normalised(vector: Tensor) -> Tensor:
    return vector / (vector.norm() + _TINY)


def diagonal_share(state: KrylovState) -> float:
    """Mean abs(α) over mean β: below about 0.35 where the operator kept changing."""
    mean_beta = sum(state.beta) / len(state.beta)
    mean_alpha = sum(map(abs, state.alpha)) / len(state.alpha)
    return mean_alpha / mean_beta if mean_beta else math.inf


def as_reported(result: Spectrum) -> Spectrum:
    """The extreme Ritz values themselves, as the paper prints them.

    The bounds say how far they are from being eigenvalues of the fixed operator:
    ‖Hu − θu‖² = ‖Hu − ρu‖² + (ρ − θ)², ρ the Rayleigh quotient of the vector u.
    """
    low, high = float(result.nodes[0, 0]), float(result.nodes[0, -1])
    return replace(
        result,
        lambda_min=low,
        lambda_max=high,
        lambda_min_bound=math.hypot(result.lambda_min_bound, result.lambda_min - low),
        lambda_max_bound=math.hypot(result.lambda_max_bound, result.lambda_max - high),
    )
