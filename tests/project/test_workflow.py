"""The runs as jobs of the real Snakemake: killed, failed, gone on with, and planned."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from saddlebook import studies
from saddlebook.store import Store

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "benchmarks/faults"))
import kills  # noqa: E402

pytestmark = pytest.mark.skipif(
    not kills.HAS_SNAKEMAKE,
    reason="no Snakemake here: make .venv-workflow/.ready installs it or says why not",
)
TABLE = kills.Command(("snakemake", "machine", "table1", "0"), "results/quick/*.json")
RUNS = studies.named("table1", "quick", [0])


@pytest.fixture
def here(tmp_path):
    """A folder in the place of the checkout: all that Snakemake and its jobs write."""
    folder = tmp_path / "here"
    folder.mkdir()
    (folder / "workflow").symlink_to(ROOT / "workflow")
    return folder


def records(here):
    """Content and time of every record."""
    paths = here.glob(TABLE.mark)
    return {p.name: (p.read_bytes(), p.stat().st_mtime_ns) for p in paths}


def said(here, *words, code=0):
    """What a call says that ends with this code."""
    command, path = kills.snakemake(*words), f"{here.parent}:{os.environ['PATH']}"
    done = subprocess.run(
        command, cwd=here, env=os.environ | {"PATH": path}, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == code, done.stdout
    return done.stdout


def killed(here, victim):
    """The records after a kill just after the call's first one, and the exit code."""
    process, _ = kills.begun(TABLE, here)
    kills.kill(process, victim)
    return records(here), process.exitcode


def test_a_study_that_was_killed_and_failed_is_made_whole_and_no_record_twice(here):
    mark = here / "_build/workflow/quick/table1-s0.done"
    first, _ = killed(here, "all")
    second, code = killed(here, "job")  # Snakemake lives on and sees a failed job
    assert code == 1
    assert 0 < len(first) < len(second) < len(RUNS)
    assert first.items() <= second.items()
    assert not mark.exists()

    said(here, *TABLE.words[1:])
    last = records(here)
    assert second.items() <= last.items()
    assert mark.exists()
    store = Store(here / "results/quick")
    assert (len(store.verify()), store.missing(RUNS)) == (len(RUNS), [])

    assert "Nothing to be done" in said(here, *TABLE.words[1:])
    assert records(here) == last


def test_a_cluster_is_to_do_a_seed_of_a_study_after_the_study_before(here):
    told = said(here, "slurm", "table1,control", "0,1", "--dry-run")
    jobs = re.findall(r"output: \S+/(\w+)-s(\d).done\n", told)
    assert sorted(jobs) == [(s, n) for s in ("control", "table1") for n in "01"]
    for seed in "01":
        waits = rf"input: (\S+)table1-s{seed}.done\n +output: \1control-s{seed}.done\n"
        assert re.search(waits, told)
    assert not (here / "results").exists()


# In the place of Slurm's programs: one keeps what it is asked for, and both refuse
SLURM = {"sacct": "exit 1", "sbatch": 'echo "$*" >> asked.txt; exit 1'}
AS_ASKED = "-p gpu -t {} --mem {} --cpus-per-task={} .* --gres=gpu:{} "


@pytest.mark.parametrize(
    ("target", "jobs", "wanted"),
    [((), 2, (120, 16000, 2, 1)), (("large",), 8, (1440, 256000, 96, 8))],
)
def test_slurm_is_asked_for_time_memory_cores_and_gpus(here, target, jobs, wanted):
    for name, does in SLURM.items():
        path = here.parent / name
        path.write_text(f"#!/bin/sh\n{does}\n")
        path.chmod(0o700)
    soon = ("--slurm-init-seconds-before-status-checks", "1", "--retries", "0")
    told = said(here, "slurm", "table1", "0,1", *soon, *target, code=1)
    assert (here / "asked.txt").exists(), told
    asked = (here / "asked.txt").read_text().splitlines()
    pattern = AS_ASKED.format(*wanted)
    assert [bool(re.search(pattern, line)) for line in asked] == [True] * jobs
