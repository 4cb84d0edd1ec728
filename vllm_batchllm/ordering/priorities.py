# SPDX-License-Identifier: Apache-2.0
"""The queue of each priority, the most urgent first."""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from vllm_batchllm.ordering.adapter_queue import AdapterGroupQueue, AdapterSlots
from vllm_batchllm.ordering.group_queue import GroupQueue, WaitingRequest

R = TypeVar("R", bound=WaitingRequest)
WaitingQueue = GroupQueue[R] | AdapterGroupQueue[R]


class PriorityQueues(Generic[R]):
    """Queues by priority, made when somebody comes and dropped when nobody is left.

    The one queue of a scheduler without priorities is that of priority 0, and stays.

    Args:
        new_queue: makes the queue of one priority.
        by_priority: whether there are others than 0.
        slots: which adapters a step can still take; None where that is no limit.
    """

    def __init__(
        self,
        new_queue: Callable[[], WaitingQueue[R]],
        by_priority: bool,
        slots: AdapterSlots | None,
    ) -> None:
        self._new_queue = new_queue
        self._by_priority = by_priority
        self._slots = slots
        self._queues: dict[int, WaitingQueue[R]] = {}
        self._priorities: list[int] = []
        self._listed: set[int] = set()

    def __getitem__(self, priority: int) -> WaitingQueue[R]:
        """The queue of ``priority``. Raises KeyError if nobody of it waits."""
        return self._queues[priority]

    def get(self, priority: int) -> WaitingQueue[R] | None:
        """The queue of ``priority``, or None if nobody of it waits."""
        return self._queues.get(priority)

    def group_queues(self) -> list[GroupQueue[R]]:
        """The queue of each priority, or of each priority and adapter; for reading only."""
        return [queue for of_priority in self._queues.values() for queue in of_priority.queues]

    def opened(self, priority: int) -> WaitingQueue[R]:
        """The queue of ``priority``, made if there is none."""
        queue = self._queues.get(priority)
        if queue is None:
            queue = self._queues[priority] = self._new_queue()
            if priority not in self._listed:
                self._listed.add(priority)
                heapq.heappush(self._priorities, priority)
        return queue

    def left(self, priority: int) -> None:
        """Somebody has left the queue of ``priority``. Empty queues are forgotten; and, once most are of
        this kind, priorities without one."""
        if not self._by_priority or self._queues[priority]:
            return
        del self._queues[priority]
        if len(self._priorities) > 2 * len(self._queues) + 64:
            self._listed = set(self._queues)
            self._priorities = sorted(self._queues)  # a sorted list is a heap

    def most_urgent(self) -> WaitingQueue[R] | None:
        """The queue of the most urgent priority of which anybody may start; None if nobody may."""
        if not self._by_priority:
            return self._queues[0] if can_start(self._queues[0]) else None
        while self._priorities and not self._queues.get(self._priorities[0]):
            self._listed.discard(heapq.heappop(self._priorities))
        if self._slots is None or not self._slots.are_taken:
            return self._queues[self._priorities[0]] if self._priorities else None
        ready = (p for p in sorted(self._queues) if can_start(self._queues[p]))
        first = next(ready, None)
        return None if first is None else self._queues[first]

    def __iter__(self) -> Iterator[R]:
        """Requests in the order of admission as it stands now; O(n log n)."""
        for priority in sorted(self._queues):
            yield from self._queues[priority]

    def check_integrity(self) -> None:
        """Raise AssertionError where a structural promise is broken. O(n)."""
        for priority, queue in self._queues.items():
            queue.check_integrity()
            assert priority in self._listed, "a priority is not in the heap"
        assert self._listed == set(self._priorities), "the heap and its index disagree"


class LongestWaits(Generic[R]):
    """Since when each request of any priority waits, so that no class keeps another waiting for ever. O(1) each.

    Who has waited too long is shown before more urgent ones. If it does not start in that step, for want of memory
    say, nobody is shown in the next: those who are more urgent need not wait for its memory.

    Args:
        max_wait_s: longest wait, seconds. clock: seconds, monotonic.
    """

    def __init__(self, max_wait_s: float, clock: Callable[[], float]) -> None:
        self._max_wait_s, self._clock = max_wait_s, clock
        self._since: OrderedDict[R, float] = OrderedDict()
        self._shown: R | None = None
        self._may_show = True

    def arrived(self, request: R) -> None:
        """``request`` waits from now on."""
        self._since[request] = self._clock()

    def left(self, request: R) -> None:
        """``request`` waits no longer; one that is not known is ignored."""
        self._since.pop(request, None)
        if request is self._shown:
            self._shown = None

    def begin_step(self) -> None:
        """A step begins."""
        self._may_show = self._shown is None
        self._shown = None

    def overdue(self) -> R | None:
        """Who has waited longest, if that is too long, and it may be shown in this step."""
        if not self._since or not self._may_show:
            return None
        request, since = next(iter(self._since.items()))
        return request if self._clock() - since > self._max_wait_s else None

    def show(self, request: R) -> None:
        """``request``, which is overdue, is shown as the next one."""
        self._shown = request


def can_start(queue: WaitingQueue[R]) -> bool:
    """Whether anybody of ``queue`` may start now."""
    return queue.can_start() if isinstance(queue, AdapterGroupQueue) else bool(queue)
