"""Trains on long-tailed data with SAM and its rivals, and measures curvature per class.

The names users need are attributes of the package and are imported on first use, so
``import saddlebook`` is quick and asks for nothing but the standard library:

    import saddlebook as sb
    record = sb.run(sb.at_scale(sb.Experiment(optimizer="sam", rho=0.5), "quick"))
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from saddlebook.errors import MachineError, lacks

__version__ = "0.1.0"

# Public name: the module that defines it
_NAMES = {
    "Experiment": "experiment",
    "at_scale": "scales",
    "run": "runner",
    "run_all": "runner",
    "Record": "record",
    "Store": "store",
    "RESULTS": "store",
    "SAM": "optim",
    "frozen_statistics": "optim",
    "Spectrum": "curvature.spectrum",
    "class_spectra": "curvature.hessian",
}
# Public module: where it lies
_MODULES = {
    name.rpartition(".")[2]: name
    for name in (
        "errors", "experiment", "losses", "models", "optim", "studies", "record",
        "store", "runner", "data", "train", "curvature.lanczos", "curvature.hessian",
        "theory.saddles", "findings.report", "figures", "figures.widgets", "book",
    )
}  # fmt: skip
__all__ = ["__version__", *_MODULES, *_NAMES]


def __getattr__(name: str) -> Any:
    if name not in _NAMES and name not in _MODULES:
        raise AttributeError(f"module 'saddlebook' has no attribute {name!r}")
    try:
        module = import_module(f"saddlebook.{_NAMES.get(name) or _MODULES[name]}")
    except ModuleNotFoundError as error:
        raise MachineError(lacks(error)) from error
    return getattr(module, name) if name in _NAMES else module


def __dir__() -> list[str]:
    return sorted(__all__)
