"""What every test shares: one thread, derandomised properties, CIFAR where it is."""

import os
from pathlib import Path

import hypothesis
import pytest
import torch

torch.set_num_threads(1)

hypothesis.settings.register_profile(
    "repeatable",
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture],
)
hypothesis.settings.load_profile("repeatable")


@pytest.fixture(scope="session")
def data_root() -> Path | None:
    """Folder with CIFAR, or None: tests that use it hold without it too."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    root = Path(os.environ.get("SADDLEBOOK_DATA", beside))
    return root if root.is_dir() else None
