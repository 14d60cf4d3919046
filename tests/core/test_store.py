"""Records and the store: whole, checked, in normal form, and what can be wrong."""

import json
import os
import resource
import tempfile
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from records import EXPERIMENT, record

from saddlebook.disk.files import write_whole
from saddlebook.errors import (
    CorruptError,
    MachineError,
    ResourceError,
    UsageError,
    VerifyError,
)
from saddlebook.experiment import Experiment
from saddlebook.runner import run, run_all
from saddlebook.scales import at_scale
from saddlebook.store import Accuracy, Record, Store


@cache
def base_record():
    return record()


def test_a_record_read_back_is_equal(tmp_path):
    store = Store(tmp_path)
    path = store.add(record())
    assert path.name == f"{EXPERIMENT.slug}.json"
    assert store.get(EXPERIMENT) == record()
    assert path.read_bytes() == store.get(EXPERIMENT).to_bytes()


@given(
    st.lists(st.floats(0, 1e6), min_size=10, max_size=10),
    st.lists(st.floats(0, 100), min_size=10, max_size=10),
)
def test_any_finite_numbers_survive_writing_and_reading(losses, accuracies):
    base = base_record()
    new = {"train_loss": losses, "last_accuracy": accuracies}
    per_class = base.per_class | new | {"best_accuracy": accuracies}
    curves = base.curves | {"accuracy": [sum(accuracies) / 10] * 41}
    one = replace(base, per_class=per_class, curves=curves)
    content = json.loads(one.to_bytes())
    assert Record.from_dict(content) == one
    assert one.per_class["train_loss"] == pytest.approx(losses, rel=5e-6)


def test_numbers_are_kept_to_six_digits_and_the_experiment_exactly():
    experiment = replace(EXPERIMENT, weight_decay=0.000123456789)
    content = json.loads(record(experiment, best_epoch=1).to_bytes())
    assert content["experiment"]["weight_decay"] == 0.000123456789
    timed = record(timing={"seconds": 123.456789, "device": "cpu", "threads": 1})
    assert timed.timing["seconds"] == 123.457


def test_curves_keep_41_epochs_and_the_ones_that_matter():
    epochs = record().curves["epoch"]
    assert len(epochs) == 41
    assert {1, 77, 160, 161, 200} <= set(epochs)
    assert max(b - a for a, b in pairwise(epochs)) <= 8
    assert record().curves["lr"] == [epoch / 200 for epoch in epochs]


def test_more_than_41_milestones_are_all_kept():
    experiment = replace(EXPERIMENT, spectra_at=tuple(range(1, 101)))
    kept = record(experiment, spectra=()).curves["epoch"]
    assert set(range(1, 101)) <= set(kept)


def test_accuracy_is_the_mean_of_classes_overall_and_in_each_group():
    assert record().accuracy == Accuracy(overall=45, head=80, mid=45, tail=10)
    assert record().best == Accuracy(90, 90, 90, 90)
    assert record().tail_train_loss == pytest.approx(0.3)


def test_a_spectrum_is_found_by_class_epoch_and_mode():
    found = record().spectrum(class_=9, epoch=200)
    assert (found.lambda_min, found.lambda_max) == (-0.5, 2.0)
    with pytest.raises(UsageError, match=r"no spectrum of class 8 .*\(9, 160, 'clean'"):
        record().spectrum(8, 200)


def test_the_table_has_a_row_a_record(tmp_path):
    store = Store(tmp_path)
    for seed in (0, 1):
        store.add(record(replace(EXPERIMENT, seed=seed)))
    table = store.table()
    assert sorted(table["seed"]) == [0, 1]
    row = table.iloc[0]
    assert (row.method, row.key, row.rho) == ("CE+DRW", row.slug[-8:], 0.0)
    assert (row.overall, row["head"], row.mid, row["tail"]) == (45, 80, 45, 10)
    assert (row.best_overall, row.best_tail) == (90, 90)
    assert (row.tail_train_loss, row.seconds) == (pytest.approx(0.3), 12.5)


def test_records_come_in_the_order_asked_for_and_a_missing_one_names_the_command(
    tmp_path,
):
    store = Store(tmp_path)
    wanted = [replace(EXPERIMENT, seed=seed) for seed in (2, 0, 1)]
    for experiment in wanted[:2]:
        store.add(record(experiment))
    assert [r.experiment for r in store.records(wanted[:2])] == wanted[:2]
    assert store.missing(wanted) == wanted[2:]
    command = "python -m saddlebook run table1 --scale full"
    with pytest.raises(UsageError, match=f"lacks 1 of 3 .*{command}"):
        store.records(wanted, study="table1")
    assert store.get(wanted[2]) is None
    assert len(store.records()) == 2


def test_a_folder_that_is_not_there_holds_no_records(tmp_path):
    store = Store(tmp_path / "nowhere")
    assert store.records() == []
    assert store.verify() == []
    assert store.missing([EXPERIMENT]) == [EXPERIMENT]


def test_a_record_is_not_overwritten_unless_asked(tmp_path):
    store = Store(tmp_path)
    path = store.add(record())
    store.add(record())
    other = record(best_epoch=78)
    with pytest.raises(UsageError, match="is there already"):
        store.add(other)
    assert store.get(EXPERIMENT) == record()
    assert store.add(other, replace=True) == path
    assert store.get(EXPERIMENT) == other


# Two experiments that eight digits do not tell apart
TWINS = [replace(at_scale(Experiment(), "quick"), seed=seed) for seed in (71312, 78078)]


def test_a_key_of_two_experiments_is_an_error_that_says_so(tmp_path):
    first, second = TWINS
    assert first.key == second.key
    made = run(first, work=tmp_path / "work", results=tmp_path)
    store = Store(tmp_path / "quick")
    assert store.get(first) == made
    for attempt in (
        lambda: store.get(second),
        lambda: store.records([second]),
        lambda: store.records(TWINS),
        lambda: store.add(replace(made, experiment=second)),
        lambda: run(second, work=tmp_path / "work", results=tmp_path),
        lambda: run_all(TWINS, work=tmp_path / "work", results=tmp_path),
    ):
        with pytest.raises(CorruptError, match=f"same key, {first.key}"):
            attempt()
    assert store.records() == [made]
    (tmp_path / f"quick/{second.slug}.json").write_bytes(
        replace(made, experiment=second).to_bytes()
    )
    with pytest.raises(VerifyError, match="stands for another file too"):
        store.verify()


def test_experiments_of_one_key_in_one_call_keep_their_own_results(tmp_path):
    first, second = run_all(TWINS, work=tmp_path)
    assert (first.experiment, second.experiment) == tuple(TWINS)
    assert first.curves != second.curves


def test_of_two_who_add_a_record_at_once_one_is_told(tmp_path):
    """The slower one looks before, and writes after, the faster one has written."""
    store, other = Store(tmp_path), record(best_epoch=78)
    looked = store.get

    def slow(experiment):
        found = looked(experiment)
        write_whole(store._path(experiment), record().to_bytes())
        return found

    store.get = slow
    with pytest.raises(UsageError, match="is there already"):
        store.add(other)
    assert Store(tmp_path).records() == [record()]
    assert len(list(tmp_path.iterdir())) == 1


def test_a_record_of_non_finite_numbers_cannot_be_made():
    losses = record().per_class | {"train_loss": [float("nan")] * 10}
    with pytest.raises(UsageError, match=r"per_class\.train_loss is nan"):
        record(per_class=losses)


def test_a_record_of_more_than_320_kib_cannot_be_written(tmp_path):
    nodes = [i / 7 for i in range(50_000)]
    spectrum = {"class": 0, "epoch": 200, "mode": "clean", "nodes": nodes}
    with pytest.raises(UsageError, match="at most 320"):
        Store(tmp_path).add(record(spectra=[spectrum]))
    (tmp_path / f"{EXPERIMENT.slug}.json").write_bytes(b" " * 400_000)
    with pytest.raises(CorruptError, match="400000 bytes, at most"):
        Store(tmp_path).get(EXPERIMENT)


def test_a_record_under_another_name_or_twice_is_found_out(tmp_path):
    store = Store(tmp_path)
    path = store.add(record())
    content = path.read_bytes()
    other = replace(EXPERIMENT, seed=1)
    (tmp_path / f"{other.slug}.json").write_bytes(content)
    with pytest.raises(CorruptError, match="another experiment"):
        store.get(other)
    (tmp_path / f"{other.slug}.json").unlink()
    (tmp_path / f"copy_{path.name}").write_bytes(content)
    with pytest.raises(VerifyError, match=f"copy_{path.name}: not the name"):
        store.verify()


def test_records_of_different_images_are_found_out(tmp_path):
    store = Store(tmp_path)
    store.add(record())
    store.add(record(replace(EXPERIMENT, seed=1)))
    assert len(store.verify()) == 2
    store.add(record(replace(EXPERIMENT, seed=2), data_digest="d2"))
    with pytest.raises(VerifyError, match="cifar10 come from different images"):
        store.verify()


def test_verify_names_every_damaged_file(tmp_path):
    store = Store(tmp_path)
    paths = [store.add(record(replace(EXPERIMENT, seed=s))) for s in range(3)]
    for path in paths[:2]:
        path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(VerifyError) as caught:
        store.verify()
    assert [path.name in str(caught.value) for path in paths] == [True, True, False]


@contextmanager
def files_of_at_most(size):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_keeps_what_was_there(tmp_path):
    store = Store(tmp_path)
    path = store.add(record())
    with files_of_at_most(1000), pytest.raises(ResourceError, match="disk full"):
        store.add(record(best_epoch=78), replace=True)
    assert os.listdir(tmp_path) == [path.name]
    assert store.get(EXPERIMENT) == record()


@pytest.fixture
def read_only():
    """A folder that may be read only; root, who may write everywhere, gives that up."""
    user = os.geteuid()
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        os.mkdir(f"{folder}/closed", mode=0)
        os.chmod(folder, 0o555)
        if user == 0:
            os.seteuid(65534)
        yield folder
        os.seteuid(user)
        os.chmod(folder, 0o755)


def test_a_folder_that_may_not_be_written_is_refused(read_only):
    with pytest.raises(MachineError, match="cannot write"):
        Store(read_only).add(record())
    assert os.listdir(read_only) == ["closed"]


def test_a_folder_that_may_not_be_read_is_refused(read_only):
    with pytest.raises(MachineError, match="cannot read"):
        Store(f"{read_only}/closed").records()


def test_a_record_is_stale_when_the_code_was_another():
    assert not record().stale
    assert record(provenance=record().provenance | {"numerics": "0" * 16}).stale


def test_spectra_are_stale_when_the_code_that_measured_them_was_another():
    other = record().provenance | {"curvature": "0" * 16}
    assert record(provenance=other).stale
    assert not record(provenance=other, spectra=[]).stale


def test_spectra_from_before_digests_are_not_called_stale():
    early = record().provenance
    del early["curvature"]
    old = Record.from_dict(record(provenance=early).to_dict())
    assert (old.measured_with, old.stale) == ("", False)


def test_what_is_changed_in_a_record_does_not_come_back(tmp_path):
    store = Store(tmp_path)
    store.add(record())
    store.get(record().experiment).curves["tail"][-1] = -1.0
    store.get(record().experiment).spectra[0]["class"] = "mine"
    assert store.get(record().experiment) == record()
