"""Multiplies by the Hessian of the project's own ResNets without autograd.

Knows the order of the layers of ``models.CifarResNet``. Activations and backward deltas
of the images do not depend on the vector: they are computed once (a ``Tape``) and kept
while memory allows. A product then differentiates both passes by hand along the vector:
a convolution costs one forward and one input gradient over twice the channels, and two
weight gradients.

Batch norm in eval mode is folded into the convolution before it. With d = 1/√(σ² + ε),
the affine map of a channel makes of a convolution with weight W one with
    W' = γ·d·W and bias b' = β − γ·d·μ.

Legend: n parameters, B images of a chunk, I and O channels, D features; a dot marks the
derivative along the vector.

References:
    Pearlmutter 1994 (the R-operator).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from saddlebook.curvature.lanczos import memory
from saddlebook.curvature.problem import Problem
from saddlebook.curvature.products import KEEP, Product
from saddlebook.errors import UsageError
from saddlebook.models import Block, CifarResNet

NHWC = torch.channels_last


class Turn(NamedTuple):
    """A convolution and its derivative, laid side by side to be applied in one go."""

    wide: Tensor  # (W, Ẇ) by input channel. [O, 2I, 3, 3]
    tall: Tensor  # (W, Ẇ) by output channel. [2O, I, 3, 3]
    bias: Tensor  # ḃ. [O]
    stride: int

    @classmethod
    def of(cls, weight: Tensor, dot: Tensor, bias: Tensor, stride: int) -> Turn:
        """From W and Ẇ [O, I, 3, 3] and ḃ [O]."""
        sides = (torch.cat([weight, dot], side) for side in (1, 0))
        wide, tall = (side.contiguous(memory_format=NHWC) for side in sides)
        return cls(wide, tall, bias, stride)

    def forward(self, dot: Tensor, x: Tensor) -> Tensor:
        """W·ẋ + Ẇ·x + ḃ as one convolution. [B, O, H', W']"""
        both = torch.cat([dot, x], 1)
        return F.conv2d(both, self.wide, self.bias, self.stride, 1)

    def backward(self, dot: Tensor, delta: Tensor, x: Tensor) -> Tensor:
        """Wᵀ·δ̇ + Ẇᵀ·δ as one convolution; x gives the shape. [B, I, H, W]"""
        return input_gradient(torch.cat([dot, delta], 1), x, self.tall, self.stride)


def through(delta: Tensor, output: Tensor) -> Tensor:
    """Back (or forward, they are the same) through the ReLU that gave ``output``."""
    return torch.ops.aten.threshold_backward(delta, output, 0)


def spread_evenly(slope: Tensor, like: Tensor) -> Tensor:
    """Gradient of the mean over positions: [B, D] to [B, D, H, W]."""
    share = slope.to(like.dtype) / (like.shape[2] * like.shape[3])
    return share[:, :, None, None].expand_as(like).contiguous(memory_format=NHWC)


def add_shortcut_gradient(delta: Tensor, joint: Tensor, block: Block) -> None:
    """Add to a block's input gradient what comes back through its shortcut."""
    channels = slice(block.pad, block.pad + delta.shape[1])
    delta[:, :, :: block.stride, :: block.stride] += joint[:, channels]


def input_gradient(delta: Tensor, x: Tensor, weight: Tensor, stride: int) -> Tensor:
    """Gradient of a 3×3 convolution in its input x. [B, I, H, W]"""
    return _gradients(delta, x, weight, stride, [True, False, False])[0]


def weight_gradient(x: Tensor, delta: Tensor, stride: int) -> Tensor:
    """Gradient of a 3×3 convolution in its weight. [O, I, 3, 3]"""
    weight = x.new_empty((delta.shape[1], x.shape[1], 3, 3))
    shaped = weight.contiguous(memory_format=NHWC)
    return _gradients(delta, x, shaped, stride, [False, True, False])[1]


def _gradients(
    delta: Tensor, x: Tensor, weight: Tensor, stride: int, mask: list[bool]
) -> tuple[Tensor, Tensor, Tensor]:
    one = [1, 1]
    return torch.ops.aten.convolution_backward(
        delta, x, weight, None, [stride] * 2, one, one, False, [0, 0], 1, mask
    )


class Unit(NamedTuple):
    """A convolution and the batch norm behind it, by the names of their parameters."""

    conv: str
    gamma: str
    beta: str
    stride: int
    mean: Tensor  # μ. [O]
    var: Tensor  # σ². [O]
    eps: float

    @property
    def scale(self) -> Tensor:
        """The factor d = 1/√(σ² + ε). [O]"""
        return (self.var + self.eps).rsqrt()

    def stock(self, now: _Named, x: Tensor) -> Tensor:
        """The two layers as they stand, unfolded. [B, I, H, W] → [B, O, H', W']"""
        out = F.conv2d(x, now[self.conv], None, self.stride, 1)
        stats = self.mean, self.var, now[self.gamma], now[self.beta]
        return F.batch_norm(out, *stats, training=False, eps=self.eps)

    def folded(self, now: _Named) -> Tensor:
        """Weight W'. [O, I, 3, 3]"""
        return _rows(now[self.gamma] * self.scale) * now[self.conv]

    def turned(self, now: _Named, dot: _Named) -> tuple[Tensor, Tensor]:
        """Ẇ' = d·(γ·Ẇ + γ̇·W) and ḃ' = β̇ − γ̇·d·μ."""
        old, new = now[self.gamma] * self.scale, dot[self.gamma] * self.scale
        weight = _rows(old) * dot[self.conv] + _rows(new) * now[self.conv]
        return weight, dot[self.beta] - new * self.mean

    def unfolded(
        self, now: _Named, dot: _Named, slope: Tensor, weight: Tensor, bias: Tensor
    ) -> dict[str, Tensor]:
        """Product in (W, γ, β) from that in (W', b').

        W' is bilinear in W and γ, so the plain gradient in W' enters as well.

        Args:
            now: Parameters by name.
            dot: The vector, by name.
            slope: Gradient in W'. [O, I, 3, 3]
            weight: Its derivative along the vector. [O, I, 3, 3]
            bias: The same of the gradient in b'. [O]
        """
        old, new = now[self.gamma] * self.scale, dot[self.gamma] * self.scale
        inner = (weight * now[self.conv] + slope * dot[self.conv]).flatten(1).sum(1)
        return {
            self.conv: _rows(old) * weight + _rows(new) * slope,
            self.gamma: self.scale * (inner - bias * self.mean),
            self.beta: bias,
        }


def units(model: nn.Module, fixed: _Named) -> list[Unit]:
    """Every convolution of a ``CifarResNet`` with its batch norm, as the forward goes.

    Args:
        model: The network.
        fixed: Its buffers by name, in the precision wanted.
    """
    return [_unit(model, fixed, *names) for names in _names(model)]


def _names(model: nn.Module) -> Iterator[tuple[str, str]]:
    yield "conv1", "bn1"
    for name, module in model.named_modules():
        if isinstance(module, Block):
            yield f"{name}.conv1", f"{name}.bn1"
            yield f"{name}.conv2", f"{name}.bn2"


def _unit(model: nn.Module, fixed: _Named, conv: str, norm: str) -> Unit:
    layer, affine = model.get_submodule(conv), model.get_submodule(norm)
    assert isinstance(layer, nn.Conv2d)
    assert isinstance(affine, nn.BatchNorm2d)
    mean, var = (fixed[f"{norm}.running_{what}"] for what in ("mean", "var"))
    names = f"{conv}.weight", f"{norm}.weight", f"{norm}.bias"
    return Unit(*names, layer.stride[0], mean, var, affine.eps)


def _rows(factor: Tensor) -> Tensor:
    """[O] to [O, 1, 1, 1]: one factor an output channel."""
    return factor[:, None, None, None]


_Named = dict[str, Tensor]


class Tape(NamedTuple):
    """What a product needs of one chunk and no vector changes."""

    inputs: list[Tensor]  # of every unit, and the last block's output. [B, I, H, W]
    deltas: list[Tensor]  # loss gradients at every folded unit. [B, O, H', W']
    leaves: tuple[Tensor, ...]  # features [B, D] and head parameters, float64
    slopes: tuple[Tensor, ...]  # loss gradients in them, differentiable


class ResNetProduct(Product):
    """H·v of a ``CifarResNet`` in eval mode, all of whose parameters are trained.

    Args:
        problem: Whose Hessian.
        dtype: Of parameters and vectors.
        keep: Bytes of tapes to keep; None: 1 GiB, and more while a quarter of the
            device's memory stays free.
        inner: Of the tapes and convolutions of a product; None is ``dtype``.
        taped: In which tapes are made, before they are rounded to ``inner``; None is
            ``dtype``.
        like: As in ``Product``.
    """

    def __init__(
        self,
        problem: Problem,
        dtype: torch.dtype = torch.float32,
        keep: int | None = None,
        inner: torch.dtype | None = None,
        taped: torch.dtype | None = None,
        like: Product | None = None,
    ) -> None:
        super().__init__(problem, dtype, KEEP if keep is None else keep, like)
        self.roomy = keep is None
        self.inner = inner or dtype
        finer = None if taped == dtype else taped
        self._maker = (
            ResNetProduct(problem, finer, keep=0, like=self) if finer else None
        )
        self.now = {name: p.detach() for name, p in self.params.items()}
        self.blocks = [
            block for block in problem.model.modules() if isinstance(block, Block)
        ]
        self.head = [name for name in self.now if name.startswith("linear.")]
        self.units = units(problem.model, self.fixed)
        self.weights = [self._narrow(unit.folded(self.now)) for unit in self.units]
        self._slopes: _Named | None = None

    def __call__(self, vector: Tensor) -> Tensor:
        """H·vector in ``dtype``. [n] → [n]"""
        dot = self._named(vector.to(self.device, self.dtype))
        if self._slopes is None:
            self._slopes = self._named(self._summed(self._slope))
        turns = [self._turn(i, dot) for i in range(len(self.units))]
        head = tuple(dot[name].double() for name in self.head)
        turned = self._summed(lambda piece: self._turned(piece, turns, head))
        return self._unfolded(self._named(turned), dot)

    def _over(self, images: Tensor, labels: Tensor) -> Self:
        other = super()._over(images, labels)
        other._slopes = None
        if maker := self._maker:
            other._maker = maker._over(images.to(maker.dtype), labels)
        return other

    def _named(self, vector: Tensor) -> _Named:
        return dict(zip(self.now, self.split(vector), strict=True))

    def _narrow(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.inner).contiguous(memory_format=NHWC)

    def _turn(self, i: int, dot: _Named) -> Turn:
        weight, bias = self.units[i].turned(self.now, dot)
        stride = self.units[i].stride
        return Turn.of(
            self.weights[i], self._narrow(weight), bias.to(self.inner), stride
        )

    def _unfolded(self, turned: _Named, dot: _Named) -> Tensor:
        assert self._slopes is not None
        result = dict(turned)
        for unit in self.units:
            slope, pair = (
                self._slopes[unit.conv],
                (turned[unit.conv], turned[unit.beta]),
            )
            result |= unit.unfolded(self.now, dot, slope, *pair)
        return self.join(tuple(result.values()))

    def _slope(self, piece: slice) -> Tensor:
        """This chunk's share of the gradient in folded coordinates, γ left 0. [n]"""
        tape = self._tape(piece)
        found = dict(zip(self.head, tape.slopes[1:], strict=True))
        for i, unit in enumerate(self.units):
            weight = weight_gradient(tape.inputs[i], tape.deltas[i], unit.stride)
            self._store(found, unit, weight, tape.deltas[i])
        return self._gathered(found)

    def _store(self, found: _Named, unit: Unit, weight: Tensor, delta: Tensor) -> None:
        found[unit.conv] = weight
        found[unit.beta] = delta.sum((0, 2, 3), dtype=self.dtype)

    def _gathered(self, found: _Named) -> Tensor:
        found = {u.gamma: torch.zeros_like(u.scale) for u in self.units} | found
        ordered = (found[name].detach() for name in self.now)
        return self.join(tuple(part.to(self.dtype) for part in ordered))

    def _tape(self, piece: slice) -> Tape:
        tape = self._kept.get(piece.start)
        if tape is None:
            tape = self._rounded(piece) if self._maker else self._record(piece)
            size = sum(t.nbytes for t in (*tape.inputs, *tape.deltas))
            if self._has_room(size, piece):
                self._kept[piece.start] = tape
        return tape

    def _has_room(self, size: int, piece: slice) -> bool:
        """Whether a chunk's tape of ``size`` bytes may stay, after those before it."""
        if size * piece.stop <= self.keep * (piece.stop - piece.start):
            return True
        free, total = memory(self.device)
        return self.roomy and self.keep > 0 and free - size > total / 4

    def _rounded(self, piece: slice) -> Tape:
        """A tape made in ``taped``, rounded to ``inner``."""
        assert self._maker is not None
        tape = self._maker._record(piece)
        return tape._replace(
            inputs=[self._narrow(t) for t in tape.inputs],
            deltas=[self._narrow(t) for t in tape.deltas],
        )

    @torch.no_grad()
    def _record(self, piece: slice) -> Tape:
        """Stock forward pass, head and loss in float64, deltas down to the stem."""
        acts = self._forward(
            self.images[piece].to(self.device),
            lambda i, x: self.units[i].stock(self.now, x),
            lambda _, x: F.relu(x),
        )
        leaves, slopes = self._head_slopes(acts[-1], piece)
        inputs = [self._narrow(a) for a in acts]
        deltas = [inputs[0]] * len(self.units)

        def step(i: int, delta: Tensor) -> Tensor:
            deltas[i] = delta
            stride = self.units[i].stride
            at = delta, inputs[i], self.weights[i], stride
            return input_gradient(*at) if i else delta

        self._backward(spread_evenly(slopes[0], inputs[-1]), inputs, step)
        return Tape(inputs, deltas, leaves, slopes)

    def _head_slopes(
        self, last: Tensor, piece: slice
    ) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Features and head parameters, and the loss's slopes in them, in float64."""
        features = last.double().mean((2, 3)).requires_grad_()
        head = {name: self.now[name].double().requires_grad_() for name in self.head}
        leaves = (features, *head.values())
        inner = {name.removeprefix("linear."): p for name, p in head.items()}
        share = (piece.stop - piece.start) / len(self.labels)
        with torch.enable_grad():
            linear = self.problem.model.get_submodule("linear")
            logits = functional_call(linear, inner, (features,))
            loss = share * self.loss(logits, self.labels[piece])
            return leaves, torch.autograd.grad(loss, leaves, create_graph=True)

    @torch.no_grad()
    def _turned(
        self, piece: slice, turns: list[Turn], head: tuple[Tensor, ...]
    ) -> Tensor:
        """This chunk's share of the folded gradient's derivative along the vector."""
        tape = self._tape(piece)
        dots = self._forward(
            torch.zeros_like(tape.inputs[0]),
            lambda i, x: turns[i].forward(x, tape.inputs[i]),
            lambda i, x: through(x, tape.inputs[i]),
        )
        features = dots[-1].double().mean((2, 3))
        top = torch.autograd.grad(
            tape.slopes, tape.leaves, (features, *head),
            retain_graph=True, materialize_grads=True,
        )  # fmt: skip
        found = dict(zip(self.head, top[1:], strict=True))

        def step(i: int, delta: Tensor) -> Tensor:
            unit, inputs, old = self.units[i], tape.inputs[i], tape.deltas[i]
            weight = weight_gradient(inputs, delta, unit.stride)
            if i:
                weight += weight_gradient(dots[i], old, unit.stride)
            self._store(found, unit, weight, delta)
            return turns[i].backward(delta, old, inputs) if i else delta

        self._backward(spread_evenly(top[0], tape.inputs[-1]), tape.inputs, step)
        return self._gathered(found)

    def _forward(
        self,
        images: Tensor,
        step: Callable[[int, Tensor], Tensor],
        gate: Callable[[int, Tensor], Tensor],
    ) -> list[Tensor]:
        """Inputs of all units and the last output; ``step`` is a unit, then a gate."""
        acts = [images, gate(1, step(0, images))]
        for number, block in enumerate(self.blocks):
            i = 2 * number + 1
            acts.append(gate(i + 1, step(i, acts[i])))
            joint = step(i + 1, acts[i + 1]) + block.shortcut(acts[i])
            acts.append(gate(i + 2, joint))
        return acts

    def _backward(
        self, delta: Tensor, inputs: list[Tensor], step: Callable[[int, Tensor], Tensor]
    ) -> None:
        """Walk from the last output to the stem; ``step`` takes a unit's output delta
        and returns that of its input.
        """
        for number in reversed(range(len(self.blocks))):
            i = 2 * number + 1
            joint = through(delta, inputs[i + 2])
            middle = through(step(i + 1, joint), inputs[i + 1])
            delta = step(i, middle)
            add_shortcut_gradient(delta, joint, self.blocks[number])
        step(0, through(delta, inputs[1]))


def best_product(
    problem: Problem,
    dtype: torch.dtype,
    inner: torch.dtype | None = None,
    like: Product | None = None,
) -> Product:
    """The cheapest correct product: by hand for our networks, else by autograd.

    Args:
        problem: Whose Hessian.
        dtype: Of vectors and parameters.
        inner: Of the convolutions; other than ``dtype`` for our networks only.
        like: As in ``Product``.

    Raises:
        UsageError: ``inner`` is asked for a network that is not ours.
    """
    if known(problem):
        return ResNetProduct(problem, dtype, inner=inner, like=like)
    if inner not in (None, dtype):
        raise UsageError("bfloat16 products are made for saddlebook's ResNets only")
    return Product(problem, dtype, like=like)


def known(problem: Problem) -> bool:
    """Whether the network is one of ours, wholly trained, with running statistics."""
    model = problem.model
    if type(model) is not CifarResNet or problem.batch_norm != "running":
        return False
    blocks = [block for block in model.modules() if isinstance(block, Block)]
    # an odd width makes shortcuts that add by broadcasting
    even = all(b.conv2.out_channels == b.conv1.in_channels + 2 * b.pad for b in blocks)
    return even and all(p.requires_grad for p in model.parameters())
