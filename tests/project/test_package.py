"""The package's own names: what users import, whatever was imported before."""

import importlib
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest

import saddlebook as sb


def test_public_names_are_the_functions_and_classes_of_the_design():
    for info in pkgutil.walk_packages(sb.__path__, "saddlebook."):
        if not info.name.endswith("__main__"):
            importlib.import_module(info.name)
    assert sb.run.__module__ == "saddlebook.runner"
    assert sb.at_scale(sb.Experiment(), "quick").scale == "quick"
    assert sb.SAM is sb.optim.SAM
    assert sb.class_spectra is sb.hessian.class_spectra
    assert set(sb.__all__) <= set(dir(sb))


def test_importing_the_package_imports_nothing_heavy():
    code = "import sys, saddlebook; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "False"


def test_the_ten_lines_of_the_readme_run_from_any_folder(tmp_path):
    text = (Path(__file__).parents[2] / "README.md").read_text()
    (lines,) = re.findall(r"## Ten lines\n\n```python\n(.*?)```", text, re.S)
    done = subprocess.run(
        [sys.executable, "-c", lines], cwd=tmp_path, capture_output=True, text=True
    )
    tail, *table = done.stdout.splitlines()
    assert float(tail) > 0
    assert "CE+DRW+SAM" in "\n".join(table)


def test_a_name_that_is_not_there_is_an_attribute_error():
    with pytest.raises(AttributeError, match="rum"):
        sb.rum  # noqa: B018
