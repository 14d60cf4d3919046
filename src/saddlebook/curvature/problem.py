"""Whose Hessian: a model, a loss and fixed images, checked and copied.

Knows modules and tensors; takes no derivative.
Legend: N images, C classes.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call

from saddlebook.errors import NumericalError, UsageError, one_of

Loss = Callable[[Tensor, Tensor], Tensor]

_BATCH_NORMS = (nn.modules.batchnorm._BatchNorm,)


class Problem(NamedTuple):
    """Whose Hessian: a model, its loss, and the images held fixed.

    Attributes:
        model: Any module; measured in eval mode, left as it was found.
        loss: ``loss(logits, targets)``, a mean over examples; gets float64 logits.
        images: Inputs of the model. [N, ...]
        labels: [N], int64.
        batch_size: Images of a chunk; None takes 50.
        batch_norm: ``running`` statistics, or those of the whole ``batch``.
    """

    model: nn.Module
    loss: Loss
    images: Tensor
    labels: Tensor
    batch_size: int | None = None
    batch_norm: str = "running"


@contextlib.contextmanager
def measuring(model: nn.Module, batch_norm: str = "running") -> Iterator[None]:
    """Eval mode, batch norm as asked, every module's mode restored."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        for module, _ in modes:
            batch = batch_norm == "batch" and isinstance(module, _BATCH_NORMS)
            module.training = batch
        yield
    finally:
        for module, training in modes:
            module.training = training


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on the CPU or a GPU."""
    text = str(error).lower()
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(
        sign in text for sign in ("not enough memory", "can't allocate memory")
    )


def copies(
    model: nn.Module, dtype: torch.dtype
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Copies of the trained parameters, and of everything else the model holds."""
    trained = {k: p for k, p in model.named_parameters() if p.requires_grad}
    if not trained:
        raise UsageError("no parameter of the model requires a gradient")
    for name, p in model.named_parameters():
        if not p.isfinite().all():
            raise NumericalError(f"parameter {name!r} holds NaN or infinity")
    params = {
        name: p.detach().to(dtype, copy=True).requires_grad_()
        for name, p in trained.items()
    }
    rest = [*model.named_parameters(), *model.named_buffers()]
    fixed = {
        name: tensor.detach().to(dtype_like(tensor, dtype), copy=True)
        for name, tensor in rest
        if name not in trained
    }
    return params, fixed


def inputs(problem: Problem, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Images in ``dtype`` and int64 labels, once everything about them is checked."""
    images, labels = problem.images, problem.labels
    one_of("batch_norm", problem.batch_norm, ("running", "batch"))
    if problem.batch_size is not None and problem.batch_size < 1:
        raise UsageError(f"batch_size {problem.batch_size} must be at least 1")
    if len(images) == 0 or len(images) != len(labels):
        raise UsageError(
            f"{len(images)} images and {len(labels)} labels: give one label an image, "
            "and at least one"
        )
    if images.dtype == torch.uint8:
        raise UsageError("uint8 images: normalise them first (data.normalise)")
    if not images.isfinite().all():
        raise NumericalError("the images hold NaN or infinity")
    if labels.dtype.is_floating_point or int(labels.min()) < 0:
        raise UsageError("labels must be class numbers from 0")
    device = next(problem.model.parameters()).device
    return images.to(dtype_like(images, dtype)), labels.to(device, torch.int64)


def dtype_like(tensor: Tensor, dtype: torch.dtype) -> torch.dtype:
    """``dtype`` for floating tensors; others keep theirs."""
    return dtype if tensor.is_floating_point() else tensor.dtype


def float64_loss(loss: Loss, logits: Tensor, labels: Tensor) -> Loss:
    """The loss with its own tensors in float64; float32 if it refuses float64 logits.

    Raises:
        UsageError: It is not one finite number.
    """
    chosen = loss
    if isinstance(loss, nn.Module):
        held: dict[str, Any] = {
            name: tensor.detach().to(dtype_like(tensor, torch.float64))
            for name, tensor in [*loss.named_parameters(), *loss.named_buffers()]
        }
        chosen = functools.partial(_called, loss, held)
    try:
        value = chosen(logits, labels)
    except RuntimeError:  # a closure that holds float32 tensors
        chosen = functools.partial(_narrowed, loss)
        value = chosen(logits, labels)
    if value.numel() != 1:
        raise UsageError(f"the loss has shape {tuple(value.shape)}; give one number")
    if not value.isfinite():
        raise NumericalError("the loss is not finite")
    return chosen


def _called(
    loss: nn.Module, held: dict[str, Any], logits: Tensor, labels: Tensor
) -> Tensor:
    return functional_call(loss, held, (logits, labels))


def _narrowed(loss: Loss, logits: Tensor, labels: Tensor) -> Tensor:
    return loss(logits.float(), labels).double()
