"""Experiments: keys that never change, strict values, scales."""

import json
from dataclasses import fields, replace

import pytest

from saddlebook import studies
from saddlebook.errors import UsageError
from saddlebook.experiment import SCALES, Experiment
from saddlebook.scales import at_scale

LARGE = {"dataset": "lists:mine", "imbalance": "as_is", "model": "resnet18"}


def drw_sam(**changes):
    return Experiment(reweight="drw", optimizer="sam", rho=0.5, **changes)


def test_golden_keys():
    assert Experiment().key == "44136fa3"
    assert drw_sam(seed=3).key == "3a20db4e"
    assert at_scale(drw_sam(), "lite").key == "40594ccf"


def test_fields_at_their_default_do_not_enter_the_key():
    assert Experiment(dataset="cifar10", epochs=200, rho=0.0).key == Experiment().key


def test_numbers_are_brought_to_their_type():
    assert Experiment(imbalance_factor=50) == Experiment(imbalance_factor=50.0)
    assert Experiment(imbalance_factor=50).key == Experiment(imbalance_factor=50.0).key
    assert Experiment(spectra_at=[200, 10]).spectra_at == (10, 200)
    assert Experiment(loss=" vs ").loss == "vs"


def test_every_field_changes_the_key():
    other = {
        "scale": "lite", "dataset": "cifar100", "imbalance": "step", "max_count": 9,
        "model": "resnet8", "loss": "vs", "reweight": "drw", "optimizer": "sam",
        "sam_epochs": "after", "sam_bn": "first", "precision": "bf16",
        "spectra_at": (1,), "spectra_images": 9, "spectra_plan": "head_images",
        "beta": 0.5, "momentum": 0.5, "lpf_samples": 4, "classes": 9,
        "images_digest": "0" * 16, "schedule": "cosine", "rho_steps": (1, 1, 1, 1),
        "sam_climb": "shard", "pipeline": "mapped", "shards": 4,
        "sam_classes": "tail",
    }  # fmt: skip
    kinds = [
        {}, {"optimizer": "sam", "rho": 1}, {"optimizer": "pgd", "noise": 1},
        {"optimizer": "lpf", "noise": 1}, {"loss": "vs"}, {"loss": "ldam"},
        {"loss": "focal"}, {"reweight": "drw"}, {"reweight": "dro"},
        {"spectra_at": (200,)},
        {"dataset": "folder:mine"}, LARGE, LARGE | {"optimizer": "sam", "rho": 1},
        LARGE | {"optimizer": "sam", "rho_steps": (1, 2, 3, 4)},
    ]  # fmt: skip
    heeded = set()
    for base in [Experiment(**kind) for kind in kinds]:
        for name in [field.name for field in fields(Experiment)]:
            value = other.get(name) or getattr(base, name) + 1
            try:
                changed = replace(base, **{name: value})
            except UsageError:  # not heeded beside the others
                continue
            assert changed == base or changed.key != base.key
            heeded.add(name)
    assert heeded | {"optimizer"} == {field.name for field in fields(Experiment)}


def test_a_round_trip_through_json_is_the_same_experiment():
    for experiment in studies.dynamics(seeds=(0,)):
        again = Experiment.from_dict(json.loads(json.dumps(experiment.to_dict())))
        assert again == experiment


def test_a_large_weight_decay_is_not_named_a_small_one():
    assert "wd=1e06" in Experiment(weight_decay=1e6).slug


@pytest.mark.parametrize("scale", SCALES)
def test_slugs_and_keys_are_unique_over_all_studies(scale):
    everything = {e for name in studies.STUDIES for e in studies.named(name, scale)}
    assert len({e.slug for e in everything}) == len(everything)
    assert len({e.key for e in everything}) == len(everything)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"imbalance_factor": 0.01}, "100 means 100:1"),
        ({"imbalance_factor": float("nan")}, "finite"),
        ({"imbalance_factor": "0,01"}, "float"),
        ({"rho": -0.1}, "rho"),
        ({"rho": float("inf")}, "finite"),
        ({"epochs": 0}, "epochs"),
        ({"epochs": 2.5}, "int"),
        ({"lr": 0.0}, "positive"),
        ({"weight_decay": -1e-4}, "weight_decay"),
        ({"weight_decay": float("nan")}, "finite"),
        ({"batch_size": 1}, "batch_size"),
        ({"reweight": "drw", "epochs": 150}, "never start"),
        ({"loss": "lda"}, "did you mean 'ldam'"),
        ({"optimizer": "saam"}, "did you mean 'sam'"),
        ({"dataset": "cifar1o"}, "did you mean 'cifar10'"),
        ({"imbalance": "expo"}, "did you mean 'exp'"),
        ({"spectra_at": (201,)}, "spectra_at"),
        ({"optimizer": "lpf", "noise": 1, "lpf_samples": 7}, "divide"),
        ({"optimizer": "sam"}, "rho 0 is SGD"),
        ({"optimizer": "pgd"}, "noise 0 is SGD"),
        ({"optimizer": "lpf"}, "noise 0 is SGD"),
        ({"rho": 0.5}, "no effect with optimizer 'sgd'.*optimizer='sam'"),
        ({"noise": 0.5}, "no effect with optimizer 'sgd'"),
        ({"sam_bn": "first"}, "no effect with optimizer 'sgd'"),
        ({"vs_tau": 2}, "no effect with loss 'ce'"),
        ({"ldam_scale": 2}, "no effect with loss 'ce'"),
        ({"beta": 0.5}, "no effect with reweight 'none'"),
        ({"spectra_images": 5}, "no effect without spectra_at"),
        ({"seed": True}, "int"),
        ({"shards": 2}, "cifar10 takes 1"),
        ({"model": "resnet50"}, "takes 'resnet32'"),
        ({"dataset": "imagenet-lt"}, "takes 'as_is'"),
        (LARGE | {"shards": 3}, "divide batch_size"),
        (LARGE | {"scale": "lite"}, "takes 'full'"),
        (LARGE | {"optimizer": "sam", "rho_steps": (1, 2)}, "four radii"),
        ({"beta": 1.0}, "beta"),
    ],
)
def test_bad_values_are_refused_in_one_line(changes, message):
    with pytest.raises(UsageError, match=message) as error:
        Experiment(**changes)
    assert "\n" not in str(error.value)


def test_an_unknown_field_is_answered_with_the_nearest_name():
    with pytest.raises(UsageError, match="did you mean 'rho'"):
        Experiment.from_dict({"rhoo": 0.5})


def test_methods_have_the_papers_names():
    names = [e.method for e in studies.table1(seeds=(0,))]
    assert names == [
        *("CE", "CE+SAM", "CE+DRW", "CE+DRW+SAM"),
        *("LDAM+DRW", "LDAM+DRW+SAM", "VS", "VS+SAM"),
    ]
    assert drw_sam(weight_decay=1e-3).method == "CE+DRW+SAM wd=0.001"


def test_the_milestones_at_full_scale_are_the_papers():
    assert Experiment().milestones == (10, 50, 100, 160, 170, 190, 200)


@pytest.mark.parametrize("scale", ["lite", "quick"])
def test_scaling_keeps_the_question(scale):
    kept = "loss reweight optimizer sam_bn sam_epochs weight_decay seed beta".split()
    for name in studies.STUDIES:
        for full in studies.STUDIES[name](seeds=(0,)):
            small = at_scale(full, scale)
            assert small.scale == scale
            assert all(getattr(small, f) == getattr(full, f) for f in kept)
            assert (full.precision, full.test_every) == ("bf16", 5)
            assert (small.precision, small.spectra_images) == ("fp32", None)
            assert (small.rho > 0) == (full.rho > 0)
            assert bool(small.spectra_at) == bool(full.spectra_at)
            for end in ("drw_epoch", "epochs"):
                measured = [getattr(e, end) in e.spectra_at for e in (full, small)]
                assert measured[0] == measured[1]
            if small.spectra_plan not in ("total", "outliers"):  # the figure's stages
                assert set(small.spectra_at) <= set(small.milestones)


def test_lite_maps_radius_and_schedule_as_documented():
    lite = at_scale(drw_sam(spectra_at=(160, 200)), "lite")
    assert lite.rho == pytest.approx(0.3)
    assert (lite.epochs, lite.drw_epoch, lite.spectra_at) == (150, 120, (120, 150))


def test_scale_is_decided_once():
    lite = at_scale(drw_sam(), "lite")
    assert at_scale(lite, "lite") == lite
    with pytest.raises(UsageError, match="from full"):
        at_scale(lite, "quick")
    with pytest.raises(UsageError, match="did you mean 'lite'"):
        at_scale(drw_sam(), "light")


def test_the_published_radii_are_those_of_the_released_commands():
    def radii(dataset):
        return [e.rho for e in studies.table1(dataset, (0,)) if e.optimizer == "sam"]

    assert radii("cifar10")[:3] == [0.1, 0.5, 0.8]
    assert radii("cifar100")[:3] == [0.2, 0.8, 0.8]


def test_an_unknown_study_is_answered_with_the_nearest_name():
    with pytest.raises(UsageError, match="did you mean 'table1'"):
        studies.named("tabel1")
