"""Trains on the large sets: one network on all the processes that torchrun started.

A plain loop: DistributedDataParallel, channels-last, ``SAM`` in both of its distributed
meanings. A batch is cut into pieces and processes share these out in order, so that
their number decides nothing but speed. Losses, schedules and checkpoints are those of
the small engine; rendezvous and restarts are torchrun's.

Legend: C classes.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from saddlebook import data, errors, losses, models, optim
from saddlebook.data.large import Batches, Lists, Split, Views, fetched, input_of
from saddlebook.disk.files import decoded_checkpoint, read_whole, save_checkpoint
from saddlebook.disk.provenance import numerics_digest
from saddlebook.experiment import Experiment
from saddlebook.models import arithmetic
from saddlebook.train.loop import Watcher
from saddlebook.train.run import Outcome, check_same, objective, scheduled

_ASK = 10  # steps between two questions whether to stop
_TEST = 128  # images at a time
_STATE = ("epoch", "step", "loss", "history", "seconds", "resumes", "numerics")


class Crew(NamedTuple):
    """The processes of a run, and which one this is."""

    rank: int
    world: int
    device: torch.device

    def from_first(self, content: Any) -> Any:
        """What the first process has, on all."""
        held = [content]
        dist.broadcast_object_list(held, 0)
        return held[0]


@contextmanager
def gathered(device: str = "cpu") -> Iterator[Crew]:
    """The processes that torchrun started, or this one alone.

    Args:
        device: ``cpu``; ``cuda``: of each process its own; ``cuda:N`` for one alone.
    """
    place, alone = torch.device(device), "RANK" not in os.environ
    if place.type == "cuda":
        local = int(os.environ.get("LOCAL_RANK", 0))
        place = torch.device("cuda", place.index or local)
        torch.cuda.set_device(place)
    backend = "cpu:gloo,cuda:nccl" if place.type == "cuda" else "gloo"
    single: Any = {"rank": 0, "world_size": 1, "store": dist.HashStore()}  # type: ignore
    dist.init_process_group(backend, **(single if alone else {}))
    try:
        yield Crew(dist.get_rank(), dist.get_world_size(), place)
    finally:
        dist.destroy_process_group()


@contextmanager
def told_once() -> Iterator[None]:
    """An error that all processes meet is told by the first of a machine alone."""
    try:
        yield
    except errors.SaddlebookError as error:
        if os.environ.get("LOCAL_RANK", "0") != "0":
            raise SystemExit(error.exit_code) from error
        raise


class _Piece(NamedTuple):
    """A part of a batch with batch-norm statistics of its own."""

    images: Tensor  # normalised, channels-last
    labels: Tensor
    first: bool  # of the whole batch


def train_large(
    experiment: Experiment, lists: Lists, crew: Crew, folder: Path, *, readers: int = 0,
    compiled: bool = False, watcher: Watcher | None = None, save_every: float = 300.0,
) -> Outcome:  # fmt: skip
    """Train one experiment to its end on all processes of a crew.

    Args:
        experiment: Counted, see ``data.large.counted_large``.
        lists: As ``data.large.find_large`` gives them.
        crew: See ``gathered``.
        folder: For the checkpoint, which the first process reads and writes.
        readers: Processes that read images, for each process.
        compiled: Compile the network.
        watcher: Of the first process is told of epochs; any can stop the training.
        save_every: Seconds between two checkpoints; one is written after each epoch.

    Raises:
        Stopped: On the word of any watcher; the same call continues, with any number of
            processes that shares out the pieces.
        UsageError: The processes cannot share the batch evenly, or share its batch norm
            without GPUs.
        NumericalError: The loss or a weight is not finite; the last checkpoint is kept.
        CorruptError: A checkpoint is damaged, or of other data.
    """
    with arithmetic(experiment.precision):
        with told_once():
            run = _LargeRun(experiment, lists, crew, folder, readers)
        if compiled:
            run.model.compile()
        run.to_end(watcher, save_every)
        return run.outcome()


class _LargeRun:
    """A run on one of the processes: its network, schedule, history and file."""

    def __init__(
        self, exp: Experiment, lists: Lists, crew: Crew, folder: Path, readers: int
    ) -> None:
        self.experiment, self.lists, self.crew = exp, lists, crew
        self.rank, self.world, self.device = crew
        self._torchrun = os.getppid() if "RANK" in os.environ else 0
        self.folder, self.readers = folder / exp.slug, readers
        self.batches = shared_batches(exp, len(lists.train.labels), crew)
        self.labels = lists.train.labels.to(self.device)
        self.model = _network(exp, crew)
        self.optimizer = optim.SAM(
            self.model.parameters(), torch.optim.SGD, rho=0.0, lr=exp.lr,
            momentum=exp.momentum, weight_decay=exp.weight_decay,
        )  # fmt: skip
        for p in self.model.parameters():
            self.optimizer.state[p]["momentum_buffer"] = torch.zeros_like(p)
        like = next(self.model.parameters())
        self.dtype = like.dtype
        self.adjust = objective(exp, lists.class_counts).like(like).adjust
        self._by_class = losses.class_weights(lists.class_counts, exp.beta).to(like)
        self.history: list[dict[str, Any]] = []
        self.epoch = self.step = self.resumes = 0
        self.numerics = numerics_digest(large=True)
        self.lr = self.rho = self.seconds = self.loss = 0.0
        self._local = torch.zeros((), dtype=torch.float64, device=self.device)
        self._resume()
        self._clock = self._saved = time.monotonic()
        self.net = nn.parallel.DistributedDataParallel(
            self.model, broadcast_buffers=False
        )

    def to_end(self, watcher: Watcher | None, save_every: float) -> None:
        """All epochs that are left."""
        exp, start = self.experiment, (self.epoch + 1, self.step)
        views = Views(self.lists.train, exp.image_size, exp.seed)
        keys = self.batches.keys(start, exp.epochs, self.rank, self.world)
        images = fetched(views, keys, self.readers, self.device.type == "cuda")
        for epoch in range(self.epoch + 1, exp.epochs + 1):
            self._begin(epoch)
            batches = self.batches.epoch(epoch)
            for rows in batches[self.step :]:
                pieces = self._pieces(epoch, rows, next(images))
                self._local += self._advance(rows, pieces).double() * len(rows)
                self.step += 1
                if self.step % _ASK == 0 or self.step == len(batches):
                    with told_once():
                        self._agree(watcher, save_every)
            row = self._end(epoch, sum(map(len, batches)))
            if watcher and not self.rank:
                watcher.epoch_done(exp, row)

    def _begin(self, epoch: int) -> None:
        self.lr, self.rho, on = scheduled(self.experiment, epoch)
        self.optimizer.param_groups[0].update(lr=self.lr, rho=self.rho)
        self.weight = self._by_class if on else torch.ones_like(self._by_class)
        self.model.train()

    def _pieces(self, epoch: int, rows: Tensor, images: Tensor) -> list[_Piece]:
        """This process's pieces of a batch, on the device."""
        exp, mine = self.experiment, self.batches.mine(rows, self.rank, self.world)
        numbers = None
        if exp.pipeline == "mapped":
            numbers = data.view_numbers(exp.seed, epoch, self.step, len(rows))
            numbers = torch.cat(self.batches.mine(numbers, self.rank, self.world))
        sizes = [len(piece) for piece in mine]
        ready = self._input(images, numbers).split(sizes)
        labels = self.labels[torch.cat(mine).to(self.device)].split(sizes)
        firsts = [not self.rank and not place for place in range(len(mine))]
        return list(map(_Piece, ready, labels, firsts))

    def _input(self, images: Tensor, numbers: Tensor | None = None) -> Tensor:
        exp, images = self.experiment, images.to(self.device, non_blocking=True)
        return input_of(images, exp.dataset, exp.image_size, self.dtype, numbers)

    def _advance(self, rows: Tensor, pieces: Sequence[_Piece]) -> Tensor:
        """One optimizer step; this process's share of the loss before it."""
        # PAPER: a weighted mean over the whole batch, wherever its images are
        total = self.weight[self.labels[rows.to(self.device)]].sum()
        scale = self.world / total  # DDP takes the mean over processes

        def closure() -> Tensor:
            self.optimizer.zero_grad()
            parts = [self._pass(p, scale, p is pieces[-1]) for p in pieces]
            return torch.stack(parts).sum()

        exp = self.experiment
        if exp.optimizer != "sam" or not self.rho:
            nats = closure()
            self.optimizer.base_optimizer.step()
        elif exp.sam_climb == "shard":
            nats = self._climb_apart(pieces, scale)
        else:
            frozen = self.model if exp.sam_bn == "first" else None
            nats = self.optimizer.step(closure, freeze=frozen)
        return nats / total

    def _climb_apart(self, pieces: Sequence[_Piece], scale: Tensor) -> Tensor:
        """Each piece climbs its own gradient; the second gradients are exchanged."""
        params, nats = list(self.model.parameters()), torch.zeros_like(scale)
        self.optimizer.zero_grad()
        for piece in pieces:
            before = [p.grad for p in params]
            self.optimizer.zero_grad()
            own = 1 / self.weight[piece.labels].sum()
            nats += self._pass(piece, own, exchanged=False)
            self.optimizer.first_step()
            for p, grad in zip(params, before, strict=True):
                p.grad = grad
            self._pass(piece, scale, piece is pieces[-1], climbed=True)
            self.optimizer.restore()
        self.optimizer.base_optimizer.step()
        return nats

    def _pass(
        self, piece: _Piece, scale: Tensor, exchanged: bool, climbed: bool = False
    ) -> Tensor:
        """Forward and backward of a piece; its summed loss. Gradients add up.

        PAPER: running statistics are those of the first piece alone, as
        ``nn.DataParallel`` keeps its first device's.
        """
        moving = piece.first and not (climbed and self.experiment.sam_bn == "first")
        still = nullcontext() if moving else optim.frozen_statistics(self.model)
        # DDP decides in the forward pass whether gradients are exchanged
        with nullcontext() if exchanged else self.net.no_sync(), still:
            nats = self._nats(self._logits(self.net, piece.images), piece.labels)
            loss = (nats * self.weight[piece.labels]).sum()
            (loss * scale).backward()
        return loss.detach()

    def _nats(self, logits: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(self.adjust(logits, labels), labels, reduction="none")

    def _logits(self, net: nn.Module, images: Tensor) -> Tensor:
        half = self.experiment.precision == "bf16"
        with torch.autocast(images.device.type, torch.bfloat16, enabled=half):
            return net(images).to(self.dtype)

    def _agree(self, watcher: Watcher | None, save_every: float) -> None:
        """Add up the loss, hear whether anyone is to stop, save if due."""
        exp, orphan = self.experiment, self._torchrun not in (0, os.getppid())
        stop = orphan or bool(watcher and watcher.stopped())
        told = torch.tensor([self._local.item(), stop], dtype=torch.float64)
        dist.all_reduce(told)
        self._local.zero_()
        self.loss += told[0].item()
        now = time.monotonic()
        self.seconds, self._clock = self.seconds + now - self._clock, now
        last = self.step == len(self.batches)
        if told[1] or last or now - self._saved > save_every:
            self._save()
        if told[1]:
            at = f"stopped {exp.slug} in epoch {self.epoch + 1} of {exp.epochs}"
            raise errors.Stopped(f"{at}, step {self.step}; the same command continues")

    def _end(self, epoch: int, seen: int) -> dict[str, Any]:
        """Test if due, and go on to the next epoch."""
        exp = self.experiment
        row: dict[str, Any] = {"epoch": epoch, "train_loss": self.loss / seen}
        if epoch % exp.test_every == 0 or epoch == exp.epochs:
            accuracy = 100 * self._by_class_mean(self.lists.test)[0]
            row |= {"lr": self.lr, "per_class": accuracy.tolist()}
            self.history.append(row)
        self.epoch, self.step, self.loss = epoch, 0, 0.0
        return row

    @torch.no_grad()
    def _by_class_mean(self, split: Split) -> Tensor:
        """Share of right answers and mean loss of each class. float64 [2, C]"""
        for buffer in self.model.buffers():
            dist.broadcast(buffer, 0)
        self.model.eval()
        mine = torch.arange(len(split.labels))[self.rank :: self.world].split(_TEST)
        keys = iter([[(0, row) for row in rows.tolist()] for rows in mine])
        images = fetched(Views(split, self.experiment.image_size), keys, self.readers)
        sums = self._by_class.new_zeros(2, len(self._by_class), dtype=torch.float64)
        for rows, some in zip(mine, images, strict=True):
            labels = split.labels[rows].to(self.device)
            logits = self._logits(self.model, self._input(some))
            right = (logits.argmax(1) == labels).double()
            both = torch.stack([right, self._nats(logits, labels).double()])
            sums.index_add_(1, labels, both)
        dist.all_reduce(sums)
        return sums.cpu() / torch.bincount(split.labels)

    def outcome(self) -> Outcome:
        """Everything a record needs, and the weights in a file."""
        train_loss = self._by_class_mean(self.lists.train)[1].tolist()
        path = self.folder / f"epoch{self.epoch:04d}.weights"
        if not self.rank:
            save_checkpoint(path, self._meta(), self.model.state_dict())
        return Outcome(
            self.history, train_loss, self.lists.class_counts, self.seconds, 1,
            self.resumes, {self.epoch: path}, self.numerics, self.world,
        )  # fmt: skip

    def _meta(self) -> dict[str, Any]:
        state = {name: getattr(self, name) for name in _STATE}
        made_for = self.experiment.to_dict()
        return {"experiment": made_for, "digest": self.lists.digest} | state

    def _tensors(self) -> dict[str, Tensor]:
        """All that training changes, live."""
        state = self.model.state_dict()
        return {f"model.{name}": tensor for name, tensor in state.items()} | {
            f"momentum.{name}": self.optimizer.state[p]["momentum_buffer"]
            for name, p in self.model.named_parameters()
        }

    def _save(self) -> None:
        """Write the state between two steps; by the first process."""
        self._saved, live = time.monotonic(), self._tensors()
        odd = [name for name, tensor in live.items() if not tensor.isfinite().all()]
        if odd or not math.isfinite(self.loss):
            raise errors.NumericalError(
                f"{self.experiment.slug}: {[*odd, 'the loss'][0]} is not finite in "
                f"epoch {self.epoch + 1}; lower lr or rho; the last good state is kept"
            )
        if not self.rank:
            save_checkpoint(self.folder / "latest.ckpt", self._meta(), live)

    def _resume(self) -> None:
        """Take up the first process's checkpoint, if it has one, on all."""
        path = self.folder / "latest.ckpt"
        with errors.explained(f"cannot read {path}", "restore or delete it"):
            content = read_whole(path) if not self.rank and path.exists() else b""
        if not (content := self.crew.from_first(content)):
            return
        meta, tensors = decoded_checkpoint(content, str(path))
        with errors.explained(f"{path} is no run's state", "delete it and run again"):
            check_same(meta, self._meta(), path)
            for name, tensor in self._tensors().items():
                tensor.data.copy_(tensors[name])
            for name in _STATE:  # ``numerics`` is younger than some checkpoints
                setattr(self, name, ({"numerics": ""} | meta)[name])
        self.resumes += 1


def shared_batches(exp: Experiment, count: int, crew: Crew) -> Batches:
    """How batches of ``count`` images are cut for the processes of a crew.

    Raises:
        UsageError: The processes cannot share them evenly, or share the batch norm of
            one shard without GPUs.
    """
    pieces = exp.shards if exp.shards > 1 else crew.world
    batches = Batches(exp.seed, count, exp.batch_size, pieces)
    if pieces % crew.world or exp.batch_size % pieces or not len(batches):
        raise errors.UsageError(
            f"{crew.world} processes cannot share {exp.shards} shards of batches of "
            f"{exp.batch_size} of {count} images evenly; start as many as divide them"
        )
    if pieces > exp.shards and crew.device.type == "cpu":
        raise errors.UsageError(
            "batch norm over a batch that several processes share needs GPUs; take one "
            f"process, or shards, such as --set shards={crew.world}"
        )
    return batches


def _network(exp: Experiment, crew: Crew) -> nn.Module:
    """The network, the same on all processes."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(exp.seed)
        build: Any = models.resnet8 if exp.model == "resnet8" else models.resnet50
        kind = exp.width if exp.model == "resnet8" else exp.model
        model: nn.Module = build(exp.num_classes, exp.has_cosine_head, kind)
    if crew.world > exp.shards:
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    dtype = torch.float64 if exp.precision == "fp64" else torch.float32
    model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return model.to(crew.device, dtype)
