"""Checks a model, a loss and fixed images, and copies what a Hessian needs of them.

Knows modules, tensors, and what is piecewise affine; takes no derivative.
Legend: N images, C classes.
"""

from __future__ import annotations

import contextlib
import functools
import math
import operator
import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, ParamSpec, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils import checkpoint as checkpointing

from saddlebook.errors import NumericalError, UsageError, one_of
from saddlebook.models import arithmetic

Loss = Callable[[Tensor, Tensor], Tensor]
P = ParamSpec("P")
R = TypeVar("R")

_BATCH_NORMS = (nn.modules.batchnorm._BatchNorm,)
STATISTICS = ("running", "batch", "batches")  # of batch norm
BATCH = 128  # PAPER: images that share statistics in training
MAPS = (nn.Conv2d, nn.Linear, nn.BatchNorm2d)  # with parameters
_PLAIN = (
    nn.ReLU, nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.Flatten, nn.Identity,
    nn.Dropout,
)  # fmt: skip
_FUNCTIONS = {
    F.relu, torch.relu, torch.relu_, operator.add, operator.iadd, torch.add,
    torch.flatten, F.pad, torch.mean, operator.getitem, F.max_pool2d, F.avg_pool2d,
    F.adaptive_avg_pool2d, getattr, torch.cat,
}  # fmt: skip
_METHODS = {"mean", "flatten", "view", "reshape", "add", "relu", "size", "contiguous"}
_PARALLEL = (nn.DataParallel, nn.parallel.DistributedDataParallel)


class Problem(NamedTuple):
    """Whose Hessian: a model, its loss, and the images held fixed.

    Attributes:
        model: Any module; measured in eval mode, left as it was found.
        loss: ``loss(logits, targets)``, a mean over examples; gets float64 logits.
        images: Inputs of the model. [N, ...]
        labels: Class numbers [N], or targets of another shape that the loss takes.
        batch_size: Images of a chunk; None takes 50. Where the loss or the model is
            not the same over chunks, all images are one chunk.
        batch_norm: ``running`` statistics, those of the whole ``batch``, or of
            ``batches`` of 128, as the images stand in order.
        output: Which of the model's outputs are the logits, by number or name; None
            for a model that returns nothing else.
    """

    model: nn.Module
    loss: Loss
    images: Tensor
    labels: Tensor
    batch_size: int | None = None
    batch_norm: str = "running"
    output: int | str | None = None


def alone(function: Callable[P, R]) -> Callable[P, R]:
    """Call it outside of inference mode, autocast and TF32: they change results."""

    @functools.wraps(function)
    def called(*args: P.args, **kwargs: P.kwargs) -> R:
        with contextlib.ExitStack() as stack:
            stack.enter_context(torch.inference_mode(False))
            stack.enter_context(arithmetic("fp32"))
            for kind in ("cpu", "cuda")[: 1 + torch.cuda.is_available()]:
                stack.enter_context(torch.autocast(kind, enabled=False))
            return function(*args, **kwargs)

    return called


def bare(model: nn.Module) -> nn.Module:
    """The module inside ``DataParallel`` and ``torch.compile``."""
    while True:
        if isinstance(model, _PARALLEL):
            model = model.module
        elif isinstance(inner := getattr(model, "_orig_mod", None), nn.Module):
            model = inner
        else:
            return model


def picked(found: Any, output: int | str | None) -> Tensor:
    """The logits among a model's outputs.

    Raises:
        UsageError: There are several, or none of that name.
    """
    if output is not None and not isinstance(found, Tensor):
        try:
            attribute = isinstance(output, str) and hasattr(found, output)
            found = getattr(found, str(output)) if attribute else found[output]
        except (AttributeError, KeyError, IndexError, TypeError) as error:
            raise UsageError(f"the model has no output {output!r}") from error
    if not isinstance(found, Tensor):
        names = list(found) if hasattr(found, "keys") else type(found).__name__
        count = f" of {len(found)}" if isinstance(found, tuple | list) else ""
        raise UsageError(
            f"the model returns {names}{count}, not one tensor; say which of it are "
            "the logits (output=0 or output='logits')"
        )
    return found


class _Smooth(TorchFunctionMode):
    """Functions whose second derivative torch lacks or has wrong, as others."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if func is F.hardsigmoid:
            return F.relu6(args[0] + 3) / 6
        if func is torch._weight_norm:  # gradgradcheck fails on it (torch 2.11)
            vectors, lengths, *dim = args
            norms = torch.norm_except_dim(vectors, 2, *(dim or (0,)))
            return vectors * (lengths / norms)
        return func(*args, **(kwargs or {}))


class _Whole:
    """In the place of a checkpointed block's autograd function: keeps everything."""

    @staticmethod
    def apply(function: Callable[..., Any], _: bool, *args: Any) -> Any:
        return function(*args)


def _unhooked(*_: Any, **__: Any) -> Iterator[None]:
    yield


@contextlib.contextmanager
def _without_checkpoints() -> Iterator[None]:
    """Blocks that are computed again going back would miss the copied parameters."""
    names = {
        "CheckpointFunction": _Whole,
        "_checkpoint_without_reentrant_generator": _unhooked,
    }
    before = {name: getattr(checkpointing, name) for name in names}
    try:
        vars(checkpointing).update(names)
        yield
    finally:
        vars(checkpointing).update(before)


@contextlib.contextmanager
def measuring(model: nn.Module, batch_norm: str = "running") -> Iterator[None]:
    """Eval mode, batch norm as asked, every operation twice differentiable.

    Every module's mode is restored. Attention runs in the kernel written out in
    elementary operations: the fused ones have one derivative only.
    """
    modes = [(module, module.training) for module in model.modules()]
    fast = torch.backends.mha.get_fastpath_enabled()
    try:
        torch.backends.mha.set_fastpath_enabled(False)
        for module, _ in modes:
            batch = batch_norm != "running" and isinstance(module, _BATCH_NORMS)
            module.training = batch
        with sdpa_kernel(SDPBackend.MATH), _Smooth(), _without_checkpoints():
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        for module, training in modes:
            module.training = training


def piecewise_affine(model: nn.Module) -> bool:
    """Whether the trace is exact: known layers only, each used once, none shared.

    Looks at the traced graph of the forward pass; what it does not know, such as
    normalised weights, smooth activations or tied parameters, makes it say no.
    """
    if len(list(model.parameters())) != sum(
        len(list(m.parameters(recurse=False))) for m in model.modules()
    ):
        return False  # tied parameters are listed once by the model
    try:
        with measuring(model):
            nodes = list(fx.symbolic_trace(model).graph.nodes)
    except Exception:
        return False  # a forward that cannot be traced is not known
    called = [str(node.target) for node in nodes if node.op == "call_module"]
    mapped = [name for name in called if type(model.get_submodule(name)) in MAPS]
    return len(mapped) == len(set(mapped)) and all(_known(n, model) for n in nodes)


def _known(node: fx.Node, model: nn.Module) -> bool:
    if node.op == "call_module":
        layer = model.get_submodule(str(node.target))
        plain = getattr(layer, "padding_mode", "zeros") == "zeros"
        plain = plain and not isinstance(getattr(layer, "padding", 0), str)
        return plain and type(layer) in (*MAPS, *_PLAIN)
    if node.op == "call_function":
        return node.target in _FUNCTIONS
    if node.op == "call_method":
        return node.target in _METHODS
    return node.op in ("placeholder", "output")


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on the CPU or a GPU."""
    text = str(error).lower()
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(
        sign in text for sign in ("not enough memory", "can't allocate memory")
    )


def no_second_derivative(error: BaseException) -> UsageError:
    """An error of autograd in one line that names the operation."""
    first = str(error).splitlines()[0]
    found = re.search(r"derivative for '?(?:aten::)?_?(\w+?)(?:_backward)?\b", first)
    what = f"{found[1]} has none in torch" if found else first
    return UsageError(
        f"the Hessian needs second derivatives: {what}; replace that operation in the "
        "model"
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
    """Images in ``dtype``, and labels int64 or float64, once both are checked."""
    images = torch.as_tensor(problem.images)
    labels = torch.as_tensor(problem.labels)
    one_of("batch_norm", problem.batch_norm, STATISTICS)
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
    soft = labels.is_floating_point()
    if soft and not labels.isfinite().all():
        raise NumericalError("the labels hold NaN or infinity")
    if labels.ndim == 1 and not soft and int(labels.min()) < 0:
        raise UsageError("labels must be class numbers from 0")
    device = next(problem.model.parameters()).device
    # tensors of inference mode take no part in derivatives; copies do
    images, labels = (t.clone() if t.is_inference() else t for t in (images, labels))
    return images.to(dtype_like(images, dtype)), labels.to(
        device, torch.float64 if soft else torch.int64
    )


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


def additive(loss: Loss, logits: Tensor, labels: Tensor) -> str:
    """Empty for a mean over examples; else why it cannot be summed up over chunks.

    Raises:
        UsageError: It grows with the number of examples.
    """
    whole = float(loss(logits, labels))
    if abs(whole) < 1e-9:  # so small that nothing could be told apart
        logits = logits / logits.abs().max().clamp(min=1.0)
        whole = float(loss(logits, labels))
    try:
        twice = float(loss(torch.cat([logits] * 2), torch.cat([labels] * 2)))
        cuts = (slice(0, len(labels) // 2), slice(len(labels) // 2, None))
        parts = [
            float(loss(logits[c], labels[c])) * len(labels[c])
            for c in cuts[len(labels) < 2 :]
        ]
    except RuntimeError:
        return "the loss takes no other number of images"
    if not math.isclose(whole, twice, rel_tol=1e-6, abs_tol=1e-12):
        raise UsageError(
            f"the loss is no mean over examples: {whole:.6g}, and {twice:.6g} with "
            "every image twice; give it reduction='mean'"
        )
    same = math.isclose(whole, sum(parts) / len(labels), rel_tol=1e-6, abs_tol=1e-12)
    return "" if same else "the loss weighs examples by those beside them"


def mixer(model: nn.Module) -> str:
    """Names the layer that mixes images, as far as it can be seen."""
    for name, module in model.named_modules():
        statistics = getattr(module, "running_mean", module)
        if isinstance(module, _BATCH_NORMS) and statistics is None:
            return f"{name} has no running statistics"
    return "the model mixes images"


def _called(
    loss: nn.Module, held: dict[str, Any], logits: Tensor, labels: Tensor
) -> Tensor:
    return functional_call(loss, held, (logits, labels))


def _narrowed(loss: Loss, logits: Tensor, labels: Tensor) -> Tensor:
    return loss(logits.float(), labels).double()
