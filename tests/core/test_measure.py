"""What a record keeps of spectra: the plan, its resume, the models and losses."""

from dataclasses import replace

import pytest
import torch

from saddlebook import data, measure, runner
from saddlebook.curvature import hessian
from saddlebook.data import normalise
from saddlebook.disk import files
from saddlebook.disk.files import read_checkpoint
from saddlebook.errors import CorruptError, Stopped
from saddlebook.experiment import Experiment
from saddlebook.findings import tables
from saddlebook.scales import at_scale
from saddlebook.train import train
from saddlebook.train.run import prepare

TINY = Experiment(
    scale="quick", dataset="digits", max_count=20, imbalance_factor=4.0, image_size=8,
    model="resnet8", width=2, epochs=3, drw_epoch=2, batch_size=32, reweight="drw",
    spectra_at=(2, 3),
)  # fmt: skip


@pytest.fixture(scope="module")
def digits():
    return data.load("digits")


@pytest.fixture(scope="module")
def trained(digits, tmp_path_factory):
    return train([TINY.training], digits, tmp_path_factory.mktemp("work"))[0]


def test_no_epochs_no_spectra(digits):
    assert measure.spectra_plan(TINY.training) == []
    assert measure.class_items(TINY.training, digits, {}) == []


def test_the_plan_of_the_figure_measures_both_ways_at_every_epoch():
    figure = at_scale(
        Experiment(reweight="drw", spectra_at=Experiment().milestones), "lite"
    )
    items = measure.spectra_plan(figure)
    names = [(i["epoch"], i["class"], i["mode"]) for i in items]
    assert measure._steps(figure) == 100
    assert len(set(names)) == len(names)
    for epoch in figure.spectra_at:
        for class_ in (5, 7, 8, 9):
            assert (epoch, class_, "clean") in names
            assert (epoch, class_, "as_published") in names
    last = figure.spectra_at[-1]
    assert {c for e, c, m in names if e == last and m == "clean"} == set(range(10))


def test_a_single_epoch_means_one_clean_spectrum_of_every_class():
    items = measure.spectra_plan(replace(TINY, spectra_at=(3,)))
    names = [(i["epoch"], i["class"], i["mode"]) for i in items]
    assert names == [(3, class_, "clean") for class_ in range(10)]


def test_no_spectrum_uses_more_images_than_the_experiment_allows(digits, trained):
    few = replace(TINY, spectra_images=6)
    assert few.training == TINY.training
    task = prepare(few, digits)
    assert (task.class_counts[0], task.class_counts[9]) == (20, 5)
    model = measure.load_model(few, trained.weights[3])

    def images(class_, **how):
        item = measure._item(3, class_, "clean", **how)
        item |= {"limit": measure.limit(few, task.class_counts, item)}
        return measure._measured(few, task, task.test_images, model, item)["images"]

    assert images(0) == 6
    assert images(9) == 5
    assert images(0, cut=9) == 5
    assert images(0, held_out=True) == 6
    assert images(0, images=4) == 4


def test_the_largest_class_is_measured_on_ever_fewer_of_its_images():
    many = replace(TINY, spectra_at=(3,), spectra_plan="head_images", max_count=50)
    assert many.training == replace(TINY.training, max_count=50)
    names = [(i["class"], i["mode"]) for i in measure.spectra_plan(many)]
    assert names == [
        (0, f"{mode}_of{count}")
        for mode in ("clean", "augmented", "as_published")
        for count in (25, 50)
    ]
    assert tables.split("as_published_of25") == ("as_published", "of")


def test_exported_weights_give_the_trained_network_back(digits, trained):
    model = measure.load_model(TINY, trained.weights[3])
    task = prepare(TINY, digits)
    hits = (model(task.test_images).argmax(1) == task.test_labels).double()
    assert 100 * float(hits.mean()) == pytest.approx(
        sum(trained.history[-1]["per_class"]) / 10, abs=0.5
    )


def test_the_loss_measured_is_the_training_loss_of_the_class(digits, trained):
    task = prepare(TINY, digits)
    model = measure.load_model(TINY, trained.weights[3])
    rows = task.labels == 4
    loss = measure.class_loss(TINY, task.class_counts)
    nats = loss(model(normalise(task.images[rows])), task.labels[rows])
    assert float(nats.detach()) == pytest.approx(trained.train_loss[4], rel=1e-4)


def test_a_stopped_measurement_goes_on_where_it_was(
    digits, trained, tmp_path, monkeypatch
):
    weights = {}
    for epoch, path in trained.weights.items():
        weights[epoch] = tmp_path / path.name
        weights[epoch].write_bytes(path.read_bytes())
    short = [
        i for i in measure.spectra_plan(TINY) if i["class"] == 9 and i["of"] == "clean"
    ]
    monkeypatch.setattr(measure, "spectra_plan", lambda experiment: short)
    kept, seen = tmp_path / "spectra.json", []
    with pytest.raises(Stopped, match="after 1 of"):
        measure.class_items(TINY, digits, weights, halted=kept.exists)
    before = kept.read_bytes()
    done = measure.class_items(
        TINY, digits, weights, progress=lambda *told: seen.append(told)
    )
    places, totals, names = zip(*seen, strict=True)
    assert list(places) == sorted(places)
    assert (places[0], len(set(totals))) == (0, 1)
    assert max(places) <= totals[0]
    assert set(names) == {f"epoch {i['epoch']}, class 9, {i['mode']}" for i in done[1:]}
    assert [item["mode"] for item in done] == [item["mode"] for item in short]
    assert files.unsealed(before)[0] in files.unsealed(kept.read_bytes())


@pytest.fixture
def lone_spectrum(trained, tmp_path, monkeypatch):
    """Weights in a folder of their own, and a plan of one spectrum of class 0."""
    files = {e: tmp_path / path.name for e, path in trained.weights.items()}
    for epoch, path in trained.weights.items():
        files[epoch].write_bytes(path.read_bytes())
    only = [measure._item(3, 0, "clean")]
    monkeypatch.setattr(measure, "spectra_plan", lambda experiment: only)
    return files


def test_kept_spectra_serve_only_the_number_of_images_they_were_measured_with(
    digits, lone_spectrum
):
    few = replace(TINY, spectra_images=5)
    (first,) = measure.class_items(few, digits, lone_spectrum)
    (second,) = measure.class_items(TINY, digits, lone_spectrum)
    assert (first["images"], second["images"]) == (5, 20)
    assert "origin" not in first
    assert measure.class_items(few, digits, lone_spectrum) == [first]


@pytest.mark.parametrize("changed", ["curvature", "numerics", "weights"])
def test_kept_spectra_serve_only_the_weights_and_code_they_come_from(
    digits, lone_spectrum, changed
):
    file = lone_spectrum[3].with_name("spectra.json")
    honest = measure.class_items(TINY, digits, lone_spectrum)
    (kept,) = files.unsealed(file.read_bytes())
    planted = kept | {"lambda_min": -99.0}
    file.write_bytes(files.sealed([planted]))
    assert measure.class_items(TINY, digits, lone_spectrum)[0]["lambda_min"] == -99.0
    origin = planted["origin"] | {changed: "0" * 16}
    file.write_bytes(files.sealed([planted | {"origin": origin}]))
    assert measure.class_items(TINY, digits, lone_spectrum) == honest


def test_a_kept_spectrum_with_one_digit_changed_is_named_and_left(
    digits, lone_spectrum
):
    file = lone_spectrum[3].with_name("spectra.json")
    (honest,) = measure.class_items(TINY, digits, lone_spectrum)
    told = f'"lambda_max": {honest["lambda_max"]}'
    assert told in file.read_text()
    changed = file.read_text().replace(told, told.replace("1", "7").replace("2", "3"))
    for content in (changed, "[]", changed[:200]):
        file.write_text(content)
        with pytest.raises(CorruptError, match="holds no spectra"):
            measure.class_items(TINY, digits, lone_spectrum)
        assert file.read_text() == content


def test_a_record_with_spectra_answers_by_class_epoch_and_mode(tmp_path):
    record = runner.run(TINY, work=tmp_path)
    tail = record.spectrum(class_=9, epoch=3)
    assert tail.lambda_min <= tail.lambda_max
    assert record.spectrum(9, 3, "as_published").steps == 12  # at quick
    task = prepare(TINY, data.load("digits"))
    path = tmp_path / TINY.training.slug / "epoch0003.weights"
    again = hessian.spectrum(
        measure.load_model(TINY, path),
        measure.class_loss(TINY, task.class_counts),
        normalise(task.images[task.labels == 9]),
        task.labels[task.labels == 9],
        rtol=0.01,
    )
    assert tail.lambda_max == pytest.approx(again.lambda_max, rel=1e-5)
    # the same training serves the experiment without measurements
    meta, _ = read_checkpoint(path)
    assert meta["experiment"] == TINY.training.to_dict()
    assert replace(TINY, spectra_at=()) == TINY.training
    assert torch.isfinite(torch.tensor(tail.gradient_norm))
