"""Lets thousands of walkers run on toy landscapes: what Theorem 1 predicts, seen.

At the end two classes in the plane, trained with the library's losses (chapter 2).

Legend: d dimensions, W walkers; positions are [d, W], so that ``x, y = position``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.random import Generator
from torch import Tensor, nn
from torch.nn.functional import normalize

from saddlebook import losses
from saddlebook.errors import NumericalError, UsageError
from saddlebook.theory.saddles import Array, finite

Batch = tuple[Array, Array | None]
_PER_WALKER = ("step_size", "rho", "momentum")


@dataclass(frozen=True)
class Landscape:
    """f(w) = ½·Σ λ_i·x_i² + ¼·quartic·y⁴ in the axes x = basisᵀ·w, seen through noise.

    y is the coordinate of the smallest λ_i, the direction v. A batch's gradient is the
    true one plus σ·ξ (additive) and τ·ζ_i·x_i (each sample has its own curvature).

    Attributes:
        curvatures: λ_i. [d]
        quartic: At least 0; 0 is the quadratic saddle.
        sigma: σ of the additive noise in every direction.
        curvature_sigma: τ of the sample-dependent noise.
        basis: Orthonormal columns, or None for the coordinate axes. [d, d]
    """

    curvatures: tuple[float, ...]
    quartic: float = 0.0
    sigma: float = 0.0
    curvature_sigma: float = 0.0
    basis: Array | None = None

    def __post_init__(self) -> None:
        finite("curvatures", self.curvatures)
        for name in ("quartic", "sigma", "curvature_sigma"):
            finite(name, getattr(self, name), 0)

    @property
    def lambda_min(self) -> float:
        """The most negative curvature at the saddle."""
        return min(self.curvatures)

    @property
    def down(self) -> int:
        """Index of v among the axes."""
        return int(np.argmin(self.curvatures))

    def axes(self, w: Array) -> Array:
        """Coordinates along the eigenvectors. [d, W]"""
        return w if self.basis is None else self.basis.T @ w

    def along(self, w: Array) -> Array:
        """The place along v, ⟨v, w⟩. [W]"""
        return w[self.down] if self.basis is None else self.basis[:, self.down] @ w

    def loss(self, w: Array) -> Array:
        """Value f of each walker. [W]"""
        x = self.axes(w)
        quadratic = np.einsum("i,iw,iw->w", np.asarray(self.curvatures), x, x) / 2
        return quadratic + self.quartic / 4 * x[self.down] ** 4

    def batch(self, rng: Generator, walkers: int) -> Batch:
        """Draw the noise of one mini-batch for each walker."""
        shape = len(self.curvatures), walkers
        xi = self.sigma * rng.standard_normal(shape) if self.sigma else np.zeros(1)
        if not self.curvature_sigma:
            return xi, None
        return xi, self.curvature_sigma * rng.standard_normal(shape)

    def gradient(self, w: Array, batch: Batch) -> Array:
        """The gradient that mini-batch shows at ``w``. [d, W]"""
        x = self.axes(w)
        xi, zeta = batch
        g = np.asarray(self.curvatures)[:, None] * x + xi
        if self.quartic:
            g[self.down] += self.quartic * x[self.down] ** 3
        if zeta is not None:
            g += zeta * x
        return g if self.basis is None else self.basis @ g


def saddle(
    lambda_min: float = -1.0, lambda_max: float = 1.0, dim: int = 2
) -> Landscape:
    """One direction of curvature λ_min < 0 (the last), all others λ_max."""
    if dim < 1 or not lambda_min < 0:
        raise UsageError(
            f"a saddle needs dim >= 1 and lambda_min < 0, not {lambda_min}"
        )
    return Landscape((lambda_max,) * (dim - 1) + (lambda_min,))


def double_well(lambda_min: float = -1.0, depth: float = 1.0) -> Landscape:
    """Two minima at y = ±√(|λ_min|/depth) and the saddle between them."""
    return replace(saddle(lambda_min), quartic=depth)


@dataclass(frozen=True)
class Rule:
    """One way to step. ρ = 0 is SGD; every field may hold one value per walker.

    Attributes:
        step_size: η.
        rho: Radius of SAM.
        normalised: Climb ρ·g/‖g‖ (SAM as used) or ρ·g (plain, the theorem's).
        momentum: Heavy ball β.
        fresh: Whether the second pass sees a batch of its own.
    """

    step_size: float | Array
    rho: float | Array = 0.0
    normalised: bool = True
    momentum: float | Array = 0.0
    fresh: bool = False

    def __post_init__(self) -> None:
        for name in ("step_size", "rho", "momentum"):
            finite(name, getattr(self, name), 0)


def sam_gradient(
    land: Landscape, w: Array, rule: Rule, first: Batch, second: Batch
) -> Array:
    """The gradient SAM steps with: climb on one batch, look again on another. [d, W]

    At a zero gradient the climb is zero, as in ``optim.SAM``.
    """
    g = land.gradient(w, first)
    if not np.any(rule.rho):
        return g
    if rule.normalised:
        g *= rule.rho / (np.sqrt(np.einsum("iw,iw->w", g, g)) + 1e-12)
    else:
        g *= rule.rho
    g += w
    return land.gradient(g, second)


@dataclass(frozen=True)
class Walk:
    """What became of the walkers.

    Attributes:
        escape_time: Steps until |y| > exit; inf where that did not happen. [W]
        position: Last position; where a walker escaped, that of its escape. [d, W]
        path: Positions at steps 0, every, 2·every, …; nan after an escape. [T, d, W]
    """

    escape_time: Array
    position: Array
    path: Array

    @property
    def escaped(self) -> float:
        """Fraction of the walkers that escaped."""
        return float(np.isfinite(self.escape_time).mean())


def walk(
    land: Landscape,
    start: Array | tuple[float, ...],
    rule: Rule,
    *,
    steps: int = 1000,
    walkers: int | None = None,
    exit: float | None = 1.0,
    every: int = 0,
    seed: int = 0,
) -> Walk:
    """Let walkers follow a rule until they escape or the steps are over.

    Args:
        land: Where they walk.
        start: One position for all, or one each. [d] or [d, W]
        rule: How they step; its fields may be one value per walker.
        steps: At most this many.
        walkers: W, if neither start nor rule says it.
        exit: |y| beyond which a walker has escaped and stops; None never stops it.
        every: Keep the path at every so many steps; 0 keeps none.
        seed: Of all noise.

    Raises:
        NumericalError: Walkers that were not stopped left the numbers' range.
    """
    w, rule = _spread(land, start, rule, walkers)
    rng, alive = np.random.default_rng(seed), np.arange(w.shape[1])
    velocity = np.zeros_like(w)
    times, position = np.full(w.shape[1], np.inf), w.copy()
    path = np.full((steps // every + 1 if every else 0, *w.shape), np.nan)
    path[:1] = w
    with np.errstate(over="ignore", invalid="ignore"):
        for now in range(1, steps + 1):
            w, velocity = step(land, w, velocity, rule, rng)
            if every and now % every == 0:
                path[now // every][:, alive] = w
            gone = np.abs(land.along(w)) > (np.inf if exit is None else exit)
            if gone.any():
                times[alive[gone]], position[:, alive[gone]] = now, w[:, gone]
                stay = ~gone
                w, velocity, alive = w[:, stay], velocity[:, stay], alive[stay]
                rule = _each(rule, partial(np.compress, stay))
            if not alive.size:
                break
    position[:, alive] = w
    if not np.isfinite(position).all():
        raise NumericalError(
            "walkers left the range of float64; take fewer steps or set exit"
        )
    return Walk(times, position, path)


def step(
    land: Landscape, w: Array, velocity: Array, rule: Rule, rng: Generator
) -> tuple[Array, Array]:
    """One step of every walker: velocity β·u + g_SAM, then w − η·velocity."""
    first = land.batch(rng, w.shape[1])
    second = land.batch(rng, w.shape[1]) if rule.fresh else first
    g = sam_gradient(land, w, rule, first, second)
    if np.any(rule.momentum):
        g += rule.momentum * velocity
    return w - rule.step_size * g, g


def _spread(
    land: Landscape, start: Array | tuple[float, ...], rule: Rule, walkers: int | None
) -> tuple[Array, Rule]:
    """Positions [d, W] and a rule whose arrays are [W]."""
    w = finite("start", start)
    w = w[:, None] if w.ndim == 1 else w
    if len(w) != len(land.curvatures):
        raise UsageError(f"start has {len(w)} dimensions, not {len(land.curvatures)}")
    shapes = [np.shape(getattr(rule, name)) for name in _PER_WALKER]
    (count,) = np.broadcast_shapes(w.shape[1:], (walkers or 1,), *shapes)
    rule = _each(rule, partial(np.broadcast_to, shape=count))
    return np.repeat(w, count // w.shape[1], axis=1), rule


def _each(rule: Rule, change: Callable[[Array], Array]) -> Rule:
    """The rule with its per-walker fields changed; plain numbers stay."""
    values = {name: getattr(rule, name) for name in _PER_WALKER}
    changed: dict[str, Any] = {n: change(x) for n, x in values.items() if np.ndim(x)}
    return replace(rule, **changed) if changed else rule


@dataclass(frozen=True)
class Measured:
    """Moments of ⟨v, g_SAM⟩ over many mini-batches, each with its standard error.

    Attributes:
        second_moment: Mean square.
        second_moment_error: Its standard error.
        drift: Mean step along v over η; positive leads away from the saddle.
        drift_error: Its standard error.
        grad_norm: Mean ‖g‖ of the first pass.
    """

    second_moment: float
    second_moment_error: float
    drift: float
    drift_error: float
    grad_norm: float


def measure_gradient(
    land: Landscape,
    place: tuple[float, ...] | Array,
    rule: Rule,
    *,
    draws: int = 100_000,
    seed: int = 0,
) -> Measured:
    """Draw many mini-batches at one place and look at SAM's gradient along v."""
    rng = np.random.default_rng(seed)
    w, rule = _spread(land, place, rule, draws)
    first = land.batch(rng, draws)
    second = land.batch(rng, draws) if rule.fresh else first
    along = land.along(sam_gradient(land, w, rule, first, second))
    outward = -along * (np.sign(land.along(w[:, :1])) or 1.0)
    norm = np.linalg.norm(land.gradient(w, first) + np.zeros_like(w), axis=0).mean()
    root = np.sqrt(draws)
    return Measured(
        float((along**2).mean()),
        float((along**2).std() / root),
        float(outward.mean()),
        float(outward.std() / root),
        float(norm),
    )


class PlaneToy(NamedTuple):
    """A linear classifier of two classes in the plane, and how it does.

    Attributes:
        boundary: Of a·x + b·y + c = 0, the rare class where it is positive. [3]
        right: Percent right of new points, frequent and rare class. [2]
    """

    boundary: Tensor
    right: Tensor


def plane_points(counts: Sequence[int], seed: int = 0) -> tuple[Tensor, Tensor]:
    """Points around (−1, 0) and (1, 0), standard deviation 1. [N, 2], labels [N]"""
    draw = torch.Generator().manual_seed(seed)
    labels = torch.repeat_interleave(torch.arange(2), torch.tensor(counts))
    points = torch.randn(len(labels), 2, generator=draw, dtype=torch.float64)
    points[:, 0] += 2.0 * labels - 1
    return points, labels


def boundary_toy(counts: Sequence[int], beta: float, max_margin: float) -> PlaneToy:
    """Train cosines times 30 with class weights and LDAM's margins on ``plane_points``.

    A point (x, y) becomes (x, y, 2) on the sphere, so that the boundary is a line.

    Args:
        counts: Training points of the frequent and the rare class.
        beta: Of ``losses.class_weights``.
        max_margin: Of the rare class; 0: cross-entropy.
    """
    points, labels = plane_points(counts)
    adjust = losses.adjustment("ldam", counts)
    adjust = adjust._replace(margin=adjust.margin * (max_margin / adjust.margin.max()))
    weights = losses.class_weights(counts, beta, torch.float64)
    matrix = torch.tensor([[-1.0, 0, 0], [1, 0, 0]], dtype=torch.float64)
    matrix.requires_grad_()
    fitter = torch.optim.LBFGS([matrix], max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        fitter.zero_grad()
        cosines = _on_sphere(points) @ normalize(matrix).T
        loss = nn.functional.cross_entropy(adjust(cosines, labels), labels, weights)
        loss.backward()
        return loss.detach()

    fitter.step(closure)
    found = normalize(matrix.detach())
    boundary = (found[1] - found[0]) * torch.tensor([1, 1, 2])
    fresh, truth = plane_points([5000, 5000], seed=1)
    right = (fresh @ boundary[:2] + boundary[2] > 0) == truth.bool()
    return PlaneToy(boundary, 100 * right.view(2, -1).double().mean(1))


def _on_sphere(points: Tensor) -> Tensor:
    return normalize(nn.functional.pad(points, (0, 1), value=2.0))
