# %% [markdown]
# # Escaping saddle points, measured
#
# When some classes have a hundred times fewer images than others, networks learn the
# rare ones, the *tail*, badly. {cite:t}`rangwani2022escaping` say why: re-weighting the
# loss makes the network converge to *saddle points* in the loss of the rare classes, and
# *sharpness-aware minimisation* (SAM) with a large radius escapes them. We ran
# [the paper](https://arxiv.org/abs/2212.13827) again, with seeds, error bounds and the controls it lacks.

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
from saddlebook.book import Page, gather
from saddlebook.findings import (
    claims,
    hypotheses,
    readme,
    report,
    spectra_claims,
)  # fmt: skip

page = Page("intro", vars())

# %% tags=["remove-input"]
cards = readme.cards(page.scale, page.results)
page.cards(cards)

# %% [markdown]
# *Its setting* is the paper's own network, images and schedule; *laptop scale* is real
# images, but fewer, and a smaller network, five seeds. Horizontal bars are 95 %
# intervals.
#
# ## The main claims and their verdicts
#
# A claim is **supported**, **contradicted** or **undecided**, by one rule: the
# difference in accuracy is tested paired by seed and unpaired, both must agree; curvature
# is tested by t over seeds; and p-values are
# adjusted for the number of claims that were listed together (Holm). *Undecided* says
# why, and how large a difference the runs would have shown. Where the claim is that
# nothing is gained, a gain of the margin or more must be rejected. The rows open.

# %% tags=["remove-input"]
records = page.records("table1", "control")
judged = gather.verdicts(page, hypotheses.main_table())
bends = gather.verdicts(page, spectra_claims.curvature_family())
five = gather.verdicts(page, hypotheses.five())
page.fold(
    f"Accuracy, in points: {claims.counts(judged)}", claims.listing(judged)
)
page.fold(
    f"Curvature, |λmin/λmax| of the tail: {claims.counts(bends)}",
    claims.listing(bends),
)
page.fold(
    f"Radius, rivals and timing, in points: {claims.counts(five)}",
    claims.listing(five),
)
page.value("counts", claims.counts(judged))

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
names = {"n": "runs", "word": "verdict", "reason": "undecided because"}
shown = ["group", "paper", "ours", "runs", *list(names.values())[1:]]
page.table(
    cells.rename(columns=names).set_index("method")[shown],
    "Test accuracy in percent, last epoch, ± half the 95 % interval from three "
    f"runs on. {report.setting(wide)}",
)

# %% [markdown]
# ## What the paper's own table supports
#
# Before asking whether we find an effect, ask whether the printed means and spreads
# establish it. Welch tests on the printed numbers, three runs each assumed, adjusted
# over all sixteen: SAM's gain on the tail of CIFAR-10-LT is well supported where the
# loss is re-weighted or has margins; for plain cross-entropy they leave open whether there is
# a gain. So the slogan "SAM helps the tail" is, on the paper's own numbers, "SAM helps the tail
# *of re-weighted training*", and that is what we test.

# %% tags=["remove-input"]
own = report.printed_effects(report.paper("table1"))
own["tested"] = [
    f"{d:+.1f} (p = {p:.2g})"
    for d, p in zip(own.difference, own.p_holm, strict=True)
]
own["place"] = own.dataset.map(
    {"cifar10": "CIFAR-10,", "cifar100": "CIFAR-100,"}
)
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
# {doc}`ch14_run_it_yourself` shows how to make any number of it again. Every chapter ends
# with what could be wrong, two exercises, and a footer with the records behind it.
#
# Numbers in the text are read from records as the page is built, figures carry every
# run as a point, and null results stay where they are. Press an underlined number, or
# *Source* beside a figure or table: it opens the footer's list of commands and of the
# records that each makes, one link a seed.
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
# The three answers stand on top; of the claims about accuracy, {glue:text}`counts`.
#
# 1. Give `report.cells` the argument `choice="best"`: the released code's habit of taking
#    the best epoch on the test set. Expect all accuracies to rise.
# 2. Judge a family without the four control lines. Expect the adjusted p-values to fall,
#    and explain why choosing the family after looking would be cheating.

# %% tags=["remove-input"]
page.closing(
    "; ".join(f"{card.claim}: {card.word}" for card in cards)
    + f". Of the claims about accuracy {claims.counts(judged)}."
)

# %% tags=["remove-input"]
page.footer()
