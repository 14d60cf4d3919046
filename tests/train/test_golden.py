"""Twenty-five steps whose losses are pinned: what may not move without being said.

If one of these moves, results move: say why in CHANGELOG.md, empty
``provenance.SAME_CURVES``, and run the studies again.
"""

from dataclasses import replace

import pytest

from saddlebook import data
from saddlebook.experiment import Experiment
from saddlebook.train import train

BASE = Experiment(
    scale="quick", dataset="digits", max_count=40, imbalance_factor=4.0, image_size=8,
    model="resnet8", width=4, epochs=5, drw_epoch=3, batch_size=32, precision="fp64",
    reweight="drw",
)  # fmt: skip
CURVES = {
    "sgd": (
        {},
        [2.5241713223, 2.2391820977, 2.0915955983, 2.1774296598, 2.2222257874],
    ),
    "sam": (
        {"optimizer": "sam", "rho": 0.1},
        [2.4394145315, 2.1584174962, 2.0906079110, 2.1723254781, 2.1715532796],
    ),
    "ldam": (
        {"loss": "ldam"},
        [22.858183381, 16.994858255, 15.133340105, 16.145342447, 16.096071390],
    ),
    "vs": (
        {"loss": "vs", "reweight": "none"},
        [2.3523006605, 2.0929649334, 1.8962166649, 1.8401390174, 1.8182332070],
    ),
}


@pytest.mark.parametrize("name", CURVES)
def test_the_loss_curve_is_the_pinned_one(name, tmp_path):
    changes, curve = CURVES[name]
    (outcome,) = train([replace(BASE, **changes)], data.load("digits"), tmp_path)
    ours = [row["train_loss"] for row in outcome.history]
    assert ours == pytest.approx(curve, rel=1e-6)
