# SPDX-License-Identifier: Apache-2.0
"""How many requests arrive in a second, followed as it changes.

Arrivals are seen between steps, all of a step together, so what counts is how many came between two looks, not how close
to each other the engine took them in.
"""

from __future__ import annotations

from bisect import bisect_right

WINDOWS = (512, 64, 24)
"""Arrivals that are looked at: many make the estimate steady (of so many, within a twentieth or so), few see that it has changed."""

LOOKS = (32, 8, 6)
"""Looks at which they were seen, at least."""

CHANGED = (1.7, 2.3)
"""Factors by which the latest of a shorter window must differ from the longer one to be believed instead: of an even
stream, one look in ten thousand does, and a rate that becomes four times as high is seen after some 20 arrivals."""

LEAST = 8
"""Arrivals before anything is said."""


class ArrivalRate:
    """Estimates the rate of a stream of arrivals. O(log of the longest window) for each, amortised."""

    def __init__(self) -> None:
        self._times: list[float] = []
        self._totals: list[int] = []
        """Looks at which somebody had come, and arrivals up to each."""
        self._first = 0
        """Looks that are too long ago, at the front of both."""

    def arrived(self, now_s: float, num_requests: int = 1) -> None:
        """So many have come since the last look. A clock that goes back begins anew."""
        times, totals = self._times, self._totals
        if times and now_s < times[-1]:
            times.clear()
            totals.clear()
            self._first = 0
        total = num_requests + (totals[-1] if totals else 0)
        if times and now_s == times[-1]:
            totals[-1] = total
        else:
            times.append(now_s)
            totals.append(total)
        while (
            len(times) - self._first > LOOKS[0] + 1
            and total - totals[self._first + 1] >= WINDOWS[0]
        ):
            self._first += 1
        if self._first > WINDOWS[0]:
            del times[: self._first], totals[: self._first]
            self._first = 0

    def per_s(self, now_s: float) -> float | None:
        """Arrivals per second; None as long as too few have come."""
        totals = self._totals
        if len(totals) - self._first < 2 or totals[-1] - totals[self._first] < LEAST - 1:
            return None
        believed = self._over(WINDOWS[0], LOOKS[0], now_s)
        for window, looks, changed in zip(WINDOWS[1:], LOOKS[1:], CHANGED, strict=True):
            latest = self._over(window, looks, now_s)
            if max(latest, believed) > changed * min(latest, believed):
                believed = latest
        return believed

    def _over(self, window: int, looks: int, now_s: float) -> float:
        """By the last arrivals, at least ``window`` of them at ``looks`` looks, and the silence since where that is long."""
        totals, first = self._totals, self._first
        place = bisect_right(totals, totals[-1] - window, first) - 1
        place = max(min(place, len(totals) - 1 - looks), first)
        first_s, count = self._times[place], totals[-1] - totals[place]
        by_gaps = count / max(self._times[-1] - first_s, 1e-9)
        return min(by_gaps, (count + 1) / max(now_s - first_s, 1e-9))
