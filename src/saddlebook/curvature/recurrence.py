"""The Lanczos recurrence: one product, one new orthonormal vector a step.

Knows a function and start vectors; no eigenvalue is interpreted here.

Legend: n size, K steps.

References:
    Lanczos 1950; Paige 1972 (loss of orthogonality); Giraud et al. 2005 (twice is
    enough); Parlett 1998, chapter 13.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from saddlebook.errors import NumericalError, ResourceError, UsageError

Matvec = Callable[[Tensor], Tensor]
Progress = Callable[[int, int], None]


@dataclass
class State:
    """A recurrence after some steps: enough to continue it bit for bit.

    Attributes:
        basis: Orthonormal rows, the last one is the vector of the next step.
            [K + 1, n], or [K, n] when the Krylov space is exhausted.
        alpha: Diagonal of the tridiagonal matrix. [K]
        beta: Norms of the remainders; the last couples to the next step. [K]
    """

    basis: Tensor
    alpha: list[float] = field(default_factory=list)
    beta: list[float] = field(default_factory=list)

    @property
    def steps(self) -> int:
        """K, steps done."""
        return len(self.alpha)

    @property
    def ended(self) -> bool:
        """Whether the Krylov space is exhausted: the Ritz pairs are exact."""
        return len(self.basis) == self.steps

    def ritz(self) -> tuple[Tensor, Tensor, Tensor]:
        """Ritz values ascending [K], their vectors as columns [K, K], residuals [K].

        The residual norm of pair i is β_K·abs(s_Ki) (Parlett 1998, section 13.2).
        """
        diagonal = torch.tensor(self.alpha, dtype=torch.float64)
        off = torch.tensor(self.beta[:-1], dtype=torch.float64)
        matrix = torch.diag(diagonal) + torch.diag(off, 1) + torch.diag(off, -1)
        values, vectors = torch.linalg.eigh(matrix)
        last = 0.0 if self.ended else self.beta[-1]
        return values, vectors, last * vectors[-1].abs()

    def vector(self, coefficients: Tensor) -> Tensor:
        """Unit vector with these coefficients [K] in the basis. [n], float64."""
        rows = self.basis[: self.steps]
        return unit((coefficients.to(rows) @ rows).double())


def check(size: int, steps: int, probes: int = 1) -> None:
    """Raise UsageError unless 1 ≤ steps ≤ size and probes ≥ 1."""
    for name, value in (("steps", steps), ("probes", probes)):
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise UsageError(f"{name} {value!r} must be an integer of at least 1")
    if steps > size:
        raise UsageError(
            f"{steps} Lanczos steps in a space of {size} dimensions: at most {size}"
        )


def starts(size: int, seed: int, stream: int) -> Tensor:
    """Random signs over √n, from (seed, stream) alone, on the CPU. [n], float64.

    Raw bits of a counter-based generator (Philox), which NumPy keeps fixed.
    """
    generator = np.random.Philox(key=np.array([seed, stream], np.uint64))
    words = generator.random_raw(-(-size // 64)).astype("<u8")
    bits = np.unpackbits(words.view(np.uint8), bitorder="little")[:size]
    return torch.from_numpy(bits * 2.0 - 1.0) / math.sqrt(size)


def advance(
    state: State,
    matvec: Matvec,
    steps: int,
    *,
    rtol: float | None = None,
    reorthogonalise: bool = True,
    progress: Progress | None = None,
) -> State:
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
        progress: Called with (steps done, steps in all).

    Raises:
        NumericalError: A product holds NaN or infinity.
    """
    basis = _room(state.basis, steps + 1)
    done = State(basis[: len(state.basis)], list(state.alpha), list(state.beta))
    hits = 0
    while done.steps < steps and not done.ended and hits < 2:
        _step(done, basis, matvec, reorthogonalise)
        hits = hits + 1 if rtol is not None and _settled(done, rtol) else 0
        if progress is not None:
            progress(done.steps, steps)
    return done


def _step(state: State, basis: Tensor, matvec: Matvec, full: bool) -> None:
    """One product, one new row of the basis, one alpha and one beta."""
    k = state.steps
    product = matvec(basis[k])
    if not product.isfinite().all():
        raise NumericalError(
            f"the product of Lanczos step {k + 1} holds NaN or infinity; look for "
            "them in the weights and the images"
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


def project(rows: Tensor, vector: Tensor) -> Tensor:
    """Part of a float64 vector [n] in the span of orthonormal rows [K, n]."""
    coefficients = rows @ vector.to(rows)
    return (coefficients @ rows).double()


def _settled(state: State, rtol: float) -> bool:
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
        if need > _free(rows.device):
            raise MemoryError
        room = rows.new_empty((count, size))
    except (MemoryError, RuntimeError) as error:
        raise ResourceError(
            f"{count - 1} Lanczos steps keep as many vectors of {size:,} parameters: "
            f"{need / 2**30:.1f} GiB of memory are not there; take fewer steps, or "
            "freeze parameters"
        ) from error
    room[: len(rows)] = rows
    return room


def _free(device: torch.device) -> float:
    """Bytes that a device has left, as far as it can be told."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return math.inf
    found = dict(line.split(":") for line in lines)
    return 1024 * float(found["MemAvailable"].split()[0])


def unit(vector: Tensor) -> Tensor:
    """The vector at length 1."""
    return vector / vector.norm()
