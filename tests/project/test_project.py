"""The project around the code: files, names, limits, pins, licences."""

import ast
import hashlib
import re
import statistics
import subprocess
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest

import saddlebook

ROOT = Path(__file__).parents[2]
SOURCES = sorted((ROOT / "src").rglob("*.py"))
VENDOR = ROOT / "book/_static/vendor"
NOT_OURS = ("ipynb", "pt", "pth", "pkl", "npz", "ckpt")


def tracked() -> list[Path]:
    """Files in the commit or about to be: what a clone would hold."""
    command = ["git", "-C", str(ROOT), "ls-files", "-co", "--exclude-standard"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return [path for name in done.stdout.split() if (path := ROOT / name).is_file()]


TRACKED = tracked()
TEXTS = [
    path
    for path in TRACKED
    if VENDOR not in path.parents
    and path.suffix not in {".png", ".webp", ".woff", ".weights"}
]
PROSE = [path for path in TEXTS if path.suffix != ".csv"]


def test_no_notebook_weights_or_large_file_is_in_the_project():
    assert len(TRACKED) > 30
    assert [p for p in TRACKED if p.suffix.lstrip(".") in NOT_OURS] == []
    large = [p for p in TEXTS if p.stat().st_size > 200_000]
    assert large == [
        ROOT / "requirements.lock"
    ]  # hashes of every file for every system


def test_no_file_names_a_machine():
    path = re.compile(r"(?<![\w.])/(?:root|home|Users|work|tmp)/[a-z]", re.I)
    looks_for_them = ROOT / "src/saddlebook/book/notebooks.py"
    named = [
        p
        for p in TEXTS
        # tests hold such paths as bait
        if p != looks_for_them and ROOT / "tests" not in p.parents
        if path.search(p.read_text())
    ]
    assert named == []
    assert [p for p in TEXTS if str(ROOT) in p.read_text()] == []


BANNED = (
    "cls_num_list", "imb_factor", "train_rule", "max_m", "lambda_ratio", "utils",
    "helpers", "misc",
)  # fmt: skip


def names_in(path: Path, fields: tuple[str, ...]) -> set[str]:
    nodes = ast.walk(ast.parse(path.read_text()))
    values = {getattr(node, field, None) for node in nodes for field in fields}
    return {value for value in values if isinstance(value, str)}


def test_one_name_for_one_thing():
    for path in [*SOURCES, *(ROOT / "book").glob("*.py")]:
        assert not names_in(path, ("id", "arg", "name", "attr")) & set(BANNED), (
            path.name
        )
    assert not [path for path in SOURCES if path.stem in BANNED]


def public(tree: ast.Module):
    kinds = (ast.FunctionDef, ast.ClassDef)
    for node in tree.body:
        if isinstance(node, kinds) and not node.name.startswith("_"):
            yield node
            if isinstance(node, ast.ClassDef):
                yield from (
                    part
                    for part in node.body
                    if isinstance(part, ast.FunctionDef) and part.name[0] != "_"
                )


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: p.stem)
def test_all_that_is_public_says_what_it_is(path):
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree), f"{path.name} has no docstring"
    missing = [
        node.name
        for node in public(tree)
        if not ast.get_docstring(node)
        # an nn.Module's forward is described by its class
        and node.name not in {"forward", "epoch_done"}
    ]
    assert missing == []


def code_lines(node: ast.AST, text: str) -> int:
    """Lines with code: no blank, no comment, no docstring."""
    numbers = {
        line
        for part in ast.walk(node)
        if isinstance(part, ast.stmt | ast.expr)
        for line in (part.lineno, part.end_lineno or part.lineno)
    }
    for part in ast.walk(node):
        body = getattr(part, "body", None)
        first = body[0] if isinstance(body, list) and body else None
        is_text = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
        if is_text and isinstance(first.value.value, str):
            numbers -= set(range(first.lineno, first.end_lineno + 1))
    return len(numbers)


def functions():
    for path in SOURCES:
        text = path.read_text()
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                yield path, node, code_lines(node, text)


def test_files_and_functions_stay_short():
    long = [p.name for p in SOURCES if code_lines(ast.parse(p.read_text()), "") > 300]
    assert long == []
    engine = [ROOT / f"src/saddlebook/{room}/large.py" for room in ("data", "train")]
    assert sum(code_lines(ast.parse(p.read_text()), "") for p in engine) <= 500
    lengths = [lines for _, _, lines in functions()]
    assert statistics.median(lengths) <= 8
    assert statistics.quantiles(lengths, n=10)[-1] <= 25


def pins(folder: str = ".") -> dict[str, str]:
    lines = (ROOT / folder / "requirements.txt").read_text().splitlines()
    return dict(line.split("==") for line in lines if line and line[0] != "#")


def test_every_requirement_is_pinned_and_installed_as_pinned():
    assert {"torch", "torchvision", "jupyter-book", "jupytext", "matplotlib"} <= set(
        pins()
    )
    wrong = {
        name: version(name) for name, pin in pins().items() if version(name) != pin
    }
    assert wrong == {}


@pytest.mark.parametrize("folder", [".", "workflow"])
def test_everything_that_is_installed_has_its_version_and_hashes(folder):
    text = (ROOT / folder / "requirements.lock").read_text()
    assert "://" not in text
    entries = re.split(r"\n(?=\S)", text.strip())
    locked = [re.match(r"([\w.-]+)==([^ ]+)", entry).groups() for entry in entries]
    for name, pin in pins(folder).items():
        assert (name.lower().replace("_", "-"), pin) in locked
    assert all(re.search(r"--hash=sha256:[0-9a-f]{64}", entry) for entry in entries)


# Names on the registry that are imported, or run, under another one
USED_AS = {
    "scikit-learn": "sklearn", "pillow": "PIL", "pyyaml": "yaml",
    "pytest-xdist": "-n auto", "jupyter-book": "jupyter-book",
    "sphinx": "sphinx:", "myst-nb": "nb_", "myst-parser": "myst_enable_extensions",
    "sphinx-book-theme": "html_theme_options", "pydata-sphinx-theme": "navbar_start",
    "sphinxcontrib-bibtex": "bibtex_bibfiles", "ipykernel": "python3",
    "ipython": "IPython", "curvlinops-for-pytorch": "curvlinops",
    "hessian-eigenthings": "hessian_eigenthings", "nbmake": "--nbmake",
    "pandas-stubs": "import pandas", "setuptools": "--no-build-isolation",
    "pip": "-m pip install", "jsonschema": "nbformat",  # which imports it
}  # fmt: skip


@pytest.mark.parametrize("name", pins())
def test_every_requirement_is_used(name):
    sign = USED_AS.get(name.lower(), name.replace("-", "_"))
    folders = ("src", "tests", "book", "benchmarks")
    here = Path(__file__).resolve()
    places = [p for p in PROSE if p.relative_to(ROOT).parts[0] in folders and p != here]
    places += [ROOT / "Makefile", ROOT / "_config.yml"]
    assert any(sign in path.read_text() for path in places), f"{name} is not used"


def test_vendored_files_are_the_ones_named_with_their_licence():
    text = (VENDOR / "VENDOR.md").read_text()
    named = dict(re.findall(r"^\| `([^`]+)` \| `([0-9a-f]{64})` \|$", text, re.M))
    files = {p for p in VENDOR.rglob("*") if p.is_file() and p.name != "VENDOR.md"}
    found = {
        str(p.relative_to(VENDOR)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in files
    }
    assert found == named
    assert "mathjax/LICENSE" in found


def test_version_licence_and_citation_agree():
    package = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    citation = (ROOT / "CITATION.cff").read_text()
    assert package["version"] == saddlebook.__version__
    assert f"version: {saddlebook.__version__}" in citation
    assert f"## {saddlebook.__version__}" in (ROOT / "CHANGELOG.md").read_text()
    assert package["license"] == "MIT"
    assert "The saddlebook authors" in (ROOT / "LICENSE").read_text()


def test_make_help_names_every_target():
    done = subprocess.run(
        ["make", "-C", str(ROOT), "--no-print-directory", "help"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    listed = re.findall(r"^make (\w+)", done.stdout, re.M)
    wanted = "help setup lint type test quick lite full front book lab serve bench"
    assert listed == [*wanted.split(), "faults", "check", "clean"]


def test_the_book_loads_nothing_from_outside():
    config = (ROOT / "_config.yml").read_text()
    assert "http" not in config
    assert "http" not in (ROOT / "book/_static/saddlebook.css").read_text()
