# SPDX-License-Identifier: Apache-2.0
"""Values from anybody, for messages and logs: on one line, and never long."""

from __future__ import annotations

from reprlib import Repr

_BRIEF = Repr()
_BRIEF.maxstring = _BRIEF.maxother = 80


def in_brief(value: object) -> str:
    """``repr`` of ``value``, cut in the middle and at depth where it is long."""
    try:
        return _BRIEF.repr(value)
    except ValueError:  # a number with more digits than Python prints
        return f"{type(value).__name__} too long to show"
