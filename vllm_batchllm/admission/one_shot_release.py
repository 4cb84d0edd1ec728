# SPDX-License-Identifier: Apache-2.0
"""One-shot requests, released in batches: embeddings, scores, answers of a token.

How many of those that wait are served when the device is free says a table (``release_policy.py``), made for the rate at
which they arrive and the time that a batch takes, both learnt. Before they are known, and whenever other requests run
anyway, all are released at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable
from typing import Generic, Protocol, TypeVar

from vllm_batchllm.admission.arrival_rate import ArrivalRate
from vllm_batchllm.admission.held_requests import HeldRequests
from vllm_batchllm.admission.service_times import ServiceTime, ServiceTimes

H = TypeVar("H", bound=Hashable)

GRID = 1.15
"""Rates and times within such a factor of each other share a table."""

MAX_TABLES = 64
"""Tables that are kept."""


MOST_IDLE_S = 10.0
"""Seconds between two batches beyond which nothing is counted as saved."""


class ReleaseTable(Protocol):
    """How many to serve, and watts that this saves against serving at once, by the model."""

    @property
    def saved_w(self) -> float: ...

    def batch_of(self, num_waiting: int) -> int:
        """Of ``num_waiting``; 0 to wait for more."""


Solve = Callable[[float, ServiceTime], ReleaseTable | None]
"""The best table for so many arrivals a second and such batches; None to release at once."""


class OneShotRelease(Generic[H]):
    """Holds one-shot requests.

    Args:
        max_hold_s: longest hold, seconds. max_batch: requests that are served at once at most.
        solve: makes a table. Asked in the engine's thread, at most once per change of what was learnt.
    """

    def __init__(self, max_hold_s: float, max_batch: int, solve: Solve) -> None:
        self.held: HeldRequests[H] = HeldRequests(max_hold_s)
        self.rate = ArrivalRate()
        self.services = ServiceTimes()
        self.num_batches = 0
        """Released so far."""
        self._max_batch, self._solve = max_batch, solve
        self.saved_j = 0.0
        """Joules saved so far against serving at once, by the model."""
        self._released_s: float | None = None
        self._tables: dict[tuple[int, int, int], ReleaseTable | None] = {}

    def arrived(self, request: H, now_s: float) -> None:
        """Hold ``request`` until :meth:`due` gives it back."""
        self.rate.arrived(now_s)
        self.held.add(request, now_s)

    def due(self, now_s: float, *, num_in_service: int, others_run: bool) -> list[H]:
        """Who is released now, in order.

        num_in_service: released one-shot requests that have not ended. others_run: whether there is other work to do.
        """
        self.held.tick(now_s)
        count = len(self.held)
        if not count:
            return []
        if others_run:
            num_released = count
        elif num_in_service:
            num_released = self._max_batch if count >= self._max_batch else 0
        else:
            num_released = self._batch_of(count, now_s)
        if self.held.is_overdue():
            num_released = max(num_released, min(count, self._max_batch))
        if num_released:
            self._count(now_s)
        return self.held.take(num_released)

    def table(self, now_s: float) -> ReleaseTable | None:
        """For what is known now; None as long as that is not enough."""
        rate, service = self.rate.per_s(now_s), self.services.learnt
        if rate is None or service is None:
            return None
        key = (_step(rate), _step(service.fixed_s), _step(service.each_s))
        if key not in self._tables:
            if len(self._tables) >= MAX_TABLES:
                self._tables.clear()
            self._tables[key] = self._solve(rate, service)
        return self._tables[key]

    def _count(self, now_s: float) -> None:
        """A batch is released."""
        table, before_s = self.table(now_s), self._released_s
        if table is not None and before_s is not None:
            self.saved_j += table.saved_w * min(max(now_s - before_s, 0.0), MOST_IDLE_S)
        self._released_s = now_s
        self.num_batches += 1

    def _batch_of(self, count: int, now_s: float) -> int:
        table = self.table(now_s)
        return count if table is None else table.batch_of(count)


def _step(value: float) -> int:
    """Place of ``value`` on a grid of factors."""
    return round(math.log(value) / math.log(GRID)) if value > 0 else -(10**6)
