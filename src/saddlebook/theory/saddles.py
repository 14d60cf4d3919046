"""Gives Theorem 1 on a saddle in closed form: what SAM does along negative curvature.

Legend: λ = ``lambda_min`` of the loss SAM ascends, v its eigenvector, y = ⟨v, w⟩ the
place along v (the saddle is y = 0), η = ``step_size``, β = ``momentum``, ‖g‖ =
``grad_norm``. SAM steps with the gradient at w + ρ·g (plain) or w + ρ·g/‖g‖
(normalised, the one in use). Everything hangs on one number, the scaled radius
a = ρ·|λ|, or ρ·|λ|/‖g‖ when normalised. Arguments are numbers or arrays that broadcast;
``landscapes.py`` measures what is predicted here.

References:
    Rangwani et al. 2022, Theorem 1; its assumption, correlated negative curvature:
    Daneshmand et al. 2018. Reversal of the drift: also Compagnoni et al. 2023 (SAM is
    attracted to saddles) and Kim et al. 2023. The rest is derived where it stands.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from saddlebook.errors import UsageError

Array = NDArray[np.float64]
REGIMES = ("unchanged", "damped", "annihilated", "reversed", "amplified")


def finite(name: str, value: ArrayLike, low: float = -np.inf) -> Array:
    """Return ``value`` as float64 if all of it is finite and at least ``low``."""
    array = np.asarray(value, dtype=np.float64)
    if not np.isfinite(array).all() or (array < low).any():
        bound = "" if low == -np.inf else f" and at least {low:g}"
        raise UsageError(f"{name} {value!r} must be finite{bound}")
    return array


def drift_factor(
    rho: ArrayLike, lambda_min: ArrayLike, grad_norm: ArrayLike | None = None
) -> Any:
    """Mean step of SAM along v over that of SGD: 1 + ρ·λ.

    With H·v = λ·v the gradient at w + ρ·g is g + ρ·H·g on a quadratic (elsewhere to
    first order in ρ), and ⟨v, (I + ρ·H)·g⟩ = (1 + ρ·λ)·⟨v, g⟩ because H is symmetric.
    Negative means that the step points to the saddle: for λ < 0 that is a > 1.

    Args:
        rho: Radius ρ, at least 0.
        lambda_min: λ; below 0 at a saddle.
        grad_norm: ‖g‖ for normalised SAM, where ρ becomes ρ/‖g‖; None is plain SAM.

    Raises:
        UsageError: A negative or non-finite argument (λ may be negative), or a zero
            ``grad_norm``: there SGD and SAM both stand still and no factor exists.
    """
    rho, lambda_min = finite("rho", rho, 0), finite("lambda_min", lambda_min)
    if grad_norm is None:
        return 1 + rho * lambda_min
    grad_norm = finite("grad_norm", grad_norm, 0)
    if (grad_norm == 0).any():
        raise UsageError(
            "grad_norm 0: at a stationary point neither SGD nor SAM moves, so the "
            "factor is not defined; pass the norm of a mini-batch gradient"
        )
    return 1 + rho * lambda_min / grad_norm


def amplification(
    rho: ArrayLike, lambda_min: ArrayLike, grad_norm: ArrayLike | None = None
) -> Any:
    """Theorem 1: E⟨v, g_SAM⟩² over E⟨v, g⟩², which is (1 + ρ·λ)².

    The square of ``drift_factor``, in expectation. Exact on a quadratic with additive
    noise when both passes of SAM see the same mini-batch. Above 1 for λ < 0 only if
    ρ·|λ| > 2, where the drift has already turned round.

    Args:
        rho: Radius ρ, at least 0.
        lambda_min: λ.
        grad_norm: ‖g‖ for normalised SAM; None is plain SAM.

    Raises:
        UsageError: As ``drift_factor``; it is a ``ValueError``.
    """
    return drift_factor(rho, lambda_min, grad_norm) ** 2


def regime(a: float) -> str:
    """Name what a scaled radius a does to the component along v.

    ``damped`` (0 < a < 1): away from the saddle, slower than SGD. ``annihilated``
    (a = 1). ``reversed`` (1 < a ≤ 2): to the saddle, no larger than SGD's.
    ``amplified`` (a > 2): larger than SGD's, the theorem's regime, and still to the
    saddle.
    """
    a = float(finite("a", a, 0))
    index = [a <= 0, a < 1, a == 1, a <= 2, True].index(True)
    return REGIMES[index]


def second_moment(
    rho: ArrayLike,
    lambda_min: ArrayLike,
    y: ArrayLike,
    sigma: ArrayLike,
    curvature_sigma: ArrayLike = 0.0,
    fresh: bool = False,
) -> Any:
    """E⟨v, g_SAM⟩² of plain SAM on a noisy quadratic, exactly; ρ = 0 is SGD.

    A sample's gradient along v is (λ + τζ)·y + σξ with ζ, ξ ~ N(0, 1), independent.
    Same batch: (1 + ρ(λ + τζ))·((λ + τζ)y + σξ); with E ζ² = 1 and E ζ⁴ = 3 its second
    moment is (c² + ρ²τ²)σ² + (c²λ² + (cτ + ρτλ)² + 2cλρτ² + 3ρ²τ⁴)y², c = 1 + ρλ. For
    τ = 0 that is Theorem 1. τ > 0 adds ρ²τ²: what the theorem drops by writing the
    mean Hessian for the sample's. Fresh batch in the second pass:
    (λ² + τ²)((c² + ρ²τ²)y² + ρ²σ²) + σ², never below σ².

    Args:
        rho: Radius ρ, at least 0.
        lambda_min: λ.
        y: Place along v.
        sigma: σ, standard deviation of the additive noise along v, at least 0.
        curvature_sigma: τ, standard deviation of a sample's curvature, at least 0.
        fresh: Whether the second pass draws its own batch.
    """
    rho, lam = finite("rho", rho, 0), finite("lambda_min", lambda_min)
    y, sigma = finite("y", y), finite("sigma", sigma, 0)
    tau = finite("curvature_sigma", curvature_sigma, 0)
    c, spread = 1 + rho * lam, rho * tau
    if fresh:
        climbed = (c**2 + spread**2) * y**2 + (rho * sigma) ** 2
        return (lam**2 + tau**2) * climbed + sigma**2
    mean = (c * lam) ** 2 + (c * tau + spread * lam) ** 2
    mean = mean + 2 * c * lam * spread * tau + 3 * (spread * tau) ** 2
    return (c**2 + spread**2) * sigma**2 + mean * y**2


def mean_step(
    rho: ArrayLike, lambda_min: ArrayLike, curvature_sigma: ArrayLike = 0.0
) -> Any:
    """``drift_factor`` of plain SAM when samples differ in curvature, same batch.

    The mean over ζ of (1 + ρ(λ + τζ))·(λ + τζ) is λ(1 + ρλ) + ρτ²; over λ that is
    1 − a·(1 + τ²/λ²) for λ < 0: the drift turns before a = 1. A fresh batch gives the
    plain factor.
    """
    rho, lam = finite("rho", rho, 0), finite("lambda_min", lambda_min)
    spread = finite("curvature_sigma", curvature_sigma, 0)
    return drift_factor(rho, lam) + rho * spread**2 / lam


def noisy_radius(sigma: ArrayLike, lambda_min: ArrayLike, dim: int = 2) -> Any:
    """ρ above which the mean step of normalised SAM at the saddle turns to it.

    There g = σξ in ``dim`` directions, and noise blunts the trap: to first order in y
    the factor is 1 + ρλ·E[(1 − u²)/‖g‖], u the share of v in g/‖g‖. With E u² = 1/d
    and E[1/‖g‖] = Γ((d − 1)/2)/(√2·σ·Γ(d/2)) the turn comes at
    ρ = σ·√2·Γ(d/2)/(|λ|·(1 − 1/d)·Γ((d − 1)/2)): 1.6·σ/|λ| in the plane, σ√d/|λ| in
    many dimensions.

    Raises:
        UsageError: ``dim`` below 2.
    """
    if dim < 2:
        raise UsageError(f"dim {dim} must be at least 2")
    ratio = math.exp(math.lgamma(dim / 2) - math.lgamma((dim - 1) / 2))
    lam = np.abs(finite("lambda_min", lambda_min))
    return finite("sigma", sigma, 0) * math.sqrt(2) * ratio / (1 - 1 / dim) / lam


def roots(k: ArrayLike, momentum: ArrayLike = 0.0) -> tuple[Any, Any]:
    """Both multipliers of y_{t+1} = y_t + β(y_t − y_{t−1}) + k·y_t, larger one first.

    Roots of z² − (1 + β + k)z + β; k = η·|λ|·(1 − a) for plain SAM. Complex roots have
    modulus √β < 1.
    """
    k, beta = finite("k", k), finite("momentum", momentum, 0)
    half = (1 + beta + k) / 2
    root = np.sqrt((half**2 - beta).astype(complex))
    first = np.where(half >= 0, half + root, half - root)
    return first, beta / first


def escape_time(
    start: ArrayLike,
    step_size: ArrayLike,
    lambda_min: ArrayLike,
    rho: ArrayLike = 0.0,
    normalised: bool = False,
    momentum: ArrayLike = 0.0,
    exit: float = 1.0,
) -> Any:
    """Steps until |y| > ``exit`` on a quadratic without noise, started at rest.

    y obeys the recursion of ``roots``: plain SAM with k = η|λ|(1 − a) about the
    saddle, normalised SAM (in one dimension) with k = η|λ| about y = ρ, the edge of
    its trap. Hence y_t = A·z₁^t + B·z₂^t with A = e₀·z₁(1 − z₂)/(z₁ − z₂), where e₀ is
    the start's distance from that centre, and z₁^t must bring A to the exit. Exact to
    the step without momentum; with it, B·z₂^t is taken as gone.

    Args:
        start: y_0, beyond 0 and within ``exit``; its sign does not matter.
        step_size: η.
        lambda_min: λ < 0.
        rho: Radius ρ; 0 is SGD.
        normalised: Plain or normalised SAM.
        momentum: β.
        exit: Where the walker counts as escaped.

    Returns:
        Whole steps; inf where it never leaves; nan for normalised SAM that starts in
        its trap and overshoots (see ``overshoot_threshold``): no closed form.
    """
    rho, lam = finite("rho", rho, 0), finite("lambda_min", lambda_min)
    rate = finite("step_size", step_size, 0) * -lam
    if (rate < 0).any():
        raise UsageError("lambda_min must be below 0: there is nothing to escape")
    centre = rho if normalised else np.zeros(())
    z1, z2 = roots(rate if normalised else rate * (1 + rho * lam), momentum)
    begin = np.abs(finite("start", start)) - centre
    with np.errstate(divide="ignore", invalid="ignore"):
        scale = np.abs(begin * z1 * (1 - z2) / (z1 - z2))
        steps = np.log((exit - centre) / scale) / np.log(np.abs(z1))
        steps = np.floor(steps) + 1
    trapped = (np.abs(z1) <= 1 + 1e-12) | (begin == 0)
    if normalised:
        trapped = trapped | (begin < 0)
        overshoots = (begin < 0) & (rate > overshoot_threshold(momentum))
        return np.where(overshoots, np.nan, np.where(trapped, np.inf, steps))
    return np.where(trapped, np.inf, steps)


def attracting_radius(
    rho: ArrayLike, lambda_min: ArrayLike, normalised: bool = True
) -> Any:
    """Distance from the saddle along v below which the mean step points to it.

    Normalised: the step reverses where ‖g‖ < ρ·|λ|; along v, ‖g‖ = |λ|·|y|, so the
    radius is ρ whatever the curvature. Every ρ > 0 traps. Plain: a does not depend on
    the place, so the radius is infinite for ρ·|λ| > 1 and 0 otherwise.
    """
    rho, lam = finite("rho", rho, 0), finite("lambda_min", lambda_min)
    if normalised:
        return np.where(lam < 0, rho, 0.0)
    return np.where(rho * -lam > 1, np.inf, 0.0)


def overshoot_threshold(momentum: ArrayLike = 0.0) -> Any:
    """η·|λ| above which normalised SAM jumps out of its trap: 1 − β.

    In units of ρ and with k = η|λ|, y_{t+1} = y_t + β(y_t − y_{t−1}) + k(y_t − sign
    y_t). With z₁ > 1 > z₂ from ``roots(k, β)``, p_t = (y_t − z₂·y_{t−1})/(1 − z₂) obeys
    p_{t+1} = z₁·p_t − (z₁ − 1)·sign y_t, so a walker is lost to the trap exactly when
    |p| > 1. One that leaves the edge y = 1 slowly has y_{t−1} = 1 + (y_t − 1)/z₁ and
    crosses zero no lower than y_t = −(z₁ − 1), where p = (1 − z₁)/(1 − z₂) < −1 if
    z₁ + z₂ = 1 + β + k > 2. Above k = 1 − β starts near the edge escape; that none
    does below, at later crossings either, is measured in the tests, not proved.
    """
    return 1 - finite("momentum", momentum, 0)


def overshoot_radius(
    step_size: ArrayLike, lambda_min: ArrayLike, momentum: ArrayLike = 0.0
) -> Any:
    """ρ above which plain SAM leaves the saddle by growing oscillation.

    The larger root of ``roots`` passes −1 at k = −2(1 + β), that is at
    ρ·|λ| = 1 + 2(1 + β)/(η·|λ|). Between 1/|λ| and this radius plain SAM is trapped.
    """
    lam = np.abs(finite("lambda_min", lambda_min))
    beta = finite("momentum", momentum, 0)
    return (1 + 2 * (1 + beta) / (finite("step_size", step_size, 0) * lam)) / lam


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
        finite("rho", rho, 0),
        finite("step_size", step_size, 0),
    )
    if grad_norm is not None:
        rho = rho / finite("grad_norm", grad_norm, np.finfo(float).tiny)
    edge = 2 * (1 + finite("momentum", momentum, 0)) / step_size
    return 2 * edge / (1 + np.sqrt(1 + 4 * rho * edge))
