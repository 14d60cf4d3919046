"""Where a record comes from, and what makes it stale."""

import json
import os
import re

import pytest

from saddlebook.disk import provenance
from saddlebook.disk.provenance import Provenance
from saddlebook.errors import MachineError


def test_provenance_names_versions_and_no_host_user_or_path():
    origin = Provenance.start("cpu", "fp32", "abc")
    text = json.dumps(origin.to_dict())
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", origin.started)
    assert re.fullmatch(r"[0-9a-f]{16}", origin.numerics)
    assert re.fullmatch(r"[0-9a-f]{40}|unknown", origin.commit)
    assert origin.after(3.0).seconds == 3.0
    private = (os.uname().nodename, os.path.expanduser("~"), os.getcwd())
    assert not [word for word in private if word in text]


SOURCE = '''
"""Module."""
import math


def area(radius):
    """Of a disc."""
    # a comment
    if radius < 0:
        raise ValueError(f"radius {radius!r} is {'negative'}")
    return math.pi * radius**2
'''
SAME = [
    ('"""Of a disc."""', '"""The area, in square metres."""'),
    ("# a comment", "# another"),
    ("    # a comment\n", "\n"),
    ("math.pi * radius**2", "math.pi  *  radius ** 2"),
    ("radius {radius!r} is {'negative'}", "{radius} must not be negative"),
]
OTHER = [
    ("radius**2", "radius**3"),
    ("radius < 0", "radius <= 0"),
    ("        raise", "    raise"),
    ("math.pi", "'math.pi'"),
]


@pytest.mark.parametrize(("old", "new"), SAME)
def test_prose_and_layout_leave_the_code_digest_alone(old, new):
    assert old in SOURCE
    assert provenance.essence(SOURCE.replace(old, new)) == provenance.essence(SOURCE)


@pytest.mark.parametrize(("old", "new"), OTHER)
def test_a_change_of_code_changes_the_code_digest(old, new):
    assert old in SOURCE
    assert provenance.essence(SOURCE.replace(old, new)) != provenance.essence(SOURCE)


def test_a_listed_module_that_is_missing_is_an_error(tmp_path):
    (tmp_path / "one.py").write_text("a = 1\n")
    assert len(provenance.code_digest(("one",), tmp_path)) == 16
    with pytest.raises(MachineError, match=r"cannot read .*two\.py"):
        provenance.code_digest(("one", "two"), tmp_path)


@pytest.mark.parametrize("name", provenance.CURVATURE)
def test_every_module_of_curvature_counts(name, tmp_path):
    for module in provenance.CURVATURE:
        code = (provenance._PACKAGE / f"{module}.py").read_text()
        path = tmp_path / f"{module}.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text(code + "surplus = 1\n" if module == name else code)
    changed = provenance.code_digest(tuple(sorted(provenance.CURVATURE)), tmp_path)
    assert changed != provenance.curvature_digest()


def test_no_module_of_the_room_is_left_out():
    room = (provenance._PACKAGE / "curvature").glob("[!_]*.py")
    names = {f"curvature/{path.stem}" for path in room}
    assert names == set(provenance.CURVATURE) - {"measure"}
