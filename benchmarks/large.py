"""The large engine on made-up images: equality, kills, the loader, the cost of a step.

    python benchmarks/large.py equality [imagenet|inaturalist]
    python benchmarks/large.py kills
    python benchmarks/large.py loader [--readers 2]
    python benchmarks/large.py step [--device cuda --size 224 --model resnet50]

``equality`` trains 381 images in float64 by one, two and three processes of torchrun
(gloo on CPUs) and compares records and weights with one process. ``kills`` ends one
process of two, then all of them, then asks them to stop, and compares what the same
command gives in the end, with three processes after the last. ``loader`` reads the same
images as plain torchvision does and as we do, taking turns. ``step`` times SGD and SAM
on random images, of which the device holds a map; with ``--device cuda`` this is the
item of ``GPU_RUNS.md``. An equality that fails ends with exit code 1.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests/train"))

import layouts  # noqa: E402

from saddlebook import data  # noqa: E402
from saddlebook.data import large  # noqa: E402
from saddlebook.disk.files import read_checkpoint  # noqa: E402
from saddlebook.experiment import Experiment  # noqa: E402
from saddlebook.train.large import _LargeRun, gathered  # noqa: E402

SMALL = {
    "model": "resnet8", "image_size": 32, "epochs": 4, "drw_epoch": 2, "shards": 6,
    "batch_size": 24, "precision": "fp64", "lr": 0.02, "rho": 0.1,
}  # fmt: skip
CLOSE = 1e-9
_NUMBERS = (
    ("curves", "train_loss"), ("curves", "tail"), ("curves", "accuracy"),
    ("per_class", "train_loss"), ("per_class", "last_accuracy"),
)  # fmt: skip


def command(
    images: Path, out: Path, method: str, count: int, **changes: Any
) -> list[str]:
    """One run by ``count`` processes; by torchrun if more than one."""
    start = [sys.executable]
    if count > 1:
        start += ["-m", "torch.distributed.run", "--standalone", "--max-restarts=2"]
        start += [f"--nproc-per-node={count}"]
    values = SMALL | changes
    if "SAM" not in method:
        values = {n: v for n, v in values.items() if n not in ("rho", "sam_climb")}
    given = [f"{name}={json.dumps(value)}" for name, value in values.items()]
    return [
        *start, "-m", "saddlebook", "large", "lists:toy", "--data", str(images),
        "--work", str(out / "work"), "--results", str(out), "--readers", "0",
        "--save-every", "1", "--quiet", "--method", method, "--set", *given,
    ]  # fmt: skip


def run(*words: Any, **changes: Any) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(command(*words, **changes), capture_output=True, text=True)
    if done.returncode:
        print(done.stderr[-2000:])
    return done


def result(out: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """The record and the weights a run left."""
    (record,) = (out / "full").glob("*.json")
    (weights,) = (out / "work").glob("*/*.weights")
    return json.loads(record.read_text()), read_checkpoint(weights)[1]


def differences(ours: Path, theirs: Path) -> tuple[float, float]:
    """Largest difference of a weight, and of a number in the record."""
    (record, weights), (other, others) = result(ours), result(theirs)
    apart = max(
        float((t.double() - others[name].double()).abs().max())
        for name, t in weights.items()
    )
    numbers = [
        abs(a - b)
        for part, name in _NUMBERS
        for a, b in zip(record[part][name], other[part][name], strict=True)
    ]
    return apart, max(numbers)


def told(name: str, apart: tuple[float, float], seconds: float) -> bool:
    fine = max(apart) < CLOSE
    print(
        f"{name:44} {apart[0]:9.1e} {apart[1]:9.1e} {seconds:6.0f} s  "
        f"{'equal' if fine else 'DIFFERENT'}",
        flush=True,
    )
    return fine


def equality(folder: Path, layout: str) -> bool:
    images = folder / layout
    images.mkdir()
    getattr(layouts, layout)(images)
    print(f"{layout + ', against one process':44} {'weights':>9} {'record':>9}")
    fine = []
    for method, climb in (
        ("CE+DRW", "batch"), ("CE+DRW+SAM", "batch"), ("LDAM+DRW+SAM", "shard"),
    ):  # fmt: skip
        outs = {
            count: folder / f"{layout}-{method}-{climb}-{count}" for count in (1, 2, 3)
        }
        for count, out in outs.items():
            began = time.monotonic()
            run(images, out, method, count, sam_climb=climb)
            what = f"{method}, climbs per {climb}, {count} processes"
            if count > 1:
                apart = differences(out, outs[1])
                fine.append(told(what, apart, time.monotonic() - began))
    return all(fine)


def processes(parent: int) -> list[int]:
    """Children that train, oldest first."""
    found = subprocess.run(
        ["ps", "-o", "pid=", "--ppid", str(parent), "--sort=start_time"],
        capture_output=True, text=True,
    )  # fmt: skip
    return [int(pid) for pid in found.stdout.split()]


def interrupted(words: list[str], out: Path, kind: str) -> int:
    """Start, wait for a checkpoint, strike; the exit code."""
    child = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    while not list((out / "work").glob("*/latest.ckpt")) and child.poll() is None:
        time.sleep(0.1)
    if kind == "one of two killed":
        os.kill(processes(child.pid)[-1], signal.SIGKILL)
    elif kind == "all killed":
        for pid in [child.pid, *processes(child.pid)]:
            os.kill(pid, signal.SIGKILL)
    else:
        child.send_signal(signal.SIGTERM)
    child.communicate()
    return child.returncode


def kills(folder: Path) -> bool:
    images = folder / "images"
    images.mkdir()
    layouts.imagenet(images)
    method, fine = "CE+DRW+SAM", []
    run(images, folder / "whole", method, 1)
    for kind, then in (
        ("one of two killed", 2), ("all killed", 2), ("asked to stop", 3),
        ("one process asked to stop", 1),
    ):  # fmt: skip
        out, began = folder / kind.replace(" ", "-"), time.monotonic()
        first = 1 if then == 1 else 2
        code = interrupted(command(images, out, method, first), out, kind)
        resumed = kind if kind == "one of two killed" else f"{kind}, then {then}"
        if not list((out / "full").glob("*.json")):
            run(images, out, method, then)
        apart = differences(out, folder / "whole")
        resumes = result(out)[0]["timing"]["resumes"]
        fine.append(
            told(
                f"{resumed}: exit {code}, resumes {resumes}",
                apart,
                time.monotonic() - began,
            )
        )
    return all(fine)


def toy(folder: Path, **changes: Any) -> tuple[Experiment, large.Lists]:
    layouts.imagenet(folder)
    exp = Experiment(
        dataset="lists:toy", imbalance="as_is", reweight="drw",
        **{n: v for n, v in SMALL.items() if n != "rho"} | changes,
    )  # fmt: skip
    lists = large.find_large(exp, folder)
    return large.counted_large(exp, lists), lists


def loader(folder: Path, readers: int) -> bool:
    """Images per second of the same views, plain and ours, taking turns."""
    from torch.utils.data import DataLoader
    from torchvision.datasets import ImageFolder
    from torchvision.transforms import v2

    exp, lists = toy(folder, image_size=224)
    jitter = v2.ColorJitter(0.4, 0.4, 0.4)
    steps = [v2.RandomResizedCrop(224), v2.RandomHorizontalFlip(), jitter]
    normal = v2.Normalize(*large._USUAL)
    plain = v2.Compose(
        [*steps, v2.PILToTensor(), v2.ToDtype(torch.float32, True), normal]
    )
    usual = ImageFolder(folder / "train", plain)
    mapped = replace(exp, pipeline="mapped")
    large.pack(lists, 224)
    stored = large.find_large(mapped, folder)
    batches = large.Batches(0, len(usual), 32, 1)

    def theirs() -> None:
        for images, _ in DataLoader(usual, 32, shuffle=True, num_workers=readers):
            images.contiguous(memory_format=torch.channels_last)

    def ours(pipeline: str) -> None:
        of = stored if pipeline == "mapped" else lists
        views = large.Views(of.train, 224)
        keys = batches.keys((1, 0), 1, 0, 1)
        for step, images in enumerate(large.fetched(views, keys, readers)):
            numbers = None
            if pipeline == "mapped":
                numbers = data.view_numbers(0, 1, step, len(images))
            large.input_of(images, "imagenet-lt", 224, torch.float32, numbers)

    kinds = {
        "plain torchvision": theirs,
        "ours, torchvision": lambda: ours("torchvision"),
        "ours, mapped": lambda: ours("mapped"),
    }
    rates: dict[str, list[float]] = {name: [] for name in kinds}
    for _ in range(5):
        for name, read in kinds.items():
            began = time.perf_counter()
            read()
            rates[name].append(len(usual) / (time.perf_counter() - began))
    base = rates["plain torchvision"]
    print(f"{readers} readers, {len(usual)} images of about 50 pixels to 224, 5 rounds")
    for name, found in rates.items():
        ratio = median(a / b for a, b in zip(found, base, strict=True))
        print(f"{name:20} {median(found):8.0f} images/s {ratio:6.2f} times plain")
    return True


def step(
    folder: Path, device: str, model: str, size: int, batch: int, steps: int
) -> bool:
    """Milliseconds of SGD and SAM steps on random images of a map, in one process."""
    print(f"{model} at {size} pixels, batches of {batch}, {device}, {steps} steps each")
    cuda = device.startswith("cuda")
    stored = large.stored_size(size)
    count = 8 * batch
    pixels = torch.randint(0, 256, (count, 3, stored, stored), dtype=torch.uint8)
    labels = torch.arange(count) % 1000
    split = large.Split([""] * count, labels, folder, pixels.numpy())
    counts = tuple(torch.bincount(labels).tolist())
    names = tuple(map(str, range(len(counts))))
    lists = large.Lists("lists:random", split, split, names, counts, "0" * 64)
    base = Experiment(
        dataset="lists:random", imbalance="as_is", model=model, image_size=size,
        batch_size=batch, pipeline="mapped", reweight="drw", epochs=90, drw_epoch=60,
        precision="bf16" if cuda else "fp32", classes=len(counts),
        images_digest="0" * 16,
    )  # fmt: skip
    sam = {"optimizer": "sam", "rho": 0.1}
    kinds: dict[str, dict[str, Any]] = {
        "SGD": {}, "SAM": sam, "SGD, 8 shards": {"shards": 8},
        "SAM, 8 shards": sam | {"shards": 8},
        "SAM per shard, 8": sam | {"shards": 8, "sam_climb": "shard"},
    }  # fmt: skip
    with gathered(device) as crew:
        images = pixels.to(crew.device)
        first = 0.0
        for name, changes in kinds.items():
            engine = _LargeRun(
                replace(base, **changes), lists, crew, folder / name, 0, False
            )
            engine._begin(1)
            times = []
            for number in range(steps + 3):
                rows = engine.batches.epoch(1 + number // 8)[number % 8]
                if cuda:
                    torch.cuda.synchronize()
                began = time.perf_counter()
                pieces = engine._pieces(1, rows, images[rows.to(crew.device)])
                engine._advance(rows, pieces)
                if cuda:
                    torch.cuda.synchronize()
                times.append(time.perf_counter() - began)
            took = median(times[3:])
            first = first or took
            print(
                f"{name:20} {1000 * took:8.1f} ms {batch / took:8.0f} images/s "
                f"{took / first:5.2f} times SGD",
                flush=True,
            )
            del engine
    return True


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("equality", "kills", "loader", "step"))
    parser.add_argument("layout", nargs="?", default="imagenet")
    parser.add_argument("--readers", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--model", default="resnet18")
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--steps", type=int, default=10)
    o = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if o.what == "equality":
            fine = equality(folder, o.layout)
        elif o.what == "kills":
            fine = kills(folder)
        elif o.what == "loader":
            fine = loader(folder, o.readers)
        else:
            fine = step(folder, o.device, o.model, o.size, o.batch, o.steps)
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main())
