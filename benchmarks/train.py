"""The usual training loop against the engine, in one process tree, taking turns.

    python benchmarks/train.py [quick lite full] [--rounds 3] [--workers 4]

The usual loop is written here from the published description: a DataLoader whose
workers start anew every epoch, PIL transforms, SAM tensor by tensor, loss and accuracy
read by the host at every step. The engine is ``train`` itself, checkpoints included.
A round is the epochs between two test passes, with one of them; ratios are medians
over rounds of CPU seconds (workers count) and of wall time; ``as published`` is the CPU
ratio to a usual loop that has a test pass after every epoch. Both use one thread.
``quick`` is the real one. ``lite`` has random images in the numbers of that setting.
``full`` is four steps of ResNet-32 with a test pass in proportion, where the usual loop
has no workers: their start would weigh too much in so short an epoch.

A case whose equality check fails gets no ratio, and the exit code is 1. On CUDA there
are also milliseconds per forward and backward pass of one run, the share of the byte
floor and the kernels of a step.
"""

from __future__ import annotations

import argparse
import gc
import resource
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gpu.probe import line, random_dataset
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision import transforms

from saddlebook import data, models, studies
from saddlebook.data.augmentation import MEAN, STD
from saddlebook.errors import Stopped
from saddlebook.experiment import Experiment
from saddlebook.scales import at_scale
from saddlebook.train import train
from saddlebook.train.optimizers import Hyper
from saddlebook.train.run import Task, build_replica, prepare

Seconds = np.ndarray[Any, Any]  # CPU, wall. [2]


@dataclass(frozen=True)
class Case:
    """One line of the table."""

    name: str
    experiment: Experiment
    dataset: data.Dataset
    workers: int
    goal: float


def cases(names: list[str], workers: int) -> list[Case]:
    """SGD and SAM at quick and lite; ResNet-32 in two precisions."""
    sgd, sam = studies.table1(seeds=(0,))[:2]
    made = []
    for scale in [name for name in names if name != "full"]:
        images = data.load("digits") if scale == "quick" else random_dataset(1000, 1000)
        for experiment, goal in ((sgd, 4.5), (sam, 2.8)):
            name = f"{scale}, {experiment.optimizer.upper()}"
            made.append(Case(name, at_scale(experiment, scale), images, workers, goal))
    if "full" in names:
        few = replace(sgd, max_count=51, imbalance_factor=1)
        images = random_dataset(51, 41)
        for precision, goal in (("fp32", 1.3), ("bf16", 2.0)):
            named = replace(few, precision=precision)
            made.append(Case(f"ResNet-32, SGD, {precision}", named, images, 0, goal))
    return made


class Pictures(torch.utils.data.Dataset[Any]):
    """Images one by one through PIL, as torchvision's CIFAR classes give them."""

    def __init__(self, images: Tensor, labels: Tensor, augmented: bool) -> None:
        self.images = images.permute(0, 2, 3, 1).contiguous().numpy()
        self.labels = labels.tolist()
        size = images.shape[-1]
        steps: list[Any] = [transforms.ToTensor(), transforms.Normalize(MEAN, STD)]
        if augmented:
            crop = transforms.RandomCrop(size, padding=data.padding(size))
            steps = [crop, transforms.RandomHorizontalFlip(), *steps]
        self.transform = transforms.Compose(steps)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.images[index])), self.labels[index]


class Climb:
    """SAM as it is usually copied: every tensor on its own, undone by subtraction."""

    def __init__(self, params: list[nn.Parameter], rho: float) -> None:
        self.params, self.rho = params, rho
        self.steps: list[Tensor] = []

    @torch.no_grad()
    def up(self) -> None:
        norm = torch.stack([p.grad.norm() for p in self.params]).norm()
        self.steps = [p.grad * (self.rho / (norm + 1e-12)) for p in self.params]
        for p, step in zip(self.params, self.steps, strict=True):
            p.add_(step)
            p.grad = None

    @torch.no_grad()
    def down(self) -> None:
        for p, step in zip(self.params, self.steps, strict=True):
            p.sub_(step)


class Usual:
    """The published loop for one experiment."""

    def __init__(self, exp: Experiment, task: Task | None, workers: int, device: str):
        self.model = models.build_model(
            exp.model, exp.num_classes, exp.width, False, exp.seed
        )
        self.model.to(device)
        self.device, self.loss = device, nn.CrossEntropyLoss().to(device)
        params = list(self.model.parameters())
        self.optimizer = torch.optim.SGD(
            params, exp.lr, momentum=exp.momentum, weight_decay=exp.weight_decay
        )
        self.climb = Climb(params, exp.rho) if exp.optimizer == "sam" else None
        if task:
            self.loader = self._loader(task.images, task.labels, exp, workers, True)

    def watch(self, images: Tensor, labels: Tensor, exp: Experiment, n: int) -> None:
        """Name the test images."""
        self.tests = self._loader(images, labels, exp, n, False)

    def _loader(
        self, images: Tensor, labels: Tensor, exp: Experiment, n: int, train: bool
    ) -> DataLoader[Any]:
        pictures = Pictures(images.cpu(), labels.cpu(), train)
        pinned = self.device != "cpu"
        return DataLoader(
            pictures, exp.batch_size, shuffle=train, num_workers=n, pin_memory=pinned
        )

    def step(self, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.model(images)
        loss = self.loss(logits, targets)
        self.optimizer.zero_grad()
        loss.backward()
        if self.climb:
            self.climb.up()
            self.loss(self.model(images), targets).backward()
            self.climb.down()
        self.optimizer.step()
        return loss, logits

    def fit(self, epochs: int) -> None:
        self.model.train()
        for _ in range(epochs):
            for images, targets in self.loader:
                images = images.to(self.device, non_blocking=True)
                targets = targets.to(self.device, non_blocking=True)
                loss, logits = self.step(images, targets)
                loss.item()
                self._note(logits, targets)

    def test(self) -> None:
        self.model.eval()
        with torch.no_grad():
            for images, targets in self.tests:
                logits = self.model(images.to(self.device))
                self.loss(logits, targets.to(self.device)).item()
                self._note(logits, targets.to(self.device))

    def _note(self, logits: Tensor, targets: Tensor) -> list[float]:
        """Accuracy among the first and the first five, in percent."""
        right = logits.topk(5, 1).indices == targets[:, None]
        return [right[:, :k].any(1).float().mean().mul(100).item() for k in (1, 5)]


class Turns:
    """Follows the engine's training; after each round of it the usual loop has one."""

    def __init__(self, usual: Usual, case: Case, rounds: int) -> None:
        self.usual, self.every = usual, case.experiment.test_every
        self.left = rounds + 1  # the first one warms up
        # of the engine, and of the usual loop's training and test. [R, 3, 2]
        self.rows: list[list[Seconds]] = []
        self.began = now()

    def stopped(self) -> bool:
        return not self.left

    def epoch_done(self, experiment: Experiment, row: dict[str, Any]) -> None:
        if row["epoch"] % self.every:
            return
        self.left -= 1
        ours = now() - self.began
        torch.set_flush_denormal(False)  # only our command line sets it
        fit = spent(lambda: self.usual.fit(self.every))
        self.rows.append([ours, fit, spent(self.usual.test)])
        torch.set_flush_denormal(True)
        self.began = now()


def spent(work: Callable[[], None]) -> Seconds:
    began = now()
    work()
    gc.collect()  # a loader's workers end, and count, with it
    return now() - began


def now() -> Seconds:
    """CPU seconds of this process and its ended children, and wall seconds."""
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    return np.array([time.process_time() + sum(ended[:2]), time.perf_counter()])


def measure(case: Case, rounds: int, device: str) -> Turns:
    exp = case.experiment
    task = prepare(exp, case.dataset, device)
    usual = Usual(exp, task, case.workers, device)
    tests = data.resize(case.dataset.test_images, exp.image_size)
    usual.watch(tests, case.dataset.test_labels, exp, case.workers)
    turns = Turns(usual, case, rounds)
    torch.set_flush_denormal(True)
    with tempfile.TemporaryDirectory() as folder:
        try:
            train([exp], case.dataset, Path(folder), device=device, watcher=turns)
        except Stopped:
            pass
    torch.set_flush_denormal(False)
    return turns


def equality(case: Case, device: str) -> float:
    """Largest relative difference of the weights after the same batches in float64.

    Of a case in bf16 too: its step is compared in the precision that can be compared.
    Infinity if the two loops do not test on the same pixels.
    """
    exp = replace(case.experiment, precision="fp64")
    task = prepare(exp, case.dataset, device)
    usual = Usual(exp, None, 0, device)
    usual.model.double().train()
    replica = build_replica(exp, task.class_counts, device)
    replica.model.train()
    numbers = (exp.lr, exp.rho, [1.0] * exp.num_classes)
    hyper = Hyper(
        *(torch.tensor(v, device=device, dtype=torch.double) for v in numbers)
    )
    for epoch in range(1, 4):
        few = torch.arange(24) * (len(task.images) // 24)
        images = data.augment(task.images[few], exp.seed, epoch, few)
        batch = data.normalise(images, torch.float64), task.labels[few]
        usual.step(*batch)
        replica.step(*batch, hyper)
    pairs = zip(usual.model.parameters(), replica.model.parameters(), strict=True)
    off = max(float((a - b).detach().norm() / a.detach().norm()) for a, b in pairs)
    return off if _same_pixels(case) else float("inf")


def _same_pixels(case: Case) -> bool:
    tests = data.resize(case.dataset.test_images[:20], case.experiment.image_size)
    pictures = Pictures(tests, case.dataset.test_labels[:20], False)
    return torch.equal(torch.stack([p for p, _ in pictures]), data.normalise(tests))


def bf16_error(case: Case) -> float:
    """Relative difference that bf16 makes to one step's gradient."""
    grads = []
    for precision in ("fp32", "bf16"):
        exp = replace(case.experiment, precision=precision)
        task = prepare(exp, case.dataset)
        replica = build_replica(exp, task.class_counts)
        replica.model.train()
        images = data.normalise(task.images[:128])
        hyper = Hyper(torch.tensor(0.0), torch.tensor(0.0), torch.ones(10))
        replica.step(images, task.labels[:128], hyper)
        grads.append(replica.grad - replica.decay * replica.weights)
    return float((grads[1] - grads[0]).norm() / grads[0].norm())


def report(case: Case, rounds: int, device: str) -> tuple[bool, float]:
    """Print a line; whether the check held, and the engine's CPU seconds a round."""
    off = equality(case, device)
    rough = case.experiment.precision == "bf16" and bf16_error(case) > 0.1
    held = off < 1e-9 and not rough
    rows = np.array(measure(case, rounds, device).rows[1:])
    ours, usual = rows[:, 0], rows[:, 1] + rows[:, 2]
    published = rows[:, 1] + case.experiment.test_every * rows[:, 2]
    mine, theirs = np.median(ours, 0), np.median(usual, 0)
    ratios = [*np.median(usual / ours, 0), np.median(published / ours, 0)[0]]
    shown = [f"{ratio:.2f}" if held else "refused" for ratio in ratios]
    cells = [case.name, f"{theirs[0]:.3f}", f"{mine[0]:.3f}", *shown]
    print("| " + " | ".join([*cells, str(case.goal), f"{off:.0e}"]) + " |", flush=True)
    return held, float(mine[1 if device != "cpu" else 0])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cases", nargs="*", default=["quick", "lite", "full"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=4, help="of the usual loop")
    parser.add_argument("--device", default="cpu")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", message=".*worker processes.*")  # as published
    print(f"torch {torch.__version__}, {_where(asked.device)}, {asked.rounds} rounds")
    print("| case | usual CPU s | engine CPU s | ", end="")
    print("CPU ratio | wall ratio | as published | goal | off |\n|" + "---|" * 8)
    chosen, seconds, held = cases(asked.cases, asked.workers), {}, []
    for case in chosen:
        fine, seconds[case.name] = report(case, asked.rounds, asked.device)
        held.append(fine)
    for scale in {c.name.split(",")[0] for c in chosen if "SAM" in c.name}:
        ratio = seconds[f"{scale}, SAM"] / seconds[f"{scale}, SGD"]
        print(f"{scale}: a round of SAM costs {ratio:.2f} of SGD, with the test pass")
    if "full" in asked.cases:
        print(f"bf16 changes a gradient of ResNet-32 by {bf16_error(chosen[-1]):.3f}")
    if asked.device != "cpu":
        for precision in ("bf16", "tf32", "fp32"):
            print(line(asked.device, precision, "sgd", 1))
            print(line(asked.device, precision, "sam", 12))
    return 0 if all(held) else 1


def _where(device: str) -> str:
    if device != "cpu":
        return torch.cuda.get_device_name(device)
    fast = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    kind = torch.backends.cpu.get_cpu_capability()
    return f"{kind}, one thread, {'with' if fast else 'without'} bf16 products"


if __name__ == "__main__":
    sys.exit(main())
