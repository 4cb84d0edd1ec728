# SPDX-License-Identifier: Apache-2.0
"""Who is held back, and since when; nobody for longer than a bound, whatever the clock does."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Iterator
from typing import Generic, TypeVar

H = TypeVar("H", bound=Hashable)


class HeldRequests(Generic[H]):
    """Requests in the order in which they came, each held for at most ``max_hold_s``. All operations are O(1) amortised.

    A clock that jumps ahead makes everybody overdue; where it jumps back, holds begin anew.
    """

    def __init__(self, max_hold_s: float) -> None:
        self.max_hold_s = max_hold_s
        self.num_held_ever = 0
        self.hold_s = 0.0
        """Seconds for which those were held that have gone, in all."""
        self._since: OrderedDict[H, float] = OrderedDict()
        self._now_s = float("-inf")

    def __len__(self) -> int:
        return len(self._since)

    def __contains__(self, request: object) -> bool:
        return request in self._since

    def __iter__(self) -> Iterator[H]:
        return iter(self._since)

    def tick(self, now_s: float) -> None:
        """The clock shows ``now_s``."""
        if now_s < self._now_s:
            for request in self._since:
                self._since[request] = min(self._since[request], now_s)
        self._now_s = now_s

    def add(self, request: H, now_s: float) -> None:
        """Hold ``request`` from now on."""
        self.tick(now_s)
        self._since[request] = now_s
        self.num_held_ever += 1

    def remove(self, request: H) -> None:
        """Hold ``request`` no longer. Raises KeyError if it is not held."""
        self.hold_s += max(self._now_s - self._since.pop(request), 0.0)

    def take(self, count: int) -> list[H]:
        """Take out the first ``count``."""
        taken = [request for request, _ in zip(self._since, range(count), strict=False)]
        for request in taken:
            self.remove(request)
        return taken

    def due_s(self) -> float | None:
        """When the first of them has to go; None if nobody is held."""
        if not self._since:
            return None
        return next(iter(self._since.values())) + self.max_hold_s

    def is_overdue(self) -> bool:
        """Whether the first of them has to go now."""
        due_s = self.due_s()
        return due_s is not None and self._now_s >= due_s
