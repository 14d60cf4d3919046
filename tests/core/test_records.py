"""Every committed record: whole, small, in its place, part of a study, no traces."""

import os
import socket
from pathlib import Path

import pytest

from saddlebook import studies
from saddlebook.experiment import LARGE, SCALES
from saddlebook.store import Store

RESULTS = Path(__file__).resolve().parents[2] / "results"


@pytest.mark.parametrize("scale", SCALES)
def test_every_committed_record_is_whole_and_of_its_scale(scale):
    records = Store(RESULTS / scale).verify()
    assert len(records) == len(list((RESULTS / scale).glob("*.json")))
    assert {record.experiment.scale for record in records} <= {scale}


@pytest.mark.parametrize("scale", SCALES)
def test_every_committed_record_belongs_to_a_study(scale):
    wanted = {e.key for name in studies.STUDIES for e in studies.named(name, scale)}
    wanted |= {e.key for name in LARGE for e in studies.large(name, studies.SEEDS)}
    strays = [r.experiment.slug for r in Store(RESULTS / scale).records()]
    assert [slug for slug in strays if slug[-8:] not in wanted] == []


def test_no_committed_record_names_a_machine_or_a_folder():
    private = ["/home/", "/root", "/tmp", "/work", "/Users/", ":\\\\"]
    private += [socket.gethostname(), os.path.expanduser("~")]
    for path in RESULTS.glob("*/*.json"):
        text = path.read_text()
        assert not [word for word in private if word in text], path.name


def test_no_record_is_kept_from_the_quick_scale():
    assert list((RESULTS / "quick").glob("*")) == []
