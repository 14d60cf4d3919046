"""Measures the curvature of a loss: both ends with error bounds, trace, density.

Knows networks, losses and images; the recurrence is in ``lanczos``, the products in
``products``. A mode of measurement is a row of ``MODES``: on which images, and by which
recurrence. Where the released procedure redraws random crops and flips in every
product, the operator changes under the recurrence.

Legend: n parameters, N images, C classes, K steps, P probes, V views of an image.

References:
    Rangwani et al. 2022, section 3 (class-wise Hessians), released code (hessian.py,
    hessian_analysis.py); Ghorbani et al. 2019;
    Yao et al. 2020 (PyHessian).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from saddlebook.curvature import certify, lanczos
from saddlebook.curvature.lanczos import (
    KrylovState,
    Matvec,
    Probe,
    Progress,
    advance,
    certificate,
    check,
    diagonal_share,
    distilled,
    shifted,
)
from saddlebook.curvature.problem import Loss, Problem, alone, bare
from saddlebook.curvature.products import Product
from saddlebook.curvature.resnet import best_product
from saddlebook.curvature.spectrum import Spectrum, rounded
from saddlebook.data import all_views, augment, epoch_order, normalise
from saddlebook.errors import UsageError, one_of

_STREAM = 2**32  # training draws its augmentations below this seed
PRECISIONS = {"full": None, "bf16": torch.bfloat16}
_FRESH = 5  # draws over which a Rayleigh quotient is re-measured
_NATS = 0.1  # fall of the loss that the reported curvature promises at both line ends


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
    "mixed_statistics": Mode("statistics of mixed batches", batch_norm="batches"),
    "as_published": Mode("as published", "redrawn", "before"),
    "redrawn": Mode("redrawn", "redrawn", "after"),
    "fixed_before": Mode("fixed, β before", beta="before"),
}


class Solved(NamedTuple):
    """A spectrum, the product it is of, and the recurrence of its first probe."""

    spectrum: Spectrum
    product: Product
    state: KrylovState


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
    output: int | str | None = None,
    basis: int | None = None,
    progress: Progress | None = None,
) -> Spectrum:
    """Spectrum of the Hessian of the mean loss over ``images``.

    The model is measured in eval mode and left as it was found. Products are float32
    (float64 for a float64 model), sums and the loss float64.

    Args:
        model: Any module that maps images to logits.
        loss: ``loss(logits, targets)``, a mean over examples.
        images: What the model takes, normalised and fixed. [N, ...]
        labels: Class numbers [N]; or soft labels [N, C], or of pixels [N, H, W], if the
            loss takes them.
        steps: Most Lanczos steps; n are enough.
        probes: P random starts.
        seed: Of the starts, which are the same on every device.
        batch_size: Images of a chunk; None takes 50. All are one chunk where images or
            their losses depend on each other, so that it changes no result.
        rtol: Stop a probe when both ends have this estimated relative accuracy.
        batch_norm: ``running`` statistics (as published), or ``batch``: those of all
            images together, in one chunk.
        precision: ``full``, or ``bf16``: products with bfloat16 convolutions, ends
            certified in full precision (saddlebook's ResNets only).
        output: Which of several outputs are the logits: number, key or attribute.
        basis: Most Lanczos vectors in memory, each as large as the parameters; None
            keeps one per step. With fewer the recurrence restarts: both ends keep
            their bounds, and the density is that of ``basis`` steps.
        progress: Called with (steps done, most steps to do).

    Raises:
        UsageError: Something does not fit; NumericalError: something is not finite;
        VerifyError: the operator changes from call to call.
    """
    problem = Problem(model, loss, images, labels, batch_size, batch_norm, output)
    return solve(
        problem, steps, probes=probes, seed=seed, rtol=rtol, precision=precision,
        basis=basis, progress=progress,
    ).spectrum  # fmt: skip


@alone
def solve(
    problem: Problem,
    steps: int = 100,
    *,
    probes: int = 1,
    seed: int = 0,
    rtol: float | None = None,
    precision: str = "full",
    basis: int | None = None,
    progress: Progress | None = None,
    released: Callable[[Product, Tensor], KrylovState] | None = None,
) -> Solved:
    """What ``spectrum`` returns, and what is needed to ask more about it.

    Args:
        problem: Whose Hessian.
        steps: As in ``spectrum``.
        probes: The same.
        seed: The same.
        rtol: The same.
        precision: The same.
        basis: The same.
        progress: The same.
        released: Another recurrence, of the product and the start, whose Ritz values
            are then reported as they are.
    """
    one_of("precision", precision, PRECISIONS)
    inner = PRECISIONS[precision]
    problem = problem._replace(model=bare(problem.model))
    product = best_product(problem, certify.precision(problem.model), inner)
    steps = min(steps, product.size)
    check(product.size, steps, probes, basis)
    certify.check_fixed(product)
    done: list[Probe] = []
    for probe in reversed(range(probes)):  # the first one's basis serves the trace
        start = certify.start(product, seed, probe)
        tick = shifted(progress, (probes - 1 - probe) * steps, probes * steps)
        if released:
            state = released(product, start.basis[0])
        else:
            state = advance(
                start, product, steps, rtol=rtol, basis=basis, progress=tick
            )
        done.insert(0, distilled(state))
    found = certify.certified(product, done, polish=not released)
    if released:
        found = as_reported(found)
    else:
        found = certify.with_trace(found, product, state, seed)
    return Solved(found, product, state)


class Outliers(NamedTuple):
    """The largest eigenvalues of a Hessian, in falling order.

    Attributes:
        values: Rayleigh quotients of the vectors. [m]
        bounds: An eigenvalue lies within this distance of each: norms of measured
            residuals, without the rounding of a product. [m]
        vectors: Orthonormal Ritz vectors. [m, n], float64
        steps: Of the recurrence.
    """

    values: list[float]
    bounds: list[float]
    vectors: Tensor
    steps: int


@alone
def find_outliers(
    problem: Problem,
    count: int = 1,
    *,
    rtol: float = 0.05,
    steps: int = 100,
    seed: int = 0,
    progress: Progress | None = None,
) -> Outliers:
    """The ``count`` largest eigenvalues and their vectors; the lower end is left alone.

    A fraction of what a whole spectrum costs: λmax to 5 % takes about five products.

    Args:
        problem: Whose Hessian.
        count: m, below the number of steps.
        rtol: Stop when all m have this relative accuracy.
        steps: Most Lanczos steps.
        seed: Of the start.
        progress: Called with (steps done, most steps to do).
    """
    product = best_product(problem, certify.precision(problem.model))
    steps = min(steps, product.size)
    state = certify.start(product, seed)
    while state.steps < steps and not state.ended and not _known(state, count, rtol):
        state = advance(state, product, state.steps + 1)
        if progress is not None:
            progress(state.steps, steps)
    coefficients = state.ritz()[1].flip(1)[:, :count]
    ends = [certificate(product, state.vector(each)) for each in coefficients.T]
    vectors = torch.stack([end.vector for end in ends])
    values, bounds = [end.value for end in ends], [end.bound for end in ends]
    return Outliers(values, bounds, vectors, state.steps)


def _known(state: KrylovState, count: int, rtol: float) -> bool:
    """Whether the ``count`` highest Ritz pairs are accurate enough."""
    if state.steps <= count:
        return False
    values, _, residuals = state.ritz()
    return bool((residuals[-count:] <= rtol * values[-count:].abs()).all())


@alone
def class_gradients(
    model: nn.Module, loss: Loss, images: Tensor, labels: Tensor
) -> Tensor:
    """Gradient of each class's loss, of those that have images. [C, n], float64

    Args:
        model: As in ``spectrum``.
        loss: The same.
        images: [N, ...]
        labels: [N]
    """
    parts = [labels == number for number in labels.unique()]
    found = [Problem(model, loss, images[rows], labels[rows]) for rows in parts]
    return torch.stack([Product(part).gradient().double() for part in found])


def shares_within(vectors: Tensor, gradients: Tensor) -> Tensor:
    """Share of each gradient's squared norm in the span of orthonormal rows. [C]

    Args:
        vectors: [m, n]
        gradients: [C, n]
    """
    return (gradients @ vectors.T).square().sum(1) / gradients.square().sum(1)


@alone
def class_spectra(
    model: nn.Module,
    loss: Loss,
    images: Tensor,
    labels: Tensor,
    classes: Iterable[int] | int | None = None,
    **settings: Any,
) -> dict[int, Spectrum]:
    """``spectrum`` of each class's loss over that class's images.

    Args:
        model: As in ``spectrum``.
        loss: The same.
        images: [N, ...]
        labels: [N], tensor or array.
        classes: Class numbers; None takes all that have images.
        **settings: Passed to ``spectrum``.

    Raises:
        UsageError: A class that is no class number or has no images.
    """
    images, labels = torch.as_tensor(images), torch.as_tensor(labels)
    if labels.ndim != 1 or not 0 < len(labels) == len(images):
        raise UsageError(
            f"labels {list(labels.shape)} of {len(images)} images: give a class number "
            "per image"
        )
    wanted = _numbers(labels.unique() if classes is None else classes)
    members = {number: _members(labels, number) for number in wanted}
    return {
        number: spectrum(model, loss, images[rows], labels[rows], **settings)
        for number, rows in members.items()
    }


def _numbers(classes: Any) -> list[Any]:
    """Class numbers from one, a list, an array or a tensor."""
    found = classes.tolist() if hasattr(classes, "tolist") else classes
    items = found if isinstance(found, Iterable) else [found]
    return [item.item() if hasattr(item, "item") else item for item in items]


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
    precision: str = "full",
    progress: Progress | None = None,
) -> dict[str, Any]:
    """One class's curvature as a record keeps it, with what is needed to judge it.

    Args:
        model: As in ``spectrum``.
        loss: The same.
        images: uint8, not normalised. [N, 3, H, W]
        labels: [N]
        mode: ``clean`` (no augmentation), ``augmented`` (the mean over all crops and
            flips), ``frozen`` (``draws`` fixed augmentations of each image),
            ``batch_statistics`` (clean, batch norm with the statistics of the class),
            ``mixed_statistics`` (clean, with those of batches of 128 images of all
            classes, as in training; ``seed`` shuffles them), or the released
            recurrence: ``as_published`` (augmentation redrawn in each product, β before
            re-orthogonalisation), ``redrawn`` (β after it), ``fixed_before`` (clean
            images, β before it).
        class_: Class to measure; None takes all images.
        epoch: Noted in the result.
        steps: K; the released modes do all of them.
        rtol: As in ``spectrum``; the released modes know no such thing.
        seed: Of the start, the draws and the cut.
        draws: Augmentations of each image in mode ``frozen``.
        limit: Cut the class to this many images, drawn by ``seed``.
        batch_size: Images of a chunk.
        quadrature: Keep nodes, weights and residuals (about 3 kB).
        precision: As in ``spectrum``; of the products, not of the published numbers.
        progress: As in ``spectrum``.

    Returns:
        JSON values: both ends with bounds, Rayleigh quotients of the lowest Ritz
        vector on clean and on fresh data, loss, gradient and loss along the vector
        (of the augmented images in mode ``augmented``, of the mixed batches in mode
        ``mixed_statistics``, else of the clean ones, as ``judged_on`` says), nodes and
        weights.
    """
    how = MODES[one_of("mode", mode, MODES)]
    rows = _members(labels, class_) if class_ is not None else torch.arange(len(labels))
    if how.batch_norm == "batches" and limit is not None and limit < len(rows):
        raise UsageError(
            f"mode {mode!r} takes all {len(rows)} images: no limit {limit}"
        )
    everything = images, labels
    rows = rows[_cut(len(rows), limit, seed)]
    images, labels = images[rows], labels[rows]
    inputs = mode_inputs(how, images, labels, seed, draws)
    problem = Problem(model, loss, *inputs, batch_size, how.batch_norm)
    plain = problem._replace(images=normalise(images), labels=labels)
    if mixed := how.batch_norm == "batches":
        problem = _in_mixed_batches(problem, *everything, class_, seed)
        plain = plain._replace(batch_norm="running")
    released = _released(how, images, steps, seed, progress) if how.beta else None
    result, product, state = solve(
        problem, steps, seed=seed, rtol=rtol, precision=precision, progress=progress,
        released=released,
    )  # fmt: skip
    clean = product if mode == "clean" else best_product(plain, product.dtype)
    judged = "augmented" if how.images == "all" else "mixed batches" * mixed or "clean"
    return (
        {"class": class_, "epoch": epoch, "mode": mode, "images": len(images)}
        | {"steps": state.steps, "seed": seed, "limit": limit}
        | {"diagonal_share": rounded(diagonal_share(state))}
        | result.to_dict(quadrature)
        | {"judged_on": judged}
        | _judged(clean if judged == "clean" else product, clean, result, images, seed)
    )


def _in_mixed_batches(
    problem: Problem, images: Tensor, labels: Tensor, class_: int | None, seed: int
) -> Problem:
    """The loss of a class whose images stand in shuffled batches of all images."""
    order = epoch_order(seed, 0, len(labels))
    share = 1.0 if class_ is None else float((labels == class_).double().mean())

    def loss(logits: Tensor, targets: Tensor) -> Tensor:
        own = targets >= 0 if class_ is None else targets == class_
        if not own.any():  # zero, but with derivatives
            return 0 * problem.loss(logits, targets)
        mean: Tensor = problem.loss(logits[own], targets[own])
        return mean * (own.double().mean() / share)

    return problem._replace(
        loss=loss, images=normalise(images[order]), labels=labels[order]
    )


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


def redrawn_product(
    product: Product, images: Tensor, seed: int, first: int = 0
) -> Matvec:
    """The product over uint8 ``images``, cropped and flipped anew at every call."""
    calls = iter(range(first, 2**31))

    def matvec(vector: Tensor) -> Tensor:
        fresh = redraw(images, seed, next(calls), product.dtype)
        return product.on(fresh)(vector)

    return matvec


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


def _released(
    mode: Mode, images: Tensor, steps: int, seed: int, progress: Progress | None
) -> Callable[[Product, Tensor], KrylovState]:
    """The released recurrence of a mode."""

    def recurrence(product: Product, start: Tensor) -> KrylovState:
        matvec: Matvec = product
        if mode.images == "redrawn":
            product.forget()  # its own images come again after the last step only
            matvec = redrawn_product(product, images, seed)
        return lanczos.released(matvec, start, steps, mode.beta, progress)

    return recurrence


def _judged(
    product: Product, clean: Product, result: Spectrum, images: Tensor, seed: int
) -> dict[str, Any]:
    """What tells a saddle from an artefact, about the lowest Ritz vector.

    The line goes as far along ± the vector as the reported curvature alone needs to
    lower the loss by 0.1 nats at both ends.
    """
    vector = result.vector_min
    start = 2**20  # draws that the recurrence has not seen
    fresh = redrawn_product(clean, images, seed, start)
    again = np.array([certificate(fresh, vector).value for _ in range(_FRESH)])
    slope = product.gradient().double()
    far = math.sqrt(2 * _NATS / max(abs(result.lambda_min), 1e-12))
    steps = np.linspace(-far, far, 11)
    line = np.array([product.value(float(step) * vector) for step in steps])
    values = {
        "rayleigh_clean": certificate(clean, vector).value,
        "rayleigh_fresh": again.mean(),
        "rayleigh_fresh_error": again.std(ddof=1) / math.sqrt(_FRESH),
        "loss": product.value(),
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
