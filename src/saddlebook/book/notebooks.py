"""Runs chapters through papermill and makes the executed notebooks fit for readers.

What papermill puts in is checked first, from source text and IPython's cells; what a
value may be, ``studies.check_values`` says. A chapter succeeded if its last cell left
the footer's mark and the records named there verify; papermill's exit code and metadata
say "completed" after a killed kernel.
"""

from __future__ import annotations

import ast
import itertools
import math
import os
import re
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context, parent_process
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import yaml
from tqdm import tqdm

from saddlebook.disk.files import write_whole
from saddlebook.errors import SaddlebookError, UsageError, VerifyError, one_of
from saddlebook.studies import check_values

SCALES = ("full", "lite", "quick")  # of a page; ``lab`` is the live panel's
# Of every chapter, with their defaults, which set the types; ``dataset`` only of those
# whose runs can be made on own images
PARAMETERS: dict[str, Any] = {
    "scale": "lite", "device": "cpu", "results": "results", "data": "", "train": False,
    "seeds": "", "precision": "", "workers": 1, "dataset": "",
}  # fmt: skip


def check_parameters(declared: str, given: Mapping[str, Any]) -> None:
    """Refuse parameters that a chapter does not declare, or of another type.

    Args:
        declared: Source of the chapter's ``parameters`` cell; its values set the types.
        given: Names and values to run it with.

    Raises:
        UsageError: Names the parameter, and the nearest one there is.
    """
    check_types(_assigned(declared), given)


def check_types(defaults: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    """Refuse names without a default, other types, and values that cannot be.

    Raises:
        UsageError: Names the parameter, and the nearest one there is.
    """
    for name, value in given.items():
        one_of("parameter", name, defaults)
        kind = type(defaults[name])
        number = kind is float and type(value) in (int, float)
        kinds = (str, int, list) if name == "seeds" else (kind,)
        if not (number or type(value) in kinds):
            raise UsageError(
                f"parameter {name}={value!r} must be a {kind.__name__}, such as "
                f"{defaults[name]!r}"
            )
        if number and not math.isfinite(value):
            raise UsageError(f"parameter {name}={value!r} must be finite")
    check_values(given)
    one_of("scale", given.get("scale", "lite"), SCALES)


def _assigned(source: str) -> dict[str, Any]:
    """Names and literal values of a cell that holds assignments only."""
    found: dict[str, Any] = {}
    for node in ast.parse(source).body:
        if not (isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)):
            raise UsageError(
                "a parameters cell holds only lines such as scale = 'lite'"
            )
        found[node.targets[0].id] = _literal(node.value)
    return found


def _literal(node: ast.expr) -> Any:
    if isinstance(node, ast.Call):  # papermill writes float('nan') and float('inf')
        return float(ast.literal_eval(node.args[0]))
    return ast.literal_eval(node)


def check_injected() -> None:
    """Check what papermill put in; its own command line only warns of unknown names."""
    from IPython.core.getipython import get_ipython

    shell = get_ipython()
    cells: list[str] = shell.user_ns.get("In", []) if shell else []
    for before, cell in itertools.pairwise(cells):
        if cell.startswith("# Parameters\n"):
            check_parameters(before, _assigned(cell))


# What every kernel of this package imports, once for all that are forked from it
_WARM = ["saddlebook.book", "saddlebook.figures", "ipykernel.kernelapp"]


class _Forked(ForkServerProcess):
    """A kernel as its manager wants it: with the words of ``subprocess.Popen``."""

    stdin = stdout = stderr = None

    def poll(self) -> int | None:
        """Exit code, or None while it runs."""
        return self.exitcode

    def wait(self) -> int | None:
        """Exit code, once it has ended."""
        self.join()
        return self.exitcode

    def send_signal(self, number: int) -> None:
        """Send a signal while it runs."""
        if self.pid and self.exitcode is None:
            os.kill(self.pid, number)


def _kernel(arguments: Sequence[str], cwd: str, environment: dict[str, str]) -> None:
    """A kernel in the process that this is; it ends with the one that asked for it."""
    from ipykernel.kernelapp import IPKernelApp

    os.setsid()
    os.chdir(cwd)
    os.environ.update(environment)
    threading.Thread(target=_end_with, args=(parent_process(),), daemon=True).start()
    IPKernelApp.launch_instance([*arguments, "--IPKernelApp.parent_handle=0"])


def _end_with(parent: Any) -> None:
    """Of the asking process; the system's parent is the server, which lives on."""
    parent.join()
    os._exit(1)


def _forked_kernels() -> type:
    """Kernels forked where torch is imported already: 0.5 s to start, not 4."""
    from jupyter_client.manager import AsyncKernelManager

    class Manager(AsyncKernelManager):
        async def _async_launch_kernel(self, kernel_cmd: list[str], **kw: Any) -> None:
            context = get_context("forkserver")
            context.set_forkserver_preload(_WARM)
            arguments = kernel_cmd[kernel_cmd.index("-f") :]
            given = (arguments, os.getcwd(), dict(kw.get("env", {})))
            process = _Forked(target=_kernel, args=given)
            process.start()
            pid = process.pid  # of its group too
            vars(self.provisioner).update(process=process, pid=pid, pgid=pid)

    return Manager


# The kernel's own log, not the cells': it warns of a socket that only this machine sees
_QUIET = ["--IPKernelApp.log_level=CRITICAL"]
# Absolute paths of any machine, in text that readers get
MACHINE_PATH = re.compile(r"(?<![\w.])(/(root|home|Users|tmp|work)/[\w.]|[A-Z]:\\\\)")


def chapters(root: str | os.PathLike[str] = ".") -> list[Path]:
    """Chapter sources in the order of ``_toc.yml``.

    Raises:
        VerifyError: The contents and the files of ``book/`` differ.
    """
    root = Path(root)
    found = [root / f"{entry}.py" for entry in entries(root)]
    found = [path for path in found if not path.with_suffix(".md").exists()]
    missing = [path.stem for path in found if not path.exists()]
    extra = {path.stem for path in (root / "book").glob("*.py")}
    extra -= {path.stem for path in found}
    if missing or extra:
        raise VerifyError(
            f"_toc.yml and book/ differ: missing {missing}, not listed {sorted(extra)}"
        )
    return found


def entries(root: Path) -> list[str]:
    """Pages in the order of ``_toc.yml``, as paths without a suffix."""
    toc = yaml.safe_load((root / "_toc.yml").read_text())
    parts = toc.get("parts", [toc])
    return [toc["root"], *(c["file"] for p in parts for c in p.get("chapters", []))]


def read(chapter: Path) -> Any:
    """Read a percent script as a notebook with a kernel name."""
    import jupytext

    notebook = jupytext.read(chapter, fmt="py:percent")
    notebook.metadata["kernelspec"] = {
        "name": "python3",
        "display_name": "Python 3",
        "language": "python",
    }
    for index, cell in enumerate(notebook.cells):
        cell["id"] = f"{chapter.stem}-{index}"
        cell.metadata.setdefault("tags", [])
    return notebook


def _declared(notebook: Any, name: str) -> str:
    cells = [c for c in notebook.cells if "parameters" in c.metadata.get("tags", [])]
    if len(cells) != 1:
        raise UsageError(
            f"{name} has {len(cells)} cells tagged 'parameters'; it needs one"
        )
    return str(cells[0].source)


def export(
    chapter: Path, output: Path, parameters: Mapping[str, Any] | None = None
) -> Path:
    """Write a chapter as a notebook without outputs, as a reader would download it.

    Raises:
        UsageError: A parameter that the chapter does not declare.
    """
    import nbformat
    import papermill

    notebook = read(chapter)
    if parameters:
        check_parameters(_declared(notebook, chapter.stem), parameters)
        notebook = papermill.execute_notebook(
            notebook, None, dict(parameters), prepare_only=True
        )
        notebook = tidy(notebook, chapter.stem)
    sources = works(chapter.with_name("references.bib"))
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell["source"] = without_myst(cell.source, sources)
    return write_whole(output, nbformat.writes(notebook).encode())


def works(bibliography: Path) -> dict[str, tuple[str, str, str]]:
    """Who, year and address of each entry by its key; none without the file."""
    text = bibliography.read_text(encoding="utf-8") if bibliography.exists() else ""
    return {
        key: _work(body)
        for key, body in re.findall(r"@\w+\{(\w+),(.*?)\n\}", text, re.S)
    }


def _work(body: str) -> tuple[str, str, str]:
    fields = dict(re.findall(r"(\w+) = \{(.*?)\}[,\n]", body + "\n"))
    names = [name.partition(",")[0] for name in fields["author"].split(" and ")]
    who = " and ".join(names) if len(names) < 3 else f"{names[0]} et al."
    arxiv = f"https://arxiv.org/abs/{fields.get('eprint')}" * ("eprint" in fields)
    doi = f"https://doi.org/{fields.get('doi')}" * ("doi" in fields)
    return who, fields["year"], doi or arxiv or fields.get("url", "")


def without_myst(text: str, sources: Mapping[str, tuple[str, str, str]]) -> str:
    """Markdown as Jupyter reads it: citations as links, roles and boxes as text.

    Args:
        text: Of a cell, in MyST.
        sources: From ``works``.
    """

    def cited(found: re.Match[str]) -> str:
        inside = found[1] == "t"
        parts = (sources.get(key, (key, "", "")) for key in found[2].split(","))
        told = [
            f"[{who} {f'({year})' if inside else year}]({link})"
            for who, year, link in parts
        ]
        return ", ".join(told) if inside else f"({'; '.join(told)})"

    def quoted(found: re.Match[str]) -> str:
        return "\n> ".join([f"> **{found[1]}**", "", *found[2].splitlines()])

    text = re.sub(r"\{cite:(\w)\}`([^`]+)`", cited, text)
    text = re.sub(r"\{doc\}`(\w+)`", r"[\1](\1.ipynb)", text)
    text = re.sub(r"\{glue:text\}`(\w+)`", r"`\1`", text)
    return re.sub(r"```\{admonition\} (.*)\n((?:.*\n)*?)```", quoted, text)


def export_all(folder: str | os.PathLike[str], root: str = ".") -> list[Path]:
    """Write every chapter as a notebook into a folder; a copy that is there is kept.

    Each knows where the records and checkpoints of this checkout lie.
    """
    given = {"results": str(Path(root, "results").resolve())}
    wanted = {Path(folder) / f"{path.stem}.ipynb": path for path in chapters(root)}
    for copy, path in wanted.items():
        if not copy.exists():
            export(path, copy, given)
    return list(wanted)


def execute(
    chapter: Path,
    output: Path,
    parameters: Mapping[str, Any],
    *,
    root: str | os.PathLike[str] = ".",
    timeout: int = 600,
) -> Any:
    """Run a chapter through papermill and check that it got to its end.

    Args:
        chapter: Percent script.
        output: Where papermill keeps the executed copy, of a failed run too.
        parameters: Checked against the chapter's ``parameters`` cell before anything
            starts.
        root: Folder the kernel runs in.
        timeout: Seconds a cell may take.

    Returns:
        The executed notebook.

    Raises:
        UsageError: Unknown or ill-typed parameter.
        VerifyError: A cell raised, the kernel died, the last cell was not reached, or
            the records it showed are not there.
    """
    import papermill

    notebook = read(chapter)
    check_parameters(_declared(notebook, chapter.stem), parameters)
    output.parent.mkdir(parents=True, exist_ok=True)
    try:
        done = papermill.execute_notebook(
            notebook,
            str(output).replace("{", "{{").replace("}", "}}"),
            dict(parameters),
            cwd=str(root),
            progress_bar=False,
            execution_timeout=timeout,
            extra_arguments=_QUIET,
            kernel_manager_class=_forked_kernels(),
        )
    except Exception as error:
        raise VerifyError(
            f"chapter {chapter.stem} failed: {_cause(error)}; executed copy: {output}"
        ) from error
    _check_finished(done, chapter, output)
    return done


def _cause(error: Exception) -> str:
    """One line: the exception of the cell, or what became of the kernel."""
    name, value = getattr(error, "ename", None), getattr(error, "evalue", None)
    first = str(value if name else error).strip().splitlines() or [""]
    return f"{name or type(error).__name__}: {first[0]}"


def _check_finished(notebook: Any, chapter: Path, output: Path) -> None:
    mark = sentinel(notebook.cells[-1].get("outputs", []))
    if mark is None or mark["chapter"] != chapter.stem:
        raise VerifyError(
            f"chapter {chapter.stem} stopped before its last cell (page.footer()); "
            f"executed copy: {output}"
        )


def sentinel(outputs: Sequence[Any]) -> dict[str, Any] | None:
    """The footer's mark among the outputs of a last cell, or None."""
    marks = [output.get("metadata", {}).get("saddlebook", {}) for output in outputs]
    found = [mark for mark in marks if "chapter" in mark]
    return dict(found[-1]) if found else None


def _execute_quietly(arguments: tuple[Any, ...]) -> tuple[Any, str]:
    """Run in a worker: errors travel as text, so that every chapter is tried."""
    chapter, output, parameters, root = arguments
    try:
        return execute(chapter, output, parameters, root=root), ""
    except SaddlebookError as error:
        return None, str(error)


def execute_all(
    root: str | os.PathLike[str] = ".",
    *,
    scale: str = "quick",
    results: str = "results",
    device: str = "cpu",
    workers: int | None = None,
) -> dict[str, Any]:
    """Run every chapter, side by side, each in a process of its own.

    Returns:
        Executed notebooks by chapter.

    Raises:
        VerifyError: Names every chapter that failed and why.
    """
    root = Path(root).resolve()
    folder = "_build" if scale == "quick" else results
    parameters = {"scale": scale, "device": device, "results": folder}
    todo = chapters(root)
    jobs = [
        (path, root / "_build" / "executed" / f"{path.stem}.ipynb", parameters, root)
        for path in todo
    ]
    # spawn: papermill changes the working directory, and forked threads deadlock
    context = get_context("spawn")
    with ProcessPoolExecutor(workers or os.cpu_count(), context) as pool:
        running = pool.map(_execute_quietly, jobs)
        # in a terminal only
        done = list(tqdm(running, "chapters", len(jobs), disable=None))
    failures = [error for _, error in done if error]
    if failures:
        raise VerifyError("\n".join(failures))
    return {path.stem: notebook for path, (notebook, _) in zip(todo, done, strict=True)}


def tidy(notebook: Any, name: str) -> Any:
    """Ready an executed notebook for readers.

    Hides the injected parameters, drops widget views that have an HTML twin and all
    run metadata, and refuses what a page must not hold.

    Raises:
        VerifyError: Foreign HTML or script, stderr, or a machine's path.
    """
    notebook.metadata = {"kernelspec": notebook.metadata["kernelspec"]}
    for index, cell in enumerate(notebook.cells):
        cell["id"] = f"{name}-{index}"  # not random: builds repeat
        cell.metadata.pop("papermill", None)
        cell.metadata.pop("execution", None)
        tags = cell.metadata.tags
        if "injected-parameters" in tags and "remove-cell" not in tags:
            tags.append("remove-cell")
        if cell.cell_type == "code":
            cell.outputs = [out for out in cell.outputs if not _is_for_kernels(out)]
            for output in cell.outputs:
                _tidy_output(output, name)
    return notebook


def _is_for_kernels(output: Any) -> bool:
    """``<Axes: …>`` and its like, which a cell's last line leaves, and live widgets."""
    data = output.get("data", {})
    text = str(data.get("text/plain", ""))
    alone = output.output_type == "execute_result" and len(data) == 1
    live = "application/vnd.jupyter.widget-view+json" in data
    return live or (alone and text.startswith("<") and text.endswith(">"))


def _tidy_output(output: Any, name: str) -> None:
    data = output.get("data", {})
    if "text/html" in data:
        ours = "saddlebook" in output.metadata or "afm-static" in data["text/html"]
        if not ours:
            raise VerifyError(
                f"{name} shows HTML that is not the library's; use page.table(frame)"
            )
    if "application/javascript" in data or output.get("name") == "stderr":
        raise VerifyError(f"{name} shows script or stderr: {str(output)[:200]}")
    shown = [str(value) for kind, value in data.items() if "image" not in kind]
    found = MACHINE_PATH.search("\n".join([*shown, str(output.get("text", ""))]))
    if found:
        raise VerifyError(f"{name} shows a path of this machine: {found[0]}…")
