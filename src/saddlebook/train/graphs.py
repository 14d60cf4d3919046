"""Runs steps of many runs side by side on one device, with no host in the loop.

Knows replicas and tensors; no experiment, no file. All that a step reads and writes
lies in tensors that never move (``Lane``), so on CUDA the very function that runs
eagerly elsewhere is recorded once as a graph and replayed; the host reads one tensor
an epoch.

Legend: N images, C classes, H height and width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from saddlebook.train.engine import Hyper, Replica


class Report(NamedTuple):
    """What the host learns of an epoch."""

    loss: float  # mean, nats
    finite: bool  # weights, gradient and batch-norm statistics
    accuracy: list[float]  # per class, percent, of the last test


class Lane:
    """One replica with its epoch: images in order, hyper-parameters, sums.

    Args:
        replica: Is trained.
        count: N, training images.
        test_images: Normalised, channels-last [M, 3, H, H].
        test_labels: int64 [M].
    """

    def __init__(
        self, replica: Replica, count: int, test_images: Tensor, test_labels: Tensor
    ) -> None:
        like = replica.weights
        self.replica, self.count = replica, count
        self.test_images, self.test_labels = test_images, test_labels
        self.per_class = torch.bincount(test_labels)
        size = test_images.shape[-1]
        # rows of pixels, so that a batch is one gather and stays channels-last
        self.images = like.new_empty(count, size, size, 3)
        self.labels = test_labels.new_zeros(count)
        classes = like.new_ones(len(self.per_class))
        self.hyper = Hyper(like.new_zeros(()), like.new_zeros(()), classes)
        self.place = torch.zeros_like(self.labels[0])
        self.total = like.new_zeros((), dtype=torch.float64)
        self.hits = torch.zeros_like(self.per_class, dtype=torch.float64)
        self._stream = torch.cuda.Stream() if like.is_cuda else None

    def begin(self, images: Tensor, labels: Tensor, hyper: Hyper) -> None:
        """Take an epoch: augmented, normalised images [N, 3, H, H] in their order."""
        self.images.copy_(images.permute(0, 2, 3, 1))
        self.labels.copy_(labels)
        for ours, theirs in zip(self.hyper[:3], hyper[:3], strict=True):
            ours.copy_(theirs)
        self.hyper = self.hyper._replace(ascend=hyper.ascend)
        self.place.zero_()
        self.total.zero_()

    def step(self, size: int) -> None:
        """One optimizer step on the next ``size`` images."""
        rows = self.place + torch.arange(size, device=self.place.device)
        images = self.images.index_select(0, rows).permute(0, 3, 1, 2)
        labels = self.labels.index_select(0, rows)
        self.total += self.replica.step(images, labels, self.hyper) * size
        self.place += size

    def test(self) -> None:
        """Count the right answers of each class on the test images."""
        logits = self.replica.logits(self.test_images)
        right = (logits.argmax(1) == self.test_labels).double()
        self.hits.zero_().index_add_(0, self.test_labels, right)

    def summary(self) -> Tensor:
        """Mean loss, 1 if all is finite, accuracy of each class. [2 + C]"""
        state = (*self.replica.state, self.replica.grad)
        finite = torch.stack([t.isfinite().all() for t in state]).all()
        accuracy = 100 * (self.hits / self.per_class)
        return torch.cat([torch.stack([self.total / self.count, finite]), accuracy])

    def snapshot(self) -> list[Tensor]:
        """Copies of what a warm-up would disturb."""
        return [t.clone() for t in self._disturbed()] + [
            self.replica.generator.get_state()
        ]

    def restore(self, snapshot: Sequence[Tensor]) -> None:
        """Undo a warm-up."""
        *copies, noise = snapshot
        for live, copy in zip(self._disturbed(), copies, strict=True):
            live.copy_(copy)
        self.replica.generator.set_state(noise)

    @contextmanager
    def apart(self) -> Iterator[None]:
        """On CUDA, on a stream of its own that forks from the current one."""
        if self._stream is None:
            yield
            return
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            yield

    def rejoin(self) -> None:
        """Let the current stream wait for the lane's own."""
        if self._stream is not None:
            torch.cuda.current_stream().wait_stream(self._stream)

    def _disturbed(self) -> tuple[Tensor, ...]:
        return (*self.replica.state, self.place, self.total)


class SideBySide:
    """Does the same to several lanes, recording it where the device can.

    A recording belongs to the lanes, the batch's size and whether SAM climbs: the last,
    smaller batch and a switch of ``sam_epochs`` have their own, and a learning rate,
    radius or class weight never needs a new one.

    Args:
        graphs: Records and replays; None does everything anew each time.
    """

    def __init__(self, graphs: Graphs | None = None) -> None:
        self._graphs = graphs
        self._replays: dict[tuple[object, ...], Callable[[], None]] = {}

    def step(self, lanes: Sequence[Lane], size: int) -> None:
        """One optimizer step of each lane on its next ``size`` images."""
        self._do(lanes, size, lambda lane: lane.step(size))

    def test(self, lanes: Sequence[Lane]) -> None:
        """A test pass of each lane."""
        self._do(lanes, "test", Lane.test)

    def reports(self, lanes: Sequence[Lane]) -> list[Report]:
        """Read all lanes at once: the only time the host waits."""
        rows = torch.stack([lane.summary() for lane in lanes]).tolist()
        return [Report(row[0], row[1] == 1, row[2:]) for row in rows]

    def _do(
        self, lanes: Sequence[Lane], what: object, action: Callable[[Lane], None]
    ) -> None:
        if self._graphs is None:
            _each(lanes, action)
            return
        key = (what, *((id(lane), lane.hyper.ascend) for lane in lanes))
        if key not in self._replays:
            self._replays[key] = self._recorded(self._graphs, lanes, action)
        self._replays[key]()

    def _recorded(
        self, graphs: Graphs, lanes: Sequence[Lane], action: Callable[[Lane], None]
    ) -> Callable[[], None]:
        def rehearse() -> None:
            for lane in lanes:
                lane.place.zero_()
            _each(lanes, action)

        kept = [lane.snapshot() for lane in lanes]
        graphs.warm_up(rehearse)
        for lane, copies in zip(lanes, kept, strict=True):
            lane.restore(copies)
        noise = [lane.replica.generator for lane in lanes]
        return graphs.record(lambda: _each(lanes, action), noise)


class Graphs(Protocol):
    """What can run a function once and repeat its work on the same memory."""

    def warm_up(self, function: Callable[[], None]) -> None:
        """Run it, so that libraries choose their kernels and allocate."""

    def record(
        self, function: Callable[[], None], generators: Sequence[torch.Generator]
    ) -> Callable[[], None]:
        """Note its work without doing it; the returned function does it."""


class CudaGraphs:
    """Functions as CUDA graphs that share their memory.

    They may: they are replayed one after the other and leave nothing inside.
    """

    def __init__(self) -> None:
        self._pool: Any = torch.cuda.graph_pool_handle()

    def warm_up(self, function: Callable[[], None]) -> None:
        """Run it thrice, as PyTorch asks for before a capture."""
        main, side = torch.cuda.current_stream(), torch.cuda.Stream()
        side.wait_stream(main)
        with torch.cuda.stream(side):
            for _ in range(3):
                function()
        main.wait_stream(side)

    def record(
        self, function: Callable[[], None], generators: Sequence[torch.Generator]
    ) -> Callable[[], None]:
        """Capture it; its random numbers go on from replay to replay."""
        graph = torch.cuda.CUDAGraph()
        for generator in generators:
            graph.register_generator_state(generator)
        with torch.cuda.graph(graph, pool=self._pool):
            function()
        return graph.replay


def _each(lanes: Sequence[Lane], action: Callable[[Lane], None]) -> None:
    """One lane after the other; on CUDA together, each on its own stream."""
    for lane in lanes:
        with lane.apart():
            action(lane)
    for lane in lanes:
        lane.rejoin()


@contextmanager
def arithmetic(precision: str) -> Iterator[None]:
    """TF32 products on CUDA only where ``precision`` says so; ordered reductions."""
    cudnn: Any = torch.backends.cudnn  # its stubs lack ``conv``
    places = (cudnn.conv, torch.backends.cuda.matmul)
    before, ordered = [place.fp32_precision for place in places], cudnn.deterministic
    cudnn.deterministic = True
    for place in places:
        place.fp32_precision = "tf32" if precision == "tf32" else "ieee"
    try:
        yield
    finally:
        cudnn.deterministic = ordered
        for place, precision in zip(places, before, strict=True):
            place.fp32_precision = precision
