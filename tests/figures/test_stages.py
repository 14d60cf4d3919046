"""Pictures computed beforehand: right for every choice, and nothing but choices."""

import io
import itertools
from dataclasses import replace

import numpy as np
import pytest
import traitlets
from PIL import Image
from records import record
from test_widgets import js as js

from saddlebook import data
from saddlebook.errors import UsageError
from saddlebook.experiment import Experiment
from saddlebook.figures import stages, widgets
from saddlebook.scales import at_scale
from saddlebook.theory import known

STAGES = ("plot.js", "stages.js")


def measured(label, epoch, mode, low, high):
    return {
        "class": label, "epoch": epoch, "mode": mode, "lambda_min": low,
        "lambda_max": high, "nodes": [[low, high]], "weights": [[0.5, 0.5]], "size": 2,
    }  # fmt: skip


@pytest.fixture(scope="module")
def run():
    """Class 9 at two epochs, as published at the last; class 0 at the last only."""
    exp = replace(at_scale(Experiment(seed=0), "quick"), spectra_at=(5, 10))
    spectra = [
        measured(9, 5, "clean", -4.0, 8.0),
        measured(9, 10, "clean", -1.0, 8.0),
        measured(9, 10, "as_published", -6.0, 8.0),
        measured(0, 10, "clean", -1.0, 2.0),
    ]
    return record(exp, [50.0] * 10, [50.0] * 10, epochs=(5, 10), spectra=spectra)


@pytest.fixture(scope="module")
def made(run):
    return {
        "lanczos": stages.lanczos_stepper(12, (0, 1)),
        "tail": stages.tail_explorer((1, 100)),
        "weights": stages.weight_explorer((0, 0.9999), (0, 0.5)),
        "classes": stages.class_stepper([run]),
    }


@pytest.mark.parametrize("name", ["lanczos", "tail", "weights", "classes"])
def test_every_choice_has_its_words_and_its_points(js, made, name) -> None:
    state = made[name].state
    controls = {c["name"]: c["values"] for c in state["controls"]}
    choices = [
        dict(zip(controls, values, strict=True))
        for values in itertools.product(*controls.values())
    ]
    call = "data.all.map((c) => { const s = {...data.state, ...c};"
    call += " return [m.story(s), s.layers.map((l) => m.points(s, l))]; })"
    told = js(STAGES, call, {"state": state, "all": choices})
    assert len(told) == len(choices)
    for sentences, layers in told:
        assert all(s and "{" not in s and "undefined" not in s for s in sentences)
        points = [x for layer in layers for point in layer for x in point]
        assert points
        assert np.isfinite(points).all()


def test_the_stepper_shows_the_book_s_key_idea(js, made) -> None:
    state = made["lanczos"].state | {"step": 12, "start": 1}
    stay = js(STAGES, "m.story(data)[0]", state | {"operator": "fixed"})
    other = js(STAGES, "m.story(data)[0]", state | {"operator": "redrawn"})
    top = known.recurrence_by_step(1, 12, fixed=True).truth[0, -1]
    assert f"to {float(top):.3g}, so" in stay
    assert "none is negative" in stay
    run = known.recurrence_by_step(1, 12)
    assert run.truth.min() >= 0
    assert run.ritz[-1][0] < -0.5
    assert f"from −{-run.ritz[-1][0]:.3g} to" in other


def test_steps_still_to_come_are_not_drawn(js, made) -> None:
    state = made["lanczos"].state | {"step": 3}
    layers = js(STAGES, "data.layers.map((l) => m.points(data, l))", state)
    ritz = [p for p in layers[2] if p[1] <= 3]
    assert len(ritz) == len(layers[2]) == 1 + 2 + 3


def test_truth_stands_beside_the_recurrence() -> None:
    run = known.recurrence_by_step(0, 8, size=120, fixed=True)
    assert (run.truth == run.truth[0]).all()
    for earlier, later in itertools.pairwise(run.ritz):  # Cauchy's interlacing
        assert later[0] <= earlier[0] + 1e-5
        assert later[-1] >= earlier[-1] - 1e-5
    assert run.ritz[-1][-1] <= float(run.truth[0, -1]) + 1e-4


def test_batches_follow_the_counts(made) -> None:
    story = made["tail"].state["story"][0]["values"]
    even, skewed = (np.array(row)[:, 4:] for row in story)
    assert (even.sum(1) == 64).all()
    assert abs(even[:, 2].mean() - 0.3 * 64) < 3 * np.sqrt(64 * 0.3 * 0.7 / 3)
    share = sum(data.class_counts(5000, 10, 100)[7:]) / 12_406
    assert abs(skewed[:, 2].mean() - share * 64) < 3 * np.sqrt(64 * share / 3)


def test_tiles_cut_images_as_training_does(made) -> None:
    layer = made["tail"].state["layers"][2]["points"][1][0]
    columns, rows, cells, labels, down, across, mirrored = np.array(layer).T
    assert sorted(zip(columns, rows, strict=True)) == [*np.ndindex(8, 8)]
    assert set(cells) <= set(range(6))
    assert set(labels) <= set(range(10))
    assert {-4, 4} <= {*down, *across} <= set(range(-4, 5))
    assert 16 < mirrored.sum() < 48


def test_the_sheet_holds_the_first_images_of_the_published_draw(cifar_root) -> None:
    path = widgets.resources.files("saddlebook.figures") / stages.SHEET
    content = path.read_bytes()
    assert len(content) < 60_000
    shown = np.asarray(Image.open(io.BytesIO(content)).convert("RGB"), float)
    images = data.load("cifar10", cifar_root)
    kept = data.long_tail_indices(images.train_labels, [6] * 10)
    truth = images.train_images[kept].numpy().reshape(10, 6, 3, 32, 32)
    truth = truth.transpose(0, 3, 1, 4, 2).reshape(320, 192, 3)
    assert np.abs(shown - truth).mean() < 6  # of 255: it is compressed


def test_weights_move_the_line_and_margins_need_them() -> None:
    plain = known.boundary_toy([400, 12], 0, 0)
    weighted = known.boundary_toy([400, 12], 0.9999, 0)
    both = known.boundary_toy([400, 12], 0.9999, 0.5)
    rare = [toy.right[1] for toy in (plain, weighted, both)]
    assert rare[0] < 60 < rare[1] < rare[2]
    assert plain.right[0] > weighted.right[0] > both.right[0]
    even = known.boundary_toy([500, 500], 0, 0)
    # Bayes: x = 0, right with probability Φ(1)
    assert even.right.tolist() == pytest.approx([84.1, 84.1], abs=3)


def test_a_class_has_only_the_epochs_it_was_measured_at(js, made) -> None:
    state = made["classes"].state
    assert state["label"] == 9
    assert {c["name"]: c["values"] for c in state["controls"]}["epoch"] == [5, 10]
    told = js(STAGES, "m.story(data)[0]", state)
    assert "λmin = −1, λmax = 8, |λmin/λmax| = 0.125" in told
    assert "every product: 0.75." in told
    assert "not measured" in js(STAGES, "m.story(data)[0]", state | {"epoch": 5})


def test_no_class_at_every_epoch_is_said() -> None:
    with pytest.raises(UsageError, match="every epoch"):
        stages.class_stepper([record(at_scale(Experiment(), "quick"), [1.0] * 10)])


@pytest.mark.parametrize("value", ["abc", -7, 3, None])
def test_a_control_takes_what_is_listed_and_says_so(made, value) -> None:
    live = made["tail"].live
    with pytest.raises(traitlets.TraitError, match=r"any of \[1, 100\]"):
        live.imbalance = value
    assert live.imbalance == 100


@pytest.fixture(scope="module")
def alone(made, tmp_path_factory):
    """Address of a page with nothing but the stepper."""
    path = tmp_path_factory.mktemp("page") / "stepper.html"
    path.write_text(f"<!doctype html><meta charset=utf-8>{made['lanczos'].to_html()}")
    return path.as_uri()


@pytest.mark.pages
def test_play_runs_to_the_last_step_and_pauses(browser, alone) -> None:
    page = browser.new_page(reduced_motion="no-preference")
    page.goto(alone)
    step = page.get_by_role("slider", name="Step")
    page.get_by_role("button", name="Play: Step").press("Enter")
    page.get_by_role("button", name="Pause: Step").press("Enter")
    at = step.get_attribute("aria-valuetext")
    assert int(at) > 9
    page.wait_for_timeout(500)
    assert step.get_attribute("aria-valuetext") == at
    page.get_by_role("button", name="Play: Step").press("Enter")
    page.locator("input[aria-valuetext='12']").wait_for()
    page.get_by_role("button", name="Play: Step").wait_for()
    page.close()


@pytest.mark.pages
def test_readers_who_want_calm_get_one_step_a_press(browser, alone) -> None:
    page = browser.new_page(reduced_motion="reduce")
    page.goto(alone)
    page.get_by_role("button", name="Next: Step").press("Enter")
    page.locator("input[aria-valuetext='10']").wait_for()
    page.wait_for_timeout(500)
    step = page.get_by_role("slider", name="Step")
    assert step.get_attribute("aria-valuetext") == "10"
    page.close()
