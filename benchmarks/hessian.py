"""Class Hessians against PyHessian, curvlinops and hessian-eigenthings, in one run.

Run: python benchmarks/hessian.py product|accuracy|analysis|memory [--images 50]
     [--seeds 5] [--tools ours,pyhessian,'ours in bf16',...]
Times are CPU seconds of this process on one thread, so that a busy machine does not
decide; tools take turns, and ratios are medians over rounds. A ratio is printed only
if the same run's results agree. A peer that is not installed is named, not skipped.
PyHessian calls torch.eig, which torch no longer has: it gets torch.linalg.eigh.
"""

from __future__ import annotations

import argparse
import copy
import importlib.metadata as metadata
import platform
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from saddlebook import data, models
from saddlebook.curvature.hessian import spectrum
from saddlebook.curvature.problem import Problem
from saddlebook.curvature.products import Product
from saddlebook.curvature.resnet import ResNetProduct

PEERS = ("pyhessian", "curvlinops-for-pytorch", "hessian-eigenthings")
LOSS = nn.CrossEntropyLoss()
clock = time.process_time


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part", choices=list(PARTS))
    parser.add_argument("--images", type=int, default=50)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--tools", default="")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)  # networks are made before they are trained
    warnings.simplefilter("ignore")
    torch.eig = _eig  # type: ignore[attr-defined]
    peers = ", ".join(f"{name} {_version(name)}" for name in PEERS)
    print(f"{platform.machine()}, {_cpu()}, one thread, torch {torch.__version__}")
    print(f"peers: {peers}; bf16 convolutions: {_bf16()}")
    tools = asked.tools.split(",") if asked.tools else []
    return PARTS[asked.part](asked.images, asked.seeds, tools)


def product(images: int, seeds: int, tools: list[str]) -> int:
    """One Hessian-vector product of ResNet-32 over a class, per gradient."""
    model, x, y = fitted(models.resnet32(), 32, images)
    makers = {
        "gradient": lambda: lambda v: gradient(model, x, y),
        "ours": lambda: ResNetProduct(Problem(model, LOSS, x, y)),
        "ours (any module)": lambda: Product(Problem(model, LOSS, x, y)),
        "pyhessian (loader of 128)": lambda: PyHessian(model, x, y).product,
        "plain torch (kept graph)": lambda: kept_graph(model, x, y),
        "eigenthings": lambda: eigenthings(model, x, y),
        "curvlinops": lambda: curvlinops(model, x, y),
    }
    if _bf16():
        makers["ours in bf16"] = lambda: ResNetProduct(
            Problem(model, LOSS, x, y), inner=torch.bfloat16
        )
    if tools:
        makers = {name: makers[name] for name in ["gradient", *tools]}
    vector = torch.randn(sum(p.numel() for p in model.parameters()))
    calls = {name: make() for name, make in makers.items()}
    truth = PyHessian(model, x, y).product(vector)
    errors = {name: off(call(vector), truth) for name, call in calls.items()}
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(seeds):
        for name, call in calls.items():
            began = clock()
            call(vector)
            times[name].append(clock() - began)
    print(f"\nproduct over {images} images, medians of {seeds} rounds")
    print(f"{'':26}{'seconds':>9}{'/ gradient':>12}{'error':>9}")
    for name, taken in times.items():
        ratio = statistics.median(
            a / b for a, b in zip(taken, times["gradient"], strict=True)
        )
        known = name == "gradient" or errors[name] < 1e-2
        shown = f"{ratio:12.2f}" if known else f"{'refused':>12}"
        error = "" if name == "gradient" else f"{errors[name]:9.0e}"
        print(f"{name:26}{statistics.median(taken):9.3f}{shown}{error}")
    return 0 if all(e < 1e-2 for n, e in errors.items() if n != "gradient") else 1


def accuracy(images: int, seeds: int, tools: list[str]) -> int:
    """Errors against a dense float64 spectrum at equal budgets of products."""
    del tools
    model, x, y = fitted(models.resnet8(width=2), 16, min(images, 12), steps=150)
    truth = torch.linalg.eigvalsh(dense(model, x, y))
    low, high, total = float(truth[0]), float(truth[-1]), float(truth.sum())
    print(f"\ndense truth, n = {len(truth)}: {low:.6g}, {high:.6g}, trace {total:.6g}")
    head = ("λmin", "λmax", "trace", "W1/mean|λ|", "bounds hold")
    print(f"{'products':>8} {'tool':14}" + "".join(f"{h:>13}" for h in head))
    for budget in (30, 60, 300):
        for name, measure in ANALYSES.items():
            rows, held = [], []
            for seed in range(seeds):
                found = measure(model, x, y, seed, budget)
                rows.append([
                    abs(found["low"] - low) / abs(low),
                    abs(found["high"] - high) / high,
                    abs(found["trace"] - total) / abs(total),
                    wasserstein(found, truth) / float(truth.abs().mean()),
                ])  # fmt: skip
                if "bounds" in found:
                    ends = (found["low"] - low, found["high"] - high)
                    ends += (found["trace"] - total,)
                    held.append([abs(e) <= b for e, b in zip(ends, found["bounds"],
                                                             strict=True)])  # fmt: skip
            medians = np.median(rows, 0)
            share = np.mean(held, 0).round(2).tolist() if held else "none given"
            print(f"{budget:8} {name:14}" + "".join(f"{m:13.1e}" for m in medians)
                  + f"   {share}")  # fmt: skip
    return 0


def analysis(images: int, seeds: int, tools: list[str]) -> int:
    """Both ends, trace and density of one class of ResNet-32, end to end."""
    model, x, y = fitted(models.resnet32(), 32, images)
    chosen = {n: f for n, f in ANALYSES.items() if not tools or n in tools}
    taken: dict[str, list[float]] = {name: [] for name in chosen}
    last: dict[str, dict[str, Any]] = {}
    for seed in range(seeds):
        for name, measure in chosen.items():
            began = clock()
            last[name] = measure(model, x, y, seed, None)
            taken[name].append(clock() - began)
            found = last[name]
            print(f"seed {seed} {name:12} {taken[name][-1]:8.2f} s "
                  f"λmin {found['low']:.5g} λmax {found['high']:.6g} "
                  f"trace {found['trace']:.5g} bounds {found.get('bounds')}",
                  flush=True)  # fmt: skip
    agree = all(
        abs(found["high"] / last["ours"]["high"] - 1) < 1e-2 for found in last.values()
    )
    for name, times in taken.items():
        ratio = statistics.median(
            a / b for a, b in zip(times, taken["ours"], strict=True)
        )
        shown = f"{ratio:.1f} times ours" if agree else "ratio refused: λmax differs"
        print(f"{name:12} {statistics.median(times):8.2f} s  {shown}")
    return 0 if agree else 1


def memory(images: int, seeds: int, tools: list[str]) -> int:
    """Peak memory above the loaded network, one process a tool and size."""
    del seeds
    known = ["ours", "ours in bf16", "ours (any module)", "pyhessian", "curvlinops"]
    for name in tools or known:
        for count in (images, 4 * images):
            script = f"import hessian; hessian.peak({name!r}, {count})"
            run = subprocess.run(
                [sys.executable, "-c", script], capture_output=True, text=True,
                cwd=__file__.rpartition("/")[0] or ".",
            )  # fmt: skip
            print(run.stdout.strip() or run.stderr.strip().splitlines()[-1], flush=True)
    return 0


def peak(name: str, images: int) -> None:
    import resource

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    model = models.resnet32()
    x, y = torch.randn(images, 3, 32, 32), torch.zeros(images, dtype=torch.int64)
    call = {
        "ours": lambda: ResNetProduct(Problem(model, LOSS, x, y)),
        "ours in bf16": lambda: ResNetProduct(
            Problem(model, LOSS, x, y), inner=torch.bfloat16
        ),
        "ours (any module)": lambda: Product(Problem(model, LOSS, x, y)),
        "pyhessian": lambda: PyHessian(model.eval(), x, y, len(x)).product,
        "curvlinops": lambda: curvlinops(model.eval(), x, y, len(x)),
    }[name]
    gradient(model, x[:2], y[:2])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    made = call()
    vector = torch.randn(sum(p.numel() for p in model.parameters()))
    made(vector), made(vector)
    used = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    print(f"{name:20} {images:5} images {used:8.0f} MB, {used / images:.1f} an image")


def fitted(
    model: nn.Module, pixels: int, images: int, steps: int = 40
) -> tuple[nn.Module, Tensor, Tensor]:
    """A network trained a little on digits, and one class's images. [N, 3, H, W]"""
    torch.manual_seed(0)
    digits = data.load("digits")
    large = data.resize(digits.train_images, pixels)
    labels, optimizer = digits.train_labels, torch.optim.Adam(model.parameters(), 3e-3)
    model.train()
    for _ in range(steps):
        rows = torch.randint(len(labels), (64,))
        optimizer.zero_grad()
        LOSS(model(data.normalise(large[rows])), labels[rows]).backward()
        optimizer.step()
    model.eval()
    members = (labels == 8).nonzero().flatten()
    rows = members.repeat(1 + images // len(members))[:images]
    x = data.normalise(large[rows])
    x += 0.3 * torch.randn(x.shape)  # so that repeated images are not the same
    return model, x, labels[rows]


def gradient(model: nn.Module, x: Tensor, y: Tensor, chunk: int = 50) -> Tensor:
    """The unit of cost: forward and backward, in chunks near the caches."""
    total = 0
    for at in range(0, len(x), chunk):
        part = slice(at, at + chunk)
        loss = LOSS(model(x[part]), y[part]) * (len(y[part]) / len(y))
        grads = torch.autograd.grad(loss, list(model.parameters()))
        total = total + torch.cat([g.reshape(-1) for g in grads])
    return total


def kept_graph(model: nn.Module, x: Tensor, y: Tensor) -> Callable[[Tensor], Tensor]:
    params = list(model.parameters())
    grads = torch.autograd.grad(LOSS(model(x), y), params, create_graph=True)
    flat = torch.cat([g.reshape(-1) for g in grads])

    def call(vector: Tensor) -> Tensor:
        product = torch.autograd.grad(flat @ vector, params, retain_graph=True)
        return torch.cat([p.reshape(-1) for p in product])

    return call


class PyHessian:
    """The package as the published script uses it: a loader, unshuffled."""

    def __init__(self, model: nn.Module, x: Tensor, y: Tensor, batch: int = 128):
        from pyhessian import hessian

        self.shapes = [p.shape for p in model.parameters()]
        loader = list(zip(x.split(batch), y.split(batch), strict=True))
        self.peer = hessian(copy.deepcopy(model), LOSS, dataloader=loader, cuda=False)

    def product(self, vector: Tensor) -> Tensor:
        flat = vector.split([s.numel() for s in self.shapes])
        parts = [v.view(s) for v, s in zip(flat, self.shapes, strict=True)]
        return torch.cat([p.reshape(-1) for p in
                          self.peer.dataloader_hv_product(parts)[1]])  # fmt: skip


def curvlinops(
    model: nn.Module, x: Tensor, y: Tensor, batch: int = 128
) -> Callable[[Tensor], Tensor]:
    operator = _curv(model, x, y, batch)
    return lambda vector: operator @ vector


def _curv(model: nn.Module, x: Tensor, y: Tensor, batch: int = 128) -> Any:
    from curvlinops import HessianLinearOperator

    loader = list(zip(x.split(batch), y.split(batch), strict=True))
    return HessianLinearOperator(
        model, LOSS, list(model.parameters()), loader, check_deterministic=False
    )


def eigenthings(model: nn.Module, x: Tensor, y: Tensor) -> Callable[[Tensor], Tensor]:
    return _things(model, x, y).matvec


def _things(model: nn.Module, x: Tensor, y: Tensor) -> Any:
    from hessian_eigenthings import HessianOperator, supervised_loss

    # equal batches: it averages unequal ones without weights
    return HessianOperator(model, [(x, y)], supervised_loss(LOSS))


def by_ours(
    model: nn.Module, x: Tensor, y: Tensor, seed: int, budget: int | None,
    precision: str = "full",
) -> dict[str, Any]:  # fmt: skip
    """Budget: Lanczos steps and two certificates; the trace costs about five more."""
    steps = 100 if budget is None else budget - 7
    found = spectrum(model, LOSS, x, y, steps=steps, seed=seed, precision=precision,
                     rtol=1e-2 if budget is None else None)  # fmt: skip
    return {
        "low": found.lambda_min, "high": found.lambda_max, "trace": found.trace,
        "nodes": found.nodes[0], "weights": found.density_weights[0],
        "bounds": (found.lambda_min_bound, found.lambda_max_bound, found.trace_error),
    }  # fmt: skip


def by_ours_bf16(*problem: Any) -> dict[str, Any]:
    return by_ours(*problem, precision="bf16")


def by_pyhessian(
    model: nn.Module, x: Tensor, y: Tensor, seed: int, budget: int | None
) -> dict[str, Any]:
    """Its three calls; a budget is shared out between trace and density."""
    torch.manual_seed(seed)
    peer = PyHessian(model, x, y).peer
    if budget is None:
        (top,), _ = peer.eigenvalues()
    trace = np.mean(peer.trace(**({} if budget is None else
                                  {"maxIter": budget // 2, "tol": 0})))  # fmt: skip
    nodes, weights = peer.density(iter=100 if budget is None else budget // 2, n_v=1)
    high = max(nodes[0]) if budget is not None else top
    return {"low": min(nodes[0]), "high": high, "trace": trace,
            "nodes": torch.tensor(nodes[0]),
            "weights": torch.tensor(weights[0])}  # fmt: skip


def by_curvlinops(
    model: nn.Module, x: Tensor, y: Tensor, seed: int, budget: int | None
) -> dict[str, Any]:
    """Lanczos for ends and density, Hutch++ for the trace, 100 products each."""
    from curvlinops import hutchpp_trace
    from curvlinops.papyan2020traces.spectrum import fast_lanczos

    torch.manual_seed(seed)
    operator = _curv(model, x, y)
    half = 100 if budget is None else budget // 2
    nodes, vectors = fast_lanczos(operator, half)
    trace = float(hutchpp_trace(operator, half - half % 3))
    return {"low": float(nodes[0]), "high": float(nodes[-1]), "trace": trace,
            "nodes": nodes, "weights": vectors[0] ** 2}  # fmt: skip


def by_eigenthings(
    model: nn.Module, x: Tensor, y: Tensor, seed: int, budget: int | None
) -> dict[str, Any]:
    """Its Lanczos for both ends, Hutch++ and its density, a third of the budget."""
    import hessian_eigenthings as peer

    operator = _things(model, x, y)
    part = 100 if budget is None else budget // 3
    ends = [
        peer.lanczos(operator, k=1, max_iter=part // 2, which=which, seed=seed)
        for which in ("SA", "LA")
    ]
    trace = peer.trace(operator, num_matvecs=part, seed=seed)
    density = peer.spectral_density(operator, num_runs=1, lanczos_steps=part, seed=seed)
    low, high = (float(end.eigenvalues[0]) for end in ends)
    bounds = [float(end.residuals[0]) for end in ends] + [2 * trace.stderr]
    return {"low": low, "high": high, "trace": trace.estimate,
            "nodes": density.raw_eigenvalues[0], "weights": density.raw_weights[0],
            "bounds": bounds}  # fmt: skip


def dense(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """The Hessian by double backward, row by row, in float64. [n, n]"""
    wide = copy.deepcopy(model).double()
    call = kept_graph(wide, x.double(), y)
    size = sum(p.numel() for p in wide.parameters())
    rows = [call(row) for row in torch.eye(size, dtype=torch.float64)]
    return torch.stack(rows)


def wasserstein(found: dict[str, Any], truth: Tensor) -> float:
    from scipy.stats import wasserstein_distance

    weights = np.asarray(found["weights"], dtype=float).clip(0)
    return float(wasserstein_distance(np.asarray(found["nodes"], dtype=float),
                                      truth.numpy(), weights))  # fmt: skip


def off(found: Tensor, truth: Tensor) -> float:
    return float((found - truth).double().norm() / truth.double().norm())


def _eig(matrix: Tensor, eigenvectors: bool = True) -> tuple[Tensor, Tensor]:
    del eigenvectors
    values, vectors = torch.linalg.eigh(matrix)
    return torch.stack([values, torch.zeros_like(values)], 1), vectors


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "MISSING (pip install it; its lines will fail)"


def _cpu() -> str:
    return torch.backends.cpu.get_cpu_capability()


def _bf16() -> bool:
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


ANALYSES = {
    "ours": by_ours,
    "pyhessian": by_pyhessian,
    "curvlinops": by_curvlinops,
    "eigenthings": by_eigenthings,
}
PARTS = {"product": product, "accuracy": accuracy, "analysis": analysis,
         "memory": memory}  # fmt: skip

if __name__ == "__main__":
    if _bf16():
        ANALYSES["ours in bf16"] = by_ours_bf16
    sys.exit(main())
