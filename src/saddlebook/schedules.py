"""Says what changes with the epoch: learning rate, re-weighting (DRW), SAM's radius.

References:
    Rangwani et al. 2022, released code; Cao et al. 2019 (deferred re-weighting).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from saddlebook.errors import UsageError


def learning_rate(epoch: int, *, lr: float, epochs: int, drw_epoch: int) -> float:
    """Learning rate of an epoch, 1-based.

    Five parts of warm-up in 40 (epochs 1 to 5 of 200), constant to ``drw_epoch``, a
    hundredth for the first half of the rest, a ten-thousandth for the second half.

    References:
        Released code: 0.1·e/5; 0.1; 0.001 from epoch 161; 0.00001 from epoch 181.
    """
    _check_epoch(epoch, epochs)
    warmup = max(1, epochs // 40)
    late = drw_epoch + (epochs - drw_epoch) // 2
    if epoch <= warmup:
        return lr * epoch / warmup
    if epoch <= drw_epoch:
        return lr
    return lr * (1e-2 if epoch <= late else 1e-4)


def cosine_rate(epoch: int, *, lr: float, epochs: int) -> float:
    """Half a cosine from ``lr`` in epoch 1 towards 0 after the last, no warm-up.

    References:
        Released scripts of the large sets: annealing over 90 epochs, set once an epoch.
    """
    _check_epoch(epoch, epochs)
    return lr * (1 + math.cos(math.pi * (epoch - 1) / epochs)) / 2


def reweighted(epoch: int, *, reweight: str, drw_epoch: int) -> bool:
    """Whether class weights are on in an epoch, 1-based: DRW starts after drw_epoch."""
    return reweight == "effective" or (reweight == "drw" and epoch > drw_epoch)


def radius(epoch: int, *, rho: float, sam_epochs: str, drw_epoch: int) -> float:
    """SAM's radius of an epoch, 1-based; constant, or before or after the switch."""
    if sam_epochs == "before":
        return rho if epoch <= drw_epoch else 0.0
    if sam_epochs == "after":
        return rho if epoch > drw_epoch else 0.0
    return rho


def stepped_radius(
    epoch: int, steps: Sequence[float], *, epochs: int, drw_epoch: int
) -> float:
    """SAM's radius of an epoch, 1-based, from the four of the large sets.

    The first for an eighteenth of all epochs (1 to 5 of 90), the second until
    ``drw_epoch`` (60), the third for half of the rest (to 75), then the fourth.

    References:
        Released scripts of the large sets, whose epochs these are.
    """
    _check_epoch(epoch, epochs)
    ends = (max(1, epochs // 18), drw_epoch, drw_epoch + (epochs - drw_epoch) // 2)
    return steps[sum(epoch > end for end in ends)]


def _check_epoch(epoch: int, epochs: int) -> None:
    if not 1 <= epoch <= epochs:
        raise UsageError(f"epoch {epoch} is not in 1 to {epochs}")
