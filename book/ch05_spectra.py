# %% [markdown]
# # Do tail classes sit at saddles?
#
# The paper's central picture: take the loss of *one class*, look at its curvature where
# training ends, and rare classes show large negative curvature, frequent ones hardly
# any. So, it says, training leaves the tail at a saddle, and SAM helps it out. This
# chapter looks at the same spectra twice: as published, and with the images held fixed.

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
from saddlebook import figures
from saddlebook.book import Page, gather
from saddlebook.curvature import lanczos
from saddlebook.figures import spectra, stages
from saddlebook.findings import (
    claims,
    report,
    spectra_claims,
    tables,
    verdicts,
)

page = Page("ch05_spectra", vars())

# %% tags=["remove-input"]
runs = gather.with_spectra(page)
table = tables.spectra_table(runs)
last = tables.pick(table, stage=tables.LAST)
wide = tables.spectra_table(gather.every(page, "full"))
paper_runs = verdicts.in_runs(wide.groupby("method")["seed"].nunique())
page.value("paper_runs", paper_runs)
big = tables.pick(wide, stage=tables.LAST)
judged = gather.verdicts(page, spectra_claims.curvature_family()).iloc[:4]
setting = report.setting(runs) if runs else tables.NONE

# %% tags=["remove-input"]
paper = report.paper("spectra").dropna(subset="nonconvexity")
theirs = ", ".join(
    f"{row['nonconvexity']:g} ({row['method']}, class {row['class']})"
    for _, row in paper[paper["class"] != "all classes"].iterrows()
)
page.claim(
    "after training the loss of a rare class bends down as sharply as up; SAM "
    f"mends that. |λmin/λmax|: {theirs}",
    "poster; slides p. 9–17",
    claims.sentence(judged),
    claims.counts(judged),
    report.cost(runs) if runs else "",
)

# %% [markdown]
# ## The idea
#
# Let $L_y(w)$ be the mean training loss over the images of class $y$ alone, and
# $H_y = \nabla^2 L_y(w)$. Its extreme eigenvalues say how the class's loss bends: along
# the eigenvector of $\lambda_{\max}$ it rises fastest, along that of
# $\lambda_{\min} < 0$ it curves *down*. The paper's measure of non-convexity is
#
# $$ \left| \lambda_{\min} / \lambda_{\max} \right| . $$
#
# A network has too many weights to write $H_y$ down; Lanczos iteration needs only
# products $H_y v$, as the previous chapter explains. The library measures each end, then
# checks it with one more product: the residual $\lVert H_y u - \lambda u \rVert$ is a
# distance within which an eigenvalue must lie.

# %% tags=["remove-input"]
page.source(lanczos.certificate)

# %% [markdown]
# **A negative eigenvalue alone is no saddle.** Training makes the gradient of the
# *total* loss small, not that of each class. At a saddle of $L_y$ its own gradient must
# be small too. Take the step $t = \sqrt{2 \cdot 0.1/|\lambda_{\min}|}$ along the lowest
# direction: there curvature alone would lower the loss by 0.1 nats. Then ask two questions:
#
# - *slope*: what does the class's gradient promise over the same distance,
#   $t\,\lVert g_y \rVert$? At a saddle less than 0.1.
# - *fall*: how much lower is the loss there really, averaged over both ends (which
#   cancels the gradient)?
#
# ## Play
#
# Two small networks come with the book, trained with SGD and with SAM. Choose network,
# class and epoch; the sliders stop only where spectra were measured.

# %% tags=["remove-input"]
first = {r.experiment.method: r for r in reversed(runs)}
pair = [first[method] for method in sorted(first)]
if pair:
    display(stages.class_stepper(pair))  # noqa: F821

# %% [markdown]
# Compare the two colours in the last picture: for the rare classes the released
# measurement reports what fixed images do not have.
#
# To measure one yourself, on a shipped network and your copy of CIFAR-10, run in a cell
# `gather.shipped_spectrum(class_=9, optimizer="sgd")`; it takes seconds.

# %% tags=["remove-input"]
stored = tables.pick(last, method="CE+DRW", label=-1, mode="clean")
page.table(
    tables.sheet(stored, ("label", "recurrence")),
    "The same class as stored in the records",
)

# %% [markdown]
# ## The experiment
#
# **Varied:** SGD or SAM, the class, how it is measured, the seed. **Held:** CE with
# deferred re-weighting, data, network, schedule, weights of the last epoch. *Fixed*
# takes the class's training images as they are. *As published* follows the released
# code: random crops and flips are drawn anew in every product, so that each Lanczos step
# sees another matrix; one probe, a hundred steps, no residual
# {cite:p}`rangwani2022escaping`. Why that matters has a chapter of its own; here
# both stand side by side.

# %% [markdown]
# ### In the paper's own setting
#
# All of CIFAR-10-LT, ResNet-32, 200 epochs; {glue:text}`paper_runs` of each method, so no
# verdict. Spectra of at most 100 images of a class; classes 8 and 9 have no more. Of classes 0
# and 2 also of all images, which is another story ({doc}`ch11_as_published`).

# %% tags=["remove-input"]
page.table(
    tables.ratios(wide),
    "|λmin/λmax| after the last epoch. Brackets: what the released procedure "
    "reports, no eigenvalue of fixed images",
)
figures.show(
    spectra.plot_along_vector(big, "CE+DRW"),
    "SGD: change of a class's loss along ± the lowest vector of each measurement; dotted: what "
    "its curvature promises. At ±1 that is a fall of 0.1 nats, so each measurement has a "
    "length of its own. These losses are smaller than 0.1 already, and cannot fall by it: the "
    "parabola of fixed images holds near 0 only.",
)
fixed = tables.pick(big, mode="clean")
page.value("paper_kinds", tables.count(tables.kinds(fixed)))

# %% [markdown]
# ### At the small scale, five seeds

# %% tags=["remove-input"]
figures.show(
    spectra.plot_spectra(last),
    "Images fixed. Spectral density of one class's loss, last epoch, head, mid "
    "and tail, first seed of each method. Axis linear within the widest error "
    f"bound shown; stems: single converged eigenvalues. {setting}.",
)

# %% tags=["remove-input"]
figures.show(
    spectra.plot_spectra(last, mode="as_published"),
    "As published: the same weights and classes, crops and flips redrawn in "
    "every product. Nothing here is a converged eigenvalue.",
)

# %% tags=["remove-input"]
fixed = tables.pick(last, mode="clean").sort_values(["method", "label"])
kinds = tables.kinds(fixed)
shown = tables.sheet(fixed.assign(kind=kinds), ("label", "method", "kind"))
page.table(
    shown,
    "Images fixed, last epoch. One run: value ± bound; more: mean and range. "
    "Loss in nats. Slope and fall: nats that the gradient promises, and nats by which "
    "the loss falls, where the curvature promises 0.1",
)
page.value("kinds", tables.count(kinds))
page.value("coverage", tables.coverage(last))
seen = tables.bends(fixed)
page.value("negative", seen["negative"])
page.value("along", seen["along"])
page.value("by_group", seen["by_group"])
page.value("lowest", seen["lowest"])

# %% [markdown]
# Behind the tables are {glue:text}`coverage`. λmin is negative beyond its bound in
# {glue:text}`negative` class losses. By the two questions, what lies along the lowest
# direction of a class is, over all classes and runs: {glue:text}`kinds`. *Saddle* needs
# negative curvature beyond its bound, a slope below what curvature promises, and a loss
# that falls; *slope* means that the gradient promises more than the curvature; *flat*,
# that the loss does not fall where the curvature says it should. In the paper's own setting:
# {glue:text}`paper_kinds`.
#
# *Slope* is said of the point, by its whole gradient. Along the lowest direction itself
# the gradient is small, in the middle {glue:text}`along` % of its norm. So every class,
# frequent or rare, does bend down somewhere, and at this scale none stands still. Beside
# $\lambda_{\max}$ that bend is small with SGD, and not shown to differ between the tail and
# class 0:
# {glue:text}`by_group`.
#
# The ratio is *larger* with SAM. As these networks stand their tail has more negative
# curvature, too: $\lambda_{\min}$ is {glue:text}`lowest`. But both ends move with the loss of
# a class, and SAM leaves that loss higher. At equal loss it has less negative curvature, and
# still less of the positive ({doc}`ch10_what_explains_the_gain`).

# %% tags=["remove-input"]
released = tables.pick(last, mode="as_published")
page.table(
    tables.sheet(
        released.sort_values(["method", "label"]), ("label", "method")
    ),
    "As published, last epoch. In brackets: what the procedure reports, though "
    "it is no eigenvalue of any fixed matrix",
)

# %% [markdown]
# ## Walking along the vector
#
# The plainest test needs no algebra: go there and look. If the reported curvature were
# real, the loss would follow the dotted parabola, up to higher terms. (A loss that is
# already below 0.1 cannot fall by as much.)

# %% tags=["remove-input"]
figures.show(
    spectra.plot_along_vector(last, "CE+DRW"),
    "SGD, last epoch: change of the class's loss along ± the lowest vector of "
    "each measurement, all runs. Ends of the axis: where the reported "
    "curvature promises a fall of 0.1 nats.",
)

# %% tags=["remove-input"]
page.judged(
    judged,
    "The paper's reading of its figure under both measurements: mean over the "
    "three classes of the tail, 95 % t-intervals over seeds",
)
page.verdict(claims.counts(judged), "of the claims about saddles.")
page.value("settled", claims.counts(judged))

# %% [markdown]
# ## What could be wrong
#
# - **Another setting.** At `lite` scale network, images and schedule are smaller than
#   the paper's, and classes are fitted less closely. What a memorised class looks like
#   may not show here.
# - **Few images.** The extremes of a mean over fifty images are wider than those over a
#   thousand. The controls are in chapter 11.
# - **Frozen statistics.** Batch norm is in eval mode, as published; training sees
#   another function.
# - **One direction.** A class may have many negative eigenvalues; slope and fall look
#   along the lowest only.
# - **The bound** says that *an* eigenvalue lies near, not that none lies lower.
#
# ## Summary and exercises
#
# With the images held fixed all classes have negative curvature, and all but few have a
# gradient that promises more: at laptop scale {glue:text}`kinds`, in the paper's own setting
# {glue:text}`paper_kinds`. The contrast of tail and head, and that of SGD and SAM, are what
# the released measurement shows: {glue:text}`settled`.
#
# 1. In the picture to play with, change the network at class 9 and the last epoch. Which
#    end moves more?
# 2. Take `mode="frozen"` in `tables.pick`, classes 5, 8 and 9. What do four fixed
#    augmentations of each image change at the two ends?

# %% tags=["remove-input"]
page.footer()
