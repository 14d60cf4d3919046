"""Measures networks of torchvision on tiny inputs, each against a truth of its own.

    python benchmarks/architectures.py          (all: about half an hour)
    python benchmarks/architectures.py resnet18 vit_b_16      (some, measured anew)

For each network: both ends of the Hessian of two images' loss with their bounds, and
the truth: for the Rayleigh quotient of either Ritz vector by central differences of
gradients in float64 (plain autograd on the network as it is, none of our code), which
the bound and the differences' own error must cover. The trace is checked where it is
called exact, by the squares of every image's gradients. Rows are kept as they are done
in ``results/architectures.json``; of all networks only what is missing is measured. The
README's table is made of that file by ``make front``.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import nn
from torch.func import functional_call

from saddlebook.curvature.hessian import spectrum
from saddlebook.disk.files import dump_json, load_json, write_whole
from saddlebook.disk.provenance import Provenance
from saddlebook.errors import SaddlebookError

NAMES = (
    "alexnet convnext_tiny densenet121 efficientnet_b0 efficientnet_v2_s googlenet "
    "inception_v3 maxvit_t mnasnet0_5 mnasnet0_75 mnasnet1_0 mobilenet_v2 "
    "mobilenet_v3_large mobilenet_v3_small regnet_x_400mf regnet_x_800mf "
    "regnet_y_400mf regnet_y_800mf resnet18 resnet34 resnet50 resnext50_32x4d "
    "shufflenet_v2_x0_5 shufflenet_v2_x1_0 squeezenet1_0 squeezenet1_1 swin_t "
    "swin_v2_t vgg11 vgg11_bn vit_b_16 wide_resnet50_2"
).split()
SIZES = {"alexnet": 64, "inception_v3": 96, "maxvit_t": 224, "vit_b_16": 32}
CE = nn.CrossEntropyLoss()
LABELS = torch.tensor([0, 2])
STEPS = 8
FILE = Path(__file__).parents[1] / "results/architectures.json"


def built(name: str) -> tuple[nn.Module, torch.Tensor]:
    """The network with statistics that fit its images, and those."""
    torch.manual_seed(0)
    settings = {"image_size": 32} if name == "vit_b_16" else {}
    if name in ("googlenet", "inception_v3"):
        settings = {"aux_logits": False, "init_weights": False}
    model = torchvision.models.get_model(name, weights=None, num_classes=3, **settings)
    size = SIZES.get(name, 32)
    images = torch.randn(2, 3, size, size)
    last = [m for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d)][-1]
    nn.init.normal_(last.weight, std=last.weight[0].numel() ** -0.5)  # some start at 0
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.5
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    with torch.no_grad():
        model.train()(torch.randn(8, 3, size, size))
    return model.eval(), images


def slope(model: nn.Module, images: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
    """Gradient at the parameters moved by ``shift``, by plain autograd."""
    sizes = [p.numel() for p in model.parameters()]
    moved = {
        name: (p.detach() + part.view_as(p)).requires_grad_()
        for (name, p), part in zip(
            model.named_parameters(), shift.split(sizes), strict=True
        )
    }
    loss = CE(functional_call(model, moved, images), LABELS)
    slopes = torch.autograd.grad(loss, list(moved.values()), materialize_grads=True)
    return torch.cat([s.flatten() for s in slopes])


def quotient(
    model: nn.Module, images: torch.Tensor, vector: torch.Tensor
) -> tuple[float, float]:
    """v'Hv and its error, from three steps; a kink spoils one of them at most."""
    values = []
    for step in (1e-7, 3e-8, 1e-8):
        ends = [slope(model, images, sign * step * vector) for sign in (1, -1)]
        values.append(float(vector @ (ends[0] - ends[1])) / (2 * step))
    values.sort()
    return values[1], min(values[1] - values[0], values[2] - values[1])


def row(name: str) -> dict[str, Any]:
    """What was found of a network, beside the truth."""
    model, images = built(name)
    count = sum(p.numel() for p in model.parameters())
    commit = Provenance.start("cpu", "fp32", "").commit
    told: dict[str, Any] = {"network": name, "parameters": count, "commit": commit}
    began = time.perf_counter()
    try:
        found = spectrum(model, CE, images, LABELS, steps=STEPS, batch_size=1)
    except SaddlebookError as error:
        return told | {"refused": str(error), "right": True}
    told |= {"seconds": round(time.perf_counter() - began, 1)}
    wide, fine = model.double(), images.double()
    right = True
    for end in ("min", "max"):
        value, bound = (getattr(found, f"lambda_{end}{s}") for s in ("", "_bound"))
        true, error = quotient(wide, fine, getattr(found, f"vector_{end}").double())
        floor = error + found.rounding + 1e-4 * abs(true)
        right &= abs(value - true) <= bound and abs(value - true) <= 10 * floor
        told |= {f"lambda_{end}": value, f"true_{end}": true}
    told |= {"trace": found.trace, "trace_error": found.trace_error}
    told |= {"trace_method": found.trace_method}
    if found.trace_method == "exact":
        told["true_trace"] = gauss_newton(wide, fine)
        right &= abs(found.trace - told["true_trace"]) <= found.trace_error
    return told | {"right": bool(right)}


def gauss_newton(model: nn.Module, images: torch.Tensor) -> float:
    """Σ‖J'L‖² over images by plain autograd, one output at a time."""
    params, total = list(model.parameters()), 0.0
    for image in images:
        logits = model(image[None])[0]
        p = logits.detach().softmax(0)
        values, vectors = torch.linalg.eigh(torch.diag(p) - torch.outer(p, p))
        for value, vector in zip(values, vectors.T, strict=True):
            slopes = torch.autograd.grad(
                logits @ vector, params, retain_graph=True, materialize_grads=True
            )
            total += float(value) * sum(float(s.square().sum()) for s in slopes)
    return total / len(images)


def main(names: list[str]) -> int:
    """Measure what is missing, or the named; fails if a network is wrong."""
    torch.set_num_threads(max(1, torch.get_num_threads()))
    kept = {row["network"]: row for row in load_json(FILE)} if FILE.exists() else {}
    for name in names or [name for name in NAMES if name not in kept]:
        kept[name] = row(name)
        print(kept[name], flush=True)
        write_whole(FILE, dump_json([kept[n] for n in NAMES if n in kept]))
    return int(not all(row["right"] for row in kept.values()))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
