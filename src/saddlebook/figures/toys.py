"""Draws toy landscapes (chapter 3) and Lanczos on known spectra (chapter 4).

Tables, walks and spectra from ``theory`` in, matplotlib Axes out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap, LogNorm
from matplotlib.patches import Ellipse
from matplotlib.ticker import FuncFormatter, NullLocator
from numpy.typing import NDArray

from saddlebook.curvature.spectrum import Spectrum
from saddlebook.figures.style import BLUE, COLOURS, GREY, INK, ORANGE, panels, styled
from saddlebook.theory import saddles
from saddlebook.theory.landscapes import EscapeMap, Rule, double_well, walk

_FLOOR = 1e-16  # of the logarithmic axis


@styled
def plot_convergence(tables: Mapping[str, pd.DataFrame]) -> Axes:
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
def plot_ghosts(table: pd.DataFrame) -> Axes:
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
def plot_known_density(
    spectrum: Spectrum, truth: NDArray[np.float64], sigma: float
) -> Axes:
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
def plot_known_causes(table: pd.DataFrame) -> Axes:
    """Extreme Ritz values of a positive operator, in the four cells of causes.

    Args:
        table: From ``known.known_causes``.
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


_MARKERS, _DASHES = "osD^v", ("-", "--", "-.", (0, (1, 1)))
# viridis without its darkest part, which a dark page would swallow
_FROM_BLUE = ListedColormap(mpl.colormaps["viridis"](np.linspace(0.2, 1, 200)))
_BANDS = ((0, 1, "damped"), (1, 2, "reversed"), (2, 4.2, "amplified"))


@styled
def plot_factor(tables: Mapping[str, pd.DataFrame]) -> Axes:
    """Second moment and mean step over SGD's against a: lines predict, marks measure.

    Args:
        tables: From ``landscapes.moments``, by name; standard errors are smaller than
            the marks.
    """
    (ax,) = panels(1, height=3.6)
    a = np.linspace(0, 4.2, 43)
    ax.plot(a, (1 - a) ** 2, color=INK, label="second moment (1 − a)²")
    ax.plot(a, 1 - a, color=INK, linestyle="--", label="mean step 1 − a")
    told = []
    for i, (name, table) in enumerate(tables.items()):
        style: dict[str, Any] = {"color": COLOURS[i], "linestyle": "", "markersize": 4}
        style["marker"] = _MARKERS[i]
        if not np.allclose(table["predicted"], (1 - table["a"]) ** 2):
            ax.plot(table["a"], table["predicted"], color=COLOURS[i], linewidth=1)
        ax.plot(table["a"], table["measured"], label=name, **style)
        ax.plot(table["a"], table["drift"], **style)
        told.append(f"{name}: second moment {_ends(table['a'], table['measured'])}")
        told.append(f"mean step {_ends(table['a'], table['drift'])}")
    for i, (low, high, name) in enumerate(_BANDS):
        ax.axvspan(low, high, color=INK, alpha=0.04 + 0.06 * i, linewidth=0)
        ax.text((low + high) / 2, 15.5, name, ha="center", va="top")
    ax.axhline(0, color=INK, linewidth=0.8)
    ax.axhline(1, color=INK, linewidth=0.8, linestyle=":")
    ax.set(xlabel="scaled radius a", ylabel="times SGD's", xlim=(0, 4.2), ylim=(-4, 16))
    ax.set(xticks=range(5), yticks=[-3, -1, 0, 1, 5, 10, 15])
    ax.tick_params(bottom=False, left=False)
    ax.legend(loc="upper left", bbox_to_anchor=(0, 0.92))
    ax.set_label(f"against a. {'; '.join(told)}.")
    return ax


def _ends(x: Any, y: Any) -> str:
    x, y = list(x), list(y)
    return f"from {y[0]:.2f} at {x[0]:g} to {y[-1]:.2f} at {x[-1]:g}"


@styled
def plot_escape_maps(maps: Sequence[EscapeMap]) -> Axes:
    """Escape times over radius and η·|λ|; dashed, the predicted edges of the traps."""
    row = panels(len(maps), height=2.7)
    for ax, one in zip(row, maps, strict=True):
        shown = np.where(np.isfinite(one.times), one.times, np.nan)
        mesh = ax.pcolormesh(
            one.radii, one.rates, shown, norm=LogNorm(3, one.steps), cmap=_FROM_BLUE,
            rasterized=True,
        )  # fmt: skip
        ax.patch.set(color=INK, alpha=0.2)  # never: neither end of the colours
        place = (0.5, 0.2) if not one.normalised else (0.66, 0.25)
        ax.text(*place, "never", transform=ax.transAxes, ha="center")
        for x, y in one.edges:
            ax.plot(x, y, color=ORANGE, linewidth=1.4, linestyle="--")
        kind = "as used" if one.normalised else "plain"
        ax.set(xscale="log", yscale="log", title=f"{kind}, β = {one.momentum:g}")
        ax.set(xlim=one.radii[[0, -1]], ylim=one.rates[[0, -1]])
        ax.set_xlabel("ρ / start" if one.normalised else "a = ρ|λ|")
        for axis in (ax.xaxis, ax.yaxis):
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axis.set_minor_locator(NullLocator())
        ax.grid(visible=False)
        ax.label_outer()
        share = 100 * np.isnan(shown).mean()
        ax.set_label(f"{share:.0f} % of the map stays for {one.steps} steps.")
    row[0].set_ylabel("η|λ|")
    bar = row[0].figure.colorbar(mesh, ax=row, label="steps to escape", pad=0.01)
    bar.ax.minorticks_off()
    return row[0]


@styled
def plot_portrait(rho: float, step_size: float = 0.05) -> Axes:
    """Paths of SGD and of normalised SAM on the double well, without noise.

    Starts lie on a grid of both signs; the shaded ellipse is where ‖H·w‖ < ρ·|λ| at
    the saddle.
    """
    land = double_well()
    start = np.stack(np.meshgrid([-1.2, -0.4, 0.8], [-0.5, -0.15, 0.15, 0.5]))
    start = start.reshape(2, -1)
    left, right = panels(2, height=3.3)
    level = np.linspace(-1.5, 1.5, 21)
    plane = np.stack(np.meshgrid(level, level))
    height = land.loss(plane.reshape(2, -1)).reshape(21, 21)
    for ax, radius, colour in ((left, 0.0, BLUE), (right, rho, ORANGE)):
        seen = walk(land, start, Rule(step_size, radius), steps=90, exit=None, every=5)
        ax.contour(level, level, height, [-0.15, 0], colors=INK, linewidths=0.4)
        ax.plot(*seen.path.transpose(1, 0, 2), color=colour, linewidth=1)
        ax.plot(*start, "o", color=colour, markersize=2)
        ends = np.unique(seen.position.round(2), axis=1)
        ax.plot(*ends, "s", color=INK, markersize=4)
        ax.set(xlabel="x", xlim=(-1.4, 1.4), ylim=(-1.3, 1.3))
        ax.set(xticks=[-1, 0, 1], yticks=[-1, 0, 1])
        ax.tick_params(bottom=False, left=False)
        ax.grid(visible=False)
        stay = int((np.abs(seen.position[1]) < 0.5).sum())
        ax.set_label(f"{stay} of {start.shape[1]} walkers end at the saddle.")
        ax.set_title("SGD" if not radius else f"SAM, ρ = {radius:g}")
    trap = float(saddles.attracting_radius(rho, land.lambda_min))
    right.add_patch(
        Ellipse((0, 0), 2 * trap, 2 * trap, color=ORANGE, alpha=0.2, linewidth=0)
    )
    left.set_ylabel("y, along v")
    return left


@styled
def plot_arrivals(tables: Mapping[str, pd.DataFrame]) -> Axes:
    """Share of walkers that reach a minimum against ρ, a line for each noise.

    Args:
        tables: From ``landscapes.arrivals``, by name; one panel each. Dotted: the
            radius at which the mean step at the saddle turns round, without momentum.
    """
    row = panels(len(tables), height=2.8)
    for ax, (title, table) in zip(row, tables.items(), strict=True):
        told = []
        for i, (sigma, part) in enumerate(table.groupby("sigma")):
            name = f"σ = {float(str(sigma)):g}"
            style: dict[str, Any] = {"color": COLOURS[i], "linestyle": _DASHES[i]}
            ax.plot(part["rho"], part["arrived"], label=name, **style)
            edge = float(saddles.noisy_radius(float(str(sigma)), -1.0))
            ax.axvline(edge, color=COLOURS[i], linewidth=1, linestyle=":")
            told.append(f"{name} {_ends(part['rho'], part['arrived'])}")
        ax.set(xlabel="ρ (0 is SGD)", title=title, ylim=(-5, 105))
        ax.set(xticks=[0, 0.5, 1], yticks=[0, 50, 100])
        ax.tick_params(bottom=False, left=False)
        ax.set_label(f"against ρ: {'; '.join(told)}.")
    row[0].set_ylabel("walkers at a minimum (%)")
    row[0].legend()
    return row[0]
