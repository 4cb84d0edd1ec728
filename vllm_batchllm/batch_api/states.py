# SPDX-License-Identifier: Apache-2.0
"""The states of a batch, which may follow which, and the moment that each is told by. Pure."""

from __future__ import annotations

from typing import Final

FOLLOWS: Final[dict[str, frozenset[str]]] = {
    "validating": frozenset({"in_progress", "failed", "cancelling"}),
    "in_progress": frozenset({"finalizing", "cancelling"}),
    "finalizing": frozenset({"completed", "expired", "failed"}),
    "cancelling": frozenset({"cancelled"}),
    "completed": frozenset(),
    "expired": frozenset(),
    "failed": frozenset(),
    "cancelled": frozenset(),
}
"""State -> the states that may follow. Since a move is made only from one of them, of two moves
that meet in one state exactly one is made: a cancel and a completion both leave `in_progress`."""

FINISHED: Final = frozenset(state for state, after in FOLLOWS.items() if not after)
UNFINISHED: Final = frozenset(FOLLOWS) - FINISHED


def before(state: str) -> frozenset[str]:
    """The states that ``state`` may follow."""
    return frozenset(earlier for earlier, after in FOLLOWS.items() if state in after)


def moment(state: str) -> str:
    """The name of the time at which a batch came into ``state``."""
    return f"{state}_at"


MOMENTS: Final = tuple(moment(state) for state in FOLLOWS if state != "validating")
