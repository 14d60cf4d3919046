"""Figures of chapter 4: errors and bounds, ghosts, density, a faked saddle.

Table or spectrum from ``known`` in, matplotlib Axes out.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from numpy.typing import NDArray

from saddlebook.curvature.spectrum import Spectrum
from saddlebook.figures.style import BLUE, GREY, ORANGE, panels, styled

_FLOOR = 1e-16  # of the logarithmic axis


@styled
def convergence(tables: Mapping[str, pd.DataFrame]) -> Axes:
    """Error (marks) and bound (lines) of both ends against steps, a panel a spectrum.

    Args:
        tables: From ``known.convergence``, by title.
    """
    axes = panels(len(tables), height=2.8)
    for ax, (title, table) in zip(axes, tables.items(), strict=True):
        told = []
        for end, name, colour in (("low", "λmin", BLUE), ("high", "λmax", ORANGE)):
            error, bound = (
                table[f"{end}_{what}"].clip(lower=_FLOOR) for what in ("error", "bound")
            )
            ax.semilogy(table["steps"], bound, color=colour, label=f"{name}, bound")
            ax.semilogy(table["steps"], error, "o", color=colour, markersize=3,
                        label=f"{name}, error")  # fmt: skip
            told.append(
                f"{name} error {error.iloc[0]:.1g} to {error.iloc[-1]:.1g}, bound "
                f"{bound.iloc[0]:.1g} to {bound.iloc[-1]:.1g}"
            )
        ax.set_title(title)
        ax.set_xlabel("steps")
        ax.set_label("; ".join(told) + ".")
    axes[0].set_ylabel("error over ‖H‖")
    axes[0].legend(fontsize=7)
    return axes[0]


@styled
def ghosts(table: pd.DataFrame) -> Axes:
    """Copies of λmax and loss of orthogonality against steps.

    Args:
        table: From ``known.ghosts``.
    """
    left, right = panels(2, height=2.7, share=False)
    for full, colour, name in ((True, BLUE, "with"), (False, ORANGE, "without")):
        part = table[table["reorthogonalise"] == full]
        left.step(part["steps"], part["copies"], where="post", color=colour, label=name)
        right.semilogy(part["steps"], part["lost"].clip(lower=_FLOOR), color=colour)
    left.set_title("copies of λmax")
    left.legend(title="re-orthogonalisation", fontsize=7)
    right.set_title("largest |VVᵀ − 1|")
    for ax, column in ((left, "copies"), (right, "lost")):
        ax.set_xlabel("steps")
        ends = table.groupby("reorthogonalise")[column].last()
        ax.set_label(f"last: {ends[True]:.2g} with, {ends[False]:.2g} without.")
    return left


@styled
def density(spectrum: Spectrum, truth: NDArray[np.float64], sigma: float) -> Axes:
    """Estimated density with converged lines as stems, over that of the truth.

    Args:
        spectrum: Of one or more probes.
        truth: All eigenvalues. [n]
        sigma: Width of the kernel.
    """
    (ax,) = panels(1, height=2.8)
    margin = 4 * sigma
    grid = np.linspace(truth[0] - margin, truth[-1] + margin, 1200)
    kernel = np.exp(-(((grid[:, None] - truth) / sigma) ** 2) / 2)
    exact = kernel.mean(1) / (sigma * np.sqrt(2 * np.pi))
    smooth = spectrum.density(grid, sigma, lines=False)
    single = np.unique(spectrum.nodes[spectrum.lines].numpy().round(6))
    low = 0.1 / (len(truth) * sigma)
    ax.semilogy(grid, exact.clip(low / 10), color=GREY, label="all eigenvalues")
    ax.semilogy(grid, smooth.clip(low / 10), "--", color=BLUE, label="Lanczos")
    if len(single):
        height = 1 / (len(truth) * sigma * np.sqrt(2 * np.pi))
        ax.vlines(single, low, height, color=ORANGE)
        ax.plot(single, np.full(len(single), height), "o", color=ORANGE, markersize=4,
                label="converged lines")  # fmt: skip
    ax.set_ylim(low, None)
    ax.set_xlabel("eigenvalue")
    ax.set_ylabel("density")
    ax.legend(fontsize=7)
    ax.set_label(f"{len(single)} converged lines from {truth[0]:g} to {truth[-1]:g}.")
    return ax


@styled
def causes(table: pd.DataFrame) -> Axes:
    """Extreme Ritz values of a positive operator, in the four cells of causes.

    Args:
        table: From ``known.causes``.
    """
    (ax,) = panels(1, height=2.6)
    cells = list(table.groupby(["operator", "beta"], sort=False))
    for place, ((operator, _), part) in enumerate(cells):
        colour = BLUE if operator == "fixed" else ORANGE
        spread = np.linspace(-0.15, 0.15, len(part))
        ax.vlines(place + spread, part["low"], part["high"], color=colour)
        ax.plot(place + spread, part["low"], "v", color=colour, markersize=4)
        ax.plot(place + spread, part["high"], "^", color=colour, markersize=4)
    ax.axhline(0, color=GREY, linewidth=1)
    ax.set_xticks(range(len(cells)), [f"{o},\nβ {b}" for (o, b), _ in cells])
    ax.set_ylabel("extreme Ritz values")
    told = [
        f"{operator}, β {beta}: ratio {part['ratio'].mean():.2g}"
        for (operator, beta), part in cells
    ]
    ax.set_label("; ".join(told) + ".")
    return ax
