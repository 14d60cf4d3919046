"""How numbers are written wherever readers meet them: one rule for all text.

The widgets' own rule, ``say`` in ``figures/plot.js``, is the same.
"""

from __future__ import annotations

import re

_RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_POWER = re.compile(r"(?<![\w.])([-+−]?\d+(?:\.\d+)?)e([-+]?\d+)(?![\w-])")
_ZERO = re.compile(r"(?<![\w.])[-−+](0(?:\.0+)?)(?![\w.])")
_HYPHEN = re.compile(r"(?<![\w.)\]-])-(?=\.?\d)")


def typeset(text: str) -> str:
    """Text with true minus signs, powers of ten written out, and no negative zero."""
    text = _POWER.sub(_power, text)
    return _HYPHEN.sub("−", _ZERO.sub(r"\1", text))


def _power(found: re.Match[str]) -> str:
    front, power = found[1], int(found[2])
    if -5 < power < 5:
        digits = len(front.partition(".")[2])
        plain = (
            f"{float(front.replace('−', '-')) * 10.0**power:.{max(0, digits - power)}f}"
        )
        return f"+{plain}" if front.startswith("+") else plain
    return f"{front}·10{str(power).translate(_RAISED)}"
