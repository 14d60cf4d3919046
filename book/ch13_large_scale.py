# %% [markdown]
# # Large scale
#
# The paper's last table leaves CIFAR: ImageNet-LT and iNaturalist 2018, a ResNet-50,
# ninety epochs. The images are not ours to give and the runs need GPUs for hours, so
# this page has the printed numbers, the settings behind them, and the commands. It gives
# no verdict where nothing was run.

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
import pandas as pd
from saddlebook.book import Page, gather
from saddlebook.findings import report

page = Page("ch13_large_scale", vars())

# %% tags=["remove-input"]
wanted, records = gather.large_runs(page)
page.value("here", len(records))
page.value("wanted", len(wanted))
page.claim(
    "SAM raises the tail of both large sets under CE+DRW and LDAM+DRW",
    "NeurIPS slides, p. 22",
    f"{len(records)} of {len(wanted)} runs are here: undecided, too few runs",
)

# %% [markdown]
# ## The printed table
#
# One run a cell, no spread. Head, mid and tail are cut by rank of class size: 390, 445
# and 165 classes of ImageNet-LT, 842, 3,701 and 3,599 of iNaturalist 2018.

# %% tags=["remove-input"]
printed = report.paper("large")
order = list(dict.fromkeys(printed["method"]))
columns = ["overall", "head", "mid", "tail"]
tables = {
    name: rows.pivot(index="method", columns="group", values="mean")
    for name, rows in printed.groupby("dataset")
}
page.table(
    tables["imagenet-lt"].loc[order, columns],
    "ImageNet-LT as printed, test accuracy in percent",
)
page.table(
    tables["inaturalist18"].loc[
        [m for m in order if m in tables["inaturalist18"].index], columns
    ],
    "iNaturalist 2018 as printed, test accuracy in percent",
)

# %% [markdown]
# cRT, LWS, MiSLAS and DisAlign train in two stages. The rows of DisAlign and DRO-LT on
# ImageNet-LT do not agree with these groups: they were cut otherwise.
#
# ## The settings
#
# Read from the library, which takes them from the released commands. The learning rate
# follows half a cosine, class weights start with the 61st epoch, and SAM's radius has
# four steps: epochs 1–5, 6–60, 61–75, 76–90.

# %% tags=["remove-input"]
names = ["dataset", "lr", "weight_decay", "rho_steps", "key"]
settings = pd.DataFrame(
    [e.to_dict() | {"key": e.key} for e in wanted],
    index=[e.method.split()[0] for e in wanted],
)[names]
settings["rho_steps"] = settings["rho_steps"].map(
    lambda radii: ", ".join(map("{:g}".format, radii)) or "–"
)
page.table(settings, "What differs between the eight runs")

# %% [markdown]
# Where the sources leave a choice: the released code spread a batch over GPUs whose
# number is not known, each with batch-norm statistics of its own. Here a batch has eight
# such *shards* on any number of processes that divides eight, so that one GPU and eight
# make the same run. SAM climbs the gradient of the whole batch, as the released code
# does; `--set sam_climb=shard` lets each shard climb its own {cite:p}`foret2021sam`.
# Training is in bf16. Classes of equal size are ranked by label.
#
# ## The commands
#
# The two split files lie in one folder and name images below it (or below `--images`).
#
# ```bash
# python -m saddlebook large imagenet-lt --data DATA --check        # lists and files
# torchrun --standalone --nproc-per-node 8 --max-restarts 3 \
#   -m saddlebook large imagenet-lt --method LDAM+DRW+SAM \
#   --data DATA --device cuda --readers 12
# ```
#
# Or from this page, which has torchrun start on all GPUs and makes one run after the
# other; `dataset` names one set, or `lists:NAME` your own images with such split files:
#
# ```bash
# papermill large.ipynb out.ipynb -p scale full -p device cuda -p data DATA \
#   -p dataset imagenet-lt -p train True
# ```
#
# To see in minutes on any machine that all of it works: `-p scale quick -p workers 2`,
# or `large … --scale quick`, trains a small network on 32 pixels of the same images.
#
# Several machines: the same on each, with `--nnodes 2 --rdzv-backend c10d
# --rdzv-endpoint HOST:29500 --rdzv-id NAME` instead of `--standalone`; the folder of
# checkpoints is on the machine of the first process.
#
# Killed, stopped or short of a GPU, the same command goes on where the last checkpoint
# is, with any number of processes that divides eight. torchrun starts lost processes
# again; asked to stop (SIGTERM, as a cluster does before it takes a machine away) it
# lets them save. Its own exit code is 0 or 1; that of the processes, as without torchrun
# (`large --help`), stands in what it prints as `exitcode`. Reading JPEGs is what keeps GPUs
# waiting. A map of centre squares at 256 pixels, written once with `--pack`, moves crops
# and jitter to the device; it is another experiment, named so: `--set pipeline=mapped`.
# Clusters: `workflow/` has the eight runs for Slurm. How equal runs by one, two and three
# processes are, what kills do, and what reading costs beside plain torchvision, was
# measured on made-up images: the tables are in `DESIGN.md`, the command is
# `python benchmarks/large.py`. How many images a second a GPU takes
# has not been measured here; `benchmarks/GPU_RUNS.md` has the item that does.
#
# ## Our runs
#
# {glue:text}`here` of {glue:text}`wanted` runs are here.

# %% tags=["remove-input"]
page.table(
    report.summary(report.by_method(records))
    if records
    else pd.DataFrame({"runs": [0]}, index=["none yet"]),
    "Our records of these settings: last epoch, test accuracy in percent",
)

# %% [markdown]
# ## What could be wrong
#
# - Nothing on this page is evidence about the claim: the engine was proven on made-up
#   images only, in the layouts of the two sets.
# - One printed run a cell has no spread, so even a perfect repetition could only be
#   compared with a guess of it.
# - Statistics of a shard, bf16 and the order of classes of equal size are choices of ours.
#
# ## Summary and exercises
#
# The large rows can be run by anyone with the images; nobody has to believe them.
#
# 1. In the printed table, which of the four methods of this paper has the largest head
#    accuracy on ImageNet-LT, and what does SAM do to it?
# 2. Put a few of your own images and two lists into a folder and run
#    `python -m saddlebook large lists:NAME --check`.

# %% tags=["remove-input"]
page.closing(
    f"{len(records)} of {len(wanted)} runs of the large sets are here, too few for a "
    "verdict; this page says how to run them."
)

# %% tags=["remove-input"]
page.footer()
