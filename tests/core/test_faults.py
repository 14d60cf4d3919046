"""The command line under bad input, signals, full disks and rivals: exit codes, one
line, nothing lost."""

import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from saddlebook import runner, studies
from saddlebook.__main__ import main
from saddlebook.disk.files import locked, read_checkpoint, write_whole
from saddlebook.errors import LockedError, ResourceError
from saddlebook.store import Store

RUN = ["run", "control", "--scale", "quick", "--seeds", "0", "--quiet"]


@pytest.fixture(autouse=True)
def _own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """What ``RUN`` leaves."""
    place = tmp_path_factory.mktemp("finished")
    where = ("--results", str(place / "results"), "--work", str(place / "work"))
    assert main([*RUN, *where]) == 0
    return place / "results"


@pytest.fixture
def made(finished):
    """The records of ``RUN``, here."""
    shutil.copytree(finished, "results")
    return sorted(Path("results/quick").iterdir())


def failure(capsys, *arguments):
    """Exit code and the one line on stderr."""
    code = main(arguments)
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    return code, lines[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "tabel1"], "did you mean 'table1'"),
        (["rum", "table1"], "did you mean 'run'"),
        (["run", "table1", "--scale", "lit"], "did you mean 'lite'"),
        (["run", "table1", "--seeds", "0;1"], "integers"),
        (["run", "table1", "--seeds", "-1"], "seed"),
        (["run", "table1", "--only", "CE+DR"], "did you mean 'CE+DRW'"),
        (["run"], "study"),
        (["run", "table1", "--sclae", "lite"], "--sclae"),
    ],
)
def test_wrong_words_are_usage_errors(arguments, message, capsys):
    code, line = failure(capsys, *arguments)
    assert code == 2
    assert message in line


def test_a_profile_names_operations_and_keeps_nothing(capsys):
    assert main([*RUN, "--profile"]) == 0
    told = capsys.readouterr().out
    assert told.startswith("digitslt10_ce-drw")
    assert "aten::convolution_backward" in told
    assert not list(Path().rglob("*.json"))


def test_only_takes_exact_names(capsys):
    assert main([*RUN, "--only", "CE+DRW wd=0.001"]) == 0
    (path,) = Path("results/quick").iterdir()
    assert "sam" not in path.name


@pytest.mark.parametrize("folder", ["nowhere", "results/quick", "."])
def test_to_verify_nothing_is_a_failure(folder, made, capsys):
    code, line = failure(capsys, "verify", "--results", folder)
    assert code == 9
    assert f"no records in {folder}" in line


@pytest.mark.parametrize("words", [["--help"], ["run", "--help"], ["--version"]])
def test_help_names_the_exit_codes_and_there_is_a_version(words, capsys):
    with pytest.raises(SystemExit) as end:
        main(words)
    assert end.value.code == 0
    told = " ".join(capsys.readouterr().out.split())
    assert ("75 stopped and resumable" in told) == ("--help" in words)
    assert "saddlebook" in told


def test_a_closed_pipe_is_silent():
    command = f"{sys.executable} -m saddlebook status | true"
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_a_device_that_is_not_there(capsys):
    code, line = failure(capsys, *RUN, "--device", "cuda:7")
    assert code == 6
    assert "available: cpu" in line


def test_missing_data_names_what_to_run(capsys, tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    arguments = ["run", "control", "--scale", "lite", "--seeds", "0", "--quiet"]
    code, line = failure(capsys, *arguments, "--data", str(empty))
    assert code == 3
    assert "download=True" in line


def test_a_run_leaves_records_and_a_second_one_finds_them(capsys):
    assert main(RUN) == 0
    store = Store("results/quick")
    before = {path: path.stat().st_mtime_ns for path in store.path.iterdir()}
    assert len(before) == 2
    assert main(RUN) == 0
    assert {p: p.stat().st_mtime_ns for p in store.path.iterdir()} == before
    capsys.readouterr()
    assert main(["status", "control", "--scale", "quick", "--seeds", "0,1"]) == 0
    states = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert states == ["done", "done", "missing", "missing"]
    assert main(["verify"]) == 0


def test_an_edited_record_is_found(made, capsys):
    path = made[0]
    path.write_text(path.read_text().replace('"best_epoch": ', '"best_epoch": 1'))
    code, line = failure(capsys, "verify")
    assert code == 9
    assert path.name in line


def test_a_cut_record_stops_the_run_and_is_not_overwritten(made, capsys):
    path = made[0]
    path.write_bytes(path.read_bytes()[:200])
    code, line = failure(capsys, *RUN)
    assert code == 4
    assert path.name in line
    assert path.stat().st_size == 200


def test_a_cut_checkpoint_stops_the_run_and_is_not_overwritten(capsys):
    (experiment, _) = studies.named("control", "quick", [0])
    file = Path(runner.WORK) / experiment.slug / "latest.ckpt"
    write_whole(file, b"cut short")
    code, line = failure(capsys, *RUN)
    assert code == 4
    assert "damaged" in line
    assert file.read_bytes() == b"cut short"


def test_results_that_cannot_be_written(capsys):
    Path("results").write_text("a file in the way")
    code, line = failure(capsys, *RUN)
    assert code == 6
    assert "cannot write" in line
    assert Path("results").read_text() == "a file in the way"


def test_a_full_disk_keeps_the_older_file_whole(tmp_path):
    path = tmp_path / "state"
    write_whole(path, b"old")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(ResourceError, match="free some space"):
            write_whole(path, b"new" * 1000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["state"]


def test_a_run_that_another_process_holds_is_left_to_it(capsys):
    experiment = studies.named("control", "quick", [0])[0]
    with locked(Path(runner.WORK) / f"{experiment.slug}.lock", "test"):
        code = main(RUN)
    assert code == 8
    assert f"pid {os.getpid()}" in capsys.readouterr().err
    assert len(list(Path("results/quick").iterdir())) == 1  # the other run was made


def test_two_processes_at_once_share_the_runs_and_spoil_none(capsys):
    words = ["run", "control", "--scale", "quick", "--seeds", "0,1", "--quiet"]
    command = [sys.executable, "-m", "saddlebook", *words]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    both = [subprocess.Popen(command, **quiet) for _ in range(2)]
    # 8: the other one had a run in hand; together they make them all
    assert {process.wait(timeout=240) for process in both} <= {0, 8}
    store = Store("results/quick")
    before = {path: path.read_bytes() for path in store.path.iterdir()}
    assert len(store.verify()) == 4
    assert main(words) == 0
    assert {path: path.read_bytes() for path in store.path.iterdir()} == before


def test_a_lock_outlives_no_process(tmp_path):
    child = os.fork()
    if child == 0:
        with locked(tmp_path / "lock", "test"):
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    with locked(tmp_path / "lock", "test"):  # taken over without ado
        with pytest.raises(LockedError), locked(tmp_path / "lock", "test"):
            pass


LEFT_ALONE = {
    "symbolic link": lambda path, target: path.symlink_to(target),
    "hard link": lambda path, target: path.hardlink_to(target),
    "file of its own": lambda path, target: path.write_bytes(target.read_bytes()),
    "pipe": lambda path, target: os.mkfifo(path),
    "folder": lambda path, target: path.mkdir(),
}


@pytest.mark.parametrize("kind", LEFT_ALONE)
def test_what_lies_in_the_place_of_a_lock_file_is_left_alone(kind, tmp_path, capsys):
    target = tmp_path / "thesis.txt"
    target.write_text("four years of work")
    experiment = studies.named("control", "quick", [0])[0]
    lock = Path(runner.WORK) / f"{experiment.slug}.lock"
    lock.parent.mkdir()
    LEFT_ALONE[kind](lock, target)
    code, line = failure(capsys, *RUN)
    assert code == 6
    assert f"cannot lock {lock}" in line
    assert target.read_text() == "four years of work"


def test_a_folder_that_cannot_hold_locks_is_one_line(capsys):
    Path("file").write_text("")
    code, line = failure(capsys, *RUN, "--work", "file/work")
    assert code == 6
    assert "cannot lock file/work" in line


def test_a_forked_child_keeps_no_lock_of_its_parent(tmp_path):
    with locked(tmp_path / "lock", "test"):
        child = os.fork()
        if child == 0:
            time.sleep(60)
            os._exit(0)
    try:
        with locked(tmp_path / "lock", "test"):
            assert (tmp_path / "lock").read_text() == str(os.getpid())
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_a_module_of_the_current_folder_is_not_run_by_the_command(tmp_path):
    for name in ("pandas", "torch", "numpy", "saddlebook", "PIL"):
        Path(f"{name}.py").write_text("open('canary', 'w')")
    code = "import sys; from saddlebook.__main__ import main; sys.exit(main())"
    command = Path("bin/saddlebook")  # as pip writes it
    write_whole(command, code.encode())
    done = subprocess.run([sys.executable, command, *RUN], capture_output=True)
    assert done.returncode == 0
    assert not Path("canary").exists()


def test_a_written_file_honours_the_umask(tmp_path):
    before = os.umask(0o077)
    try:
        write_whole(tmp_path / "private", b"x")
        os.umask(0o022)
        write_whole(tmp_path / "public", b"x")
    finally:
        os.umask(before)
    modes = [(tmp_path / n).stat().st_mode & 0o777 for n in ("private", "public")]
    assert modes == [0o600, 0o644]


@pytest.mark.parametrize("digits", [25, 400, 3000, 9999])
@pytest.mark.parametrize("name", ["seed", "resumes"])
def test_a_record_with_a_number_of_many_digits_is_one_line(made, name, digits, capsys):
    path = made[0]
    text = path.read_text()
    assert f'"{name}":0' in text
    path.write_text(text.replace(f'"{name}":0', f'"{name}":{digits * "7"}'))
    code, line = failure(capsys, "verify")
    assert (code, len(line) < 500) == (9, True)


def long_run():
    """A real process in a run long enough to be interrupted, past its first epoch."""
    arguments = ["run", "weight_decay", "--scale", "quick", "--threads", "1"]
    process = subprocess.Popen(
        [sys.executable, "-m", "saddlebook", *arguments],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )
    deadline = time.monotonic() + 120
    while not list(Path().glob("results/quick/*.json")):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.02)
    return process


@pytest.mark.parametrize(
    ("signals", "code"),
    [([signal.SIGTERM], 75), ([signal.SIGINT] * 2, 130)],
    ids=["terminate", "interrupt-twice"],  # once: test_workers
)
def test_a_signal_stops_within_seconds_and_loses_nothing(signals, code):
    process = long_run()
    for number in signals:
        process.send_signal(number)
    _, errors = process.communicate(timeout=20)
    assert process.returncode == code
    assert errors.strip().splitlines()[-1].startswith("saddlebook: ")
    assert "the same command continues" in errors
    assert Store("results/quick").verify()
    for file in Path(runner.WORK).glob("*/latest.ckpt"):
        read_checkpoint(file)
