# %% [markdown]
# # Escaping saddle points, measured
#
# When some classes have a hundred times fewer images than others, networks learn the
# rare ones badly. {cite:t}`rangwani2022escaping` say why: re-weighting the loss makes
# the network converge to *saddle points* in the loss of the rare (tail) classes, and
# *sharpness-aware minimisation* (SAM) with a large radius escapes them. This book runs
# the paper again, with the statistics it deserves, and lets you turn its knobs.

# %% tags=["parameters", "remove-cell"]
scale = "lite"
device = "cpu"
results = "results"
data = ""
train = False
seeds = ""
precision = ""
workers = 1

# %% tags=["remove-input"]
import pandas as pd
from saddlebook import figures
from saddlebook.book import Page, gather
from saddlebook.findings import (
    claims,
    hypotheses,
    report,
    spectra_claims,
)  # fmt: skip

page = Page("intro", vars())

# %% tags=["remove-input"]
records = page.records("table1", "control")
setting = report.setting(records)
judged = gather.verdicts(page, hypotheses.main_table())
main = judged.set_index("claim").loc["CE+DRW+SAM − CE+DRW, tail"]

# %% tags=["remove-input"]
page.claim(
    "with re-weighting, SAM raises the tail accuracy of CIFAR-10-LT by "
    f"{main.paper:.1f} points (CE+DRW+SAM against CE+DRW)",
    "main table",
    f"{main.here} points, mean with 95 % interval, {main.n} seeds; {setting}",
    claims.verdict(judged, main.name),
    report.cost(records),
)

# %% [markdown]
# ## The verdicts
#
# Each claim is **supported**, **contradicted** or **undecided**, by one rule: the
# difference is tested paired by seed and unpaired, both must agree, and p-values are
# adjusted for the number of claims that were listed together (Holm). *Undecided* says
# why, and how large a difference the runs would have shown. Where the claim is that
# nothing is gained, a gain of the margin or more must be rejected. The last four lines
# are ours: what the paper does not compare.

# %% tags=["remove-input"]
page.value("gain", main.here)
page.value("counts", claims.counts(judged))
page.verdict(
    claims.counts(judged), f"of {len(judged)} comparisons. {setting}"
)

# %% tags=["remove-input"]
page.judged(judged, f"Differences in points, 95 % t-intervals. {setting}")

# %% tags=["remove-input"]
figures.show(
    figures.plot_effects(judged),
    "The same differences: small points are pairs of runs with one seed, "
    f"large ones their mean with its 95 % t-interval. {setting}",
)

# %% [markdown]
# ### Is it saddles?
#
# The paper explains the gain by curvature: rare classes end at saddles, and SAM leaves
# them. Each claim is about the three classes of the tail, measured *as published* or
# with the *images fixed*. {doc}`ch05_spectra` has the spectra, and
# {doc}`ch11_as_published` takes the published measurement apart.

# %% tags=["remove-input"]
bends = gather.verdicts(page, spectra_claims.curvature_family())
page.judged(
    bends,
    "Differences of |λmin/λmax| unless said: mean over the tail's classes, 95 % "
    "t-intervals over seeds",
)
page.value("bends", claims.counts(bends))

# %% [markdown]
# With images fixed every class, rare or frequent, has some negative curvature and a
# gradient of its own: none sits at a saddle. The ratio is *larger* with SAM because SAM
# lowers λmax by more than λmin, at a loss that it leaves higher: it does not say that SAM
# has more negative curvature.
#
# ### Is it SAM?
#
# Five hypotheses on the radius, on tuned rivals and on when SAM is needed, registered
# before any reported run of their studies; (ii) is the claim of the main table, quoted.
# {doc}`ch08_rho` and {doc}`ch09_rivals` have the runs,
# {doc}`ch10_what_explains_the_gain` what comes next.

# %% tags=["remove-input"]
asked = gather.verdicts(page, hypotheses.five())
quoted = judged[judged["claim"] == "ii"]
five = pd.concat([quoted, asked]).sort_values("claim")
page.judged(five, "Every part in points, 95 % t-intervals over seeds")

# %% [markdown]
# ## The main table
#
# The paper's accuracies beside ours in its own setting, most of them one run yet.
# {doc}`ch07_table` has the small scale beside it, {doc}`notation` what the words mean,
# {doc}`deviations` what we changed.

# %% tags=["remove-input"]
wide = report.once(gather.every(page, "full")) or records
cells = report.cells(
    report.by_method(wide), report.paper("table1", "cifar10")
)
cells = cells[cells["group"].isin(report.MARGINS) & cells["n"].gt(0)]
cells["ours"] = cells.apply(report.plus_minus, axis=1)
shown = ["group", "paper", "ours", "n", "word", "reason"]
page.table(
    cells.set_index("method")[shown],
    "Test accuracy in percent, last epoch, ± half the 95 % interval from three "
    f"runs on. {report.setting(wide)}",
)

# %% [markdown]
# ## What the paper's own table supports
#
# Before asking whether we find an effect, ask whether the printed means and spreads
# establish it. Welch tests on the printed numbers, three runs each assumed, adjusted
# over all sixteen: SAM's gain on the tail of CIFAR-10-LT is well supported where the
# loss is re-weighted or has margins, and plain cross-entropy gains nothing there. So
# the slogan "SAM helps the tail" is, on the paper's own numbers, "SAM helps the tail
# *of re-weighted training*", and that is what we test.

# %% tags=["remove-input"]
own = hypotheses.printed_effects(report.paper("table1"))
own["tested"] = [
    f"{d:+.1f} (p = {p:.2g})"
    for d, p in zip(own.difference, own.p_holm, strict=True)
]
own["place"] = own.dataset.map({"cifar10": "C10", "cifar100": "C100"})
page.table(
    own.assign(place=own.place + " " + own.group)
    .pivot(index="other", columns="place", values="tested")
    .rename_axis(index="SAM minus its base", columns=None),
    "The paper's table: differences in points, adjusted p-values in brackets",
)

# %% [markdown]
# ## How to read this book
#
# Chapters 1 and 2 build the long-tailed data, the weights and the margins. Chapters 3
# and 4 make saddles and spectra visible where the answer is known, chapters 5 and 6
# measure them in trained networks. Chapter 7 is the main table in full, chapters 8 and
# 9 turn its knobs, chapter 10 asks what explains the gain, and chapter 11 compares
# published and corrected measurements;
# {doc}`ch12_run_it_yourself` shows how to make any number of it again. Every chapter ends with what could be wrong, two exercises, and a footer that
# links the records behind it.
#
# Numbers in the text are read from records as the page is built, figures carry every
# run as a point, and null results stay where they are.
#
# ## What could be wrong
#
# - At the laptop scale the network, the images and their number are not the paper's. An
#   effect that is absent here may be present there, and the other way round.
# - Five seeds see large effects only. *Undecided* means that they did not suffice.
# - All seeds share one draw of the long-tailed training set, as in the paper: the
#   intervals say nothing about another draw.
#
# ## Summary and exercises
#
# With re-weighting, SAM changes the tail accuracy by {glue:text}`gain` points in the
# records shown here; the claims come out as {glue:text}`counts`.
#
# 1. Give `report.cells` the argument `choice="best"`: the released code's habit of taking
#    the best epoch on the test set. Expect all accuracies to rise.
# 2. Judge a family without the four control lines. Expect the adjusted p-values to fall,
#    and explain why choosing the family after looking would be cheating.

# %% tags=["remove-input"]
page.footer()
