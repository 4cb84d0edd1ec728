# SPDX-License-Identifier: Apache-2.0
"""One-shot requests, released in batches: embeddings, scores, answers of a token.

How many of those that wait are served when the device is free says a table (``release_policy.py``), made for the rate at
which they arrive and the time that a batch takes, both learnt. Before they are known, and whenever other requests run
anyway, all are released at once.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace
from typing import Generic, Protocol, TypeVar

from vllm_batchllm.admission.arrival_rate import ArrivalRate
from vllm_batchllm.admission.held_requests import HeldRequests
from vllm_batchllm.admission.service_times import ServiceTime, ServiceTimes

H = TypeVar("H", bound=Hashable)

RENEW_EVERY, RENEW_SHARE, RENEW_MOST = 16, 4, 256
"""Batches after which the table is made anew from what was learnt since: at least the first, a quarter of all there were, at most the last.
Making one takes milliseconds, as batches do."""

EXPLORE_EVERY = 16
"""One of so many batches may be served with a quarter more still missing, so that the time of smaller ones stays known: whoever
always waits for 32 never sees that 26 take much less."""

RATE_CHANGED = 1.3
"""Factor by which the rate must have changed for a new table before that."""

TOLD_APART = 0.05
"""Share by which the rate or the times must differ from those of the last table for another to be made at all: costs are flat
around the best table, and what is learnt scatters by as much."""

RENEW_LEAST_S = 0.25
"""Seconds between two tables at least while the rate stays: each takes one to five milliseconds of the engine's thread, and near its limit a
server that is two in a hundred slower keeps everybody waiting a good deal longer."""

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


@dataclass(frozen=True, slots=True)
class _Known:
    """What a table was made for: the rate, the times (None where not known), after how many batches, and when."""

    rate: float
    service: ServiceTime | None
    num_batches: int
    made_s: float = 0.0


class OneShotRelease(Generic[H]):
    """Holds one-shot requests.

    Args:
        max_hold_s: longest hold, seconds. max_batch: requests that are served at once at most.
        solve: makes a table. Asked in the engine's thread, once in so many batches or when the rate has changed.
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
        self._num_new = 0
        """Arrivals since the last look."""
        self._arrival_s: float | None = None
        """Of the last of them."""
        self._table: ReleaseTable | None = None
        self._made_for: _Known | None = None
        """What was known when the table was last looked through."""

    def arrived(self, request: H, now_s: float) -> None:
        """Hold ``request`` until :meth:`due` gives it back."""
        if self._arrival_s is not None:  # taken in one after the other, as they had come before
            self.services.took_in(now_s - self._arrival_s)
        self._arrival_s = now_s
        self._num_new += 1
        self.held.add(request, now_s)

    def due(self, now_s: float, *, num_in_service: int, others_run: bool) -> list[H]:
        """Who is released now, in order.

        num_in_service: released one-shot requests that have not ended. others_run: whether there is other work to do.
        """
        self.held.tick(now_s)
        if self._num_new:
            self.rate.arrived(now_s, self._num_new)
            self._num_new, self._arrival_s = 0, None
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
        rate = self.rate.per_s(now_s)
        if rate is None:
            return None
        if self._is_stale(rate, now_s):
            self._renew(_Known(rate, self.services.learnt, self.num_batches, now_s))
        return self._table

    def _is_stale(self, rate: float, now_s: float) -> bool:
        """Whether it is time to look whether the table still fits."""
        if (known := self._made_for) is None:
            return True
        if not _is_near(rate, known.rate, RATE_CHANGED):
            return True
        wanted = min(max(known.num_batches // RENEW_SHARE, RENEW_EVERY), RENEW_MOST)
        is_turn = self.num_batches - known.num_batches >= wanted
        is_early = known.service is not None and 0 <= now_s - known.made_s < RENEW_LEAST_S
        return is_turn and not is_early

    def _renew(self, known: _Known) -> None:
        """Make the table anew if what is known now differs from what it was made for."""
        last, self._made_for = self._made_for, known
        if known.service is None:
            self._table = None
        elif last is None or last.service is None or self._differs(known, last):
            self._table = self._solve(known.rate, known.service)
        else:  # compared with what the table was made for, or it would drift
            self._made_for = replace(last, num_batches=known.num_batches, made_s=known.made_s)

    def _differs(self, known: _Known, last: _Known) -> bool:
        assert known.service is not None and last.service is not None
        if not _is_near(known.rate, last.rate, 1 + TOLD_APART):
            return True
        return known.service.differs(last.service, self._max_batch, TOLD_APART)

    def _count(self, now_s: float) -> None:
        """A batch is released."""
        table, before_s = self._table, self._released_s
        if table is not None and before_s is not None:
            self.saved_j += table.saved_w * min(max(now_s - before_s, 0.0), MOST_IDLE_S)
        self._released_s = now_s
        self.num_batches += 1

    def _batch_of(self, count: int, now_s: float) -> int:
        table = self.table(now_s)
        if table is None:
            return count
        batch = table.batch_of(count)
        is_turn = self.num_batches % EXPLORE_EVERY == EXPLORE_EVERY - 1
        if not batch and is_turn and table.batch_of(-(-5 * count // 4)):
            return min(count, self._max_batch)
        return batch


def _is_near(one: float, other: float, factor: float) -> bool:
    """Whether neither is more than ``factor`` times the other."""
    return max(one, other) <= factor * min(one, other)
