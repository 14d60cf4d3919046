"""Describes what to run: one frozen, validated dataclass and its key.

Knows names and numbers only; nothing here trains or touches a file.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from saddlebook.errors import UsageError, one_of

SCALES = ("full", "lite", "lab", "quick")
PRECISIONS = ("fp32", "tf32", "bf16", "fp64")
_MILESTONES = (10, 50, 100, 160, 170, 190, 200)  # of the paper's dynamics figure
# Name: (classes, images of the largest class before the cut, pixels)
DATASETS = {
    "cifar10": (10, 5000, 32),
    "cifar100": (100, 500, 32),
    "digits": (10, 80, 8),
}
# Name: classes; long-tailed as they are, trained by ``train/large.py``
LARGE = {"imagenet-lt": 1000, "inaturalist18": 8142}
# Before the name of a folder of own images, or of own split files
OWN, LISTED = "folder:", "lists:"
_OWN_NAME = re.compile(f"(?:{OWN}|{LISTED})" + r"[A-Za-z0-9][\w.-]*")
_SMALL_MODELS, _LARGE_MODELS = ("resnet32", "resnet8"), ("resnet50", "resnet18")
_CHOICES = {
    "dataset": (*DATASETS, OWN + "NAME", *LARGE, LISTED + "NAME"), "scale": SCALES,
    "optimizer": ("sgd", "sam", "pgd", "lpf", "adam", "sign"),
    "reweight": ("none", "effective", "drw", "dro"), "sam_classes": ("all", "tail"),
    "sam_epochs": ("all", "before", "after"), "model": _SMALL_MODELS + _LARGE_MODELS,
    "imbalance": ("exp", "step", "as_is"), "loss": ("ce", "ldam", "vs", "focal"),
    "pipeline": ("torchvision", "mapped"), "sam_climb": ("batch", "shard"),
    "spectra_plan": (
        "classes", "head_images", "whole", "largest", "largest_fixed", "all_images",
        "views", "mixed", "total", "outliers",
    ),
    "schedule": ("steps", "cosine"), "sam_bn": ("both", "first"),
    "precision": PRECISIONS,
}  # fmt: skip
_AT_LEAST = {
    "imbalance_factor": 1, "width": 1, "epochs": 1, "batch_size": 2, "lpf_samples": 1,
    "test_every": 1, "drw_epoch": 0, "seed": 0, "image_size": 4, "rho": 0, "noise": 0,
    "weight_decay": 0, "momentum": 0, "vs_gamma": 0, "focal_gamma": 0, "max_count": 1,
    "spectra_images": 1, "classes": 3, "shards": 1,
}  # fmt: skip
# Field: (the field that heeds it, by which of its values). Anything else would be the
# same training under another key
_HEEDED = {
    "rho": ("optimizer", ("sam",)), "sam_epochs": ("optimizer", ("sam",)),
    "sam_bn": ("optimizer", ("sam",)), "rho_steps": ("optimizer", ("sam",)),
    "sam_climb": ("optimizer", ("sam",)), "sam_classes": ("optimizer", ("sam",)),
    "dro_step": ("reweight", ("dro",)), "noise": ("optimizer", ("pgd", "lpf")),
    "lpf_samples": ("optimizer", ("lpf",)), "vs_gamma": ("loss", ("vs",)),
    "vs_tau": ("loss", ("vs",)), "ldam_max_margin": ("loss", ("ldam",)),
    "ldam_scale": ("loss", ("ldam",)), "focal_gamma": ("loss", ("focal",)),
    "beta": ("reweight", ("effective", "drw")),
    "imbalance_factor": ("imbalance", ("step", "exp")),
    "max_count": ("imbalance", ("step", "exp")),
}  # fmt: skip
# Field: what it can be with a large set, and with another
_LARGE: dict[str, tuple[Any, ...]] = {
    "scale": ("full", "quick"), "imbalance": ("as_is",), "spectra_at": ((),),
    "model": (*_LARGE_MODELS, "resnet8"), "loss": ("ce", "ldam", "vs"),
    "optimizer": ("sgd", "sam"), "reweight": ("none", "effective", "drw"),
    "sam_classes": ("all",),
}  # fmt: skip
_SMALL: dict[str, tuple[Any, ...]] = {
    "model": _SMALL_MODELS, "schedule": ("steps",), "rho_steps": ((),), "shards": (1,),
    "sam_climb": ("batch",), "pipeline": ("torchvision",),
}  # fmt: skip
_METHODS: dict[str, list[str]] = {
    "sgd": [], "sam": ["SAM"], "pgd": ["PGD"], "lpf": ["LPF-SGD"], "adam": ["Adam"],
    "sign": ["SignSGD"],
}  # fmt: skip
_WEIGHTED = {"none": [], "drw": ["DRW"], "effective": ["CB"], "dro": ["DRO"]}
_NEEDED = {"sam": "rho", "pgd": "noise", "lpf": "noise"}  # 0 would be SGD


@dataclass(frozen=True)
class Experiment:
    """One training run and what is measured in it; the defaults are the paper's.

    Attributes:
        scale: ``full`` (the paper's setting), ``lite``, ``lab`` or ``quick``; see
            ``scales.at_scale``.
        dataset: ``cifar10``, ``cifar100``, ``digits``, or ``folder:NAME`` for your own
            images in class folders (``data.load`` says where); ``imagenet-lt``,
            ``inaturalist18``, or ``lists:NAME`` for your own with such split files.
        imbalance_factor: n_max/n_min, at least 1.
        imbalance: ``exp`` or ``step``; ``as_is`` keeps the counts of your own images
            and of the large sets.
        max_count: Images of the largest class; None is as many as the data set is named
            with (``DATASETS``; of digits 80).
        image_size: Pixels; smaller than the dataset's means box-averaged.
        model: ``resnet32`` or ``resnet8``, of large sets ``resnet50``, ``resnet18`` or,
            for small images, ``resnet8``; LDAM takes a cosine head.
        width: Channels of the first stage.
        loss: ``ce``, ``ldam``, ``vs`` or ``focal``.
        reweight: ``none``, ``effective`` (always), ``drw`` (after ``drw_epoch``) or
            ``dro``: Group DRO over classes, with SGD (weights follow the losses).
        beta: Of the effective number of images.
        ldam_max_margin: Margin of the rarest class.
        ldam_scale: Factor on the cosines.
        vs_gamma: Multiplicative logit term.
        vs_tau: Additive logit term.
        focal_gamma: Focusing exponent.
        optimizer: ``sgd``, ``sam``, ``pgd``, ``lpf``, ``adam`` or ``sign``.
        rho: SAM's radius.
        sam_epochs: Epochs with SAM: ``all``, ``before`` or ``after`` the DRW switch.
        sam_bn: Passes that update batch-norm statistics: ``both`` (as published) or
            ``first`` (corrected).
        sam_classes: ``all``, or ``tail``: SAM climbs the loss of the tail's classes
            alone, and the others' gradient is SGD's (ImbSAM); three passes.
        dro_step: Group DRO's step size of the classes' log weights.
        noise: PGD: norm of the noise over that of the weights; LPF-SGD: γ.
        lpf_samples: LPF-SGD: noisy parts M a batch is split into.
        epochs: Passes over the training images.
        batch_size: Images of a step; the last, smaller batch is kept.
        lr: Base learning rate.
        momentum: Heavy ball, no dampening.
        weight_decay: On all parameters; of ``adam`` and ``sign`` decoupled, times lr.
        drw_epoch: Last epoch before class weights and the learning-rate drop.
        test_every: Epochs between two test passes; the last epoch is always tested.
        precision: ``fp32``, ``tf32``, ``bf16`` or ``fp64``.
        spectra_at: Epochs whose class spectra are measured.
        spectra_images: Most images of a class that its spectra use; None is all.
        spectra_plan: A name in ``measure.PLANS``: ``classes``, ``head_images``,
            ``whole``, ``largest``, ``largest_fixed``, ``all_images``, ``views``,
            ``mixed``, ``total`` or ``outliers``.
        seed: Of initial weights, order and augmentation; the split is always seed 0.
        classes: Of your own images, their number; ``run`` fills it in.
        images_digest: Of your own images, 16 hex digits; ``run`` fills it in.
        schedule: Of the learning rate on large sets: ``steps`` or ``cosine``.
        rho_steps: Four radii instead of ``rho``, see ``schedules.stepped_radius``.
        shards: Parts of a batch that have batch-norm statistics of their own, as one
            GPU each had in the released code; processes share them out evenly, so that
            their number decides nothing. 1: statistics of the whole batch.
        sam_climb: SAM climbs the gradient of the ``batch`` (as published), or each
            ``shard`` climbs its own (m-SAM, one exchange a step instead of two).
        pipeline: ``torchvision``, or ``mapped``: crops on the device from images that
            were brought to one size before; a deviation.

    Raises:
        UsageError: A value out of range, an unknown name, or a value that the other
            fields make void: SAM without a radius, a radius without SAM.
    """

    scale: str = "full"
    dataset: str = "cifar10"
    imbalance_factor: float = 100.0
    imbalance: str = "exp"
    max_count: int | None = None
    image_size: int = 32
    model: str = "resnet32"
    width: int = 16
    loss: str = "ce"
    reweight: str = "none"
    beta: float = 0.9999
    ldam_max_margin: float = 0.5
    ldam_scale: float = 30.0
    vs_gamma: float = 0.3
    vs_tau: float = 1.0
    focal_gamma: float = 1.0
    optimizer: str = "sgd"
    rho: float = 0.0
    sam_epochs: str = "all"
    sam_bn: str = "both"
    noise: float = 0.0
    lpf_samples: int = 8
    epochs: int = 200
    batch_size: int = 128
    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 2e-4
    drw_epoch: int = 160
    test_every: int = 1
    precision: str = "fp32"
    spectra_at: tuple[int, ...] = ()
    spectra_images: int | None = None
    seed: int = 0
    classes: int | None = None
    images_digest: str = ""
    schedule: str = "steps"
    rho_steps: tuple[float, ...] = ()
    shards: int = 1
    sam_climb: str = "batch"
    pipeline: str = "torchvision"
    spectra_plan: str = "classes"
    sam_classes: str = "all"
    dro_step: float = 0.01

    def __post_init__(self) -> None:
        for field in fields(self):
            value = _typed(field.name, field.default, getattr(self, field.name))
            object.__setattr__(self, field.name, value)
        for name, known in _CHOICES.items():
            if not (name == "dataset" and self.is_own):
                one_of(name, getattr(self, name), known)
        self._check_ranges()
        self._check_heeded()
        self._check_large()

    def _check_heeded(self) -> None:
        """Refuse what the training would not heed."""
        for name, (by, values) in _HEEDED.items():
            value, default = getattr(self, name), getattr(type(self), name)
            if value != default and getattr(self, by) not in values:
                raise UsageError(
                    f"{name} {value!r} has no effect with {by} {getattr(self, by)!r}; "
                    f"leave it out, or take {by}={values[-1]!r}"
                )
        for name in ("spectra_images", "spectra_plan"):
            given = getattr(self, name) != getattr(type(self), name)
            if given and not self.spectra_at:
                raise UsageError(f"{name} has no effect without spectra_at")
        if self.reweight == "dro" and self.optimizer != "sgd":
            raise UsageError(f"reweight 'dro' goes with 'sgd', not {self.optimizer!r}")
        if self.reweight == "dro" and self.spectra_plan in ("total", "outliers"):
            raise UsageError(
                f"spectra_plan {self.spectra_plan!r} needs class weights that an epoch "
                "keeps; those of reweight 'dro' change with every step"
            )
        of_own = (self.classes, self.images_digest, self.imbalance == "as_is")
        if not self.is_own and any(of_own[: 2 if self.is_large else 3]):
            raise UsageError(
                "imbalance 'as_is', classes and images_digest are of folder:NAME only; "
                f"{self.dataset} has its own: take imbalance_factor=1 for equal ones"
            )
        needed = _NEEDED.get(self.optimizer)
        if needed and not getattr(self, needed) and not self.rho_steps:
            raise UsageError(
                f"optimizer {self.optimizer!r} with {needed} 0 is SGD; give {needed}, "
                "or take optimizer='sgd'"
            )

    def _check_ranges(self) -> None:
        for name, low in _AT_LEAST.items():
            value = getattr(self, name)
            if value is not None and value < low:
                hint = "; 100 means 100:1" if name == "imbalance_factor" else ""
                raise UsageError(f"{name} {value} must be at least {low}{hint}")
        for name in ("lr", "ldam_max_margin", "ldam_scale", "dro_step"):
            if getattr(self, name) <= 0:
                raise UsageError(f"{name} {getattr(self, name)} must be positive")
        if not 0 <= self.beta < 1 or not self.momentum < 1:
            raise UsageError("beta and momentum must be in [0, 1)")
        if self.reweight == "drw" and self.drw_epoch >= self.epochs:
            raise UsageError(
                f"drw_epoch {self.drw_epoch}: DRW would never start in {self.epochs} "
                "epochs; lower drw_epoch or take reweight='none'"
            )
        for name in ["shards"] + ["lpf_samples"] * (self.optimizer == "lpf"):
            if self.batch_size % (count := getattr(self, name)):
                size = f"batch_size {self.batch_size}"
                raise UsageError(f"{name} {count} must divide {size}")
        if any(not 1 <= epoch <= self.epochs for epoch in self.spectra_at):
            within = f"1..{self.epochs}"
            raise UsageError(f"spectra_at {self.spectra_at} must lie in {within}")

    def _check_large(self) -> None:
        """Refuse what is not for this kind of set."""
        for name, values in (_LARGE if self.is_large else _SMALL).items():
            if (value := getattr(self, name)) not in values:
                known = " or ".join(map(repr, values))
                raise UsageError(f"{name} {value!r}: {self.dataset} takes {known}")
        steps, other = self.rho_steps, self.rho or self.sam_epochs != "all"
        if steps and (len(steps) != 4 or min(steps) < 0 or other):
            raise UsageError(f"rho_steps {steps}: four radii, without rho, sam_epochs")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Experiment:
        """Build from a mapping, refusing unknown names and all that is no mapping."""
        if not isinstance(values, Mapping):
            raise UsageError(f"an experiment is named values, not {type(values)}")
        known = [field.name for field in fields(cls)]
        for name in values:
            one_of("experiment field", name, known)
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """All fields, defaults included, as JSON values."""
        given = asdict(self)
        return given | {n: list(v) for n, v in given.items() if isinstance(v, tuple)}

    @property
    def key(self) -> str:
        """Eight hex digits of what is no default: a new field renames nothing."""
        changed = {
            field.name: getattr(self, field.name)
            for field in fields(self)
            if getattr(self, field.name) != field.default
        }
        text = json.dumps(changed, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:8]

    @property
    def training(self) -> Experiment:
        """The same run without its measurements: one training serves them all."""
        return replace(self, spectra_at=(), spectra_images=None, spectra_plan="classes")

    @property
    def milestones(self) -> tuple[int, ...]:
        """Epochs whose weights are kept: the dynamics figure's, in proportion."""
        target = {"epochs": self.epochs, "drw_epoch": self.drw_epoch}
        paper = Experiment()
        return tuple(sorted({mapped_epoch(e, paper, target) for e in _MILESTONES}))

    @property
    def slug(self) -> str:
        """Readable file name, unique together with the key."""
        kind = f"lt{self.imbalance_factor:g}" if self.imbalance != "as_is" else "-as-is"
        data = self.dataset.rpartition(":")[2] + ("" if self.is_large else kind)
        method = self.method.lower().replace(" ", "-").replace("+", "-")
        return f"{data}_{method}_s{self.seed}_{self.key}"

    @property
    def method(self) -> str:
        """The paper's name of the method, with what differs from it behind."""
        parts = [self.loss.upper() if self.loss != "focal" else "Focal"]
        parts += _WEIGHTED[self.reweight]
        parts += _METHODS[self.optimizer]
        decay = self.weight_decay  # no plus sign: in a slug it would read as minus
        suffix = f" wd={decay:g}".replace("e+", "e")
        suffix = suffix if decay != Experiment.weight_decay else ""
        if self.optimizer == "sam":
            suffix += "" if self.sam_epochs == "all" else f" {self.sam_epochs}"
            suffix += "" if self.sam_classes == "all" else f" {self.sam_classes} only"
            suffix += "" if self.sam_bn == "both" else " bn=first"
            suffix += "" if self.sam_climb == "batch" else " per shard"
        suffix += "" if self.pipeline == "torchvision" else " mapped"
        return "+".join(parts) + suffix

    @property
    def has_cosine_head(self) -> bool:
        """Whether logits are cosines: LDAM's margins are meant for these."""
        return self.loss == "ldam"

    @property
    def is_own(self) -> bool:
        """Whether the images are the user's own."""
        return bool(_OWN_NAME.fullmatch(self.dataset))

    @property
    def is_large(self) -> bool:
        """Whether ``train/large.py`` trains it: images stay on disk."""
        return self.dataset in LARGE or (self.dataset.startswith(LISTED))

    @property
    def num_classes(self) -> int:
        """C, of the dataset."""
        if self.is_own and self.classes is None:
            raise UsageError(
                f"the classes of {self.dataset} are not counted yet; run does that, or "
                "data.counted(experiment, data.load(experiment.dataset, root))"
            )
        return self.classes or LARGE.get(self.dataset) or DATASETS[self.dataset][0]

    @property
    def largest_class(self) -> int:
        """n_max: ``max_count``, or all images of a class; 0 where counts are as is."""
        return self.max_count or DATASETS.get(self.dataset, (0, 0))[1]


def _typed(name: str, default: Any, value: Any) -> Any:
    """Bring a value to its field's type, so that 50 and 50.0 are one experiment."""
    try:
        if name == "rho_steps":
            return tuple(_typed("rho", 0.0, radius) for radius in value)
        if name == "spectra_at":
            return tuple(sorted({_whole(epoch) for epoch in value}))
        if name in ("max_count", "spectra_images", "classes"):
            return None if value is None else _whole(value)
        if isinstance(default, str):
            if not isinstance(value, str):
                raise TypeError
            return value.strip()
        if isinstance(value, bool | str):
            raise TypeError
        number = float(value)
        if not math.isfinite(number):
            raise ValueError
        return _whole(value) if isinstance(default, int) else number
    except (TypeError, ValueError, OverflowError) as error:
        kinds = {float: "finite float", type(None): "int"}
        kind = kinds.get(type(default), type(default).__name__)
        shown = "is beyond 64 bits:" if _is_huge(value) else repr(value)[:80]
        raise UsageError(f"{name} {shown} must be a {kind}") from error


def _whole(value: Any) -> int:
    if isinstance(value, bool | str) or int(value) != value or _is_huge(value):
        raise ValueError
    return int(value)


def _is_huge(value: Any) -> bool:
    return isinstance(value, int) and value.bit_length() > 63


def mapped_epoch(epoch: int, source: Experiment, target: Mapping[str, Any]) -> int:
    """An epoch of a schedule in another one, before or after the switch as it was."""
    if epoch <= source.drw_epoch:
        return max(1, round(epoch * target["drw_epoch"] / source.drw_epoch))
    tail = (epoch - source.drw_epoch) / (source.epochs - source.drw_epoch)
    return target["drw_epoch"] + round(tail * (target["epochs"] - target["drw_epoch"]))
