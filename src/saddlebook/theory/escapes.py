"""Measures on toy landscapes how fast walkers leave a saddle, for chapter 3.

Knows landscapes and the theory; draws nothing (that is ``portraits``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from saddlebook.schedules import learning_rate
from saddlebook.theory import saddles
from saddlebook.theory.landscapes import (
    Landscape,
    Rule,
    double_well,
    measure_gradient,
    saddle,
    walk,
)
from saddlebook.theory.saddles import Array

GRID = (0.1, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 2.5, 3.0, 4.0)


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


def stable_curvature(
    step_size: ArrayLike,
    rho: ArrayLike = 0.0,
    momentum: ArrayLike = 0.0,
    grad_norm: ArrayLike | None = None,
) -> Any:
    """Largest curvature λ > 0 a minimum may have before the iteration leaves it.

    Heavy ball is stable for η·(gradient slope) ≤ 2(1 + β), and SAM's slope is
    λ(1 + ρλ). Hence λ = 2L/(1 + √(1 + 4ρL)) with L = 2(1 + β)/η, SGD's own edge; for
    normalised SAM ρ becomes ρ/‖g‖.

    References:
        Long and Bartlett 2024 (edge of stability of SAM), for β = 0.
    """
    rho, step_size = (
        saddles.finite("rho", rho, 0),
        saddles.finite("step_size", step_size, 0),
    )
    if grad_norm is not None:
        rho = rho / saddles.finite("grad_norm", grad_norm, np.finfo(float).tiny)
    edge = 2 * (1 + saddles.finite("momentum", momentum, 0)) / step_size
    return 2 * edge / (1 + np.sqrt(1 + 4 * rho * edge))


def schedule(
    lambda_min: float, rho: float, *, grad_norm: float = 1.0, momentum: float = 0.9
) -> pd.DataFrame:
    """The quadratic model at each step size of the paper's schedule.

    Args:
        lambda_min: A negative curvature, as printed.
        rho: SAM's radius.
        grad_norm: ‖g‖ at which SAM's largest stable curvature is quoted.
        momentum: β.

    Returns:
        A row for each phase: ``step_size``; ``rate`` = η·|λ|; ``overshoots``, whether
        that lets SAM out of a trap; ``sgd_steps`` in which SGD moves ten times farther
        from such a saddle; the largest stable curvature of SGD and of SAM.
    """
    phases = {"6 to 160": 160, "161 to 180": 180, "181 to 200": 200}
    rows = {}
    for name, epoch in phases.items():
        eta = learning_rate(epoch, lr=0.1, epochs=200, drw_epoch=160)
        rate = eta * -lambda_min
        growth = np.log(abs(saddles.roots(rate, momentum)[0]))
        rows[name] = {
            "step_size": eta,
            "rate": rate,
            "overshoots": bool(rate > saddles.overshoot_threshold(momentum)),
            "sgd_steps": float(np.log(10) / growth),
            "sgd_edge": float(stable_curvature(eta, 0.0, momentum)),
            "sam_edge": float(stable_curvature(eta, rho, momentum, grad_norm)),
        }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("epochs")
