"""The pipeline from chapter to page: what it lets through and what it refuses."""

import os
import re
import shutil
import sys
import time
from multiprocessing import get_context
from pathlib import Path

import nbformat
import pytest
from hypothesis import given
from hypothesis import strategies as st
from records import record

from saddlebook import book
from saddlebook.book import notebooks, page
from saddlebook.book.reproduce import _publish, _restore
from saddlebook.book.sheets import meanings, with_meanings
from saddlebook.disk.files import write_whole
from saddlebook.errors import UsageError, VerifyError
from saddlebook.experiment import Experiment

ROOT = Path(__file__).parents[2]
# Joined here, so that no file of the project names a path of a machine
HOMES = ["/".join(("", *parts, "x")) for parts in (("home", "someone"), ("root",))]

HEAD = """# %% [markdown]
# # A chapter

# %% tags=["parameters", "remove-cell"]
scale = "lite"
device = "cpu"
results = "results"
data = ""
train = False
seeds = ""
precision = ""
workers = 1

# %% tags=["hide-input"]
from saddlebook.book import Page

page = Page("ch01_toy", vars())

"""
FOOTER = """
# %% tags=["remove-input"]
page.footer()
"""


@pytest.fixture
def chapter(tmp_path):
    """Writes a chapter with the given middle cells."""

    def write(*cells: str, footer: str = FOOTER) -> Path:
        path = tmp_path / "ch01_toy.py"
        path.write_text(HEAD + "".join(f"# %%\n{c}\n\n" for c in cells) + footer)
        return path

    return write


def run(path: Path, **parameters):
    output = path.parent / "out.ipynb"
    given = {"scale": "lite"} | parameters
    return notebooks.execute(path, output, given, root=path.parent, timeout=60)


@pytest.mark.book
def test_a_chapter_that_reaches_its_footer_succeeds(chapter):
    notebook = run(chapter('page.value("seven", 7.04, ".1f")'))
    (glued,) = notebook.cells[4].outputs[0]["data"].values()
    assert glued == "'7.0'"
    assert notebooks.sentinel(notebook.cells[-1].outputs)["chapter"] == "ch01_toy"


@pytest.mark.book
@pytest.mark.parametrize(
    ("cell", "cause"),
    [
        ("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)", "DeadKernel"),
        ("raise SystemExit(0)", "stopped before its last cell|SystemExit"),
        ("assert 1 == 2, 'claim not held'", "AssertionError: claim not held"),
    ],
)
def test_a_chapter_that_stops_on_the_way_fails(chapter, cell, cause):
    path = chapter(cell)
    with pytest.raises(VerifyError, match=f"ch01_toy.*({cause})"):
        run(path)


@pytest.mark.book
def test_a_kernel_ends_with_the_process_that_asked_for_it(chapter, tmp_path):
    told = tmp_path / "pid"
    cell = f"import os, time\nos.makedirs({str(told)!r} + '/' + str(os.getpid()))"
    path = chapter(cell + "\ntime.sleep(99)")
    asking = get_context("spawn").Process(target=run, args=(path,))
    asking.start()
    until(lambda: told.exists() and os.listdir(told))
    kernel = Path("/proc", *os.listdir(told))
    assert kernel.exists()
    asking.kill()
    until(lambda: not kernel.exists())


def until(holds, seconds=60):
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.book
def test_a_chapter_without_footer_fails_although_every_cell_ran(chapter):
    with pytest.raises(VerifyError, match="before its last cell"):
        run(chapter("1 + 1", footer=""))


@pytest.mark.book
def test_missing_records_name_the_command(chapter):
    path = chapter('records = page.records("vs_tuning")')
    with pytest.raises(
        VerifyError,
        match=r"lacks 4 of 4.*run vs_tuning --scale lite.*train=T",
    ):
        run(path)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"scael": "lite"}, "unknown parameter 'scael': did you mean 'scale'"),
        ({"scale": 3}, "scale=3 must be a str"),
        ({"scale": "ful"}, "unknown scale 'ful': did you mean 'full'"),
        ({"device": "gpu9"}, "unknown device"),
        ({"precision": "fp8"}, "unknown precision"),
        ({"seeds": "0;1"}, "must be integers such as 0,1,2"),
        ({"seeds": 77}, "seed 77 is in no study"),
        ({"seeds": True}, "must be a str"),
        ({"train": "yes"}, "must be a bool"),
        ({"workers": 0}, "at least 1"),
        ({"dataset": "folder:mine"}, "unknown parameter 'dataset'"),
        ({"workers": "2"}, "must be a int"),
        ({"rho = 1\nimport os": 1}, "unknown parameter"),
        ({"__class__": 1}, "unknown parameter"),
    ],
)
def test_bad_parameters_are_refused_before_a_kernel_starts(chapter, given, message):
    path = chapter("1")
    with pytest.raises(UsageError, match=message):
        notebooks.execute(path, path.parent / "out.ipynb", given, root=path.parent)
    assert not (path.parent / "out.ipynb").exists()


@pytest.mark.parametrize("value", ["cifar100", "folder:../mine", "folder:", "mine", 1])
def test_a_page_takes_no_other_images_than_a_folder_of_ones_own(value):
    with pytest.raises(UsageError, match=r"folder:NAME|must be a str|unknown dataset"):
        notebooks.check_parameters('dataset = ""', {"dataset": value})


@pytest.mark.parametrize(
    "value", [float("nan"), float("inf"), "0,8", [0.5], None, True]
)
def test_a_number_must_be_a_finite_number(value):
    with pytest.raises(UsageError, match="rho"):
        notebooks.check_parameters("rho = 0.5", {"rho": value})


@given(st.text(max_size=20))
def test_no_name_but_a_declared_one_is_a_parameter(name):
    if name != "scale":
        with pytest.raises(UsageError, match="unknown parameter"):
            notebooks.check_parameters("scale = 'lite'", {name: "lite"})


def test_a_parameters_cell_holds_values_only():
    with pytest.raises(UsageError, match="parameters cell"):
        notebooks.check_parameters("import os", {})


@pytest.mark.parametrize("count", [0, 2])
def test_a_chapter_has_one_parameters_cell(tmp_path, count):
    path = tmp_path / "ch01_toy.py"
    path.write_text('# %% tags=["parameters"]\nscale = "lite"\n\n' * count + "# %%\n1")
    with pytest.raises(UsageError, match=f"{count} cells tagged 'parameters'"):
        notebooks.execute(path, tmp_path / "out.ipynb", {})


def notebook_with(*outputs) -> nbformat.NotebookNode:
    cell = nbformat.v4.new_code_cell("x", outputs=list(outputs), metadata={"tags": []})
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    return nbformat.v4.new_notebook(
        cells=[cell], metadata={"kernelspec": kernel, "papermill": {"a": "b"}}
    )


def shown(**data):
    ours = data.pop("ours", False)
    return nbformat.v4.new_output(
        "display_data", data=data, metadata={"saddlebook": {}} if ours else {}
    )


@pytest.mark.parametrize(
    ("output", "why"),
    [
        (shown(**{"text/html": "<script>alert(1)</script>"}), "not the library's"),
        (shown(**{"application/javascript": "1"}), "script"),
        (nbformat.v4.new_output("stream", name="stderr", text="warning"), "stderr"),
        (nbformat.v4.new_output("stream", text=HOMES[0]), "path"),
        (shown(**{"text/html": f"<p>{HOMES[1]}", "ours": True}), "path"),
        (shown(**{"text/plain": "C:\\\\Users\\\\me"}), "path"),
    ],
)
def test_a_page_holds_no_foreign_html_stderr_or_machine_path(output, why):
    with pytest.raises(VerifyError, match=why):
        notebooks.tidy(notebook_with(output), "ch01")


def test_tidy_drops_run_metadata_and_live_views_beside_their_html_twin():
    view = shown(**{"application/vnd.jupyter.widget-view+json": {}})
    output = shown(**{"text/html": '<div class="afm-static">'})
    tidied = notebooks.tidy(notebook_with(output, view), "ch01")
    assert len(tidied.cells[0].outputs) == 1
    assert set(tidied.metadata) == {"kernelspec"}
    assert set(tidied.cells[0].outputs[0].data) == {"text/html"}


def test_injected_parameters_are_hidden_from_readers(chapter, tmp_path):
    path = notebooks.export(chapter("1"), tmp_path / "x.ipynb", {"scale": "quick"})
    (cell,) = [c for c in nbformat.read(path, 4).cells if '"quick"' in c.source]
    assert cell.metadata.tags == ["injected-parameters", "remove-cell"]


BIBLIOGRAPHY = """@article{one,
  author = {Able, Ann and Baker, Bo and Case, Cy},
  year = {2020},
  eprint = {2001.00001}
}
@book{two,
  author = {Dole, Di},
  doi = {10.1/x},
  year = {1999}
}
"""


def test_jupyter_shows_citations_roles_and_boxes_as_text(tmp_path):
    (tmp_path / "references.bib").write_text(BIBLIOGRAPHY)
    sources = notebooks.works(tmp_path / "references.bib")
    told = [
        ("{cite:p}`one,two`", "([Able et al. 2020](https://arxiv.org/abs/2001.00001); "
         "[Dole 1999](https://doi.org/10.1/x))"),
        ("{cite:t}`two` say", "[Dole (1999)](https://doi.org/10.1/x) say"),
        ("see {doc}`ch01_x`", "see [ch01_x](ch01_x.ipynb)"),
        ("{glue:text}`kept` images", "`kept` images"),
        ("```{admonition} Guess\nOne\nTwo\n```", "> **Guess**\n> \n> One\n> Two"),
    ]  # fmt: skip
    for myst, plain in told:
        assert notebooks.without_myst(myst, sources) == plain


def test_no_chapter_leaves_a_role_in_its_copy(tmp_path):
    sources = notebooks.works(ROOT / "book/references.bib")
    for path in notebooks.chapters(ROOT):
        copy = nbformat.read(notebooks.export(path, tmp_path / "x.ipynb"), 4)
        text = "\n".join(c.source for c in copy.cells if c.cell_type == "markdown")
        assert not re.search(r"\{[a-z:]+\}`|```\{", text), path.stem
        assert "]()" not in text
    assert all(link for _, _, link in sources.values())


@pytest.mark.parametrize("given", [None, {"scale": "quick"}])
def test_exporting_twice_gives_the_same_bytes(chapter, tmp_path, given):
    path = chapter("1")
    first = notebooks.export(path, tmp_path / "a.ipynb", given).read_bytes()
    assert notebooks.export(path, tmp_path / "b.ipynb", given).read_bytes() == first


@pytest.fixture
def site(tmp_path):
    """A site of one page with a script and a figure."""
    (tmp_path / "a.html").write_text(
        "<html>" + " " * 1000 + '<script src="a.js?v=1"></script><img src="f.png">'
    )
    (tmp_path / "a.js").write_text("1")
    (tmp_path / "f.png").write_text("1")
    return tmp_path


def test_a_whole_site_passes(site):
    book.check_pages(site, ["a"])


def test_a_site_with_a_page_or_figure_missing_or_empty_is_refused(site):
    (site / "f.png").write_text("")
    with pytest.raises(VerifyError, match=r"f\.png is missing or empty"):
        book.check_pages(site, ["a"])
    with pytest.raises(VerifyError, match="page b is missing"):
        book.check_pages(site, ["a", "b"])


@pytest.mark.parametrize("link", ["https://cdn.example/x.js", "//cdn.example/x.js"])
def test_a_site_that_loads_from_the_network_is_refused(site, link):
    with (site / "a.html").open("a") as out:
        out.write(f'<script src="{link}"></script>')
    with pytest.raises(VerifyError, match="from the network"):
        book.check_pages(site, ["a"])


@pytest.fixture
def toy_book(tmp_path):
    """A book of one chapter with this book's settings."""
    root = tmp_path / "toy"
    (root / "book").mkdir(parents=True)
    shutil.copy(ROOT / "_config.yml", root)
    shutil.copytree(ROOT / "book/_static", root / "book/_static")
    shutil.copy(ROOT / "book/references.bib", root / "book")
    (root / "_toc.yml").write_text("format: jb-book\nroot: book/ch01_toy\n")
    shutil.copy(ROOT / "CITATION.cff", root)
    shutil.copy(ROOT / "book/notation.md", root / "book")
    return root


def write_toy(root: Path, cell: str) -> None:
    text = HEAD.replace("A chapter", "A chapter with {glue:text}`seven` and $x^2$")
    (root / "book/ch01_toy.py").write_text(f"{text}# %%\n{cell}\n{FOOTER}")


@pytest.mark.book
def test_where_a_book_cannot_be_built_the_old_pages_stay(toy_book):
    old = toy_book / "_build/html/book/ch01_toy.html"
    write_whole(old, b"as it was built before")
    write_toy(toy_book, "page.value('eight', 8)")  # the glued value is gone
    with pytest.raises(VerifyError, match="seven"):
        book.build(toy_book)
    assert old.read_text() == "as it was built before"


def test_a_chapter_missing_or_not_listed_stops_the_book(toy_book):
    with pytest.raises(VerifyError, match=r"missing \['ch01_toy'\]"):
        book.build(toy_book)
    write_toy(toy_book, "1")
    shutil.copy(toy_book / "book/ch01_toy.py", toy_book / "book/ch02_more.py")
    with pytest.raises(VerifyError, match=r"not listed \['ch02_more'\]"):
        book.build(toy_book)


def test_a_quick_book_is_never_published(toy_book):
    with pytest.raises(UsageError, match="no evidence"):
        book.build(toy_book, scale="quick")


@given(st.text(max_size=200))
def test_text_on_a_page_cannot_become_markup(text):
    outputs = []
    original, page._display = page._display, lambda data, **meta: outputs.append(data)
    try:
        page.Page("ch01_toy").claim(text, text, text, text)
    finally:
        page._display = original
    inside = outputs[0]["text/html"]
    assert inside.count("<") == inside.count(">")
    assert "<script" not in inside.lower() or "&lt;script" in inside.lower()


def test_values_that_are_not_finite_are_not_published():
    with pytest.raises(UsageError, match="cannot quote"):
        page.Page("ch01_toy").value("tail", float("nan"), ".1f")


def test_the_page_names_its_parameters_like_the_command_line():
    with pytest.raises(UsageError, match="did you mean 'lite'"):
        page.Page("ch01_toy", scale="lit")
    with pytest.raises(UsageError, match="unknown device"):
        page.Page("ch01_toy", device="gpu9")


def test_the_cost_of_a_page_counts_a_training_once():
    measured = record()
    trained = record(measured.experiment.training)
    assert page.provenance([measured, trained])["Cost"].startswith("12 s of training")
    other = record(Experiment(reweight="drw", seed=1))
    assert page.provenance([measured, other])["Cost"].startswith("25 s of training")


STEPS = ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "shutil.rmtree")


def test_a_kill_while_pages_are_replaced_leaves_the_old_or_the_new(
    tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    final = Path("html")

    def write(folder, text):
        (Path(folder) / "deep").mkdir(parents=True)
        for name in ("a", "b", "deep/c"):
            (Path(folder) / name).write_text(text)

    def content():
        return [p.read_text() for p in sorted(final.rglob("*")) if p.is_file()]

    write("html", "old")
    codes, place = set(), 0
    while 0 not in codes:  # each turn is killed one step later
        write("new", f"{place}")
        before = content()
        child = os.fork()
        if child == 0:
            left = [place]

            def hook(event, arguments, left=left):
                if event in STEPS:
                    left[0] -= 1
                    if left[0] < 0:
                        os._exit(9)

            sys.addaudithook(hook)
            _publish(Path("new"), final)
            os._exit(0)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        _restore(final)
        assert content() in (before, 3 * [f"{place}"])
        codes.add(code)
        shutil.rmtree("new", ignore_errors=True)
        place += 1
    assert codes == {0, 9}
    assert place > 4


def test_the_first_use_of_a_word_on_a_page_carries_its_meaning():
    words = meanings((ROOT / "book/notation.md").read_text())
    assert words["SAM"].startswith("sharpness-aware minimisation")
    body = "<h1>SAM</h1><p>CE+SAM <code>SAM</code> and SAM, SAM</p><script>SAM</script>"
    told = with_meanings(body, {"SAM": 'a "b"'})
    marked = '<abbr class="sb-term" tabindex="0" title="a &quot;b&quot;">SAM</abbr>'
    assert told == body.replace("and SAM", f"and {marked}")
    assert with_meanings(body, words).count("<abbr") == 1
