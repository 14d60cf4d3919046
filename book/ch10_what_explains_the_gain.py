# %% [markdown]
# # What explains the gain?
#
# SAM raises the tail of re-weighted training. The paper's reason, saddles of rare
# classes, is not what fixed images show. Is there a simpler one? Anything that keeps a
# network from memorising its few tail images leaves their *training* loss higher, and
# weight decay, noise and SAM all do. This chapter asks whether that one number says what
# the tail's test accuracy will be, whatever the knob.

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
from saddlebook import figures, studies
from saddlebook.book import Page, gather
from saddlebook.data.sources import CLASS_NAMES
from saddlebook.figures import spectra, sweeps
from saddlebook.findings import (
    claims,
    hypotheses,
    report,
    sharpness,
    spectra_claims,
    tables,
)

page = Page("ch10_what_explains_the_gain", vars())

# %% tags=["remove-input"]
fresh = gather.gather(page, "one_curve")
everything = gather.verdicts(
    page, hypotheses.curve_family(), hypotheses.knobs_family(),
    hypotheses.adaptive_family(), spectra_claims.images_family(),
    sharpness.edge_family(), sharpness.outlier_family(),
)  # fmt: skip
of = dict(iter(everything.groupby("family")))
judged, more_found = of["one curve"], of["two more knobs"]
found = gather.gather(
    page, "weight_decay", "optimizers", "sam_timing", "rho_ablation"
)
seen = [*{r.key: r for some in found.values() for r in some}.values()]
page.claim(
    "SAM escapes saddles of rare classes, and so raises their accuracy",
    "abstract",
    "It is not explained. How well the tail is fitted is a part of it: "
    + claims.sentence(everything[everything["claim"].str[0] == "a"]),
    f"on this page: {claims.counts(everything)}",
    report.cost(seen) if seen else "",
)

# %% [markdown]
# ## The idea
#
# Take CE+DRW and turn one knob at a time: the weight decay of SGD, SAM and its radius, the
# noise of PGD and of LPF-SGD. Each run ends with a training loss of the tail, on clean
# images, and with a test accuracy of the tail. If all runs lie on *one* curve, the knobs
# are different ways to the same end, and what is special about SAM must be sought where
# its runs leave the curve.
#
# ## What was seen first
#
# On the seeds of the other chapters, after they had been looked at. So this figure is
# where the idea comes from, and no evidence for it.

# %% tags=["remove-input"]
figures.show(
    sweeps.plot_knobs(seen, line="CE+DRW"),
    "Every run of CE+DRW under every knob, weight decays together. Grey: a line through "
    f"SGD's runs of all seeds, dashed beyond them. {sweeps.setting_or_none(seen)}",
)
away = hypotheses.distances(studies.one_curve(seeds=(0,)), studies.SEEDS)
told = [f"{part.name} {claims.measured(part, seen)}" for part in away]
page.value("after_the_fact", "; ".join(told))

# %% [markdown]
# A line in the logarithm of the loss, fitted to SGD's weight decays alone, predicts the
# other knobs so (tail accuracy minus prediction, points, mean with 95 % interval over
# seeds): {glue:text}`after_the_fact`. Large radii of SAM fall far below it: there the
# network no longer fits the rest of the data either.

# %% [markdown]
# ## The test
#
# On fresh seeds, 5 to 9, with hypotheses and margins written before any of these runs. (a1): SAM, PGD and LPF-SGD lie within 3 points of the line of their own
# seed. (a2): SAM only after re-weighting starts lies above it. (a3): SAM only before lies
# below it.

# %% tags=["remove-input"]
page.judged(
    judged,
    "Distance to the line of SGD's weight decays, points, 95 % t-intervals",
)
page.verdict(claims.counts(judged), "of the three hypotheses.")
page.value("counts", claims.counts(judged))

# %% [markdown]
# ## Two more knobs
#
# If the curve is all there is, knobs that aim at rare classes should lie on it, too. SAM may
# climb the loss of the tail's classes alone, and leave the others to SGD
# {cite:p}`zhou2023imbsam`. And Group DRO puts weights on classes that follow their losses, in
# the place of re-weighting {cite:p}`sagawa2020groupdro`. Hypothesis (a4), written after the
# three above were seen and before these runs: both lie within 3 points of the line.

# %% tags=["remove-input"]
more = gather.gather(page, "two_more_knobs")["two_more_knobs"]
figures.show(
    sweeps.plot_knobs([*fresh["one_curve"], *more], line="CE+DRW"),
    "Every run of the fresh seeds. Grey: a line through SGD's runs of all seeds; a knob "
    "beyond their losses is judged by a line drawn on (dashed), that of its own seed. "
    f"{sweeps.setting_or_none(fresh['one_curve'])}",
)
page.judged(
    more_found,
    "Distance to the line of SGD's weight decays, points, 95 % t-intervals",
)
page.value("counts_knobs", claims.counts(more_found))

# %% tags=["remove-input"]
compared = ["CE+DRW", "CE+DRW+SAM", "CE+DRW+SAM tail only", "CE+DRO"]
page.table(
    report.fit_by_group([*fresh["one_curve"], *more], compared),
    "Training loss (nats) and test accuracy (%) by group of classes, means over classes "
    "and runs, fresh seeds",
)

# %% [markdown]
# Group DRO does what it is made for: every group ends at a similar training loss. Its test
# accuracy falls from head to tail all the same. So the curve is no law: Group DRO lies far
# below it, SAM in one part of training some points above or below it, and how well the tail
# is fitted does not by itself say how well it is recognised.

# %% [markdown]
# ## Curvature at equal loss
#
# The ratio $|\lambda_{\min}/\lambda_{\max}|$ on fixed images does not fall with SAM. But
# both ends of a spectrum shrink with the class's loss, and SAM's losses are higher. So what
# does SAM do to the curvature of two networks that fit a class *equally well*? Each
# spectrum of SAM is set beside the spectrum of SGD of the same seed and class whose loss is
# nearest, if the two losses are within 25 % of each other. Other weight decays and radii
# bring such pairs about at the last epoch, earlier epochs before the switch.

# %% tags=["remove-input"]
curved = gather.gather(page, "dynamics", "curvature", scale="lite")
table = tables.spectra_table(
    record for some in curved.values() for record in some
)
last = tables.pick(table, stage=tables.LAST)
early = table[table["stage"] <= tables.SWITCH]
shown = tables.pick(
    tables.spectra_table(curved["dynamics"]), stage=tables.LAST
)
pairs = {end: sharpness.at_equal_loss(last, end) for end in tables.ENDS}
figures.show(
    spectra.plot_at_equal_loss(last, pairs),
    "At equal loss of a class, SAM has less negative curvature and much less positive "
    "curvature, the more so the larger its radius. Last epoch, all classes, radii and weight "
    f"decays. {sweeps.setting_or_none(curved['curvature'])}",
)

# %% tags=["remove-input"]
page.table(
    sharpness.equal_loss_sheet(shown, last, early),
    "SAM divided by SGD at equal loss, geometric mean over seeds, 95 % t-interval",
)

# %% [markdown]
# SAM lowers $|\lambda_{\min}|$, as the paper says, and lowers $\lambda_{\max}$ more: the
# ratio of the two, which the paper reads as closeness to a saddle, goes *up*. The last row,
# the fitted line, is an older estimate: the losses of the two methods hardly overlap, so it
# extrapolates, and it finds a smaller effect. All of this was looked at after the records
# were made, so none of it is a registered test. And equal loss is not equal scale: behind
# batch norm a network with smaller weights has larger curvature at the same loss, and
# weight decay makes weights small. The rows before the switch compare equal weight decays.

# %% [markdown]
# ## What the tail is taken for
#
# The shipped networks, one of each method and scale, on all test images.

# %% tags=["remove-input"]
counted = gather.mistakes()
page.table(
    tables.losses_sheet(counted),
    "Test images of the tail, percent: right, and taken for a class of which group",
)
page.table(
    tables.mistakes_sheet(counted, CLASS_NAMES["cifar10"]),
    "Test images of the tail, percent of each class: right, and the three classes they "
    "are most often taken for. One network each; counted by gather.count_mistakes",
)

# %% [markdown]
# Rare classes are lost to their look-alikes among the frequent ones: trucks to cars, ships
# to planes. SAM gives part of these back, and the classes it takes them from are the
# same. One network of each method is an example, not a measurement of SAM.

# %% [markdown]
# ## Badly optimised, or learned by heart?
#
# Rare classes get little of the gradient. Where that slows SGD down, steps that do not
# shrink with the gradient, those of Adam or of its sign, fit rare classes sooner, as has
# been shown for language models {cite:p}`kunstner2024heavy`. If the tail here were badly optimised,
# they should help it. Hypotheses on seeds 5 to 9, with step sizes chosen on tuning seeds:
# with re-weighting (d1) and without (d2), neither raises tail accuracy by 3 points.

# %% tags=["remove-input"]
steps = gather.gather(page, "adaptive")["adaptive"]
figures.show(
    sweeps.plot_knobs(steps),
    "SGD, Adam and SignSGD, with and without re-weighting: how well the tail is learned by "
    f"heart, and how well it is recognised. {sweeps.setting_or_none(steps)}",
)
page.judged(
    of["adaptive steps"],
    "Adam and SignSGD minus SGD, points, 95 % t-intervals",
)
page.value("counts_steps", claims.counts(of["adaptive steps"]))

# %% [markdown]
# ## A matter of how many images?
#
# The paper measures a class on its training images: thousands of the head, fifty of the
# rarest. Here is class 0, which has 1,000, on ever fewer of them, on networks of seeds 5 to
# 9. Hypotheses written before any spectrum of theirs: with images fixed the
# ratio is larger on 25 images than on all (c1); as published, larger on 50 than on 400
# (c2); and on the same 50 images larger as published than averaged over all views (c3).

# %% tags=["remove-input"]
fewer = gather.gather(page, "head_images")["head_images"]
table = tables.pick(tables.spectra_table(fewer), data="of")
figures.show(
    sweeps.plot_scatter(
        table.replace({"recurrence": tables.WAYS}),
        "images",
        "nonconvexity",
        "recurrence",
        names=("images of class 0 that are measured", "|λmin/λmax|"),
        log=True,
    ),
    "One class, one network a seed, last epoch: what is reported as published depends on "
    "how many images there are. SGD, CE+DRW.",
)
page.judged(
    of["images"],
    "Differences of abs(λmin/λmax) of class 0, 95 % t-intervals",
)
page.value("counts_images", claims.counts(of["images"]))

# %% [markdown]
# ## Far from any saddle: the edge
#
# A rival to saddles that needs none. On a quadratic of curvature $\lambda$, SAM's gradient
# is that of SGD times $1+\rho\lambda/\|g\|$, and steps of size $\eta$ with momentum
# $\beta$ leave the minimum where
#
# $$\eta\lambda\,(1 + \rho\lambda/\|g\|) > 2(1+\beta).$$
#
# The $\lambda$ of equality is the *edge*. Descent on the whole data settles there
# {cite:p}`cohen2021edge`; SAM's edge is lower, so it would be driven from sharp minima long
# before any saddle {cite:p}`long2024edge`. Does training settle at its edge? Measured at
# twelve epochs over the seven radii: the largest eigenvalue of the whole training loss, as
# it is in that epoch but without weight decay, on clean images in eval mode; and
# $\|g\|$, the mean over augmented batches in train mode. Hypotheses on seeds 5 to 9,
# written before these runs, about means over the second half of the epochs before
# re-weighting, in doublings (a factor of two): SGD (b1) and SAM at every radius (b2) settle
# within half a doubling of their edge; beside SGD, each radius lowers $\lambda_{\max}$ as
# it lowers the edge, within half a doubling (b3); at the paper's radius it is less than half
# of SGD's (b4).

# %% tags=["remove-input"]
sharp = gather.gather(page, "edge")["edge"]
figures.show(
    sweeps.plot_edges(sharpness.edge_table(sharp)),
    "Sharpness of the total loss and the edge that the step size, the radius and the batch "
    "gradient predict; after the switch the step size falls a hundredfold, SGD's edge "
    f"rises as much and SAM's less. {sweeps.setting_or_none(sharp)}",
)
page.judged(
    of["edge"],
    "Doublings of λmax above its edge (b1, b2), the same minus SGD's (b3), and of λmax "
    "over SGD's (b4), 95 % t-intervals",
)
page.value("counts_edge", claims.counts(of["edge"]))

# %% [markdown]
# The noise of small batches is not in the formula, and a batch has sharper directions than
# the whole: SGD may settle below its edge for that reason alone. Batch norm is measured in
# eval mode and steps are taken in train mode.
#
# ## Where rare classes' gradients point
#
# The Hessian has about as many outliers as there are classes, and gradients lie largely in
# their eigenvectors {cite:p}`gurari2018tiny`: the directions that are steep, and that the
# step size keeps in check. How much of each class's gradient (its squared norm) lies in the
# ten highest? On the network before re-weighting, on the same network with the class
# weights on, and at the end. Hypotheses, as above: more of the tail's at the end than
# before, with SGD (e1) and with SAM (e2); before re-weighting, more with SAM than with SGD
# (e3); and the weights alone raise it (e4).

# %% tags=["remove-input"]
figures.show(
    sweeps.plot_shares(sharpness.share_table(sharp)),
    "Share of each class's gradient in the ten highest eigenvectors of the total loss's "
    f"Hessian; class 0 is the largest. {sweeps.setting_or_none(sharp)}",
)
page.judged(
    of["outliers"],
    "Share of the tail's gradients in the ten highest eigenvectors, differences in percent "
    "points, 95 % t-intervals",
)
page.value("counts_outliers", claims.counts(of["outliers"]))

# %% [markdown]
# ## What could be wrong
#
# - **A curve is no cause.** That one number predicts another does not say that raising it
#   by any means would help: very large radii raise the loss and ruin the tail.
# - **Few settings.** Four weight decays make the line, and beyond them it bends.
# - **One group.** The tail's training loss is a mean over three classes and their images.
# - **Another loss.** Group DRO weighs classes by their losses and from the first epoch, DRW by
#   their numbers and late. So its distance to the line is that of the whole recipe.
# - **Small scale only.** The paper's own setting has too few runs for a line.
#
# ## Summary and exercises
#
# What explains the gain is not known. A loss of the tail that stays higher goes with
# it, and yet Group DRO has that without the gain; of two networks that fit a class equally
# well SAM's is the flatter, and its ratio is the larger. Three hypotheses on one curve:
# {glue:text}`counts`; one on two more knobs:
# {glue:text}`counts_knobs`. Two on Adam and SignSGD:
# {glue:text}`counts_steps`. Three on the number of images: {glue:text}`counts_images`. Four
# on the edge: {glue:text}`counts_edge`. Four on rare gradients: {glue:text}`counts_outliers`.
#
# 1. In `studies.one_curve` the line has four weight decays. Fit it to three. Which knob
#    moves most?
# 2. Draw `overall` instead of `tail`. Is there one curve, too?

# %% tags=["remove-input"]
page.footer()
