"""Symmetric Lanczos: both ends of a spectrum with error bounds, and its quadrature.

Knows a function and a size; no network. One fully re-orthogonalised run gives the
extreme eigenvalues, the quadrature for the density and a basis for the trace.

Legend: n size, K steps, P probes.

References:
    Parlett 1998, chapters 4 and 13 (bounds); Golub and Meurant 2010, chapter 6
    (quadrature).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from saddlebook.curvature.recurrence import (
    Matvec,
    Progress,
    State,
    advance,
    check,
    starts,
)
from saddlebook.curvature.spectrum import Spectrum


class End(NamedTuple):
    """One end of a spectrum: a Rayleigh quotient, its bound, its vector and product."""

    value: float
    bound: float
    vector: Tensor  # [n]
    product: Tensor  # [n]


def lanczos(
    matvec: Matvec,
    size: int,
    steps: int = 100,
    *,
    probes: int = 1,
    seed: int = 0,
    rtol: float | None = None,
    reorthogonalise: bool = True,
    dtype: torch.dtype = torch.float64,
    device: torch.device | str = "cpu",
    certify: Matvec | None = None,
    progress: Progress | None = None,
) -> Spectrum:
    """Both ends with bounds, quadrature and trace of a symmetric operator.

    Args:
        matvec: Maps [n] to [n]; linear, symmetric and the same at every call.
        size: n.
        steps: Largest K, at most n.
        probes: P random starts, one after the other, so memory does not grow with P.
        seed: Of the starts: signs made on the CPU, the same for every device.
        rtol: Stop a probe when both ends have this estimated relative accuracy.
        reorthogonalise: False shows what goes wrong without (see ``advance``).
        dtype: Of the basis and of what ``matvec`` gets; sums are float64 anyway.
        device: Of the same.
        certify: The operator in float64, for the bounds; None takes ``matvec``.
        progress: Called with (steps done, most steps to do).

    Returns:
        A ``Spectrum`` whose bounds are measured residuals, one product for each end,
        and whose trace is the mean over probes (infinite error for one probe).

    Raises:
        UsageError: Steps outside 1..n, or probes below 1.
        NumericalError: A product holds NaN or infinity.
    """
    check(size, steps, probes)
    done = []
    for probe in range(probes):
        start = State(starts(size, seed, probe).to(device, dtype)[None])
        tick = _shifted(progress, probe * steps, probes * steps)
        state = advance(
            start,
            matvec,
            steps,
            rtol=rtol,
            reorthogonalise=reorthogonalise,
            progress=tick,
        )
        done.append(distilled(state))
    eps = torch.finfo(dtype if certify is None else torch.float64).eps
    return summary(done, certify or _cast(matvec, dtype), 8 * eps)


def certificate(matvec: Matvec, vector: Tensor) -> End:
    """Rayleigh quotient of a unit vector and the norm of its residual.

    An eigenvalue lies within the bound (Parlett 1998, theorem 4.5.1).
    """
    product = matvec(vector).double()
    value = float(vector @ product)
    return End(value, float((product - value * vector).norm()), vector, product)


class Probe(NamedTuple):
    """What a finished recurrence leaves; its basis may go."""

    nodes: Tensor  # Ritz values, ascending. [K]
    weights: Tensor  # [K]
    residuals: Tensor  # [K]
    bottom: Tensor  # unit Ritz vector of the lowest node. [n]
    top: Tensor  # the same of the highest. [n]
    first: float  # v'Hv of the start


def distilled(state: State) -> Probe:
    """Quadrature and the two outermost Ritz vectors of a recurrence."""
    values, vectors, residuals = state.ritz()
    ends = state.vector(vectors[:, 0]), state.vector(vectors[:, -1])
    return Probe(values, vectors[0] ** 2, residuals, *ends, state.alpha[0])


def summary(probes: Sequence[Probe], matvec: Matvec, rounding: float) -> Spectrum:
    """Quadrature of all probes and certificates of the outermost Ritz pairs.

    Args:
        probes: At least one.
        matvec: The operator on float64 vectors.
        rounding: Of ``matvec``, relative to the largest eigenvalue; a residual does
            not see it.
    """
    bottom = certificate(matvec, min(probes, key=lambda p: float(p.nodes[0])).bottom)
    top = certificate(matvec, max(probes, key=lambda p: float(p.nodes[-1])).top)
    scale = max(abs(bottom.value), abs(top.value))
    floor = rounding * scale
    skew = abs(float(bottom.vector @ top.product - top.vector @ bottom.product))
    size = len(bottom.vector)
    trace, error = _probe_trace([probe.first for probe in probes], size)
    return Spectrum(
        size=size,
        nodes=_stack([probe.nodes for probe in probes], repeat=True),
        weights=_stack([probe.weights for probe in probes]),
        residuals=_stack([probe.residuals for probe in probes]),
        lambda_min=bottom.value,
        lambda_max=top.value,
        lambda_min_bound=bottom.bound + floor,
        lambda_max_bound=top.bound + floor,
        trace=trace,
        trace_error=error,
        trace_method="probes",
        products=sum(len(probe.nodes) for probe in probes) + 2,
        symmetry=skew / scale if scale else 0.0,
        vector_min=bottom.vector,
        vector_max=top.vector,
        rounding=floor,
    )


def _probe_trace(first: list[float], size: int) -> tuple[float, float]:
    """n·v'Hv is an unbiased estimate for signs v (Hutchinson 1990)."""
    values = size * np.array(first)
    if len(values) < 2:
        return float(values[0]), math.inf
    return float(values.mean()), float(values.std(ddof=1) / math.sqrt(len(values)))


def _stack(rows: list[Tensor], repeat: bool = False) -> Tensor:
    """Rows of unequal length side by side, filled with 0 or their last value."""
    width = max(map(len, rows))
    last = [row[-1:] if repeat else torch.zeros_like(row[-1:]) for row in rows]
    filled = [
        torch.cat([row, end.expand(width - len(row))])
        for row, end in zip(rows, last, strict=True)
    ]
    return torch.stack(filled)


def _cast(matvec: Matvec, dtype: torch.dtype) -> Matvec:
    return lambda vector: matvec(vector.to(dtype)).double()


def _shifted(progress: Progress | None, done: int, total: int) -> Progress | None:
    if progress is None:
        return None
    return lambda step, _: progress(done + step, total)
