import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from saddlebook.curvature.lanczos import KrylovState, advance, lanczos, starts
from saddlebook.errors import NumericalError, UsageError

SIZE = 200


def operator(values, seed=0):
    """A symmetric matrix with these eigenvalues in a random basis."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.as_tensor(values, dtype=torch.float64)
    noise = torch.randn(
        len(values), len(values), dtype=torch.float64, generator=generator
    )
    basis, _ = torch.linalg.qr(noise)
    return basis @ torch.diag(values) @ basis.T


def measured(matrix, steps=60, **settings):
    return lanczos(lambda v: matrix @ v, len(matrix), steps, **settings)


def family(kind, seed):
    generator = np.random.default_rng(seed)
    values = generator.standard_normal(SIZE) * 0.1
    if kind == "isolated":
        values[:3] = -3, 5, 9
    if kind == "clustered":
        values[:20] = 4 + 1e-3 * generator.standard_normal(20)
        values[20:30] = -4 - 1e-3 * generator.random(10)
    if kind == "rank":
        values[30:] = 0
    if kind == "tiny":
        values = np.abs(values)
        values[0] = -1e-4 * values.max()
    return values


@pytest.mark.parametrize("kind", ["isolated", "clustered", "rank", "tiny"])
def test_ends_lie_within_their_bounds_and_converged_ones_are_exact(kind):
    for seed in range(25):
        values = family(kind, seed)
        spectrum = measured(operator(values, seed), seed=seed)
        scale = np.abs(values).max()
        for end, bound, near in (
            (spectrum.lambda_min, spectrum.lambda_min_bound, values.min()),
            (spectrum.lambda_max, spectrum.lambda_max_bound, values.max()),
        ):
            assert abs(end - near) <= bound + 1e-12 * scale
            if bound <= 1e-8 * scale:
                assert abs(end - near) <= 1e-8 * scale


def test_the_bound_of_an_unconverged_end_covers_an_eigenvalue():
    values = np.linspace(-1, 1, SIZE)
    spectrum = measured(operator(values), steps=20)
    assert spectrum.lambda_min_bound > 1e-4
    distance = np.abs(values - spectrum.lambda_min).min()
    assert distance <= spectrum.lambda_min_bound


def test_five_seeds_agree_within_their_bounds():
    matrix = operator(family("isolated", 1))
    ends = [measured(matrix, 25, seed=seed) for seed in range(5)]
    lows = [end.lambda_min for end in ends]
    assert max(lows) - min(lows) <= 2 * max(end.lambda_min_bound for end in ends)


def test_quadrature_is_exact_for_the_first_moments():
    matrix = operator(np.linspace(-1, 2, SIZE))
    start = starts(SIZE, 3, 0)
    spectrum = measured(matrix, steps=4, seed=3)
    vector = start
    for power in range(8):
        moment = float((spectrum.weights * spectrum.nodes**power).sum())
        assert moment == pytest.approx(float(start @ vector), rel=1e-8)
        vector = matrix @ vector


def test_weights_of_every_probe_sum_to_one():
    spectrum = measured(operator(family("isolated", 0)), probes=3)
    assert spectrum.nodes.shape == spectrum.weights.shape == (3, 60)
    torch.testing.assert_close(spectrum.weights.sum(1), torch.ones(3).double())


@pytest.mark.parametrize(("dtype", "most"), [("float64", 1e-10), ("float32", 1e-5)])
def test_basis_stays_orthonormal(dtype, most):
    dtype = getattr(torch, dtype)
    matrix = operator(family("isolated", 0)).to(dtype)
    start = KrylovState(starts(SIZE, 0, 0).to(dtype)[None])
    basis = advance(start, lambda v: matrix @ v, 100).basis.double()
    assert (basis @ basis.T - torch.eye(len(basis))).abs().max() < most


def test_without_reorthogonalisation_the_largest_eigenvalue_comes_back_as_ghosts():
    matrix = operator(family("isolated", 0))
    copies = {
        full: int((measured(matrix, 120, reorthogonalise=full).nodes > 8.9).sum())
        for full in (True, False)
    }
    assert copies[True] == 1
    assert copies[False] > 3


def test_float32_products_keep_the_digits_of_float64_sums():
    values = torch.linspace(-1, 1, 200_000)
    values[0], values[-1] = -3.0, 5.0
    spectrum = lanczos(lambda v: values * v, len(values), 20, dtype=torch.float32)
    assert spectrum.lambda_min == pytest.approx(-3, rel=2e-7)
    assert spectrum.lambda_max == pytest.approx(5, rel=2e-7)


@pytest.mark.parametrize(
    ("values", "steps", "known"),
    [
        ([2.0] * 5, 1, [2.0]),
        ([0.0] * 5, 1, [0.0]),
        ([-1.0, 4.0] * 10, 2, [-1.0, 4.0]),
        ([1.0, 2.0, 3.0, 4.0], 4, [1.0, 2.0, 3.0, 4.0]),
    ],
)
def test_an_exhausted_space_ends_the_run_and_invents_nothing(values, steps, known):
    spectrum = measured(operator(values), steps=len(values))
    assert spectrum.steps == steps
    assert spectrum.nodes[0].tolist() == pytest.approx(known, abs=1e-12)
    assert spectrum.weights.sum() == pytest.approx(1)


def test_a_positive_operator_of_low_rank_has_no_negative_end():
    values = np.zeros(SIZE)
    values[:70] = np.linspace(1, 10, 70)
    spectrum = measured(operator(values), steps=100)
    assert spectrum.steps < 80
    assert abs(spectrum.lambda_min) < 1e-12


def test_probes_of_unequal_length_stand_side_by_side():
    values = torch.cat([torch.zeros(150), torch.ones(50)]).double()
    spectrum = lanczos(lambda v: values * v, SIZE, 10, probes=3)
    assert spectrum.nodes.shape == (3, 2)
    assert spectrum.density_weights.sum(1).tolist() == pytest.approx([1, 1, 1])


def test_rtol_stops_early_with_the_accuracy_it_promised():
    matrix = operator(family("isolated", 2))
    spectrum = measured(matrix, 100, rtol=1e-3)
    assert spectrum.steps < 40
    assert spectrum.lambda_min_bound <= 1e-3 * abs(spectrum.lambda_min)
    assert spectrum.lambda_max_bound <= 1e-3 * spectrum.lambda_max


def test_a_resumed_recurrence_equals_an_uninterrupted_one_bit_for_bit():
    matrix = operator(family("clustered", 0))
    start = KrylovState(starts(SIZE, 0, 0)[None])
    whole = advance(start, lambda v: matrix @ v, 40)
    half = advance(start, lambda v: matrix @ v, 17)
    again = advance(half, lambda v: matrix @ v, 40)
    assert (again.alpha, again.beta) == (whole.alpha, whole.beta)
    assert torch.equal(again.basis, whole.basis)
    assert half.steps == 17


@pytest.mark.parametrize("kind", ["tiny", "clustered", "gaussian"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_recurrence_that_restarts_finds_the_same_ends_with_few_vectors(kind, dtype):
    values = family(kind, 3)
    matrix = operator(values).to(dtype)
    exact = operator(values)
    few = lanczos(
        lambda v: matrix @ v, SIZE, 150, basis=12, rtol=1e-4, dtype=dtype,
        certify=lambda v: exact @ v,
    )  # fmt: skip
    for end, truth in (("min", values.min()), ("max", values.max())):
        bound = getattr(few, f"lambda_{end}_bound")
        assert abs(getattr(few, f"lambda_{end}") - truth) <= bound
        assert bound <= 2e-4 * abs(values).max()
    assert few.steps == 12 < few.products - 2  # the density's, and what it took


def test_a_restart_keeps_few_vectors_orthonormal_and_the_first_quadrature():
    matrix = operator(family("isolated", 1))
    start = KrylovState(starts(SIZE, 0, 0)[None])
    plain = advance(start, lambda v: matrix @ v, 12)
    done = advance(start, lambda v: matrix @ v, 60, basis=12)
    assert done.steps == 60
    assert len(done.basis) <= 13
    eye = torch.eye(len(done.basis), dtype=torch.float64)
    assert torch.allclose(done.basis @ done.basis.T, eye, atol=1e-12)
    # what the state says of the operator in its basis is so
    rows, values = done.rows, done.ritz()[0]
    assert torch.allclose(torch.linalg.eigvalsh(rows @ matrix @ rows.T), values)
    assert torch.equal(done.quadrature[0], plain.ritz()[0])
    half = advance(start, lambda v: matrix @ v, 31, basis=12)
    again = advance(half, lambda v: matrix @ v, 60, basis=12)
    assert torch.equal(again.basis, done.basis)
    with pytest.raises(UsageError, match="basis 7 must be an integer of at least 8"):
        measured(matrix, 60, basis=7)


def test_progress_counts_to_the_end():
    seen = []
    matrix = operator(family("isolated", 0))
    measured(matrix, 5, probes=2, progress=lambda *at: seen.append(at))
    assert seen == [(i, 10) for i in range(1, 11)]


def test_starts_are_signs_that_depend_on_seed_and_stream_only():
    vector = starts(1000, 7, 0) * math.sqrt(1000)
    assert vector.abs().unique().tolist() == pytest.approx([1.0])
    assert torch.equal(starts(1000, 7, 0), starts(1000, 7, 0))
    assert abs(float(starts(10_000, 7, 0) @ starts(10_000, 7, 1))) < 0.04
    assert abs(float(starts(10_000, 7, 0) @ starts(10_000, 8, 0))) < 0.04
    assert (vector[:12] > 0).int().tolist() == [0, 0, 1, 0, 0, 1, 0, 1, 1, 1, 0, 1]


def test_probe_traces_cover_the_truth_at_their_standard_error():
    values = family("isolated", 5)
    matrix = operator(values)
    scores = []
    for seed in range(60):
        spectrum = measured(matrix, 1, probes=12, seed=seed)
        scores.append((spectrum.trace - values.sum()) / spectrum.trace_error)
    assert abs(np.mean(scores)) < 3 / math.sqrt(60) * 1.2
    assert 0.85 < np.mean(np.abs(scores) < 2.2) < 1  # t with 11 degrees: 0.95


def test_one_probe_has_no_trace_error_to_show():
    assert measured(operator(family("isolated", 0)), 5).trace_error == math.inf


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.lists(st.floats(-10, 10), min_size=3, max_size=12), st.integers(0, 99))
def test_ends_of_any_small_matrix_are_found(values, seed):
    spectrum = measured(operator(values, seed), steps=len(values), seed=seed)
    scale = max(map(abs, values)) + 1e-300
    assert abs(spectrum.lambda_max - max(values)) <= 1e-7 * scale
    assert abs(spectrum.lambda_min - min(values)) <= 1e-7 * scale


@pytest.mark.parametrize(
    ("steps", "probes"), [(0, 1), (-3, 1), (201, 1), (2.0, 1), (True, 1), (5, 0)]
)
def test_impossible_steps_and_probes_are_refused(steps, probes):
    with pytest.raises(UsageError):
        lanczos(lambda v: v, SIZE, steps, probes=probes)


def test_a_product_that_is_not_finite_is_refused():
    with pytest.raises(NumericalError, match="step 1"):
        lanczos(lambda v: v * math.nan, SIZE, 5)


class TestDensity:
    values = np.concatenate([np.linspace(-1, -0.8, 100), np.linspace(0.8, 1, 100)])
    grid = np.linspace(-3, 3, 3001)

    def mass(self, density, low, high):
        part = (self.grid >= low) & (self.grid <= high)
        return np.trapezoid(density[part], self.grid[part])

    def test_mass_is_one_and_each_cluster_has_its_share(self):
        spectrum = measured(operator(self.values), probes=10)
        density = spectrum.density(self.grid, 0.05)
        assert self.mass(density, -3, 3) == pytest.approx(1, abs=1e-3)
        assert self.mass(density, -3, 0) == pytest.approx(0.5, abs=0.1)

    def test_density_is_near_that_of_all_eigenvalues(self):
        spectrum = measured(operator(self.values), probes=10)
        kernels = np.exp(-(((self.grid[:, None] - self.values) / 0.05) ** 2) / 2)
        truth = kernels.mean(1) / (0.05 * math.sqrt(2 * math.pi))
        apart = np.abs(spectrum.density(self.grid, 0.05) - truth)
        assert np.trapezoid(apart, self.grid) / 2 < 0.1

    def test_single_eigenvalues_are_lines_of_weight_one_over_n(self):
        spectrum = measured(operator(family("isolated", 0)), 80)
        lines = spectrum.lines
        assert {-3.0, 5.0, 9.0} <= {round(v, 6) for v in spectrum.nodes[lines].tolist()}
        weights = spectrum.density_weights
        assert weights[lines].tolist() == pytest.approx([1 / SIZE] * int(lines.sum()))
        assert weights.sum().item() == pytest.approx(1)
        bulk = self.mass(spectrum.density(self.grid, 0.02, lines=False), -3, 3)
        assert bulk == pytest.approx(1 - int(lines.sum()) / SIZE, abs=1e-3)

    def test_lines_bring_the_trace_of_one_probe_nearer_to_the_truth(self):
        raw, lined = [], []
        for seed in range(10):
            values = family("isolated", seed)
            spectrum = measured(operator(values, seed), 80, seed=seed)
            for errors, weights in (
                (raw, spectrum.weights),
                (lined, spectrum.density_weights),
            ):
                mean = float((weights * spectrum.nodes).sum())
                errors.append(abs(mean - values.mean()))
        assert np.mean(lined) < 0.3 * np.mean(raw)

    def test_a_multiple_eigenvalue_is_no_line(self):
        spectrum = measured(operator([0.0] * 170 + [3.0] * 30), 5)
        assert not spectrum.lines.any()

    def test_tensor_grid_gives_tensor(self):
        spectrum = measured(operator(self.values), 10)
        grid = torch.from_numpy(self.grid)
        assert torch.equal(
            spectrum.density(grid, 0.1),
            torch.from_numpy(spectrum.density(self.grid, 0.1)),
        )

    @pytest.mark.parametrize("sigma", [0, -1, math.nan])
    def test_a_kernel_without_width_is_refused(self, sigma):
        with pytest.raises(UsageError, match="sigma"):
            measured(operator(self.values), 5).density(self.grid, sigma)


def test_nonconvexity_carries_the_bounds_of_both_ends():
    spectrum = measured(operator(family("isolated", 0)), 12)
    truth = 3 / 9
    assert spectrum.nonconvexity == pytest.approx(truth, rel=1e-2)
    assert abs(spectrum.nonconvexity - truth) <= spectrum.nonconvexity_bound


def test_nonconvexity_of_a_negative_operator_is_undefined():
    spectrum = measured(operator(-np.linspace(1, 2, SIZE)), 30)
    assert math.isnan(spectrum.nonconvexity)
    assert math.isnan(measured(operator([0.0] * 5), 3).nonconvexity)


def test_an_unconverged_end_is_never_printed_as_a_number():
    spectrum = measured(operator(np.linspace(-1, 1, SIZE)), 8)
    assert spectrum.converged == (False, False)
    assert "lambda_min unconverged, lambda_max unconverged" in str(spectrum)
    known = measured(operator(family("isolated", 0)), 60)
    assert "lambda_max 9 ±" in str(known)
    assert known.converged == (True, True)


def test_a_spectrum_becomes_json_without_nan():
    spectrum = measured(operator(-np.linspace(1, 2, SIZE)), 6)
    values = spectrum.to_dict()
    assert values["nonconvexity"] is None
    assert values["trace_error"] is None
    assert np.shape(values["nodes"]) == (1, 6)
    assert "nodes" not in spectrum.to_dict(quadrature=False)
