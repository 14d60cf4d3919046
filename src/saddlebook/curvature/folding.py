"""Batch norm in eval mode folded into the convolution before it, and its chain rule.

With d = 1/√(σ² + ε), the affine map of a channel makes of a convolution with weight W
one with
    W' = γ·d·W and bias b' = β − γ·d·μ.
Knows one such unit at a time; no network.
Legend: I and O channels; a dot marks the derivative along a vector.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from saddlebook.models import Block

_Named = Mapping[str, Tensor]


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
