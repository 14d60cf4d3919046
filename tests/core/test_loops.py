"""SAM in a user's own loop: scalers, half precision, accumulation, processes."""

import copy
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from multiprocessing import get_context

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

import saddlebook as sb

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
every_device = pytest.mark.parametrize("device", DEVICES)


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))


def batch(device="cpu", seed=0):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(12, 5, generator=generator)
    return images.to(device), (torch.arange(12) % 3).to(device)


def around(model, rho=0.2):
    return sb.SAM(model.parameters(), torch.optim.SGD, rho=rho, lr=0.1, momentum=0.9)


def recipe(model, stepper, scaler, *, dtype, factors=(1.0, 1.0), clip=None, seed=0):
    """The documented steps of one batch; a factor of infinity makes a pass overflow."""
    images, labels = batch(next(model.parameters()).device, seed)

    def backward(factor):
        with torch.autocast(images.device.type, dtype):
            loss = F.cross_entropy(model(images), labels)
        scaler.scale(loss * factor).backward()

    stepper.zero_grad()
    backward(factors[0])
    stepper.first_step(zero_grad=True)
    backward(factors[1])
    if clip:
        scaler.unscale_(stepper)
        nn.utils.clip_grad_norm_(model.parameters(), clip)
    scaler.step(stepper)
    scaler.update()


def state(model, stepper):
    moments = [t for found in stepper.state.values() for t in found.values()]
    return [t.tolist() for t in (*model.parameters(), *moments)]


INFINITE = float("inf")


@every_device
@pytest.mark.parametrize("clip", [None, 0.01])
@pytest.mark.parametrize(
    "factors", [(INFINITE, 1.0), (1.0, INFINITE), (INFINITE, INFINITE)]
)
def test_an_overflow_in_either_pass_skips_the_step(factors, clip, device):
    model = network().to(device)
    stepper, scaler = around(model), torch.amp.GradScaler(device, init_scale=1024.0)
    half = {"dtype": torch.float16, "clip": clip}
    recipe(model, stepper, scaler, **half)
    before = state(model, stepper)
    recipe(model, stepper, scaler, factors=factors, **half)
    assert state(model, stepper) == before
    assert scaler.get_scale() == 512.0
    assert all(tensor.isfinite().all() for tensor in model.state_dict().values())
    recipe(model, stepper, scaler, **half)
    assert state(model, stepper) != before


@every_device
def test_a_scale_that_overflows_comes_down_and_training_goes_on(device):
    model = network().to(device)
    stepper, scaler = around(model), torch.amp.GradScaler(device, init_scale=2.0**40)
    before = state(model, stepper)
    skipped = 0
    while state(model, stepper) == before:
        assert skipped < 40
        recipe(model, stepper, scaler, dtype=torch.float16)
        skipped += 1
    assert skipped > 5
    assert scaler.get_scale() == 2.0 ** (41 - skipped)


@every_device
@pytest.mark.parametrize("clip", [None, 0.01])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_scaler_changes_nothing_but_the_range(dtype, clip, device):
    ends = [network().to(device)]
    for enabled in (True, False):
        model = network().to(device)
        scaler = torch.amp.GradScaler(device, init_scale=1024.0, enabled=enabled)
        stepper = around(model)
        for seed in range(3):
            recipe(model, stepper, scaler, dtype=dtype, clip=clip, seed=seed)
        ends.append(model)
    start, scaled, plain = (nn.utils.parameters_to_vector(m.parameters()) for m in ends)
    assert torch.allclose(scaled, plain, rtol=1e-3, atol=1e-4)
    assert (scaled - start).norm() > 1e-3


@every_device
def test_a_closure_under_bf16_autocast_is_the_two_steps(device):
    closing, stepping = network().to(device), network().to(device)
    stepper, other = around(closing), around(stepping)
    images, labels = batch(device)

    def closure():
        stepper.zero_grad()
        with torch.autocast(device, torch.bfloat16):
            loss = F.cross_entropy(closing(images), labels)
        loss.backward()
        return loss

    first = float(stepper.step(closure).detach())
    off = torch.amp.GradScaler(device, enabled=False)
    recipe(stepping, other, off, dtype=torch.bfloat16)
    assert state(closing, stepper) == state(stepping, other)
    assert float(closure().detach()) < first


@every_device
def test_one_autocast_around_both_passes_is_one_around_each(device):
    ends = []
    for around_all in (True, False):
        model = network().to(device)
        stepper, (images, labels) = around(model, rho=2.0), batch(device)

        def closure(model=model, stepper=stepper, images=images, labels=labels):
            stepper.zero_grad()
            with torch.autocast(device, torch.bfloat16):
                loss = F.cross_entropy(model(images), labels)
            loss.backward()
            return loss

        # torch keeps the cast weights until the outermost autocast ends
        outer = torch.autocast(device, torch.bfloat16) if around_all else nullcontext()
        with outer:
            stepper.step(closure)
            stepper.step(closure)
        ends.append(state(model, stepper))
    assert ends[0] == ends[1]


def test_a_batch_may_come_in_parts():
    whole, parts = (network().double().eval() for _ in range(2))
    images, labels = batch()
    for model, pieces in ((whole, 1), (parts, 4)):
        stepper = around(model)
        for step in (stepper.first_step, stepper.second_step):
            for x, y in zip(images.chunk(pieces), labels.chunk(pieces), strict=True):
                loss = F.cross_entropy(model(x.double()), y, reduction="sum")
                (loss / len(labels)).backward()
            step(zero_grad=True)
    for a, b in zip(whole.parameters(), parts.parameters(), strict=True):
        assert torch.allclose(a, b, rtol=1e-12, atol=1e-14)


# Two processes. ResNet-8 of widths 8, 16 and 32 with group norm: batch norm would see
# other batches in two processes than in one
STEPS, EACH = 10, 8


def residual(dtype):
    torch.manual_seed(0)
    model = sb.models.resnet8(width=8)
    for module in list(model.modules()):
        for name, norm in module.named_children():
            if isinstance(norm, nn.BatchNorm2d):
                setattr(module, name, nn.GroupNorm(4, norm.num_features))
    return model.to(dtype)


def wide(model):
    return sb.SAM(
        model.parameters(), torch.optim.SGD, rho=0.3, lr=0.05, momentum=0.9,
        weight_decay=2e-4,
    )  # fmt: skip


def batches(dtype, shard):
    generator = torch.Generator().manual_seed(1)
    for _ in range(STEPS):
        images = torch.randn(2 * EACH, 3, 12, 12, generator=generator).to(dtype)
        labels = torch.randint(0, 10, (2 * EACH,), generator=generator)
        yield images[shard], labels[shard]


def flat(model):
    return nn.utils.parameters_to_vector(model.parameters()).detach().double()


def closed(model, stepper, images, labels, quiet=nullcontext):
    def closure():
        stepper.zero_grad()
        loss = F.cross_entropy(model(images), labels)
        with quiet():
            loss.backward()
        return loss

    return closure


def shard_of(rank):
    return slice(rank * EACH, (rank + 1) * EACH)


def parallel(rank, kind, dtype):
    """Train one shard of ten batches in this process of two."""
    model = residual(dtype)
    shared, stepper = nn.parallel.DistributedDataParallel(model), wide(model)
    for images, labels in batches(dtype, shard_of(rank)):
        if kind == "two steps":
            with shared.no_sync():  # around forward and backward
                F.cross_entropy(shared(images), labels).backward()
            stepper.first_step(zero_grad=True)
            F.cross_entropy(shared(images), labels).backward()
            stepper.step()
            stepper.zero_grad()
            continue
        # no_sync around backward alone, as often advised, comes too late
        quiet = shared.no_sync if kind == "backward only" else nullcontext
        local = shared if kind == "local" else None
        stepper.step(closed(shared, stepper, images, labels, quiet), local=local)
    return flat(model)


def in_process(rank, folder, pair, runs):
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2
    )
    found = [parallel(rank, *run) for run in runs]
    dist.destroy_process_group()
    return (found, stepped_on(*pair))


def stepped_on(model, stepper):
    for seed in range(3):
        off = torch.amp.GradScaler("cpu", enabled=False)
        recipe(model, stepper, off, dtype=torch.bfloat16, seed=seed)
    return state(model, stepper)


def alone_global():
    model = residual(torch.float64)
    stepper = wide(model)
    for images, labels in batches(torch.float64, slice(None)):
        stepper.step(closed(model, stepper, images, labels))
    return flat(model)


def alone_per_shard():
    """Each half climbs its own gradient; the mean of the second gradients steps."""
    model = residual(torch.float64)
    stepper = wide(model)
    for images, labels in batches(torch.float64, slice(None)):
        gradients = []
        for rank in range(2):
            halves = images[shard_of(rank)], labels[shard_of(rank)]
            backward = closed(model, stepper, *halves)
            backward()
            stepper.first_step()
            backward()
            stepper.restore()
            gradients.append([p.grad for p in model.parameters()])
        for p, *both in zip(model.parameters(), *gradients, strict=True):
            p.grad = (both[0] + both[1]) / 2
        stepper.base_optimizer.step()
    return flat(model)


RUNS = (
    ("global", torch.float64), ("local", torch.float64), ("two steps", torch.float64),
    ("backward only", torch.float64), ("local", torch.float32),
)  # fmt: skip


@pytest.fixture(scope="module")
def spawned(tmp_path_factory):
    """What two processes make of RUNS and of a network with its optimizer."""
    model = network()
    stepper = around(model)
    stepped_on(model, stepper)
    folder = str(tmp_path_factory.mktemp("processes"))
    with ProcessPoolExecutor(2, get_context("spawn")) as pool:
        # torch shares the memory of what it sends: copies go
        sent = [copy.deepcopy((model, stepper)) for _ in range(2)]
        jobs = [pool.submit(in_process, r, folder, sent[r], RUNS) for r in range(2)]
        return [job.result() for job in jobs], stepped_on(model, stepper)


def test_a_copy_in_a_spawned_process_steps_on_with_the_same_bits(spawned):
    there, here = spawned
    assert [copied for _, copied in there] == [here, here]


def test_processes_climb_together_or_each_on_its_own(spawned):
    (first, _), (second, _) = spawned[0]
    assert all(torch.equal(*pair) for pair in zip(first, second, strict=True))
    whole, shards = alone_global(), alone_per_shard()
    together, local, two_steps, backward_only, single = first

    def distance(a, b):
        return float((a - b).norm() / b.norm())

    assert distance(whole, shards) > 1e-2
    assert distance(together, whole) < 1e-13
    assert distance(local, shards) < 1e-13
    assert distance(two_steps, shards) < 1e-13
    assert distance(single, shards) < 1e-5
    assert distance(backward_only, whole) < 1e-13
