# SPDX-License-Identifier: Apache-2.0
"""vLLM's waiting queue, ordered by prefix groups.

A thin face: it turns vLLM's :class:`RequestQueue` calls into those of one
:class:`GroupQueue` per priority (and adapter, where adapters are limited). Replacing the queue changes which waiting request is
admitted next and nothing else; the whole of ``Scheduler.schedule`` stays vLLM's.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Iterator
from itertools import chain, count, islice
from typing import Any

from vllm.v1.core.sched.request_queue import RequestQueue
from vllm.v1.request import Request, RequestStatus

from vllm_batchllm.admission.interactive_reserve import INTERACTIVE_PRIORITY
from vllm_batchllm.admission.token_budget import Outstanding
from vllm_batchllm.kv_cache.block_pool import PrefixAwareBlockPool
from vllm_batchllm.ordering.adapter_queue import AdapterSlots
from vllm_batchllm.ordering.group_queue import GroupQueue
from vllm_batchllm.ordering.making import queue_maker
from vllm_batchllm.ordering.policies import GroupOrder
from vllm_batchllm.ordering.priorities import (
    LongestWaits,
    PriorityQueues,
    WaitingQueue,
    can_start,
)
from vllm_batchllm.prefix.forest import PrefixForest
from vllm_batchllm.prefix.node import PrefixNode
from vllm_batchllm.scheduler.encoder_gate import EncoderGate
from vllm_batchllm.scheduler.waiting_demand import OneQueueDemand, RankedDemand, WaitingDemand


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
        pool: is told who waits, so that it keeps their blocks; those requeued are the most urgent
            of their priority.
        expect: output expected of a request, tokens; None for its ``max_tokens``.
        slots: which adapters a step can still take; None where that is no limit.

    While none can start, for want of a slot or of the encoder, the queue is empty by its truth value, and vLLM asks no
    further; ``len`` counts everybody.

    ``len`` is O(1); peek and pop amortised O(log n); removal O(depth).
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
        slots: AdapterSlots | None = None,
    ) -> None:
        self.slots = slots
        self.encoder = EncoderGate()
        """Whether the encoder still takes images in this step."""
        self._by_priority = by_priority
        self._waits: LongestWaits[Request] | None = None
        if by_priority and max_wait_s is not None:
            self._waits = LongestWaits(max_wait_s, clock)
        new_queue = queue_maker(order, block_size, max_wait_s, clock, expect, slots, adapter_of)
        self._queues: PriorityQueues[Request] = PriorityQueues(new_queue, by_priority, slots)
        self._only = None if by_priority else self._queues.opened(0)
        """The one queue, where there is no other: thousands may be looked at in a step."""
        self._arrivals = count()
        self._requeue_serials = count(-1, -1)
        self._num_waiting = 0
        self.num_interactive = 0
        """Of those who wait, how many are interactive."""
        self._head: Request | None = None
        """What the latest peek has shown, until anybody comes or goes: vLLM pops what it has seen,
        even if by the clock somebody else would be next by then."""
        self._popped: Request | None = None
        """The latest, until it is known whether it has started: vLLM pops whom it skips, too."""
        self._in_hand: dict[Request, bool] = {}
        """Popped in this step: started, or looked at and about to be put back. Whether it waited here
        because it had been skipped before."""
        self.levels: dict[str, list[int]] = {}
        """Where the shared prefixes of the popped requests end, blocks; for who counts hits."""
        self.plan_s = 0.0
        """Seconds spent on arranging requests so far."""
        self.demand = self._make_demand(pool, block_size)

    def add_request(self, request: Request) -> None:
        """File a newly arrived request with its group."""
        start_s = time.perf_counter()
        rank = self._rank(request, self._arrivals)
        priority = self._class_of(request)
        self._queues.opened(priority).add(request, rank)
        self.demand.arrived(request, priority, rank)
        if self._waits is not None:
            self._waits.arrived(request)
        self._count(request, 1)
        self.encoder.counted(request.has_encoder_inputs, 1)
        self._head = None
        self.plan_s += time.perf_counter() - start_s

    def peek_request(self) -> Request:
        """The request to be admitted next. Raises IndexError when the queue is empty."""
        if self.slots is not None:
            self._take_slot()
        if self._head is None:
            start_s = time.perf_counter()
            queue = self._only
            if queue is None or not self._num_waiting:
                queue = self._most_urgent()
            self._head = queue.peek()
            self.plan_s += time.perf_counter() - start_s
        return self._head

    def pop_request(self) -> Request:
        """Take out and return the request that :meth:`peek_request` shows."""
        request = self.peek_request()
        if self.slots is not None:
            self._popped = request
        group_queue = self._queue_of(request)
        was_skipped = self._in_hand[request] = group_queue.was_skipped(request)
        if was_skipped:  # likely to be skipped again: it waits as far as the pool is told
            self._take(request, group_queue, admitted=True)
            return request
        start_s = time.perf_counter()
        self.levels[request.request_id] = group_queue.levels(request)
        self.demand.left(request)
        self._take(request, group_queue, admitted=True)
        self.plan_s += time.perf_counter() - start_s
        return request

    def prepend_request(self, request: Request) -> None:
        """Put a preempted or skipped request in front (by priority: in front of its equals)."""
        priority = request.priority if self._by_priority else 0
        rank = self._rank(request, self._requeue_serials)
        group_queue = self._only if self._only is not None else self._queues.opened(priority)
        was_skipped = self._in_hand.pop(request, None)
        if was_skipped is None:
            group_queue.requeue(request, rank)
            self.encoder.counted(request.has_encoder_inputs, 1)
        else:
            group_queue.skip(request, rank)
        if not was_skipped:
            self.demand.returned(request, priority, rank)
        self._count(request, 1)
        self._head = None

    def prepend_requests(self, requests: Iterable[Request]) -> None:
        """Prepend one after the other, so the last one given is the first served."""
        for request in requests:
            self.prepend_request(request)

    def begin_step(self, running: Collection[Request]) -> None:
        """A step begins in which ``running`` run: their adapters have their slots.

        Where somebody who had waited too long was shown in the last step and could not start, those who are more urgent
        are shown in this one: they need not wait for its memory.
        """
        self.encoder.begin_step(bool(running))
        if self._waits is not None:
            self._waits.begin_step()
            self._head = None
        if self.slots is not None:
            self.slots.begin_step(map(adapter_of, running))
            self._head = None

    def end_step(self) -> int:
        """The step is over: what was popped and not put back has left. Returns how many could not
        start in it for want of an adapter's slot or of the encoder."""
        for request in self._in_hand:
            self.demand.left(request)
            self.encoder.counted(request.has_encoder_inputs, -1)
        self._in_hand.clear()
        self._take_slot()
        num_without_encoder = self._num_waiting if self.encoder.end_step() else 0
        if self.slots is None or not self.slots.are_taken:
            return num_without_encoder
        can_start = bool(self)
        self.slots.end_step()
        self._head = None
        return num_without_encoder if can_start else self._num_waiting

    def remove_request(self, request: Request) -> None:
        """Take an aborted request out. Raises ValueError if it does not wait here."""
        if request not in self:
            raise ValueError(f"request {request.request_id} is not in the waiting queue")
        self._remove(request)

    def remove_requests(self, requests: Iterable[Request]) -> None:
        """Take out those of ``requests`` that wait here."""
        for request in requests:
            if request in self:
                self._remove(request)

    def outstanding(self) -> Outstanding:
        """What waits in the forests: whoever has hashes. O(number of queues)."""
        roots = [group_queue.forest.root for group_queue in self.group_queues]
        return Outstanding(
            sum(root.num_waiting for root in roots),
            sum(root.num_prompt_tokens for root in roots),
            sum(root.num_output_tokens for root in roots),
        )

    @property
    def forests(self) -> list[PrefixForest[Request]]:
        """All forests of those who wait; for reading only."""
        return [*self.demand.forests, *(queue.forest for queue in self.group_queues)]

    @property
    def group_queues(self) -> list[GroupQueue[Request]]:
        """The queue of each priority, or of each priority and adapter; for reading only."""
        return self._queues.group_queues()

    def __contains__(self, request: object) -> bool:
        group_queue = (
            self._queues.get(self._class_of(request)) if isinstance(request, Request) else None
        )
        return group_queue is not None and request in group_queue

    def __bool__(self) -> bool:
        if self.encoder.is_closed:
            return False
        if self.slots is None:
            return self._num_waiting > 0
        self._take_slot()
        if not self.slots.are_taken:
            return self._num_waiting > 0
        return self._queues.most_urgent() is not None

    def __len__(self) -> int:
        return self._num_waiting

    def __iter__(self) -> Iterator[Request]:
        """Requests in the order of admission as it stands now; O(n log n)."""
        yield from self._queues

    def __getitem__(self, index: int) -> Request:
        """The request at ``index`` of the iteration; for tests and debugging, O(n log n)."""
        position = index if index >= 0 else self._num_waiting + index
        for request in islice(self, max(position, 0), None):
            if position >= 0:
                return request
        raise IndexError(f"queue index {index} out of range for {self._num_waiting} requests")

    def _make_demand(self, pool: PrefixAwareBlockPool | None, block_size: int) -> WaitingDemand:
        if self._by_priority or self.slots is not None:
            return RankedDemand(pool, block_size, self._open_node)
        group_queue = self._queues.opened(0)
        assert isinstance(group_queue, GroupQueue)
        return OneQueueDemand(pool, group_queue, block_size)

    def _open_node(self) -> PrefixNode[Request] | None:
        if not self._num_waiting:
            return None
        group_queue = self._queues.most_urgent()
        return group_queue.open_node() if group_queue is not None else None

    def _most_urgent(self) -> WaitingQueue[Request]:
        """The queue of the head. Raises IndexError if nobody can start."""
        if not self._num_waiting:
            raise IndexError("peek from an empty queue")
        if not self._by_priority:
            return self._queues[0]
        group_queue = self._overdue_queue() or self._queues.most_urgent()
        if group_queue is None:
            raise IndexError("nobody waits whose adapter may start")
        return group_queue

    def _overdue_queue(self) -> WaitingQueue[Request] | None:
        """That of who has waited too long, whatever its priority, if it may start."""
        waits = self._waits
        overdue = waits.overdue() if waits is not None else None
        if waits is None or overdue is None:
            return None
        queue = self._queues[self._class_of(overdue)]
        if not can_start(queue):
            return None
        waits.show(overdue)
        return queue

    def _take_slot(self) -> None:
        """Whoever was popped and runs by now has the slot of its adapter for this step."""
        if self.slots is not None and self._popped is not None:
            if self._popped.status is RequestStatus.RUNNING:
                self.slots.take(adapter_of(self._popped))
                self._head = None
            self._popped = None

    def _remove(self, request: Request) -> None:
        start_s = time.perf_counter()
        self._take(request, self._queue_of(request), admitted=False)
        self.encoder.counted(request.has_encoder_inputs, -1)
        self.demand.left(request)
        self.plan_s += time.perf_counter() - start_s

    def _take(self, request: Request, group_queue: WaitingQueue[Request], admitted: bool) -> None:
        group_queue.remove(request, admitted=admitted)
        if self._waits is not None:
            self._waits.left(request)
        if self._by_priority:
            self._queues.left(request.priority)
        self._count(request, -1)
        self._head = None

    def _count(self, request: Request, change: int) -> None:
        self._num_waiting += change
        if request.priority <= INTERACTIVE_PRIORITY:
            self.num_interactive += change

    def _queue_of(self, request: Request) -> WaitingQueue[Request]:
        """Where ``request`` waits. Raises KeyError if nobody of its priority does."""
        return self._only if self._only is not None else self._queues[request.priority]

    def _class_of(self, request: Request) -> int:
        return request.priority if self._by_priority else 0

    def _rank(self, request: Request, serial: Iterator[int]) -> Any:
        if self._by_priority:
            return (request.arrival_time, request.request_id)
        return next(serial)

    def check_integrity(self) -> None:
        """Raise AssertionError where a structural promise is broken. O(n)."""
        self._queues.check_integrity()
        assert sum(map(len, self.group_queues)) == self._num_waiting, "a request went missing"
        waiting = chain(self, self._in_hand)
        self.encoder.check_integrity(sum(not r.has_encoder_inputs for r in waiting))
        assert self._head is None or self._head in self, "the head does not wait here"


def adapter_of(request: Request) -> int:
    """The adapter of ``request``, 0 for the base model."""
    return int(request.lora_request.lora_int_id) if request.lora_request is not None else 0
