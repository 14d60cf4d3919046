"""The package's own names: what users import, whatever was imported before."""

import importlib
import os
import pkgutil
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import saddlebook as sb

ROOT = Path(__file__).parents[2]
EXTRAS = ["torchvision", "pandas", "pyarrow", "PIL", "sklearn", "scipy", "matplotlib",
          "tqdm", "jupytext", "papermill", "IPython", "ipywidgets", "yaml"]  # fmt: skip


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


def test_the_wheel_works_outside_a_checkout_with_torch_and_numpy_alone(tmp_path):
    build = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--quiet"]
    build += ["--wheel-dir", str(tmp_path), str(tmp_path)]
    for name in ("src", "pyproject.toml", "README.md", "LICENSE"):
        source, target = ROOT / name, tmp_path / name
        copy = shutil.copytree if source.is_dir() else shutil.copy2
        copy(source, target)
    made = subprocess.run(build, capture_output=True, text=True)
    if "No matching distribution found for setuptools" in made.stderr:
        pytest.skip("building a wheel needs a package registry")
    assert made.returncode == 0, made.stderr
    (wheel,) = tmp_path.glob("*.whl")
    code = f"""
import sys
sys.path = [{str(wheel)!r}, *(p for p in sys.path if "saddlebook" not in p)]
sys.modules.update(dict.fromkeys({EXTRAS}))
import saddlebook as sb, torch
assert {str(wheel)!r} in sb.__file__
model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 3))
images, labels = torch.randn(9, 1, 2, 2), torch.arange(9) % 3
loss = sb.losses.VSLoss([5, 3, 1])
sam = sb.SAM(model.parameters(), torch.optim.SGD, rho=0.1, lr=0.1)
def closure():
    sam.zero_grad()
    value = loss(model(images), labels)
    value.backward()
    return value
sam.step(closure)
ce = torch.nn.functional.cross_entropy
found = sb.class_spectra(model, ce, images, labels, steps=5)
assert set(found) == {{0, 1, 2}}
try:
    sb.report
except sb.errors.MachineError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path, capture_output=True, text=True, env={"PATH": os.environ["PATH"]},
    )  # fmt: skip
    assert "saddlebook[book]" in done.stdout, done.stderr


def test_a_name_that_is_not_there_is_an_attribute_error():
    with pytest.raises(AttributeError, match="rum"):
        sb.rum  # noqa: B018
