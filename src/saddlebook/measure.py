"""Measures the spectra that a run's record holds, on its exported weights.

The plan is data (``PLANS``); each measurement is ``hessian.measure`` in one of
the modes of ``curvature/hessian.py``. Finished ones are kept beside the weights, so a
stopped measurement goes on where it was.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from saddlebook.curvature import hessian
from saddlebook.curvature.hessian import MODES
from saddlebook.curvature.problem import Problem
from saddlebook.curvature.spectrum import rounded
from saddlebook.data import Dataset, class_groups, normalise, resize, view_count
from saddlebook.disk.files import (
    read_whole,
    sealed,
    unsealed,
    write_whole,
)
from saddlebook.disk.provenance import curvature_digest, is_current, numerics_digest
from saddlebook.errors import Stopped, explained
from saddlebook.experiment import Experiment
from saddlebook.train.run import (
    Task,
    batch_gradient_norms,
    load_model,
    objective,
    prepare,
    scheduled,
    total_loss,
)

Progress = Callable[[int, int, str], None]  # done, in all, what is under way
Items = list[dict[str, Any]]
_STEPS = 100  # as published; the corrected modes stop at the accuracy below
_QUICK_STEPS = 12  # enough to show the machinery
_RTOL = 0.01
_TOTAL_RTOL = 0.05  # of the total loss's λmax: the figure is logarithmic
_OUTLIERS = 10  # as many as there are classes
_OF_TOTAL = ("total", "outliers", "outliers_reweighted")  # modes: highest ends only
_DENSITIES = ("clean", "as_published")  # modes whose nodes a record keeps
# Of the largest class, by mode; a view more costs a released mode a redraw, the mean
# over all views a product of each
HEAD_IMAGES = {
    "clean": (25, 50, 100, 200, 400, 1000), "augmented": (25, 50),
    "as_published": (25, 50, 100, 200, 400),
}  # fmt: skip
_BF16 = {"precision": "bf16"}  # for products that take a minute or more


def spectra_plan(experiment: Experiment) -> Items:
    """What is measured at ``experiment.spectra_at``, in order; see ``PLANS``."""
    return PLANS[experiment.spectra_plan](experiment) if experiment.spectra_at else []


def _classes(experiment: Experiment) -> Items:
    """Of a single epoch, and of own images: clean spectra of every class.

    Of several, as in the dynamics figure: at every epoch, clean and as released, the
    rare half of the classes (all but one); clean, the third class, and the first one at
    the ends and the switch. At the last epoch also: clean spectra of all classes, the
    first and third as released, and for a few classes the 2×2 table of causes, frozen
    augmentations, held-out images, and the largest class cut to the size of the rarest.
    At ``quick`` one class is few.
    """
    epochs, classes = experiment.spectra_at, range(experiment.num_classes)
    if len(epochs) == 1 or experiment.is_own:
        return [measurement(epoch, c, "clean") for epoch in epochs for c in classes]
    rare, last = list(classes[len(classes) // 2 :]), epochs[-1]
    head, third = classes[0], classes[2]
    quick = experiment.scale == "quick"
    few = rare[-2:-1] if quick else (rare[0], rare[-2], rare[-1])
    items = [measurement(e, c, "clean") for e in epochs for c in (third, *rare)]
    figure = [rare[0], *rare[2:]]  # of these the paper's figure shows 5, 7 and 8
    items += [measurement(e, c, "as_published") for e in epochs for c in figure]
    corners = sorted({epochs[0], *(e for e in epochs if e == experiment.drw_epoch)})
    items += [measurement(e, head, "clean") for e in corners if e != last]
    items += [measurement(last, c, "clean") for c in classes if c not in (third, *rare)]
    items += [measurement(last, c, "as_published") for c in (third, head)]
    causes = ("redrawn", "fixed_before", "frozen")
    items += [measurement(last, c, mode) for mode in causes for c in few]
    items += [measurement(last, c, "clean", held_out=True) for c in (head, *few[-2:])]
    return items + [
        measurement(last, head, mode, cut=rare[-1], seed=seed)
        for mode in ("clean", "as_published")
        for seed in range(1 if quick else 3)
    ]


def _head_images(experiment: Experiment) -> Items:
    """The largest class cut to ``HEAD_IMAGES``."""
    if experiment.is_own:
        return _classes(experiment)
    return [
        measurement(epoch, 0, mode, images=count)
        for epoch in experiment.spectra_at
        for mode, counts in HEAD_IMAGES.items()
        for count in counts
        if count <= experiment.largest_class
    ]


def _whole(experiment: Experiment) -> Items:
    """Of every image: the rarest class of the head, as published and fixed."""
    rarest = class_groups(experiment.num_classes)["head"][-1]
    return _of_every_image(experiment, rarest, "as_published", "clean")


def _largest(experiment: Experiment) -> Items:
    """Of every image, as published: so the largest class."""
    return _of_every_image(experiment, 0, "as_published")


def _largest_fixed(experiment: Experiment) -> Items:
    """The same with images fixed."""
    return _of_every_image(experiment, 0, "clean")


def _all_images(experiment: Experiment) -> Items:
    """All classes together, fixed: the loss of every image."""
    return [
        measurement(epoch, None, "clean", whole=True) | _BF16
        for epoch in experiment.spectra_at
    ]


def _of_every_image(experiment: Experiment, class_: int, *modes: str) -> Items:
    if experiment.is_own:
        return _classes(experiment)
    return [
        measurement(epoch, class_, mode, whole=True)
        | (_BF16 if mode == "as_published" else {})
        for epoch in experiment.spectra_at
        for mode in modes
    ]


def _views(experiment: Experiment) -> Items:
    """The tail: fixed, as published, and as the exact mean over all crops and flips."""
    return _of_tail(experiment, "clean", "as_published", "augmented")


def _mixed(experiment: Experiment) -> Items:
    """The tail: fixed, with running statistics and with those of mixed batches."""
    return _of_tail(experiment, "clean", "mixed_statistics")


def _of_tail(experiment: Experiment, *modes: str) -> Items:
    if experiment.is_own:
        return _classes(experiment)
    tail, epochs = class_groups(experiment.num_classes)["tail"], experiment.spectra_at
    return [measurement(e, c, mode) for e in epochs for mode in modes for c in tail]


def _total(experiment: Experiment) -> Items:
    """λmax of the loss over all training images, the norm of a batch's gradient."""
    return [_of_total(epoch, "total") for epoch in experiment.spectra_at]


def _outliers(experiment: Experiment) -> Items:
    """The same, and the total loss's ten highest eigenvectors.

    With the share of each class's gradient in them: before re-weighting, with the
    weights of the epoch after that on the same network, and after the last epoch.
    """
    epochs, switch = experiment.spectra_at, experiment.drw_epoch
    found = [(e, "outliers") for e in epochs if e in (switch, epochs[-1])]
    found += [(e, "outliers_reweighted") for e in epochs if e == switch]
    return _total(experiment) + [_of_total(*one) for one in found]


def _of_total(epoch: int, mode: str) -> dict[str, Any]:
    return measurement(epoch, None, "clean") | {"mode": mode}


PLANS: dict[str, Callable[[Experiment], Items]] = {
    "classes": _classes, "head_images": _head_images, "whole": _whole,
    "largest": _largest, "largest_fixed": _largest_fixed, "all_images": _all_images,
    "views": _views, "mixed": _mixed, "total": _total, "outliers": _outliers,
}  # fmt: skip


def measurement(
    epoch: int,
    class_: int | None,
    mode: str,
    *,
    held_out: bool = False,
    cut: int | None = None,
    images: int | None = None,
    whole: bool = False,
    seed: int = 0,
) -> dict[str, Any]:
    """One measurement of a class that is cut to ``images``, or to the size of ``cut``.

    ``cut`` names a class; ``seed`` draws the images; ``whole`` tells a class apart
    from its part elsewhere.
    """
    name = mode + ("_held_out" if held_out else "") + (f"_cut{seed}" if cut else "")
    name += f"_of{images}" if images else "_whole" * whole
    return {"epoch": epoch, "class": class_, "mode": name, "of": mode} | {
        "held_out": held_out, "cut": cut, "images": images, "seed": seed,
    }  # fmt: skip


def class_items(
    experiment: Experiment,
    dataset: Dataset,
    weights: Mapping[int, Path],
    device: str = "cpu",
    halted: Callable[[], bool] = lambda: False,
    progress: Progress = lambda done, total, what: None,
) -> list[dict[str, Any]]:
    """Measure everything in the plan.

    Args:
        experiment: Names the epochs.
        dataset: The run's data.
        weights: Files of exported weights, by epoch.
        device: Torch device.
        halted: Asked after every Lanczos step.
        progress: Called as often with the products of single images that are done, how
            many there will be about (of what is not measured yet), and what is
            measured.

    Raises:
        Stopped: When ``halted``; spectra that were finished are kept.
    """
    wanted = spectra_plan(experiment)
    if not wanted:
        return []
    file = weights[experiment.spectra_at[-1]].parent / "spectra.json"
    task = prepare(experiment, dataset, device)
    counts = task.class_counts
    wanted = [i | {"limit": limit(experiment, counts, i)} for i in wanted]
    origins = {epoch: _origin(path) for epoch, path in weights.items()}
    found = _kept(file, origins)
    left = [item for item in wanted if _name(item) not in found]
    held_out = resize(dataset.test_images, experiment.image_size).to(device)
    tested = torch.bincount(dataset.test_labels).tolist()
    sizes = [
        image_products(experiment, tested if item["held_out"] else counts, item)
        for item in left
    ]
    before = 0
    for number, (item, size) in enumerate(zip(left, sizes, strict=True)):
        told = f"{len(wanted) - len(left) + number} of {len(wanted)} spectra"
        tick = _ticking(progress, halted, item, (before, size, sum(sizes)), told)
        tick(0, 1)
        model = load_model(experiment, weights[item["epoch"]], device)
        result = _measured(experiment, task, held_out, model, item, tick)
        found[_name(item)] = result | {"origin": origins[item["epoch"]]}
        write_whole(file, sealed(list(found.values())))
        before += size
    done = [found[_name(item)] for item in wanted]
    return [{k: v for k, v in item.items() if k != "origin"} for item in done]


def _ticking(
    progress: Progress,
    halted: Callable[[], bool],
    item: Mapping[str, Any],
    work: tuple[int, int, int],
    told: str,
) -> Callable[[int, int], None]:
    """What a recurrence calls after every step; ``work``: before, of this, of all."""
    before, size, total = work
    class_ = item["class"]
    whose = "all classes" if class_ is None else f"class {class_}"

    def tick(step: int, steps: int) -> None:
        share = min(1.0, step / (steps * _share(item)))
        progress(
            before + round(share * size), total,
            f"epoch {item['epoch']}, {whose}, {item['mode']}",
        )  # fmt: skip
        if halted():
            raise Stopped(f"stopped measuring after {told}; the same command continues")

    return tick


def image_products(
    experiment: Experiment, class_counts: Sequence[int], item: Mapping[str, Any]
) -> int:
    """Products of single images that a measurement takes, about."""
    alone = item["class"] is not None and item["of"] != "mixed_statistics"
    count = class_counts[item["class"]] if alone else sum(class_counts)
    count = min(count, limit(experiment, class_counts, item) or count)
    if MODES[item["of"]].images == "all":
        count *= view_count(experiment.image_size)
    return round(count * _steps(experiment) * _share(item))


def _steps(experiment: Experiment) -> int:
    return _QUICK_STEPS if experiment.scale == "quick" else _STEPS


def _share(item: Mapping[str, Any]) -> float:
    """Part of the steps that will be done; the released recurrence does all."""
    if item["mode"] == "total":
        return 0.05
    return 1.0 if MODES[item["of"]].beta else 0.3


def _origin(weights: Path) -> dict[str, str]:
    """Digests of what decides a spectrum besides the plan: weights and code."""
    return {
        "weights": weights.read_bytes()[:16].decode(errors="replace"),  # their own
        "numerics": numerics_digest(),
        "curvature": curvature_digest(),
    }


def _kept(
    file: Path, origins: Mapping[int, dict[str, str]]
) -> dict[str, dict[str, Any]]:
    """Spectra measured before, by name, of these weights and by code that is current.

    Files with a digest only: one changed digit would else be a number of the record.
    """
    found: dict[str, dict[str, Any]] = {}
    if not file.exists():
        return found
    with explained(f"{file} holds no spectra", "delete it and run again"):
        for item in unsealed(read_whole(file)):
            now, origin = origins.get(item["epoch"]), item["origin"]
            current = is_current(origin["numerics"], origin["curvature"])
            if now and current and origin["weights"] == now["weights"]:
                found[_name(item)] = item
    return found


def _name(item: Mapping[str, Any]) -> str:
    return "{epoch}/{class}/{mode}/{limit}".format_map(item)


def _measured(
    experiment: Experiment,
    task: Task,
    held_out: Tensor,
    model: nn.Module,
    item: Mapping[str, Any],
    tick: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    if item["mode"] in _OF_TOTAL:
        return _measured_total(experiment, task, model, item, tick)
    images, labels = task.images, task.labels
    if item["held_out"]:
        images, labels = held_out, task.test_labels
    last = item["epoch"] == experiment.spectra_at[-1]
    result = hessian.measure(
        model,
        class_loss(experiment, task.class_counts),
        images,
        labels,
        item["of"],
        class_=item["class"],
        epoch=item["epoch"],
        steps=_steps(experiment),
        rtol=_RTOL,
        seed=item["seed"],
        limit=item["limit"],
        quadrature=last and item["mode"].removesuffix("_whole") in _DENSITIES,
        precision=item.get("precision", "full"),
        progress=tick,
    )
    return result | {k: item[k] for k in ("mode", "precision") if k in item}


def _measured_total(
    experiment: Experiment,
    task: Task,
    model: nn.Module,
    item: Mapping[str, Any],
    tick: Callable[[int, int], None] | None,
) -> dict[str, Any]:
    """Highest eigenvalues of the total loss, and what SAM's step makes of them."""
    epoch, mode = item["epoch"], item["mode"]
    lr, rho, _ = scheduled(experiment, epoch)
    loss = total_loss(experiment, task.class_counts, epoch + mode.endswith("weighted"))
    images, labels = normalise(task.images), task.labels
    found = hessian.find_outliers(
        Problem(model, loss, images, labels),
        1 if mode == "total" else _OUTLIERS,
        rtol=_TOTAL_RTOL if mode == "total" else _RTOL,
        steps=_steps(experiment),
        progress=tick,
    )
    told: dict[str, Any] = {
        "lr": lr, "rho": rho,
        "lambda_max": found.values[0], "lambda_max_bound": found.bounds[0],
    }  # fmt: skip
    if mode == "total":
        norms = np.array(batch_gradient_norms(experiment, task, model, epoch))
        told |= {"batch_gradient_norm": norms.mean(), "batch_gradient_sd": norms.std()}
    else:
        plain = class_loss(experiment, task.class_counts)
        gradients = hessian.class_gradients(model, plain, images, labels)
        shares = hessian.shares_within(found.vectors, gradients)
        told |= {"values": np.array(found.values), "bounds": np.array(found.bounds)}
        told |= {"gradient_norms": gradients.norm(dim=1).numpy()}
        told |= {"shares": shares.numpy()}
    kept = {name: item[name] for name in ("class", "epoch", "mode", "limit")}
    kept |= {"images": len(task.labels), "steps": found.steps}
    return kept | {name: rounded(value) for name, value in told.items()}


def limit(
    experiment: Experiment, class_counts: Sequence[int], item: Mapping[str, Any]
) -> int | None:
    """Most images of a measurement: of its own, of the class cut to, and allowed."""
    if item["class"] is None or item["of"] == "mixed_statistics":
        return None  # of all images, or it would be another loss
    cut = None if item["cut"] is None else class_counts[item["cut"]]
    return min(
        filter(None, (cut, item["images"], experiment.spectra_images)), default=None
    )


def class_loss(
    experiment: Experiment, class_counts: Sequence[int]
) -> Callable[..., Tensor]:
    """The training loss without class weights, which cancel on a single class."""
    whole = objective(experiment, class_counts)

    def loss(logits: Tensor, targets: Tensor) -> Tensor:
        weight = torch.ones(logits.shape[1], dtype=logits.dtype, device=logits.device)
        return whole(logits, targets, weight)

    return loss
