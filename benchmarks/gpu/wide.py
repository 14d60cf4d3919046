"""Lets several runs share each convolution: one network, as many times as wide.

Made for CUDA, where a convolution of 16 channels takes as long as one of 64. Training
does not use it yet; ``benchmarks/gpu/probe.py`` times it beside the lanes of today.

The wide network reads [N, G·C, H, W]. Its convolutions [G·O, G·I, 3, 3] are zero but
for G blocks on the diagonal, one a run, so no channel of a run sees another run; batch
norm over G·C channels is each run's own. The G losses depend on disjoint weights, so
one backward pass of all of them gives each run its own gradient. What a run is stays in
its flat tensors: its weights are copied into the blocks before each pass, its gradient
is copied out of them after it.

Always G places, idle ones zero: the kernels then are the same whoever is there, zeros
add exactly, and the bits of a run depend neither on its place nor on the others. They
are not those of the run in a lane by itself. A run that holds NaN spoils its pack: 0
times NaN is NaN.

Beside it stands another saving for CUDA, also only timed: a test pass of fewer and
larger kernels, batch norms folded into the convolutions (``folded_logits``).

Legend: G places of a pack, R ≤ G runs in it, N images, C channels, H and W height and
width, P parameters of a run, K of them in convolutions or in batch norms.
"""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import fuse_conv_bn_eval

from saddlebook.errors import UsageError
from saddlebook.models import Block, CifarResNet
from saddlebook.optim import frozen_statistics
from saddlebook.train.optimizers import Replica
from saddlebook.train.run import Lane

_STEM = 16  # channels of a run's images, 3 and zeros: tensor cores take 16 at a time
# Of a folded test pass at a time: four times ``Replica.logits`` on CUDA
_PIXELS = {"cpu": 100_000, "cuda": 10_240_000}


class Pack:
    """Lanes that take their steps together.

    Args:
        lanes: R lanes of one shape, one optimizer (``sgd`` or ``sam``) and one
            precision. Losses, heads, learning rates and radii may differ.
        places: G.

    Raises:
        UsageError: Too many lanes, or lanes that cannot share their convolutions.
    """

    def __init__(self, lanes: Sequence[Lane], places: int = 4) -> None:
        if not 1 <= len(lanes) <= places:
            raise UsageError(f"{len(lanes)} runs do not fit a pack of {places}")
        _check(lanes)
        self.lanes, self.places = list(lanes), places
        self._replicas = [lane.replica for lane in lanes]
        first = self._replicas[0]
        narrow, self._network = _network(first), _widened(_network(first), places)
        products, norms = _weight_slots(narrow, self._network)
        statistics = _statistics_slots(narrow, self._network)
        like, fits = first.weights, (places, len(lanes))
        half = like.bfloat16() if first.autocast else like
        self._parts = _Part(products, *fits, half), _Part(norms, *fits, like)
        for part in self._parts:
            part.give_parameters()
        self._statistics = _Part(statistics, *fits, like)
        self._statistics.give_buffers()

    def step(self, size: int) -> None:
        """One optimizer step of each lane on its next ``size`` images.

        Raises:
            UsageError: SAM climbs in some lanes only.
        """
        _check(self.lanes)
        images, labels = self._batches(size)
        statistics = [replica.statistics for replica in self._replicas]
        self._statistics.put(statistics)
        losses = self._pass(images, labels)
        if self._replicas[0].optimizer == "sam" and self.lanes[0].hyper.ascend:
            self._climb(images, labels)
        self._statistics.take(self._statistics.flat, statistics)
        for lane, loss in zip(self.lanes, losses, strict=True):
            lane.replica._update(lane.hyper)
            lane.total += loss * size
            lane.place += size

    def _batches(self, size: int) -> tuple[Tensor, list[Tensor]]:
        """Images [N, 16·G, H, W], channels last, and the labels of each run [N]."""
        images, labels = [], []
        for lane in self.lanes:
            rows = lane.place + torch.arange(size, device=lane.place.device)
            images.append(lane.images.index_select(0, rows))
            labels.append(lane.labels.index_select(0, rows))
        side_by_side = torch.stack(images, 3)  # [N, H, W, R, 3]
        missing = (0, _STEM - 3, 0, self.places - len(images))
        return F.pad(side_by_side, missing).flatten(3).permute(0, 3, 1, 2), labels

    def _pass(self, images: Tensor, labels: Sequence[Tensor]) -> list[Tensor]:
        """Forward and backward; leaves each run its gradient, returns its loss."""
        gradients = [replica.grad for replica in self._replicas]
        for part in self._parts:
            part.put([replica.weights for replica in self._replicas])
            part.grad.zero_()
        for gradient in gradients:
            gradient.zero_()
        losses = self._losses(images, labels)
        torch.autograd.backward(losses)  # a head's gradient goes to its run at once
        for part in self._parts:
            part.take(part.grad, gradients)
        return [loss.detach() for loss in losses]

    def _losses(self, images: Tensor, labels: Sequence[Tensor]) -> list[Tensor]:
        losses = []
        with self._replicas[0]._cast():
            features = self._network(images).chunk(self.places, 1)
            logits = [
                _network(replica).linear(own)
                for replica, own in zip(self._replicas, features, strict=False)
            ]
        for lane, own, targets in zip(self.lanes, logits, labels, strict=True):
            replica = lane.replica
            own = own.to(replica.weights.dtype)
            losses.append(replica._loss(own, targets, lane.hyper.weight))
        return losses

    def _climb(self, images: Tensor, labels: Sequence[Tensor]) -> None:
        """The gradients at SAM's perturbed weights, ε = ρ·g/(‖g‖ + 1e-12) of each run.

        The weights are as before; see ``Replica._sam``.
        """
        for lane in self.lanes:
            replica = lane.replica
            replica._kept.copy_(replica.weights)
            factor = lane.hyper.rho / (replica.grad.norm() + 1e-12)
            replica.weights.add_(replica.grad * factor)
        quiet = self._replicas[0].sam_bn == "first"
        with frozen_statistics(self._network) if quiet else contextlib.nullcontext():
            self._pass(images, labels)
        for replica in self._replicas:
            replica.weights.copy_(replica._kept)


class _Slot(NamedTuple):
    """A tensor of the wide network and the runs' tensors that it is made of."""

    owner: nn.Module  # in the wide network
    name: str
    start: int  # in a run's flat tensor
    narrow: tuple[int, ...]  # shape of a run's; inputs of a convolution are last
    wide: tuple[int, ...]  # shape, the same way

    def positions(self, place: int, places: int) -> Tensor:
        """Where a run's numbers lie, in the order of its own tensor."""
        found = torch.arange(math.prod(self.wide)).view(self.wide)
        for axis in {0, len(self.wide) - 1}:  # outputs and inputs: a diagonal block
            first = place * (self.wide[axis] // places)
            found = found.narrow(axis, first, self.narrow[axis])
        return found.flatten()

    def shaped(self, part: Tensor) -> Tensor:
        """The flat values as the wide network takes them."""
        view = part.view(self.wide)
        return view.permute(0, 3, 1, 2) if view.ndim == 4 else view


class _Part:
    """Some tensors of the wide network as one, and where the runs' numbers lie in it.

    Attributes:
        flat: Zero where no run's numbers lie.
        grad: Of the same shape.
    """

    def __init__(
        self, slots: Sequence[_Slot], places: int, runs: int, like: Tensor
    ) -> None:
        self._slots = slots
        self._sizes = [math.prod(slot.wide) for slot in slots]
        self.flat = like.new_zeros(sum(self._sizes))
        self.grad = torch.zeros_like(self.flat)
        source = [slot.start + torch.arange(math.prod(slot.narrow)) for slot in slots]
        starts = list(accumulate(self._sizes, initial=0))
        target = [
            start + slot.positions(place, places)
            for place in range(runs)
            for start, slot in zip(starts, slots, strict=False)
        ]
        self._source = torch.cat(source).to(like.device)  # [K]
        self._target = torch.cat(target).to(like.device)  # [R·K]

    def put(self, runs: Sequence[Tensor]) -> None:
        """Copy the numbers of R runs in, each from its own flat tensor [P]."""
        rows = torch.cat([run.index_select(0, self._source) for run in runs])
        self.flat.index_copy_(0, self._target, rows.to(self.flat.dtype))

    def take(self, flat: Tensor, runs: Sequence[Tensor]) -> None:
        """Copy them from ``flat`` or ``grad`` back to the runs."""
        rows = flat.index_select(0, self._target).to(runs[0].dtype)
        for run, row in zip(runs, rows.chunk(len(runs)), strict=True):
            run.index_copy_(0, self._source, row)

    def give_parameters(self) -> None:
        """Make the slots parameters: views of ``flat``, their gradients of ``grad``."""
        parts = (tensor.split(self._sizes) for tensor in (self.flat, self.grad))
        for slot, *views in zip(self._slots, *parts, strict=True):
            weight, grad = (slot.shaped(view) for view in views)
            parameter = nn.Parameter(weight)
            parameter.grad = grad
            slot.owner.register_parameter(slot.name, parameter)

    def give_buffers(self) -> None:
        """Make the slots buffers: views of ``flat``."""
        for slot, part in zip(self._slots, self.flat.split(self._sizes), strict=True):
            slot.owner.register_buffer(slot.name, part)


class _Widening(Block):
    """The first block of a stage: pads the channels of each run by themselves."""

    def __init__(self, planes_in: int, planes: int, places: int) -> None:
        super().__init__(planes_in, planes, 2)
        self.places = places

    def shortcut(self, x: Tensor) -> Tensor:
        rows = x[:, :, ::2, ::2].permute(0, 2, 3, 1).unflatten(3, (self.places, -1))
        pad = self.pad // self.places
        return F.pad(rows, (pad, pad)).flatten(3).permute(0, 3, 1, 2)


def _widened(model: CifarResNet, places: int) -> CifarResNet:
    """The network G times as wide, without numbers yet; gives features [N, G·D]."""
    width, stride = model.conv1.out_channels, model.conv1.stride[0]
    with torch.device("meta"):
        wide = CifarResNet(len(model.layer1), 1, places * width, False, stride)
        wide.conv1 = nn.Conv2d(places * _STEM, places * width, 3, stride, 1, bias=False)
        for times, stage in ((1, wide.layer2), (2, wide.layer3)):
            before = times * places * width
            stage[0] = _Widening(before, 2 * before, places)
    wide.linear = nn.Identity()
    for norm in _norms(wide):
        norm.num_batches_tracked = None  # as in a run's own network
    return wide


def _network(replica: Replica) -> CifarResNet:
    if not isinstance(replica.model, CifarResNet):
        raise UsageError(f"a pack takes CIFAR ResNets, no {type(replica.model)}")
    return replica.model


def _norms(network: nn.Module) -> list[nn.BatchNorm2d]:
    return [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]


def _weight_slots(
    narrow: nn.Module, wide: nn.Module
) -> tuple[list[_Slot], list[_Slot]]:
    """Weights of convolutions and of batch norms; heads stay with their runs."""
    kinds: dict[int, list[_Slot]] = {4: [], 1: []}
    widened, start = dict(wide.named_parameters()), 0
    for path, own in narrow.named_parameters():
        if path in widened:
            owner, _, name = path.rpartition(".")
            shapes = (_inputs_last(p.shape) for p in (own, widened[path]))
            slot = _Slot(wide.get_submodule(owner), name, start, *shapes)
            kinds[own.ndim].append(slot)
        start += own.numel()
    return kinds[4], kinds[1]


def _inputs_last(shape: torch.Size) -> tuple[int, ...]:
    """How a tensor of this shape lies in memory, channels last."""
    return (shape[0], *shape[2:], *shape[1:2])


def _statistics_slots(narrow: nn.Module, wide: nn.Module) -> list[_Slot]:
    """Running means and variances, in the order of ``Replica.statistics``."""
    slots, start = [], 0
    for own, norm in zip(_norms(narrow), _norms(wide), strict=True):
        for name in ("running_mean", "running_var"):
            shapes = ((m.num_features,) for m in (own, norm))
            slots.append(_Slot(norm, name, start, *shapes))
            start += own.num_features
    return slots


def _check(lanes: Sequence[Lane]) -> None:
    """Refuse runs that need other kernels or another order of work."""
    for replica in (lane.replica for lane in lanes):
        others = {
            replica.optimizer: replica.optimizer not in ("sgd", "sam"),
            "sam_classes": replica._rare is not None,
            "dro_step": replica.dro_step > 0,
        }
        if found := [name for name, is_there in others.items() if is_there]:
            raise UsageError(f"a pack takes SGD and SAM without {', '.join(found)}")
    traits = [_traits(lane) for lane in lanes]
    for name in traits[0]:
        if len(values := {trait[name] for trait in traits}) > 1:
            raise UsageError(f"runs packed together differ in {name}: {values}")


def _traits(lane: Lane) -> dict[str, object]:
    """What the runs of a pack share."""
    replica, model = lane.replica, _network(lane.replica)
    return {
        "network": (len(model.layer1), model.conv1.out_channels, model.conv1.stride),
        "optimizer": replica.optimizer,
        "ascend": lane.hyper.ascend,
        "sam_bn": replica.sam_bn,
        "precision": (replica.weights.dtype, replica.autocast),
        "device": replica.weights.device,
        "images": lane.images.shape[1:],
    }


def folded(model: nn.Module) -> nn.Module:
    """The network in eval mode, each batch norm folded into the convolution before it.

    γ·(w∗x − μ)/√(σ² + ε) + β is a convolution with the weight γ·w/√(σ² + ε) and a bias.
    "Before" is the order in which a module lists its parts, which in CIFAR ResNets is
    that of their use. ``model`` stays as it is; what is not folded is shared with it.
    """
    shared = {id(t): t for t in (*model.parameters(), *model.buffers())}
    twin = copy.deepcopy(model, shared).eval()
    for module in list(twin.modules()):
        for (name, conv), (after, norm) in pairwise(list(module.named_children())):
            if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                setattr(module, name, fuse_conv_bn_eval(conv, norm))
                setattr(module, after, nn.Identity())
    return twin


@torch.no_grad()
def folded_logits(replica: Replica, images: Tensor) -> Tensor:
    """``Replica.logits`` [N, C] but for rounding; images [N, 3, H, W]."""
    chunk = max(1, _PIXELS[images.device.type] // math.prod(images.shape[-2:]))
    network = folded(replica.model)
    with replica._cast():
        parts = [network(part) for part in images.split(chunk)]
    return torch.cat(parts).to(replica.weights.dtype)
