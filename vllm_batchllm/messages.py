# SPDX-License-Identifier: Apache-2.0
"""Values in messages: enough of them to be recognised, however large, deep or strange they are."""

from __future__ import annotations

from reprlib import Repr


class _Clip(Repr):
    """``repr`` with bounds; it raises for no value."""

    def __init__(self) -> None:
        super().__init__()
        self.maxstring = self.maxother = 120
        self.maxlong = 60
        self.maxlevel = 4

    def repr_int(self, x: int, level: int) -> str:
        try:
            return super().repr_int(x, level)
        except ValueError:  # Python writes no number of more than 4,300 digits
            return f"<a whole number of {x.bit_length():,} bits>"


_CLIP = _Clip()


def clip(value: object) -> str:
    """``repr(value)``, cut where it would be long. Never raises."""
    return _CLIP.repr(value)
