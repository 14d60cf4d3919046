"""Trains and measures in several processes side by side, while one waits and watches.

A worker is given a group of runs at a time and tells how far it is. It ends when its
pipe closes, so no death of its parent, however sudden, leaves it behind; the locks it
holds are the system's and go with it.
"""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing import connection, get_context
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import torch

from saddlebook import data, runner
from saddlebook.disk.provenance import check_device
from saddlebook.errors import (
    LockedError,
    NumericalError,
    ResourceError,
    SaddlebookError,
    Stopped,
)
from saddlebook.experiment import Experiment
from saddlebook.record import Record
from saddlebook.store import Store
from saddlebook.train import alike

_GOES_ON = (LockedError, NumericalError)  # of one run; the others are not touched
_PATIENCE = 20  # seconds that a worker has to save its state after a stop
_SILENCE = 900  # seconds without a word after which a worker at work is named


def devices(device: str, workers: int = 1) -> list[str]:
    """What each worker computes on: all GPUs for ``cuda``, else ``workers`` times it.

    Raises:
        MachineError: It is not there.
    """
    check_device(device)
    if device == "cuda":
        return [f"cuda:{i}" for i in range(torch.cuda.device_count())]
    return [device] * (workers if device == "cpu" else 1)


def share(
    experiments: Sequence[Experiment],
    devices: Sequence[str],
    *,
    results: str | Path,
    watcher: runner.Follower,
    note: Callable[[str], None] = lambda line: None,
    group: int | None = None,
    **options: Any,
) -> list[Record]:
    """Train, measure and store what has no record yet, one process a device.

    Args:
        experiments: What to run, in order of value; of one scale.
        devices: One worker each, see ``devices``.
        results: Folder of stores.
        watcher: Follows all runs and can stop them.
        note: Called with a line for each run that was left out.
        group: Runs side by side on one device at most; None: see ``runner.run_all``.
        **options: ``data_root``, ``work`` and ``threads`` (of a worker, default 1).

    Returns:
        Records in the order of ``experiments``.

    Raises:
        SaddlebookError: The first that a worker met; what is finished is kept.
    """
    wanted = list(dict.fromkeys(experiments))
    store = Store(Path(results) / wanted[0].scale)
    missing = store.missing(wanted)
    size = runner.group_size(group, devices[0])
    size = min(size, math.ceil(len(missing) / len(devices)) or 1)
    crew = _Crew(alike(missing, size), watcher, note)
    crew.work(devices, options | {"results": results})
    if crew.troubles:
        raise crew.troubles[0]
    return store.records(wanted)


def torchrun(
    words: Sequence[str], processes: int, say: Callable[[str], object]
) -> None:
    """Run a command of ``python -m saddlebook`` by processes of torchrun, to its end.

    They end with this process, however it dies, and save their state before.

    Args:
        words: Of the command, such as ``large imagenet-lt``.
        processes: How many.
        say: Takes what they print.

    Raises:
        SaddlebookError: What they met; the same call continues.
    """
    start = ["--standalone", f"--nproc-per-node={processes}", "--max-restarts=3"]
    words = [sys.executable, "-c", _AGENT, *start, "-m", "saddlebook", *words]
    told = "a process was lost more often than torchrun starts it again; often memory"
    told += " ran out: take fewer processes or readers; the same command continues"
    with subprocess.Popen(
        words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, env={"OMP_NUM_THREADS": "1"} | os.environ,
    ) as child:  # fmt: skip
        assert child.stdin is not None
        assert child.stdout is not None
        try:
            for line in child.stdout:
                say(line)
                told = line.partition("saddlebook: ")[2].strip() or told
        finally:
            child.stdin.close()
    if child.returncode:
        kinds = {kind.exit_code: kind for kind in SaddlebookError.__subclasses__()}
        raise kinds.get(child.returncode, ResourceError)(told)


_AGENT = "from saddlebook.workers import _agent; _agent()"


def _agent() -> None:
    """Be torchrun, with its worker's exit code, until whoever started it is gone."""
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import main

    def wait() -> None:
        os.read(0, 1)  # nothing is ever written: it is closed
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, daemon=True).start()
    try:
        main(sys.argv[1:])
    except ChildFailedError as error:
        sys.exit(error.get_first_failure()[1].exitcode)
    except SignalException:
        sys.exit(Stopped.exit_code)


@dataclass
class _Crew:
    """Groups of runs that are left, the workers, and what went wrong."""

    left: list[list[Experiment]]
    watcher: runner.Follower
    note: Callable[[str], None]
    busy: dict[Any, list[Experiment]] = field(default_factory=dict)
    processes: dict[Any, Any] = field(default_factory=dict)
    heard: dict[Any, float] = field(default_factory=dict)
    asked: float = math.inf  # when the workers were told to stop
    troubles: list[SaddlebookError] = field(default_factory=list)

    def work(self, devices: Sequence[str], options: dict[str, Any]) -> None:
        """Hand out all groups; returns when all is done or stopped."""
        try:
            for device in devices[: len(self.left)]:
                self._hire(device, options)
            self._follow()
        finally:
            self._dismiss()

    def _hire(self, device: str, options: dict[str, Any]) -> None:
        context = get_context("spawn")  # CUDA and threads do not survive a fork
        ours, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(theirs, device, options))
        process.daemon = True
        process.start()
        theirs.close()
        self.processes[ours], self.busy[ours] = process, []

    def _follow(self) -> None:
        """Read what workers tell until none is at work."""
        told_to_stop = False
        while self.busy:
            for pipe in connection.wait(list(self.busy), timeout=0.2):
                self._hear(pipe)
            for pipe in [p for p, group in self.busy.items() if not group]:
                self._order(pipe)
            self._name_silent()
            self._leave_stuck()
            if self.watcher.stopped() and not told_to_stop:
                told_to_stop = True
                self._stop()

    def _name_silent(self) -> None:
        """Say once which worker may hang; slow or asleep, it is left alone."""
        now = time.monotonic()
        for pipe, group in self.busy.items():
            if group and now - self.heard.get(pipe, now) > _SILENCE:
                self.heard[pipe] = math.inf
                self.note(
                    f"the worker of {group[0].slug} (pid {self.processes[pipe].pid}) "
                    f"has said nothing for {_SILENCE / 60:.0f} minutes; if it hangs, "
                    "stop this command and run it again: it continues"
                )

    def _leave_stuck(self) -> None:
        """Wait no longer for a worker that does not heed a stop: it hangs."""
        late = time.monotonic() - self.asked > _PATIENCE
        for pipe, group in [*self.busy.items()] if late else []:
            del self.busy[pipe]
            self.processes[pipe].kill()
            name = group[0].slug if group else "no run"
            told = f"stopped a worker that hung in {name}; the same command continues"
            self.troubles.append(Stopped(told))
            self.note(told)

    def _hear(self, pipe: Any) -> None:
        self.heard[pipe] = time.monotonic()
        try:
            what, *rest = pipe.recv()
        except (EOFError, OSError):
            self._lost(pipe)
            return
        if what == "epoch":
            self.watcher.epoch_done(*rest)
        elif what == "measuring":
            self.watcher.measuring(*rest)
        else:
            self.busy[pipe] = []
            if rest[0]:
                self._trouble(rest[0])

    def _lost(self, pipe: Any) -> None:
        group = self.busy.pop(pipe)
        process = self.processes[pipe]
        process.join(_PATIENCE)
        name = group[0].slug if group else "no run"
        self._trouble(
            ResourceError(
                f"a worker ended without a word (exit code {process.exitcode}) in "
                f"{name}; often memory ran out: take fewer workers; the same command "
                "continues from its last checkpoint"
            )
        )

    def _trouble(self, trouble: SaddlebookError) -> None:
        self.troubles.append(trouble)
        if isinstance(trouble, _GOES_ON):
            self.note(str(trouble))
        else:
            self._stop()

    def _order(self, pipe: Any) -> None:
        """Give the next group whose trainings nobody has in hand, if there is one."""
        taken = {e.training for group in self.busy.values() for e in group}
        ready = [g for g in self.left if not taken & {e.training for e in g}]
        if ready:
            self.left.remove(ready[0])
            self.busy[pipe] = ready[0]
            self.heard[pipe] = time.monotonic()
            _tell(pipe, ready[0])
        elif not self.left:
            del self.busy[pipe]

    def _stop(self) -> None:
        if self.left and not self.troubles:
            self.troubles.append(
                Stopped("stopped with runs left; the same command continues")
            )
        self.left.clear()
        self.asked = min(self.asked, time.monotonic())
        for pipe, group in self.busy.items():
            if group:
                _tell(pipe, "stop")

    def _dismiss(self) -> None:
        """Let every worker go: those at work save their state first."""
        for pipe in self.processes:
            _tell(pipe, "stop")
            _tell(pipe, None)
        for pipe, process in self.processes.items():
            process.join(_PATIENCE)
            pipe.close()
            if process.is_alive():
                process.kill()
                process.join()


def _tell(pipe: Any, what: object) -> None:
    """Send to a worker; one that is gone is found by ``_hear``."""
    with suppress(OSError):
        pipe.send(what)


class _Voice:
    """A watcher in a worker that tells its parent, and what an epoch took."""

    def __init__(self, pipe: Any) -> None:
        self._pipe, self._stop = pipe, threading.Event()
        self.start_clocks()

    def start_clocks(self) -> None:
        self._wall, self._cpu = time.monotonic(), time.process_time()

    def stop(self) -> None:
        self._stop.set()

    def stopped(self) -> bool:
        return self._stop.is_set()

    def epoch_done(self, experiment: Experiment, row: dict[str, Any]) -> None:
        told = {name: row[name] for name in ("epoch", "train_loss")}
        told["wall"] = time.monotonic() - self._wall  # seconds
        told["cpu"] = time.process_time() - self._cpu
        self.start_clocks()
        self._pipe.send(("epoch", experiment, told))

    def measuring(self, *told: Any) -> None:
        self._pipe.send(("measuring", *told))


def _serve(pipe: Any, device: str, options: dict[str, Any]) -> None:
    """What a worker does, from its first order to its last."""
    voice, orders = _Voice(pipe), SimpleQueue[Any]()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent was asked, and tells
    signal.signal(signal.SIGTERM, lambda number, frame: voice.stop())
    threading.Thread(target=_listen, args=(pipe, orders, voice), daemon=True).start()
    torch.set_num_threads(options.pop("threads", 1))
    # denormal numbers make small gradients many times slower on the CPU
    torch.set_flush_denormal(True)
    images: dict[str, data.Dataset] = {}
    while group := orders.get():
        trouble = None
        try:
            name = group[0].dataset
            if name not in images:
                images = {name: data.load(name, options["data_root"])}
            voice.start_clocks()
            runner.run_all(
                group, device=device, dataset=images[name], watcher=voice,
                group=len(group), **options,
            )  # fmt: skip
        except SaddlebookError as error:
            trouble = error.with_traceback(None)
        pipe.send(("free", trouble))


def _listen(pipe: Any, orders: SimpleQueue[Any], voice: _Voice) -> None:
    try:
        while True:
            order = pipe.recv()
            voice.stop() if order == "stop" else orders.put(order)
    except (EOFError, OSError):  # the parent is gone
        os._exit(Stopped.exit_code)
