"""Tables of curvature for readers: numbers with their bounds or ranges, in words.

Table from ``curvature`` in, table of text or a sentence out. Brackets mark what a
released mode reports though it is no eigenvalue of a fixed operator.
"""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from saddlebook.data import class_groups
from saddlebook.findings.spectra import LAST, NONE, SWITCH, pick, subject

_BOTH = {"as_published": "as published", "clean": "images fixed"}


def sheet(table: pd.DataFrame, by: Sequence[str] = ("label",)) -> pd.DataFrame:
    """For readers: both ends, their ratio, loss and gradient, one row per ``by``.

    One run: value ± bound. More: mean and range over runs. Brackets: what a released
    mode reports though it is no eigenvalue of a fixed operator. Loss, gradient, slope
    and fall are those of the fixed images in every mode, and named so where another
    mode is shown.
    """
    names = {"label": "class", "data": "images from", "recurrence": "mode"}
    if table.empty:
        return pd.DataFrame({"spectra": [NONE]}, index=["–"])
    fixed = "" if table["recurrence"].eq("clean").all() else ", fixed images"
    rows = []
    for keys, part in table.groupby(list(by), sort=False):
        row = {names.get(k, k): key for k, key in zip(by, keys, strict=True)}
        row |= {"images": f"{part['images'].iloc[0]:.0f}"}
        row |= {"runs": part["seed"].nunique()}
        row |= {
            title: text(part, name)
            for title, name in (
                ("λmin", "lambda_min"), ("λmax", "lambda_max"),
                ("|λmin/λmax|", "nonconvexity"),
            )
        }  # fmt: skip
        row |= {
            f"{title}{fixed}": f"{part[name].mean():{form}}"
            for title, name, form in (
                ("loss", "loss", ".2g"), ("‖g‖", "gradient_norm", ".2g"),
                ("slope", "slope", ".2g"), ("fall", "fall", "+.2g"),
            )
        }  # fmt: skip
        rows.append(row)
    return pd.DataFrame(rows).set_index(names.get(by[0], by[0]))


def ratios(table: pd.DataFrame) -> pd.DataFrame:
    """For readers: |λmin/λmax| after the last epoch, one row per class, as text.

    A column per method and way to measure: images fixed, or as published.
    """
    part = pick(table, stage=LAST, mode=["clean", "as_published"])
    part = part.sort_values(["label", "optimizer"], ascending=[True, False])
    if part.empty:
        return sheet(part)
    part = part.assign(name=[subject(row) for _, row in part.iterrows()])
    told: dict[str, dict[str, str]] = {}
    for (name, method, mode), group in part.groupby(
        ["name", "method", "mode"], sort=False
    ):
        column = f"{method}, {str(mode).replace('_', ' ')}"
        told.setdefault(str(name), {})[column] = text(group, "nonconvexity")
    wide = pd.DataFrame.from_dict(told, orient="index").fillna("–")
    return wide.rename_axis("class, images")


def text(part: pd.DataFrame, name: str) -> str:
    """A number over runs with its bound or range; says where it is no result."""
    values = part[name].dropna()
    if values.empty:
        return "not converged" if len(part) else NONE
    if len(values) == 1:
        told = f"{values.iloc[0]:.3g}"
        bound = part.loc[values.index[0], f"{name}_bound"]
        if not part["reported"].any():
            told += f" ± {bound:.1g}"
    else:
        told = f"{values.mean():.3g} ({values.min():.3g} to {values.max():.3g})"
    lost = len(part) - len(values)
    told = f"[{told}]" if part["reported"].any() else told
    return told + (f", {lost} not converged" if lost else "")


def gaps(table: pd.DataFrame, printed: pd.DataFrame) -> pd.DataFrame:
    """Distance of our ratios to the paper's at each stage: where do they agree?

    One row per method and stage: ``points`` (classes measured in both ways), the mean
    distance of what is measured as published and with images fixed, and how many of the
    former lie more than 0.5 off. Ours is the mean over runs.
    """
    rows = []
    for (method, stage), off in _distances(table, printed).groupby(["method", "stage"]):
        row = {"method": method, "epoch": stage, "points": len(off)}
        row |= {told: f"{off[mode].mean():.2f}" for mode, told in _BOTH.items()}
        row["off by more than 0.5"] = int((off["as_published"] > 0.5).sum())
        rows.append(row)
    return pd.DataFrame(rows).set_index("method") if rows else sheet(table[:0])


def before_and_after(table: pd.DataFrame, printed: pd.DataFrame, method: str) -> str:
    """Distance to the paper's points before and after re-weighting starts, in words."""
    off = _distances(table, printed)
    off = off[off["method"] == method]
    told = [
        f"{name} it, {len(part)} points: {part['as_published'].mean():.2f} as "
        f"published ({(part['as_published'] > 0.5).sum()} off by more than 0.5), "
        f"{part['clean'].mean():.2f} with images fixed"
        for name, part in (
            ("before", off[off["stage"] <= SWITCH]),
            ("after", off[off["stage"] > SWITCH]),
        )
        if len(part)
    ]
    return "; ".join(told) or NONE


def _distances(table: pd.DataFrame, printed: pd.DataFrame) -> pd.DataFrame:
    """Of our ratios, mean over runs, to the paper's; points measured in both ways."""
    keys, modes = ["method", "label", "stage"], list(_BOTH)
    part = pick(table, mode=modes)
    wide = part.pivot_table("nonconvexity", keys, "mode").reindex(columns=modes)
    both = wide.dropna().reset_index().merge(printed, on=keys)
    return both.assign(**{m: (both[m] - both["nonconvexity"]).abs() for m in modes})


def released_at_equal_loss(
    table: pd.DataFrame, low: float = 0.05, high: float = 0.45
) -> str:
    """What the released procedure reads where both optimizers' class losses overlap.

    Args:
        table: From ``spectra``.
        low: Class loss, nats.
        high: Class loss, nats.
    """
    part = pick(table, mode="as_published")
    part = part[part["loss"].between(low, high)]
    told = [
        f"{(some['nonconvexity'] >= 0.9).sum()} of {len(some)} measurements of "
        f"{method} read 0.9 or more, {(some['nonconvexity'] < 0.35).sum()} less than "
        "0.35"
        for method, some in part.groupby("method")
    ]
    return (
        f"at class losses of {low} to {high} nats, {'; '.join(told)}" if told else NONE
    )


def bends(fixed: pd.DataFrame) -> dict[str, str]:
    """How all classes bend with images fixed, in words.

    Returns:
        ``negative``: in how many λmin is negative beyond its bound; ``along``: the
        gradient along the lowest direction over its norm, median, percent;
        ``by_group``: the mean ratio by method and group.
    """
    down = fixed["lambda_min"] + fixed["lambda_min_bound"] < 0
    along = (fixed["gradient_along"] / fixed["gradient_norm"]).abs().median()
    of = {label: g for g, some in class_groups(10).items() for label in some}
    groups = fixed.assign(group=fixed["label"].map(of))
    means = groups.groupby(["method", "group"], sort=False)["nonconvexity"].mean()
    names = [", ".join(map(str, keys)) for keys in means.index]
    told = [f"{name} {mean:.3f}" for name, mean in zip(names, means, strict=True)]
    return {
        "negative": f"{down.sum()} of {len(down)}",
        "along": f"{100 * along:.1f}",
        "by_group": "; ".join(told) or NONE,
    }


def coverage(table: pd.DataFrame) -> str:
    """Runs and spectra behind a page, in words."""
    if table.empty:
        return NONE
    runs = table.groupby("method", sort=False)["seed"].nunique()
    told = ", ".join(f"{count} of {method}" for method, count in runs.items())
    lost = int((table["nonconvexity"].isna() & ~table["reported"]).sum())
    return f"{len(table)} spectra of networks: {told}; {lost} not converged"


def spread(table: pd.DataFrame, name: str) -> str:
    """Least, median and greatest of a column in words."""
    values = table[name].dropna()
    if values.empty:
        return NONE
    low, middle, high = values.min(), values.median(), values.max()
    return f"{low:.2g} to {high:.2g} (median {middle:.2g})"
