"""Holds a measured spectrum: both ends with bounds, quadrature, trace, density.

Knows numbers only; ``lanczos`` makes them.
Legend: n size of the operator, K nodes, P probes, G grid points.

References:
    Golub and Meurant 2010, chapter 6 (quadrature); Ghorbani et al. 2019 (density).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from saddlebook.errors import UsageError

CONVERGED = 1e-2  # bound over absolute value, above which a value is no result
_LINE = 1e-3  # residual of a line, over the largest absolute node
_SINGLE = 7.0  # n·weight of one eigenvalue is chi-squared(1): above 7 once in 120
_KEPT = (
    "lambda_min", "lambda_max", "lambda_min_bound", "lambda_max_bound", "trace",
    "trace_error", "symmetry",
)  # fmt: skip
_RATIO = ("nonconvexity", "nonconvexity_bound")


@dataclass(frozen=True, eq=False)
class Spectrum:
    """What one Lanczos measurement knows about a symmetric operator.

    Attributes:
        size: n.
        nodes: Ritz values, ascending; a probe that ended early repeats its last.
            [P, K], float64.
        weights: Quadrature weights of the nodes; each row sums to 1. [P, K]
        residuals: Residual norms of the nodes as the recurrence knows them. [P, K]
        lambda_min: Rayleigh quotient of the lowest Ritz vector, measured.
        lambda_max: The same of the highest.
        lambda_min_bound: An eigenvalue lies within this distance of ``lambda_min``
            (norm of the measured residual). That it is the extreme one is not
            proved by any such bound; more steps and another seed speak for it.
        lambda_max_bound: The same of ``lambda_max``.
        trace: Sum of all eigenvalues.
        trace_error: Standard error of ``trace``, or its rounding where it is exact.
        trace_method: ``probes``, ``exact`` or ``deflated`` (see ``hessian``).
        products: Products with the operator that were needed.
        symmetry: abs(u'Hv − v'Hu) over the largest absolute node, u and v the two
            extreme Ritz vectors.
        vector_min: Unit Ritz vector of ``lambda_min``. [n]
        vector_max: Unit Ritz vector of ``lambda_max``. [n]
        rounding: Error of one product that no residual sees; inside both bounds.
    """

    size: int
    nodes: Tensor
    weights: Tensor
    residuals: Tensor
    lambda_min: float
    lambda_max: float
    lambda_min_bound: float
    lambda_max_bound: float
    trace: float
    trace_error: float
    trace_method: str
    products: int
    symmetry: float
    vector_min: Tensor = field(repr=False)
    vector_max: Tensor = field(repr=False)
    rounding: float = 0.0

    @property
    def steps(self) -> int:
        """K, Lanczos steps of the longest probe."""
        return self.nodes.shape[1]

    @property
    def scale(self) -> float:
        """Largest absolute extreme: what errors are compared with."""
        return max(abs(self.lambda_min), abs(self.lambda_max))

    @property
    def converged(self) -> tuple[bool, bool]:
        """Whether ``lambda_min`` and ``lambda_max`` are known to 1 % of themselves.

        A value that is zero to 1e-6 of the other end counts as known.
        """
        floor = 1e-4 * self.scale
        low = self.lambda_min_bound <= CONVERGED * max(abs(self.lambda_min), floor)
        high = self.lambda_max_bound <= CONVERGED * max(abs(self.lambda_max), floor)
        return low, high

    @property
    def nonconvexity(self) -> float:
        """abs(λmin/λmax), the paper's measure; nan where λmax is not above zero."""
        if self.lambda_max <= self.lambda_max_bound:
            return math.nan
        return abs(self.lambda_min / self.lambda_max)

    @property
    def nonconvexity_bound(self) -> float:
        """Bound of ``nonconvexity`` that follows from those of both ends."""
        if self.lambda_max <= self.lambda_max_bound:
            return math.nan
        numerator = self.lambda_min_bound + self.nonconvexity * self.lambda_max_bound
        return numerator / (self.lambda_max - self.lambda_max_bound)

    @property
    def lines(self) -> Tensor:
        """Which nodes are converged single eigenvalues, known weight 1/n. [P, K] bool.

        A node of multiplicity m has weight about m/n, so heavy nodes stay out.
        """
        gap = (self.nodes[:, 1:] - self.nodes[:, :-1]).abs()
        edge = torch.full_like(self.nodes[:, :1], math.inf)
        alone = torch.minimum(torch.cat([edge, gap], 1), torch.cat([gap, edge], 1))
        sharp = self.residuals <= torch.clamp(0.1 * alone, max=_LINE * self.scale)
        return sharp & (self.weights > 0) & (self.weights * self.size <= _SINGLE)

    @property
    def density_weights(self) -> Tensor:
        """Weights with every line at 1/n and the rest rescaled. [P, K]"""
        lines = self.lines
        rest = torch.where(lines, 0.0, self.weights)
        count = lines.sum(1, keepdim=True)
        left = 1 - count / self.size
        rest = rest * left / rest.sum(1, keepdim=True).clamp_min(1e-300)
        fixed = torch.where(lines, 1 / self.size, rest)
        return fixed / fixed.sum(1, keepdim=True)

    def density(self, grid: Any, sigma: float, lines: bool = True) -> Any:
        """Spectral density: Gaussians of standard deviation ``sigma`` at the nodes.

        Args:
            grid: Eigenvalues at which it is wanted. [G], array or tensor.
            sigma: Width of the kernel, in units of the eigenvalues.
            lines: False leaves the converged eigenvalues out, for figures that draw
                them as lines; the mass is then below 1.

        Returns:
            Density, mean over probes, mass 1 over a grid that holds it all. [G]
        """
        if not (math.isfinite(sigma) and sigma > 0):
            raise UsageError(f"sigma {sigma} must be positive: the width of the kernel")
        points = torch.as_tensor(grid, dtype=torch.float64)
        weights = self.density_weights
        if not lines:
            weights = torch.where(self.lines, 0.0, weights)
        nodes, weights = self.nodes.reshape(-1), weights.reshape(-1) / len(self.nodes)
        distance = (points[:, None] - nodes) / sigma
        kernel = torch.exp(-(distance**2) / 2) / (sigma * math.sqrt(2 * math.pi))
        result = kernel @ weights
        return result if isinstance(grid, Tensor) else result.numpy()

    def __str__(self) -> str:
        """Both ends and the trace with errors; an unconverged end is no number."""
        ends = zip(
            ("lambda_min", "lambda_max"),
            (self.lambda_min, self.lambda_max),
            (self.lambda_min_bound, self.lambda_max_bound),
            self.converged,
            strict=True,
        )
        parts = [
            f"{name} {value:.6g} ± {bound:.1g}" if known else f"{name} unconverged"
            for name, value, bound, known in ends
        ]
        trace = f"trace {self.trace:.6g} ± {self.trace_error:.1g} ({self.trace_method})"
        return ", ".join([*parts, trace])

    def to_dict(self, quadrature: bool = True) -> dict[str, Any]:
        """JSON values, floats of 6 significant digits, nan as None.

        Args:
            quadrature: Whether to keep nodes, weights and residuals.
        """
        arrays = {
            "nodes": rounded(self.nodes.numpy()),
            "weights": rounded(self.weights.numpy()),
            "residuals": rounded(self.residuals.numpy(), 2),
        }
        return (arrays if quadrature else {}) | {
            "size": self.size,
            **{name: rounded(getattr(self, name)) for name in (*_KEPT, *_RATIO)},
            "trace_method": self.trace_method,
            "converged": list(self.converged),
            "products": self.products,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Spectrum:
        """What ``to_dict`` kept with its quadrature; without the vectors."""
        arrays = {
            name: torch.tensor(values[name], dtype=torch.float64)
            for name in ("nodes", "weights", "residuals")
        }
        names = ("size", *_KEPT, "trace_method", "products")
        kept: dict[str, Any] = {name: values[name] for name in names} | arrays
        if kept["trace_error"] is None:  # of a single probe
            kept["trace_error"] = math.inf
        return cls(**kept, vector_min=torch.empty(0), vector_max=torch.empty(0))


def rounded(value: float | NDArray[Any], digits: int = 6) -> Any:
    """Floats at ``digits`` significant digits as JSON values; not finite is None."""
    if isinstance(value, np.ndarray) and value.ndim:
        return [rounded(item, digits) for item in value]
    return float(f"{value:.{digits}g}") if math.isfinite(value) else None
