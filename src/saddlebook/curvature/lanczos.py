"""Runs symmetric Lanczos: both ends of a spectrum with bounds, and its quadrature.

Knows a function and a size; no network. The recurrence makes of one product one new
orthonormal vector; one fully re-orthogonalised run gives the extreme eigenvalues, the
quadrature for the density and a basis for the trace. ``released`` is the recurrence of
the paper's code: it takes β before re-orthogonalisation, so β counts what that removes.

Legend: n size, K steps, P probes.

References:
    Lanczos 1950; Paige 1972 (loss of orthogonality); Giraud et al. 2005 (twice is
    enough); Parlett 1998, chapters 4 and 13 (bounds); Golub and Meurant 2010, chapter 6
    (quadrature); Wu and Simon 2000 (thick restarts); Yao et al. 2020 (PyHessian, whose
    recurrence Rangwani et al. 2022 use).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from saddlebook.curvature.spectrum import Spectrum
from saddlebook.errors import NumericalError, ResourceError, UsageError

Matvec = Callable[[Tensor], Tensor]
Progress = Callable[[int, int], None]
_NONE = torch.empty(0, dtype=torch.float64)
_FEWEST = 8  # vectors that a restart can do with: two of either end stay
_TINY = 1e-6  # PAPER: PyHessian divides by norm + 1e-6
_COLUMNS = 2**20  # of the basis that are turned at a time


@dataclass
class KrylovState:
    """A recurrence after some steps: enough to continue it bit for bit.

    Attributes:
        basis: Orthonormal rows, the last one is the vector of the next step.
            [K + 1, n], or [K, n] when the Krylov space is exhausted.
        alpha: Diagonal of the tridiagonal matrix. [K]
        beta: Norms of the remainders; the last couples to the next step. [K]
        kept: After a restart, the Ritz values of the first rows and what couples each
            of them to the row behind. [R], [R]
        before: Steps before the last restart.
        quadrature: Nodes, weights and residuals when the first restart came.
    """

    basis: Tensor
    alpha: list[float] = field(default_factory=list)
    beta: list[float] = field(default_factory=list)
    kept: tuple[Tensor, Tensor] = (_NONE, _NONE)
    before: int = 0
    quadrature: tuple[Tensor, Tensor, Tensor] | None = None

    @property
    def steps(self) -> int:
        """Steps done, each one product."""
        return self.before + len(self.alpha)

    @property
    def rows(self) -> Tensor:
        """The basis without the vector of the next step. [R + K, n]"""
        return self.basis[: len(self.diagonal)]

    @property
    def diagonal(self) -> list[float]:
        """Of the operator in the basis of ``rows``."""
        return [*self.kept[0].tolist(), *self.alpha]

    @property
    def ended(self) -> bool:
        """Whether the Krylov space is exhausted: the Ritz pairs are exact."""
        return len(self.basis) == len(self.diagonal)

    def ritz(self) -> tuple[Tensor, Tensor, Tensor]:
        """Ritz values ascending [K], their vectors as columns [K, K], residuals [K].

        The residual norm of pair i is β_K·abs(s_Ki) (Parlett 1998, section 13.2).
        """
        arrow = len(self.kept[0])
        matrix = torch.diag(torch.tensor(self.diagonal, dtype=torch.float64))
        off = torch.tensor(self.beta[:-1], dtype=torch.float64)
        matrix[arrow:, arrow:] += torch.diag(off, 1) + torch.diag(off, -1)
        matrix[:arrow, arrow] = matrix[arrow, :arrow] = self.kept[1]
        values, vectors = torch.linalg.eigh(matrix)
        last = 0.0 if self.ended else self.beta[-1]
        return values, vectors, last * vectors[-1].abs()

    def vector(self, coefficients: Tensor) -> Tensor:
        """Unit vector with these coefficients [K] in the basis. [n], float64."""
        return unit((coefficients.to(self.rows) @ self.rows).double())


def check(size: int, steps: int, probes: int = 1, basis: int | None = None) -> None:
    """Raise UsageError unless 1 ≤ steps ≤ size, probes ≥ 1 and basis ≥ 8."""
    kept = _FEWEST if basis is None else basis
    asked = (("steps", steps, 1), ("probes", probes, 1), ("basis", kept, _FEWEST))
    for name, value, least in asked:
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise UsageError(f"{name} {value!r} must be an integer of at least {least}")
    if steps > size:
        raise UsageError(
            f"{steps} Lanczos steps in a space of {size} dimensions: at most {size}"
        )


def starts(size: int, seed: int, stream: int) -> Tensor:
    """Random signs over √n, from (seed, stream) alone, on the CPU. [n], float64.

    Raw bits of a counter-based generator (Philox), which NumPy keeps fixed.
    """
    if seed < 0:
        raise UsageError(f"seed {seed} must be at least 0")
    generator = np.random.Philox(key=np.array([seed, stream], np.uint64))
    words = generator.random_raw(-(-size // 64)).astype("<u8")
    bits = np.unpackbits(words.view(np.uint8), bitorder="little")[:size]
    return torch.from_numpy(bits * 2.0 - 1.0) / math.sqrt(size)


def advance(
    state: KrylovState,
    matvec: Matvec,
    steps: int,
    *,
    rtol: float | None = None,
    reorthogonalise: bool = True,
    basis: int | None = None,
    progress: Progress | None = None,
) -> KrylovState:
    """Continue a recurrence up to ``steps`` steps in all; ``state`` is left alone.

    Stops early when the Krylov space is exhausted (the remainder is rounding) or when
    both ends have the estimated relative accuracy ``rtol`` in two steps running.

    Args:
        state: Where to go on from.
        matvec: [n] to [n], symmetric and the same at every call.
        steps: Steps in all.
        rtol: See above; None does all steps.
        reorthogonalise: Against the whole basis; False is the textbook recurrence,
            which loses orthogonality and repeats eigenvalues ("ghosts").
        basis: Most vectors in memory. Where they are full, the Ritz vectors of both
            ends stay, a quarter each, and the recurrence restarts behind them (Wu and
            Simon 2000). None keeps one per step.
        progress: Called with (steps done, steps in all).

    Raises:
        NumericalError: A product holds NaN or infinity.
    """
    most = min(steps, basis or steps)
    room = _room(state.basis, most + 1)
    done = replace(
        state, basis=room[: len(state.basis)], alpha=[*state.alpha], beta=[*state.beta]
    )
    hits = 0
    while done.steps < steps and not done.ended and hits < 2:
        if len(done.diagonal) == most:
            _restart(done, room)
        _step(done, room, matvec, reorthogonalise)
        hits = hits + 1 if rtol is not None and _settled(done, rtol) else 0
        if progress is not None:
            progress(done.steps, steps)
    return done


def _step(state: KrylovState, basis: Tensor, matvec: Matvec, full: bool) -> None:
    """One product, one new row of the basis, one alpha and one beta."""
    k = len(state.diagonal)
    product = matvec(basis[k])
    if not product.isfinite().all():
        raise NumericalError(
            f"the product of Lanczos step {state.steps + 1} holds NaN or infinity; "
            "look for them in the weights and the images"
        )
    rest = product.double()
    scale = float(rest.norm())
    state.alpha.append(float(rest @ basis[k].double()))
    # classical Gram-Schmidt, twice against the whole basis; β only after it
    rows = basis[: k + 1] if full else basis[max(0, k - 1) : k + 1]
    for _ in range(2 if full else 1):
        rest = rest - project(rows, rest)
    state.beta.append(float(rest.norm()))
    largest = max(scale, max(map(abs, state.alpha)), max(state.beta[:-1], default=0))
    # a remainder that is rounding has no direction: never divide by it
    if state.beta[-1] > 10 * torch.finfo(basis.dtype).eps * largest:
        basis[k + 1] = rest / state.beta[-1]
        state.basis = basis[: k + 2]


def _restart(state: KrylovState, basis: Tensor) -> None:
    """Keep the outermost Ritz vectors in the first rows, and the next step's vector."""
    values, vectors, residuals = state.ritz()
    count, share = len(values), len(values) // 4
    state.quadrature = state.quadrature or (values, vectors[0] ** 2, residuals)
    ends = [*range(share), *range(count - share, count)]
    chosen = vectors[:, ends].T.to(basis)
    for part in basis[: count + 1].split(_COLUMNS, dim=1):
        part[: len(ends)] = chosen @ part[:count]
        part[len(ends)] = part[count]
    state.kept = values[ends], state.beta[-1] * vectors[-1, ends]
    state.before, state.alpha, state.beta = state.steps, [], []
    state.basis = basis[: len(ends) + 1]


def project(rows: Tensor, vector: Tensor) -> Tensor:
    """Part of a float64 vector [n] in the span of orthonormal rows [K, n]."""
    coefficients = rows @ vector.to(rows)
    return (coefficients @ rows).double()


def _settled(state: KrylovState, rtol: float) -> bool:
    values, _, residuals = state.ritz()
    floor = 1e-4 * float(values.abs().max())
    return all(
        float(residuals[end]) <= rtol * max(abs(float(values[end])), floor)
        for end in (0, -1)
    )


def _room(rows: Tensor, count: int) -> Tensor:
    """A copy of ``rows`` with place for ``count`` rows in all.

    Raises:
        ResourceError: The memory is not there.
    """
    count, size = max(count, len(rows)), rows.shape[1]
    need = count * size * rows.element_size()
    try:
        if need > memory(rows.device).free:
            raise MemoryError
        room = rows.new_empty((count, size))
    except (MemoryError, RuntimeError) as error:
        raise ResourceError(
            f"{count - 1} Lanczos steps keep as many vectors of {size:,} parameters: "
            f"{need / 2**30:.1f} GiB of memory are not there; keep fewer (basis=24, "
            "--basis 24), take fewer steps, or freeze parameters"
        ) from error
    room[: len(rows)] = rows
    return room


class Memory(NamedTuple):
    """Bytes of a device; infinite where they cannot be told."""

    free: float
    total: float


def memory(device: torch.device) -> Memory:
    """What a device has, and what of it nothing uses now."""
    if device.type == "cuda":
        return Memory(*torch.cuda.mem_get_info(device))
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return Memory(math.inf, math.inf)
    found = dict(line.split(":") for line in lines)
    names = "MemAvailable", "MemTotal"
    return Memory(*(1024 * float(found[name].split()[0]) for name in names))


def unit(vector: Tensor) -> Tensor:
    """The vector at length 1."""
    return vector / vector.norm()


class End(NamedTuple):
    """One end of a spectrum: a Rayleigh quotient, its bound, its vector and product."""

    value: float
    bound: float
    vector: Tensor  # [n]
    product: Tensor  # [n]


def lanczos(
    matvec: Matvec,
    size: int,
    steps: int = 100,
    *,
    probes: int = 1,
    seed: int = 0,
    rtol: float | None = None,
    reorthogonalise: bool = True,
    basis: int | None = None,
    dtype: torch.dtype = torch.float64,
    device: torch.device | str = "cpu",
    certify: Matvec | None = None,
    progress: Progress | None = None,
) -> Spectrum:
    """Both ends with bounds, quadrature and trace of a symmetric operator.

    Args:
        matvec: Maps [n] to [n]; linear, symmetric and the same at every call.
        size: n.
        steps: Largest K, at most n.
        probes: P random starts, one after the other, so memory does not grow with P.
        seed: Of the starts: signs made on the CPU, the same for every device.
        rtol: Stop a probe when both ends have this estimated relative accuracy.
        reorthogonalise: False shows what goes wrong without (see ``advance``).
        basis: Most vectors in memory, at least 8; the quadrature is then that of as
            many steps. None keeps one per step.
        dtype: Of the basis and of what ``matvec`` gets; sums are float64 anyway.
        device: Of the same.
        certify: The operator in float64, for the bounds; None takes ``matvec``.
        progress: Called with (steps done, most steps to do).

    Returns:
        A ``Spectrum`` whose bounds are measured residuals, one product for each end,
        and whose trace is the mean over probes (infinite error for one probe).

    Raises:
        UsageError: Steps outside 1..n, or probes below 1.
        NumericalError: A product holds NaN or infinity.
    """
    check(size, steps, probes, basis)
    done = []
    for probe in range(probes):
        start = KrylovState(starts(size, seed, probe).to(device, dtype)[None])
        tick = shifted(progress, probe * steps, probes * steps)
        state = advance(
            start,
            matvec,
            steps,
            rtol=rtol,
            reorthogonalise=reorthogonalise,
            basis=basis,
            progress=tick,
        )
        done.append(distilled(state))
    eps = torch.finfo(dtype if certify is None else torch.float64).eps
    return to_spectrum(done, certify or _cast(matvec, dtype), 8 * eps)


def released(
    matvec: Matvec,
    start: Tensor,
    steps: int,
    beta: str = "before",
    progress: Progress | None = None,
) -> KrylovState:
    """The released recurrence: one probe, modified Gram-Schmidt, no residual check.

    With an operator that is the same at every call, ``beta`` makes no difference.

    Args:
        matvec: [n] to [n], float32; may change from call to call.
        start: Signs; normalised here. [n]
        steps: K.
        beta: Norm of the remainder ``before`` (as released) or ``after``
            re-orthogonalisation.
        progress: Called with (steps done, K).

    Returns:
        The recurrence; its Ritz values are what the paper calls eigenvalues.
    """
    basis = [_normalised(start)]
    state = KrylovState(start[None])
    previous = torch.zeros_like(start)
    for k in range(steps):
        product = matvec(basis[k])
        state.alpha.append(float(product @ basis[k]))
        last = state.beta[-1] if state.beta else 0.0
        rest = product - state.alpha[-1] * basis[k] - last * previous
        previous = basis[k]
        clean = rest
        for row in basis:
            clean = clean - (clean @ row) * row
        state.beta.append(float((rest if beta == "before" else clean).norm()))
        basis.append(_normalised(clean))
        if progress is not None:
            progress(k + 1, steps)
    state.basis = torch.stack(basis)
    return state


def _normalised(vector: Tensor) -> Tensor:
    return vector / (vector.norm() + _TINY)


def diagonal_share(state: KrylovState) -> float:
    """Mean abs(α) over mean β: below about 0.35 where the operator kept changing."""
    mean_beta = sum(state.beta) / len(state.beta)
    mean_alpha = sum(map(abs, state.alpha)) / len(state.alpha)
    return mean_alpha / mean_beta if mean_beta else math.inf


def certificate(matvec: Matvec, vector: Tensor) -> End:
    """Rayleigh quotient of a unit vector and the norm of its residual.

    An eigenvalue lies within the bound (Parlett 1998, theorem 4.5.1).
    """
    product = matvec(vector).double()
    value = float(vector @ product)
    return End(value, float((product - value * vector).norm()), vector, product)


class Probe(NamedTuple):
    """What a finished recurrence leaves; its basis may go."""

    nodes: Tensor  # Ritz values, ascending. [K]
    weights: Tensor  # [K]
    residuals: Tensor  # [K]
    bottom: Tensor  # unit Ritz vector of the lowest node. [n]
    top: Tensor  # the same of the highest. [n]
    first: float  # v'Hv of the start
    steps: int  # products


def distilled(state: KrylovState) -> Probe:
    """Quadrature and the two outermost Ritz vectors of a recurrence."""
    values, vectors, residuals = state.ritz()
    ends = state.vector(vectors[:, 0]), state.vector(vectors[:, -1])
    found = state.quadrature or (values, vectors[0] ** 2, residuals)
    first = float(found[0] @ found[1]) if state.quadrature else state.alpha[0]
    return Probe(*found, *ends, first, state.steps)


def outermost(probes: Sequence[Probe]) -> tuple[Probe, Probe]:
    """The probes with the lowest and with the highest Ritz value."""
    low = min(probes, key=lambda probe: float(probe.nodes[0]))
    return low, max(probes, key=lambda probe: float(probe.nodes[-1]))


def to_spectrum(probes: Sequence[Probe], matvec: Matvec, rounding: float) -> Spectrum:
    """Quadrature of all probes and certificates of the outermost Ritz pairs.

    Args:
        probes: At least one.
        matvec: The operator on float64 vectors.
        rounding: Of ``matvec``, relative to the largest eigenvalue; a residual does
            not see it.
    """
    low, high = outermost(probes)
    bottom, top = certificate(matvec, low.bottom), certificate(matvec, high.top)
    scale = max(abs(bottom.value), abs(top.value))
    floor = rounding * scale
    skew = abs(float(bottom.vector @ top.product - top.vector @ bottom.product))
    size = len(bottom.vector)
    trace, error = _probe_trace([probe.first for probe in probes], size)
    return Spectrum(
        size=size,
        nodes=_stack([probe.nodes for probe in probes], repeat=True),
        weights=_stack([probe.weights for probe in probes]),
        residuals=_stack([probe.residuals for probe in probes]),
        lambda_min=bottom.value,
        lambda_max=top.value,
        lambda_min_bound=bottom.bound + floor,
        lambda_max_bound=top.bound + floor,
        trace=trace,
        trace_error=error,
        trace_method="probes",
        products=sum(probe.steps for probe in probes) + 2,
        symmetry=skew / scale if scale else 0.0,
        vector_min=bottom.vector,
        vector_max=top.vector,
        rounding=floor,
    )


def _probe_trace(first: list[float], size: int) -> tuple[float, float]:
    """n·v'Hv is an unbiased estimate for signs v (Hutchinson 1990)."""
    values = size * np.array(first)
    if len(values) < 2:
        return float(values[0]), math.inf
    return float(values.mean()), float(values.std(ddof=1) / math.sqrt(len(values)))


def _stack(rows: list[Tensor], repeat: bool = False) -> Tensor:
    """Rows of unequal length side by side, filled with 0 or their last value."""
    width = max(map(len, rows))
    last = [row[-1:] if repeat else torch.zeros_like(row[-1:]) for row in rows]
    filled = [
        torch.cat([row, end.expand(width - len(row))])
        for row, end in zip(rows, last, strict=True)
    ]
    return torch.stack(filled)


def _cast(matvec: Matvec, dtype: torch.dtype) -> Matvec:
    return lambda vector: matvec(vector.to(dtype)).double()


def shifted(progress: Progress | None, done: int, total: int) -> Progress | None:
    """The same for a part that begins after ``done`` steps of ``total``."""
    if progress is None:
        return None
    return lambda step, _: progress(done + step, total)
