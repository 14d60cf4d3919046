"""Every chapter keeps the book's rules, and runs at quick scale."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import layouts
import matplotlib.pyplot as plt
import pytest
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import capture_output
from papermill.iorw import load_notebook_node
from papermill.parameterize import parameterize_notebook

from saddlebook import data, runner, studies
from saddlebook.book import Page, gather, notebooks
from saddlebook.book.notebooks import PARAMETERS as DEFAULTS
from saddlebook.book.page import SMOKE
from saddlebook.errors import UsageError
from saddlebook.findings import claims, hypotheses
from saddlebook.store import Store

ROOT = Path(__file__).parents[2]
CHAPTERS = sorted((ROOT / "book").glob("*.py"))
TEXTS = sorted((ROOT / "book").glob("*.md"))
IMPORTS = {"saddlebook", "matplotlib", "numpy", "pandas", "torch"}
LINES = [f"{name} = {value!r}" for name, value in DEFAULTS.items()]
PARAMETERS = "\n".join(line for line in LINES if not line.startswith("dataset"))
# Chapters whose runs can be made on a user's images; the others refuse the parameter
ON_IMAGES = {
    "ch13_large_scale",
    "ch07_table",
    "ch08_rho",
    "ch09_rivals",
    "ch10_what_explains_the_gain",
}
TAGS = {"parameters", "remove-cell", "hide-input", "remove-input"}

every_chapter = pytest.mark.parametrize("path", CHAPTERS, ids=lambda p: p.stem)


def cells(path, kind):
    return [cell for cell in notebooks.read(path).cells if cell.cell_type == kind]


def tags(cell):
    return set(cell.metadata.tags)


def code_lines(cell):
    return [line for line in cell.source.splitlines() if line.strip()]


def test_the_book_has_its_chapters():
    assert len(CHAPTERS) >= 3
    assert {path.stem for path in CHAPTERS} == {
        path.stem for path in notebooks.chapters(ROOT)
    }


@every_chapter
def test_a_chapter_starts_with_title_and_parameters_and_ends_with_its_footer(path):
    first, parameters, *_ = notebooks.read(path).cells
    assert first.source.startswith("# ")
    assert tags(parameters) == {"parameters", "remove-cell"}
    given = "\n".join(LINES) if path.stem in ON_IMAGES else PARAMETERS
    assert parameters.source.replace('"', "'") == given
    last = notebooks.read(path).cells[-1]
    assert last.source == "page.footer()"
    assert tags(last) == {"remove-input"}


@every_chapter
def test_cells_are_few_and_short_and_none_is_hidden_that_decides_a_number(path):
    code = cells(path, "code")[1:]  # the parameters are no reader's business
    shown = [cell for cell in code if not tags(cell) & {"hide-input", "remove-input"}]
    assert len(code) <= 14, "two more than twelve: page set-up and footer"
    assert all(len(code_lines(cell)) <= 12 for cell in shown)
    assert all(len(code_lines(cell)) <= 20 for cell in code)
    assert all("remove-cell" not in tags(cell) for cell in code)
    assert set().union(*(tags(cell) for cell in code)) <= TAGS


@every_chapter
def test_a_chapter_defines_and_trains_nothing_itself(path):
    for cell in cells(path, "code"):
        nodes = list(ast.walk(ast.parse(cell.source)))
        kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.While)
        assert not any(isinstance(node, kinds) for node in nodes)
        banned = r"for epoch|\.backward\(|\.cuda\(|train\("
        assert not re.search(banned, cell.source)
        roots = {
            name.split(".")[0]
            for node in nodes
            if isinstance(node, ast.Import | ast.ImportFrom)
            for name in (
                [node.module or ""]
                if isinstance(node, ast.ImportFrom)
                else [alias.name for alias in node.names]
            )
        }
        assert roots <= IMPORTS


@every_chapter
def test_a_chapter_hands_its_parameters_on_as_they_came(path):
    bound = set()
    for cell in cells(path, "code")[1:]:
        for node in ast.walk(ast.parse(cell.source)):
            if isinstance(node, ast.alias):
                bound.add(node.asname or node.name)
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                bound.add(node.id)
    assert not bound & set(DEFAULTS)
    assert f'page = Page("{path.stem}", vars())' in path.read_text()


@every_chapter
def test_prose_is_short_and_types_no_result(path):
    prose = "\n".join(cell.source for cell in cells(path, "markdown"))
    text = re.sub(r"```.*?```|\$\$.*?\$\$|\$[^$]*\$|`[^`]*`", "", prose, flags=re.S)
    assert len(text.split()) <= 1500
    typed = re.findall(r"\d+\.\d+\s*(?:%|percent|points?)", text)
    assert not typed, f"typed by hand: {typed}; publish it with page.value"


@every_chapter
def test_a_chapter_says_what_could_be_wrong_and_sets_two_exercises(path):
    prose = "\n".join(cell.source for cell in cells(path, "markdown"))
    assert "## What could be wrong" in prose
    exercises = prose.split("## Summary and exercises")[1]
    assert {"1.", "2."} <= set(re.findall(r"^\d\.", exercises, flags=re.M))


@every_chapter
def test_every_value_in_the_prose_is_published_by_the_chapter(path):
    quoted = set(re.findall(r"\{glue:text\}`([^`:]+)`", path.read_text()))
    published = set(re.findall(r'page\.value\(\s*"([^"]+)"', path.read_text()))
    if "page.verdict(" in path.read_text():
        published.add("verdict")
    assert quoted <= published


def test_every_work_cited_is_in_the_bibliography():
    known = set(re.findall(r"@\w+\{(\w+),", (ROOT / "book/references.bib").read_text()))
    for path in [*CHAPTERS, *TEXTS]:
        for names in re.findall(r"\{cite:[pt]\}`([^`]+)`", path.read_text()):
            assert set(names.split(",")) <= known, path.name


def test_every_deviation_tagged_in_the_source_is_explained():
    text = (ROOT / "book/deviations.md").read_text()
    tagged = {
        name
        for path in (ROOT / "src").rglob("*.py")
        for name in re.findall(r"DEVIATION\(([\w-]+)\)", path.read_text())
    }
    assert tagged
    assert {name for name in tagged if f"| `{name}` |" not in text} == set()


@pytest.fixture(scope="session")
def quick_results(everyones):
    """Records of quick runs, shared: what one chapter trained, the next one reads."""
    shared = everyones / "chapters"
    shared.mkdir(exist_ok=True)
    return shared


@pytest.fixture
def shell():
    """IPython in this process: a kernel for every chapter takes longer than they do."""
    ours = sys.modules["__main__"]  # IPython puts its own there, which none can spawn
    found = InteractiveShell.instance(history_load_length=0)
    found.history_manager.enabled = False
    sys.modules["__main__"] = ours
    yield found
    found.reset()
    InteractiveShell.clear_instance()
    plt.close("all")


def ran(shell, sources):
    """Outputs of cells, and what they printed."""
    outputs, said = [], ""
    for source in sources:
        with capture_output() as seen:
            done = shell.run_cell(source, store_history=True)
        done.raise_error()
        outputs += seen.outputs
        said += seen.stdout
    return outputs, said


def parameterised(path, given):
    """Code cells of a notebook as papermill hands them to its kernel."""
    notebook = parameterize_notebook(load_notebook_node(str(path)), given)
    return [cell.source for cell in notebook.cells if cell.cell_type == "code"]


@pytest.mark.book
@pytest.mark.filterwarnings("default")  # of three seeds and ten epochs
@every_chapter
def test_a_chapter_runs_at_quick_scale(path, quick_results, shell):
    declared, *code = (cell.source for cell in cells(path, "code"))
    given = f"# Parameters\nscale = 'quick'\nresults = {str(quick_results)!r}"
    outputs, _ = ran(shell, (declared, given, *code))
    assert SMOKE in [out.data.get("text/plain") for out in outputs]
    mark = outputs[-1].metadata["saddlebook"]
    assert mark["chapter"] == path.stem
    for slug, scale in mark["records"].items():
        assert scale == "quick"
        assert (quick_results / "quick" / f"{slug}.json").is_file()


@pytest.mark.book
def test_an_exported_chapter_runs_under_nbmake(tmp_path, quick_results):
    path = CHAPTERS[0]  # the others run under papermill
    given = {"scale": "quick", "device": "cpu", "results": str(quick_results)}
    notebooks.export(path, tmp_path / f"{path.stem}.ipynb", given)
    command = [sys.executable, "-m", "pytest", "--nbmake", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*command, f"--rootdir={tmp_path}", str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:]
    assert "1 passed" in done.stdout


@pytest.mark.book
def test_papermill_on_a_chapter_fails_loudly_on_a_wrong_parameter(tmp_path, shell):
    exported = notebooks.export(CHAPTERS[0], tmp_path / "chapter.ipynb")
    with pytest.raises(UsageError, match="'scael': did you mean 'scale'"):
        ran(shell, parameterised(exported, {"scael": "quick"}))


@pytest.mark.book
def test_the_main_table_is_made_of_a_users_images(tmp_path):
    digits = data.load("digits")
    few = data.long_tail(digits, range(40, 0, -4))
    data.to_folders(few, tmp_path / "mine")
    notebooks.export(ROOT / "book/ch07_table.py", tmp_path / "in.ipynb")
    command = [sys.executable, "-m", "papermill", "in.ipynb", "out.ipynb"]
    command += ["-p", "scale", "quick", "-p", "seeds", "0", "-p", "results", "made"]
    command += ["-p", "dataset", "folder:mine", "-p", "data", str(tmp_path)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    records = Store(tmp_path / "made" / "quick").verify()
    assert {(r.experiment.dataset, r.experiment.imbalance) for r in records} == {
        ("folder:mine", "as_is")
    }
    shown = (tmp_path / "out.ipynb").read_text()
    assert "10 classes, 220 training and 340 test images" in shown
    gains = claims.judge(hypotheses.main_table(), records, "quick")
    assert gains["n"].tolist() == [1] * 12  # every comparison found its pair of runs
    for method in {r.experiment.method for r in records}:
        assert method in shown
    assert claims.signed(gains["difference"][3], 1) in shown


def test_records_of_own_images_are_no_data_of_the_book(tmp_path):
    data.to_folders(data.load("digits"), tmp_path / "mine")
    few = [e for e in studies.named("control", "quick", (0,), "folder:mine")][:1]
    runner.run_all(few, data_root=tmp_path, results=tmp_path, work=tmp_path / "work")
    (tmp_path / "quick").rename(tmp_path / "lite")
    given = {"results": str(tmp_path), "data": str(tmp_path)}
    plain, own = (
        Page("ch07_table", given | more) for more in ({}, {"dataset": "folder:mine"})
    )
    assert gather.every(plain, "lite") == []
    assert [r.experiment.dataset for r in gather.every(own, "lite")] == ["folder:mine"]
    with pytest.raises(UsageError, match="--scale lite --dataset folder:mine"):
        own.records("control")


@pytest.mark.book
def test_a_chapter_makes_what_it_lacks_of_real_images(
    cifar_root, tmp_path, shell, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    short = tmp_path / "src.py"
    text = (ROOT / "book/ch14_run_it_yourself.py").read_text()
    head = text[: text.index("records = page.records(")]
    runs = "[__import__('dataclasses').replace(sb.at_scale(e, 'lite'), epochs=2, "
    runs += "drw_epoch=1, max_count=100) for e in sb.studies.control([0])]"
    short.write_text(
        f"{head}import saddlebook as sb\nrecords = page.records({runs})\n"
        "\n# %%\npage.footer()\n"
    )
    notebooks.export(short, tmp_path / "in.ipynb")
    given = {"data": str(cifar_root), "results": str(tmp_path / "made"), "train": True}
    _, said = ran(shell, parameterised("in.ipynb", given))
    assert "2 runs to make at lite scale" in said
    assert len(Store(tmp_path / "made" / "lite").verify()) == 2


@pytest.mark.book
def test_the_large_chapter_has_torchrun_make_its_runs(tmp_path, shell, capsys):
    layouts.inaturalist(tmp_path, counts=(9, 7, 5, 4, 3, 3, 2, 2, 2), tested=1)
    given = {"scale": "quick", "dataset": "lists:toy", "data": str(tmp_path)}
    given |= {"results": str(tmp_path / "made"), "train": True}
    page = Page("ch13_large_scale", given)
    there = Page("ch13_large_scale", given | {"train": False})
    wanted, none = gather.large_runs(there)
    assert (len(wanted), none) == (4, [])
    gather.make_large(wanted[1:2], page)
    told = "-m saddlebook large lists:toy --scale quick --method CE+DRW+SAM"
    assert told in capsys.readouterr().out
    _, (record,) = gather.large_runs(there)
    assert record in Store(tmp_path / "made/quick").verify()
    assert (record.experiment.method, record.timing["processes"]) == ("CE+DRW+SAM", 1)
    with pytest.raises(UsageError, match="3 processes cannot share 8 shards"):
        gather.large_runs(Page("ch13_large_scale", given | {"workers": 3}))
