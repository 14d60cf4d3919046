"""SAM for users' own loops, and the schedules as pure functions of the epoch.

``SAM`` wraps any torch optimizer. The project's training loop (``train.py``) does the
same on one flat tensor; tests hold one against the other. Its rivals have a step there
only, in ``engine.py``:

- PGD: perturbed SGD, algorithm 2 of Jin et al. 2021: a Gaussian of expected norm r,
  isotropic, is added to the gradient of every step, not only near stationary points.
- LPF-SGD: algorithm 1 of Bisla et al. 2022: the gradient is the mean over M parts of
  the batch, each at weights with Gaussian noise of γ times the norm of their filter; γ
  is constant here, without the rise by a half cosine that the released code has.

References:
    Foret et al. 2021 (SAM), eq. (2) and algorithm 1; Kwon et al. 2021 (adaptive);
    schedules as in the released code of Rangwani et al. 2022.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from saddlebook.errors import UsageError


class SAM(torch.optim.Optimizer):
    """Sharpness-aware minimisation around any base optimizer.

    ε = ρ·g/(‖g‖₂ + 1e-12), one norm over all parameters; the base optimizer then steps
    from the unperturbed weights with the gradient found at w + ε. Weight decay and
    momentum act in that step only. The unperturbed weights are kept and copied back,
    not recovered by subtraction.

    Args:
        params: Parameters or parameter groups.
        base_optimizer: Optimizer class, such as ``torch.optim.SGD``.
        rho: Radius, finite and at least 0 (0.05). 0 is the base optimizer.
        adaptive: Scale the perturbation by |w| (Kwon et al. 2021).
        **base_kwargs: For the base optimizer (``lr``, ``momentum``, …).

    Raises:
        UsageError: Negative or non-finite ``rho``.

    References:
        Foret et al. 2021, algorithm 1.
    """

    def __init__(
        self,
        params: Any,
        base_optimizer: Callable[..., torch.optim.Optimizer],
        rho: float = 0.05,
        adaptive: bool = False,
        **base_kwargs: Any,
    ) -> None:
        super().__init__(params, {"rho": check_rho(rho), "adaptive": adaptive})
        self.base_optimizer = base_optimizer(self.param_groups, **base_kwargs)
        self.param_groups = self.base_optimizer.param_groups
        for name, value in self.base_optimizer.defaults.items():
            self.defaults.setdefault(name, value)
        self._kept: dict[Tensor, Tensor] = {}

    @torch.no_grad()
    def first_step(self, zero_grad: bool = False) -> None:
        """Climb: move every parameter that has a gradient by ε, keeping the weights."""
        norm = self._norm()
        for group in self.param_groups:
            for p, grad in _with_grad(group):
                self._kept[p] = p.detach().clone()
                factor = p.square() if group["adaptive"] else 1.0
                p.add_(grad * factor * (group["rho"] / (norm.to(p.device) + 1e-12)))
        if zero_grad:
            self.zero_grad()

    @torch.no_grad()
    def second_step(self, zero_grad: bool = False) -> None:
        """Return to the kept weights and let the base optimizer step."""
        self._restore()
        self.base_optimizer.step()
        if zero_grad:
            self.zero_grad()

    def _restore(self) -> None:
        for p, weights in self._kept.items():
            p.copy_(weights)
        self._kept.clear()

    def _norm(self) -> Tensor:
        norms = [
            ((p.abs() if group["adaptive"] else 1.0) * grad).norm()
            for group in self.param_groups
            for p, grad in _with_grad(group)
        ]
        if not norms:
            raise UsageError("SAM found no gradient; call backward before first_step")
        return torch.stack([norm.to(norms[0].device) for norm in norms]).norm()

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Run ``closure`` twice: at the weights and at the perturbed weights.

        Args:
            closure: Clears gradients, computes the loss, calls backward, returns it.

        Returns:
            The loss of the first call.

        Raises:
            UsageError: No closure.
        """
        if closure is None:
            raise UsageError("SAM.step needs a closure; see first_step and second_step")
        closure = torch.enable_grad()(closure)
        loss = closure()
        self.first_step()
        try:
            closure()
        except BaseException:
            with torch.no_grad():
                self._restore()
            raise
        self.second_step()
        return loss

    def state_dict(self) -> dict[str, Any]:
        """The base optimizer's state (momentum too) and the groups."""
        if self._kept:
            raise UsageError("SAM is between its two steps; save after second_step")
        return self.base_optimizer.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue exactly where ``state_dict`` was taken."""
        self.base_optimizer.load_state_dict(state_dict)
        self.param_groups = self.base_optimizer.param_groups


def _with_grad(group: dict[str, Any]) -> list[tuple[Tensor, Tensor]]:
    return [(p, p.grad) for p in group["params"] if p.grad is not None]


def check_rho(rho: float) -> float:
    """Return ``rho`` if it is finite and not negative."""
    if not (isinstance(rho, int | float) and math.isfinite(rho) and rho >= 0):
        raise UsageError(f"rho {rho!r} must be a finite number of at least 0")
    return float(rho)


@contextmanager
def frozen_statistics(model: nn.Module) -> Iterator[None]:
    """Batch norm uses the batch but leaves its running statistics alone.

    The released code updates them in both of SAM's passes; this is the corrected
    option for the second one. Safe to nest.
    """
    norms = [
        m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)
    ]
    before = [m.momentum for m in norms]
    for m in norms:
        m.momentum = 0.0
    try:
        yield
    finally:
        for m, momentum in zip(norms, before, strict=True):
            m.momentum = momentum


def learning_rate(epoch: int, *, lr: float, epochs: int, drw_epoch: int) -> float:
    """Learning rate of an epoch, 1-based.

    Five parts of warm-up in 40 (epochs 1 to 5 of 200), constant to ``drw_epoch``, a
    hundredth for the first half of the rest, a ten-thousandth for the second half.

    References:
        Released code: 0.1·e/5; 0.1; 0.001 from epoch 161; 0.00001 from epoch 181.
    """
    _check_epoch(epoch, epochs)
    warmup = max(1, epochs // 40)
    late = drw_epoch + (epochs - drw_epoch) // 2
    if epoch <= warmup:
        return lr * epoch / warmup
    if epoch <= drw_epoch:
        return lr
    return lr * (1e-2 if epoch <= late else 1e-4)


def reweighted(epoch: int, *, reweight: str, drw_epoch: int) -> bool:
    """Whether class weights are on in an epoch, 1-based: DRW starts after drw_epoch."""
    return reweight == "effective" or (reweight == "drw" and epoch > drw_epoch)


def radius(epoch: int, *, rho: float, sam_epochs: str, drw_epoch: int) -> float:
    """SAM's radius of an epoch, 1-based; constant, or before or after the switch."""
    if sam_epochs == "before":
        return rho if epoch <= drw_epoch else 0.0
    if sam_epochs == "after":
        return rho if epoch > drw_epoch else 0.0
    return rho


def _check_epoch(epoch: int, epochs: int) -> None:
    if not 1 <= epoch <= epochs:
        raise UsageError(f"epoch {epoch} is not in 1 to {epochs}")
