"""What travels to a GPU machine and back: packed, run, stopped, continued, taken in."""

import json
import lzma
import os
import re
import signal
import subprocess
import sys
import time
import tracemalloc
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from saddlebook import data, measure, runner, studies
from saddlebook.disk.files import encoded_checkpoint, read_checkpoint, write_whole
from saddlebook.errors import CorruptError, DataError, VerifyError
from saddlebook.scales import at_scale
from saddlebook.store import Store

TOOLS = Path(__file__).parents[2] / "benchmarks/gpu"
sys.path.append(str(TOOLS))
import bundle  # noqa: E402
import fetch  # noqa: E402
import item  # noqa: E402
import pack  # noqa: E402
import run  # noqa: E402
import send  # noqa: E402

PLACES = ("--work", "work", "--results", "results")
CONTROL = studies.named("control", "quick", [0])


@pytest.fixture(autouse=True)
def _own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def call(monkeypatch, tool, *arguments):
    """Exit code of a tool at home, or of ``run`` on a machine with nothing on it."""
    monkeypatch.setattr(sys, "argv", [tool.__name__, *map(str, arguments)])
    return tool.main()


def sent(monkeypatch, *more):
    words = ("control", "--scale", "quick", "--seeds", "0", *more)
    return call(monkeypatch, send, *words, *PLACES)


def there(name):
    """Arguments of ``run`` on the machine ``name``."""
    places = ("--work", f"{name}/work", "--results", f"{name}/results")
    return ("--out", f"{name}/out", "--device", "cpu", "--group", "1", *places)


def names(folder):
    found = []
    for path in sorted(Path(folder).glob("part*.zip")):
        with zipfile.ZipFile(path) as archive:
            found += archive.namelist()
    return [name for name in found if name != "item.json"]


ABSENT = (
    "torchvision",
    "sklearn",
    "scipy",
    "matplotlib",
    "tqdm",
    "IPython",
    "papermill",
)


def killed_after_a_record(name):
    """Run as on a bare machine and SIGKILL it once a record lies in ``out``."""
    command = [sys.executable, str(TOOLS / "run.py"), *there(name), "--every", "0.1"]
    bare = f"import sys; sys.modules.update(dict.fromkeys({ABSENT}))"
    write_whole(Path("bare/sitecustomize.py"), bare.encode())
    folders = [str(Path("bare").resolve()), str(TOOLS.parents[1] / "src")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(folders)}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not any(n.startswith("records/") for n in names(f"{name}/out")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()


def results(records):
    return [(r.experiment, r.curves, r.per_class, r.best_epoch) for r in records]


def test_packed_run_killed_stopped_continued_and_taken_in(monkeypatch, capsys):
    assert sent(monkeypatch) == 0
    killed_after_a_record("first")
    assert call(monkeypatch, fetch, "first/out", *PLACES) == 0
    store = Store("results/quick")
    assert 1 <= len(store.verify()) <= 2

    if store.missing(CONTROL):  # the kill came in time: a second, bare machine
        assert sent(monkeypatch) == 0
        assert len(json.loads(Path(".gpu/item.json").read_bytes())["experiments"]) == 1
        steps = iter(range(10**6))
        with monkeypatch.context() as patched:
            patched.setattr(run.Watch, "stopped", lambda watch: next(steps) > 20)
            assert call(patched, run, *there("second")) == 75
        assert call(monkeypatch, fetch, "second/out", *PLACES) == 0
        assert "epoch 3 of 10" in capsys.readouterr().out

        assert sent(monkeypatch) == 0
        assert "latest.ckpt" in "".join(names(".gpu"))
        assert call(monkeypatch, run, *there("third")) == 0
        assert call(monkeypatch, fetch, "third/out", *PLACES) == 0
        assert store.get(store.records()[-1].experiment).timing["resumes"] <= 1

    whole = runner.run_all(CONTROL, work="alone")
    assert results(store.records(CONTROL)) == results(whole)
    assert sent(monkeypatch) == 2  # nothing is left to send


def test_networks_come_back_in_half_and_are_measured_in_a_later_call(monkeypatch):
    dynamics = studies.named("dynamics", "quick", [0])
    words = ("--scale", "quick", "--seeds", "0", "--methods", "CE+DRW")
    assert call(monkeypatch, send, "table1", *words, "--keep", "CE+DRW", *PLACES) == 0
    assert call(monkeypatch, run, *there("first")) == 0
    assert call(monkeypatch, fetch, "first/out", *PLACES) == 0
    folder = Path("work") / dynamics[0].training.slug
    exported = {p.name for p in folder.glob("*.weights")}
    assert len(exported) == len(dynamics[0].milestones)
    (full,) = Path("first/work").glob(f"{folder.name}/epoch0010.weights")
    whole, half = (read_checkpoint(p)[1] for p in (full, folder / full.name))
    assert half["conv1.weight"].dtype == torch.float16
    for name, tensor in whole.items():
        assert torch.equal(half[name], tensor.half() if tensor.ndim > 1 else tensor)

    few = [measure.measurement(epoch, 9, "clean") for epoch in dynamics[0].spectra_at]
    monkeypatch.setattr(measure, "spectra_plan", lambda experiment: few)
    assert call(monkeypatch, send, "dynamics", *words, *PLACES) == 0
    assert call(monkeypatch, run, *there("second")) == 0
    assert call(monkeypatch, fetch, "second/out", *PLACES) == 0
    (record,) = Store("results/quick").records([dynamics[0]])
    assert {s["epoch"] for s in record.spectra} == set(dynamics[0].spectra_at)
    assert record.curves == Store("results/quick").records()[1].curves
    assert not Path("second/work", folder.name, "epoch0001.weights.incoming").exists()


def test_a_pack_is_for_the_draws_of_its_studies_and_says_what_is_wrong(tmp_path):
    path = tmp_path / "digits.pack"
    assert "read back and compared" in pack.make(path, "digits", "quick", None)
    found, digits = pack.read(path), data.load("digits")
    assert found.dataset.digest == digits.digest
    assert torch.equal(found.dataset.train_labels, digits.train_labels)
    pack.check(found, CONTROL)
    with pytest.raises(DataError, match="does not carry"):
        pack.check(found, [replace(CONTROL[0], imbalance_factor=1)])
    with pytest.raises(DataError, match="needs cifar10"):
        pack.check(found, [at_scale(studies.table1()[0], "lite")])
    whole = path.read_bytes()
    for broken in (whole[:-50], whole[:9000] + b"?" + whole[9001:], b"PK"):
        path.write_bytes(broken)
        with pytest.raises(DataError, match="not a whole pack"):
            pack.read(path)


def units(**sizes):
    return {name: {f"work/{name}/latest.ckpt": bytes(n)} for name, n in sizes.items()}


def test_units_keep_their_part_and_parts_their_size(tmp_path):
    room = bundle.ROOM - 2000
    parts = bundle.Bundle(tmp_path, b"{}")
    assert parts.save(units(a=room // 2, b=room // 2, c=room, d=room // 3)) == []
    before = dict(parts._places)
    left = parts.save(units(b=room // 2, c=room, d=room // 3, e=room, f=room))
    assert left == ["f"]
    assert {name: parts._places[name] for name in "bcd"} == {
        name: before[name] for name in "bcd"
    }
    files = list(tmp_path.iterdir())
    assert len(files) <= 4
    assert sum(unit.stat().st_size for unit in files) <= 4 * 16 * 2**20


@pytest.mark.parametrize("reached", [0, 1, 2, 3])
def test_a_save_killed_between_two_parts_loses_no_unit(reached, tmp_path, monkeypatch):
    third = bundle.ROOM // 3 - 2000
    parts = bundle.Bundle(tmp_path, b"{}")
    parts.save(units(**dict.fromkeys("abcdefg", third)))
    write = bundle.Bundle._write

    def killed(self, part, files):
        if part > reached:
            raise KeyboardInterrupt
        write(self, part, files)

    monkeypatch.setattr(bundle.Bundle, "_write", killed)
    try:
        parts.save(units(**dict.fromkeys("bcdefgh", third)))
    except KeyboardInterrupt:
        pass
    assert {f"work/{name}/latest.ckpt" for name in "bcdefg"} <= set(names(tmp_path))


@pytest.fixture
def back(monkeypatch):
    """A folder with what a finished call gave."""
    assert sent(monkeypatch, "--methods", CONTROL[0].method) == 0
    assert call(monkeypatch, run, *there("machine")) == 0
    return Path("machine/out")


def altered(folder, change):
    """Write the part again with other files."""
    (path,) = folder.glob("part*.zip")
    with zipfile.ZipFile(path) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in change(files).items():
            archive.writestr(name, content)


def test_what_comes_back_damaged_or_foreign_is_refused(back, monkeypatch, capsys):
    whole = (back / "part0.zip").read_bytes()
    record = next(name for name in names(back) if name.startswith("records/"))
    changes = {
        "cut": lambda f: {**f, record: f[record][:-20]},
        "edited": lambda f: {
            **f, record: f[record].replace(b'"best_epoch": ', b'"best_epoch": 1'),
        },
        "outside": lambda f: {**f, "work/../escaped": b"x"},
        "absolute": lambda f: {**f, "/escaped": b"x"},
        "bomb": lambda f: {**f, record: bytes(2**29)},
        "lock": lambda f: {**f, f"work/{CONTROL[0].slug}.lock/latest.ckpt": b"x"},
        "other run": lambda f: {**f, f"work/{CONTROL[1].slug}/latest.ckpt": b"x"},
        "item": lambda f: {**f, "item.json": b"[]"},
        "deep item": lambda f: {**f, "item.json": 9999 * b"["},
        "no item": lambda f: {n: f[n] for n in f if n != "item.json"},
    }  # fmt: skip
    for change in changes.values():
        (back / "part0.zip").write_bytes(whole)
        altered(back, change)
        assert call(monkeypatch, fetch, back, *PLACES) == 4
        assert len(capsys.readouterr().err.strip().splitlines()) == 1
    (back / "part0.zip").write_bytes(whole[:-200])
    assert call(monkeypatch, fetch, back, *PLACES) == 4
    (back / "part0.zip").unlink()
    assert call(monkeypatch, fetch, back, *PLACES) == 4
    assert not Path("results").exists()


def test_a_record_of_other_code_is_refused_and_names_its_commit(back, monkeypatch):
    monkeypatch.setattr(bundle, "numerics_digest", lambda: "0" * 16)
    ((item, files),) = bundle.parts(back)
    with pytest.raises(VerifyError, match=item["commit"]):
        bundle.install(files, item, Path("work"), Path("results"))


def test_where_no_repository_is_the_commit_that_was_sent_is_noted(back, monkeypatch):
    ((item, files),) = bundle.parts(back)
    name, content = next(iter(files.items()))
    made = bundle.Record.from_dict(json.loads(content))
    lost = made.provenance | {"commit": "unknown", "dirty": False}
    files = {name: replace(made, provenance=lost).to_bytes()}
    bundle.install(files, item, Path("work"), Path("results"))
    (record,) = Store("results/quick").records()
    assert record.provenance["commit"] == item["commit"]


def test_what_is_further_on_stays(tmp_path):
    slug = CONTROL[0].slug
    name, meta = f"work/{slug}/latest.ckpt", {"experiment": CONTROL[0].to_dict()}

    def take(epoch, **other):
        state = encoded_checkpoint(
            meta | {"epoch": epoch} | other, {"w": torch.ones(2)}
        )
        bundle.install({name: state}, {}, tmp_path, tmp_path)

    for first, second in ((3, 5), (5, 3), (5, 5)):
        take(first)
        take(second)
        assert read_checkpoint(tmp_path / slug / "latest.ckpt")[0]["epoch"] == 5
        assert len(list((tmp_path / slug).iterdir())) == 1
    for epoch, other, message in (
        (10, {"experiment": CONTROL[1].to_dict()}, "another run"),
        (9999, {}, "9999 of 10"),
        ("9", {}, "'9' of 10"),
        (9, {"experiment": None}, "names no experiment"),
    ):
        with pytest.raises(CorruptError, match=message):
            take(epoch, **other)
    with pytest.raises(CorruptError, match="damaged"):
        bundle.install({name: b"cut"}, {}, tmp_path, tmp_path)
    assert read_checkpoint(tmp_path / slug / "latest.ckpt")[0]["epoch"] == 5


HEADERS = [
    b"[]", b"{}", 3000 * b"[", b"\xff", b'{"format": "saddlebook pack 1"}',
    b'{"format": "saddlebook pack 1", "counts": [9, 9, 9], "pixels": 1e9}',
    b'{"format": "saddlebook pack 1", "counts": [1000000000, 1, 1], "pixels": 32}',
    b'{"format": "saddlebook pack 1", "counts": [9, 9, 9], "pixels": 32}',
]  # fmt: skip


def test_a_pack_that_attacks_its_reader_is_refused_at_no_cost(tmp_path):
    path, bomb = tmp_path / "x.pack", lzma.compress(bytes(2**27), preset=0)
    for header in HEADERS:
        path.write_bytes(header + b"\n" + bomb)
        tracemalloc.start()
        with pytest.raises(DataError, match="not a whole pack"):
            pack.read(path)
        assert tracemalloc.get_traced_memory()[1] < 2**26, header
        tracemalloc.stop()


@pytest.mark.parametrize(
    "content", [b"[]", b"3", b"{}", 3000 * b"[", b'{"experiments": 3, "keep": []}', b""]
)
def test_an_item_that_says_nothing_is_one_line(monkeypatch, capsys, content):
    write_whole(Path(".gpu/item.json"), content)
    assert call(monkeypatch, run, *there("bare")) == 4
    assert len(capsys.readouterr().err.strip().splitlines()) == 1


def test_what_another_call_gave_is_not_overwritten(back, monkeypatch, capsys):
    whole = (back / "part0.zip").read_bytes()
    assert sent(monkeypatch, "--methods", CONTROL[1].method) == 0
    assert call(monkeypatch, run, *there("machine")) == 2
    assert "another call" in capsys.readouterr().err
    assert (back / "part0.zip").read_bytes() == whole


def test_runs_without_room_stay_here(monkeypatch, capsys):
    for experiment, epoch in zip(CONTROL, (2, 7), strict=True):
        tensors = {"weights": torch.zeros(5000)}
        state = encoded_checkpoint({"epoch": epoch}, tensors)
        write_whole(Path("work") / experiment.slug / "latest.ckpt", state)
    assert sent(monkeypatch, "--room", "60000") == 0
    item = json.loads(Path(".gpu/item.json").read_bytes())
    (going,) = item["experiments"]
    assert going["optimizer"] == CONTROL[1].optimizer  # the more advanced one
    assert f"stays here, no room: {CONTROL[0].slug}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["tabel1"], 2),
        (["table1", "--methods", "CE+DRW+SMA"], 2),
        (["table1", "--scale", "lit"], 2),
        (["table1", "table1_cifar100"], 2),
        (["table1", "--scale", "full", "--data", "nowhere"], 3),
    ],
)
def test_what_cannot_be_sent_is_one_line(words, code, monkeypatch, capsys):
    assert call(monkeypatch, send, *words, *PLACES) == code
    assert len(capsys.readouterr().err.strip().splitlines()) == 1


def test_the_items_are_listed_fit_ten_minutes_and_cover_the_claims():
    text = (TOOLS.parent / "GPU_RUNS.md").read_text()
    wanted = set()
    for name in item.ITEMS:
        assert f"`{name}`" in text
        runs = item.left(name)  # in an empty folder: all of them
        assert 0 < item.minutes(runs) <= 10, name
        assert len({e.dataset for e in runs}) == 1  # a call carries one
        wanted |= set(runs)
    in_it = ("rho_ablation", "sam_timing", "bn_statistics", "optimizers")
    needed = {e for name in in_it for e in studies.named(name, seeds=[0])}
    there = studies.named("table1", seeds=[0])
    assert needed <= wanted | set(there)
    commands = re.findall(r"^    (?:\w+=\S+ )*python3? (?:-u )?(\S+)", text, re.M)
    assert len(commands) > 3
    assert all((TOOLS.parents[1] / tool).is_file() for tool in commands)


# Another machine: a folder of its own, to which the checkout goes and from which the
# parts come back
FAR = (
    "sh -c 'mkdir far && cp -RP .gpu benchmarks src far && cd far && "
    "{run} --device cpu --group 1; code=$?; cp -R {out}/. ../{out}; exit $code'"
)


@pytest.mark.parametrize("there", [None, FAR], ids=["here", "far"])
def test_an_item_goes_from_sending_to_taking_in(there, monkeypatch, capsys):
    words = "control --scale quick --seeds 0 --methods 'CE+DRW wd=0.001'"
    monkeypatch.setitem(item.ITEMS, "toy", words)
    monkeypatch.chdir(Path.cwd())
    # an item runs the python3 of the path, here that of the tests
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    monkeypatch.setenv("PATH", path)
    Path("benchmarks").symlink_to(TOOLS.parents[0])
    Path("src").symlink_to(TOOLS.parents[1] / "src")
    arguments = ["toy", *(["--there", there] if there else [])]
    code = call(monkeypatch, item, *arguments)
    if there is None and not torch.cuda.is_available():
        assert code == 6  # no GPU: said, and nothing is lost
        assert list(Path(".gpu").glob("*.pack"))
        return
    assert code == 0
    assert "toy is done" in capsys.readouterr().out
    assert len(Store("results/quick").records()) == 1


def test_a_call_without_its_folder_or_pack_is_one_line(monkeypatch, capsys):
    assert call(monkeypatch, run, *there("bare")) == 4
    assert sent(monkeypatch) == 0
    next(Path(".gpu").glob("*.pack")).unlink()
    assert call(monkeypatch, run, *there("bare")) == 3
    assert len(capsys.readouterr().err.strip().splitlines()) == 2
