"""Crops, flips, normalises and resizes image tensors on the device they lie on.

Random numbers are made on the CPU as a pure function of (seed, epoch, sample index), so
that neither the batch size nor a resume nor the device changes them.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from saddlebook.errors import UsageError

# Channel statistics of the released training scripts (LDAM-DRW and Saddle-LongTail),
# for CIFAR-100 too.
MEAN = (0.4914, 0.4822, 0.4465)
STD = (0.2023, 0.1994, 0.2010)

_AUGMENT, _ORDER = 0, 1  # streams of random words


class EpochPlan(NamedTuple):
    """The random numbers of one epoch, on the CPU.

    Attributes:
        order: int64 ``[N]``, the samples in the order they are visited.
        offsets: int64 ``[N, 2]``, row and column of each sample's crop in the padded
            image, 0 to 2·padding; by sample index, not by position in the order.
        flips: bool ``[N]``, by sample index.
    """

    order: Tensor
    offsets: Tensor
    flips: Tensor


def epoch_plan(seed: int, epoch: int, count: int, image_size: int) -> EpochPlan:
    """Order, crops and flips of one epoch, from (seed, epoch, sample index) alone.

    Drawn from the raw words of a counter-based generator (Philox 4×64; Salmon et al.
    2011), a stream that NumPy keeps fixed across versions and machines. A sample's
    crop and flip do not depend on ``count``.
    """
    offsets, flips = _crops(seed, epoch, np.arange(count), image_size)
    return EpochPlan(epoch_order(seed, epoch, count), offsets, flips)


def epoch_order(seed: int, epoch: int, count: int) -> Tensor:
    """Order in which an epoch visits ``count`` samples, int64 ``[count]``."""
    return torch.from_numpy(
        np.argsort(_words(seed, epoch, _ORDER, count), kind="stable")
    )


def _crops(
    seed: int, epoch: int, indices: NDArray[np.int64], image_size: int
) -> tuple[Tensor, Tensor]:
    words = _words(seed, epoch, _AUGMENT, int(indices.max(initial=-1)) + 1)[indices]
    choices = np.uint64(2 * padding(image_size) + 1)
    low = np.uint64(2**24 - 1)
    rows, columns = ((words >> np.uint64(s)) & low for s in (0, 24))
    offsets = np.stack([rows, columns], 1) * choices >> np.uint64(24)
    flips = (words >> np.uint64(63)).astype(np.bool_)
    return torch.from_numpy(offsets.astype(np.int64)), torch.from_numpy(flips)


def _words(seed: int, epoch: int, stream: int, count: int) -> NDArray[np.uint64]:
    key = np.array([seed, epoch], np.uint64)
    counter = np.array([0, 0, 0, stream], np.uint64)
    return np.random.Philox(key=key, counter=counter).random_raw(count)


def padding(image_size: int) -> int:
    """Zero pixels around an image before cropping: 4 at 32 pixels, in proportion."""
    return max(1, image_size // 8)


def augment(images: Tensor, seed: int, epoch: int, indices: Tensor) -> Tensor:
    """Random crop after zero padding and horizontal flip with probability 1/2.

    Args:
        images: uint8 ``[B, 3, H, H]``, before normalisation.
        seed: Of the training run.
        epoch: Number of the epoch.
        indices: int64 ``[B]``, index of each image in the training set.
    """
    offsets, flips = _crops(seed, epoch, indices.cpu().numpy(), images.shape[-1])
    return crop_flip(images, offsets.to(images.device), flips.to(images.device))


def crop_flip(images: Tensor, offsets: Tensor, flips: Tensor) -> Tensor:
    """Pad with zeros, cut a window at each offset, mirror where asked, in one gather.

    Args:
        images: ``[B, C, H, H]``.
        offsets: int64 ``[B, 2]`` on the same device, row and column, 0 to 2·padding.
        flips: bool ``[B]`` on the same device.
    """
    size = images.shape[-1]
    padded = F.pad(images, [padding(size)] * 4)
    windows = padded.unfold(2, size, 1).unfold(3, size, 1)
    sample = torch.arange(len(images), device=images.device)
    cropped = windows[sample, :, offsets[:, 0], offsets[:, 1]]
    return torch.where(flips[:, None, None, None], cropped.flip(-1), cropped)


def normalise(images: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Scale uint8 ``[B, 3, H, W]`` to [0, 1], subtract MEAN and divide by STD.

    Half precisions are computed in float32 and rounded once.
    """
    exact = dtype if dtype == torch.float64 else torch.float32
    mean, std = (
        torch.tensor(values, dtype=exact, device=images.device)[:, None, None]
        for values in (MEAN, STD)
    )
    return images.to(exact).div_(255).sub_(mean).div_(std).to(dtype)


def resize(images: Tensor, size: int) -> Tensor:
    """Box average of uint8 ``[N, 3, H, H]`` to ``size`` pixels, rounded half up.

    A size that is a multiple of H repeats pixels instead. Integer arithmetic: the same
    on every machine.

    Raises:
        UsageError: Neither size divides the other.
    """
    old = images.shape[-1]
    if size == old:
        return images
    if size > 0 and size % old == 0:
        times = size // old
        return images.repeat_interleave(times, 2).repeat_interleave(times, 3)
    if size <= 0 or old % size:
        raise UsageError(
            f"image_size {size} does not fit images of {old} pixels; use a divisor or "
            "a multiple"
        )
    box = old // size
    boxes = images.unfold(2, box, box).unfold(3, box, box)
    total = boxes.sum((-2, -1), dtype=torch.int32)
    return ((total + box * box // 2) // (box * box)).to(torch.uint8)
