"""Runs side by side: who runs with whom, and what a group does when it is disturbed."""

import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from test_train import SAM, TINY, Stopper

from saddlebook import data, runner, studies
from saddlebook.__main__ import main
from saddlebook.disk.files import locked, read_checkpoint, save_checkpoint
from saddlebook.errors import (
    CorruptError,
    LockedError,
    NumericalError,
    ResourceError,
    Stopped,
)  # fmt: skip
from saddlebook.runner import run_all
from saddlebook.scales import at_scale
from saddlebook.store import Store
from saddlebook.train import alike, train

GROUP = [
    TINY,
    replace(SAM, seed=1),
    replace(TINY, loss="vs", reweight="none", lr=0.05),
    replace(TINY, loss="ldam", optimizer="pgd", noise=0.1),
    replace(TINY, weight_decay=1e-3, optimizer="lpf", noise=2e-3, lpf_samples=2),
]


@pytest.fixture(autouse=True)
def _own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """Results of each run by itself."""
    work = tmp_path_factory.mktemp("alone")
    return results(run_all(GROUP, work=work, group=1))


def results(records):
    return [(r.experiment, r.curves, r.per_class, r.best_epoch) for r in records]


def progress():
    """Epochs reached by the runs that started."""
    files = [runner.Path(runner.WORK) / e.slug / "latest.ckpt" for e in GROUP]
    return [read_checkpoint(file)[0]["epoch"] for file in files if file.exists()]


def test_sgd_and_sam_share_groups_in_the_order_of_the_table():
    table = studies.table1(seeds=(0, 1, 2))
    groups = alike(table, 12)
    assert [e for group in groups for e in group] == table
    assert [len(group) for group in groups] == [12, 12]
    assert [{e.optimizer for e in group} for group in groups] == [{"sgd", "sam"}] * 2
    assert {len(group) for group in alike(studies.optimizers(seeds=(0,)), 12)} == {4}


def test_every_experiment_is_in_one_group_and_groups_are_of_one_shape():
    chosen = studies.table1() + studies.table1_cifar100() + studies.optimizers()
    chosen = list(dict.fromkeys(chosen + [at_scale(e, "lite") for e in chosen]))
    groups = alike(chosen, 7)
    assert sorted(e.key for group in groups for e in group) == sorted(
        e.key for e in chosen
    )
    for group in groups:
        assert len(group) <= 7
        for name in ("scale", "dataset", "model", "epochs"):
            assert len({getattr(e, name) for e in group}) == 1


def test_one_training_is_not_twice_in_a_group():
    chosen = studies.table1(seeds=(0,)) + studies.dynamics(seeds=(0,))
    for group in alike(chosen, 12):
        trained = [e.training for e in group]
        assert len(set(trained)) == len(trained)


@pytest.mark.parametrize("size", [2, 5])
def test_results_do_not_depend_on_the_size_of_a_group(size, alone):
    records = run_all(GROUP, group=size)
    assert results(records) == alone
    assert records[0].timing["side_by_side"] == size


def test_short_memory_halves_a_group_and_changes_no_result(alone, monkeypatch):
    sizes = []

    def short_of_memory(group, *arguments, **options):
        sizes.append(len(group))
        if len(group) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return train(group, *arguments, **options)

    monkeypatch.setattr(runner, "train", short_of_memory)
    assert results(run_all(GROUP, group=5)) == alone
    assert sizes == [5, 2, 3, 1, 2]


def test_a_single_run_without_memory_says_so(monkeypatch, capsys):
    def no_memory(*arguments, **options):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(runner, "train", no_memory)
    with pytest.raises(ResourceError, match="not enough memory on cpu"):
        run_all(GROUP, group=5)
    arguments = ["run", "control", "--scale", "quick", "--seeds", "0", "--quiet"]
    assert main([*arguments, "--group", "2"]) == 7
    assert len(capsys.readouterr().err.strip().splitlines()) == 1


def test_a_run_that_blows_up_leaves_its_group_in_peace(alone):
    wild = replace(TINY, lr=1e200)
    notes = []
    store = Store("results/quick")
    with pytest.raises(NumericalError, match=wild.slug):
        run_all(
            [*GROUP[:2], wild, *GROUP[2:]],
            group=6,
            results="results",
            note=notes.append,
        )
    assert results(store.records(GROUP)) == alone
    assert len(notes) == 1


@pytest.mark.parametrize("step", [3, 17, 40])
def test_a_stopped_group_goes_on_in_groups_of_any_size(step, alone):
    with pytest.raises(Stopped, match="4 more in epoch"):
        run_all(GROUP, group=5, watcher=Stopper(at=step))
    assert results(run_all(GROUP, group=3)) == alone


def test_runs_that_are_unequally_far_join_as_they_are(alone):
    for experiment, step in zip(GROUP[:3], (40, 10, 25), strict=True):
        with pytest.raises(Stopped):
            run_all([experiment], watcher=Stopper(at=step))
    assert len(set(progress())) == 3
    assert results(run_all(GROUP, group=5)) == alone


def test_a_run_held_by_another_process_is_left_out_of_its_group(alone):
    held = GROUP[1].slug
    with locked(f"{runner.WORK}/{held}.lock", held), pytest.raises(LockedError):
        run_all(GROUP, group=5, results="results")
    done = Store("results/quick").records()
    assert {r.key for r in done} == {e.key for e in GROUP if e.slug != held}
    assert results(run_all(GROUP, group=5, results="results")) == alone


def test_one_run_in_another_hand_is_waited_for(alone):
    held, let_go = locked(f"{runner.WORK}/{TINY.slug}.lock", "x"), threading.Event()

    def hold():
        with held:
            let_go.wait(20)

    other = threading.Thread(target=hold)
    other.start()
    threading.Timer(1.5, let_go.set).start()
    while not Path(f"{runner.WORK}/{TINY.slug}.lock").exists():
        time.sleep(0.01)
    with pytest.raises(LockedError, match=TINY.slug):
        runner.run(TINY, patience=0)
    assert results([runner.run(TINY)]) == alone[:1]
    other.join()


def test_a_run_that_another_process_ends_meanwhile_is_no_trouble(alone):
    held = GROUP[0]
    (theirs,) = run_all([held], results="theirs")

    def ends(told):
        Store("results/quick").add(theirs)

    with locked(f"{runner.WORK}/{held.slug}.lock", held.slug):
        done = run_all(GROUP, group=2, results="results", note=ends)
    assert results(done) == alone


@pytest.mark.parametrize("noted", ["NVIDIA H200", None])
def test_a_record_names_the_device_that_trained_and_the_one_that_measured(noted):
    """Networks are brought here from a GPU to be measured; its 39 s are not ours."""
    first = runner.run(TINY)
    file = Path(runner.WORK) / TINY.training.slug / "latest.ckpt"
    meta, tensors = read_checkpoint(file)
    assert first.timing["device"] == first.provenance["device"] == meta["device"]
    del meta["device"]
    save_checkpoint(file, meta | ({"device": noted} if noted else {}), tensors)
    again = runner.run(TINY)
    assert again.timing["device"] == (noted or "not noted")
    assert again.provenance["device"] == first.provenance["device"]
    assert results([again]) == results([first])


def test_other_images_than_before_stop_the_group_and_lose_nothing():
    with pytest.raises(Stopped):
        run_all(GROUP, group=5, watcher=Stopper(at=30))
    before = progress()
    changed = replace(data.load("digits"), digest="0" * 64)
    with pytest.raises(CorruptError, match="dataset digest") as error:
        run_all(GROUP, group=5, dataset=changed)
    assert error.value.exit_code == 4
    assert progress() == before


def test_a_checkpoint_of_another_run_stops_the_command_and_is_kept(capsys):
    (ours, _) = studies.named("control", "quick", [0])
    with pytest.raises(Stopped):
        run_all([replace(ours, lr=0.3)], watcher=Stopper(at=30))
    foreign = runner.Path(runner.WORK) / replace(ours, lr=0.3).slug
    file = foreign.rename(foreign.with_name(ours.slug)) / "latest.ckpt"
    before = file.read_bytes()
    arguments = ["run", "control", "--scale", "quick", "--seeds", "0", "--quiet"]
    assert main(arguments) == 4
    assert "other lr" in capsys.readouterr().err
    assert file.read_bytes() == before


def test_a_precision_asked_for_makes_other_experiments(capsys):
    arguments = ["run", "control", "--scale", "quick", "--seeds", "0", "--quiet"]
    assert main([*arguments, "--precision", "fp64", "--group", "2"]) == 0
    found = Store("results/quick").records()
    assert {r.provenance["precision"] for r in found} == {"fp64"}
    assert {r.experiment for r in found} == {
        replace(e, precision="fp64") for e in studies.named("control", "quick", [0])
    }
    assert main([*arguments, "--precision", "fp63"]) == 2
    assert "did you mean" in capsys.readouterr().err
