"""Theorem 1: closed forms against other closed forms and against walkers."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from saddlebook.errors import NumericalError, UsageError
from saddlebook.theory import known, landscapes
from saddlebook.theory import saddles as s
from saddlebook.theory.landscapes import (
    Landscape,
    Rule,
    double_well,
    measure_gradient,
    saddle,
    walk,
)

GRID = [0.1, 0.25, 0.5, 0.9, 1.0, 1.1, 1.5, 2.0, 2.5, 3.0, 4.0]
NOISY = replace(saddle(), sigma=0.1)
HERE = (0.0, 0.05)


# --- closed forms


def test_amplification_is_the_quadratic_form_of_the_theorem() -> None:
    """⟨v, (I + ρH)g⟩² over ⟨v, g⟩² on a dense random symmetric matrix."""
    rng = np.random.default_rng(0)
    raw = rng.standard_normal((30, 30))
    h = (raw + raw.T) / 2
    values, vectors = np.linalg.eigh(h)
    g = rng.standard_normal(30)
    for rho in (0.0, 0.05, 0.5, 3.0):
        climbed = vectors[:, 0] @ (g + rho * h @ g)
        ratio = (climbed / (vectors[:, 0] @ g)) ** 2
        assert s.amplification(rho, values[0]) == pytest.approx(ratio, rel=1e-12)
        unit = vectors[:, 0] @ (g + rho / np.linalg.norm(g) * h @ g)
        ratio = (unit / (vectors[:, 0] @ g)) ** 2
        norm = np.linalg.norm(g)
        assert s.amplification(rho, values[0], norm) == pytest.approx(ratio, rel=1e-12)


@given(st.floats(0, 1e3), st.floats(-1e3, 0), st.floats(1e-3, 1e3))
def test_the_factor_exceeds_one_only_where_the_drift_has_turned(
    rho: float, lambda_min: float, norm: float
) -> None:
    a = rho * -lambda_min / norm
    if s.amplification(rho, lambda_min, norm) > 1 + 1e-9:
        assert a > 2
        assert s.drift_factor(rho, lambda_min, norm) < -1 + 1e-9


@pytest.mark.parametrize(
    ("a", "name"),
    [
        (0.0, "unchanged"),
        (1e-9, "damped"),
        (0.999, "damped"),
        (1.0, "annihilated"),
        (1.001, "reversed"),
        (2.0, "reversed"),
        (2.001, "amplified"),
        (40.0, "amplified"),
    ],
)
def test_regimes_change_at_one_and_two(a: float, name: str) -> None:
    assert s.regime(a) == name


def test_moments_agree_with_gauss_hermite_quadrature() -> None:
    """The polynomial moments of the docstring against an exact quadrature."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(8)
    weights = weights / weights.sum()
    lam, y, sigma, tau = -1.7, 0.3, 0.2, 0.4
    zeta, xi, zeta2, xi2 = np.meshgrid(*[nodes] * 4, indexing="ij")
    mass = np.einsum("i,j,k,l->ijkl", *[weights] * 4)
    for rho in GRID:
        g = (lam + tau * zeta) * y + sigma * xi
        same = (lam + tau * zeta) * (y + rho * g) + sigma * xi
        other = (lam + tau * zeta2) * (y + rho * g) + sigma * xi2
        for fresh, again in ((False, same), (True, other)):
            exact = (mass * again**2).sum()
            closed = s.second_moment(rho, lam, y, sigma, tau, fresh)
            assert closed == pytest.approx(exact, rel=1e-12)


def test_theorem_1_is_the_moment_without_sample_curvature() -> None:
    for rho in GRID:
        ratio = s.second_moment(rho, -1.0, 0.05, 0.1) / (0.0025 + 0.01)
        assert ratio == pytest.approx(s.amplification(rho, -1.0), rel=1e-12, abs=1e-15)


def test_a_fresh_second_batch_never_shows_less_than_the_noise() -> None:
    rho = np.linspace(0, 4, 81)
    assert (s.second_moment(rho, -1.0, 0.0, 0.1, fresh=True) >= 0.01).all()
    assert s.second_moment(1.0, -1.0, 0.0, 0.1) == 0


def expected_square(steps, start, eta, sigma, rho):
    """E y² of plain SAM on λ = −1, y' = (1 + ηc)·y − ηc·σ·ξ with c = 1 − ρ."""
    c, square = 1 - rho, start**2
    for _ in range(steps):
        square = (1 + eta * c) ** 2 * square + (eta * c * sigma) ** 2
    return square


def test_the_edges_are_where_the_multiplier_leaves_the_unit_circle() -> None:
    for beta in (0.0, 0.5, 0.9):
        rho = s.overshoot_radius(0.05, -2.0, beta)
        k = 0.05 * 2.0 * (1 - rho * 2.0)
        assert abs(s.roots(k, beta)[0]) == pytest.approx(1, abs=1e-12)
        for norm in (None, 0.7):
            lam = s.stable_curvature(0.1, 0.5, beta, norm)
            slope = lam * (1 + 0.5 / (norm or 1.0) * lam)
            assert abs(s.roots(-0.1 * slope, beta)[0]) == pytest.approx(1, abs=1e-12)
    assert s.stable_curvature(0.1) == pytest.approx(20)


@pytest.mark.parametrize("beta", [0.0, 0.9])
@pytest.mark.parametrize("rho", [0.0, 0.3])
def test_heavy_ball_sam_on_a_quadratic_turns_unstable_at_the_edge(beta, rho) -> None:
    """SAM's own step, ‖g‖ from another direction: x stays at 0.99, leaves at 1.01."""
    eta, norm = 0.1, 0.7
    for factor, stays in ((0.99, True), (1.01, False)):
        lam = factor * s.stable_curvature(eta, rho, beta, norm)
        place, speed = np.array([1e-9, 0.0]), np.zeros(2)

        def slope(at, lam=lam):  # of λx²/2 + ‖g‖·z
            return np.array([lam * at[0], norm])

        for _ in range(2000):
            g = slope(place)
            climbed = slope(place + rho * g / np.linalg.norm(g))
            speed = beta * speed + climbed
            place = place - eta * speed
            if abs(place[0]) > 1e-3:
                break
        assert (abs(place[0]) < 1e-9) == stays


# --- against walkers


@pytest.mark.parametrize("fresh", [False, True])
@pytest.mark.parametrize("tau", [0.0, 0.3])
def test_measured_second_moments_lie_within_three_standard_errors(
    fresh: bool, tau: float
) -> None:
    land = replace(NOISY, curvature_sigma=tau)
    for index, rho in enumerate(GRID):
        rule = Rule(0.05, rho, normalised=False, fresh=fresh)
        seen = measure_gradient(land, HERE, rule, draws=50_000, seed=index)
        told = s.second_moment(rho, -1.0, 0.05, 0.1, tau, fresh)
        assert abs(seen.second_moment - told) <= 3 * seen.second_moment_error + 1e-15


def test_normalised_sam_in_many_dimensions_follows_the_factor() -> None:
    """‖g‖ is nearly the same for every batch, so ρ/‖g‖ plays the part of ρ."""
    land = replace(saddle(dim=400), sigma=0.05)
    sgd = 0.05**2
    for index, rho in enumerate(GRID):
        seen = measure_gradient(
            land, np.zeros(400), Rule(0.1, rho), draws=2_000, seed=index
        )
        told = s.amplification(rho, -1.0, seen.grad_norm) * sgd
        # 1/d: ‖g‖ still varies by about 1/√(2d), which adds (a/√(2d))² to the factor
        leftover = (rho / seen.grad_norm) ** 2 / 400 * 3 * sgd
        assert abs(seen.second_moment - told) <= 3 * seen.second_moment_error + leftover


def test_the_drift_turns_round_at_one() -> None:
    rules = [Rule(0.05, a, normalised=False) for a in (0, 0.5, 0.9, 1.1, 1.5, 3.0)]
    seen = [measure_gradient(NOISY, HERE, rule, draws=400_000) for rule in rules]
    for rule, one in zip(rules, seen, strict=True):
        told = 0.05 * s.drift_factor(rule.rho, -1.0)
        assert abs(one.drift - told) <= 3 * one.drift_error
    away, back = seen[:3], seen[3:]
    assert all(one.drift > 3 * one.drift_error for one in away)
    assert all(one.drift < -3 * one.drift_error for one in back)
    stopped = measure_gradient(
        NOISY, HERE, Rule(0.05, 1.0, normalised=False), draws=1000
    )
    assert stopped.drift == pytest.approx(0, abs=1e-15)


def test_curvature_that_differs_between_samples_turns_the_drift_earlier() -> None:
    land = replace(NOISY, curvature_sigma=0.5)
    edge = 1 / (1 + 0.5**2)
    assert s.mean_step(edge, -1.0, 0.5) == pytest.approx(0, abs=1e-12)
    for fresh, told in ((False, 0.0), (True, 1 - edge)):
        rule = Rule(0.05, edge, normalised=False, fresh=fresh)
        one = measure_gradient(land, HERE, rule, draws=400_000)
        assert abs(one.drift / 0.05 - told) <= 3 * one.drift_error / 0.05


@pytest.mark.parametrize("dim", [2, 3, 50])
def test_noise_blunts_the_trap_up_to_the_noisy_radius(dim: int) -> None:
    land, y = replace(saddle(-2.0, dim=dim), sigma=0.1), 0.005
    place = (0.0,) * (dim - 1) + (y,)
    edge = s.noisy_radius(0.1, -2.0, dim)
    draws = 1_000_000 // dim
    for share in (0.75, 1.0, 1.25):
        one = measure_gradient(
            land, place, Rule(0.1, share * edge), draws=draws, seed=1
        )
        told = (1 - share) * 2.0 * y
        assert abs(one.drift - told) <= 3 * one.drift_error + 0.02 * y
        assert share == 1 or abs(one.drift) > 5 * one.drift_error


def test_normalised_drift_turns_at_the_attracting_radius() -> None:
    land, rho = saddle(lambda_min=-3.0), 0.2
    edge = s.attracting_radius(rho, -3.0)
    for y, sign in ((0.9 * edge, -1), (1.1 * edge, 1)):
        one = measure_gradient(land, (0.0, y), Rule(0.05, rho), draws=1)
        assert np.sign(one.drift) == sign
        assert (one.grad_norm < rho * 3.0) == (sign < 0)


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
def test_plain_escape_times_are_exact(momentum: float) -> None:
    rho = np.array([0, 0.25, 0.5, 0.9, 0.99, 1.0, 1.1, 5.0, 30.0, 45.0, 85.0])
    rule = Rule(0.05, rho, normalised=False, momentum=momentum)
    seen = walk(saddle(), (0.01, 0.001), rule, steps=15_000).escape_time
    told = s.escape_time(0.001, 0.05, -1.0, rho, momentum=momentum)
    np.testing.assert_array_equal(seen, told)
    assert np.isinf(seen[5:9]).all()
    assert np.isfinite(seen[:5]).all()
    assert np.isfinite(seen[10])


def test_plain_escape_times_are_those_of_the_literature_note() -> None:
    told = s.escape_time(0.001, 0.05, -1.0, [0, 0.25, 0.5, 0.9, 1.1, 45])
    assert told.tolist() == [142, 188, 280, 1386, np.inf, 38]


@pytest.mark.parametrize("momentum", [0.0, 0.5])
def test_normalised_escape_times_are_exact_in_one_dimension(momentum: float) -> None:
    rho = np.array([0.05, 0.1, 0.1999, 0.2001, 0.3, 0.9])
    rule = Rule(0.05, rho, momentum=momentum)
    land = Landscape((-2.0,))
    seen = walk(land, (0.2,), rule, steps=2_000).escape_time
    told = s.escape_time(0.2, 0.05, -2.0, rho, normalised=True, momentum=momentum)
    np.testing.assert_array_equal(seen, told)
    assert np.isinf(seen[3:]).all()


@pytest.mark.parametrize("momentum", [0.0, 0.3, 0.5, 0.9])
def test_normalised_sam_leaves_its_trap_only_above_the_overshoot_threshold(
    momentum: float,
) -> None:
    starts = np.linspace(0.001, 0.999, 300)[None]
    edge = s.overshoot_threshold(momentum)
    below, above = (
        walk(Landscape((-1.0,)), starts, Rule(k, 1.0, momentum=momentum), exit=3.0)
        for k in (0.99 * edge, 1.1 * edge)
    )
    assert below.escaped == 0
    assert above.escaped > 0
    told = s.escape_time(0.5, 1.1 * edge, -1.0, 1.0, True, momentum, exit=3.0)
    assert np.isnan(told)


def test_every_radius_traps_a_quiet_walker_on_the_double_well() -> None:
    rho = np.array([0.0, 0.05, 0.2, 0.5, 1.0])
    land = double_well()
    seen = walk(land, (0.01, 0.001), Rule(0.05, rho), steps=4_000, exit=0.9)
    assert np.isfinite(seen.escape_time).tolist() == [True] + [False] * 4


def test_noise_frees_small_radii_from_the_double_well_and_not_large_ones() -> None:
    land = replace(double_well(), sigma=0.3)
    rho = np.repeat([0.2, 1.0], 100)
    seen = walk(land, (0.01, 0.001), Rule(0.05, rho), steps=4_000, exit=0.9)
    assert np.isfinite(seen.escape_time[:100]).mean() > 0.97
    assert np.isfinite(seen.escape_time[100:]).mean() < 0.03


def test_the_spread_of_walkers_is_the_expected_square() -> None:
    for rho in (0.0, 0.5, 1.5):
        rule = Rule(0.05, rho, normalised=False)
        seen = walk(NOISY, HERE, rule, steps=40, walkers=20_000, exit=None, seed=2)
        squares = seen.position[1] ** 2
        told = expected_square(40, 0.05, 0.05, 0.1, rho)
        error = squares.std() / np.sqrt(squares.size)
        assert abs(squares.mean() - told) <= 3 * error


def test_noisy_escape_times_follow_the_law_of_the_grown_noise() -> None:
    """y_t·m^−t settles to N(0, s²), so P(T ≤ t) = P(|N(0, s²)|·m^t > exit)."""
    eta, sigma = 0.02, 1e-4
    land = replace(saddle(), sigma=sigma)
    for rho in (0.0, 0.5):
        rule = Rule(eta, rho, normalised=False)
        seen = walk(land, (0.0, 0.0), rule, steps=5_000, walkers=4_000, seed=3)
        grown = expected_square(3_000, 0.0, eta, sigma, rho) ** 0.5
        rate = np.log(abs(s.roots(eta * s.drift_factor(rho, -1.0))[0]))
        # median of |N(0, 1)| is 0.67449
        told = 3_000 - np.log(0.67448975 * grown) / rate
        # density of ln|N| at its median: 2·φ(0.67449)·0.67449 = 0.42868
        error = 0.5 / np.sqrt(4_000) / 0.42868 / rate
        assert abs(np.median(seen.escape_time) - 0.5 - told) <= 3 * error + 0.5


# --- the chapter's tables


def test_escape_maps_agree_with_the_closed_forms_to_the_step() -> None:
    for normalised in (False, True):
        for momentum in (0.0, 0.9):
            one = landscapes.escape_map(
                normalised=normalised, momentum=momentum, cells=20, steps=500
            )
            assert one.agreement == 100
            assert np.isinf(one.times).any()
            assert np.isfinite(one.times).any()


def test_a_larger_radius_never_helps_to_reach_a_minimum() -> None:
    table = landscapes.arrivals((0.0, 0.1, 0.5), (0.0, 0.1), runs=20)
    for _, part in table.groupby("sigma"):
        assert part["arrived"].is_monotonic_decreasing
        assert part["arrived"].iloc[0] == 100
        assert part["arrived"].iloc[-1] == 0


@pytest.mark.parametrize("kind", ["same", "fresh", "tau"])
def test_the_table_of_factors_lies_within_its_errors(kind: str) -> None:
    tau = 0.3 if kind == "tau" else 0.0
    table = landscapes.moments(fresh=kind == "fresh", curvature_sigma=tau, draws=20_000)
    assert landscapes.worst(table) < 3
    off = (table["drift"] - table["predicted_drift"]).abs()
    assert (off <= 3 * table["drift_error"] + 1e-12).all()
    assert set(table["regime"]) == set(s.REGIMES[1:])


def test_the_schedule_overshoots_before_the_drop_only() -> None:
    phases = known.schedule(-23.0, 0.5)
    assert phases["overshoots"].tolist() == [True, False, False]
    assert phases["step_size"].tolist() == pytest.approx([0.1, 1e-3, 1e-5])
    assert (phases["sam_edge"] < phases["sgd_edge"]).all()
    growth = 10 ** (1 / phases["sgd_steps"].iloc[1])
    k, beta = 23e-3, 0.9
    assert growth**2 - (1 + beta + k) * growth + beta == pytest.approx(0, abs=1e-12)


# --- invariances


def _rotation(dim: int) -> np.ndarray:
    q, _ = np.linalg.qr(np.random.default_rng(1).standard_normal((dim, dim)))
    return q


@pytest.mark.parametrize("normalised", [False, True])
def test_walks_turn_with_the_landscape(normalised: bool) -> None:
    plain = Landscape((1.0, 0.5, -1.0), 0.7, sigma=0.05, curvature_sigma=0.1)
    q = _rotation(3)
    turned = replace(plain, basis=q)
    rule, start = Rule(0.05, 0.3, normalised, 0.5, True), np.full((3, 50), 0.1)
    one = walk(plain, start, rule, steps=100, seed=4)
    two = walk(turned, q @ start, rule, steps=100, seed=4)
    np.testing.assert_allclose(q @ one.position, two.position, rtol=0, atol=1e-12)
    np.testing.assert_array_equal(one.escape_time, two.escape_time)
    np.testing.assert_allclose(plain.loss(start), turned.loss(q @ start), rtol=1e-12)


@pytest.mark.parametrize("normalised", [False, True])
def test_walks_scale_with_the_landscape(normalised: bool) -> None:
    """w → 3w scales ρ only when normalised; H → 2H, η → η/2 scales ρ only if not."""
    one = replace(double_well(), sigma=0.05)
    rule, start = Rule(0.05, 0.3, normalised, 0.5), np.full((2, 50), 0.1)
    base = walk(one, start, rule, steps=100, exit=None, seed=5)
    wide = replace(one, sigma=0.15, quartic=1 / 9)
    wider = replace(rule, rho=0.9 if normalised else 0.3)
    seen = walk(wide, 3 * start, wider, steps=100, exit=None, seed=5)
    # absolute: the floor 1e-12 under ‖g‖ does not scale
    np.testing.assert_allclose(seen.position, 3 * base.position, rtol=0, atol=1e-9)
    steep = Landscape((2.0, -2.0), 2.0, sigma=0.1)
    slow = replace(rule, step_size=0.025, rho=0.3 if normalised else 0.15)
    seen = walk(steep, start, slow, steps=100, exit=None, seed=5)
    np.testing.assert_allclose(seen.position, base.position, rtol=0, atol=1e-9)


def test_the_gradient_is_the_derivative_of_the_loss() -> None:
    land = Landscape((1.0, 0.5, -1.0), 0.7, basis=_rotation(3))
    w = np.random.default_rng(2).standard_normal((3, 5))
    quiet = land.batch(np.random.default_rng(0), 5)
    for i in range(3):
        shift = np.zeros((3, 1))
        shift[i] = 1e-6
        slope = (land.loss(w + shift) - land.loss(w - shift)) / 2e-6
        np.testing.assert_allclose(land.gradient(w, quiet)[i], slope, rtol=1e-7)


def test_sam_is_the_optimizer_of_the_library() -> None:
    """Fifty steps of the toy against optim.SAM around torch's SGD."""
    torch = pytest.importorskip("torch")
    from saddlebook.optim import SAM

    w = torch.tensor([0.3, 0.2], dtype=torch.float64, requires_grad=True)
    sam = SAM([w], torch.optim.SGD, rho=0.1, lr=0.05, momentum=0.9)

    def closure():
        sam.zero_grad()
        loss = (w[0] ** 2 - w[1] ** 2) / 2 + w[1] ** 4 / 4
        loss.backward()
        return loss

    for _ in range(50):
        sam.step(closure)
    rule = Rule(0.05, 0.1, momentum=0.9)
    seen = walk(double_well(), (0.3, 0.2), rule, steps=50, exit=None)
    np.testing.assert_allclose(seen.position[:, 0], w.detach(), rtol=1e-9)


# --- bad input and limits


@pytest.mark.parametrize(
    ("rho", "lambda_min", "norm"),
    [
        (-0.1, -1.0, None),
        (np.nan, -1.0, None),
        (np.inf, -1.0, None),
        (0.1, np.nan, None),
        (0.1, -np.inf, None),
        (0.1, -1.0, -1.0),
        (0.1, -1.0, np.inf),
        (0.1, -1.0, 0.0),
        ([0.1, -0.1], -1.0, None),
    ],
)
def test_bad_radii_curvatures_and_norms_are_refused(rho, lambda_min, norm) -> None:
    with pytest.raises(UsageError):
        s.amplification(rho, lambda_min, norm)
    assert issubclass(UsageError, ValueError)


def test_at_a_zero_gradient_nothing_moves() -> None:
    seen = walk(saddle(), (0.0, 0.0), Rule(0.05, 0.5), steps=10)
    assert not seen.position.any()


def test_rho_zero_is_sgd() -> None:
    base = walk(NOISY, HERE, Rule(0.05), steps=50, walkers=20, seed=1)
    for normalised in (False, True):
        rule = Rule(0.05, np.zeros(20), normalised)
        same = walk(NOISY, HERE, rule, steps=50, seed=1)
        np.testing.assert_array_equal(base.position, same.position)


def test_bad_walks_are_refused() -> None:
    with pytest.raises(UsageError, match="rho"):
        Rule(0.1, -1.0)
    with pytest.raises(UsageError, match="step_size"):
        Rule(np.nan)
    with pytest.raises(UsageError, match="dimensions"):
        walk(saddle(), (0.0, 0.0, 0.1), Rule(0.1))
    with pytest.raises(UsageError, match="lambda_min"):
        saddle(lambda_min=1.0)
    with pytest.raises(UsageError, match="dim"):
        s.noisy_radius(0.1, -1.0, 1)
    with pytest.raises(UsageError, match="escape"):
        s.escape_time(0.1, 0.1, 1.0)
    with pytest.raises(NumericalError, match="exit"):
        walk(saddle(), (0.0, 0.1), Rule(3.0), steps=2_000, exit=None)


def test_the_path_starts_at_the_start_and_is_blank_after_an_escape() -> None:
    start = np.array([[0.0, 0.0], [0.1, 0.9]])
    seen = walk(saddle(), start, Rule(0.2), steps=30, every=5)
    assert seen.path.shape == (7, 2, 2)
    np.testing.assert_array_equal(seen.path[0], start)
    assert seen.escape_time.tolist() == [13, 1]
    assert np.isnan(seen.path[1:, :, 1]).all()
    assert np.isfinite(seen.path[:3, :, 0]).all()
    assert np.isnan(seen.path[3:, :, 0]).all()
