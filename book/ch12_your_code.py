# %% [markdown]
# # In your own code
#
# You train long-tailed data already, in a loop of your own or in a framework's. Two
# lines of it change: the optimizer becomes `saddlebook.SAM`, the loss one that knows
# how rare each class is. Or keep our loop and change the images: a folder with one
# folder per class gets the main table.

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
from saddlebook import runner, studies
from saddlebook.book import Page
from saddlebook.data import load, long_tail, to_folders
from saddlebook.findings import report

page = Page("ch12_your_code", vars())

# %% [markdown]
# `pip install` of a checkout brings SAM and the losses with PyTorch and NumPy alone.
# The lines on this page are files of the book, `book/snippets/`, and tests run these
# very files. Each takes for granted what you have: a `model`, `batches` of images and
# targets, and the `labels` of your training images as a list of integers from 0.
#
# ## Your own loop
#
# `SAM` wraps any torch optimizer and is one: schedulers, saved states, copies and
# parameter groups, each with its own `rho` if you like, act as always. A closure is the
# shortest way, for a step needs two passes {cite:p}`foret2021sam`.

# %% tags=["remove-input"]
page.snippet("plain")

# %% [markdown]
# Without a closure it is `first_step`, a second backward pass, and `step`. Should the
# second pass be left out, for a loss that is not finite, say `optimizer.restore()`;
# forgotten, the next `first_step` restores the weights and raises. A batch may come in
# parts: several backward passes before each of the two steps, with their losses added up
# to the loss of the batch.
#
# ### Mixed precision
#
# With `bfloat16` the closure above needs nothing but `torch.autocast`. With `float16` a
# scaler multiplies the loss, and either pass may overflow. Then the step is skipped, the
# weights are the unperturbed ones, the optimizer's state stays, and the scale is halved.

# %% tags=["remove-input"]
page.snippet("amp")

# %% [markdown]
# `scaler.unscale_` must not stand before `first_step`: a scaler allows it once a step,
# and the climb is the same at any scale.
#
# ### Several processes
#
# With `DistributedDataParallel` there are two meanings of the climb, and both are in
# use. One argument chooses.

# %% tags=["remove-input"]
page.snippet("ddp")

# %% [markdown]
# Together, the processes do what one process does with the whole batch. Each on its own
# is m-SAM: it perturbs by the gradient of a part of the batch and exchanges gradients
# once a step. In two steps of your own, put `model.no_sync()` around the forward pass
# *and* the backward pass; around the backward pass alone it comes too late.
#
# ## Frameworks
#
# **Lightning** with manual optimization, in any precision:

# %% tags=["remove-input"]
page.snippet("lightning")

# %% [markdown]
# **Accelerate**, with a closure, without accumulation of gradients:

# %% tags=["remove-input"]
page.snippet("accelerate")

# %% [markdown]
# **The Trainer of Hugging Face**, without accumulation of gradients:

# %% tags=["remove-input"]
page.snippet("trainer")

# %% [markdown]
# What the tests train with these files: a network with batch norm on a long tail of
# scikit-learn's digits. *By hand* is SAM in ten lines of plain autograd, written for
# the test. The lower three are skipped, and say so, where the package is absent;
# `pip install ".[frameworks]"` in a checkout brings all three.
#
# | snippet | precision | trains | ends where |
# |---|---|---|---|
# | plain PyTorch | float32 | one epoch | by hand ends |
# | scaler | float16, bfloat16 | one epoch, clipped | by hand ends; finite after overflows |
# | DDP | float32 | one epoch, each switch, one process | by hand ends |
# | Lightning | float32, bf16-mixed | two epochs | by hand ends; the checkpoint has ρ |
# | Accelerate | float32, bf16 | one epoch | by hand ends |
# | Trainer | float32 | two epochs | its loss has fallen; the checkpoint has ρ |
#
# DDP has a test of its own with two processes, ten steps in float64: together they end
# where one process with the whole batch ends, and on their own where a loop over the two
# halves ends.
#
# ## The losses
#
# Each is called as `loss(logits, targets)` and takes `weight`, `reduction` and
# `ignore_index` as torch's losses do; the first two take `label_smoothing` and
# probabilities instead of labels, too. {doc}`ch02_losses` says what they are.

# %% tags=["remove-input"]
page.snippet("losses")

# %% [markdown]
# ## Your own images
#
# This part needs `pip install ".[book]"` in a checkout: it reads images and makes tables.
# Put them into one folder per class, all in a folder with a name; or into `train` and
# `test` with the class folders in each. Without `test` a fifth of every class tests,
# always the same. Here the folder is made of digits, with fewer and fewer images:

# %%
digits = long_tail(load("digits"), range(100, 20, -8))
place = to_folders(digits, f"{runner.WORK}/own/mine")
mine = studies.named("control", "quick", (0,), "folder:mine")
record = runner.run(mine[-1], data_root=place.parent)
print(record.experiment.slug)
print(f"{record.accuracy.tail:.0f} % on the tail, no evidence")

# %% tags=["remove-input"]
classes = report.per_class([record]).set_index("name")
page.table(
    classes[["count", "group", "accuracy"]].round(0),
    "Classes of the folder: images, group (thirds by count) and accuracy "
    "in percent of one run at smoke scale",
)

# %% [markdown]
# The main table of your images, its counts as they are, is a command or a page; so are
# {doc}`ch08_rho`, {doc}`ch09_rivals` and {doc}`ch10_what_explains_the_gain`:
#
# ```bash
# python -m saddlebook run table1 --scale lite --dataset folder:mine --data DIR
# jupytext --to ipynb --set-kernel python3 -o ch07.ipynb book/ch07_table.py
# papermill ch07.ipynb out.ipynb -p dataset folder:mine -p data DIR -p train True \
#   -p seeds 0,1,2,3,4 -p results mine_results
# ```
#
# `lite` resizes the images to 16 pixels and trains for 150 epochs; the seconds a run
# takes go with the number of images. For other sizes, or a long tail drawn from equal
# classes, describe the runs yourself:
#
# ```python
# exp = sb.Experiment(dataset="folder:mine", imbalance_factor=50, optimizer="sam",
#                     rho=0.5, reweight="drw", image_size=32)
# record = sb.run(exp, data_root="DIR", results="mine_results")
# ```
#
# Number of classes and a digest of the images become part of the experiment, so that
# records of other images never mix. **Labels** go by the sorted names of the class
# folders, as in torchvision's `ImageFolder`, with one exception: if all names are
# integers, they go by number, 2 before 10. The command `spectra`, which measures a network
# trained elsewhere, cannot know which of the two it was trained with, and asks.
#
# ## What could be wrong
#
# - **Radius.** Ours were chosen for small networks on small images. Try a few, smaller
#   first; a radius that helps the tail can cost the head.
# - **Batch norm.** Both passes update its statistics, as in the released code;
#   `step(closure, freeze=model)` or `sb.frozen_statistics(model)` keeps them to the first.
# - **Accumulation** in Accelerate and the Trainer calls the step's parts for each part of
#   a batch. `SAM` then raises or is left out; use a loop of your own.
# - **Sparse gradients** are refused.
# - **Versions.** Frameworks change; a test that passed once is no promise. The losses'
#   tensors are in float64 until moved; a device without float64 may refuse them.
#
# ## Summary and exercises
#
# Two lines change, and what you had stays: your loop, your framework, your checkpoints.
#
# 1. Load the state of a run with plain SGD into `SAM` and go on. Which `rho` does it have,
#    and where does it come from?
# 2. Add one image to a class folder and run the same command again. Why does it train
#    anew, and what became of the old record?

# %% tags=["remove-input"]
page.closing(
    "SAM and the three losses go into a loop of your own, mixed precision, several GPUs, "
    "Accelerate, Lightning and the Trainer; the files shown are those that tests run."
)

# %% tags=["remove-input"]
page.footer()
