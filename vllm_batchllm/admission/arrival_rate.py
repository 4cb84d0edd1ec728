# SPDX-License-Identifier: Apache-2.0
"""How many requests arrive in a second, followed as it changes.

Arrivals are seen between steps, all of a step together, so what counts is how many came between two looks, not how close
to each other the engine took them in.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque

WINDOWS = (512, 64, 12)
"""Arrivals that are looked at: many make the estimate steady (of so many, within a twentieth or so), few see that it has changed."""

LOOKS = (32, 8, 4)
"""Looks at which they were seen, at least."""

CHANGED = (1.5, 2.0)
"""Factors by which the latest of a shorter window must differ from the longer one to be believed instead: of an even
stream, one look in about a thousand does by the first, one in about a hundred by the second."""

LEAST = 8
"""Arrivals before anything is said."""


class ArrivalRate:
    """Estimates the rate of a stream of arrivals. O(log of the longest window) for each."""

    def __init__(self) -> None:
        self._times: deque[float] = deque()
        self._totals: deque[int] = deque()
        """Looks at which somebody had come, and arrivals up to each."""

    def arrived(self, now_s: float, num_requests: int = 1) -> None:
        """So many have come since the last look. A clock that goes back begins anew."""
        times, totals = self._times, self._totals
        if times and now_s < times[-1]:
            times.clear()
            totals.clear()
        total = num_requests + (totals[-1] if totals else 0)
        if times and now_s == times[-1]:
            totals[-1] = total
        else:
            times.append(now_s)
            totals.append(total)
        while len(times) > LOOKS[0] + 1 and total - totals[1] >= WINDOWS[0]:
            times.popleft()
            totals.popleft()

    def per_s(self, now_s: float) -> float | None:
        """Arrivals per second; None as long as too few have come."""
        if len(self._times) < 2 or self._totals[-1] - self._totals[0] < LEAST - 1:
            return None
        believed = self._over(WINDOWS[0], LOOKS[0], now_s)
        for window, looks, changed in zip(WINDOWS[1:], LOOKS[1:], CHANGED, strict=True):
            latest = self._over(window, looks, now_s)
            if max(latest, believed) > changed * min(latest, believed):
                believed = latest
        return believed

    def _over(self, window: int, looks: int, now_s: float) -> float:
        """By the last arrivals, at least ``window`` of them at ``looks`` looks, and the silence since where that is long."""
        totals = self._totals
        place = bisect_right(totals, totals[-1] - window) - 1
        place = max(min(place, len(totals) - 1 - looks), 0)
        first_s, count = self._times[place], totals[-1] - totals[place]
        by_gaps = count / max(self._times[-1] - first_s, 1e-9)
        return min(by_gaps, (count + 1) / max(now_s - first_s, 1e-9))
