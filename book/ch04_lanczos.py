# %% [markdown]
# # Seeing a spectrum: Lanczos on matrices we know
#
# The next chapters measure curvature: the extreme eigenvalues of a Hessian with half a
# million rows that nobody can write down. The tool is Lanczos iteration. Here it runs on
# operators whose spectrum is known, so every number can be checked, and so can the way
# the paper used it.

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
from saddlebook.book import Page
from saddlebook.curvature import lanczos
from saddlebook.figures import stages, toys
from saddlebook.findings import verdicts
from saddlebook.theory import known

page = Page("ch04_lanczos", vars())
causes = known.known_causes()
cells = causes.groupby(["operator", "beta"])["ratio"].mean()
again = known.rayleigh()
faked = cells["changing", "before"] > 0.9 and again.lowest > 0
found = verdicts.Verdict(
    verdicts.CONTRADICTED if faked else verdicts.UNDECIDED,
    "for an operator that changes" if faked else "no clear effect here",
)

# %% tags=["remove-input"]
errors = known.one_probe("outliers")
page.value("raw", errors["raw"].mean(), ".2g")
page.value("lined", errors["lines"].mean(), ".2g")
page.value("least_weight", errors["weight"].min(), ".2g")
page.value("most_weight", errors["weight"].max(), ".2g")
page.value("line", errors["line"].mean(), ".3g")
page.claim(
    "the extreme nodes of one stochastic Lanczos run, 100 steps, are λmin "
    "and λmax of a class's Hessian.",
    "released code, hessian.py; slides p. 9–19",
    "exact for an operator that stays the same. For one that is positive "
    "but changes from product to product the released recurrence reports "
    f"|λmin/λmax| = {cells['changing', 'before']:.2f}; along its vector the "
    f"curvature is at least {again.lowest:+.2g} in every new draw.",
    found,
    "seconds on one core; no images, no network",
)

# %% [markdown]
# ## The idea
#
# Give a symmetric matrix $H$ only as a function $v \mapsto Hv$. The vectors
# $q, Hq, H^2q, \ldots$ lean more and more towards the eigenvectors at both ends of the
# spectrum {cite:p}`lanczos1950`. Make each orthogonal to those before it, and $H$ in
# that basis $V$ is tridiagonal:
#
# $$ \begin{aligned}
# H v_k &= \beta_{k-1} v_{k-1} + \alpha_k v_k + \beta_k v_{k+1}, \\
# T &= V^\top H V = \operatorname{tridiag}(\beta, \alpha, \beta).
# \end{aligned} $$
#
# The eigenvalues of the small matrix $T$ are *Ritz values*; its outermost ones converge
# first. One step is one product:

# %% tags=["remove-input"]
page.source(lanczos._step)

# %% [markdown]
# ## Play
#
# Step by step, with the recurrence as released: each step costs one product and adds one
# Ritz value. First leave the operator the same in every product, then let it be drawn
# anew, as random crops do. Both operators are positive at every call.

# %%
stages.lanczos_stepper()

# %% [markdown]
# The same matrix: the larger end settles on the true one within a few steps, the smaller
# comes near it more slowly, and never from below. Another matrix in every step: a mirror image appears on the negative side, where nothing is. *An
# operator that changes*, below, tells why.
#
# To run in Jupyter: choose a spectrum, the number of steps and a seed. An end that is not yet known to 1 %
# is printed as *unconverged*, never as a number.

# %%
kind, steps, seed = "outliers", 12, 0
print(known.known_spectrum(kind, steps, probes=2, seed=seed))

# %% [markdown]
# ## How far to trust it
#
# For any unit vector $u$ and $\theta = u^\top H u$, some eigenvalue lies within
# $\lVert Hu - \theta u\rVert$ of $\theta$. That costs one more product for each end, and
# holds whatever happened before:

# %% tags=["remove-input"]
page.source(lanczos.certificate)

# %%
kinds = ["outliers", "edge", "cluster"]
tables = {name: known.convergence(name) for name in kinds}
page.value("covered", known.covered(tables["outliers"]), ".0f")
figures.show(
    toys.plot_convergence(tables),
    "Error of both ends (marks) and their bound (lines) over the largest "
    "eigenvalue. Outliers: as a network has them. Edge: evenly spread.",
)

# %% [markdown]
# Isolated ends are found to rounding within a few dozen steps, an end with close
# neighbours slowly; the bound knows which. In the first panel {glue:text}`covered` % of
# the ends lie within their bound; the others are steps at which the run had not met
# the extreme eigenvalue yet and sat near another one. *That* no residual can rule out:
# more steps and another seed speak for an end, nothing proves it.
#
# ## Ghosts
#
# In exact arithmetic $v_{k+1}$ is orthogonal to the whole basis by itself. With rounding
# it is not: once an end has converged, its direction creeps back in and is found again,
# and again. So we orthogonalise every new vector against all earlier ones, twice.

# %%
haunted = known.ghosts()
last = haunted.query("not reorthogonalise").iloc[-1]
page.value("copies", last["copies"], ".0f")
page.value("after", last["steps"], ".0f")
figures.show(
    toys.plot_ghosts(haunted),
    "Copies of the one largest eigenvalue among the Ritz values, and how far the "
    "basis is from orthonormal.",
)

# %% [markdown]
# Without it the single largest eigenvalue stands {glue:text}`copies` times among the
# Ritz values after {glue:text}`after` steps. The ends stay right; densities and traces
# do not.
#
# ## When the space runs out
#
# If $H$ has fewer distinct eigenvalues than steps, what is left after
# orthogonalisation is rounding. Its direction means nothing. Ours stops; the released
# rule divides by the norm plus 1e-6 and goes on.

# %%
broken = known.breakdown()
page.value("invented", float(broken["lowest"].iloc[1]), ".3g")
page.value("stopped", int(broken["steps"].iloc[0]))
page.table(
    broken.set_index("recurrence").map("{:.4g}".format),
    "Rank 70, all eigenvalues at least 0; float32, at most 100 steps",
)

# %% [markdown]
# The truth is 0; ours stops after {glue:text}`stopped` steps, the released rule ends at
# {glue:text}`invented`.
#
# ## Density
#
# The Ritz values $\theta_i$ with weights $\tau_i^2$, the squared first components of
# $T$'s eigenvectors, are a Gauss quadrature: for polynomials up to degree $2K - 1$
#
# $$ q^\top f(H)\, q = \sum_i \tau_i^2 f(\theta_i), $$
#
# and with random signs $q$ its mean is $\tfrac1n\operatorname{tr} f(H)$
# {cite:p}`ghorbani2019hessian`. One probe says little of a single eigenvalue: its weight
# is $(q^\top u)^2/n$, whose spread is larger than its mean. But a converged, isolated one
# has weight $1/n$, known without sampling; we put that in as a *line* and rescale the
# rest. (On a diagonal matrix random signs hide the problem, for there
# $q^\top f(H)q$ is exact; so this matrix stands in a random basis, as a network's does.)

# %%
truth = known.eigenvalues("outliers")
figures.show(
    toys.plot_known_density(
        known.known_spectrum("outliers", 60, rotated=True), truth, 0.05
    ),
    "Density from one probe of 60 steps, in a random basis; kernel of standard "
    "deviation 0.05. Stems: converged single eigenvalues of weight 1/n.",
)

# %% [markdown]
# Over twenty seeds one probe gives the largest eigenvalue between
# {glue:text}`least_weight` and {glue:text}`most_weight` times its true weight; with a line
# it is {glue:text}`line`. The mean eigenvalue gains little: off by {glue:text}`raw` of the
# mean absolute eigenvalue without lines, {glue:text}`lined` with them. Lines repair single
# eigenvalues; the bulk needs more probes.
#
# ## An operator that changes
#
# All this presumes one fixed matrix. The released analysis draws random crops and flips
# anew in every product, so each step sees another Hessian. It also takes $\beta$ as the
# norm *before* re-orthogonalisation: with a fixed matrix the same number, with a
# changing one it counts what re-orthogonalisation then removes.

# %% tags=["remove-input"]
page.source(lanczos.released)

# %%
page.value("mirrored", cells["changing", "before"], ".2f")
page.value("milder", cells["changing", "after"], ".2f")
page.value("low", again.reported, ".2f")
page.value("least", again.lowest, ".2g")
figures.show(
    toys.plot_known_causes(causes),
    "Extreme Ritz values of an operator that is positive semi-definite at every "
    "call: 50 rank-1 terms, heavy-tailed weights, kept or drawn anew. Three seeds.",
)

# %% [markdown]
# Every operator drawn here is positive: no direction curves down. Held fixed, both
# recurrences say so. Redrawn, off-diagonals grow while the diagonal stays small, and a
# tridiagonal matrix with zero diagonal has a spectrum *symmetric about 0*: the
# recurrence as released reports a ratio of {glue:text}`mirrored`, with $\beta$ after
# it {glue:text}`milder`. The direction it names for λmin, reported as
# {glue:text}`low`, has curvature of at least {glue:text}`least` in all of twenty new
# draws.
#
# So a ratio near 1 with a mirrored density is what this procedure shows at a saddle,
# and what it shows where there is none. Which of them the published pictures show is
# for the next chapters, on networks.
#
# ## What could be wrong
#
# - A heavy-tailed sum of rank-1 terms is a caricature of a memorised class. How strong
#   the effect is depends on its tail and on the number of images.
# - Diagonal operators have rounding unlike a network's. There the bound also holds the
#   product's own rounding, measured in float64.
# - A residual bound says that *an* eigenvalue is near, not that it is the extreme one.
#
# ## Summary and exercises
#
# Lanczos finds both ends of a spectrum in some dozen products, and one more product
# tells how far to trust each. It needs re-orthogonalisation, a stop when the space runs
# out, and one fixed operator.
#
# 1. In the cell under *Play*, choose `"edge"`. How many steps until both ends are numbers? Why do more
#    seeds not help?
# 2. Call `known.known_causes(steps=10)` and `steps=200`. Which of the four cells change?

# %% tags=["remove-input"]
told = f"Ratios on a positive operator: fixed {cells['fixed', 'before']:.2g}, "
told += f"changing {cells['changing', 'after']:.2g} with β after and "
told += f"{cells['changing', 'before']:.2g} as released."
page.verdict(found, told)

# %% tags=["remove-input"]
page.footer()
