# SPDX-License-Identifier: Apache-2.0
"""vLLM's waiting queue, ordered by prefix groups.

A thin face: it turns vLLM's :class:`RequestQueue` calls into those of one
:class:`AdmissionLine` per priority. Replacing the queue changes which waiting request is
admitted next and nothing else; the whole of ``Scheduler.schedule`` stays vLLM's.
"""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import count, islice
from typing import Any

from vllm.v1.core.sched.request_queue import RequestQueue
from vllm.v1.request import Request

from vllm_batchllm.admission.token_budget import Outstanding
from vllm_batchllm.kv_cache.block_pool import GlobalPrefixBlockPool
from vllm_batchllm.ordering.group_queue import AdmissionLine
from vllm_batchllm.ordering.planned_group_queue import line_for
from vllm_batchllm.ordering.policies import GroupOrder


class PrefixGroupQueue(RequestQueue):
    """Waiting requests, admitted prefix group by prefix group.

    Args:
        order: policy over groups.
        block_size: tokens per block hash.
        by_priority: honour ``Request.priority`` (vLLM's ``priority`` policy): a smaller value
            always goes first, and ties rank by arrival time as in vLLM.
        max_wait_s: a request that has waited longer than this is next, and its group with it;
            None for no limit.
        clock: seconds, monotonic.
        pool: is told of the forests of waiting requests, so that it keeps their blocks; those
            given back are the most urgent of their priority.
        expect: output expected of a request, tokens; None for its ``max_tokens``.
        on_peek: called whenever the head is looked at, which vLLM does before it admits.

    ``len`` and truth value are O(1); peek and pop amortised O(log n); removal O(depth).
    """

    def __init__(
        self,
        order: GroupOrder,
        block_size: int,
        by_priority: bool = False,
        max_wait_s: float | None = None,
        clock: Callable[[], float] = time.monotonic,
        pool: GlobalPrefixBlockPool | None = None,
        expect: Callable[[Request], int] | None = None,
        on_peek: Callable[[], None] | None = None,
    ) -> None:
        self._new_line: Callable[[], AdmissionLine[Request]] = partial(
            line_for(order), order, block_size, max_wait_s, clock
        )
        self._by_priority = by_priority
        self._pool = pool
        self._expect = expect
        self._on_peek = on_peek
        self._lines: dict[int, AdmissionLine[Request]] = {}
        self._priorities: list[int] = []
        self._listed: set[int] = set()
        self._arrivals = count()
        self._returns = count(-1, -1)
        self._num_waiting = 0
        self._head: Request | None = None
        self.levels: dict[str, list[int]] = {}
        """Where the shared prefixes of the popped requests end, blocks; for who counts hits."""
        self.plan_s = 0.0
        """Seconds spent on arranging requests so far."""

    def add_request(self, request: Request) -> None:
        """File a newly arrived request with its group."""
        start_s = time.perf_counter()
        rank = self._rank(request, self._arrivals)
        self._line_for(request).add(request, rank)
        self._num_waiting += 1
        self._head = None
        self.plan_s += time.perf_counter() - start_s

    def peek_request(self) -> Request:
        """The request to be admitted next. Raises IndexError when the queue is empty."""
        if self._on_peek is not None:
            self._on_peek()
        if self._head is None:
            start_s = time.perf_counter()
            self._head = self._first_line().peek()
            self.plan_s += time.perf_counter() - start_s
        return self._head

    def pop_request(self) -> Request:
        """Take out and return the request that :meth:`peek_request` shows."""
        request = self.peek_request()
        self.levels[request.request_id] = self._lines[self._class_of(request)].levels(request)
        self._take(request, admitted=True)
        return request

    def prepend_request(self, request: Request) -> None:
        """Put a preempted or skipped request in front (by priority: in front of its equals)."""
        rank = self._rank(request, self._returns)
        self._line_for(request).give_back(request, rank)
        self._num_waiting += 1
        self._head = None

    def prepend_requests(self, requests: Iterable[Request]) -> None:
        """Prepend one after the other, so the last one given is the first served."""
        for request in requests:
            self.prepend_request(request)

    def remove_request(self, request: Request) -> None:
        """Take an aborted request out. Raises ValueError if it does not wait here."""
        if request not in self:
            raise ValueError(f"request {request.request_id} is not in the waiting queue")
        self._take(request, admitted=False)

    def remove_requests(self, requests: Iterable[Request]) -> None:
        """Take out those of ``requests`` that wait here."""
        for request in requests:
            if request in self:
                self._take(request, admitted=False)

    def outstanding(self) -> Outstanding:
        """What waits in the forests: whoever has hashes. O(number of priorities)."""
        roots = [line.forest.root for line in self._lines.values()]
        return Outstanding(
            sum(root.num_waiting for root in roots),
            sum(root.num_prompt_tokens for root in roots),
            sum(root.num_output_tokens for root in roots),
        )

    def __contains__(self, request: object) -> bool:
        line = self._lines.get(self._class_of(request)) if isinstance(request, Request) else None
        return line is not None and request in line

    def __bool__(self) -> bool:
        return self._num_waiting > 0

    def __len__(self) -> int:
        return self._num_waiting

    def __iter__(self) -> Iterator[Request]:
        """Requests in the order of admission as it stands now; O(n log n)."""
        for priority in sorted(self._lines):
            yield from self._lines[priority]

    def __getitem__(self, index: int) -> Request:
        """The request at ``index`` of the iteration; for tests and debugging, O(n log n)."""
        position = index if index >= 0 else self._num_waiting + index
        for request in islice(self, max(position, 0), None):
            if position >= 0:
                return request
        raise IndexError(f"queue index {index} out of range for {self._num_waiting} requests")

    def _take(self, request: Request, admitted: bool) -> None:
        start_s = time.perf_counter()
        priority = self._class_of(request)
        line = self._lines[priority]
        line.remove(request, admitted=admitted)
        if not line and self._by_priority:
            self._drop_line(priority)
        self._num_waiting -= 1
        self._head = None
        self.plan_s += time.perf_counter() - start_s

    def _drop_line(self, priority: int) -> None:
        """Forget an empty line; and, once most are of this kind, priorities without a line."""
        line = self._lines.pop(priority)
        if self._pool is not None:
            self._pool.unwatch(line.recall)
            self._pool.unwatch(line.forest)
        if len(self._priorities) > 2 * len(self._lines) + 64:
            self._listed = set(self._lines)
            self._priorities = sorted(self._lines)  # a sorted list is a heap

    def _class_of(self, request: Request) -> int:
        return request.priority if self._by_priority else 0

    def _rank(self, request: Request, serial: Iterator[int]) -> Any:
        if self._by_priority:
            return (request.arrival_time, request.request_id)
        return next(serial)

    def _line_for(self, request: Request) -> AdmissionLine[Request]:
        priority = self._class_of(request)
        line = self._lines.get(priority)
        if line is None:
            line = self._lines[priority] = self._new_line()
            if self._expect is not None:
                line.expect = self._expect
            if self._pool is not None:
                self._pool.watch(line.recall, urgency=(priority, 0))
                self._pool.watch(line.forest, urgency=(priority, 1), open_node=line.open_node)
            if priority not in self._listed:
                self._listed.add(priority)
                heapq.heappush(self._priorities, priority)
        return line

    def _first_line(self) -> AdmissionLine[Request]:
        """The line of the most urgent priority that has anybody waiting."""
        if not self._num_waiting:
            raise IndexError("peek from an empty queue")
        if not self._by_priority:
            return self._lines[0]
        while True:
            line = self._lines.get(self._priorities[0])
            if line:
                return line
            self._listed.discard(heapq.heappop(self._priorities))

    def check_integrity(self) -> None:
        """Raise AssertionError where a structural promise is broken. O(n)."""
        for priority, line in self._lines.items():
            line.check_integrity()
            assert priority in self._listed, "a priority is not in the heap"
        assert self._listed == set(self._priorities), "the heap and its index disagree"
        assert sum(map(len, self._lines.values())) == self._num_waiting, "a request went missing"
        assert self._head is None or self._head in self, "the head does not wait here"
