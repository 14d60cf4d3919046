"""From a product to a spectrum whose numbers carry their errors.

Knows products and recurrences; asks no question about classes or modes.
Legend: n parameters, K steps.

References:
    Parlett 1998, theorem 4.5.1 (residual bound).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from saddlebook.curvature.lanczos import Probe, certificate, summary
from saddlebook.curvature.problem import Problem
from saddlebook.curvature.products import Product
from saddlebook.curvature.recurrence import State, starts
from saddlebook.curvature.resnet import ResNetProduct, best_product, known
from saddlebook.curvature.spectrum import Spectrum
from saddlebook.curvature.traces import deflated_trace, exact_trace, is_exact
from saddlebook.errors import VerifyError

# Images on which the rounding of a product is measured. Not few: one activation that
# float32 puts on the other side of zero would count as if every image had one
_ROUNDED = 1000
_FEW = 5
_EXACT = 8 * torch.finfo(torch.float64).eps  # rounding of a float64 product
_TRACE_ROUNDING = 32  # units in the last place; up to 3.3 seen on trained networks
_TRACE_PROBES = 20  # products of the trace estimate where it cannot be exact


def precision(model: nn.Module) -> torch.dtype:
    """Float64 for a float64 model, else float32."""
    double = any(p.dtype == torch.float64 for p in model.parameters())
    return torch.float64 if double else torch.float32


def start(product: Product, seed: int, probe: int = 0) -> State:
    """A recurrence before its first step."""
    vector = starts(product.size, seed, probe)
    return State(vector.to(product.device, product.dtype)[None])


def check_fixed(product: Product) -> None:
    """Apply model and operator twice; Lanczos needs the same answer, bit for bit.

    Raises:
        VerifyError: They differ.
    """
    first, second = product.logits(), product.logits()
    if not torch.equal(first, second):
        losses = [float(product.loss(z, product.labels)) for z in (first, second)]
        raise VerifyError(
            "operator changed between two passes: loss {:.6g} vs {:.6g}; cause: the "
            "model's forward is random (functional dropout, noise) or keeps a state; "
            "fix it, a changing operator fakes negative curvature".format(*losses)
        )
    vector = starts(product.size, 0, 0)
    if not torch.equal(product(vector), product(vector)):
        raise VerifyError(
            "operator changed between two products; cause: non-deterministic kernels; "
            "set torch.use_deterministic_algorithms(True)"
        )


def certified(product: Product, probes: Sequence[Probe]) -> Spectrum:
    """Quadrature and both ends, one product for each, rounding inside the bounds."""
    exact = product
    if isinstance(product, ResNetProduct) and product.inner != product.dtype:
        exact = ResNetProduct(product.problem, product.dtype)
    result = summary(probes, exact, _EXACT)
    if product.dtype == torch.float64:
        return result
    floor = _rounding(exact, result.vector_max) * result.scale
    wide = replace(
        result,
        rounding=result.rounding + floor,
        lambda_min_bound=result.lambda_min_bound + floor,
        lambda_max_bound=result.lambda_max_bound + floor,
    )
    ends = zip(("min", "max"), result.converged, wide.converged, strict=True)
    lost = [name for name, before, after in ends if before and not after]
    return _in_float64(wide, product.problem, lost) if lost else wide


def _in_float64(result: Spectrum, problem: Problem, ends: Sequence[str]) -> Spectrum:
    """Certify ends anew where float32's rounding alone made their bounds too wide.

    One activation on the other side of zero does that to a small λmin.
    """
    matvec = _few(problem, lambda some: best_product(some, torch.float64))
    for name in ends:
        end = certificate(matvec, getattr(result, f"vector_{name}"))
        bound = end.bound + _EXACT * result.scale
        new: dict[str, Any] = {"products": result.products + 1}
        new |= {f"lambda_{name}": end.value, f"lambda_{name}_bound": bound}
        result = replace(result, **new)
    return result


def _rounding(product: Product, vector: torch.Tensor) -> float:
    """Twice the relative change that float64 makes to a product, over many images."""
    problem = product.problem
    if product.whole or len(problem.images) <= _ROUNDED:
        part, rough = problem, product(vector)  # what it keeps serves again
    else:
        images, labels = problem.images[:_ROUNDED], problem.labels[:_ROUNDED]
        part = problem._replace(images=images, labels=labels)
        rough = best_product(part, product.dtype)(vector)
    fine = _few(part, lambda some: _fine(some, product.dtype))(vector)
    return 2 * float((rough - fine).norm()) / max(float(fine.norm()), 1e-300)


def _fine(problem: Problem, dtype: torch.dtype) -> Product:
    """The product in float64; of our networks only what makes the difference.

    That is the tape: signs of activations, and deltas. What is linear in the vector
    rounds less: with a float64 tape alone the change is .9 to 1.1 of the whole on
    trained and fresh networks, for half the time.
    """
    if known(problem):
        return ResNetProduct(problem, dtype, taped=torch.float64)
    return Product(problem, torch.float64)


def _few(problem: Problem, make: Callable[[Problem], Product]) -> Product:
    """On the CPU a product over few images at a time, which is twice as fast.

    Float64 convolutions unfold a whole chunk in memory.
    """
    if next(problem.model.parameters()).device.type == "cpu":
        few = min(problem.batch_size or _FEW, _FEW)
        problem = problem._replace(batch_size=few)
    return make(problem)


def with_trace(
    result: Spectrum, product: Product, state: State, seed: int = 0
) -> Spectrum:
    """Put the exact trace in, or the deflated estimate where it is not proven exact."""
    if is_exact(product):
        trace, size = exact_trace(product)
        error = _TRACE_ROUNDING * size * torch.finfo(product.dtype).eps
        return replace(result, trace=trace, trace_error=error, trace_method="exact")
    rows = state.basis[: state.steps]
    trace, error = deflated_trace(product, rows, state.alpha, seed, _TRACE_PROBES)
    # every α rounds like a product
    error = math.hypot(error, state.steps * result.rounding)
    return replace(result, trace=trace, trace_error=error, trace_method="deflated")
