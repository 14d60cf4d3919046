"""The command line: ``python -m saddlebook run|large|status|verify|spectra|…``.

exit codes: 0 ok · 2 usage · 3 data · 4 checkpoint or record corrupt · 5 numerical ·
6 environment · 7 disk or memory · 8 locked · 9 verification failed · 75 stopped and
resumable · 130 interrupted
"""

from __future__ import annotations

import argparse
import io
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import torch

from saddlebook import __version__, data, runner, studies, workers
from saddlebook.command import spectra
from saddlebook.data.large import counted_large, find_large, pack
from saddlebook.disk.files import parse_json
from saddlebook.errors import (
    CorruptError,
    MachineError,
    SaddlebookError,
    UsageError,
    VerifyError,
    lacks,
    one_of,
    printable,
)
from saddlebook.experiment import SCALES, Experiment
from saddlebook.store import Store
from saddlebook.studies import check_values, chosen_seeds
from saddlebook.train.large import told_once
from saddlebook.train.loop import profile

_COMMANDS = ("run", "status", "verify", "reproduce", "book", "spectra", "large")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; see python -m saddlebook --help")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; errors are one line on stderr, the return value is the exit code.

    What each code means stands at the top of this file and in ``--help``.
    """
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    if isinstance(sys.stdout, io.TextIOWrapper):  # λ in a terminal without it
        sys.stdout.reconfigure(errors="replace")
    try:
        if arguments and not arguments[0].startswith("-"):
            one_of("command", arguments[0], _COMMANDS)
        options = _parser().parse_args(arguments)
        code = int(options.command(options) or 0)
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # ``| head``: the reader has what it wanted
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except SaddlebookError as error:
        if os.environ.get("SADDLEBOOK_DEBUG"):
            raise
        print(f"saddlebook: {printable(error)}", file=sys.stderr)
        return error.exit_code
    except ModuleNotFoundError as error:
        print(f"saddlebook: {lacks(error)}", file=sys.stderr)
        return MachineError.exit_code
    except KeyboardInterrupt:
        print(
            "saddlebook: interrupted; what was finished is kept, the same command "
            "continues",
            file=sys.stderr,
        )
        return 130


def _parser() -> argparse.ArgumentParser:
    summary, codes = str(__doc__).split("\n\n")
    parser = _Parser("python -m saddlebook", description=summary, epilog=codes)
    parser.add_argument(
        "--version", action="version", version=f"saddlebook {__version__}"
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    run = _command(commands, "run", _run, "train what a study lacks; resumable")
    _add_study(run)
    _add_machine(run)
    run.add_argument("--precision", help="instead of the study's: tf32, bf16, ...")
    run.add_argument("--only", help="methods, such as CE,CE+DRW+SAM")
    told = "train nothing: print where a step of the first run spends its time"
    run.add_argument("--profile", action="store_true", help=told)
    status = _command(commands, "status", _status, "records done, missing, stale")
    _add_study(status, optional=True)
    _add_data(status)
    status.add_argument("--work", default=runner.WORK)
    verify = _command(commands, "verify", _verify, "check every record")
    verify.add_argument("spectra", nargs="*", help="records of the spectra command")
    verify.add_argument("--results", default="results")
    whole = _command(commands, "reproduce", _reproduce, "the whole paper; resumable")
    whole.add_argument("--scale", default="full", help=" or ".join(SCALES[:2]))
    whole.add_argument("--results", default="results")
    whole.add_argument("--limit", type=float, help="seconds after which to stop")
    whole.add_argument("--plan", action="store_true", help="only say what is to do")
    _add_machine(whole)
    book = _command(commands, "book", _book, "execute the chapters, build the book")
    book.add_argument("--scale", default="lite")
    book.add_argument("--results", default="results")
    _add_large(_command(commands, "large", _large, "a large set; under torchrun"))
    own = _command(commands, "spectra", _spectra, "class spectra of your network")
    spectra.add_options(own)
    return parser


def _command(commands: Any, name: str, action: Any, help_: str) -> Any:
    codes = str(__doc__).split("\n\n")[1]
    command = commands.add_parser(name, help=help_, description=help_, epilog=codes)
    command.set_defaults(command=action)
    return command


def _add_data(command: Any) -> None:
    command.add_argument(
        "--data", default=os.environ.get("SADDLEBOOK_DATA"),
        help="folder with images; default: SADDLEBOOK_DATA, else the cache folder",
    )  # fmt: skip


def _add_machine(command: Any) -> None:
    """What a command takes that trains."""
    add = command.add_argument
    add("--device", default="cpu", help="cpu, cuda (all there are) or cuda:N")
    _add_data(command)
    add("--work", default=runner.WORK, help="folder of checkpoints")
    add("--threads", type=int, default=1, help="of one run, on the CPU")
    add("--workers", type=int, default=1, help="processes on the CPU")
    add("--group", type=int, help="runs side by side on one device")
    add("--quiet", action="store_true", help="no progress bar")


def _add_study(command: Any, optional: bool = False) -> None:
    count = "?" if optional else None
    command.add_argument("study", nargs=count, help=", ".join(studies.STUDIES))
    command.add_argument("--scale", default="full", help=", ".join(SCALES))
    command.add_argument("--results", default="results")
    command.add_argument("--dataset", default="", help="folder:NAME, your own images")
    command.add_argument("--seeds", help="such as 0,1,2; default: all of the study's")


def _add_large(command: Any) -> None:
    add = command.add_argument
    add("dataset", help="imagenet-lt, inaturalist18 or lists:NAME")
    add("--scale", default="full", help="full, or quick: a small network, no evidence")
    add("--method", default="CE+DRW", help="such as LDAM+DRW+SAM")
    add("--seed", type=int, default=0)
    some = {"nargs": "+", "action": "extend", "default": []}
    add("--set", metavar="FIELD=VALUE", help="of Experiment", **some)
    _add_data(command)
    add("--images", help="folder the paths of the split files start from; like --data")
    add("--device", default="cpu", help="cpu or cuda; of each process its own")
    add("--readers", type=int, default=4, help="processes that read images, for each")
    add("--compile", action="store_true", help="compile the network")
    add("--work", default=runner.WORK, help="folder of checkpoints")
    add("--results", default="results")
    add("--save-every", type=float, default=300.0, help="seconds")
    add("--check", action="store_true", help="read lists and files, train nothing")
    add("--pack", action="store_true", help="write the map for --set pipeline=mapped")
    add("--quiet", action="store_true", help="no progress bar")


def _experiments(options: argparse.Namespace) -> list[Experiment]:
    check_values(
        {"scale": options.scale, "precision": getattr(options, "precision", "")}
        | {"workers": getattr(options, "workers", 1)}
    )
    seeds = chosen_seeds(options.seeds) or None
    names = [options.study] if options.study is not None else list(studies.STUDIES)
    of = (options.scale, seeds, options.dataset)
    chosen = [e for name in names for e in studies.named(name, *of)]
    if options.dataset:
        images = data.load(options.dataset, options.data)
        chosen = [data.counted(e, images) for e in chosen]
    if only := getattr(options, "only", None):
        known = dict.fromkeys(e.method for e in chosen)
        wanted = [one_of("method", name.strip(), known) for name in only.split(",")]
        chosen = [e for e in chosen if e.method in wanted]
    if precision := getattr(options, "precision", None):
        chosen = [replace(e, precision=precision) for e in chosen]
    return list(dict.fromkeys(chosen))


def _run(options: argparse.Namespace) -> int:
    chosen = _experiments(options)
    crew = workers.devices(options.device, options.workers)
    if options.profile:
        images = data.load(chosen[0].dataset, options.data or None)
        print(f"{chosen[0].slug}\n{profile(chosen[0], images, crew[0])}")
        return 0
    store = Store(Path(options.results) / options.scale)
    missing = store.missing(chosen)
    progress = runner.Progress.over(missing, show=not options.quiet and bool(missing))
    places = {"results": options.results, "data_root": options.data or None}
    places |= {"work": options.work, "group": options.group, "watcher": progress}
    with progress.signals():
        try:
            if len(crew) > 1:
                workers.share(
                    chosen, crew, note=_note, threads=options.threads, **places
                )
            else:
                _run_here(chosen, crew[0], options.threads, places)
        finally:
            progress.close()
            if progress.signal == signal.SIGINT:
                raise KeyboardInterrupt
    print(f"{len(chosen)} records of {options.study} are in {store.path}")
    return 0


def _run_here(
    chosen: list[Experiment], device: str, threads: int, places: dict[str, Any]
) -> None:
    torch.set_num_threads(max(1, threads))
    # denormal numbers make small gradients many times slower on the CPU
    torch.set_flush_denormal(True)
    try:
        runner.run_all(chosen, device=device, note=_note, **places)
    finally:
        torch.set_flush_denormal(False)


def _note(line: str) -> None:
    print(line, file=sys.stderr)


def _status(options: argparse.Namespace) -> int:
    store = Store(Path(options.results) / options.scale)
    for experiment in _experiments(options):
        record = store.get(experiment)
        state = "missing" if record is None else "stale" if record.stale else "done"
        if record is None and (Path(options.work) / experiment.training.slug).exists():
            state = "started"
        print(f"{state:8} {experiment.slug}")
    return 0


def _verify(options: argparse.Namespace) -> int:
    if options.spectra:
        return _verify_spectra(options.spectra)
    stores = [Store(Path(options.results) / scale) for scale in SCALES]
    records = [record for store in stores for record in store.verify()]
    if not records:
        raise VerifyError(
            f"no records in {options.results}; give the folder that holds "
            f"{', '.join(SCALES[:-1])} or {SCALES[-1]}"
        )
    print(f"{len(records)} records verified")
    if stale := [record for record in records if record.stale]:
        print(f"{len(stale)} of them stale: made by code that gives other results")
    if early := [r for r in records if r.spectra and not r.measured_with]:
        print(f"spectra of {len(early)} measured before digests of such code were kept")
    return 0


def _verify_spectra(paths: list[str]) -> int:
    try:
        counts = [len(spectra.read_sheet(path)["classes"]) for path in paths]
    except CorruptError as error:
        raise VerifyError(str(error)) from error
    print(f"{len(paths)} records with {sum(counts)} spectra verified")
    return 0


def _spectra(options: argparse.Namespace) -> int:
    return spectra.measure_spectra(options, lambda text: print(printable(text)))


def _large_experiment(options: argparse.Namespace) -> Experiment:
    known = studies.large(options.dataset, scale=options.scale)
    runs = {e.method.split()[0]: e for e in known}
    chosen = runs[one_of("method", options.method, runs)]
    given = dict(word.partition("=")[::2] for word in options.set)
    values = {name: _value(text) for name, text in given.items()}
    changed = chosen.to_dict() | {"seed": options.seed} | values
    if "rho" in values:
        changed["rho_steps"] = values.get("rho_steps", [])
    return Experiment.from_dict(changed)


def _value(text: str) -> Any:
    try:
        return parse_json(text.encode())
    except ValueError:
        return text


def _large(options: argparse.Namespace) -> int:
    if options.readers < 0:
        raise UsageError(f"--readers {options.readers} must be at least 0")
    with told_once():
        experiment = _large_experiment(options)
        read = (
            replace(experiment, pipeline="torchvision") if options.pack else experiment
        )
        lists = find_large(read, options.data or ".", options.images)
        experiment = counted_large(experiment, lists)
    sizes = [
        len(group) for group in data.groups(experiment, lists.class_counts).values()
    ]
    if options.pack:
        print(f"wrote {pack(lists, experiment.image_size, options.readers)}")
    if options.check or options.pack:
        print(
            f"{experiment.slug}: {len(lists.train.paths)} images to train, "
            f"{len(lists.test.paths)} to test, {sizes} classes in head, mid, tail"
        )
        return 0
    first = os.environ.get("RANK", "0") == "0"
    progress = runner.Progress.over([experiment], show=first and not options.quiet)
    with progress.signals():
        try:
            record = runner.run_large(
                experiment, lists, device=options.device, work=options.work,
                results=options.results, watcher=progress, readers=options.readers,
                compiled=options.compile, save_every=options.save_every,
            )  # fmt: skip
        finally:
            progress.close()
            if progress.signal == signal.SIGINT:
                raise KeyboardInterrupt
    if record:
        print(f"{record.experiment.slug}: {record.accuracy.overall:.1f} % overall")
    return 0


def _reproduce(options: argparse.Namespace) -> int:
    from saddlebook.book.reproduce import reproduce

    check_values({"workers": options.workers})
    one_of("scale", options.scale, SCALES[:2])
    pages = reproduce(
        Path.cwd(), options.scale, results=options.results, limit=options.limit,
        only_plan=options.plan, show=not options.quiet,
        say=lambda line: print(line, flush=True),
        crew=workers.devices(options.device, options.workers),
        data_root=options.data or None, work=options.work, threads=options.threads,
        group=options.group,
    )  # fmt: skip
    if pages:
        print(f"the book is ready: open {pages.relative_to(Path.cwd())}/index.html")
    return 0


def _book(options: argparse.Namespace) -> int:
    from saddlebook import book

    pages = book.build(scale=options.scale, results=options.results)
    print(f"the book is ready: open {pages.relative_to(Path.cwd())}/index.html")
    return 0


if __name__ == "__main__":
    sys.exit(main())
