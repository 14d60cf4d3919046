"""Turns records into tables of accuracy, alone and beside the paper's numbers.

Pure functions on pandas tables; nothing here trains, draws or decides a scale. Accuracy
is in percent, differences in percent points. What the records say about the paper's
claims is in ``claims``, the statistics are in ``verdicts``.

References:
    ``results/paper/*.csv``: the paper's numbers as printed, each row with its source.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd

from saddlebook import data
from saddlebook.data import sources
from saddlebook.errors import UsageError, one_of, printable
from saddlebook.experiment import OWN
from saddlebook.findings import verdicts
from saddlebook.findings.verdicts import Sample, Verdict
from saddlebook.store import RESULTS
from saddlebook.studies import TUNING_SEEDS

if TYPE_CHECKING:
    from saddlebook.experiment import Experiment
    from saddlebook.record import Record

# Points, fixed before the reported runs; head and mid have none, so no verdict
MARGINS = {"overall": 1.5, "tail": 3.0}
PAPER_RUNS = 3  # behind each printed mean: assumed, no source says
CELL = ["method", "group"]
BASES = ("CE", "CE+DRW", "LDAM+DRW", "VS")
_LONGEST = 40  # of a class's name, characters
_NAMES = {"cifar10": "CIFAR-10-LT", "cifar100": "CIFAR-100-LT", "digits": "digits-LT"}
_CURVES = ("epoch", "accuracy", "head", "mid", "tail", "train_loss", "lr")
_IDENTITY = ("scale", "dataset", "imbalance_factor", "method", "rho", "weight_decay")


def paper(
    table: str, dataset: str | None = None, results: str | Path = RESULTS
) -> pd.DataFrame:
    """A table or figure of the paper as printed, one row a number.

    Args:
        table: ``table1``, ``optimizers``, ``rho``, ``large``, ``spectra``,
            ``dynamics``, ``reruns`` (another group's) or ``other``.
        dataset: Only its rows.
        results: Folder with ``paper/``; that of this checkout.

    Raises:
        UsageError: Unknown table, or it has no such dataset.
    """
    known = {path.stem: path for path in (Path(results) / "paper").glob("*.csv")}
    found = pd.read_csv(known[one_of("table of the paper", table, sorted(known))])
    if dataset is None:
        return found
    one_of(f"dataset of {table}", dataset, found["dataset"].unique())
    return found[found["dataset"] == dataset].reset_index(drop=True)


def setting(records: Sequence[Record]) -> str:
    """What all records share, for captions: data, network, length, seeds, scale."""
    exps = [record.experiment for record in records]
    images = _distinct(
        f"{_NAMES.get(e.dataset, e.dataset)} ({_counts(record)} images a class, "
        f"{e.image_size} px)"
        for e, record in zip(exps, records, strict=True)
    )
    network = _distinct(f"{e.model}, width {e.width}" for e in exps)
    epochs = _distinct(f"{e.epochs} epochs" for e in exps)
    seeds = ", ".join(str(seed) for seed in sorted({e.seed for e in exps}))
    scale = _distinct(e.scale for e in exps)
    return f"{images}; {network}; {epochs}; seeds {seeds}; scale {scale}"


def _counts(record: Record) -> str:
    exp, counts = record.experiment, record.per_class["class_counts"]
    how = "as is" if exp.imbalance == "as_is" else f"IF {exp.imbalance_factor:g}"
    return f"{how}, {max(counts)} to {min(counts)}"


def cost(records: Sequence[Record]) -> str:
    """Number of runs, median seconds and device, such as for a claim box."""
    seconds = [float(record.timing["seconds"]) for record in records]
    devices = _distinct(str(record.timing["device"]) for record in records)
    typical = pd.Series(seconds).median()
    return f"{len(seconds)} runs, median {typical:.0f} s each, on {devices}"


def _distinct(names: Iterable[str]) -> str:
    return " and ".join(dict.fromkeys(names))


def scores(records: Iterable[Record]) -> pd.DataFrame:
    """Every accuracy of every run: one row a record, choice of epoch and group.

    Columns ``scale dataset imbalance_factor method rho weight_decay seed setting
    choice group value``; ``choice`` is ``last`` (primary) or ``best`` (on the test
    set, the released code's habit); ``setting`` is the key without the seed.
    """
    return pd.DataFrame(
        [
            _identity(record) | {"choice": choice, "group": group, "value": value}
            for record in records
            for choice, found in (("last", record.accuracy), ("best", record.best))
            for group, value in found._asdict().items()
        ]
    )


def _identity(record: Record) -> dict[str, Any]:
    exp = record.experiment
    row = {name: getattr(exp, name) for name in (*_IDENTITY, "seed")}
    return row | {"setting": replace(exp.training, seed=0).key}


def once(records: Iterable[Record]) -> list[Record]:
    """Each training once, of reported seeds: without its spectra where it stands twice.

    Sorted by method and seed.
    """
    known = sorted(records, key=lambda r: not r.experiment.spectra_at)
    found = {r.experiment.training: r for r in known}
    runs = [r for r in found.values() if r.experiment.seed not in TUNING_SEEDS]
    return sorted(runs, key=lambda r: (r.experiment.method, r.experiment.seed))


def made_twice(records: Iterable[Record]) -> list[Record]:
    """Runs made twice with one seed, by two versions of the code, first and again.

    A record that only measures more of the same training is no second run.
    """
    twins: dict[Experiment, dict[str, Record]] = {}
    for record in sorted(records, key=lambda r: str(r.provenance["started"])):
        known = twins.setdefault(record.experiment.training, {})
        known.setdefault(str(record.provenance["numerics"]), record)
    pairs = (list(known.values())[:2] for known in twins.values() if len(known) > 1)
    return [record for pair in pairs for record in pair]


def replicates(twins: Sequence[Record]) -> pd.DataFrame:
    """What luck adds to a seed: accuracies of runs ``made_twice``.

    One row per run: ``method seed``, ``overall tail`` of the first, and how much higher
    the second is: ``overall again`` and ``tail again``.
    """
    rows = []
    for first, again in zip(twins[::2], twins[1::2], strict=True):
        row: dict[str, Any] = {"method": first.experiment.method}
        row["seed"] = first.experiment.seed
        for group in MARGINS:
            old, new = (getattr(r.accuracy, group) for r in (first, again))
            row |= {group: old, f"{group} again": new - old}
        rows.append(row)
    names = ["method", "seed", *(f"{g}{x}" for g in MARGINS for x in ("", " again"))]
    return pd.DataFrame(rows, columns=names)


def rerun_noise(pairs: pd.DataFrame, group: str = "tail") -> dict[str, float]:
    """Spread of a run repeated beside the spread of seeds, points; NaN without runs.

    Args:
        pairs: From ``replicates``.
        group: ``overall`` or ``tail``.

    Returns:
        ``difference``, root mean square of again minus first; ``largest`` of it;
        ``rerun``, the standard deviation of a single run that this means; ``seeds``,
        that of the first runs around their method's mean; ``luck``, the share of a
        rerun in their variance, percent.
    """
    off, first = pairs[f"{group} again"], pairs.groupby("method")[group]
    inside = pairs[group] - first.transform("mean")
    free = max(1, len(pairs) - first.ngroups)
    square, spread = float((off**2).mean()), float((inside**2).sum() / free)
    return {
        "difference": square**0.5,
        "largest": float(off.abs().max()),
        "rerun": (square / 2) ** 0.5,
        "seeds": spread**0.5,
        "luck": 50 * square / spread if spread else float("nan"),
    }


def gain_again(
    pairs: pd.DataFrame, other: str, base: str, group: str = "tail"
) -> tuple[float, ...]:
    """``other`` minus ``base`` of each seed in the second set of runs."""
    second = pairs.assign(value=pairs[group] + pairs[f"{group} again"])
    wide = second.pivot(index="seed", columns="method", values="value")
    wide = wide.reindex(columns=[other, base]).dropna()
    return tuple(wide[other] - wide[base])


def by_method(
    records: Iterable[Record], by: Sequence[str] = ("dataset", "method")
) -> pd.DataFrame:
    """Mean, spread, 95 % t-interval and every seed's value of each method.

    One row a method, choice (``last``, ``best``) and group (``overall``, ``head``,
    ``mid``, ``tail``): ``scale, *by, choice, group, mean, sd, n, low, high, values,
    seeds``. Fewer than three runs have no interval (NaN).

    Args:
        records: Runs; those of one method may differ in the seed only.
        by: What tells methods apart; add ``"rho"`` for a study of radii.

    Raises:
        UsageError: No records, or runs that must not be pooled.
    """
    table = scores(records)
    if table.empty:
        raise UsageError("no records to report; run the study first")
    _check_poolable(table, by)
    rows = []
    keys = ["scale", *by, "choice", "group"]
    for names, part in table.groupby(keys, sort=False):
        part = part.sort_values("seed")
        values = tuple(part["value"])
        row = dict(zip(keys, names, strict=True))
        row |= verdicts.sample(values)._asdict()
        row |= verdicts.t_interval(values)._asdict()
        rows.append(row | {"values": values, "seeds": tuple(part["seed"])})
    return pd.DataFrame(rows)


def _check_poolable(table: pd.DataFrame, by: Sequence[str]) -> None:
    for name in by:
        one_of("column", name, table.columns)
    for names, part in table.groupby(["scale", *by], sort=False):
        label = " ".join(str(name) for name in names)
        if part["setting"].nunique() > 1:
            raise UsageError(
                f"runs of {label} differ in more than the seed; tell them apart with "
                "by=, for instance by=('dataset', 'method', 'rho')"
            )
        if part.duplicated(["seed", "choice", "group"]).any():
            raise UsageError(f"a seed of {label} stands twice; give each run once")


def summary(ours: pd.DataFrame, groups: Sequence[str] = tuple(MARGINS)) -> pd.DataFrame:
    """``by_method`` as readers want it: methods down, last, best and their gap across.

    Means with half the width of the 95 % t-interval, as text. The gap is what choosing
    the epoch on the test set adds.
    """
    rows: dict[str, dict[tuple[str, str], str]] = {}
    for (method, group), part in ours.groupby(["method", "group"], sort=False):
        if group not in groups:
            continue
        last, best = (
            part[part["choice"] == choice].iloc[0] for choice in ("last", "best")
        )
        row = rows.setdefault(str(method), {("", "runs"): str(last["n"])})
        row[str(group), "last epoch"] = plus_minus(last)
        row[str(group), "best on test"] = plus_minus(best)
        row[str(group), "gap"] = f"{best['mean'] - last['mean']:+.1f}"
    return pd.DataFrame.from_dict(rows, orient="index")


def head_to_tail(records: Iterable[Record], method: str) -> str:
    """Accuracy of head and tail, last epoch: ``60.1 ± 0.5 % to 12.0 ± 1.0 %``."""
    runs = [record for record in records if record.experiment.method == method]
    if not runs:
        return "not run yet"
    table = by_method(runs)
    last = table[table["choice"] == "last"].set_index("group")
    told = [f"{plus_minus(last.loc[group])} %" for group in ("head", "tail")]
    return f"{' to '.join(told)} ({len(runs)} runs)"


def plus_minus(row: Any) -> str:
    """Mean ± half the width of the interval, one decimal; just the mean without one."""
    half = (row["high"] - row["low"]) / 2
    return f"{row['mean']:.1f}" + (f" ± {half:.1f}" if half == half else "")


def cells(
    ours: pd.DataFrame, printed: pd.DataFrame, choice: str = "last"
) -> pd.DataFrame:
    """Ours beside the paper's, one row per printed number, with its verdict.

    At another scale than ``full`` a cell is another setting: no verdict. Head and mid
    have no margin and so no verdict either. A row whose settings were not published,
    or with fewer than three runs, is undecided.

    Args:
        ours: From ``by_method``, of one scale and dataset.
        printed: ``paper("table1", dataset=…)``, or ``optimizers``.
        choice: Epoch compared: ``last`` or ``best``.

    Returns:
        ``method group paper spread settings scale dataset mean sd n low high values
        seeds difference word reason note``.

    Raises:
        UsageError: More than one scale or dataset, or another dataset at full scale.
    """
    one_of("choice", choice, ("last", "best"))
    scale = common_scale(ours, printed)
    columns = [*CELL, "mean", "spread", "settings"]
    theirs = printed[columns].rename(columns={"mean": "paper"})
    chosen = ours[ours["choice"] == choice].drop(columns="choice")
    table = theirs.merge(chosen, on=CELL, how="left")
    table["n"] = table["n"].fillna(0).astype(int)
    table["difference"] = table["mean"] - table["paper"]
    found = [_cell(row, scale) for _, row in table.iterrows()]
    return table.join(pd.DataFrame(found, index=table.index))


def common_scale(ours: pd.DataFrame, printed: pd.DataFrame) -> str:
    """The scale of all runs, after a check that the paper's numbers belong to them.

    Below ``full`` scale the paper's numbers are another setting's, and may be another
    dataset's; beside own images they are that at any scale, which is then named so.

    Raises:
        UsageError: See ``cells``.
    """
    for table, column in ((ours, "scale"), (ours, "dataset"), (printed, "dataset")):
        if table[column].nunique() > 1:
            names = _distinct(table[column])
            raise UsageError(f"one {column} at a time, not {names}; take some rows")
    scale, ours_of = (str(ours[column].iloc[0]) for column in ("scale", "dataset"))
    if ours_of.startswith(OWN):
        return f"{scale}, own images"
    if scale == "full" and ours_of != printed["dataset"].iloc[0]:
        raise UsageError(f"the paper's numbers given are not of {ours_of}")
    return scale


def printed_effects(
    printed: pd.DataFrame, *, n: int = PAPER_RUNS, unknown_spread: float = 0.2
) -> pd.DataFrame:
    """What the paper's own table supports: SAM minus base, Welch, Holm over 16.

    Args:
        printed: ``paper("table1")``.
        n: Runs behind a printed mean, assumed.
        unknown_spread: Taken for the one misprinted spread (0.2 or 1.2).

    Returns:
        One row per dataset and comparison: ``dataset base other group difference p
        p_holm``.
    """
    table = printed.fillna({"spread": unknown_spread})
    columns = [table[name] for name in ("dataset", *CELL, "mean", "spread")]
    known = {
        (dataset, method, group): Sample(mean, spread, n)
        for dataset, method, group, mean, spread in zip(*columns, strict=True)
    }
    pairs = [
        (dataset, base, f"{base}+SAM", group)
        for dataset in table["dataset"].unique()
        for base in BASES
        for group in MARGINS
    ]
    tests = [
        verdicts.welch(known[dataset, other, group], known[dataset, base, group])
        for dataset, base, other, group in pairs
    ]
    p_values = [test.p_zero() for test in tests]
    return pd.DataFrame(pairs, columns=["dataset", "base", "other", "group"]).assign(
        difference=[test.mean for test in tests],
        p=p_values,
        p_holm=verdicts.holm(p_values),
    )


class Order(NamedTuple):
    """Agreement of two orders: Kendall's τ, its one-sided p, pairs of methods."""

    tau: float
    p: float
    agreeing: int
    pairs: int


def order(ours: pd.DataFrame, printed: pd.DataFrame, group: str = "tail") -> Order:
    """Do the methods stand in the paper's order? One test against random orders.

    Args:
        ours: From ``by_method``; means of the last epoch are compared.
        printed: From ``paper``.
        group: ``overall`` or ``tail``.
    """
    from scipy.stats import kendalltau

    table = cells(ours, printed)
    table = table[(table["group"] == group) & table["mean"].notna()]
    left, right = table["mean"].to_numpy(), table["paper"].to_numpy()
    found = kendalltau(left, right, alternative="greater")
    products = np.subtract.outer(left, left) * np.subtract.outer(right, right)
    above = products[np.triu_indices(len(table), 1)]
    return Order(
        float(found.statistic), float(found.pvalue), int((above > 0).sum()), len(above)
    )


def _cell(row: Any, scale: str) -> Verdict:
    if scale != "full":
        return Verdict("", "another setting than the paper's")
    if row["group"] not in MARGINS:
        return Verdict("", "no margin was fixed for this group")
    if row["settings"] != "published":
        return Verdict(verdicts.UNDECIDED, "protocol not published")
    if row["n"] == 0:
        return Verdict(verdicts.UNDECIDED, "not run yet")
    ours = Sample(row["mean"], row["sd"], int(row["n"]))
    theirs = Sample(row["paper"], row["spread"], PAPER_RUNS)
    return verdicts.equivalence(ours, theirs, MARGINS[row["group"]])


def headline(judged: pd.DataFrame) -> str:
    """Counts of all verdicts on printed numbers; never a percentage."""
    words = judged["word"][judged["word"] != ""]
    if words.empty:
        return "no cell carries a verdict: another setting than the paper's"
    known = (verdicts.REPRODUCED, verdicts.DIFFERENT, verdicts.UNDECIDED)
    counts = ", ".join(f"{(words == word).sum()} {word}" for word in known)
    return f"{counts} of {len(words)}"


def classes(
    class_counts: Sequence[int],
    names: Sequence[str],
    groups: Mapping[str, Sequence[int]] | None = None,
) -> pd.DataFrame:
    """One row a class: ``name count group``; groups by index unless given.

    Names are what folders are called: characters that steer what shows them are spelt,
    and long ones are cut, for a figure has no room for them.
    """
    groups = groups or data.class_groups(len(class_counts))
    of = {label: name for name, group in groups.items() for label in group}
    spelt = map(printable, names)
    shown = [n if len(n) <= _LONGEST else f"{n[: _LONGEST - 1]}…" for n in spelt]
    found = pd.DataFrame({"name": shown, "count": class_counts})
    return found.assign(group=found.index.map(of))


def per_class(records: Iterable[Record]) -> pd.DataFrame:
    """Last results of every class and run: accuracy (percent), training loss (nats).

    Columns ``method seed label name count group accuracy train_loss``.
    """
    parts = []
    for record in records:
        exp, found = record.experiment, record.per_class
        names = found.get("class_names") or sources.CLASS_NAMES[exp.dataset]
        table = classes(found["class_counts"], names, record.groups)
        table.insert(0, "label", range(exp.num_classes))
        table.insert(0, "seed", exp.seed)
        table.insert(0, "method", exp.method)
        table["accuracy"], table["train_loss"] = (
            found[name] for name in ("last_accuracy", "train_loss")
        )
        parts.append(table)
    return pd.concat(parts, ignore_index=True)


def fit_by_group(records: Iterable[Record], methods: Sequence[str]) -> pd.DataFrame:
    """Training loss and test accuracy of head, mid and tail, one row per method.

    Means over classes and runs, nats and percent.
    """
    runs = [record for record in records if record.experiment.method in methods]
    if not runs:
        return pd.DataFrame({"runs": ["not run yet"]}, index=["–"])
    columns = {"train_loss": "training loss", "accuracy": "test accuracy"}
    means = per_class(runs).groupby(["method", "group"], sort=False)[[*columns]].mean()
    rows: dict[str, dict[str, float]] = {}
    for column, name in columns.items():
        for row in means.reset_index().to_dict("records"):
            cell = {f"{name}, {row['group']}": round(row[column], 2)}
            rows.setdefault(row["method"], {}).update(cell)
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("method")


def through_training(records: Iterable[Record]) -> pd.DataFrame:
    """Curves of every run: one row a kept epoch.

    Columns ``method seed drw_epoch epoch overall head mid tail train_loss lr``.
    """
    parts = []
    for record in records:
        exp = record.experiment
        table = pd.DataFrame({name: record.curves[name] for name in _CURVES})
        table = table.rename(columns={"accuracy": "overall"})
        table.insert(0, "drw_epoch", exp.drw_epoch)
        table.insert(0, "seed", exp.seed)
        table.insert(0, "method", exp.method)
        parts.append(table)
    return pd.concat(parts, ignore_index=True)
