# SPDX-License-Identifier: Apache-2.0
"""vLLM's waiting queue, ordered by prefix groups.

A thin face: it turns vLLM's :class:`RequestQueue` calls into those of one
:class:`GroupQueue` per priority. Replacing the queue changes which waiting request is
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
from vllm_batchllm.kv_cache.block_pool import PrefixAwareBlockPool
from vllm_batchllm.ordering.group_queue import GroupQueue
from vllm_batchllm.ordering.planned_group_queue import queue_class_for
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
            requeued are the most urgent of their priority.
        expect: output expected of a request, tokens; None for its ``max_tokens``.

    ``len`` and truth value are O(1); peek and pop amortised O(log n); removal O(depth).
    """

    def __init__(
        self,
        order: GroupOrder,
        block_size: int,
        by_priority: bool = False,
        max_wait_s: float | None = None,
        clock: Callable[[], float] = time.monotonic,
        pool: PrefixAwareBlockPool | None = None,
        expect: Callable[[Request], int] | None = None,
    ) -> None:
        self._new_queue: Callable[[], GroupQueue[Request]] = partial(
            queue_class_for(order), order, block_size, max_wait_s, clock
        )
        self._by_priority = by_priority
        self._pool = pool
        self._expect = expect
        self._queues: dict[int, GroupQueue[Request]] = {}
        self._priorities: list[int] = []
        self._listed: set[int] = set()
        self._arrivals = count()
        self._requeue_serials = count(-1, -1)
        self._num_waiting = 0
        self._head: Request | None = None
        """What the latest peek has shown, until anybody comes or goes: vLLM pops what it has seen,
        even if by the clock somebody else would be next by then."""
        self.levels: dict[str, list[int]] = {}
        """Where the shared prefixes of the popped requests end, blocks; for who counts hits."""
        self.plan_s = 0.0
        """Seconds spent on arranging requests so far."""

    def add_request(self, request: Request) -> None:
        """File a newly arrived request with its group."""
        start_s = time.perf_counter()
        rank = self._rank(request, self._arrivals)
        self._queue_for(request).add(request, rank)
        self._num_waiting += 1
        self._head = None
        self.plan_s += time.perf_counter() - start_s

    def peek_request(self) -> Request:
        """The request to be admitted next. Raises IndexError when the queue is empty."""
        if self._head is None:
            start_s = time.perf_counter()
            self._head = self._most_urgent().peek()
            self.plan_s += time.perf_counter() - start_s
        return self._head

    def pop_request(self) -> Request:
        """Take out and return the request that :meth:`peek_request` shows."""
        request = self.peek_request()
        self.levels[request.request_id] = self._queues[self._class_of(request)].levels(request)
        self._take(request, admitted=True)
        return request

    def prepend_request(self, request: Request) -> None:
        """Put a preempted or skipped request in front (by priority: in front of its equals)."""
        rank = self._rank(request, self._requeue_serials)
        self._queue_for(request).requeue(request, rank)
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
        roots = [group_queue.forest.root for group_queue in self._queues.values()]
        return Outstanding(
            sum(root.num_waiting for root in roots),
            sum(root.num_prompt_tokens for root in roots),
            sum(root.num_output_tokens for root in roots),
        )

    def __contains__(self, request: object) -> bool:
        group_queue = (
            self._queues.get(self._class_of(request)) if isinstance(request, Request) else None
        )
        return group_queue is not None and request in group_queue

    def __bool__(self) -> bool:
        return self._num_waiting > 0

    def __len__(self) -> int:
        return self._num_waiting

    def __iter__(self) -> Iterator[Request]:
        """Requests in the order of admission as it stands now; O(n log n)."""
        for priority in sorted(self._queues):
            yield from self._queues[priority]

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
        group_queue = self._queues[priority]
        group_queue.remove(request, admitted=admitted)
        if not group_queue and self._by_priority:
            self._drop_queue(priority)
        self._num_waiting -= 1
        self._head = None
        self.plan_s += time.perf_counter() - start_s

    def _drop_queue(self, priority: int) -> None:
        """Forget an empty queue; and, once most are of this kind, priorities without one."""
        group_queue = self._queues.pop(priority)
        if self._pool is not None:
            self._pool.unwatch(group_queue.requeued)
            self._pool.unwatch(group_queue.forest)
        if len(self._priorities) > 2 * len(self._queues) + 64:
            self._listed = set(self._queues)
            self._priorities = sorted(self._queues)  # a sorted list is a heap

    def _class_of(self, request: Request) -> int:
        return request.priority if self._by_priority else 0

    def _rank(self, request: Request, serial: Iterator[int]) -> Any:
        if self._by_priority:
            return (request.arrival_time, request.request_id)
        return next(serial)

    def _queue_for(self, request: Request) -> GroupQueue[Request]:
        priority = self._class_of(request)
        group_queue = self._queues.get(priority)
        if group_queue is None:
            group_queue = self._queues[priority] = self._new_queue()
            if self._expect is not None:
                group_queue.expect = self._expect
            if self._pool is not None:
                self._pool.watch(group_queue.requeued, urgency=(priority, 0))
                self._pool.watch(
                    group_queue.forest, urgency=(priority, 1), open_node=group_queue.open_node
                )
            if priority not in self._listed:
                self._listed.add(priority)
                heapq.heappush(self._priorities, priority)
        return group_queue

    def _most_urgent(self) -> GroupQueue[Request]:
        """The queue of the most urgent priority that has anybody waiting."""
        if not self._num_waiting:
            raise IndexError("peek from an empty queue")
        if not self._by_priority:
            return self._queues[0]
        while True:
            group_queue = self._queues.get(self._priorities[0])
            if group_queue:
                return group_queue
            self._listed.discard(heapq.heappop(self._priorities))

    def check_integrity(self) -> None:
        """Raise AssertionError where a structural promise is broken. O(n)."""
        for priority, group_queue in self._queues.items():
            group_queue.check_integrity()
            assert priority in self._listed, "a priority is not in the heap"
        assert self._listed == set(self._priorities), "the heap and its index disagree"
        assert sum(map(len, self._queues.values())) == self._num_waiting, "a request went missing"
        assert self._head is None or self._head in self, "the head does not wait here"
