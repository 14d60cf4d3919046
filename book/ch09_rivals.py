# %% [markdown]
# # Rivals, and the controls the paper lacks
#
# If SAM helps the tail by leaving saddles, then other ways of leaving saddles should
# help too. If it helps as a regulariser, then a plain optimizer with better tuned weight
# decay may do as well. This chapter asks both, and when in training SAM is needed.

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
from saddlebook import figures
from saddlebook.book import Page, gather
from saddlebook.figures import sweeps
from saddlebook.findings import claims, hypotheses, report
from saddlebook.theory import landscapes
from saddlebook.train import optimizers

# %% tags=["remove-input"]
page = Page("ch09_rivals", vars())
found = gather.gather(
    page, "table1", "rho_ablation", "weight_decay", "tuning", "sam_timing",
    "bn_statistics", "optimizers", "wider_decay", "wider_tuning",
)  # fmt: skip
runs = [record for some in found.values() for record in some]
everything = list({record.key: record for record in runs}.values())
families = hypotheses.main_table(), hypotheses.five(), hypotheses.wider()
judged = gather.verdicts(page, *families)
five = judged[judged["claim"].isin(["i", "ii", "iii", "iv", "v"])]
five = five.sort_values("claim")
again = judged[judged["claim"] == "vi"]
printed = report.paper("optimizers", "cifar10")
compared = sweeps.comparison(found["optimizers"], printed)

# %% tags=["remove-input"]
page.claim(
    "SAM helps the tail more than other ways of escaping saddles: "
    + sweeps.printed_tails(printed),
    "optimizer comparison, CIFAR-10-LT, CE+DRW, tail",
    ", ".join(f"{name} {tail}" for name, tail in compared["tail"].items())
    + f". {claims.sentence(five[five['claim'] == 'iii'])}",
    f"five hypotheses on what it is: {claims.counts(five)}",
    report.cost(everything) if everything else "",
)

# %% [markdown]
# ## Two other ways out
#
# **PGD** {cite:p}`jin2017escape` adds noise of norm $r$ to the gradient $g$, so that
# no point is left standing on a saddle:
#
# $$ w \leftarrow w - \eta\,(g + \xi), \qquad
#    \xi \sim \mathcal N\!\left(0, \tfrac{r^2}{d}\, I\right) . $$
#
# **LPF-SGD** {cite:p}`bisla2022lpf` steps on the loss smoothed by a Gaussian. It splits
# the batch into $M$ parts and takes each part's gradient at weights of its own, with
# noise of $\gamma$ times the norm of each filter:
#
# $$ w \leftarrow w - \frac{\eta}{M} \sum_{i=1}^{M} \nabla L_i(w + \delta_i) . $$
#
# It costs what SGD costs, while SAM costs two passes. The paper gives no settings for
# either. Ours were chosen on seeds that no table reports, so a verdict on the printed
# numbers is *undecided*, protocol not published, whatever comes out.

# %% tags=["remove-input"]
page.source(optimizers.Replica._lpf)

# %% [markdown]
# A toy shows why noise is a rival at all. Walkers start next to the saddle of a double
# well; we count steps until half of them have left.

# %%
rows, radii = {}, (0.0, 0.05)
for sigma in (0.0, 0.001, 0.01, 0.1):
    land = landscapes.Landscape((1.0, -1.0), quartic=1.0, sigma=sigma)
    rule = landscapes.Rule(0.05, np.repeat(radii, 200))
    walk = landscapes.walk(land, (0.01, 1e-4), rule, exit=0.9)
    times = walk.escape_time.reshape(2, 200)
    rows[f"noise {sigma:g}"] = np.median(times, axis=1)
table = pd.DataFrame(rows, index=[f"ρ = {rho:g}" for rho in radii])
page.table(table, "Steps until half have left; –: more than 1,000")

# %% [markdown]
# Noise shortens the way out. SAM's climb lengthens it; with little noise its walkers
# are held. On this landscape the two are opposites, and yet the paper finds that both
# help.
#
# ## The optimizer comparison
#
# **Varied:** the optimizer and the seed. **Held:** everything else.

# %% tags=["remove-input"]
page.table(
    compared, "Test accuracy in percent, mean ± half the 95 % t-interval"
)
table = sweeps.runs(found["tuning"]).query("optimizer in ['pgd', 'lpf']")
parts = ", M = " + table["lpf_samples"].astype(str)
table["method"] += parts.where(table["optimizer"] == "lpf", "")
names = ("noise", "overall test accuracy (%)")
figures.show(
    sweeps.plot_curve(
        table, "noise", "overall", "method", names=names, log=True
    ),
    "How the noise was chosen: runs on tuning seeds, which no table reports; r for "
    "PGD, γ for LPF-SGD.",
)

# %% [markdown]
# ## The control: weight decay
#
# The paper tunes SAM's radius in every row and leaves SGD's weight decay alone. Another
# group re-ran the same code and tuned weight decay, without SAM; its numbers stand
# here beside the paper's with SAM. The tuned values were not published.

# %% tags=["remove-input"]
page.table(
    sweeps.reruns(report.paper("reruns"), report.paper("table1")),
    "Overall test accuracy in percent, as either group printed it, IF 100",
)

# %% [markdown]
# Our control gives SGD and SAM the same four values. *Tuned* means: best overall
# accuracy on the tuning seeds, for each optimizer by itself: {glue:text}`tuned`. Tuned SGD
# is ahead: tuned SAM minus tuned SGD is {glue:text}`ahead` points overall. The best of
# SGD's four values was the largest, so the grid ended too early. Two more were tried,
# 0.004 and 0.008, as hypothesis (vi); tuned over all six: {glue:text}`tuned_again`, and
# the difference is {glue:text}`ahead_again`.

# %% tags=["remove-input"]
decays = found["weight_decay"] + found["wider_decay"]
table, row = sweeps.runs(decays), figures.panels(2)
table["optimizer"] = table["optimizer"].str.upper()
for ax, group in zip(row, ("overall", "tail"), strict=True):
    names = ("weight decay", "test accuracy (%)")
    sweeps.plot_curve(
        table,
        "weight_decay",
        group,
        "optimizer",
        names=names,
        log=True,
        ax=ax,
    )
    ax.set_title(group)
figures.show(
    row[0],
    f"CE+DRW with SGD and with SAM over weight decay: runs faint, means "
    f"joined; {sweeps.setting_or_none(decays)}.",
)

# %% [markdown]
# The other group's result is on CIFAR-100-LT, too. There SGD has four weight decays on one
# tuning seed, and the best of them is the control's, 0.001; the two control rows of
# {doc}`ch07_table`, with SAM at its own tuned radius, five seeds:

# %% tags=["remove-input"]
tuned = gather.second_set(page, "tuning_cifar100")
gather.second_set(page, "table1_cifar100", "control_cifar100")
told = gather.second_verdicts(page)
plain = "optimizer == 'sgd' and method.str.startswith('CE')"
alone = sweeps.runs(tuned).query(plain)
columns = ("weight_decay", "overall", "optimizer")
names = ("weight decay", "overall test accuracy (%)")
figures.show(
    sweeps.plot_scatter(alone, *columns, names=names, log=True),
    "CIFAR-100-LT, CE+DRW with SGD, one tuning seed that no table reports. "
    f"{sweeps.setting_or_none(tuned)}",
)
page.judged(
    told.iloc[8:],
    "The control on CIFAR-100-LT, in points; corrected with the eight gains of SAM there",
)
page.value("hundred", claims.counts(told.iloc[8:]))

# %% [markdown]
# ## When is SAM needed, and which statistics
#
# DRW switches class weights on late, together with a drop of the learning rate to a
# hundredth. SAM only *before* the switch shapes where training goes; SAM only *after*
# it acts while the tail is being fitted. And the released code updates batch-norm
# statistics in both passes, one of them at weights that no one will use.

# %% tags=["remove-input"]
runs = [r for n in ("sam_timing", "bn_statistics") for r in found[n]]
runs += [r for r in found["optimizers"] if r.experiment.noise == 0]
table = sweeps.by_group(sweeps.runs(runs), ("overall", "tail"))
figures.show(
    sweeps.plot_strips(table),
    "SAM throughout, before or after re-weighting starts, and with batch-norm "
    f"statistics left alone in its second pass; {sweeps.setting_or_none(runs)}.",
)

# %% [markdown]
# ## The five hypotheses
#
# They were registered, with test and correction, before any *reported* run of their
# studies; (i) belongs to the chapter before, and (ii) is judged in the main table and
# quoted here. The history cannot prove more than that: claims, code and records arrived
# together, radii had been tuned with SAM on another seed, and many records name a tree
# with uncommitted changes. A missing run gives no verdict, and still counts in the
# correction.

# %% tags=["remove-input"]
page.judged(
    five,
    "Every part in points, 95 % t-intervals over seeds paired by seed",
)
page.judged(again, "Asked again over six weight decays")
page.verdict(claims.counts(five), "of the five.")
page.value("headline", claims.counts(five))
third = five.set_index("claim").loc["iii"]
page.value(
    "tuned", third["note"].removeprefix("tuned: ") or "not tuned yet"
)
page.value("ahead", third["here"])
wide = again.iloc[0]
page.value(
    "tuned_again", wide["note"].removeprefix("tuned: ") or "not tuned yet"
)
page.value("ahead_again", wide["here"])

# %% [markdown]
# Of the five: {glue:text}`headline`. A contradicted hypothesis is a result like any other,
# and so is an undecided one: with five seeds only large differences show, and how large
# stands beside each.
#
# ## What could be wrong
#
# - **Tuning.** Each optimizer got one knob here and a small grid. The best noise of PGD and
#   that of LPF-SGD was the largest tried: both may be tuned too little. SAM's radius was
#   tuned before, at the smallest weight decay; a joint grid could favour either.
# - **The rivals are our variants.** PGD adds noise at every step, as stochastic versions
#   do, and not only near stationary points. Our LPF-SGD keeps $\gamma$ constant where
#   the released one raises it; small parts also make batch-norm statistics noisier.
# - **Chosen on test images.** Tuning seeds differ from the reported ones, test images do
#   not; both optimizers are favoured alike.
# - **Cost.** SAM takes twice the time of SGD. A fair race would give SGD twice the
#   epochs.
# - **Bounds.** Three points for the tail and half of that overall, also for the tail in
#   (v), were fixed before the reported runs, but they are a choice.
#
# ## Summary and exercises
#
# With weight decay tuned alike, plain SGD is at least as good as SAM overall (iii), over
# six values as over four (vi). Of the four claims on the control on CIFAR-100-LT:
# {glue:text}`hundred`. When in training SAM's gain arises (iv) is not decided by five seeds.
#
# 1. In the toy, give SAM's walkers noise 0.3. Do they leave now, and at which radius do
#    they stop leaving?
# 2. Tune for the tail instead of overall accuracy in `hypotheses.chosen`. Does (iii)
#    change, and why must that be decided before looking?

# %% tags=["remove-input"]
page.footer()
