"""Computes small examples whose answer is known, without training a network.

Lanczos on known lists of eigenvalues (chapter 4); the paper's steps on a saddle
(chapter 3); oddities of the released code, from the library's own losses and layers
(chapter 11); a linear classifier of two classes in the plane (chapter 2). Draws nothing
(that is ``figures.toys``). An operator here is diagonal unless it is rotated: the ends
do not care for the basis, but the weights of one probe do. Random signs q give
q'f(H)q = tr f(H) exactly where H is diagonal.

Legend: n size, K steps.

References:
    Rangwani et al. 2022, released code; Cui et al. 2019 (class weights).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.autograd.functional import hessian
from torch.nn.functional import normalize

from saddlebook import losses
from saddlebook.curvature.lanczos import (
    KrylovState,
    Matvec,
    advance,
    certificate,
    diagonal_share,
    distilled,
    lanczos,
    released,
    starts,
)
from saddlebook.curvature.spectrum import Spectrum
from saddlebook.errors import one_of
from saddlebook.schedules import learning_rate
from saddlebook.theory import saddles

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
    draws = _draws(seed, size, images)
    kept = next(draws) if fixed else None
    bulk = torch.linspace(0, 0.05, size)

    def matvec(vector: Tensor) -> Tensor:
        rows, weights = kept or next(draws)
        return bulk * vector + rows.T @ (weights * (rows @ vector))

    return matvec


def _draws(seed: int, size: int, images: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Unit rows [images, n] and weights [images], anew each time."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        rows = torch.randn(images, size, generator=generator)
        weights = torch.exp(2.5 * torch.randn(images, generator=generator)) / images
        yield rows / rows.norm(dim=1, keepdim=True), weights


class ByStep(NamedTuple):
    """The released recurrence after every step, and the operators it saw.

    Attributes:
        ritz: Ritz values after 1, 2, … K steps, ascending. [K] of [k]
        alpha: Diagonal of the tridiagonal matrix. [K]
        beta: What stands beside it. [K]
        truth: Eigenvalues of the operator in each step, ascending. [K, n]
    """

    ritz: list[list[float]]
    alpha: list[float]
    beta: list[float]
    truth: Tensor


def recurrence_by_step(
    seed: int = 0, steps: int = 30, size: int = 400, *, fixed: bool = False
) -> ByStep:
    """The released recurrence on ``changing`` step by step, and the true spectra."""
    start = starts(size, seed, 0).float()
    state = released(changing(seed, size, fixed=fixed), start, steps)
    parts = (
        KrylovState(state.basis[: k + 1], state.alpha[:k], state.beta[:k])
        for k in range(1, steps + 1)
    )
    draws = _draws(seed, size, 50)
    seen = (
        itertools.repeat(next(draws), steps)
        if fixed
        else itertools.islice(draws, steps)
    )
    bulk = torch.linspace(0, 0.05, size).diag()
    truth = [torch.linalg.eigvalsh(bulk + rows.T * w @ rows) for rows, w in seen]
    return ByStep(
        [part.ritz()[0].tolist() for part in parts],
        state.alpha,
        state.beta,
        torch.stack(truth),
    )


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


def mean_weight(class_counts: Sequence[int], beta: float = 0.9999) -> float:
    """Weight of a training image under DRW, mean over all images.

    The released loss divides by the summed weights of the batch, so the switch to
    weights multiplies the gradient by no fixed factor. Divided by the number of images
    instead, loss and gradient would be about this many times as large.
    """
    weights = losses.class_weights(class_counts, beta, torch.float64)
    counts = torch.tensor(class_counts, dtype=torch.float64)
    return float(weights @ counts / counts.sum())


def class_shares(class_counts: Sequence[int], beta: float = 0.9999) -> Tensor:
    """Share of each class in the summed weights. [C]"""
    weights = losses.class_weights(class_counts, beta, torch.float64)
    shares = weights * torch.tensor(class_counts, dtype=torch.float64)
    return shares / shares.sum()


def second_pass_share(momentum: float = 0.1) -> float:
    """Share of SAM's second pass in the running statistics of batch norm.

    Measured on a layer: the first passes see zeros, the second ones see ones.
    """
    layer = nn.BatchNorm1d(1, momentum=momentum).double()
    first, second = torch.zeros(4, 1).double(), torch.ones(4, 1).double()
    for _ in range(math.ceil(60 / momentum)):
        layer(first)
        layer(second)
    assert layer.running_mean is not None
    return float(layer.running_mean)


def weight_on_one_class(weight: float, reduction: str = "weighted") -> float:
    """Factor by which a class weight scales the Hessian of that class's loss.

    On a linear classifier of random inputs, float64, by the exact Hessian.

    Args:
        weight: Of the class.
        reduction: ``weighted`` as released (divide by the summed weights), or ``plain``
            (divide by the number of images).
    """
    draw = torch.Generator().manual_seed(0)
    images = torch.randn(12, 3, generator=draw, dtype=torch.float64)
    labels = torch.full((12,), 2)
    start = torch.randn(4, 3, generator=draw, dtype=torch.float64)
    even = torch.ones(4, dtype=torch.float64)
    odd = even.index_fill(0, labels[:1], weight)

    def curvature(weights: Tensor) -> Tensor:
        def loss(matrix: Tensor) -> Tensor:
            logits = images @ matrix.T
            if reduction == "weighted":
                return nn.functional.cross_entropy(logits, labels, weights)
            every = nn.functional.cross_entropy(
                logits, labels, weights, reduction="none"
            )
            return every.mean()

        return torch.as_tensor(hessian(loss, start))

    return float(curvature(odd).norm() / curvature(even).norm())


def cosine_floor(num_classes: int, scale: float = 1.0) -> float:
    """Least cross-entropy of logits that are cosines times ``scale``, nats.

    The released analysis measures LDAM networks under plain cross-entropy of the bare
    cosines, which no network can bring near zero.
    """
    return math.log1p((num_classes - 1) * math.exp(-2 * scale))


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
            "sgd_edge": float(saddles.stable_curvature(eta, 0.0, momentum)),
            "sam_edge": float(saddles.stable_curvature(eta, rho, momentum, grad_norm)),
        }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("epochs")


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
