# SPDX-License-Identifier: Apache-2.0
"""By how much steps take longer than foreseen, so that a bound leaves room for it before it is passed."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import deque

WINDOW = 256
"""Steps that are looked at."""

LEAST_STEPS = 32
"""Steps before anything is said."""

WITHIN_RATIO = 0.9925
"""Share of the steps that are to stay within what was foreseen times the margin."""

MOST = 2.0
"""Largest margin: what takes longer than that was held up by something else."""


class StepScatter:
    """Times of the latest steps over what was foreseen for each. O(log of the window) to find the place of one, which is then
    moved in a list of so many."""

    def __init__(self) -> None:
        self._latest: deque[float] = deque()
        self._sorted: list[float] = []

    def add(self, foreseen_s: float, duration_s: float) -> None:
        """A step took ``duration_s``; one of which nothing was foreseen does not count."""
        if not (foreseen_s > 0 and 0 < duration_s < 3600):
            return
        ratio = duration_s / foreseen_s
        self._latest.append(ratio)
        insort(self._sorted, ratio)
        if len(self._latest) > WINDOW:
            del self._sorted[bisect_left(self._sorted, self._latest.popleft())]

    @property
    def margin(self) -> float:
        """Factor within which ``WITHIN_RATIO`` of the steps stay; from 1 to ``MOST``, and 1 as long as there are too few."""
        count = len(self._sorted)
        if count < LEAST_STEPS:
            return 1.0
        return min(max(self._sorted[int(WITHIN_RATIO * (count - 1))], 1.0), MOST)
