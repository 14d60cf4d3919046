"""Tests Lanczos on operators whose spectrum is known, for chapter 4.

Knows lists of eigenvalues; draws nothing (that is ``figures.toys``). An operator here
is diagonal unless it is rotated: the ends do not care for the basis, but the weights of
one probe do. Random signs q give q'f(H)q = tr f(H) exactly where H is diagonal.

Legend: n size, K steps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from saddlebook.curvature.lanczos import (
    KrylovState,
    Matvec,
    advance,
    certificate,
    distilled,
    lanczos,
    starts,
)
from saddlebook.curvature.modes import diagonal_share, released
from saddlebook.curvature.spectrum import Spectrum
from saddlebook.errors import one_of

SIZE = 2000
KINDS = ("outliers", "edge", "cluster", "low rank")


def eigenvalues(kind: str, size: int = SIZE) -> NDArray[np.float64]:
    """A spectrum by name, ascending. [n]

    ``outliers``: a bulk in ±1 and −3, 6, 9 apart from it, as a network has.
    ``edge``: evenly spread in ±1, so both ends have close neighbours.
    ``cluster``: ten eigenvalues within 0.001 of −3 and of 6 each, besides the bulk.
    ``low rank``: 70 eigenvalues between 1 and 10, the rest 0; none is negative.
    """
    one_of("spectrum", kind, KINDS)
    values = np.linspace(-1, 1, size)
    if kind == "outliers":
        values[:3] = -3, 6, 9
    if kind == "cluster":
        values[:10], values[10:20] = -3 + 1e-3 * values[:10], 6 + 1e-3 * values[:10]
    if kind == "low rank":
        values = np.zeros(size)
        values[:70] = np.linspace(1, 10, 70)
    return np.sort(values)


def known_spectrum(
    kind: str,
    steps: int = 40,
    probes: int = 1,
    seed: int = 0,
    *,
    size: int = SIZE,
    rotated: bool = False,
) -> Spectrum:
    """``lanczos`` on a known operator, diagonal or in a random basis."""
    values = torch.from_numpy(eigenvalues(kind, size))
    basis = _basis(size) if rotated else None

    def matvec(v: Tensor) -> Tensor:
        return values * v if basis is None else basis @ (values * (basis.T @ v))

    return lanczos(matvec, size, steps, probes=probes, seed=seed)


@cache
def _basis(size: int) -> Tensor:
    """A random orthonormal basis, always the same. [n, n]"""
    generator = torch.Generator().manual_seed(0)
    normal = torch.randn(size, size, generator=generator, dtype=torch.float64)
    return torch.linalg.qr(normal)[0]


def convergence(
    kind: str, steps: Sequence[int] = tuple(range(2, 61, 2)), seed: int = 0
) -> pd.DataFrame:
    """True error and measured bound of both ends after some steps, relative to ‖H‖.

    Returns:
        One row for each number of steps: ``steps``, ``low_error``, ``low_bound``,
        ``high_error``, ``high_bound``.
    """
    values = torch.from_numpy(eigenvalues(kind))
    scale = float(values.abs().max())
    state = KrylovState(starts(len(values), seed, 0)[None])
    rows = []
    for count in steps:
        state = advance(state, lambda v: values * v, count)
        probe = distilled(state)
        ends = [certificate(lambda v: values * v, u) for u in (probe.bottom, probe.top)]
        row: dict[str, float] = {"steps": state.steps}
        truths = values[[0, -1]]
        for name, end, truth in zip(("low", "high"), ends, truths, strict=True):
            row[f"{name}_error"] = abs(end.value - float(truth)) / scale
            row[f"{name}_bound"] = end.bound / scale
        rows.append(row)
    return pd.DataFrame(rows)


def covered(table: pd.DataFrame) -> float:
    """Percent of the ends in a ``convergence`` table that lie within their bound.

    An end that has not been found yet lies near another eigenvalue instead.
    """
    rounding = 1e-14
    inside = [
        table[f"{end}_error"] <= table[f"{end}_bound"] + rounding
        for end in ("low", "high")
    ]
    return float(100 * np.mean(inside))


def ghosts(
    kind: str = "outliers", steps: Sequence[int] = tuple(range(10, 151, 10))
) -> pd.DataFrame:
    """Copies of the largest eigenvalue, with and without re-orthogonalisation.

    Returns:
        One row for each number of steps and kind: ``steps``, ``reorthogonalise``,
        ``copies``, and ``lost``, the largest abs of VV' − 1.
    """
    values = torch.from_numpy(eigenvalues(kind))
    near = float(values[-1]) - 0.01 * float(values[-1] - values[-2])
    rows = []
    for full in (True, False):
        state = KrylovState(starts(len(values), 0, 0)[None])
        for count in steps:
            state = advance(state, lambda v: values * v, count, reorthogonalise=full)
            basis = state.basis
            lost = (basis @ basis.T - torch.eye(len(basis))).abs().max()
            copies = int((state.ritz()[0] > near).sum())
            rows.append((count, full, copies, float(lost)))
    return pd.DataFrame(rows, columns=["steps", "reorthogonalise", "copies", "lost"])


def breakdown(kind: str = "low rank", steps: int = 100) -> pd.DataFrame:
    """Lowest Ritz value where the rank is below the steps: ours and the released rule.

    The released recurrence divides what is left, which is rounding, by its norm + 1e-6
    and goes on. The table says how many steps each has taken.
    """
    values = torch.from_numpy(eigenvalues(kind)).float()
    start = starts(len(values), 0, 0).float()
    ours = advance(KrylovState(start[None]), lambda v: values * v, steps)
    theirs = released(lambda v: values * v, start, steps)
    rows = [
        (name, state.steps, float(state.ritz()[0][0]), float(state.ritz()[0][-1]))
        for name, state in (("ours", ours), ("released", theirs))
    ]
    return pd.DataFrame(rows, columns=["recurrence", "steps", "lowest", "highest"])


def changing(
    seed: int = 0, size: int = SIZE, images: int = 50, fixed: bool = False
) -> Matvec:
    """An operator that is positive semi-definite at every call, but not the same.

    A stand-in for a memorised class: each of ``images`` adds a rank-1 term g·g' in a
    direction drawn anew, its weight from a heavy-tailed (log-normal) law, over a bulk
    of small positive eigenvalues. ``fixed`` draws once and keeps it.
    """
    generator = torch.Generator().manual_seed(seed)
    bulk = torch.linspace(0, 0.05, size)
    drawn: list[tuple[Tensor, Tensor]] = []

    def draw() -> tuple[Tensor, Tensor]:
        rows = torch.randn(images, size, generator=generator)
        weights = torch.exp(2.5 * torch.randn(images, generator=generator)) / images
        return rows / rows.norm(dim=1, keepdim=True), weights

    def matvec(vector: Tensor) -> Tensor:
        if not drawn or not fixed:
            drawn[:] = [draw()]
        rows, weights = drawn[0]
        return bulk * vector + rows.T @ (weights * (rows @ vector))

    return matvec


def known_causes(seeds: Sequence[int] = (0, 1, 2), steps: int = 60) -> pd.DataFrame:
    """The 2×2 of causes: operator fixed or changing, β before or after.

    Returns:
        One row for each cell and seed: ``operator``, ``beta``, ``seed``, ``low``,
        ``high`` (extreme Ritz values), ``ratio`` and ``diagonal`` (mean abs(α)/mean β).
    """
    rows = []
    for fixed in (True, False):
        for beta in ("after", "before"):
            for seed in seeds:
                start = starts(SIZE, seed, 0).float()
                matvec = changing(seed, fixed=fixed)
                state = released(matvec, start, steps, beta)
                nodes = state.ritz()[0]
                low, high = float(nodes[0]), float(nodes[-1])
                kind = "fixed" if fixed else "changing"
                ratio = abs(low / high)
                rows.append((kind, beta, seed, low, high, ratio, diagonal_share(state)))
    names = ["operator", "beta", "seed", "low", "high", "ratio", "diagonal"]
    return pd.DataFrame(rows, columns=names)


def rayleigh(seed: int = 0, steps: int = 60, fresh: int = 20) -> pd.Series:
    """What the vector of the changing operator's lowest Ritz value says on new draws.

    Returns:
        ``reported`` (the Ritz value), and ``lowest``, ``mean`` and ``highest`` of its
        Rayleigh quotient over ``fresh`` new draws.
    """
    state = released(changing(seed), starts(SIZE, seed, 0).float(), steps)
    nodes, vectors, _ = state.ritz()
    vector = state.vector(vectors[:, 0])
    other: Callable[[Tensor], Tensor] = changing(seed + 1000)
    again = [float(vector @ other(vector.float()).double()) for _ in range(fresh)]
    values = [float(nodes[0]), min(again), float(np.mean(again)), max(again)]
    return pd.Series(values, index=["reported", "lowest", "mean", "highest"])


def one_probe(
    kind: str, seeds: int = 20, steps: int = 40, size: int = 500
) -> pd.DataFrame:
    """What one probe says of a rotated operator, with and without lines of weight 1/n.

    Returns:
        One row per seed: ``raw`` and ``lines``, the error of the mean eigenvalue over
        the mean absolute one; ``weight`` and ``line``, that of the largest eigenvalue
        times n (1 is true).
    """
    values = eigenvalues(kind, size)
    truth, scale = values.mean(), np.abs(values).mean()
    near = (values[-1] + values[-2]) / 2
    rows = []
    for seed in range(seeds):
        found = known_spectrum(kind, steps, seed=seed, size=size, rotated=True)
        both = (found.weights, found.density_weights)
        off = [abs(float((w * found.nodes).sum()) - truth) / scale for w in both]
        top = [size * float((w * (found.nodes > near)).sum()) for w in both]
        rows.append(off + top)
    return pd.DataFrame(rows, columns=["raw", "lines", "weight", "line"])
