"""The class spectra as the released analysis measures them, step by step.

Knows a product that may change from call to call, and images to redraw; the corrected
measurement is in ``hessian``. What the released procedure does differently:
random crops and flips are redrawn in every product, so the operator changes under the
recurrence, and β is taken before re-orthogonalisation, so it counts what that removes.

Legend: n parameters, K steps, N images.

References:
    Rangwani et al. 2022, released code (hessian.py, hessian_analysis.py);
    Yao et al. 2020 (PyHessian, whose recurrence it uses).
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from saddlebook.curvature.modes import redraw
from saddlebook.curvature.products import Product
from saddlebook.curvature.recurrence import Matvec, Progress, State
from saddlebook.curvature.spectrum import Spectrum

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
) -> State:
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
    state = State(start[None])
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


def diagonal_share(state: State) -> float:
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
