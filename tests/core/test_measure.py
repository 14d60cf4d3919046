"""What a record keeps of spectra: the plan, its resume, the models and losses."""

from dataclasses import replace

import pytest
import torch
from scipy.sparse.linalg import LinearOperator, eigsh
from torch import nn

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
from saddlebook.train.run import batch_gradient_norms, load_model, prepare

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


@pytest.mark.parametrize("plan", ["largest", "whole", "head_images", "views"])
def test_own_images_are_measured_class_by_class_whatever_the_plan(plan):
    own = Experiment(
        dataset="folder:mine", imbalance="as_is", classes=3, images_digest="0" * 16,
        scale="quick", epochs=4, drw_epoch=2, spectra_at=(4,), spectra_plan=plan,
    )  # fmt: skip
    items = measure.spectra_plan(own)
    assert [(i["class"], i["mode"]) for i in items] == [(c, "clean") for c in range(3)]


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
    model = load_model(few, trained.weights[3])

    def images(class_, **how):
        item = measure.measurement(3, class_, "clean", **how)
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


def test_the_tail_is_measured_in_three_ways_and_all_views_cost_their_number():
    three = replace(TINY, spectra_at=(3,), spectra_plan="views")
    items = measure.spectra_plan(three)
    assert [(i["mode"], i["class"]) for i in items] == [
        (mode, c) for mode in ("clean", "as_published", "augmented") for c in (7, 8, 9)
    ]
    clean, *_, all_views = (
        measure.image_products(three, [20] * 10, item) for item in items
    )
    # 8 pixels with padding 1: nine windows, mirrored or not
    assert all_views == 18 * clean


def test_mixed_batches_take_the_images_of_all_classes_whatever_is_allowed():
    exp = replace(TINY, scale="lite", spectra_at=(3,), spectra_plan="mixed")
    items = measure.spectra_plan(exp)
    assert [(i["mode"], i["class"]) for i in items] == [
        (mode, c) for mode in ("clean", "mixed_statistics") for c in (7, 8, 9)
    ]
    few, counts = replace(exp, spectra_images=4), [20] * 10
    clean, mixed = (measure.image_products(few, counts, items[i]) for i in (0, -1))
    assert mixed == 200 / 4 * clean
    assert [measure.limit(few, counts, items[i]) for i in (0, -1)] == [4, None]


WHOLE = {
    "whole": [(2, "as_published_whole", "bf16"), (2, "clean_whole", None)],
    "largest_fixed": [(0, "clean_whole", None)],
    "all_images": [(None, "clean_whole", "bf16")],
}  # fmt: skip


def test_the_largest_class_as_published_is_a_plan_of_its_own():
    exp = replace(TINY, scale="lite", spectra_at=(3,), spectra_plan="largest")
    (item,) = measure.spectra_plan(exp)
    assert (item["class"], item["mode"]) == (0, "as_published_whole")
    assert item["precision"] == "bf16"


@pytest.mark.parametrize("plan", WHOLE)
def test_what_is_measured_whole_has_the_ends_of_its_hessian(plan, digits, trained):
    """Held against ARPACK's, in float64: the last one of each plan."""
    exp = replace(TINY, scale="lite", spectra_at=(3,), spectra_plan=plan)
    items = measure.spectra_plan(exp)
    told = [(i["class"], i["mode"], i.get("precision")) for i in items]
    assert told == WHOLE[plan]
    task = prepare(exp, digits)
    model = load_model(TINY, trained.weights[3])
    item = items[-1] | {"limit": None}
    found = measure._measured(exp, task, task.test_images, model, item)
    class_ = item["class"]
    rows = task.labels >= 0 if class_ is None else task.labels == class_
    assert found["images"] == rows.sum() == len(task.labels[rows])

    model.double()
    images, labels = normalise(task.images[rows]).double(), task.labels[rows]
    params = list(model.parameters())
    sizes = [p.numel() for p in params]
    loss = nn.functional.cross_entropy(model(images), labels)
    slopes = torch.autograd.grad(loss, params, create_graph=True)

    def product(vector):
        parts = torch.from_numpy(vector).ravel().split(sizes)
        along = sum(
            (s * v.view_as(s)).sum() for s, v in zip(slopes, parts, strict=True)
        )
        back = torch.autograd.grad(along, params, retain_graph=True)
        return torch.cat([part.flatten() for part in back]).numpy()

    shape = (sum(sizes), sum(sizes))
    hessian_of = LinearOperator(shape, matvec=product, dtype=float)
    ends = eigsh(hessian_of, k=2, which="BE", return_eigenvectors=False)
    for end, value in zip(("lambda_min", "lambda_max"), sorted(ends), strict=True):
        bound = found[f"{end}_bound"]
        assert abs(found[end] - value) <= bound + 1e-5 * abs(value)
        assert bound < 0.02 * abs(value)


def test_the_total_loss_is_measured_at_every_epoch_and_its_vectors_at_the_switch():
    names = {"total": [(2, "total"), (3, "total")]}
    names["outliers"] = [
        *names["total"], (2, "outliers"), (3, "outliers"), (2, "outliers_reweighted")
    ]  # fmt: skip
    for plan, wanted in names.items():
        items = measure.spectra_plan(replace(TINY, spectra_plan=plan))
        assert [(i["epoch"], i["mode"]) for i in items] == wanted
        assert {i["class"] for i in items} == {None}


@pytest.mark.parametrize(
    ("epoch", "mode", "weighted"),
    [(2, "outliers", False), (2, "outliers_reweighted", True), (3, "outliers", True)],
)
def test_outliers_and_shares_are_those_of_the_dense_hessian(
    digits, epoch, mode, weighted
):
    exp = replace(TINY, scale="lite", spectra_plan="outliers")
    task = prepare(exp, digits)
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.AvgPool2d(4), nn.Flatten(), nn.Linear(12, 6), nn.BatchNorm1d(6), nn.Tanh(),
        nn.Linear(6, 10),
    ).double().eval()  # fmt: skip
    item = measure.measurement(epoch, None, "clean") | {"mode": mode, "limit": None}
    found = measure._measured(exp, task, task.test_images, model, item)

    images, labels = normalise(task.images).double(), task.labels
    names, params = zip(*model.named_parameters(), strict=True)
    flat = torch.cat([p.detach().flatten() for p in params])
    counts = torch.tensor(task.class_counts).double()
    weight = (1 - exp.beta) / (1 - exp.beta**counts) if weighted else counts**0

    def nats(vector):
        parts = vector.split([p.numel() for p in params])
        shaped = {n: v.view_as(p) for n, v, p in zip(names, parts, params, strict=True)}
        logits = torch.func.functional_call(model, shaped, (images,))
        return -logits.log_softmax(1)[range(len(labels)), labels]

    def total(vector):
        return (weight[labels] * nats(vector)).sum() / weight[labels].sum()

    values, vectors = torch.linalg.eigh(torch.autograd.functional.hessian(total, flat))
    top = values.flip(0)[:10]
    slopes = torch.autograd.functional.jacobian(nats, flat)
    gradients = torch.stack([slopes[labels == c].mean(0) for c in range(10)])
    inside = (gradients @ vectors[:, -10:]).square().sum(1)
    shares = inside / gradients.square().sum(1)
    off = (torch.tensor(found["values"]) - top).abs()
    assert (off <= torch.tensor(found["bounds"]) + 1e-5 * top[0]).all()
    assert found["lambda_max"] == pytest.approx(float(top[0]), rel=0.01)
    assert found["shares"] == pytest.approx(shares.tolist(), abs=0.01)
    norms = gradients.norm(dim=1).tolist()
    assert found["gradient_norms"] == pytest.approx(norms, rel=1e-4)


def test_the_batch_gradient_is_that_of_the_next_step_of_the_run(digits, tmp_path):
    """One batch an epoch, no momentum, no decay: a step is −η·g.

    Weights of an epoch that nobody asked for before make the run train again.
    """
    plain = replace(
        TINY, epochs=6, drw_epoch=4, batch_size=512, momentum=0.0, weight_decay=0.0,
        spectra_at=(), precision="fp64",
    )  # fmt: skip
    (before,) = train([plain], digits, tmp_path)
    exp = replace(plain, spectra_at=(3, 4), spectra_plan="total")
    (after,) = train([exp], digits, tmp_path)
    assert 3 in set(after.weights) - set(before.weights)
    assert after.history == before.history
    task = prepare(exp, digits)
    three, four = (read_checkpoint(after.weights[epoch])[1] for epoch in (3, 4))
    model = load_model(exp, after.weights[3]).double()
    steps = [(four[n] - p.detach()).norm() for n, p in model.named_parameters()]
    far = float(torch.stack(steps).norm()) / exp.lr
    assert batch_gradient_norms(exp, task, model, 3) == pytest.approx([far], rel=1e-5)
    assert not model.training
    for name, kept in model.named_buffers():
        if name in three:
            assert torch.allclose(kept, three[name], rtol=1e-6)


def test_exported_weights_give_the_trained_network_back(digits, trained):
    model = load_model(TINY, trained.weights[3])
    task = prepare(TINY, digits)
    hits = (model(task.test_images).argmax(1) == task.test_labels).double()
    assert 100 * float(hits.mean()) == pytest.approx(
        sum(trained.history[-1]["per_class"]) / 10, abs=0.5
    )


def test_the_loss_measured_is_the_training_loss_of_the_class(digits, trained):
    task = prepare(TINY, digits)
    model = load_model(TINY, trained.weights[3])
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
    only = [measure.measurement(3, 0, "clean")]
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


def test_a_record_with_spectra_answers_by_class_epoch_and_mode(tmp_path, monkeypatch):
    short = [
        i
        for i in measure.spectra_plan(TINY)
        if (i["epoch"], i["class"]) == (3, 9) and i["mode"] in ("clean", "as_published")
    ]
    assert len(short) == 2
    monkeypatch.setattr(measure, "spectra_plan", lambda experiment: short)
    record = runner.run(TINY, work=tmp_path)
    tail = record.spectrum(class_=9, epoch=3)
    assert tail.lambda_min <= tail.lambda_max
    assert record.spectrum(9, 3, "as_published").steps == 12  # at quick
    task = prepare(TINY, data.load("digits"))
    path = tmp_path / TINY.training.slug / "epoch0003.weights"
    again = hessian.spectrum(
        load_model(TINY, path),
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
