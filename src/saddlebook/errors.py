"""Defines the errors a user can act on: one line each, and an exit code."""

from __future__ import annotations

import difflib
import textwrap
from collections.abc import Iterable, Iterator
from contextlib import contextmanager


class SaddlebookError(Exception):
    """A failure with a one-line cause, what to do, and an exit code."""

    exit_code = 1


class UsageError(SaddlebookError, ValueError):
    """An argument, name or parameter is wrong."""

    exit_code = 2


class DataError(SaddlebookError):
    """Images or labels are missing, damaged or of another dataset."""

    exit_code = 3


class CorruptError(SaddlebookError):
    """A checkpoint or record is damaged, foreign or of another experiment."""

    exit_code = 4


class NumericalError(SaddlebookError, ArithmeticError):
    """A number that should be finite is not, or a result did not converge."""

    exit_code = 5


class MachineError(SaddlebookError):
    """This machine lacks something: a device, a permission, a package."""

    exit_code = 6


class ResourceError(SaddlebookError):
    """Disk or memory ran out."""

    exit_code = 7


class LockedError(SaddlebookError):
    """Another process is running the same experiment."""

    exit_code = 8


class VerifyError(SaddlebookError):
    """A check of records, pages or results failed."""

    exit_code = 9


class Stopped(SaddlebookError):
    """Stopped on request; running the same command again continues."""

    exit_code = 75


def one_of(what: str, name: object, known: Iterable[str]) -> str:
    """Return ``name`` if it is known, else raise and suggest the nearest name."""
    names = list(known)
    if name in names:
        return str(name)
    hint = nearest(str(name), names)
    told = textwrap.shorten(", ".join(names), 300, placeholder=" …")
    raise UsageError(f"unknown {what} {name!r}: {hint}known: {told}")


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint ``did you mean ...? `` or nothing."""
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"did you mean {near[0]!r}? " if near else ""


@contextmanager
def explained(
    what: str, todo: str, kind: type[SaddlebookError] = CorruptError
) -> Iterator[None]:
    """Turn whatever a foreign file makes its reader raise into one line.

    Args:
        what: Names the file and what it should be.
        todo: What to do.
        kind: Of the error.
    """
    try:
        yield
    except SaddlebookError:
        raise
    except Exception as error:
        raise kind(f"{what} ({reason(error)}); {todo}") from error


def printable(text: object) -> str:
    """Text in which a terminal finds nothing to obey; lines stay."""
    shown = (
        c if c.isprintable() or c == "\n" else f"\\x{ord(c):02x}" for c in str(text)
    )
    return "".join(shown)


def reason(error: BaseException) -> str:
    """An error of Python or of a library in at most one line."""
    text = getattr(error, "strerror", None) or str(error)
    return next(iter(str(text).splitlines()), "")[:200] or type(error).__name__


def lacks(error: ModuleNotFoundError) -> str:
    """Which package is not installed, and what installs it."""
    return (
        f"this needs {error.name}, which is not installed; run: "
        "pip install 'saddlebook[book]'"
    )
