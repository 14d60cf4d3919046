"""What a GPU gives this engine: its ceilings, the time of a step, and trust in both.

    PYTHONPATH=src python3 benchmarks/gpu/probe.py --out FOLDER [--limit 400]

Checks come first: a replayed step equals an eager one, a run in company equals the run
alone, and the loss falls. If one fails, the times below it mean nothing and the exit
code is 1. Then the copy and product rates, the cost of a graph's node, and for one run
and for several side by side the milliseconds of a forward and backward pass of one run
(``ms/fb``), with its share of the byte floor; the same of runs packed into one wide
network (``wide.py``), which training does not use yet. A test pass last, as it
is and with folded batch norms. Every line is written at once; one that fails is printed
and does not end the others. ``--device cpu`` goes through all of it at small sizes, to
see that it works; its times say nothing.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from wide import Pack, folded_logits

from saddlebook import data
from saddlebook.data.sources import CLASS_NAMES
from saddlebook.disk.files import dump_json, write_whole
from saddlebook.experiment import Experiment
from saddlebook.models import arithmetic
from saddlebook.train.loop import CudaGraphs, SideBySide
from saddlebook.train.optimizers import Hyper
from saddlebook.train.run import Lane, build_replica, normalised, prepare

# Counted for one pass of ResNet-32 over 128 images, each tensor once in each direction,
# batch norm and ReLU fused into the convolutions
_FLOOR_BYTES = {"bf16": 621e6, "tf32": 1233e6, "fp32": 1233e6}
_STEPS = 12


def random_dataset(each: int, tests: int, seed: int = 0) -> data.Dataset:
    """Ten classes of noise around a pattern, in CIFAR's shape: can be learned."""
    generator = torch.Generator().manual_seed(seed)
    pattern = torch.randint(0, 256, (10, 3, 32, 32), generator=generator)
    splits = []
    for count in (each, tests):
        labels = torch.arange(10).repeat(count)
        noise = torch.randint(0, 256, (len(labels), 3, 32, 32), generator=generator)
        splits += [((pattern[labels] + 3 * noise) // 4).to(torch.uint8), labels]
    return data.Dataset("cifar10", *splits, CLASS_NAMES["cifar10"], "made up")


def lanes(
    device: str, precision: str, optimizer: str, count: int, seed: int = 0
) -> list[Lane]:
    """Runs at the start of an epoch, equal but for their seeds."""
    small = device == "cpu"
    exp = Experiment(
        imbalance_factor=1, max_count=20 if small else 400, optimizer=optimizer,
        rho=0.1 if optimizer == "sam" else 0, precision=precision,
        model="resnet8" if small else "resnet32", batch_size=16 if small else 128,
    )  # fmt: skip
    task = prepare(
        exp, random_dataset(exp.largest_class, 10 if small else 1000), device
    )
    made = []
    for number in range(seed, seed + count):
        replica = build_replica(_seeded(exp, number), task.class_counts, device)
        lane = Lane(replica, len(task.labels), task.test_images, task.test_labels)
        lane.begin(normalised(exp, task.images), task.labels, _hyper(replica.weights))
        replica.model.train()
        made.append(lane)
    return made


def _seeded(exp: Experiment, seed: int) -> Experiment:
    return Experiment.from_dict(exp.to_dict() | {"seed": seed})


def _hyper(like: Tensor) -> Hyper:
    lr, rho = (torch.tensor(v).to(like) for v in (0.05, 0.1))
    return Hyper(lr, rho, torch.ones(10).to(like))


def batch(device: str) -> int:
    return 16 if device == "cpu" else 128


def graphs(device: str) -> CudaGraphs | None:
    return None if device == "cpu" else CudaGraphs()


def advance(together: SideBySide, runs: list[Lane], steps: int, size: int) -> None:
    for lane in runs:
        lane.place.zero_()
    for _ in range(steps):
        together.step(runs, size)


def timed(work: Callable[[], object], device: str, rounds: int = 9) -> float:
    """Median milliseconds, device included."""
    taken = []
    for _ in range(2 + rounds):
        _wait(device)
        began = time.perf_counter()
        work()
        _wait(device)
        taken.append(1e3 * (time.perf_counter() - began))
    return statistics.median(taken[2:])


def _wait(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize(device)


def replay_off(device: str, precision: str, optimizer: str) -> float:
    """Relative difference between a recorded and an eager step."""
    ends = []
    for recorder in (graphs(device), None):
        runs = lanes(device, precision, optimizer, 1)
        advance(SideBySide(recorder), runs, 1, batch(device))
        ends.append(runs[0].replica.weights.double())
    return float((ends[0] - ends[1]).norm() / ends[1].norm())


def company_differs(device: str, precision: str) -> bool:
    """Whether a run of SAM beside two others differs in any bit from the run alone."""
    ends = []
    for count in (1, 3):
        runs = lanes(device, precision, "sam", count)
        advance(SideBySide(graphs(device)), runs, 5, batch(device))
        ends.append(runs[0].replica.weights.clone())
    return not torch.equal(*ends)


def losses(device: str, precision: str) -> tuple[float, float]:
    """Mean loss of a first and of a fourth epoch."""
    runs, together = lanes(device, precision, "sgd", 1), SideBySide(graphs(device))
    steps, found = runs[0].count // batch(device), []
    for _ in range(4):
        runs[0].total.zero_()
        advance(together, runs, steps, batch(device))
        found.append(float(runs[0].total) / (steps * batch(device)))
    return found[0], found[-1]


def packs(
    device: str, precision: str, optimizer: str, count: int, places: int
) -> list[Pack]:
    """The runs of ``lanes``, ``places`` to a pack."""
    runs = lanes(device, precision, optimizer, count)
    return [
        Pack(runs[first : first + places], places) for first in range(0, count, places)
    ]


def stepper(made: list[Pack], device: str) -> Callable[[], None]:
    """A step of all packs, each on a stream of its own."""

    def step() -> None:
        for pack in made:
            with pack.lanes[0].apart():
                pack.step(batch(device))
        for pack in made:
            pack.lanes[0].rejoin()

    return step


def recorded(made: list[Pack], device: str) -> Callable[[], None]:
    """The same, as a graph on CUDA."""
    step, recorder = stepper(made, device), graphs(device)
    if recorder is None:
        return step
    runs = [lane for pack in made for lane in pack.lanes]
    kept = [lane.snapshot() for lane in runs]
    recorder.warm_up(step)
    for lane, copies in zip(runs, kept, strict=True):
        lane.restore(copies)
    return recorder.record(step, [])


def gradients(
    device: str, precision: str, optimizer: str, places: int, packed: bool
) -> list[Tensor]:
    """Of each run in its first step, in a pack or by itself."""
    runs = lanes(device, precision, optimizer, places)
    if packed:
        recorded([Pack(runs, places)], device)()
    else:
        advance(SideBySide(), runs, 1, batch(device))
    return [lane.replica.grad.double() for lane in runs]


def packed_off(
    device: str, precision: str, optimizer: str, places: int
) -> tuple[float, float]:
    """Relative error of gradients in a pack and alone, the largest of all runs.

    Against fp32 alone: a pack may add no more than what rounding does anyway.
    """
    exact = gradients(device, "fp32", optimizer, places, packed=False)
    errors = []
    for packed in (True, False):
        found = gradients(device, precision, optimizer, places, packed)
        pairs = zip(found, exact, strict=True)
        errors.append(max(float((a - b).norm() / b.norm()) for a, b in pairs))
    return errors[0], errors[1]


def pack_differs(device: str, precision: str, places: int) -> bool:
    """Whether a run of SAM depends in any bit on its place in a pack or on the others.

    Three packs: the run with idle places; among others; the same turned round.
    """
    ends = []
    for count, turned in ((1, False), (places, False), (places, True)):
        runs = lanes(device, precision, "sam", count)
        step = recorded([Pack(runs[::-1] if turned else runs, places)], device)
        for _ in range(5):
            step()
        ends.append(runs[0].replica.weights.clone())
    return not all(torch.equal(ends[0], end) for end in ends[1:])


def bandwidth(device: str) -> float:
    """Bytes read and written per second by a copy."""
    size = 2**22 if device == "cpu" else 2**30
    source = torch.zeros(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * size / (1e-3 * timed(lambda: target.copy_(source), device))


def product_rate(device: str) -> float:
    """bf16 floating-point operations per second of a large product."""
    n = 256 if device == "cpu" else 8192
    a = torch.ones(n, n, dtype=torch.bfloat16, device=device)
    return 2 * n**3 / (1e-3 * timed(lambda: torch.mm(a, a), device, 5))


def node(device: str, recorded: bool) -> float:
    """Microseconds of one of 1,000 dependent small kernels."""
    x = torch.zeros(64, device=device)

    def chain() -> None:
        for _ in range(1000):
            x.add_(1)

    recorder = graphs(device) if recorded else None
    if recorder:
        recorder.warm_up(chain)
        return timed(recorder.record(chain, []), device)
    return timed(chain, device)


def step_time(device: str, precision: str, optimizer: str, count: int) -> float:
    """Milliseconds of a forward and backward pass of one run among ``count``."""
    runs, together = lanes(device, precision, optimizer, count), None
    with arithmetic(precision):
        together = SideBySide(graphs(device))
        whole = timed(lambda: advance(together, runs, _STEPS, batch(device)), device)
    return whole / (_STEPS * count * (2 if optimizer == "sam" else 1))


def packed_time(
    device: str, precision: str, optimizer: str, count: int, places: int
) -> float:
    """The same of runs in packs."""
    made = packs(device, precision, optimizer, count, places)

    def work(step: Callable[[], None]) -> None:
        for lane in (lane for pack in made for lane in pack.lanes):
            lane.place.zero_()
        for _ in range(_STEPS):
            step()

    with arithmetic(precision):
        step = recorded(made, device)
        whole = timed(lambda: work(step), device)
    return whole / (_STEPS * count * (2 if optimizer == "sam" else 1))


def kernels(device: str, work: Callable[[], object]) -> int:
    """Kernels of an eager step, which a graph replays; 0 on the CPU."""
    if device == "cpu":
        return 0
    for _ in range(3):
        work()
    activities = [torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        work()
        _wait(device)
    kind = torch.autograd.DeviceType.CUDA
    return sum(event.device_type == kind for event in profile.events())


def profile(device: str, precision: str) -> str:
    """Table of the kernels that an eager step spends most time in."""
    runs, together = lanes(device, precision, "sgd", 1), SideBySide()
    with arithmetic(precision):
        advance(together, runs, 3, batch(device))
        with torch.profiler.profile() as found:
            advance(together, runs, 1, batch(device))
            _wait(device)
    order = f"self_{'cpu' if device == 'cpu' else 'cuda'}_time_total"
    averages = found.key_averages()
    return averages.table(sort_by=order, row_limit=20, max_name_column_width=70)


def test_time(device: str, precision: str, folded: bool) -> float:
    """Milliseconds of a pass over 10,000 test images; ``folded``: batch norms are."""
    runs, together = lanes(device, precision, "sgd", 1), SideBySide(graphs(device))
    if folded:
        replica = runs[0].replica
        replica.logits = partial(folded_logits, replica)
    with arithmetic(precision):
        return timed(lambda: together.test(runs), device, 5)


def folded_check(device: str, precision: str) -> dict[str, Any]:
    """Outputs of a network that learned a little, and its share of right answers."""
    (lane,), together = lanes(device, precision, "sgd", 1), SideBySide(graphs(device))
    with arithmetic(precision):
        for _ in range(4):
            advance(together, [lane], lane.count // batch(device), batch(device))
        pair = [lane.replica.logits(lane.test_images)]
        pair += [folded_logits(lane.replica, lane.test_images)]
    off = float((pair[1] - pair[0]).norm() / pair[0].norm())
    right = [(t.argmax(1) == lane.test_labels).double().mean().item() for t in pair]
    held = off < 1e-4 if precision == "fp32" else abs(right[1] - right[0]) < 0.015
    what = f"folded test pass against the usual one, {precision}"
    return {"what": what, "off": off, "right": right, "held": held}


def line(device: str, precision: str, optimizer: str, count: int) -> dict[str, Any]:
    """Time of a step of lanes with what it is measured against."""
    runs, together = lanes(device, precision, optimizer, 1), SideBySide()
    launched = kernels(device, lambda: advance(together, runs, 1, batch(device)))
    taken = step_time(device, precision, optimizer, count)
    return timing(
        f"{count} x {optimizer}, {precision}", device, precision, taken, launched
    )


def packed_line(
    device: str, precision: str, optimizer: str, count: int, places: int
) -> dict[str, Any]:
    """The same of packs; kernels are those of one pack."""
    one = packs(device, precision, optimizer, places, places)
    launched = kernels(device, stepper(one, device))
    taken = packed_time(device, precision, optimizer, count, places)
    what = f"{count} x {optimizer} in packs of {places}, {precision}"
    return timing(what, device, precision, taken, launched)


def timing(
    what: str, device: str, precision: str, taken: float, launched: int
) -> dict[str, Any]:
    floor = 1e3 * _FLOOR_BYTES[precision] / bandwidth(device)
    share = None if device == "cpu" else round(floor / taken, 3)
    return {
        "what": what, "ms/fb": round(taken, 4), "share of byte floor": share,
        "kernels": launched,
    }  # fmt: skip


def packings(device: str, precision: str) -> list[tuple[int, int]]:
    """How many runs are timed, and in packs of how many."""
    if precision == "fp32":  # no tensor cores: four times the work is four times it
        return []
    if device == "cpu":
        return [(2, 2), (4, 2)] if precision == "bf16" else []
    others = [(4, 4), (8, 4), (4, 2), (12, 2), (8, 8)] if precision == "bf16" else []
    return [(12, 4), *others]


def checks(device: str) -> Iterator[dict[str, Any]]:
    for precision in ("fp32", "bf16"):
        with arithmetic(precision):
            for optimizer in ("sgd", "sam"):
                off = replay_off(device, precision, optimizer)
                what = f"replay against eager, {optimizer}, {precision}"
                yield {"what": what, "off": off, "held": off < 1e-5}
            differs = company_differs(device, precision)
            yield {"what": f"alone and in company, {precision}", "held": not differs}
            first, last = losses(device, precision)
            what = f"loss falls, {precision}"
            yield {"what": what, "from": first, "to": last, "held": last < first}


def packed_check(
    device: str, precision: str, optimizer: str, places: int
) -> dict[str, Any]:
    with arithmetic(precision):
        off, alone = packed_off(device, precision, optimizer, places)
    what = f"packs of {places} against lanes, {optimizer}, {precision}"
    held = off < 1e-3 + 1.5 * alone
    return {"what": what, "off": off, "alone": alone, "held": held}


def place_check(device: str, precision: str, places: int) -> dict[str, Any]:
    with arithmetic(precision):
        differs = pack_differs(device, precision, places)
    what = f"whatever place and company, packs of {places}, {precision}"
    return {"what": what, "held": not differs}


def packed_checks(device: str) -> Iterator[Callable[[], dict[str, Any]]]:
    """One by one, so that a machine that cannot do them still measures the rest."""
    for places in (2,) if device == "cpu" else (4, 2, 8):
        for precision in ("fp32", "bf16"):
            for optimizer in ("sgd", "sam"):
                yield partial(packed_check, device, precision, optimizer, places)
            yield partial(place_check, device, precision, places)


def measurements(device: str) -> Iterator[Callable[[], dict[str, Any]]]:
    yield lambda: {"what": "copy, TB/s", "rate": bandwidth(device) / 1e12}
    yield lambda: {"what": "bf16 product, TFLOP/s", "rate": product_rate(device) / 1e12}
    for recorded in (True, False):
        name = "node of a graph" if recorded else "eager launch"
        yield lambda r=recorded, n=name: {"what": f"{n}, us", "us": node(device, r)}
    yield from packed_checks(device)
    counts = (1, 2) if device == "cpu" else (1, 2, 4, 6, 12)
    for precision in ("bf16", "tf32", "fp32"):
        for optimizer in ("sgd", "sam"):
            for count in counts:
                yield lambda p=precision, o=optimizer, n=count: line(device, p, o, n)
            for packing in packings(device, precision):
                yield partial(packed_line, device, precision, optimizer, *packing)
    for precision in ("fp32", "bf16"):
        yield partial(folded_check, device, precision)
    for precision in ("bf16", "tf32"):
        for kind, folded in (("test", False), ("test, batch norms folded", True)):
            yield lambda p=precision, k=kind, f=folded: {
                "what": f"{k}, {p}", "ms": test_time(device, p, f)
            }  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--limit", type=float, default=400, help="seconds")
    parser.add_argument("--profile", help="only this: a step's kernels in bf16, ...")
    asked = parser.parse_args()
    if asked.profile:
        table = profile(asked.device, asked.profile)
        write_whole(asked.out / "kernels.txt", table.encode())
        print(table)
        return 0
    began, rows, device = time.monotonic(), [], asked.device
    where = "cpu" if device == "cpu" else torch.cuda.get_device_name(device)

    def note(row: dict[str, Any]) -> None:
        rows.append(row)
        print(json.dumps(row), flush=True)
        write_whole(asked.out / "probe.json", dump_json(rows))

    note({"what": "device", "name": where, "torch": torch.__version__})
    for row in checks(device):
        note(row)
    for measure in measurements(device):
        if time.monotonic() - began > asked.limit:
            note({"what": "out of time", "failed": "the rest was not measured"})
            break
        try:
            note(measure())
        except RuntimeError as error:  # out of memory, or an operation that is missing
            note({"what": "failed", "failed": str(error).splitlines()[0]})
    bad = [r["what"] for r in rows if r.get("held") is False or "failed" in r]
    print(
        f"done in {time.monotonic() - began:.0f} s; " + ("; ".join(bad) or "all well")
    )
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
