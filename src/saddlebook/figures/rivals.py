"""Optimizers and controls beside what others printed: the tables of chapter 9.

Accuracies are test accuracies in percent; every table takes records or printed numbers
as ``report`` gives them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd
from matplotlib.axes import Axes

from saddlebook.figures.style import panels, styled
from saddlebook.figures.sweeps import look
from saddlebook.findings import report

if TYPE_CHECKING:
    from saddlebook.record import Record

_GROUPS = ("overall", "tail")
_UNPUBLISHED = "undecided: protocol not published"
_DATASETS = {"cifar10": "CIFAR-10-LT", "cifar100": "CIFAR-100-LT"}


def printed_tails(printed: pd.DataFrame) -> str:
    """The paper's tail accuracies in words, such as for a claim box."""
    tail = printed[printed["group"] == "tail"]
    pairs = zip(tail["method"], tail["mean"], strict=True)
    return ", ".join(f"{method} {value:.1f}" for method, value in pairs)


def comparison(records: Sequence[Record], printed: pd.DataFrame) -> pd.DataFrame:
    """Ours beside the paper's, one row per optimizer.

    A printed number is undecided where the paper's settings are not published; else the
    verdict is that of ``report.cells``, which gives one at ``full`` scale only.

    Args:
        records: Of ``optimizers``, of one scale; may be empty.
        printed: ``report.paper("optimizers", "cifar10")``.
    """
    cells = report.cells(report.by_method(records), printed) if records else None
    rows = []
    for method, part in printed.groupby("method", sort=False):
        theirs = part.set_index("group")
        row: dict[str, Any] = {"optimizer": method, "runs": 0}
        words = []
        for group in _GROUPS:
            row[group], row[f"{group}, paper"] = "–", f"{theirs['mean'][group]:.1f}"
            if cells is not None:
                mine = cells[cells["method"].eq(method) & cells["group"].eq(group)]
                seen: Any = mine.iloc[0]
                row |= {"runs": seen["n"], group: report.plus_minus(seen)}
                words += [f"{group} {seen['word']}"] if seen["word"] else []
        published = (theirs["settings"] == "published").all()
        row["verdict"] = ", ".join(words) or "–" if published else _UNPUBLISHED
        rows.append(row)
    return pd.DataFrame(rows).set_index("optimizer")


def reruns(tuned: pd.DataFrame, printed: pd.DataFrame) -> pd.DataFrame:
    """What weight decay alone gave another group, beside the paper's gain from SAM.

    Args:
        tuned: ``report.paper("reruns")``.
        printed: ``report.paper("table1")``.
    """
    tuned = tuned[(tuned["imbalance"] == "exp") & (tuned["imbalance_factor"] == 100)]
    names = {"no": "re-run", "yes": "re-run, weight decay tuned"}
    theirs = tuned.assign(column=tuned["tuned_weight_decay"].map(names))
    overall = printed[printed["group"] == "overall"]
    base = overall["method"].str.removesuffix("+SAM")
    sam = (
        overall["method"].str.endswith("+SAM").map({False: "paper", True: "paper, SAM"})
    )
    table = pd.concat([theirs, overall.assign(method=base, column=sam)])
    table = table[table["method"].isin(set(theirs["method"]))]
    table["dataset"] = table["dataset"].map(_DATASETS)
    wide = table.pivot(index=["dataset", "method"], columns="column", values="mean")
    flat = wide.map("{:.1f}".format).rename_axis(columns=None).reset_index()
    columns = ["method", "paper", *names.values(), "paper, SAM"]
    return flat.set_index("dataset")[columns]


@styled
def strips(table: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Overall and tail accuracy of each method, every run a point, means marked.

    Args:
        table: From ``sweeps.by_group``: ``method group accuracy``; may be empty.
        ax: To draw on.
    """
    methods = list(dict.fromkeys(table["method"]))
    ax = ax or panels(height=1.0 + 0.35 * max(2, len(methods)))[0]
    told = []
    for i, (group, part) in enumerate(table.groupby("group", sort=False)):
        places = part["method"].map(methods.index) + 0.2 * i - 0.1
        style = look(str(group), i)
        ax.plot(
            part["accuracy"], places, linestyle="", markersize=3.5, alpha=0.5, **style
        )
        means = part.groupby("method")["accuracy"].mean().reindex(methods)
        rows = [k + 0.2 * i - 0.1 for k in range(len(methods))]
        ax.plot(means, rows, linestyle="", markersize=7, label=str(group), **style)
        told += [f"{group}, {name}: {mean:.1f}" for name, mean in means.items()]
    ax.set_yticks(range(len(methods)), methods)
    ax.set_ylim(max(1, len(methods)) - 0.5, -0.5)
    ax.set_xlabel("test accuracy (%)")
    if told:
        ax.legend(handlelength=1.5)
    ax.set_label(f"Accuracy by method: {'; '.join(told) or 'not run yet'}.")
    return ax
