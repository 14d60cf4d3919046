# %% [markdown]
# # The main table: does SAM help the tail?
#
# The paper's claim in one line: train with a large SAM radius, and re-weighted
# networks become much better on rare classes. Its main table sets four losses, each
# with SGD and with SAM, side by side. This chapter repeats it, and adds the comparison
# that the table lacks.

# %% tags=["parameters", "remove-cell"]
scale = "lite"
device = "cpu"
results = "results"
data = ""
train = False
seeds = ""
precision = ""
workers = 1
dataset = ""

# %% tags=["remove-input"]
import numpy as np
import pandas as pd
from saddlebook import figures, optim
from saddlebook.book import Page, gather
from saddlebook.figures import sweeps
from saddlebook.findings import claims, hypotheses, readme, report, tables
from saddlebook.theory import saddles

# %% tags=["remove-input"]
page = Page("ch07_table", vars())
runs = page.records("table1", "control")
printed = report.paper("table1", "cifar10")
judged = gather.verdicts(page, hypotheses.main_table())
ours = report.by_method(runs)
cells = report.cells(ours, printed)
sam, control = judged.iloc[:8], judged.iloc[8:]

# %% tags=["remove-input"]
tail = sam[sam["group"] == "tail"]
page.claim(
    "SAM raises the tail where the loss is re-weighted or has margins: "
    + ", ".join(
        f"{n} {claims.signed(d, 1)}"
        for n, d in zip(tail["contrast"], tail["paper"], strict=True)
    ),
    "main table, CIFAR-10-LT, tail, SAM minus SGD",
    f"{claims.sentence(tail)} {report.setting(runs)}",
    claims.counts(sam),
    report.cost(runs),
)

# %% [markdown]
# ## The idea
#
# {cite:t}`foret2021sam` ask for weights whose whole neighbourhood has a low loss,
#
# $$ \min_w \; \max_{\lVert \varepsilon \rVert \le \rho} L(w + \varepsilon), \qquad
#    \hat\varepsilon = \rho \, \frac{g}{\lVert g \rVert}, \quad g = \nabla L(w) . $$
#
# One climb of length $\rho$ along the gradient stands for the inner maximum, and the
# gradient found *there* moves the weights. A step costs two passes. The library's
# climb:

# %% tags=["remove-input"]
page.source(optim.SAM._climb)

# %% [markdown]
# Along a direction of curvature $\lambda$ the second gradient is, to first order, the
# first one times $1 + \rho\lambda/\lVert g \rVert$. So SAM pushes harder out of
# *sharp* directions. Along negative curvature, where a saddle falls away, the factor is
# below one: SAM leaves *more slowly*, until a large enough $\rho$ turns the step round.
# {cite:t}`rangwani2022escaping` read a large radius as a way to escape saddles of the
# tail's loss; what the theorem behind it does and does not say has a chapter of its
# own. Here the question is only whether accuracy rises.

# %%
curvature = np.linspace(-4, 4, 81)
lines = [
    pd.DataFrame({"curvature": curvature, "ρ/‖g‖": ratio}).assign(
        factor=saddles.drift_factor(ratio, curvature)
    )
    for ratio in (0.0, 0.2, 0.5, 1.0)
]
figures.show(
    figures.plot_curves(pd.concat(lines), "curvature", "factor", "ρ/‖g‖"),
    "Gradient that SAM follows, relative to SGD's, along a direction of "
    "given curvature.",
)

# %% [markdown]
# ## The experiment
#
# **Varied:** the loss (CE, CE+DRW, LDAM+DRW, VS), SGD or SAM, and the seed. **Held:**
# data, draw, network, schedule. Radii are the released commands', scaled once for this
# setting on one seed that is not shown; VS has none published, so ours is a guess. The
# runs of a pair share their seed, hence initial weights, order and augmentation.
#
# **Last epoch, and best on test.** The released code keeps the epoch that is best *on
# the test set*. The gap says what that adds; our conclusions use the last epoch.

# ### In the paper's own setting
#
# ResNet-32, 200 epochs, all of CIFAR-10-LT at IF 100. Most rows are one run, and one run
# has no interval: such a cell is *undecided* whatever it reads. A number is *reproduced*
# if our runs and the printed mean are shown to differ by less than the margin
# ({doc}`notation`). Last epochs lie below the paper almost everywhere; the epoch that is best
# on the test set lies nearer, as a largest of many must.

# %% tags=["remove-input"]
wide = report.once(gather.every(page, "full"))
big = report.by_method(wide or runs)
last, best = (report.cells(big, printed, c) for c in ("last", "best"))
shown = last[last["n"].gt(0) & last["group"].isin(report.MARGINS)]
shown = shown.assign(best=best["mean"])
names = {"mean": "last epoch", "n": "runs", "word": "verdict"}
names |= {"best": "best on test", "reason": "undecided because"}
page.table(
    shown.rename(columns=names)
    .set_index("method")[["group", "paper", *names.values()]]
    .round(1),
    "Test accuracy in percent; verdicts are on the last epoch",
)
figures.show(
    figures.plot_methods(last, "tail", best),
    "Tail accuracy in the paper's own setting: runs, mean and, from three runs "
    "on, 95 % t-interval at the last epoch; hollow squares: best on test. The "
    "paper: diamonds with the printed spread (VS+SAM's is misprinted).",
)

# %% [markdown]
# The VS rows stand at the code's default γ and τ, which push the tail far above the
# paper's and the head below it; the settings behind the printed numbers are not published.
# CE+DRW has a control that the paper lacks, a larger weight decay:

# %% tags=["remove-input"]
page.table(
    report.summary(big),
    "All methods at that scale, the control included: last epoch, best on test, "
    "and what choosing the epoch adds",
)

# %% [markdown]
# ### At the small scale, five seeds

# %% tags=["remove-input"]
page.table(
    report.summary(ours),
    "Test accuracy in percent, mean ± half the 95 % t-interval",
)
figures.show(
    figures.plot_methods(cells),
    f"Tail accuracy. Ours: runs, mean and 95 % t-interval; "
    f"{report.setting(runs)}. The paper: diamonds with the printed spread, at "
    "IF 100 with ResNet-32; the spread of VS+SAM is misprinted and left out.",
)

# %% [markdown]
# ## SAM minus SGD
#
# The claim is about differences. Eight comparisons, and four for the control below, were
# listed before a result was reported, and are corrected for being twelve. Each is tested
# twice, paired by seed and unpaired (Welch), and counts only if both agree. For plain
# cross-entropy the paper's table shows *no* gain on the tail (its own spread leaves that
# open), so that is the claim tested there: a gain of 3 points or more must be rejected.

# %% tags=["remove-input"]
spots = [
    report.order(ours, printed, group) for group in ("overall", "tail")
]
page.value("agree_overall", f"{spots[0].agreeing} of {spots[0].pairs}")
page.value("agree", f"{spots[1].agreeing} of {spots[1].pairs}")
page.value("order", f"τ = {spots[1].tau:.2f}, p = {spots[1].p:.2g}")
figures.show(
    figures.plot_effects(sam),
    "SAM minus its base: runs of a seed as points, mean and 95 % t-interval. "
    "Diamonds: differences of the paper's printed means, another setting.",
)
page.judged(sam, "SAM minus its base, in points")

# %% [markdown]
# Beside each *undecided* stands the smallest true difference that five seeds would show
# four times out of five. **Order.** Of all pairs of the eight methods,
# {glue:text}`agree` stand in the paper's order on the tail ({glue:text}`order`, one-sided,
# against a random order) and {glue:text}`agree_overall` overall.
#
# ## Is a seed the same run twice?
#
# {glue:text}`twice` runs of the table exist twice: same seed, same images, two versions
# of the code that round differently. They should agree if a seed fixed the run. Their
# tail accuracies differ by {glue:text}`rms` points (root mean square; at most
# {glue:text}`largest`). A single repeated run has a standard deviation of
# {glue:text}`rerun`, other seeds one of {glue:text}`seeds`: {glue:text}`luck` % of the
# variance of seeds is luck of rounding. How much of the rest two methods share, five seeds
# cannot tell, so the paired and the unpaired test must agree. The second set is a replicate
# of the main result: {glue:text}`again` points of tail accuracy from SAM with CE+DRW.

# %% tags=["remove-input"]
pairs = report.replicates(gather.every(page, "lite", report.made_twice))
noise = report.rerun_noise(pairs)
page.value("twice", len(pairs))
page.value("rms", tables.dash(noise["difference"], ".1f"))
page.value("largest", tables.dash(noise["largest"], ".1f"))
page.value("rerun", tables.dash(noise["rerun"], ".1f"))
page.value("seeds", tables.dash(noise["seeds"], ".1f"))
page.value("luck", tables.dash(noise["luck"], ".0f"))
again = report.gain_again(pairs, "CE+DRW+SAM", "CE+DRW")
page.value("again", claims.told(again))
if len(pairs):
    page.table(
        pairs.set_index("method").round(1),
        "Runs made twice: accuracy in percent, and how much higher the second is",
    )

# %% [markdown]
# ## Where and when the difference arises

# %% tags=["remove-input"]
pair = ["CE+DRW", "CE+DRW+SAM"]
figures.show(
    figures.plot_class_accuracy(report.per_class(runs), pair),
    "Test accuracy of each class, runs as points with their mean.",
)
curves, row = report.through_training(runs), figures.panels(4)
for ax, base in zip(row, report.BASES, strict=True):
    methods = [base, f"{base}+SAM"]
    figures.plot_through_training(
        curves, methods, names=("SGD", "SAM"), ax=ax
    )
    ax.set_title(base)
figures.show(
    row[0],
    "Tail accuracy through training: runs thin, mean bold. Dotted: the epoch "
    "after which class weights act.",
)

# %% [markdown]
# ## The control that the table lacks
#
# The paper tunes SAM's radius and leaves the weight decay of its SGD rows as it was.
# But weight decay, too, works against memorising the tail, and costs nothing. So
# CE+DRW is also run with a larger weight decay, with and without SAM. *Differs* has no
# direction; the sign tells which is ahead.

# %% tags=["remove-input"]
figures.show(
    figures.plot_effects(control),
    "The control, with 95 % t-intervals paired by seed. First rows: SGD with "
    "larger weight decay minus SAM; then what SAM adds to it.",
)
page.judged(control, "The control, in points")
page.verdict(
    claims.counts(judged),
    f"of the twelve claims. Printed numbers at full scale: {report.headline(last)}.",
)
page.value("counts", claims.counts(sam))
page.value("main", judged["here"].iloc[3])
page.value("printed_gain", judged["paper"].iloc[3], "+.1f")

# %% [markdown]
# ## A hundred classes
#
# The paper's table has a second half, CIFAR-100-LT. At the small scale it is 250 images of
# the largest class, IF 20, and the paper's are numbers of another setting: IF 100, ResNet-32.
# Our copy of CIFAR-100 holds the images of a class in another order than the original
# archive, so the draw has other images. Radii and the control's weight decay were chosen on
# one tuning seed by a rule set before it was run: best overall accuracy, where CIFAR-10's
# looked at the tail. For CE+DRW and LDAM+DRW the best radius was the smallest tried, for VS
# the largest; plain CE's follows from CE+DRW's. The tail is not learned by heart here, as it
# is on CIFAR-10-LT, so the paper's question hardly arises: its training loss is
# {glue:text}`hundred_loss` nats with CE+DRW. The claims are the main table's, but that a gain
# is claimed for plain CE, too, and were written before any of these runs had ended.

# %% tags=["remove-input"]
hundred = gather.second_set(page, "table1_cifar100", "control_cifar100")
told = gather.second_verdicts(page)
page.value("hundred_loss", readme.tail_loss(hundred))
beside = sweeps.comparison(hundred, report.paper("table1", "cifar100"))
page.table(
    beside.drop(columns="verdict"),
    "CIFAR-100-LT: test accuracy in percent, last epoch, mean ± half the 95 % "
    "t-interval, beside the paper's",
)
figures.show(
    figures.plot_effects(told),
    "CIFAR-100-LT. SAM minus its base, then the control: runs of a seed as points, mean "
    "and 95 % t-interval. Diamonds: differences of the paper's printed means. "
    f"{sweeps.setting_or_none(hundred)}",
)
page.judged(
    told, "SAM minus its base on CIFAR-100-LT, and the control, in points"
)
page.value("hundred", claims.counts(told))

# %% [markdown]
# Of these twelve: {glue:text}`hundred`.
#
# At `lite` scale these are verdicts on the *claims* in another setting: whether the
# printed *numbers* are reproduced is decided at `full` scale only, cell by cell.
#
# ## What could be wrong
#
# - **Small and short.** A small network on small images may reward regularisation of
#   any kind more than the paper's setting does. That a claim holds here does not say
#   that it holds there, nor the reverse.
# - **A chosen setting.** The `lite` setting and its radii were searched for, on other
#   seeds, with CE+DRW until the question could be asked at all. So that row shows that
#   an effect can be found, not how common it is; the other losses had no such search,
#   and a null there may be a radius that does not suit them.
# - **Unequal tuning.** SAM has one knob more than SGD, and it was turned; the control
#   turns one knob of SGD. A fair race would give both the same number of trials.
# - **Twice the cost.** A SAM step is two passes; SGD of the same cost, twice as long,
#   is not in the table.
# - **One draw** of the tail, few seeds, and the mean of three tail classes: an interval
#   covers the seeds only.
#
# ## Summary and exercises
#
# With CE+DRW on CIFAR-10-LT SAM raises the tail, by {glue:text}`main` points here and by
# {glue:text}`printed_gain` in the paper. Of the eight claims about SAM: {glue:text}`counts`; of
# the twelve on CIFAR-100-LT: {glue:text}`hundred`. Where it says *undecided*, more seeds would
# tell.
#
# 1. Give `report.cells` the argument `choice="best"`. Does choosing the epoch on the
#    test set change a verdict on a printed number?
# 2. Judge a family of the first eight claims alone. Why may the corrected p-values fall,
#    and why is it wrong to pick the smaller family after seeing them?

# %% tags=["remove-input"]
page.footer()
