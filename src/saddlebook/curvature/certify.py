"""Certifies a spectrum: bounds the error of its ends, and computes the trace.

Knows products and recurrences; asks no question about classes or modes. The trace is
exact where the network allows it, else estimated: a network of convolutions, linear
layers, ReLU, fixed affine maps and pooling in which no path meets a parameter twice is
piecewise affine in each single parameter. Then the diagonal of the logits' second
derivatives vanishes almost everywhere and
    tr H = 1/N Σ_i tr(J_i' L_i J_i),
J_i the Jacobian of the logits of image i and L_i the Hessian of its loss in them.

Legend: n parameters, K steps, N images, B images of a chunk, C classes, m probes.

References:
    Parlett 1998, theorem 4.5.1 (residual bound). The argument on the trace is ours,
    tested against dense Hessians; Schraudolph 2002 (Gauss-Newton part); Meyer et al.
    2021 (deflated trace estimates).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saddlebook.curvature.lanczos import (
    End,
    KrylovState,
    Matvec,
    Probe,
    advance,
    certificate,
    outermost,
    project,
    starts,
    to_spectrum,
)
from saddlebook.curvature.problem import MAPS, Problem, piecewise_affine
from saddlebook.curvature.products import Product
from saddlebook.curvature.resnet import ResNetProduct, best_product, known
from saddlebook.curvature.spectrum import CONVERGED, Spectrum
from saddlebook.errors import NumericalError, VerifyError
from saddlebook.models import CifarResNet

_TRIES = 8  # steps, of which one must cross no kink
_AT_ONCE = 10  # images whose deltas of all directions fit into memory


def is_exact(product: Product) -> bool:
    """Whether the trace below is that of the Hessian.

    Known layers only (``piecewise_affine``), and for networks that are not ours a proof
    on the first image: hooks, pruning and the like change what a layer is, not its
    type.
    """
    model = product.problem.model
    if product.whole or not piecewise_affine(model):
        return False
    if type(model) is CifarResNet and not _hooked(model):
        return True
    one = product.problem._replace(
        images=product.images[:1].double(), labels=product.labels[:1], batch_size=1
    )
    single = Product(one, torch.float64)
    if single.outputs(slice(0, 1)).ndim != 2:
        return False
    return _same_norms(single) and all(
        _affine(single, name)
        for name, layer in model.named_modules()
        if isinstance(layer, MAPS)
    )


def _hooked(model: nn.Module) -> bool:
    return any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def _same_norms(single: Product) -> bool:
    """Whether one image's trace is that of its gradients by autograd."""
    logits = single.outputs(slice(0, 1))
    signs, directions = _loss_directions(single, logits.detach(), slice(0, 1))
    true = 0.0
    for sign, direction in zip(signs, directions, strict=True):
        slopes = torch.autograd.grad(
            logits, tuple(single.params.values()), direction,
            retain_graph=True, materialize_grads=True,
        )  # fmt: skip
        true += float(sign * sum(slope.square().sum() for slope in slopes))
    ours, size = _chunk_trace(single, slice(0, 1))
    return abs(ours - true) <= 1e-9 * size


@torch.no_grad()
def _affine(single: Product, layer: str) -> bool:
    """Whether logits are affine in a layer's parameters, next to where they are.

    A step of 1e-6 crosses a kink now and then, so a few are tried.
    """
    own = [n for n in single.params if n.rpartition(".")[0] == layer]
    generator = torch.Generator(single.device).manual_seed(0)
    middle = single.outputs(slice(0, 1))
    for _ in range(_TRIES if own else 0):
        steps = {n: _small_step(single.params[n], generator) for n in own}
        ends = [
            single.outputs(slice(0, 1), _moved(single.params, steps, sign))
            for sign in (1, -1)
        ]
        bend = (ends[0] + ends[1] - 2 * middle).abs().max()
        if bend <= 1e-8 * (ends[0] - ends[1]).abs().max() + 1e-15 * middle.abs().max():
            return True
    return not own


def _small_step(p: Tensor, generator: torch.Generator) -> Tensor:
    noise = torch.randn(p.shape, generator=generator, device=p.device, dtype=p.dtype)
    return noise * (1e-6 * p.norm().clamp_min(1e-3) / noise.norm())


def _moved(
    params: dict[str, Tensor], steps: dict[str, Tensor], sign: int
) -> dict[str, Tensor]:
    return params | {name: params[name] + sign * step for name, step in steps.items()}


def exact_trace(product: Product) -> tuple[float, float]:
    """Trace of a piecewise affine network's mean loss, without sampling.

    For each of the at most C − 1 directions of L_i one backward pass to every layer's
    output, and from there the norm of each image's parameter gradient.

    Returns:
        The trace, and the sum of its terms' absolute values (for its rounding).
    """
    terms = []
    for piece in product.pieces():
        for first in range(piece.start, piece.stop, _AT_ONCE):
            part = slice(first, min(first + _AT_ONCE, piece.stop))
            terms.append(_chunk_trace(product, part))
    return sum(t for t, _ in terms), sum(size for _, size in terms)


def _chunk_trace(product: Product, piece: slice) -> tuple[float, float]:
    layers = [m for m in product.problem.model.modules() if isinstance(m, MAPS)]
    seen: list[tuple[nn.Module, Tensor, Tensor]] = []

    def note(
        layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor
    ) -> Tensor | None:
        if not output.requires_grad:  # below the first trained layer
            return None
        # what comes after may change both in place
        seen.append((layer, inputs[0].detach().clone(), output))
        return output.clone()

    hooks = [layer.register_forward_hook(note) for layer in layers]
    try:
        with torch.enable_grad():
            logits = product.outputs(piece)
    finally:
        for hook in hooks:
            hook.remove()
    signs, directions = _loss_directions(product, logits.detach(), piece)
    if not len(directions):  # a softmax so sure that nothing bends
        return 0.0, 0.0
    outputs = [output for _, _, output in seen]
    deltas = [
        torch.autograd.grad(logits, outputs, direction, retain_graph=True)
        for direction in directions
    ]
    norms = torch.zeros_like(signs)
    for (layer, inputs, _), delta in zip(seen, zip(*deltas, strict=True), strict=True):
        norms += _gradient_norms(layer, inputs, torch.stack(delta))
    return float((signs * norms).sum()), float(norms.sum())


def _loss_directions(
    product: Product, logits: Tensor, piece: slice
) -> tuple[Tensor, Tensor]:
    """Signs [R, B] and vectors [R, B, C] with Σ_r sign·vector·vector' = ∂²loss/∂z².

    The share of the chunk in the mean loss is inside.
    """
    logits = logits.requires_grad_()
    count = len(product.labels)
    labels = product.labels[piece]
    with torch.enable_grad():
        loss = product.loss(logits, labels) * (len(labels) / count)
        (slope,) = torch.autograd.grad(loss, logits, create_graph=True)
        rows = [
            torch.autograd.grad(slope[:, c].sum(), logits, retain_graph=True)[0]
            for c in range(logits.shape[1])
        ]
    values, vectors = torch.linalg.eigh(torch.stack(rows, 1))
    large = values.abs().amax(0) > 1e-13 * values.abs().max()
    scaled = vectors * values.abs().sqrt()[:, None]
    return values.sign().T[large], scaled.permute(2, 0, 1)[large]


def _gradient_norms(layer: nn.Module, inputs: Tensor, deltas: Tensor) -> Tensor:
    """Squared norms of each image's parameter gradient of one layer.

    Args:
        layer: A convolution, linear layer or batch norm.
        inputs: What went in. [B, ...]
        deltas: Gradients at what came out. [R, B, O, ...]

    Returns:
        [R, B], float64.
    """
    norms = torch.zeros(deltas.shape[:2], dtype=torch.float64, device=deltas.device)
    # channels before positions, whatever the layer: [B, K, L] and [R, B, O, L]
    count, images = deltas.shape[:2]
    if isinstance(layer, nn.Linear):
        flat = deltas.reshape(count, images, -1, deltas.shape[-1]).mT
    else:
        flat = deltas.flatten(3)
    if _wanted(layer, "bias"):
        norms += _squares(flat.sum(-1))
    if not _wanted(layer, "weight"):
        return norms
    if isinstance(layer, nn.BatchNorm2d):
        return norms + _squares((_normal(layer, inputs) * flat).sum(-1))
    if isinstance(layer, nn.Conv2d):
        return norms + _outer_norms(_patches(layer, inputs), flat, layer.groups)
    rows = inputs.reshape(images, -1, inputs.shape[-1]).mT
    return norms + _outer_norms(rows, flat, 1)


def _wanted(layer: nn.Module, name: str) -> bool:
    value = getattr(layer, name, None)
    return value is not None and bool(value.requires_grad)


def _squares(rows: Tensor) -> Tensor:
    return rows.double().square().flatten(2).sum(2)


def _normal(layer: nn.BatchNorm2d, inputs: Tensor) -> Tensor:
    """Inputs of a batch norm's affine part. [B, C, L]"""
    stats = layer.running_mean, layer.running_var
    mean, var = (t.to(inputs)[:, None] for t in stats if t is not None)
    return (inputs.flatten(2) - mean) * (var + layer.eps).rsqrt()


def _patches(layer: nn.Conv2d, inputs: Tensor) -> Tensor:
    """What every position of a convolution sees. [B, K, L]"""
    assert not isinstance(layer.padding, str)
    sides = layer.kernel_size, layer.dilation, layer.padding, layer.stride
    return F.unfold(inputs, *sides)


def _outer_norms(patches: Tensor, deltas: Tensor, groups: int) -> Tensor:
    """‖Σ_l δ_l·p_l'‖² for patches [B, K, L] and deltas [R, B, O, L], by group. [R, B]

    With few positions from the Gram matrices Σ_{l,m} (p_l·p_m)(δ_l·δ_m) instead.
    """
    count, images, outputs, length = deltas.shape
    p = patches.reshape(images * groups, -1, length)
    d = deltas.transpose(0, 1).reshape(images, count, groups, -1, length)
    d = d.transpose(1, 2).reshape(images * groups, -1, length)  # [BG, RO, L]
    size, inner = outputs // groups, p.shape[1]
    if length * (size + inner / count) > size * inner:
        norms = (d @ p.mT).reshape(images, groups, count, -1)
        return norms.double().square().sum((1, 3)).T
    gram = (p.mT @ p)[:, None]
    d = d.reshape(images * groups, count, size, length)
    norms = ((d.mT @ d) * gram).sum((2, 3), dtype=torch.float64)
    return norms.reshape(images, groups, count).sum(1).T


def deflated_trace(
    matvec: Matvec, basis: Tensor, alpha: list[float], seed: int, count: int
) -> tuple[float, float]:
    """Trace from a Lanczos basis, exactly on it and by random signs beside it.

    tr H = Σ α + tr(QHQ), Q the projector beside the basis (as Hutch++ splits it, with
    a basis that costs nothing more).

    Args:
        matvec: [n] to [n].
        basis: Orthonormal rows. [K, n]
        alpha: Diagonal of the tridiagonal matrix. [K]
        seed: Of the signs.
        count: m, products to spend; at least 2.

    Returns:
        Estimate and its standard error.
    """
    size = basis.shape[1]
    values = torch.zeros(count, dtype=torch.float64)
    for i in range(count):
        signs = starts(size, seed, 2**32 + i).to(basis.device) * math.sqrt(size)
        beside = signs - project(basis, signs)
        values[i] = beside @ matvec(beside.to(basis.dtype)).double()
    error = float(values.std()) / math.sqrt(count)
    return sum(alpha) + float(values.mean()), error


# Images on which the rounding of a product is measured. Not few: one activation that
# float32 puts on the other side of zero would count as if every image had one
_ROUNDED = 1000
_FEW = 5
_POLISHING = 10  # steps at most
_EXACT = 8 * torch.finfo(torch.float64).eps  # rounding of a float64 product
_TRACE_ROUNDING = 32  # units in the last place; up to 3.3 seen on trained networks
_TRACE_PROBES = 20  # products of the trace estimate where it cannot be exact


def precision(model: nn.Module) -> torch.dtype:
    """Float64 for a float64 model, else float32."""
    double = any(p.dtype == torch.float64 for p in model.parameters())
    return torch.float64 if double else torch.float32


def start(product: Product, seed: int, probe: int = 0) -> KrylovState:
    """A recurrence before its first step."""
    vector = starts(product.size, seed, probe)
    return KrylovState(vector.to(product.device, product.dtype)[None])


def check_fixed(product: Product) -> None:
    """Apply the model twice, and the operator to one chunk.

    Lanczos needs the same answer, bit for bit.

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
    vector, few = starts(product.size, 0, 0), product.first(product.chunk)
    if not (once := few(vector)).isfinite().all():
        raise NumericalError("a Hessian product holds NaN or infinity")
    if not torch.equal(once, few(vector)):
        raise VerifyError(
            "operator changed between two products; cause: non-deterministic kernels; "
            "set torch.use_deterministic_algorithms(True)"
        )


def certified(
    product: Product, probes: Sequence[Probe], polish: bool = True
) -> Spectrum:
    """Quadrature and both ends, one product for each, rounding inside the bounds.

    bf16 leaves the vector of a small end too rough for its bound, though not for its
    value; with ``polish`` a few steps in full precision from there mend that.
    """
    exact = product
    if isinstance(product, ResNetProduct) and product.inner != product.dtype:
        exact = ResNetProduct(product.problem, product.dtype, like=product)
        product.forget()  # its tapes would leave no room for these
    result = to_spectrum(probes, exact, _EXACT)
    floor = 0.0
    if product.dtype != torch.float64:
        floor = _rounding(exact, result.vector_max) * result.scale
    result = _widened(result, floor)
    if polish and exact is not product:
        for name in _roughened(result, probes):
            result = _polished(result, exact, name)
    finer = _widened(result, -floor).converged
    ends = zip(("min", "max"), result.converged, finer, strict=True)
    lost = [name for name, now, without in ends if without and not now]
    return _in_float64(result, product, lost) if lost else result


def _widened(result: Spectrum, floor: float) -> Spectrum:
    return replace(
        result,
        rounding=result.rounding + floor,
        lambda_min_bound=result.lambda_min_bound + floor,
        lambda_max_bound=result.lambda_max_bound + floor,
    )


def _roughened(result: Spectrum, probes: Sequence[Probe]) -> list[str]:
    """Ends that the recurrence had found but the certificate does not confirm."""
    low, high = outermost(probes)
    ends = (("min", low, 0), ("max", high, -1))
    return [
        name
        for (name, probe, i), known in zip(ends, result.converged, strict=True)
        if not known
        and float(probe.residuals[i]) <= CONVERGED * abs(float(probe.nodes[i]))
    ]


def _polished(result: Spectrum, exact: Product, name: str) -> Spectrum:
    vector, i = getattr(result, f"vector_{name}"), 0 if name == "min" else -1
    state = KrylovState(vector.to(exact.dtype)[None])
    while state.steps < _POLISHING:
        state = advance(state, exact, state.steps + 1)
        values, vectors, residuals = state.ritz()
        enough = 0.9 * CONVERGED * abs(float(values[i]))
        if float(residuals[i]) <= max(enough - result.rounding, enough / 3):
            break
    end = certificate(exact, state.vector(vectors[:, i]))
    return _with_end(result, name, end, result.rounding, state.steps + 1)


def _with_end(
    result: Spectrum, name: str, end: End, floor: float, products: int
) -> Spectrum:
    new: dict[str, Any] = {"products": result.products + products}
    new |= {f"lambda_{name}": end.value, f"lambda_{name}_bound": end.bound + floor}
    return replace(result, **new | {f"vector_{name}": end.vector})


def _in_float64(result: Spectrum, product: Product, ends: Sequence[str]) -> Spectrum:
    """Certify ends anew where float32's rounding alone made their bounds too wide.

    One activation on the other side of zero does that to a small λmin.
    """
    matvec = _few(
        product.problem, lambda some: best_product(some, torch.float64, like=product)
    )
    for name in ends:
        end = certificate(matvec, getattr(result, f"vector_{name}"))
        result = _with_end(result, name, end, _EXACT * result.scale, 1)
    return result


def _rounding(product: Product, vector: torch.Tensor) -> float:
    """Twice the relative change that float64 makes to a product, over many images."""
    some = product.first(_ROUNDED)  # all of them: what is kept serves again
    rough, problem = some(vector), product.problem
    count = len(some.labels)
    part = problem._replace(
        images=problem.images[:count], labels=problem.labels[:count]
    )
    fine = _few(part, lambda few: _fine(few, product))(vector)
    return 2 * float((rough - fine).norm()) / max(float(fine.norm()), 1e-300)


def _fine(problem: Problem, like: Product) -> Product:
    """The product in float64; of our networks only what makes the difference.

    That is the tape: signs of activations, and deltas. What is linear in the vector
    rounds less: with a float64 tape alone the change is .9 to 1.1 of the whole on
    trained and fresh networks, for half the time.
    """
    if known(problem):
        return ResNetProduct(problem, like.dtype, taped=torch.float64, like=like)
    return Product(problem, torch.float64, like=like)


def _few(problem: Problem, make: Callable[[Problem], Product]) -> Product:
    """On the CPU a product over few images at a time, which is twice as fast.

    Float64 convolutions unfold a whole chunk in memory.
    """
    if next(problem.model.parameters()).device.type == "cpu":
        few = min(problem.batch_size or _FEW, _FEW)
        problem = problem._replace(batch_size=few)
    return make(problem)


def with_trace(
    result: Spectrum, product: Product, state: KrylovState, seed: int = 0
) -> Spectrum:
    """Put the exact trace in, or the deflated estimate where it is not proven exact."""
    if is_exact(product):
        trace, size = exact_trace(product)
        error = _TRACE_ROUNDING * size * torch.finfo(product.dtype).eps
        return replace(result, trace=trace, trace_error=error, trace_method="exact")
    rows = state.rows
    trace, error = deflated_trace(product, rows, state.diagonal, seed, _TRACE_PROBES)
    # every α rounds like a product
    error = math.hypot(error, state.steps * result.rounding)
    return replace(result, trace=trace, trace_error=error, trace_method="deflated")
