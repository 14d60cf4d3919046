"""Says on which images a class is measured, and by which recurrence: a row per mode.

Legend: N images, V views of each.
"""

from __future__ import annotations

from itertools import product
from typing import NamedTuple

import torch
from torch import Tensor

from saddlebook.data import augment, crop_flip, normalise, padding

_STREAM = 2**32  # training draws its augmentations below this seed


class Mode(NamedTuple):
    """A way to measure one class.

    Attributes:
        label: For readers.
        images: ``clean``, ``all`` crops and flips, ``drawn`` once, or ``redrawn`` in
            every product.
        beta: Empty: the corrected recurrence. Else the released one, and whether it
            takes β ``before`` or ``after`` re-orthogonalisation.
        batch_norm: As in ``Problem``.
    """

    label: str
    images: str = "clean"
    beta: str = ""
    batch_norm: str = "running"


MODES = {
    "clean": Mode("fixed"),
    "augmented": Mode("all crops and flips", "all"),
    "frozen": Mode("drawn once", "drawn"),
    "batch_statistics": Mode("batch statistics", batch_norm="batch"),
    "as_published": Mode("as published", "redrawn", "before"),
    "redrawn": Mode("redrawn", "redrawn", "after"),
    "fixed_before": Mode("fixed, β before", beta="before"),
}


def inputs(
    mode: Mode, images: Tensor, labels: Tensor, seed: int, draws: int
) -> tuple[Tensor, Tensor]:
    """What the operator of a mode is made of, normalised, with labels. [V·N, 3, H, W]

    Args:
        mode: Of measurement.
        images: uint8. [N, 3, H, W]
        labels: [N]
        seed: Of the draws.
        draws: V, for ``drawn``.
    """
    if mode.images == "drawn":
        parts = [redraw(images, seed, draw, torch.float32) for draw in range(draws)]
    elif mode.images == "all":
        parts = [normalise(view) for view in views(images)]
    else:
        parts = [normalise(images)]
    return torch.cat(parts), labels.repeat(len(parts))


def redraw(images: Tensor, seed: int, draw: int, dtype: torch.dtype) -> Tensor:
    """Crops and flips number ``draw`` of uint8 images, normalised. [N, 3, H, W]"""
    indices = torch.arange(len(images))
    return normalise(augment(images, _STREAM + seed, draw, indices), dtype)


def views(images: Tensor) -> list[Tensor]:
    """All images training can make of each, every one as likely: 162 at 32 pixels.

    Args:
        images: uint8. [N, 3, H, W]

    Returns:
        A tensor [N, 3, H, W] per window, and mirrored.
    """
    places = range(2 * padding(images.shape[-1]) + 1)
    kinds = product(places, places, (False, True))
    count, device = len(images), images.device
    return [
        crop_flip(
            images,
            torch.tensor([[row, column]], device=device).expand(count, 2),
            torch.tensor([flip], device=device).expand(count),
        )
        for row, column, flip in kinds
    ]
