# SPDX-License-Identifier: Apache-2.0
"""What batch requests leave free for interactive ones, which come when they like.

A slot or a block that a batch request has is not given back before it ends, so as many are kept free as interactive
requests have lately needed at once. How many that is, is followed: at once when it grows, slowly when it falls.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

INTERACTIVE_PRIORITY = 0
"""Requests of this priority or a smaller one are interactive, those above are batch."""

FORGET_S = 60.0
"""Seconds in which a peak that does not come again falls to 1/e of itself."""

MOST_RATIO = 0.5
"""Share of slots and of memory that is kept free at most."""


@dataclass(frozen=True, slots=True)
class Reserved:
    """What batch requests leave free: slots of running requests, and KV blocks."""

    num_seqs: int = 0
    num_blocks: int = 0


NOTHING = Reserved()


class InteractiveReserve:
    """Follows how many requests of the interactive class there are at once, and how large they are.

    Args:
        max_num_seqs: requests that run at once at most. num_blocks: KV blocks that requests can hold.
    """

    def __init__(self, max_num_seqs: int, num_blocks: int) -> None:
        self._max_num_seqs, self._num_blocks = max_num_seqs, num_blocks
        self._peak = 0.0
        self._blocks = 0.0
        self._now_s: float | None = None

    def step(self, now_s: float, num_present: int) -> None:
        """``num_present`` interactive requests run or wait."""
        if self._now_s is not None and now_s > self._now_s:
            self._peak *= math.exp(-(now_s - self._now_s) / FORGET_S)
        self._now_s = now_s
        self._peak = max(self._peak, num_present)

    def arrived(self, num_blocks: int) -> None:
        """An interactive request has come that will hold ``num_blocks`` at its end."""
        self._blocks = num_blocks if not self._blocks else 0.9 * self._blocks + 0.1 * num_blocks

    def num_seqs(self, num_running: int) -> int:
        """Slots to keep free beside ``num_running`` interactive requests."""
        wanted = round(self._peak) - num_running
        return min(max(wanted, 0), int(MOST_RATIO * self._max_num_seqs))

    def num_free_blocks(self, num_running: int) -> int:
        """Blocks to keep free beside them."""
        wanted = self.num_seqs(num_running) * self._blocks
        return min(round(wanted), int(MOST_RATIO * self._num_blocks))
