"""Multiplies vectors by the Hessian of a network's mean loss over fixed images.

Knows a module, a loss and tensors; neither Lanczos nor data sets. The model is never
changed: parameters and buffers are passed to it as copies.

Legend: n parameters, N images, C classes.

References:
    Pearlmutter 1994 (exact products); the cost of each formulation is measured in
    ``benchmarks/hessian.py``.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator
from typing import Any, Self

import torch
from torch import Tensor
from torch.func import functional_call

from saddlebook.curvature.problem import (
    BATCH,
    Loss,
    Problem,
    additive,
    copies,
    dtype_like,
    float64_loss,
    inputs,
    measuring,
    mixer,
    no_second_derivative,
    out_of_memory,
    picked,
)
from saddlebook.errors import NumericalError, ResourceError, UsageError

CHUNK = 50  # images: the working set stays near the caches, memory is flat
_FEW = 8  # images on which mixing is looked for
KEEP = 2**30  # bytes that are kept between products


class Product:
    """H·v by double backward, for any module; graphs are kept while memory allows.

    Args:
        problem: Whose Hessian.
        dtype: Of parameters, images and products. The loss is float64 in any case:
            1 − p of a memorised image would lose its digits.
        keep: Bytes of graphs to keep; beyond it a graph is built for each product.
        like: A product of the same model and loss over these images or more: what was
            checked for it holds here.

    Raises:
        UsageError: Shapes, labels or a loss that do not fit.
        NumericalError: A weight, image or logit is not finite.
    """

    def __init__(
        self,
        problem: Problem,
        dtype: torch.dtype = torch.float32,
        keep: int = KEEP,
        like: Product | None = None,
    ) -> None:
        self.problem, self.dtype, self.keep = problem, dtype, keep
        self.params, self.fixed = copies(problem.model, dtype)
        self.shapes = [p.shape for p in self.params.values()]
        self.size = sum(shape.numel() for shape in self.shapes)
        self.device = next(iter(self.params.values())).device
        self.images, self.labels = inputs(problem, dtype)
        self._bytes: int | None = None
        self._kept: dict[int, Any] = {}  # what chunks need again, by first image
        # why all images must be one chunk; empty where chunks add up
        self.whole: str = like.whole if like else self._dependence()
        self.chunk = self._chunk()
        self.loss: Loss = like.loss if like else self._checked_loss()

    def __call__(self, vector: Tensor) -> Tensor:
        """H·vector in ``dtype``. [n] → [n]"""
        parts = self.split(vector.to(self.device, self.dtype))
        return self._summed(lambda piece: self._piece(piece, parts))

    def on(self, images: Tensor) -> Self:
        """The same product over other images with the same labels. [N, ...]"""
        return self._over(images.to(dtype_like(images, self.dtype)), self.labels)

    def first(self, count: int) -> Self:
        """The product over the first ``count`` images, or over all of one chunk."""
        if self.whole or count >= len(self.labels):
            return self
        return self._over(self.images[:count], self.labels[:count])

    def _over(self, images: Tensor, labels: Tensor) -> Self:
        other = copy.copy(self)
        other.images, other.labels, other._kept = images, labels, {}
        return other

    def forget(self) -> None:
        """Free what is kept between products."""
        self._kept.clear()

    def gradient(self) -> Tensor:
        """Gradient of the mean loss, in ``dtype``. [n]"""
        return self._summed(lambda piece: self.join(self._gradient(piece)))

    @torch.no_grad()
    def logits(self, shift: Tensor | None = None) -> Tensor:
        """Outputs at the weights, or at weights + shift. [N, C], float64."""
        params: dict[str, Tensor] = self.params
        if shift is not None:
            parts = self.split(shift.to(self.device, self.dtype))
            moved = zip(params.items(), parts, strict=True)
            params = {name: p + step for (name, p), step in moved}
        return torch.cat([self.outputs(piece, params) for piece in self.pieces()])

    def value(self, shift: Tensor | None = None) -> float:
        """Mean loss at the weights, or at weights + shift, in nats."""
        return float(self.loss(self.logits(shift), self.labels))

    def split(self, vector: Tensor) -> list[Tensor]:
        """A vector [n] as tensors of the parameters' shapes."""
        flat = vector.split([shape.numel() for shape in self.shapes])
        return [v.view(shape) for v, shape in zip(flat, self.shapes, strict=True)]

    def join(self, tensors: tuple[Tensor, ...]) -> Tensor:
        """Tensors of the parameters' shapes as one vector [n]."""
        return torch.cat([t.reshape(-1) for t in tensors])

    def pieces(self) -> Iterator[slice]:
        """Slices of the images, a chunk each."""
        count = len(self.labels)
        for start in range(0, count, self.chunk):
            yield slice(start, min(start + self.chunk, count))

    def _summed(self, piece: Callable[[slice], Tensor]) -> Tensor:
        """Sum over chunks; out of memory halves the chunk and starts again."""
        while True:
            try:
                total = torch.zeros(self.size, dtype=self.dtype, device=self.device)
                for part in self.pieces():
                    total += piece(part)
                return total
            except (RuntimeError, MemoryError) as error:
                if not out_of_memory(error):
                    raise
            self._shrink()

    def _shrink(self) -> None:
        if self.chunk == 1 or self.whole:
            why = self.whole and f" ({self.whole}: not in parts)"
            raise ResourceError(
                f"out of memory with {self.chunk} images at a time{why}; free some "
                "memory or take fewer images"
            )
        self.chunk, self.keep = (self.chunk + 1) // 2, 0
        self._kept.clear()

    def _piece(self, piece: slice, parts: list[Tensor]) -> Tensor:
        """This chunk's share of H·v."""
        gradient = self._kept.get(piece.start) or self._gradient(piece, graph=True)
        keep = self._may_keep(piece)
        if keep:
            self._kept[piece.start] = gradient
        with _second_derivatives():
            return self.join(
                torch.autograd.grad(
                    gradient, tuple(self.params.values()), parts,
                    retain_graph=keep, materialize_grads=True,
                )
            )  # fmt: skip

    def _may_keep(self, piece: slice) -> bool:
        return self.keep > 0 and piece.stop * self._graph_bytes() <= self.keep

    def _graph_bytes(self) -> int:
        """Bytes that the graph of one image's gradient keeps alive, about.

        Measured: twice what the forward pass saves, for all our networks.
        """
        if self._bytes is None:
            saved: dict[int, int] = {}
            own = {p.untyped_storage().data_ptr() for p in self.params.values()}

            def note(tensor: Tensor) -> Tensor:
                storage = tensor.untyped_storage()
                saved[storage.data_ptr()] = storage.nbytes()
                return tensor.detach()  # the tensor itself would be a cycle

            few = slice(0, 2 if self.whole else 1)
            hooks = torch.autograd.graph.saved_tensors_hooks(note, lambda t: t)
            with torch.enable_grad(), hooks:
                logits = self.outputs(few)
            total = sum(size for key, size in saved.items() if key not in own)
            self._bytes = 2 * total // len(logits)
        return self._bytes

    def _gradient(self, piece: slice, graph: bool = False) -> tuple[Tensor, ...]:
        """This chunk's share of the gradient, one tensor a parameter."""
        with torch.enable_grad():
            logits = self.outputs(piece)
            share = (piece.stop - piece.start) / len(self.labels)
            loss = share * self.loss(logits, self.labels[piece])
            with _second_derivatives():
                return torch.autograd.grad(
                    loss, tuple(self.params.values()),
                    create_graph=graph, materialize_grads=True,
                )  # fmt: skip

    def outputs(self, piece: slice, params: dict[str, Tensor] | None = None) -> Tensor:
        """Outputs for one chunk, differentiable, in float64. [B, C]"""
        params = params or self.params
        model = self.problem.model
        fixed = self.fixed
        if self.problem.batch_norm != "running":  # averages are updated
            fixed = {name: tensor.clone() for name, tensor in fixed.items()}
        images = self.images[piece].to(self.device)
        with measuring(model, self.problem.batch_norm):
            found = functional_call(model, params | fixed, (images,))
        return picked(found, self.problem.output).double()

    def _chunk(self) -> int:
        count, most = len(self.labels), self.problem.batch_size or CHUNK
        if self.problem.batch_norm == "batches":
            most = BATCH
        elif self.whole:
            most = count
        return min(most, count)

    def _dependence(self) -> str:
        if self.problem.batch_norm != "running":
            return "batch statistics"
        return self._mixing(min(len(self.labels), _FEW))

    def _mixing(self, count: int) -> str:
        """Names what makes an image's output depend on the images beside it."""
        try:
            return mixer(self.problem.model) if self._mixes(count) else ""
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
        return self._mixing(count // 2) if count > 3 else ""

    @torch.no_grad()
    def _mixes(self, count: int) -> bool:
        """Whether a few images' outputs are others in two halves."""
        whole = self._tried(slice(0, count))
        if count < 2 or not torch.equal(whole, self._tried(slice(0, count))):
            return False  # a random forward is found later
        middle = count // 2
        try:
            halves = [
                self.outputs(slice(0, middle)),
                self.outputs(slice(middle, count)),
            ]
        except ValueError:  # batch norm over a single value
            return True
        away = (whole - torch.cat(halves)).abs().max()
        return bool(away > torch.finfo(self.dtype).eps ** 0.4 * whole.abs().max())

    def _checked_loss(self) -> Loss:
        """In float64: of outputs finite and enough, and a mean over examples."""
        logits, labels = self._first_logits(), self.labels
        if not logits.isfinite().all():
            raise NumericalError("the model's outputs hold NaN or infinity")
        count, soft = logits[0].numel(), labels.is_floating_point()
        if soft and labels.ndim == 1 and count > 1:
            raise UsageError("labels must be class numbers from 0, or soft [N, C]")
        told = labels[labels != getattr(self.problem.loss, "ignore_index", -100)]
        if not soft and count > 1 and (told >= logits.shape[1]).any():
            most = int(told.max())
            raise UsageError(f"label {most} needs more than {logits.shape[1]} outputs")
        loss = float64_loss(self.problem.loss, logits, labels)
        if how := additive(loss, logits, labels):
            if self.problem.batch_norm == "batches":
                raise UsageError(f"{how}: no sum over batches")
            self.whole = self.whole or how
            self.chunk = self._chunk()
        return loss

    def _first_logits(self) -> Tensor:
        try:
            return self.logits()
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
        self._shrink()
        return self._first_logits()

    def _tried(self, few: slice) -> Tensor:
        """Outputs of a few images, or what the model does not take."""
        try:
            return self.outputs(few)
        except (RuntimeError, ValueError) as error:
            if out_of_memory(error) or isinstance(error, UsageError):
                raise
            shape = tuple(self.images.shape[1:])
            raise UsageError(
                f"the model refuses images of shape {shape}: "
                f"{str(error).splitlines()[0]}"
            ) from error


@contextlib.contextmanager
def _second_derivatives() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        if out_of_memory(error):
            raise
        raise no_second_derivative(error) from error
