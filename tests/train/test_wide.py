"""Runs packed into one wide network, against the same runs stepped one by one."""

import copy
import sys
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from tape import Tape, Tapes
from tape import tensors as leaves
from test_optimizers import COUNTS, batches, relative
from test_train import TINY

from saddlebook import data, losses, models
from saddlebook.errors import UsageError
from saddlebook.train.optimizers import Hyper, Objective, Replica
from saddlebook.train.run import Lane, build_replica, epoch_images, prepare

sys.path.append(str(Path(__file__).parents[2] / "benchmarks/gpu"))
import wide
from wide import Pack, folded, folded_logits


class Spec(NamedTuple):
    """What may differ between the runs of a pack."""

    loss: str
    seed: int
    lr: float
    rho: float
    beta: float  # of the class weights


# a linear head, a cosine head, other weights of the classes, and none
RUNS = (
    Spec("ce", 1, 0.05, 0.1, 0.999),
    Spec("ldam", 2, 0.03, 0.3, 0.99),
    Spec("vs", 3, 0.04, 0.05, 0.0),
    Spec("ce", 4, 0.02, 0.2, 0.9),
)
OURS, *OTHERS = RUNS
STEPS, SIZE = 5, 12


def network(spec, blocks, width):
    with torch.random.fork_rng():
        torch.manual_seed(spec.seed)
        cosine, stride = spec.loss == "ldam", 2 if blocks == 1 else 1
        return models.CifarResNet(blocks, 5, width, cosine, stride)


def lane(
    spec, optimizer="sgd", *, blocks=1, width=4, dtype=torch.float64,
    device="cpu", ascend=True, **options,
):  # fmt: skip
    """At the start of an epoch of its own images."""
    model = network(spec, blocks, width).to(device, dtype).train()
    objective = Objective(losses.adjustment(spec.loss, COUNTS))
    replica = Replica(model, objective, optimizer=optimizer, **options)
    images, labels = map(torch.cat, zip(*batches(spec.seed), strict=True))
    images, labels = images.to(device, dtype), labels.to(device)
    made = Lane(replica, len(images), images[:50], labels[:50])
    lr, rho = (torch.tensor(v, dtype=dtype) for v in (spec.lr, spec.rho))
    weight = losses.class_weights(COUNTS, spec.beta, dtype)
    made.begin(images, labels, Hyper(lr, rho, weight, ascend))
    return made


def tensors(made):
    """All that a step changes, by name."""
    state = made.replica.state._asdict()
    return state | {"grad": made.replica.grad, "loss": made.total, "place": made.place}


def identical(one, two):
    pairs = zip(tensors(one).values(), tensors(two).values(), strict=True)
    return all(torch.equal(*pair) for pair in pairs)


def packed(specs, places=4, steps=STEPS, **options):
    lanes = [lane(spec, **options) for spec in specs]
    pack = Pack(lanes, places)
    for _ in range(steps):
        pack.step(SIZE)
    return lanes


KINDS = {
    "sgd": {},
    "sam": {"optimizer": "sam"},
    "sam, batch norm in the first pass": {"optimizer": "sam", "sam_bn": "first"},
    "sam that does not climb": {"optimizer": "sam", "ascend": False},
}


@pytest.mark.parametrize(
    ("blocks", "places"), [(1, 4), (2, 4), (1, 6)], ids=["resnet8", "resnet14", "idle"]
)
@pytest.mark.parametrize("kind", KINDS)
def test_packed_runs_are_the_runs_stepped_one_by_one(kind, blocks, places):
    options = KINDS[kind] | {"blocks": blocks}
    for ours, spec in zip(packed(RUNS, places, **options), RUNS, strict=True):
        alone = lane(spec, **options)
        start = {name: t.clone() for name, t in tensors(alone).items()}
        for _ in range(STEPS):
            alone.step(SIZE)
        wanted = tensors(alone)
        for name, value in tensors(ours).items():
            assert relative(value.double(), wanted[name].double()) < 1e-12, name
            assert not torch.equal(value, start[name])  # it did change


def test_a_short_last_batch_and_hyperparameters_of_a_new_epoch_are_followed():
    ours = [lane(spec) for spec in RUNS]
    theirs = [lane(spec) for spec in RUNS]
    pack = Pack(ours)
    for size, rate in ((12, 0.1), (5, 0.01), (12, 0.02)):
        for one in (*ours, *theirs):
            one.hyper.lr.fill_(rate)
        pack.step(size)
        for one in theirs:
            one.step(size)
    for one, other in zip(ours, theirs, strict=True):
        assert relative(one.replica.weights, other.replica.weights) < 1e-12
        assert int(one.place) == 29


SINGLE = {"dtype": torch.float32, "width": 16}


@pytest.mark.parametrize("blocks", [1, 2], ids=["resnet8", "resnet14"])
@pytest.mark.parametrize("optimizer", ["sgd", "sam"])
def test_neither_company_nor_place_changes_a_bit_of_a_run(optimizer, blocks):
    options = {"optimizer": optimizer, "blocks": blocks} | SINGLE
    (alone,) = packed([OURS], **options)
    a, b, c = OTHERS
    for companions in ([OURS, a], [a, OURS, b], [c, b, a, OURS], [OURS, c, c, c]):
        found = packed(companions, **options)[companions.index(OURS)]
        assert identical(found, alone), companions


def kernels(specs):
    """Convolutions and batch norms of a step, with the shapes that they work on."""
    pack = Pack([lane(spec) for spec in specs])
    with Tape() as tape:
        pack.step(SIZE)
    return [
        (str(kernel), [t.shape for t in leaves((args, result))])
        for kernel, args, _, result in tape.calls
        if "convolution" in str(kernel) or "batch_norm" in str(kernel)
    ]


def test_the_kernels_are_the_same_however_many_runs_there_are():
    assert kernels(RUNS[:1]) == kernels(RUNS[:3]) == kernels(RUNS)
    assert len(kernels(RUNS)) > 20  # it looked


def test_a_run_stopped_between_steps_goes_on_bit_for_bit():
    options = {"optimizer": "sam"} | SINGLE
    whole = packed(RUNS, **options)
    stopped = packed(RUNS, steps=2, **options)
    again = [lane(spec, **options) for spec in RUNS]
    pack = Pack(again)
    for new, old in zip(again, stopped, strict=True):
        new.replica.load(old.replica.state)
        new.place.copy_(old.place)
        new.total.copy_(old.total)
    for _ in range(STEPS - 2):
        pack.step(SIZE)
    assert all(map(identical, again, whole))


def test_weights_loaded_into_a_packed_run_are_taken_up():
    lanes = [lane(spec) for spec in RUNS]
    pack, first = Pack(lanes), copy.deepcopy(lanes[0].replica.state)
    pack.step(SIZE)
    once = lanes[0].replica.weights.clone()
    lanes[0].replica.load(first)
    lanes[0].place.zero_()
    pack.step(SIZE)
    assert torch.equal(lanes[0].replica.weights, once)


@pytest.mark.parametrize("autocast", [False, True], ids=["fp32", "bf16"])
@pytest.mark.parametrize("optimizer", ["sgd", "sam"])
def test_a_step_can_be_recorded_and_replayed(optimizer, autocast):
    options = {"optimizer": optimizer, "autocast": autocast} | SINGLE
    eager = packed(RUNS, steps=4, **options)
    lanes, tapes = [lane(spec, **options) for spec in RUNS], Tapes()
    pack = Pack(lanes)
    replay = tapes.record(lambda: pack.step(SIZE), [])
    for _ in range(4):
        replay()
    assert all(map(identical, lanes, eager))


def test_products_are_in_half_precision_where_asked_for():
    half = packed(RUNS, steps=1, autocast=True, **SINGLE)
    single = packed(RUNS, steps=1, **SINGLE)
    for ours, theirs, spec in zip(half, single, RUNS, strict=True):
        alone = lane(spec, autocast=True, **SINGLE)
        alone.step(SIZE)
        rounding = relative(theirs.replica.grad, alone.replica.grad)
        assert rounding > 1e-2
        assert relative(ours.replica.grad, alone.replica.grad) < rounding / 10
        assert ours.replica.weights.dtype == torch.float32


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"optimizer": "sam"}, "optimizer"),
        ({"width": 8}, "network"),
        ({"blocks": 2}, "network"),
        ({"dtype": torch.float32}, "precision"),
        ({"autocast": True}, "precision"),
        ({"optimizer": "pgd"}, "pgd"),
        ({"dro_step": 0.1}, "dro_step"),
        ({"optimizer": "sam", "rare": (3, 4)}, "sam_classes"),
    ],
    ids=str,
)
def test_runs_that_cannot_share_a_pack_are_refused(options, told):
    with pytest.raises(UsageError, match=told) as refused:
        Pack([lane(OURS), lane(OURS, **options)])
    assert "\n" not in str(refused.value)


def test_sam_that_climbs_in_some_runs_only_is_refused():
    lanes = [lane(spec, "sam") for spec in RUNS]
    with pytest.raises(UsageError, match="sam_bn"):
        Pack([lanes[0], lane(OURS, "sam", sam_bn="first")])
    pack = Pack(lanes)
    lanes[1].hyper = lanes[1].hyper._replace(ascend=False)
    with pytest.raises(UsageError, match="ascend"):
        pack.step(SIZE)


@pytest.mark.parametrize("count", [0, 5])
def test_a_pack_has_a_run_and_no_more_than_its_places(count):
    with pytest.raises(UsageError, match=f"{count} runs"):
        Pack([lane(OURS)] * count)


def trained(spec, **options):
    """A lane whose batch norms have statistics and weights of their own."""
    made = lane(spec, **options)
    for _ in range(STEPS):
        made.step(SIZE)
    return made


@pytest.mark.parametrize("blocks", [1, 2], ids=["resnet8", "resnet14"])
@pytest.mark.parametrize("spec", RUNS[:2], ids=["linear", "cosine"])
def test_a_folded_test_pass_gives_the_same_outputs(spec, blocks):
    made = trained(spec, blocks=blocks)
    wanted = made.replica.logits(made.test_images)
    found = folded_logits(made.replica, made.test_images)
    assert relative(found, wanted) < 1e-12
    assert found.dtype == wanted.dtype
    assert not any("BatchNorm" in str(m) for m in folded(made.replica.model).modules())


@pytest.mark.parametrize("pixels", [1, 640, 10**6], ids=["one", "ten", "all"])
def test_images_of_a_chunk_do_not_change_the_outputs(pixels, monkeypatch):
    made = trained(OURS)
    monkeypatch.setitem(wide._PIXELS, "cpu", pixels)
    wanted = made.replica.logits(made.test_images)
    assert relative(folded_logits(made.replica, made.test_images), wanted) < 1e-12


def test_a_folded_test_pass_leaves_the_run_as_it_is():
    made = trained(OURS)
    before = {name: t.clone() for name, t in tensors(made).items()}
    keys = set(made.replica.model.state_dict())
    folded_logits(made.replica, made.test_images)
    assert all(torch.equal(t, before[name]) for name, t in tensors(made).items())
    assert set(made.replica.model.state_dict()) == keys
    assert made.replica.model.training


def test_a_recorded_test_pass_folds_the_weights_of_its_replay():
    made, other = trained(OURS), trained(OTHERS[1])
    logits, tapes = folded_logits(made.replica, made.test_images), Tapes()
    replay = tapes.record(
        lambda: logits.copy_(folded_logits(made.replica, made.test_images)), []
    )
    made.replica.load(other.replica.state)
    replay()
    assert relative(logits, other.replica.logits(made.test_images)) < 1e-12


def learned(precision):
    """A run that tells digits apart, and its test images; seconds of a core."""
    exp = replace(TINY, precision=precision, max_count=80, epochs=8, width=8)
    task = prepare(exp, data.load("digits"))
    replica = build_replica(exp, task.class_counts)
    made = Lane(replica, len(task.labels), task.test_images, task.test_labels)
    rate = torch.tensor(0.05), torch.tensor(0.0), torch.ones(10)
    replica.model.train()
    for epoch in range(1, 9):
        made.begin(*epoch_images(exp, task, epoch), Hyper(*rate))
        for start in range(0, made.count, 32):
            made.step(min(32, made.count - start))
    return made


def test_folded_predictions_are_the_same_in_single_precision():
    made = learned("fp32")
    found = folded_logits(made.replica, made.test_images)
    wanted = made.replica.logits(made.test_images)
    assert 0 < relative(found, wanted) < 1e-5
    assert torch.equal(found.argmax(1), wanted.argmax(1))
    assert len(set(wanted.argmax(1).tolist())) == 10  # it tells classes apart


def test_folding_keeps_the_accuracy_in_half_precision():
    made = learned("bf16")
    found = folded_logits(made.replica, made.test_images)
    wanted = made.replica.logits(made.test_images)
    shares = [
        100 * float((logits.argmax(1) == made.test_labels).double().mean())
        for logits in (found, wanted)
    ]
    assert shares[1] > 60  # it learned
    assert abs(shares[0] - shares[1]) < 1
    assert relative(found, wanted) < 0.02
    assert torch.equal(found, found.bfloat16().float())  # products were rounded
