"""Spectral densities on a symmetric-log axis, single eigenvalues as stems.

Table from ``curvature`` in, matplotlib Axes out.

References:
    Rangwani et al. 2022 (symmetric-log spectra); Ghorbani et al. 2019 (density).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, NullLocator
from numpy.typing import NDArray

from saddlebook.curvature.spectrum import Spectrum
from saddlebook.figures.spectra import empty, legend_once
from saddlebook.figures.style import COLOURS, panels, styled
from saddlebook.findings.spectra import LAST, pick
from saddlebook.findings.spectra import label as class_number

_DASHES = ("-", "--")
WIDTH = 0.1  # of the kernel, in decades


@styled
def spectra(
    table: pd.DataFrame, labels: Sequence[int] = (0, 5, -2), mode: str = "clean"
) -> Axes:
    """Densities at the last epoch: a panel a class, SGD and SAM over each other.

    Symmetric-log axis, linear below the widest bound of the fixed measurements shown;
    the curve is the share of eigenvalues a decade, Gaussian kernels of ``WIDTH``;
    stems are single converged eigenvalues, weight 1/n. First seed of each method.

    Args:
        table: From ``curvature.spectra``.
        labels: Classes; negative ones count from the rarest.
        mode: Of measurement.
    """
    axes = panels(len(labels), height=2.9)
    for ax, one in zip(axes, labels, strict=True):
        number = class_number(table, one)
        part = pick(table, label=number, stage=LAST)
        density(part[part["mode"] == mode], threshold(part), ax)
        ax.set_title(f"class {number}")
    legend_once(axes)
    axes[0].set_ylabel("share of eigenvalues a decade")
    return axes[0]


def threshold(part: pd.DataFrame) -> float:
    """Where the axis turns linear: the widest bound of a fixed measurement."""
    fixed = part[~part["reported"]]
    bounds = fixed[["lambda_min_bound", "lambda_max_bound"]].to_numpy(float)
    return float(np.max(bounds)) if bounds.size else 0.01


@styled
def density(part: pd.DataFrame, linear: float, ax: Axes | None = None) -> Axes:
    """Spectral density of one class for each method, on a symmetric-log axis.

    Args:
        part: Rows of one class, stage and mode, with stored nodes.
        linear: Where the axis turns linear.
        ax: To draw on.
    """
    ax = ax or panels()[0]
    part = part[[("nodes" in item) for item in part["item"]]]
    if part.empty:
        return empty(ax)
    told, widest = [], 0.0
    for _, row in part.drop_duplicates("method").iterrows():
        spectrum, i = Spectrum.from_dict(row["item"]), int("SAM" in row["method"])
        widest = max(widest, spectrum.scale)
        reach = coordinate(spectrum.scale, linear) + 4 * WIDTH
        places = np.linspace(-reach, reach, 800)
        lines = spectrum.lines.numpy() & (not row["reported"])
        known = spectrum.weights if row["reported"] else spectrum.density_weights
        weights = np.where(lines, 0.0, known.numpy())
        centres = coordinate(spectrum.nodes.numpy(), linear)
        curve = _smooth(places, centres.ravel(), weights.ravel())
        ax.plot(_back(places, linear), curve, color=COLOURS[i], label=row["method"],
                linestyle=_DASHES[i])  # fmt: skip
        single = spectrum.nodes.numpy()[lines]
        ax.vlines(single, 1e-9, 1 / spectrum.size, color=COLOURS[i], linewidth=0.9)
        told.append(
            f"{row['method']} from {row['item']['lambda_min']:.3g} to "
            f"{row['item']['lambda_max']:.3g}, {int(lines.sum())} single lines"
        )
    ax.set_yscale("log")
    ax.set_ylim(0.1 / spectrum.size, 30)
    _symlog(ax, linear, 1.5 * widest)
    ax.set_xlabel("eigenvalue")
    ax.set_label(f"density of eigenvalues: {'; '.join(told)}.")
    return ax


def coordinate(values: Any, linear: float) -> Any:
    """Place on a symmetric-log axis, in decades, linear within ``linear``."""
    size = np.maximum(np.abs(values) / linear, 1e-300)
    return np.sign(values) * np.where(size > 1, 1 + np.log10(np.maximum(size, 1)), size)


def _back(places: NDArray[Any], linear: float) -> NDArray[Any]:
    size = np.abs(places)
    return np.sign(places) * linear * np.where(size > 1, 10 ** (size - 1), size)


def _smooth(
    places: NDArray[Any], centres: NDArray[Any], weights: NDArray[Any]
) -> NDArray[Any]:
    kernel = np.exp(-(((places[:, None] - centres) / WIDTH) ** 2) / 2)
    return np.asarray(kernel @ weights / (WIDTH * np.sqrt(2 * np.pi)))


def _symlog(ax: Axes, linear: float, reach: float) -> None:
    ax.set_xscale("symlog", linthresh=linear)
    ax.set_xlim(-reach, reach)
    top = np.floor(np.log10(reach))
    low = min(np.ceil(np.log10(linear)), top - 1)
    some = [10.0**top, 10.0 ** np.round((top + low) / 2), 10.0**low]
    some = list(dict.fromkeys(some))[:: 2 if len(some) > 2 else 1]
    ax.set_xticks([*(-t for t in some), 0, *some[::-1]])
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.xaxis.set_minor_locator(NullLocator())
