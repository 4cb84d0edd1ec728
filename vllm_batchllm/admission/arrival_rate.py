# SPDX-License-Identifier: Apache-2.0
"""How many requests arrive in a second, followed as it changes."""

from __future__ import annotations

from collections import deque

LONG, SHORT = 64, 12
"""Arrivals that are looked at: as many as make the estimate steady, and so many to see that it has changed."""

LEAST = 8
"""Arrivals before anything is said."""

CHANGED = 2.0
"""Factor by which the latest arrivals must differ from the long run to be believed: of twelve from an even stream
one in about a hundred does."""


class ArrivalRate:
    """Estimates the rate of a stream of arrivals. O(1) for each."""

    def __init__(self) -> None:
        self._times: deque[float] = deque(maxlen=LONG)

    def arrived(self, now_s: float) -> None:
        """A request has come. A clock that goes back begins anew."""
        if self._times and now_s < self._times[-1]:
            self._times.clear()
        self._times.append(now_s)

    def per_s(self, now_s: float) -> float | None:
        """Arrivals per second; None as long as too few have come."""
        count = len(self._times)
        if count < LEAST:
            return None
        long = self._over(count, now_s)
        short = self._over(min(SHORT, count), now_s)
        return short if max(short, long) > CHANGED * min(short, long) else long

    def _over(self, count: int, now_s: float) -> float:
        """By the last ``count`` arrivals, and the silence since where that is long."""
        first, last = self._times[-count], self._times[-1]
        by_gaps = (count - 1) / max(last - first, 1e-9)
        return min(by_gaps, count / max(now_s - first, 1e-9))
