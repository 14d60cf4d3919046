"""The figure of the ``spectra`` command: a density a class, as an SVG file.

Knows items of a spectra record; no network, no file.
"""

from __future__ import annotations

from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from saddlebook.errors import printable
from saddlebook.figures import density as curvature_density
from saddlebook.figures import style as svg

_COLUMNS, _MOST = 2, 12  # panels of a row and of a figure; the table has every class


def densities(items: list[dict[str, Any]]) -> bytes:
    """Spectral densities on symmetric-log axes, linear below the widest bound.

    Stems are single converged eigenvalues; the first twelve classes are drawn.
    """
    shown = items[:_MOST]
    columns = min(_COLUMNS, len(shown))
    rows = -(-len(shown) // columns)
    axes = svg.panels(columns, height=2.6 * rows, rows=rows)
    for ax, item in zip(axes, shown, strict=False):
        known = "" if all(item["converged"]) else " (ends unconverged)"
        _panel(item, ax)
        name = f"class {item['class']} {printable(item['name'])}{known}"
        ax.set_title(name, parse_math=False)
    for ax in axes[len(shown) :]:
        ax.remove()
    axes[0].set_ylabel("share of eigenvalues a decade")
    figure = axes[0].figure
    assert isinstance(figure, Figure)
    return svg.standalone(figure)


def _panel(item: dict[str, Any], ax: Any) -> None:
    bounds = item["lambda_min_bound"], item["lambda_max_bound"]
    scale = max(abs(item["lambda_min"]), abs(item["lambda_max"]))
    if scale == 0:
        ax.set_xlabel("no curvature at all")
        return
    row = {"item": item, "method": "this network", "reported": False}
    linear = max(*bounds, 1e-6 * scale)
    curvature_density.density(pd.DataFrame([row]), linear, ax)
