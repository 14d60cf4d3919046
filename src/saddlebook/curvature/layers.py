"""Convolutions, ReLU and shortcuts of our ResNets, forward and back, without autograd.

Knows single layers; no network, no loss.
Legend: B images, I and O channels, D features; a dot marks the derivative along a
vector.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from saddlebook.models import Block

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


def spread(slope: Tensor, like: Tensor) -> Tensor:
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
