"""Simulates SAM on toy landscapes: what Theorem 1 predicts, and what is measured.

Thousands of walkers step side by side; how fast they leave a saddle is for chapter 3.
Draws nothing (that is ``figures.toys``).

Legend: d dimensions, W walkers; positions are [d, W], so that ``x, y = position``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from numpy.random import Generator

from saddlebook.errors import NumericalError, UsageError
from saddlebook.theory import saddles
from saddlebook.theory.saddles import Array, finite

Batch = tuple[Array, Array | None]
GRID = (0.1, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 2.5, 3.0, 4.0)  # scaled radii
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


def moments(
    a: Sequence[float] = GRID,
    *,
    normalised: bool = False,
    fresh: bool = False,
    curvature_sigma: float = 0.0,
    draws: int = 100_000,
    seed: int = 0,
) -> pd.DataFrame:
    """Second moment and mean step of SAM along v over SGD's: predicted and measured.

    At y = 0.05 on a saddle with λ = −1. Plain SAM in the plane, σ = 0.1; normalised SAM
    in 400 dimensions, σ = 0.05 and a twentieth of the draws, where ‖g‖ is nearly
    constant and the prediction is that of Theorem 1 with ρ/‖g‖.

    Args:
        a: Scaled radii.
        normalised: Which SAM.
        fresh: Whether the second pass draws its own batch.
        curvature_sigma: Spread of the samples' curvature; plain SAM only.
        draws: Mini-batches for each a.
        seed: Of the draws.

    Returns:
        One row for each a: ``a``, ``predicted``, ``measured``, ``error`` (standard
        error), ``predicted_drift``, ``drift``, ``drift_error``, ``regime``.
    """
    y, sigma, dim = 0.05, 0.05 if normalised else 0.1, 400 if normalised else 2
    land = replace(saddle(dim=dim), sigma=sigma, curvature_sigma=curvature_sigma)
    place = (0.0,) * (dim - 1) + (y,)
    draws = draws // 20 if normalised else draws
    scale = (
        measure_gradient(land, place, Rule(0.0), draws=draws).grad_norm
        if normalised
        else 1
    )
    tau = 0.0 if fresh else curvature_sigma
    unit = float(saddles.second_moment(0.0, -1.0, y, sigma, curvature_sigma))
    rows = []
    for i, radius in enumerate(a):
        rule = Rule(0.0, radius * scale, normalised, fresh=fresh)
        seen = measure_gradient(land, place, rule, draws=draws, seed=seed + i)
        told = saddles.second_moment(radius, -1.0, y, sigma, curvature_sigma, fresh)
        factor = saddles.amplification(radius, -1.0) if normalised else told / unit
        rows.append(
            {
                "a": radius,
                "predicted": float(factor),
                "measured": seen.second_moment / unit,
                "error": seen.second_moment_error / unit,
                "predicted_drift": float(saddles.mean_step(radius, -1.0, tau)),
                "drift": seen.drift / y,
                "drift_error": seen.drift_error / y,
                "regime": saddles.regime(radius),
            }
        )
    return pd.DataFrame(rows)


def worst(table: pd.DataFrame) -> float:
    """Largest distance of measured from predicted, in standard errors."""
    off = (table["measured"] - table["predicted"]).abs()
    return float((off / table["error"].clip(lower=1e-12))[off > 1e-12].max())


@dataclass(frozen=True)
class EscapeMap:
    """Steps to escape along v without noise, λ = −1, over radius and step size.

    Attributes:
        normalised: Which SAM.
        momentum: β.
        radii: a = ρ·|λ| of plain SAM, or ρ over the start of normalised SAM. [M]
        rates: η·|λ|. [N]
        times: inf where it takes more than ``steps``. [N, M]
        predicted: By ``saddles.escape_time``; nan where that has no closed form.
        steps: At most this many were made.
    """

    normalised: bool
    momentum: float
    radii: Array
    rates: Array
    times: Array
    predicted: Array
    steps: int

    @property
    def agreement(self) -> float:
        """Percent of the cells with a closed form that agree to the very step."""
        known = ~np.isnan(self.predicted)
        told = np.where(self.predicted > self.steps, np.inf, self.predicted)
        return 100 * float((told == self.times)[known].mean())

    @property
    def edges(self) -> list[Array]:
        """Where the trap should begin and end: rows of radius and rate. [2, K]"""
        low, high = self.rates[0], self.rates[-1]
        if not self.normalised:
            some = np.geomspace(low, high, 12)
            end = saddles.overshoot_radius(some, -1.0, self.momentum)
            left = np.array([[1.0, 1.0], [low, high]])
            return [left, np.array([end, some])]
        top = float(saddles.overshoot_threshold(self.momentum))
        left = np.array([[1.0, 1.0], [low, top]])
        return [left, np.array([[1.0, self.radii[-1]], [top, top]])]


def escape_map(
    *, normalised: bool, momentum: float = 0.0, cells: int = 48, steps: int = 2000
) -> EscapeMap:
    """Let one walker go for each radius and step size; it has escaped at |y| > 10.

    Args:
        normalised: Plain SAM starts at y = 0.05, normalised SAM there too, with radii
            from a tenth of that to a hundred times.
        momentum: β.
        cells: Radii, and step sizes, on logarithmic grids.
        steps: At most.
    """
    start, radii = 0.05, np.geomspace(0.1, 100, cells)
    rates = np.geomspace(0.01, 3, cells)
    rho, rate = (axis.ravel() for axis in np.meshgrid(radii, rates))
    rho = rho * start if normalised else rho
    rule = Rule(rate, rho, normalised, momentum)
    seen = walk(Landscape((-1.0,)), (start,), rule, steps=steps, exit=10.0)
    told = saddles.escape_time(start, rate, -1.0, rho, normalised, momentum, 10.0)
    times, told = (x.reshape(cells, cells) for x in (seen.escape_time, told))
    return EscapeMap(normalised, momentum, radii, rates, times, told, steps)


def arrivals(
    radii: Sequence[float] = (0.0, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0),
    sigmas: Sequence[float] = (0.0, 0.05, 0.1, 0.3),
    *,
    momentum: float = 0.0,
    runs: int = 100,
    seed: int = 0,
) -> pd.DataFrame:
    """Share of normalised-SAM walkers that reach a minimum of the double well.

    f = x²/2 − y²/2 + y⁴/4 from (0.01, 0.001), η = 0.05, 2,000 steps; a walker has
    arrived at |y| > 0.9, the minima being at ±1.

    Returns:
        ``sigma rho arrived error runs``, percent with its binomial standard error.
    """
    rows = []
    for sigma in sigmas:
        land = replace(double_well(), sigma=sigma)
        rule = Rule(0.05, np.repeat(np.asarray(radii), runs), momentum=momentum)
        start = (0.01, 0.001)
        seen = walk(land, start, rule, steps=2000, exit=0.9, seed=seed).escape_time
        for rho, times in zip(radii, seen.reshape(-1, runs), strict=True):
            share = float(np.isfinite(times).mean())
            error = float(np.sqrt(share * (1 - share) / runs))
            row = [sigma, rho, 100 * share, 100 * error, runs]
            rows.append(dict(zip(_ARRIVALS, row, strict=True)))
    return pd.DataFrame(rows)


_ARRIVALS = ("sigma", "rho", "arrived", "error", "runs")
