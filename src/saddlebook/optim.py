"""Gives SAM to users' own training loops.

``SAM`` wraps any torch optimizer. The project's own runs take their steps in
``train/optimizers.py``, on one flat tensor; a new optimizer of experiments goes there,
and tests hold one against the other. SAM's rivals have a step there only:

- PGD: perturbed SGD, algorithm 2 of Jin et al. 2021: a Gaussian of expected norm r,
  isotropic, is added to the gradient of every step, not only near stationary points.
- LPF-SGD: algorithm 1 of Bisla et al. 2022: the gradient is the mean over M parts of
  the batch, each at weights with Gaussian noise of γ times the norm of their filter; γ
  is constant here, without the rise by a half cosine that the released code has.

References:
    Foret et al. 2021 (SAM), eq. (2) and algorithm 1; Kwon et al. 2021 (adaptive).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn

from saddlebook.errors import UsageError


def _of_base(name: str) -> Any:
    """An attribute of SAM that is the base optimizer's, so that there is one of it."""
    return property(
        lambda self: getattr(self.base_optimizer, name),
        lambda self, value: setattr(self.base_optimizer, name, value),
    )


class SAM(torch.optim.Optimizer):
    """Sharpness-aware minimisation around any base optimizer.

    ε = ρ·g/(‖g‖₂ + 1e-12), one norm over all parameters; the base optimizer then steps
    from the unperturbed weights with the gradient found at w + ε. Weight decay and
    momentum act in that step only. The unperturbed weights are kept and copied back,
    not recovered by subtraction. Norm and ε are at least float32; where the norm is not
    finite, ε is 0.

    ``state`` and ``param_groups`` are those of the base optimizer, so schedulers, saved
    states and copies act as with any torch optimizer. Two ways to use it: ``step`` with
    a closure, or ``first_step``, a second backward pass, and ``step`` without one. With
    a gradient scaler the second way is, for each batch:

        scaler.scale(loss(model(images), labels)).backward()
        optimizer.first_step(zero_grad=True)  # ε does not depend on the scale
        scaler.scale(loss(model(images), labels)).backward()
        scaler.step(optimizer)  # back to the weights; unscales and steps, or skips
        scaler.update()

    ``scaler.unscale_`` may stand before ``scaler.step``, to clip, and nowhere else.

    Args:
        params: Parameters or parameter groups; a group may have its own ``rho``.
        base_optimizer: Optimizer class, such as ``torch.optim.SGD``.
        rho: Radius, finite and at least 0 (0.05). 0 is the base optimizer.
        adaptive: Scale the perturbation by |w| (Kwon et al. 2021).
        **base_kwargs: For the base optimizer (``lr``, ``momentum``, …).

    Raises:
        UsageError: Negative or non-finite ``rho``; no optimizer class, or LBFGS.

    References:
        Foret et al. 2021, algorithm 1.
    """

    # torch's word for: a GradScaler sets grad_scale and found_inf, ``step`` heeds them
    _step_supports_amp_scaling = True
    base_optimizer: torch.optim.Optimizer
    param_groups = _of_base("param_groups")
    state = _of_base("state")
    _kept: dict[Tensor, Tensor]

    def __init__(
        self,
        params: Any,
        base_optimizer: Callable[..., torch.optim.Optimizer],
        rho: float = 0.05,
        adaptive: bool = False,
        **base_kwargs: Any,
    ) -> None:
        if not callable(base_optimizer):
            shown = " ".join(repr(base_optimizer).split())[:40]
            raise UsageError(
                f"base_optimizer {shown} must be a class, such as torch.optim.SGD; "
                "give its arguments by name"
            )
        if base_optimizer is torch.optim.LBFGS:
            raise UsageError("LBFGS asks for many losses a step, SAM for two; take SGD")
        base = base_optimizer(params, **base_kwargs)
        ours = {"rho": check_rho(rho), "adaptive": adaptive}
        # torch's own constructor would replace the base's state and groups
        self.__setstate__(
            {"base_optimizer": base, "defaults": base.defaults | ours, "_kept": {}}
        )
        for group in self.param_groups:
            self._complete(group, ours)

    def __getstate__(self) -> dict[str, Any]:
        return {n: getattr(self, n) for n in ("base_optimizer", "defaults", "_kept")}

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group; what it does not say is as in the constructor."""
        self._complete(param_group, self.defaults)
        self.base_optimizer.add_param_group(param_group)

    @staticmethod
    def _complete(group: dict[str, Any], given: Mapping[str, Any]) -> None:
        for name in ("rho", "adaptive"):
            group.setdefault(name, given[name])
        check_rho(group["rho"])

    @torch.no_grad()
    def first_step(self, zero_grad: bool = False) -> None:
        """Climb: move every parameter that has a gradient by ε, keeping the weights.

        Args:
            zero_grad: Set gradients to 0 for the second pass; infinities become NaN, so
                that a scaler still sees the overflow of the first.

        Raises:
            UsageError: No gradient, or a sparse one; a bad ``rho``; or the second pass
                is missing. The weights are then the unperturbed ones.
        """
        if self._kept:
            self.restore()
            raise UsageError(
                "first_step came twice; the weights are restored: call second_step "
                "after it, or restore to skip a second pass"
            )
        try:
            self._climb(self._norm(), zero_grad)
        except BaseException:
            self.restore()
            raise

    def _climb(self, norm: Tensor, zero_grad: bool) -> None:
        for group in self.param_groups:
            rho = check_rho(group["rho"])
            rho = -rho if group.get("maximize") else rho  # up is where it gets worse
            for p, grad in _with_grad(group):
                self._kept[p] = p.detach().clone()
                factor = _wide(p).square() if group["adaptive"] else 1.0
                climb = _wide(grad) * factor * (rho / (norm.to(p.device) + 1e-12))
                p.add_(climb.nan_to_num_(0.0, 0.0, 0.0))
                if zero_grad:
                    grad.mul_(0)
        # one autocast may stand around both passes, with casts of the weights before
        torch.clear_autocast_cache()

    @torch.no_grad()
    def second_step(self, zero_grad: bool = False) -> None:
        """Return to the kept weights and let the base optimizer step.

        Raises:
            UsageError: There was no ``first_step``.
        """
        if not self._kept:
            raise UsageError("no first_step came before; or give step a closure")
        self.restore()
        if self._unscaled():
            self.base_optimizer.step()
        self._opt_called = True  # as torch's schedulers ask
        if zero_grad:
            self.zero_grad()

    @torch.no_grad()
    def restore(self) -> None:
        """Return to the unperturbed weights without a step, to skip a second pass."""
        for p, weights in self._kept.items():
            p.copy_(weights)
        self._kept.clear()
        torch.clear_autocast_cache()

    def _unscaled(self) -> bool:
        """Undo the factor of a scaler, if there is one; False after an overflow."""
        if bool(getattr(self, "found_inf", False)):
            return False
        if (scale := getattr(self, "grad_scale", None)) is not None:
            for group in self.param_groups:
                for _, grad in _with_grad(group):
                    grad.div_(scale.to(grad.device))
        return True

    def _norm(self) -> Tensor:
        norms = [
            ((_wide(p).abs() if group["adaptive"] else 1.0) * _wide(grad)).norm()
            for group in self.param_groups
            for p, grad in _with_grad(group)
        ]
        if not norms:
            raise UsageError("SAM found no gradient; call backward before first_step")
        return torch.stack([norm.to(norms[0]) for norm in norms]).norm()

    def step(
        self,
        closure: Callable[[], Any] | None = None,
        *,
        freeze: nn.Module | None = None,
        local: Any = None,
    ) -> Any:
        """Run ``closure`` at the weights and at the perturbed weights, and step.

        After a ``first_step`` the closure is the second pass alone (Lightning always
        gives one, an empty one too); without a closure it is ``second_step``.

        Args:
            closure: Clears gradients, computes the loss, calls backward, returns it.
            freeze: A network whose batch-norm statistics the second pass leaves alone.
            local: A ``DistributedDataParallel`` network whose processes each climb
                their own gradient (m-SAM, one exchange a step). None: all processes
                climb the mean gradient, which is SAM on the whole batch.

        Returns:
            What the first call returned.

        Raises:
            UsageError: Neither a closure nor a ``first_step`` before.
        """
        if closure is None:
            return self.second_step()
        closure, climbed = torch.enable_grad()(closure), bool(self._kept)
        if not climbed:
            # DDP decides in the forward pass whether gradients are exchanged
            with local.no_sync() if local is not None else nullcontext():
                loss = closure()
            self.first_step()
        try:
            with frozen_statistics(freeze) if freeze is not None else nullcontext():
                second = closure()
        except BaseException:
            self.restore()
            raise
        self.second_step()
        return second if climbed else loss

    def state_dict(self) -> dict[str, Any]:
        """The base optimizer's state (momentum too) and the groups, as it writes them.

        Raises:
            UsageError: Between the two steps.
        """
        self._check_whole()
        return super().state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue exactly where ``state_dict`` was taken.

        The state of the base optimizer alone is taken too: radii stay as they are.

        Raises:
            UsageError: State of another kind of optimizer; nothing is changed.
        """
        self._check_whole()
        base = self.base_optimizer
        before: dict[str, Any] = {
            n: getattr(base, n) for n in ("state", "param_groups")
        }
        try:
            base.load_state_dict(state_dict)
            for group, old in zip(
                base.param_groups, before["param_groups"], strict=True
            ):
                self._complete(group, old)
                if lacking := sorted(set(old) - set(group)):
                    raise KeyError(", ".join(lacking))
        except (KeyError, UsageError) as error:
            vars(base).update(before)
            if isinstance(error, UsageError):
                raise
            raise UsageError(
                f"the state is not that of {type(base).__name__}: it lacks {error}"
            ) from error

    def _check_whole(self) -> None:
        if self._kept:
            raise UsageError(
                "SAM is between its two steps; save and load after second_step"
            )


def _with_grad(group: dict[str, Any]) -> list[tuple[Tensor, Tensor]]:
    found = [(p, p.grad) for p in group["params"] if p.grad is not None]
    if any(grad.is_sparse for _, grad in found):
        raise UsageError("SAM takes no sparse gradients: nn.Embedding(…, sparse=False)")
    return found


def _wide(tensor: Tensor) -> Tensor:
    """At least float32: squares of half precision overflow and vanish."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def check_rho(rho: Any) -> float:
    """Return ``rho`` if it is finite and not negative."""
    if not isinstance(rho, Real) or not 0 <= float(rho) < math.inf:
        raise UsageError(f"rho {rho!r} must be a finite number of at least 0")
    return float(rho)


@contextmanager
def frozen_statistics(model: nn.Module) -> Iterator[None]:
    """Batch norm uses the batch but leaves its running statistics alone.

    The released code updates them in both of SAM's passes; this is the corrected
    option for the second one. Whatever the momentum and the activations, no buffer
    of batch norm changes; other norms keep theirs. Safe to nest.
    """
    norms = [
        m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)
    ]
    before = [m.track_running_stats for m in norms]
    for m in norms:
        # in training mode torch then hands no buffers on; in eval mode it still does
        m.track_running_stats = False
    try:
        yield
    finally:
        for m, tracks in zip(norms, before, strict=True):
            m.track_running_stats = tracks
