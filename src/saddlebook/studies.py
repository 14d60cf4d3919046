"""Lists every table and figure of the paper, and the controls it lacks, as data.

Data only. Each study returns the ``full`` experiments; ``at_scale`` maps them. ``full``
is the paper's setting in bf16, tested every fifth epoch and at the epochs of its
figures: what a processor core and a GPU can both do, so that their records stand in one
table. The best of these 40 tests can lie below the best of the paper's 200.

Sources of the settings: commands released with the paper (run.sh) for CE and LDAM on
both CIFARs; VS, PGD and LPF-SGD settings were not published and are ours (verdict X).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

from saddlebook.errors import UsageError, one_of
from saddlebook.experiment import LARGE, LISTED, PRECISIONS, SCALES, Experiment
from saddlebook.scales import at_scale, lite_rho

SEEDS = (0, 1, 2, 3, 4)  # all reported seeds, listed in advance
TUNING_SEEDS = (100, 101, 102)  # for choosing settings, never reported
FRESH_SEEDS = (5, 6, 7, 8, 9)  # of questions asked after the others were seen
EPOCHS_OF_DYNAMICS = Experiment().milestones
EPOCHS_OF_EDGE = (10, 20, 40, 60, 80, 100, 120, 140, 160, 165, 180, 200)

# PAPER: run.sh lines 7-9 and 17-19; VS is not there, 0.5 / 0.8 is a guess
_RHO = {
    "cifar10": {"ce": 0.1, "ce+drw": 0.5, "ldam+drw": 0.8, "vs": 0.5},
    "cifar100": {"ce": 0.2, "ce+drw": 0.8, "ldam+drw": 0.8, "vs": 0.8},
}
RADII = (0.0, 0.05, 0.1, 0.2, 0.5, 0.8, 1.3)  # the paper's five, none, and one beyond
WEIGHT_DECAYS = (2e-4, 5e-4, 1e-3, 2e-3)
WIDER_DECAYS = (4e-3, 8e-3)  # SGD's best of the four is the largest
# Tried at ``lite`` on CIFAR-100-LT, by loss
LITE_RADII = {
    "ce": (0.06, 0.12, 0.24, 0.48), "ldam": (0.05, 0.1, 0.3), "vs": (0.05, 0.1, 0.3),
}  # fmt: skip
VS_PAIRS = ((0.15, 1.25), (0.2, 1.2), (0.05, 0.75), (0.05, 1.0))  # γ, τ
# Ours: the paper's are not published. A gradient's norm is of order 1
NOISES = (
    *({"optimizer": "pgd", "noise": r} for r in (0.01, 0.05, 0.2, 1.0)),
    *({"optimizer": "lpf", "noise": gamma} for gamma in (5e-4, 2e-3, 8e-3)),
    {"optimizer": "lpf", "noise": 2e-3, "lpf_samples": 1},
)
# The best overall accuracy of each in ``tuning`` at lite, as a test asserts
_PGD: dict[str, Any] = {"optimizer": "pgd", "noise": 1.0}
_LPF: dict[str, Any] = {"optimizer": "lpf", "noise": 8e-3}
# Step sizes of Adam and of SignSGD; decoupled decay, so that lr·wd is that of SGD
ADAPTIVE = {"adam": (3e-4, 1e-3, 3e-3, 1e-2), "sign": (1e-4, 3e-4, 1e-3, 3e-3)}
_STEP_SIZES = {"adam": 1e-2, "sign": 3e-3}  # the best of ``adaptive_tuning``
_MOST_WORKERS = 999
_SEEDS = (*SEEDS, *FRESH_SEEDS, *TUNING_SEEDS)
_FULL: dict[str, Any] = {"precision": "bf16", "test_every": 5}
_OF_IMAGES = (
    "dataset", "imbalance", "imbalance_factor", "max_count", "classes",
    "images_digest",
)  # fmt: skip


def _bases(dataset: str) -> dict[str, dict[str, Any]]:
    return {
        "ce": {"loss": "ce", "dataset": dataset},
        "ce+drw": {"loss": "ce", "reweight": "drw", "dataset": dataset},
        "ldam+drw": {"loss": "ldam", "reweight": "drw", "dataset": dataset},
        "vs": {"loss": "vs", "dataset": dataset},
    }


def _seeded(
    settings: Sequence[dict[str, Any]], seeds: Sequence[int]
) -> list[Experiment]:
    return [
        Experiment(**_FULL, **setting, seed=seed)
        for seed in seeds
        for setting in settings
    ]


def _drw(dataset: str = "cifar10") -> dict[str, Any]:
    return _bases(dataset)["ce+drw"]


def _drw_sam(dataset: str = "cifar10") -> dict[str, Any]:
    return _drw(dataset) | {"optimizer": "sam", "rho": _RHO[dataset]["ce+drw"]}


def table1(dataset: str = "cifar10", seeds: Sequence[int] = SEEDS) -> list[Experiment]:
    """Table 1 on one CIFAR: four losses with SGD and with SAM, IF 100."""
    one_of("dataset of table 1", dataset, _RHO)
    settings = []
    for name, base in _bases(dataset).items():
        settings += [base, base | {"optimizer": "sam", "rho": _RHO[dataset][name]}]
    return _seeded(settings, seeds)


def table1_cifar100(seeds: Sequence[int] = SEEDS) -> list[Experiment]:
    """Table 1 on CIFAR-100-LT."""
    return table1("cifar100", seeds)


def control(seeds: Sequence[int] = SEEDS, dataset: str = "cifar10") -> list[Experiment]:
    """CE+DRW with and without SAM at weight decay 1e-3: what the paper lacks."""
    bases = _drw(dataset), _drw_sam(dataset)
    return _seeded([base | {"weight_decay": 1e-3} for base in bases], seeds)


def control_cifar100(seeds: Sequence[int] = SEEDS) -> list[Experiment]:
    """The control on CIFAR-100-LT, where 1e-3 is the best of ``tuning_cifar100``, too.

    Others, who re-ran the released code, reached its SAM rows on this set with weight
    decay alone.
    """
    return control(seeds, "cifar100")


def dynamics(seeds: Sequence[int] = SEEDS) -> list[Experiment]:
    """CE+DRW with SGD and SAM, class spectra at the epochs of the dynamics figure.

    At ``full`` of at most 100 images a class: a product costs a core 5 ms an image.
    """
    return [
        replace(e, spectra_at=EPOCHS_OF_DYNAMICS, spectra_images=100)
        for e in _seeded([_drw(), _drw_sam()], seeds)
    ]


def rho_ablation(seeds: Sequence[int] = SEEDS) -> list[Experiment]:
    """CE+DRW with SAM over radii; radius 0 is SGD. At ``lite`` each is 0.6 times it.

    Hypothesis (i), with re-weighting: tail accuracy rises with the radius while the
    overall one peaks and falls. Test: t over seeds, one-sided, of three contrasts, all
    of which must hold: the tail's slope over the seven radii above 0; overall at the
    paper's radius above overall at 0, and above overall at the largest. The largest
    p-value counts, Holm-adjusted over the five hypotheses.

    Hypothesis (ii) needs ``table1``: without re-weighting SAM does not help the tail.
    Test: a gain of 3 points or more is rejected, paired by seed, same correction.
    """
    settings = [
        _drw() | ({"optimizer": "sam", "rho": rho} if rho else {}) for rho in RADII
    ]
    return _seeded(settings, seeds)


def weight_decay(seeds: Sequence[int] = SEEDS) -> list[Experiment]:
    """CE+DRW over weight decays, with SGD and with SAM alike.

    Hypothesis (iii): with weight decay tuned for each alike, SAM's overall gain is
    smaller than 1.5 points. Tuned means best overall accuracy, last epoch, mean over
    the seeds of ``tuning``, which are not reported. Test: a gain of 1.5 points or more
    is rejected, paired by seed, Holm-adjusted over the five hypotheses.
    """
    return _seeded(_decays(), seeds)


def _decays(values: Sequence[float] = WEIGHT_DECAYS) -> list[dict[str, Any]]:
    return [
        base | {"weight_decay": decay}
        for decay in values
        for base in (_drw(), _drw_sam())
    ]


def wider_tuning(seeds: Sequence[int] = TUNING_SEEDS) -> list[Experiment]:
    """Weight decays beyond the edge of ``tuning``, on the same seeds."""
    return _seeded(_decays(WIDER_DECAYS), seeds)


def wider_decay(seeds: Sequence[int] = SEEDS) -> list[Experiment]:
    """CE+DRW over the weight decays beyond the edge of ``weight_decay``.

    Hypothesis (vi): with weight decay tuned over all six values, for SGD and SAM alike,
    SAM gains less than 1.5 points overall. Tuned means best overall accuracy, last
    epoch, mean over the seeds of ``tuning`` and ``wider_tuning``. Test: as (iii). It
    was asked after (iii) was seen, so it is a family of its own.
    """
    return _seeded(_decays(WIDER_DECAYS), seeds)


def one_curve(seeds: Sequence[int] = FRESH_SEEDS) -> list[Experiment]:
    """CE+DRW under five knobs: is the tail's accuracy a function of its training loss?

    The curve: by seed, the least-squares line of tail accuracy (last epoch, percent)
    in the logarithm of the tail's training loss (nats, clean images, last epoch) over
    SGD's four weight decays. What is tested is a run's distance to the line of its own
    seed. It was found on the seeds of the other studies; these are fresh.

    Hypothesis (a1): SAM, PGD and LPF-SGD lie on the line. Test: for each of the three
    two one-sided t-tests over seeds (TOST) against ±3 points; the largest p-value
    counts. Contradicted if one of the three lies beyond 3 points, its one-sided p-value
    counting three times.

    Hypothesis (a2): SAM only after re-weighting starts lies above the line.
    Hypothesis (a3): SAM only before re-weighting starts lies below it. Tests of both:
    one-sided, t over seeds. Holm over the three.
    """
    sgd = [_drw() | {"weight_decay": decay} for decay in WEIGHT_DECAYS]
    knobs = [_drw_sam(), _drw() | _PGD, _drw() | _LPF]
    knobs += [_drw_sam() | {"sam_epochs": when} for when in ("before", "after")]
    return _seeded(sgd + knobs, seeds)


def two_more_knobs(seeds: Sequence[int] = FRESH_SEEDS) -> list[Experiment]:
    """Two more knobs for the line of ``one_curve``, on the seeds it was fitted to.

    SAM that climbs the loss of the tail's classes alone (ImbSAM, Zhou et al. 2023), at
    the paper's radius; and Group DRO (Sagawa et al. 2020) in the place of re-weighting,
    whose class weights follow the losses, with the step size of its authors' code.

    Hypothesis (a4): both lie on the line of SGD's weight decays. Written after (a1) to
    (a3) were seen and before these runs. Test: as (a1); the largest p-value counts, and
    it is a family of its own. Beyond the line's losses the prediction is an
    extrapolation, and the page shows where each lies.
    """
    knobs = [_drw_sam() | {"sam_classes": "tail"}, {"reweight": "dro"}]
    return _seeded(knobs, seeds)


def sam_timing(seeds: Sequence[int] = SEEDS) -> list[Experiment]:
    """SAM only before, and only after, re-weighting starts.

    Hypothesis (iv): one of the two gives more than half of SAM's gain of the tail and
    the other less than half. Test: t over seeds, one-sided, of gain minus half of full
    SAM's gain, which must itself be above 0; the smaller p-value of the two ways round
    counts twice, Holm-adjusted over the five hypotheses.
    """
    return _seeded(
        [_drw_sam() | {"sam_epochs": when} for when in ("before", "after")], seeds
    )


def bn_statistics(seeds: Sequence[int] = SEEDS) -> list[Experiment]:
    """SAM with batch-norm statistics left alone in the second pass (corrected).

    Hypothesis (v): that changes tail accuracy by less than 1.5 points. Test: two
    one-sided tests (TOST) paired by seed, Holm-adjusted over the five hypotheses.
    """
    return _seeded([_drw_sam() | {"sam_bn": "first"}], seeds)


def optimizers(seeds: Sequence[int] = SEEDS) -> list[Experiment]:
    """The optimizer comparison: CE+DRW with SGD, PGD, LPF-SGD and SAM.

    The paper's settings of PGD and LPF-SGD are not published: the noise is the best of
    ``tuning``, and the verdict on the printed numbers is X whatever the outcome.
    """
    return _seeded(
        [_drw(), _drw() | _PGD, _drw() | _LPF, _drw_sam()],
        seeds,
    )


def optimizers_cifar100(seeds: Sequence[int] = SEEDS) -> list[Experiment]:
    """The optimizer comparison on CIFAR-100-LT, noise as on CIFAR-10-LT."""
    base = _drw("cifar100")
    return _seeded([base, base | _PGD, base | _LPF, _drw_sam("cifar100")], seeds)


def tuning(seeds: Sequence[int] = TUNING_SEEDS) -> list[Experiment]:
    """What is chosen before any reported run, on seeds that no table reports.

    Weight decay for SGD and for SAM, norm of the noise for PGD, γ and M for LPF-SGD.
    """
    return _seeded([*_decays(), *(_drw() | noise for noise in NOISES)], seeds)


def tuning_cifar100(seeds: Sequence[int] = TUNING_SEEDS[:1]) -> list[Experiment]:
    """Radii at ``lite``, and weight decays, of CIFAR-100-LT: no table reports these.

    Rule, fixed before these runs: of each loss the radius of best overall accuracy,
    last epoch; its ratio to the paper's is then the one of ``lite``.
    """
    data = "cifar100"
    bases = [b for name, b in _bases(data).items() if name != "ce"]
    settings = [
        base
        | {"optimizer": "sam", "rho": round(radius / lite_rho(base["loss"], data), 6)}
        for base in bases
        for radius in LITE_RADII[base["loss"]]
    ]
    decays = [_drw(data) | {"weight_decay": decay} for decay in WEIGHT_DECAYS]
    return _seeded([*bases, *settings, *decays[1:]], seeds)


def adaptive_tuning(seeds: Sequence[int] = TUNING_SEEDS) -> list[Experiment]:
    """Step sizes of Adam and SignSGD, on seeds that no table reports.

    Rule, fixed before these runs: the best overall accuracy, last epoch, mean.
    """
    rates = [(name, lr) for name, tried in ADAPTIVE.items() for lr in tried]
    return _seeded([_drw() | _adaptive(*rate) for rate in rates], seeds)


def adaptive(seeds: Sequence[int] = FRESH_SEEDS) -> list[Experiment]:
    """Adam and SignSGD beside SGD, with CE and with CE+DRW.

    Does SGD optimise rare classes badly, or does it learn their images by heart? Where
    rare classes get little of the gradient, steps that do not shrink with it fit them
    sooner (Kunstner et al. 2024). If SGD's tail were badly optimised, such steps would
    raise its accuracy.

    Hypothesis (d1): with re-weighting neither raises tail accuracy by 3 points or more.
    Hypothesis (d2): nor does either without. Tests: such a gain is rejected for both,
    paired by seed and unpaired; the larger p-value counts, Holm over the two.
    """
    bases = [_bases("cifar10")[name] for name in ("ce", "ce+drw")]
    steps: list[dict[str, Any]] = [
        {}, *(_adaptive(name, lr) for name, lr in _STEP_SIZES.items())
    ]  # fmt: skip
    return _seeded([base | step for base in bases for step in steps], seeds)


def _adaptive(optimizer: str, lr: float) -> dict[str, Any]:
    default = Experiment()
    decay = round(default.weight_decay * default.lr / lr, 6)
    return {"optimizer": optimizer, "lr": lr, "weight_decay": decay}


def curvature(seeds: Sequence[int] = SEEDS[:3]) -> list[Experiment]:
    """Clean class spectra after the last epoch, over radii and weight decays."""
    runs = list(dict.fromkeys(rho_ablation(seeds) + weight_decay(seeds)))
    return _after_the_last_epoch("classes", runs)


def _after_the_last_epoch(
    plan: str, experiments: Sequence[Experiment]
) -> list[Experiment]:
    return [replace(e, spectra_at=(e.epochs,), spectra_plan=plan) for e in experiments]


def head_images(seeds: Sequence[int] = FRESH_SEEDS) -> list[Experiment]:
    """CE+DRW with SGD: the largest class measured on 25 to 1,000 of its images.

    Is a large abs(λmin/λmax) a matter of how many images are measured? Seeds whose
    spectra no page shows; written before they were measured. All after the last epoch.

    Hypothesis (c1): with images fixed, 25 of them give a larger ratio than 1,000.
    Hypothesis (c2): as published, 50 give a larger ratio than 400.
    Hypothesis (c3): on the same 50 images the ratio as published is larger than that of
    the exact mean over all views. Tests: t over seeds, two-sided, Holm over the three.
    """
    return _after_the_last_epoch("head_images", _seeded([_drw()], seeds))


def whole(seeds: Sequence[int] = SEEDS[:3]) -> list[Experiment]:
    """CE+DRW with SGD and with SAM: the rarest class of the head, of every image.

    ``dynamics`` takes 100 of its 1,796 images at ``full``. The paper prints .10 for it
    with SGD (.08 with SAM) and .98 for its tail. Does the released procedure give the
    small value with all images, where it gives a large one with 100? Does a difference
    to the tail remain where images are fixed? After the last epoch; written before
    these were measured.
    """
    return _after_the_last_epoch("whole", _seeded([_drw(), _drw_sam()], seeds))


def largest(seeds: Sequence[int] = SEEDS[:3]) -> list[Experiment]:
    """CE+DRW with SGD and with SAM: the largest class, of every image, as published.

    ``dynamics`` takes 100 of its 5,000 images at ``full``. The paper prints .08 for it
    with SGD (.06 with SAM). After the last epoch; written before these were measured.
    """
    return _after_the_last_epoch("largest", _seeded([_drw(), _drw_sam()], seeds))


def largest_fixed(seeds: Sequence[int] = SEEDS[:3]) -> list[Experiment]:
    """The same with images fixed: apart, as the other takes two hours of a core."""
    return _after_the_last_epoch("largest_fixed", _seeded([_drw(), _drw_sam()], seeds))


def all_images(seeds: Sequence[int] = SEEDS[:3]) -> list[Experiment]:
    """CE+DRW with SGD and with SAM: both ends of the loss of all training images.

    The paper prints −.98 and 13.42 with SGD, a ratio of .073: of plain cross-entropy,
    by its code. Fixed images only: a redrawn product of 12,406 takes minutes. After the
    last epoch; written before these were measured.
    """
    return _after_the_last_epoch("all_images", _seeded([_drw(), _drw_sam()], seeds))


def views(seeds: Sequence[int] = FRESH_SEEDS) -> list[Experiment]:
    """CE+DRW with SGD and with SAM: the tail's curvature with augmentation inside it.

    The loss that training lowers has every image in all its crops and flips, and its
    Hessian is their mean: one fixed operator, neither the fixed images nor the views
    redrawn in every product of the published measurement. Measured after the last epoch
    on the same networks in all three ways; a number is abs(λmin/λmax), the mean over
    the tail's classes.

    Hypothesis (f1): with SGD it is larger as published than over all views.
    Hypothesis (f2): with SGD it is larger over all views than with images fixed.
    Hypothesis (f3): over all views it is larger with SGD than with SAM, the paper's
    claim. Tests of these: t over seeds, two-sided.
    Hypothesis (f4): over all views and with SGD it is below .2, where the paper's tail
    is above .5. Test: t over seeds, one-sided. Holm over the four.

    Networks of one other seed had been measured so before (.06 with SGD, .15 with SAM);
    seeds whose spectra of rare classes had not been; written before these spectra.
    """
    return _after_the_last_epoch("views", _seeded([_drw(), _drw_sam()], seeds))


def mixed_batches(seeds: Sequence[int] = FRESH_SEEDS) -> list[Experiment]:
    """CE+DRW with SGD and with SAM: the tail's curvature with batch norm as it trains.

    Training normalises every batch by its own mean and variance; all spectra elsewhere
    take the running ones, as the paper's do. Here images without augmentation stand in
    shuffled batches of 128 of all classes, each with its own statistics; the loss is a
    class's mean over its images in them. One fixed operator, after the last epoch; a
    number is abs(λmin/λmax), the mean over the tail's classes.

    Hypothesis (g1): with SGD it is below .2, where the paper's tail is above .5. Test:
    t over seeds, one-sided.
    Hypothesis (g2): it is larger with SGD than with SAM, the paper's claim.
    Hypothesis (g3): with SGD it is larger than with running statistics. Tests: t over
    seeds, two-sided. Holm over the three.

    No such spectrum of a trained network had been measured; written before these.
    """
    return _after_the_last_epoch("mixed", _seeded([_drw(), _drw_sam()], seeds))


def edge(seeds: Sequence[int] = FRESH_SEEDS) -> list[Experiment]:
    """CE+DRW over the seven radii: the sharpness of the total loss through training.

    A rival to saddles: far from any saddle SAM may act by making sharp minima unstable.
    On a quadratic of curvature λ its step has the slope λ(1 + ρλ/‖g‖), so heavy ball
    leaves where ηλ(1 + ρλ/‖g‖) > 2(1 + β); the λ of equality is called the edge (Long
    and Bartlett 2024 for β = 0; ``theory.saddles.stable_curvature``). Does training
    settle there, as full-batch descent does (Cohen et al. 2021)?

    Measured, at twelve epochs (every fifth one would cost twice the training): λmax of
    the training loss as it is in that epoch, class weights included and weight decay
    not, over all training images without augmentation, batch norm in eval mode, to 5 %;
    and ‖g‖, the mean over the batches that the next epoch would see, in train mode,
    augmented. A run's number is the mean over its epochs from the middle of the time
    before re-weighting to its end, where η is constant, of the binary logarithm of
    λmax, or of λmax over its edge: doublings.

    Hypothesis (b1): with SGD λmax settles within half a doubling of its edge. Refuted
    by a mean beyond half a doubling.
    Hypothesis (b2): with SAM it settles so near SAM's own edge, at each of the six
    radii. Refuted by one radius beyond.
    Hypothesis (b3): the edge tells how λmax falls with the radius: λmax over its edge
    is that of SGD within half a doubling, at each radius. Refuted by one beyond.
    Hypothesis (b4): at the paper's radius λmax is less than half of SGD's. Tests of
    these: t over seeds, both sides of a margin (TOST), paired by seed and unpaired
    where two settings are compared; Holm over the four.

    Also measured, with SGD and with the paper's radius: the share of the squared norm
    of each class's gradient (its own loss, clean images) that lies in the ten highest
    eigenvectors of the total loss's Hessian; at the last epoch before re-weighting, on
    the same network with the class weights of the next epoch, and after the last epoch.
    The mean over the tail's classes, percent.

    Hypothesis (e1): with SGD the tail's share is larger after the last epoch than
    before re-weighting.
    Hypothesis (e2): so it is with SAM.
    Hypothesis (e3): before re-weighting it is larger with SAM than with SGD.
    Hypothesis (e4): with SGD the class weights alone raise it. Tests of these: t over
    seeds, two-sided, Holm over the four.

    Seeds whose total loss had not been measured; written before these runs. To know the
    price, one network was measured before: SAM at the paper's radius, tuning seed 100.
    """
    shown = _RHO["cifar10"]["ce+drw"]
    return [
        replace(
            e,
            spectra_at=EPOCHS_OF_EDGE,
            spectra_plan="outliers" if e.rho in (0, shown) else "total",
        )
        for e in rho_ablation(seeds)
    ]


def vs_tuning(seeds: Sequence[int] = TUNING_SEEDS[:1]) -> list[Experiment]:
    """VS with SGD over four published pairs of γ and τ; the paper's are not published.

    Rule, fixed before these runs: that pair is taken whose head, mid and tail accuracy
    (last epoch, full scale) has the least squared distance to the paper's row for VS
    with SGD, 90.6, 75.8 and 70.3; then the radius of VS+SAM from 0.1 and 0.5 in the
    same way, against the paper's row for VS+SAM. Seed 100 is in no table.

    Sources of the pairs: the VS loss's own repository (γ .2, τ 1.2) and later papers on
    the same benchmark (.15/1.25, .05/.75, .05/1).
    """
    settings = [
        {"loss": "vs", "vs_gamma": gamma, "vs_tau": tau} for gamma, tau in VS_PAIRS
    ]
    return _seeded(settings, seeds)


def lab(seeds: Sequence[int] = SEEDS) -> list[Experiment]:
    """CE+DRW over radii up to ten times the paper's, and with ten times the decay.

    With clean spectra. What the live panel shows beside a reader's run at ``lab``
    scale, where each radius is a tenth: no evidence, and no claim reads it.
    """
    radii = (0.0, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
    runs = [_drw() | ({"optimizer": "sam", "rho": r} if r else {}) for r in radii]
    runs += [base | {"weight_decay": 2e-3} for base in (_drw(), _drw_sam())]
    return [replace(e, spectra_at=(e.epochs,)) for e in _seeded(runs, seeds)]


def large(
    dataset: str = "imagenet-lt", seeds: Sequence[int] = SEEDS[:1], scale: str = "full"
) -> list[Experiment]:
    """The paper's rows of a large set: CE+DRW and LDAM+DRW, with SGD and with SAM.

    ResNet-50, 90 epochs, batch 256, bf16. The batch has eight shards, as on a machine
    with eight GPUs; on how many the released runs were is not known. ``lists:NAME``,
    your own images, has the settings of ImageNet-LT. No study of ``STUDIES``: these
    runs have a command of their own. ``quick`` is a small network for four epochs on
    the same images, to see that all of it works here.
    """
    # PAPER: run.sh lines 22-27 and 30-35
    natural = dataset == "inaturalist18"
    ce = {"loss": "ce"}
    ldam = {"loss": "ldam", "ldam_max_margin": 0.3}
    ldam |= {"weight_decay": 1e-4} if natural else {}
    late = {"ce": (0.1, 0.2) if natural else (0.5, 0.5), "ldam": (0.5, 0.5)}
    settings: dict[str, Any] = {
        "dataset": dataset, "imbalance": "as_is", "image_size": 224,
        "model": "resnet50", "reweight": "drw", "epochs": 90, "drw_epoch": 60,
        "batch_size": 256, "lr": 0.1 if natural else 0.2, "schedule": "cosine",
        "precision": "bf16", "shards": 8,
    }  # fmt: skip
    sam = {"optimizer": "sam"}
    return [
        at_scale(Experiment(**settings | base | more, seed=seed), scale)
        for seed in seeds
        for base in (ce, ldam)
        for more in ({}, sam | {"rho_steps": (0.05, 0.1, *late[str(base["loss"])])})
    ]


def large_words(experiment: Experiment) -> list[str]:
    """What stands behind ``-m saddlebook`` to make a run of a large set."""
    exp, method = experiment, experiment.method.split()[0]
    runs = large(exp.dataset, scale=exp.scale)
    rows = {e.method.split()[0]: e.to_dict() for e in runs}
    words = ["large", exp.dataset, "--scale", exp.scale, "--method", method]
    words += ["--seed", str(exp.seed)]
    counted = ("seed", "classes", "images_digest")  # said above, or found in the lists
    changed = [
        f"{name}={json.dumps(value)}"
        for name, value in exp.to_dict().items()
        if name not in counted and value != rows[method][name]
    ]
    return words + ["--set", *changed] * bool(changed)


STUDIES: dict[str, Callable[..., list[Experiment]]] = {
    study.__name__: study
    for study in (
        table1, table1_cifar100, control, control_cifar100, dynamics, rho_ablation,
        weight_decay, sam_timing, bn_statistics, optimizers, optimizers_cifar100,
        tuning, curvature, tuning_cifar100, adaptive_tuning, adaptive, head_images,
        edge, vs_tuning, wider_tuning, wider_decay, one_curve, two_more_knobs, views,
        whole, largest, largest_fixed, all_images, mixed_batches, lab,
    )
}  # fmt: skip


def named(
    name: str,
    scale: str = "full",
    seeds: Sequence[int] | None = None,
    dataset: str = "",
) -> list[Experiment]:
    """Experiments of the study ``name`` at ``scale``, without repeats.

    Args:
        name: Of ``STUDIES``.
        scale: ``full``, ``lite`` or ``quick``.
        seeds: Instead of the study's.
        dataset: ``folder:NAME`` puts the study on your own images, with their counts as
            they are; the radii are the study's.

    Raises:
        UsageError: Unknown study or scale, with the nearest name.
    """
    study = STUDIES[one_of("study", name, STUDIES)]
    full = study(seeds=seeds) if seeds is not None else study()
    if dataset:
        full = [on_images(e, dataset) for e in full]
    return list(dict.fromkeys(at_scale(e, scale) for e in full))


def on_images(experiment: Experiment, dataset: str) -> Experiment:
    """A study's ``full`` experiment on your own images, with their counts as is."""
    plain = Experiment(dataset=dataset, imbalance="as_is")
    return replace(experiment, **{name: getattr(plain, name) for name in _OF_IMAGES})


def in_study(experiment: Experiment) -> Experiment:
    """The study's own experiment that one on your own images repeats; back again."""
    if not experiment.is_own:
        return experiment
    plain = at_scale(Experiment(), experiment.scale)
    return replace(experiment, **{name: getattr(plain, name) for name in _OF_IMAGES})


def command(study: str, scale: str, dataset: str = "") -> str:
    """The command that makes the records of a study."""
    own = f" --dataset {dataset}" if dataset else ""
    return f"python -m saddlebook run {study} --scale {scale}{own}"


def commands(experiments: Iterable[Experiment]) -> dict[str, list[Experiment]]:
    """Few commands that make the records of ``experiments``, and what each makes.

    What no study has stands under no command, the empty one.
    """
    given = {in_study(exp): exp for exp in experiments}
    own = next((exp.dataset for exp in given.values() if exp.is_own), "")
    left, found = set(given), dict[str, list[Experiment]]()
    while left:
        scale = min(exp.scale for exp in left)
        covers = {name: left & _members(name, scale) for name in STUDIES}
        name = max(covers, key=lambda name: len(covers[name]))
        made = covers[name] or {exp for exp in left if exp.scale == scale}
        line = command(name, scale, own) if covers[name] else ""
        found.setdefault(line, []).extend(e for key, e in given.items() if key in made)
        left -= made
    return found


@cache
def _members(study: str, scale: str) -> frozenset[Experiment]:
    return frozenset(named(study, scale))


def chosen_seeds(given: object) -> list[int]:
    """Seeds as ``0,1,2``, one number or a list; none given: an empty list.

    Raises:
        UsageError: Not whole numbers, or not seeds of any study.
    """
    parts = given if isinstance(given, list | tuple) else str(given or "").split(",")
    if given == 0 and not isinstance(given, bool):
        parts = [0]
    try:
        seeds = [int(str(part)) for part in parts if str(part).strip()]
    except ValueError:
        raise UsageError(f"seeds {given!r} must be integers such as 0,1,2") from None
    if odd := [seed for seed in seeds if seed not in _SEEDS]:
        known = ", ".join(map(str, _SEEDS))
        raise UsageError(f"seed {odd[0]} is in no study; the studies' are {known}")
    return seeds


def check_values(given: Mapping[str, Any]) -> None:
    """Refuse what a chapter's parameter or an option of this name cannot be.

    Raises:
        UsageError: Names the parameter, and the nearest value there is.
    """
    for name, value in given.items():
        if name == "scale":
            one_of("scale", value, SCALES)
        elif name == "device":
            one_of("device", str(value).split(":")[0], ("cpu", "cuda"))
        elif name == "precision" and value:
            one_of("precision", value, PRECISIONS)
        elif name == "seeds":
            chosen_seeds(value)
        elif name == "dataset" and value and not _is_choice(value):
            raise UsageError(
                f"dataset {value!r}: a page has its own data set; give folder:NAME to "
                "make it of your own images"
            )
        elif name == "workers" and not 1 <= value <= _MOST_WORKERS:
            raise UsageError(f"workers must be at least 1, at most {_MOST_WORKERS}")


def _is_choice(dataset: str) -> bool:
    """Whether some chapter can be made of this data set."""
    is_large = dataset in LARGE or dataset.startswith(LISTED)
    return bool(large(dataset)) if is_large else Experiment(dataset=dataset).is_own
