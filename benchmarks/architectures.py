"""Measures networks of torchvision on tiny inputs, each against a truth of its own.

Run: python benchmarks/architectures.py [name ...]   (all: about half an hour)

For each network: both ends of the Hessian of two images' loss with their bounds, and
the truth: for the Rayleigh quotient of either Ritz vector by central differences of
gradients in float64 (plain autograd on the network as it is, none of our code), which
the bound and the differences' own error must cover. The trace is checked where it is
called exact, by the squares of every image's gradients. Prints a table in Markdown.
"""

from __future__ import annotations

import sys
import time

import torch
import torchvision
from torch import nn
from torch.func import functional_call

from saddlebook.curvature.hessian import spectrum
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


def row(name: str) -> list[str]:
    """Cells of a network's line."""
    model, images = built(name)
    count = sum(p.numel() for p in model.parameters()) / 1e6
    began = time.perf_counter()
    try:
        found = spectrum(model, CE, images, LABELS, steps=STEPS, batch_size=1)
    except SaddlebookError as error:
        return [name, f"{count:.1f} M", f"refused: {error}", "", "", "", "–"]
    seconds = time.perf_counter() - began
    wide, fine = model.double(), images.double()
    cells, good = [], True
    for end in ("min", "max"):
        value, bound = (getattr(found, f"lambda_{end}{s}") for s in ("", "_bound"))
        true, error = quotient(wide, fine, getattr(found, f"vector_{end}").double())
        floor = error + found.rounding + 1e-4 * abs(true)
        good &= abs(value - true) <= bound and abs(value - true) <= 10 * floor
        cells.append(f"{value:.5g} ({true:.5g})")
    trace = f"{found.trace:.4g} ± {found.trace_error:.1g} {found.trace_method}"
    if found.trace_method == "exact":
        true = gauss_newton(wide, fine)
        good &= abs(found.trace - true) <= found.trace_error
        trace += f" ({true:.4g})"
    return [
        name, f"{count:.1f} M", *cells, trace, f"{seconds:.0f} s",
        "right" if good else "WRONG",
    ]  # fmt: skip


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
    """Print the table; fails if a network is wrong."""
    torch.set_num_threads(max(1, torch.get_num_threads()))
    head = ["network", "size", "λmin (truth)", "λmax (truth)", "trace", "time", ""]
    print(f"torch {torch.__version__}, torchvision {torchvision.__version__}")
    print(f"{STEPS} steps, two images\n")
    print("|", " | ".join(head), "|")
    print("|" + " --- |" * len(head))
    wrong = 0
    for name in names or NAMES:
        cells = row(name)
        wrong += cells[-1] == "WRONG"
        print("|", " | ".join(cells), "|", flush=True)
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
