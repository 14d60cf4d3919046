"""Crops, flips, normalises and resizes image tensors on the device they lie on.

Random numbers are made on the CPU as a pure function of (seed, epoch, sample index), so
that neither the batch size nor a resume nor the device changes them.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from saddlebook.errors import ResourceError, UsageError

# Channel statistics of the released training scripts (LDAM-DRW and Saddle-LongTail),
# for CIFAR-100 too.
MEAN = (0.4914, 0.4822, 0.4465)
STD = (0.2023, 0.1994, 0.2010)

_AUGMENT, _ORDER, _VIEWS = 0, 1, 2  # streams of random words
JITTER = 0.4  # brightness, contrast and saturation by up to this
_AREA, _RATIO = (0.08, 1.0), (3 / 4, 4 / 3)  # of a random box


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


def view_count(image_size: int) -> int:
    """Crops and flips that an image of that many pixels can have."""
    return 2 * (2 * padding(image_size) + 1) ** 2


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
    height, size = images.shape[-2:]
    if height != size:
        raise UsageError(f"crops and flips are of square images, not {height}×{size}")
    padded = F.pad(images, [padding(size)] * 4)
    windows = padded.unfold(2, size, 1).unfold(3, size, 1)
    sample = torch.arange(len(images), device=images.device)
    cropped = windows[sample, :, offsets[:, 0], offsets[:, 1]]
    return torch.where(flips[:, None, None, None], cropped.flip(-1), cropped)


def all_views(images: Tensor, most: int = 2**33) -> list[Tensor]:
    """All images training can make of each, every one as likely: 162 at 32 pixels.

    Args:
        images: uint8. [N, 3, H, W]
        most: Bytes that they may take as float32.

    Returns:
        A tensor [N, 3, H, W] per window, and mirrored.

    Raises:
        ResourceError: They would take more.
    """
    size = 4 * images.numel() * view_count(images.shape[-1])
    if size > most:
        raise ResourceError(
            f"all crops and flips of {len(images)} images take {size / 1e9:.1f} GB; "
            "take fewer images (--limit), or smaller ones (--image-size)"
        )
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


def normalise(
    images: Tensor,
    dtype: torch.dtype = torch.float32,
    statistics: Sequence[Sequence[float]] = (MEAN, STD),
) -> Tensor:
    """Scale uint8 ``[B, 3, H, W]`` to [0, 1], subtract the mean, divide by the std.

    Half precisions are computed in float32 and rounded once.
    """
    exact = dtype if dtype == torch.float64 else torch.float32
    mean, std = (
        torch.tensor(values, dtype=exact, device=images.device)[:, None, None]
        for values in statistics
    )
    return images.to(exact).div_(255).sub_(mean).div_(std).to(dtype)


def view_numbers(seed: int, epoch: int, step: int, count: int) -> Tensor:
    """Random numbers in [0, 1) for the views of one batch, float64 ``[count, 8]``."""
    key = np.array([seed, epoch], np.uint64)
    counter = np.array([0, 0, step, _VIEWS], np.uint64)
    words = np.random.Philox(key=key, counter=counter).random_raw(8 * count)
    numbers = (words >> np.uint64(11)).astype(np.float64) / 2**53
    return torch.from_numpy(numbers.reshape(count, 8))


def random_crops(images: Tensor, size: int, numbers: Tensor) -> Tensor:
    """A random box of each image at ``size`` pixels, half of them mirrored, jittered.

    Area and ratio as in torchvision's ``RandomResizedCrop``, factors as in its
    ``ColorJitter``, all images in a few operations. Different are: a box too wide or
    too high is cut, not drawn again; bilinear without antialiasing; brightness,
    contrast and saturation in this order, not in a random one.

    Args:
        images: uint8 ``[B, 3, S, S]``.
        size: Of the output.
        numbers: ``[B, 8]``: area, ratio, place (2), mirror, three factors.

    Returns:
        Floats from 0 to 255, of the type of ``numbers``. ``[B, 3, size, size]``
    """
    area = _AREA[0] + (_AREA[1] - _AREA[0]) * numbers[:, 0]
    low, high = np.log(_RATIO)
    ratio = (low + (high - low) * numbers[:, 1]).exp()
    w, h = ((area * ratio).sqrt().clamp(max=1), (area / ratio).sqrt().clamp(max=1))
    box = numbers.new_zeros(len(images), 2, 3)  # in units of half an image
    box[:, 0, 0] = w * torch.where(numbers[:, 4] < 0.5, -1.0, 1.0)
    box[:, 1, 1] = h
    box[:, :, 2] = (1 - torch.stack([w, h], 1)) * (2 * numbers[:, 2:4] - 1)
    grid = F.affine_grid(box, [len(images), 3, size, size], align_corners=False)
    pixels = images.to(numbers.dtype)
    crops = F.grid_sample(pixels, grid, padding_mode="border", align_corners=False)
    return jittered(crops, 1 + JITTER * (2 * numbers[:, 5:] - 1))


def jittered(pixels: Tensor, factors: Tensor) -> Tensor:
    """Brightness, contrast and saturation of pixels from 0 to 255.

    Args:
        pixels: ``[B, 3, H, W]``.
        factors: ``[B, 3]``, 1 changes nothing.
    """
    bright, contrast, colour = factors[:, :, None, None, None].unbind(1)
    pixels = (pixels * bright).clamp(0, 255)
    mean = _grey(pixels).mean((2, 3), keepdim=True)
    pixels = (mean + (pixels - mean) * contrast).clamp(0, 255)
    grey = _grey(pixels)
    return (grey + (pixels - grey) * colour).clamp(0, 255)


def _grey(pixels: Tensor) -> Tensor:
    weights = pixels.new_tensor((0.2989, 0.587, 0.114))[:, None, None]
    return (pixels * weights).sum(1, keepdim=True)


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
