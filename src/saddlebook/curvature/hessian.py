"""Curvature of one class's loss: both ends with error bounds, trace, density.

Knows networks, losses and images; the recurrence is in ``lanczos``, the products in
``products``, the released procedure in ``published``.

Legend: n parameters, N images, C classes, K steps, P probes.

References:
    Rangwani et al. 2022, section 3 (class-wise Hessians); Ghorbani et al. 2019;
    Yao et al. 2020 (PyHessian).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from saddlebook.curvature import certify, published
from saddlebook.curvature.lanczos import Probe, certificate, distilled
from saddlebook.curvature.problem import Loss, Problem
from saddlebook.curvature.products import Product
from saddlebook.curvature.recurrence import Progress, State, advance, check
from saddlebook.curvature.resnet import best_product
from saddlebook.curvature.spectrum import Spectrum, rounded
from saddlebook.data import normalise
from saddlebook.errors import UsageError, one_of

MODES = ("clean", "frozen", "batch_statistics", *published.RELEASED)
PRECISIONS = {"full": None, "bf16": torch.bfloat16}
_FRESH = 5  # draws over which a Rayleigh quotient is re-measured
_NATS = 0.1  # fall of the loss that the reported curvature promises at both line ends


def spectrum(
    model: nn.Module,
    loss: Loss,
    images: Tensor,
    labels: Tensor,
    *,
    steps: int = 100,
    probes: int = 1,
    seed: int = 0,
    batch_size: int | None = None,
    rtol: float | None = None,
    batch_norm: str = "running",
    precision: str = "full",
    progress: Progress | None = None,
) -> Spectrum:
    """Spectrum of the Hessian of the mean loss over ``images``.

    The model is measured in eval mode and left as it was found. Products are float32
    (float64 for a float64 model), sums and the loss float64.

    Args:
        model: Any module that maps images to logits.
        loss: ``loss(logits, targets)``, a mean over examples.
        images: What the model takes, normalised and fixed. [N, ...]
        labels: [N], int64.
        steps: Most Lanczos steps, at most n.
        probes: P random starts.
        seed: Of the starts, which are the same on every device.
        batch_size: Images of a chunk; None takes 50.
        rtol: Stop a probe when both ends have this estimated relative accuracy.
        batch_norm: ``running`` statistics (as published), or ``batch``: those of all
            images together, in one chunk.
        precision: ``full``, or ``bf16``: products with bfloat16 convolutions, ends
            certified in full precision (saddlebook's ResNets only).
        progress: Called with (steps done, most steps to do).

    Raises:
        UsageError: Something does not fit; NumericalError: something is not finite;
        VerifyError: the operator changes from call to call.
    """
    one_of("precision", precision, PRECISIONS)
    problem = Problem(model, loss, images, labels, batch_size, batch_norm)
    product = best_product(problem, certify.precision(model), PRECISIONS[precision])
    check(product.size, steps, probes)
    certify.check_fixed(product)
    done: list[Probe] = []
    for probe in reversed(range(probes)):  # the first one's basis serves the trace
        state = advance(
            certify.start(product, seed, probe),
            product,
            steps,
            rtol=rtol,
            progress=progress,
        )
        done.insert(0, distilled(state))
    result = certify.certified(product, done)
    return certify.with_trace(result, product, state, seed)


def class_spectra(
    model: nn.Module,
    loss: Loss,
    images: Tensor,
    labels: Tensor,
    classes: Iterable[int] | None = None,
    **settings: Any,
) -> dict[int, Spectrum]:
    """``spectrum`` of each class's loss over that class's images.

    Args:
        model: As in ``spectrum``.
        loss: The same.
        images: [N, ...]
        labels: [N]
        classes: Class numbers; None takes all that have images.
        **settings: Passed to ``spectrum``.

    Raises:
        UsageError: A class that is no class number or has no images.
    """
    wanted = labels.unique().tolist() if classes is None else list(classes)
    members = {number: _members(labels, number) for number in wanted}
    return {
        number: spectrum(model, loss, images[rows], labels[rows], **settings)
        for number, rows in members.items()
    }


def measure(
    model: nn.Module,
    loss: Loss,
    images: Tensor,
    labels: Tensor,
    mode: str = "clean",
    *,
    class_: int | None = None,
    epoch: int | None = None,
    steps: int = 100,
    rtol: float | None = None,
    seed: int = 0,
    draws: int = 4,
    limit: int | None = None,
    batch_size: int | None = None,
    quadrature: bool = True,
) -> dict[str, Any]:
    """One class's curvature as a record keeps it, with what is needed to judge it.

    Args:
        model: As in ``spectrum``.
        loss: The same.
        images: uint8, not normalised. [N, 3, H, W]
        labels: [N]
        mode: ``clean`` (no augmentation), ``frozen`` (``draws`` fixed augmentations
            of each image), ``batch_statistics`` (clean, batch norm with the
            statistics of all images), or the released recurrence: ``as_published``
            (augmentation redrawn in each product, β before re-orthogonalisation),
            ``redrawn`` (β after it), ``fixed_before`` (clean images, β before it).
        class_: Class to measure; None takes all images.
        epoch: Noted in the result.
        steps: K; the released modes do all of them.
        rtol: As in ``spectrum``; the released modes know no such thing.
        seed: Of the start, the draws and the cut.
        draws: Augmentations of each image in mode ``frozen``.
        limit: Cut the class to this many images, drawn by ``seed``.
        batch_size: Images of a chunk.
        quadrature: Keep nodes, weights and residuals (about 3 kB).

    Returns:
        JSON values: both ends with bounds, Rayleigh quotients of the lowest Ritz
        vector on clean and on fresh data, loss, gradient, loss along the vector,
        nodes and weights.
    """
    one_of("mode", mode, MODES)
    rows = _members(labels, class_) if class_ is not None else torch.arange(len(labels))
    rows = rows[_cut(len(rows), limit, seed)]
    images, labels = images[rows], labels[rows]
    inputs, targets = normalise(images), labels
    if mode == "frozen":
        inputs, targets = published.frozen(images, labels, seed, draws)
    statistics = "batch" if mode == "batch_statistics" else "running"
    problem = Problem(model, loss, inputs, targets, batch_size, statistics)
    product = best_product(problem, certify.precision(model))
    check(product.size, steps)
    certify.check_fixed(product)
    state = _recurrence(product, mode, images, steps, rtol, seed)
    result = certify.certified(product, [distilled(state)])
    if mode in published.RELEASED:
        result = published.as_reported(result)
    else:
        result = certify.with_trace(result, product, state, seed)
    plain = problem._replace(images=normalise(images), labels=labels)
    clean = product if mode == "clean" else best_product(plain, product.dtype)
    return (
        {"class": class_, "epoch": epoch, "mode": mode, "images": len(images)}
        | {"steps": state.steps, "seed": seed, "limit": limit}
        | {"diagonal_share": rounded(published.diagonal_share(state))}
        | result.to_dict(quadrature)
        | _judged(clean, result, images, seed)
    )


def _recurrence(
    product: Product,
    mode: str,
    images: Tensor,
    steps: int,
    rtol: float | None,
    seed: int,
) -> State:
    start = certify.start(product, seed)
    if mode not in published.RELEASED:
        return advance(start, product, steps, rtol=rtol)
    fixed = mode == "fixed_before"
    matvec = product if fixed else published.redrawn(product, images, seed)
    beta = "after" if mode == "redrawn" else "before"
    return published.released(matvec, start.basis[0], steps, beta)


def _judged(
    clean: Product, result: Spectrum, images: Tensor, seed: int
) -> dict[str, Any]:
    """What tells a saddle from an artefact, about the lowest Ritz vector.

    The line goes as far along ± the vector as the reported curvature alone needs to
    lower the loss by 0.1 nats at both ends.
    """
    vector = result.vector_min
    start = 2**20  # draws that the recurrence has not seen
    fresh = published.redrawn(clean, images, seed, start)
    again = np.array([certificate(fresh, vector).value for _ in range(_FRESH)])
    slope = clean.gradient().double()
    far = math.sqrt(2 * _NATS / max(abs(result.lambda_min), 1e-12))
    steps = np.linspace(-far, far, 11)
    line = np.array([clean.value(float(step) * vector) for step in steps])
    values = {
        "rayleigh_clean": certificate(clean, vector).value,
        "rayleigh_fresh": again.mean(),
        "rayleigh_fresh_error": again.std(ddof=1) / math.sqrt(_FRESH),
        "loss": clean.value(),
        "gradient_norm": float(slope.norm()),
        "gradient_along": float(slope @ vector),
        "line_steps": steps,
        "line_losses": line,
    }
    return {name: rounded(value) for name, value in values.items()}


def _members(labels: Tensor, number: int) -> Tensor:
    """Positions of a class's images."""
    if isinstance(number, bool) or not isinstance(number, int) or number < 0:
        raise UsageError(f"class {number!r} is no class number; they start at 0")
    rows = (labels == number).nonzero().flatten()
    if not len(rows):
        known = ", ".join(map(str, labels.unique().tolist()))
        raise UsageError(f"class {number} has no images; classes with images: {known}")
    return rows


def _cut(count: int, limit: int | None, seed: int) -> Tensor:
    """Sorted positions of at most ``limit`` of ``count`` images, drawn by ``seed``."""
    if limit is None or limit >= count:
        return torch.arange(count)
    if limit < 1:
        raise UsageError(f"limit {limit} must be at least 1")
    order = np.random.Generator(np.random.Philox(seed)).permutation(count)
    return torch.from_numpy(np.sort(order[:limit]))
