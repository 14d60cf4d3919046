"""Trains one step of SGD, SAM, PGD, LPF-SGD, Adam or SignSGD on flat tensors.

Knows tensors and the step's arithmetic; no epochs, no files, no experiment.
Parameters, gradients, momentum and batch-norm statistics of a run live in four flat
tensors; the module's parameters are views, so perturbing, restoring and updating are
a few operations, whatever the network.

Legend: P parameters, N images, C classes.

References:
    SAM: Foret et al. 2021, algorithm 1; PGD: perturbed SGD of Jin et al. 2021
    (algorithm 2), noise at every step; LPF-SGD: Bisla et al. 2022, algorithm 1. Adam:
    Kingma and Ba 2015, algorithm 1, with the decoupled weight decay of Loshchilov and
    Hutter 2019, algorithm 2; SignSGD with momentum: Bernstein et al. 2018, algorithm 2.
    SAM on rare classes alone: Zhou et al. 2023 (ImbSAM), eq. (5); Group DRO: Sagawa et
    al. 2020, algorithm 1, with a batch's mean loss of each class.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saddlebook.losses import Adjustment, focal_nats
from saddlebook.optim import frozen_statistics

# Of a test pass at a time. More leave a processor's caches: a ResNet-32 takes 1.8 times
# as long on 1,000 images as on 100 at a time, for the same bits
_PIXELS = {"cpu": 100_000, "cuda": 2_560_000}
_SECOND = 0.999  # Adam's β₂; its β₁ is the momentum


class Objective(NamedTuple):
    """The training loss as tensors, so that runs differ in tensors only."""

    adjust: Adjustment
    focal_gamma: float | None = None

    def __call__(self, logits: Tensor, targets: Tensor, weight: Tensor) -> Tensor:
        """Mean loss; class weights [C] divide by their sum over the batch."""
        if self.focal_gamma is not None:
            return focal_nats(logits, targets, self.focal_gamma, weight).mean()
        # PAPER: a weighted mean over the batch, not a sum over N
        return F.cross_entropy(self.adjust(logits, targets), targets, weight)

    def part(
        self, logits: Tensor, targets: Tensor, weight: Tensor, share: Tensor
    ) -> Tensor:
        """What some classes add to the mean loss: ``share`` is 1 or 0 for each, [C]."""
        given = weight[targets]
        count = given.sum() if self.focal_gamma is None else len(targets)
        return (given * share[targets]) @ self.each(logits, targets) / count

    def each(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Loss of each image without class weights, nats [N]."""
        if self.focal_gamma is not None:
            return focal_nats(logits, targets, self.focal_gamma)
        adjusted = self.adjust(logits, targets)
        return F.cross_entropy(adjusted, targets, reduction="none")

    def like(self, tensor: Tensor) -> Objective:
        """The same with its tensors on the device and of the type of ``tensor``."""
        scale, *others = self.adjust
        tensors = (other.to(tensor) for other in others)
        return self._replace(adjust=Adjustment(scale, *tensors))


class Hyper(NamedTuple):
    """What a schedule changes between epochs; device tensors, read by every step."""

    lr: Tensor  # []
    rho: Tensor  # []
    weight: Tensor  # [C]
    ascend: bool = True  # False: SAM takes a plain SGD step, one pass
    share: Tensor | None = None  # [C], 1 for the classes a pass sees; None: all


class State(NamedTuple):
    """All that training changes: enough to continue bit for bit."""

    weights: Tensor  # [P]
    momentum: Tensor  # [P]; Adam [2, P + 1], see ``_adam``; Group DRO [P + C]
    statistics: Tensor  # [S], batch-norm means and variances


class Replica:
    """A network and its optimizer state in flat tensors.

    Args:
        model: Is taken over: parameters and buffers become views.
        objective: Training loss.
        optimizer: ``sgd``, ``sam``, ``pgd``, ``lpf``, ``adam`` or ``sign``.
        momentum: Heavy ball.
        weight_decay: On all parameters; of ``adam`` and ``sign`` decoupled.
        sam_bn: ``both`` or ``first``: passes that update batch-norm statistics.
        rare: Classes whose loss alone SAM climbs; none: all.
        dro_step: Group DRO's step size of the classes' log weights; 0: no Group DRO.
        noise: See ``Experiment.noise``.
        lpf_samples: See ``Experiment.lpf_samples``.
        noise_seed: Seeds the noise of PGD and LPF-SGD.
        autocast: bf16 products, float32 weights.
    """

    def __init__(
        self,
        model: nn.Module,
        objective: Objective,
        *,
        optimizer: str = "sgd",
        momentum: float = 0.9,
        weight_decay: float = 2e-4,
        sam_bn: str = "both",
        rare: Sequence[int] = (),
        dro_step: float = 0.0,
        noise: float = 0.0,
        lpf_samples: int = 1,
        noise_seed: int = 0,
        autocast: bool = False,
    ) -> None:
        self.model = model
        self.objective = objective
        self.optimizer = optimizer
        self.decay, self.beta = weight_decay, momentum
        self.sam_bn, self.autocast, self.dro_step = sam_bn, autocast, dro_step
        self.noise, self.lpf_samples = noise, lpf_samples
        self._noise_seed = noise_seed
        self.generator = torch.Generator(next(model.parameters()).device)
        self.names = [name for name, _ in model.named_parameters()]
        self.sizes = [p.numel() for p in model.parameters()]
        self.weights, self.grad = _flatten_parameters(model)
        self.statistics = _flatten_statistics(model)
        self._loss = objective.like(self.weights)
        classes, size = self._loss.adjust.margin, len(self.weights)
        kept = (2, size + 1) if optimizer == "adam" else size
        self.momentum = self.weights.new_zeros(
            size + len(classes) if dro_step else kept
        )
        self._kept = torch.empty_like(self.weights)
        self._rare: Tensor | None = None  # [C], 1 for classes that SAM climbs
        if len(rare):
            self._rare = torch.zeros_like(classes)
            self._rare[list(rare)] = 1

    @property
    def state(self) -> State:
        """The live tensors; clone before keeping."""
        return State(self.weights, self.momentum, self.statistics)

    def load(self, state: State) -> None:
        """Copy ``state`` in; the views stay bound."""
        for live, saved in zip(self.state, state, strict=True):
            live.copy_(saved)

    def begin_epoch(self, epoch: int) -> None:
        """Make the noise of PGD and LPF-SGD a function of (seed, epoch, step)."""
        self.generator.manual_seed(self._noise_seed * 100_003 + epoch)

    def step(self, images: Tensor, targets: Tensor, hyper: Hyper) -> Tensor:
        """One optimizer step on images [N, 3, H, W]; returns the loss, on the device.

        SAM's loss is that of the first pass, at the unperturbed weights.
        """
        if self.optimizer == "sam" and hyper.ascend:
            loss = self._sam(images, targets, hyper)
        elif self.optimizer == "lpf":
            loss = self._lpf(images, targets, hyper)
        else:
            loss = self._pass(images, targets, hyper)
        if self.optimizer == "pgd":
            self.grad.add_(self._gaussian() * (self.noise / len(self.grad) ** 0.5))
        self._update(hyper)
        return loss

    def _pass(self, images: Tensor, targets: Tensor, hyper: Hyper) -> Tensor:
        """Forward and backward; the gradient is left in ``self.grad``."""
        self.grad.zero_()
        return self._accumulate(images, targets, hyper)

    def _accumulate(self, images: Tensor, targets: Tensor, hyper: Hyper) -> Tensor:
        with self._cast():
            logits = self.model(images)
        logits = logits.to(self.weights.dtype)
        if self.dro_step:
            loss = self._robust(logits, targets)
        elif hyper.share is not None:
            loss = self._loss.part(logits, targets, hyper.weight, hyper.share)
        else:
            loss = self._loss(logits, targets, hyper.weight)
        loss.backward()
        return loss.detach()

    def _robust(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Group DRO: Σ_c q_c·(mean loss of class c in the batch), q moved first.

        The log weights, up to a constant, are the last C values of ``momentum``.
        """
        weights = self.momentum[len(self.weights) :]
        hot = targets == torch.arange(len(weights), device=targets.device)[:, None]
        member = hot.to(logits)  # [C, N]
        losses = member @ self._loss.each(logits, targets)
        losses = losses / member.sum(1).clamp_min(1)
        weights.add_(losses.detach(), alpha=self.dro_step)
        return weights.softmax(0) @ losses

    def _sam(self, images: Tensor, targets: Tensor, hyper: Hyper) -> Tensor:
        rare = hyper._replace(share=self._rare)
        loss = self._pass(images, targets, rare)
        self._kept.copy_(self.weights)
        # ε = ρ·g/(‖g‖ + 1e-12), one norm over all parameters
        self.weights.add_(self.grad * (hyper.rho / (self.grad.norm() + 1e-12)))
        # PAPER: the second pass, too, updates the batch-norm statistics
        quiet = self.sam_bn == "first"
        with frozen_statistics(self.model) if quiet else contextlib.nullcontext():
            self._pass(images, targets, rare)
            self.weights.copy_(self._kept)
            if self._rare is not None:  # the others' gradient, where the weights are
                others = hyper._replace(share=1 - self._rare)
                loss = loss + self._accumulate(images, targets, others)
        return loss

    def _update(self, hyper: Hyper) -> None:
        """Weight decay, momentum and step, at the unperturbed weights."""
        if self.optimizer in ("adam", "sign"):
            direction = self._adam() if self.optimizer == "adam" else self._sign()
            direction.add_(self.weights, alpha=self.decay)
            self.weights.sub_(direction * hyper.lr)
            return
        self.grad.add_(self.weights, alpha=self.decay)
        velocity = self.momentum[: len(self.weights)]
        velocity.mul_(self.beta).add_(self.grad)
        self.weights.sub_(velocity * hyper.lr)

    def _sign(self) -> Tensor:
        return self.momentum.mul_(self.beta).add_(self.grad).sign()

    def _adam(self) -> Tensor:
        """Averaged gradient over the root of its averaged square, [P].

        The last of the P + 1 averages is that of ones: 1 − βᵗ, what Adam divides by.
        """
        grad = F.pad(self.grad, (0, 1), value=1.0)
        for moment, value, beta in zip(
            self.momentum, (grad, grad.square()), (self.beta, _SECOND), strict=True
        ):
            moment.mul_(beta).add_(value, alpha=1 - beta)
        mean, square = (m[:-1] / m[-1] for m in self.momentum)
        return mean / (square.sqrt() + 1e-8)

    def _gaussian(self) -> Tensor:
        return torch.empty_like(self.grad).normal_(generator=self.generator)

    def _lpf(self, images: Tensor, targets: Tensor, hyper: Hyper) -> Tensor:
        """Mean gradient over M parts of the batch, each at its own noisy weights."""
        self.grad.zero_()
        self._kept.copy_(self.weights)
        scale = self._filter_norms() * self.noise
        losses = []
        # batch norm needs two images: a short last batch is split into fewer parts
        count = len(targets)
        parts = min(self.lpf_samples, max(1, count // 2))
        while parts > 1 and count % -(-count // parts) == 1:
            parts -= 1
        for part, labels in zip(images.chunk(parts), targets.chunk(parts), strict=True):
            self.weights.add_(self._gaussian() * scale)
            losses.append(self._accumulate(part, labels, hyper))
            self.weights.copy_(self._kept)
        self.grad.div_(len(losses))
        return torch.stack(losses).mean()

    def _filter_norms(self) -> Tensor:
        """Norm of each parameter's filter (of the whole tensor if 1-D), [P]."""
        norms = []
        parts = zip(
            self.weights.split(self.sizes), self.model.parameters(), strict=True
        )
        for part, p in parts:
            # a filter's values lie together in the flat tensor, see _view
            rows = p.shape[0] if p.ndim > 1 else 1
            norms.append(
                part.view(rows, -1).norm(dim=1).repeat_interleave(len(part) // rows)
            )
        return torch.cat(norms)

    def _cast(self) -> torch.autocast:
        """bf16 products where asked for; nothing cached, as a CUDA graph needs it."""
        return torch.autocast(
            self.weights.device.type,
            torch.bfloat16,
            enabled=self.autocast,
            cache_enabled=False,
        )

    def first_nonfinite(self) -> str:
        """Name of the first parameter (or ``x.grad``) holding NaN or infinity."""
        for suffix, flat in (("", self.weights), (".grad", self.grad)):
            for name, part in zip(self.names, flat.split(self.sizes), strict=True):
                if not part.isfinite().all():
                    return name + suffix
        return "batch-norm statistics" if not self.statistics.isfinite().all() else ""

    @torch.no_grad()
    def logits(self, images: Tensor) -> Tensor:
        """Eval-mode outputs [N, C]; the mode is restored."""
        height, width = images.shape[-2:]
        chunk = max(1, _PIXELS[images.device.type] // (height * width))
        was_training = self.model.training
        self.model.eval()
        try:
            with self._cast():
                parts = [self.model(part) for part in images.split(chunk)]
        finally:
            self.model.train(was_training)
        return torch.cat(parts).to(self.weights.dtype)


def _flatten_parameters(model: nn.Module) -> tuple[Tensor, Tensor]:
    """Make all parameters and gradients views of two flat tensors [P].

    Convolution weights lie channels-last inside, as the fast kernels want them.
    """
    params = list(model.parameters())
    first = params[0]
    flat = torch.empty(
        sum(p.numel() for p in params), dtype=first.dtype, device=first.device
    )
    grad = torch.zeros_like(flat)
    start = 0
    for p in params:
        stop = start + p.numel()
        view, grad_view = (_view(t[start:stop], p.shape) for t in (flat, grad))
        view.copy_(p.data)
        p.data, p.grad = view, grad_view
        start = stop
    return flat, grad


def _view(flat: Tensor, shape: torch.Size) -> Tensor:
    if len(shape) != 4:
        return flat.view(shape)
    out, inner, height, width = shape
    return flat.view(out, height, width, inner).permute(0, 3, 1, 2)


def _flatten_statistics(model: nn.Module) -> Tensor:
    """Make running means and variances views of one flat tensor [S]."""
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    for m in norms:
        m.num_batches_tracked = None  # saves a kernel a layer; momentum is fixed
    parts = [t for m in norms for t in (m.running_mean, m.running_var)]
    flat = torch.cat([t for t in parts if t is not None])
    start = 0
    for m in norms:
        for name in ("running_mean", "running_var"):
            m._buffers[name] = flat[start : start + m.num_features]
            start += m.num_features
    return flat
