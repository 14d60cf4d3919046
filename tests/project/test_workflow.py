"""The Snakemake workflow with the real Snakemake, at the smoke scale."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SNAKEMAKE = ROOT / ".venv-workflow/bin/snakemake"
sys.path.append(str(ROOT / "benchmarks/faults"))
import kills  # noqa: E402

if not SNAKEMAKE.is_file():
    pytest.skip("no Snakemake; make test installs it", allow_module_level=True)


@pytest.fixture(autouse=True)
def _program(monkeypatch):
    monkeypatch.setenv("SNAKEMAKE", str(SNAKEMAKE))


@pytest.fixture
def here():
    with kills.ground(kills.COMMANDS["Snakemake"]) as folder:
        yield folder


WORDS = ("snakemake", "seeds=0,1")


def records(here):
    """When each was written, and what it is."""
    files = here.glob("results/quick/*.json")
    return {file: (file.stat().st_mtime_ns, file.read_bytes()) for file in files}


def test_killed_in_the_middle_the_same_call_makes_only_the_rest(here):
    first = kills.Command(WORDS, "results/quick/*.json")
    process, _ = kills.begun(first, here)
    kills.kill(process, "all")
    kept = records(here)
    assert 1 <= len(kept) < 4  # one study of two runs, two seeds
    for _ in range(2):
        process = kills.started(WORDS, here)
        process.join()
        assert process.exitcode == 0, kills.said(here)
    made = records(here)
    assert len(made) == 4
    assert {file: made[file] for file in kept} == kept
    assert "Nothing to be done" in "\n".join(kills.said(here))


def test_a_cluster_is_asked_for_what_a_large_run_needs(here):
    words = ["--dry-run", "--profile", "workflow/profiles/slurm", "large"]
    done = subprocess.run(
        [SNAKEMAKE, "--snakefile", "workflow/Snakefile", *words],
        cwd=here, capture_output=True, text=True,
    )  # fmt: skip
    told = done.stdout + done.stderr
    assert done.returncode == 0, told
    assert re.search(r"^large_run +8$", told, re.MULTILINE)
    assert told.count("cpus_per_task=96") == 8
    assert told.count("--gres=gpu:8") == 8
