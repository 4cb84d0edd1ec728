# SPDX-License-Identifier: Apache-2.0
"""The waiting requests of one priority, where a step can hold only so many adapters.

vLLM skips a request whose adapter has no slot left in the step, one by one, in every step. Here the
requests of each adapter have a queue of their own, and only those are shown that may start: of adapters
that run, or of all as long as a slot is free. Prefixes are never shared between adapters (an adapter is
part of a block's hash), so no group is torn apart.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Generic, TypeVar

from vllm_batchllm.ordering.group_queue import GroupQueue, WaitingRequest
from vllm_batchllm.prefix.node import PrefixNode

R = TypeVar("R", bound=WaitingRequest)

NO_ADAPTER = 0
"""The base model needs no slot."""


class AdapterSlots:
    """Which adapters a step can still take.

    Args:
        num_slots: adapters that a step can hold at once.
    """

    def __init__(self, num_slots: int) -> None:
        self._num_slots = num_slots
        self._in_use: dict[int, None] = {}
        self._in_step = False
        self.num_loads = 0
        """How often an adapter has taken a slot so far."""

    @property
    def are_taken(self) -> bool:
        """Whether only adapters that have a slot may start."""
        return self._in_step and len(self._in_use) >= self._num_slots

    @property
    def startable(self) -> list[int]:
        """The adapters that may start where the slots are taken."""
        return [NO_ADAPTER, *self._in_use]

    def has(self, adapter: int) -> bool:
        """Whether ``adapter`` has a slot."""
        return adapter in self._in_use

    def begin_step(self, running: Iterable[int]) -> None:
        """A step begins in which requests with these adapters run."""
        self._in_use = dict.fromkeys(adapter for adapter in running if adapter != NO_ADAPTER)
        self._in_step = True

    def take(self, adapter: int) -> None:
        """A request with ``adapter`` has started, and was not only looked at."""
        if adapter != NO_ADAPTER and adapter not in self._in_use:
            self._in_use[adapter] = None
            self.num_loads += 1

    def end_step(self) -> None:
        """Between steps everybody is shown."""
        self._in_step = False


class AdapterGroupQueue(Generic[R]):
    """A :class:`GroupQueue` for each adapter, together one queue of one priority.

    Skipped and requeued requests come first, then the open group, then what the policy prefers among the
    heads of adapters that run, and then among the others: so one adapter's requests are used up before a slot is
    taken for the next, which starts while the last ones of the former end. Those who have come since a slot was taken
    last are not preferred, so an adapter that always has arrivals keeps nobody out of a free slot. A look at the
    head costs O(adapters that have changed + adapters that may start).

    Args:
        slots: which adapters may start; shared by the queues of all priorities.
        adapter_of: the adapter of a request, ``NO_ADAPTER`` for the base model.
        new_queue: makes the queue of one adapter.
        by_clock: whether heads change as time goes by.
    """

    def __init__(
        self,
        slots: AdapterSlots,
        adapter_of: Callable[[R], int],
        new_queue: Callable[[], GroupQueue[R]],
        by_clock: bool = False,
    ) -> None:
        self._slots = slots
        self._adapter_of = adapter_of
        self._new_queue = new_queue
        self._by_clock = by_clock
        self._queues: dict[int, GroupQueue[R]] = {}
        self._keys: dict[int, tuple[int, Any]] = {}
        """Where heads stand, of the queues that have not changed since."""
        self._open: int | None = None
        self._arrival_of: dict[R, int] = {}
        self._num_arrived = self._num_loads = self._fence = 0

    def __len__(self) -> int:
        return sum(map(len, self._queues.values()))

    def __bool__(self) -> bool:
        return bool(self._queues)

    def __contains__(self, request: R) -> bool:
        queue = self._queues.get(self._adapter_of(request))
        return queue is not None and request in queue

    @property
    def queues(self) -> list[GroupQueue[R]]:
        """The queue of each adapter; for reading only."""
        return list(self._queues.values())

    def open_node(self) -> PrefixNode[R] | None:
        """The innermost node being served; None between two groups."""
        queue = self._queues.get(self._open) if self._open is not None else None
        return queue.open_node() if queue is not None else None

    def add(self, request: R, rank: Any) -> None:
        """File a new request. ``rank`` orders arrivals; smaller is earlier."""
        self._changed(request).add(request, rank)
        self._arrival_of[request] = self._num_arrived
        self._num_arrived += 1

    def requeue(self, request: R, rank: Any) -> None:
        """Put ``request`` in front; among those in front the smallest rank is first."""
        self._changed(request).requeue(request, rank)

    def skip(self, request: R, rank: Any) -> None:
        """Put ``request`` back in front, which was the head and could not start for now."""
        self._changed(request).skip(request, rank)

    def was_skipped(self, request: R) -> bool:
        """Whether ``request`` waits here since it was skipped."""
        return self._queues[self._adapter_of(request)].was_skipped(request)

    def can_start(self) -> bool:
        """Whether anybody waits who has a slot or could take one. O(slots)."""
        return bool(self._startable())

    def peek(self) -> R:
        """The next request that may start. Raises IndexError when there is none."""
        adapters = self._startable()
        if not adapters:
            raise IndexError("nobody waits whose adapter may start")
        if self._num_loads != self._slots.num_loads:
            self._num_loads, self._fence = self._slots.num_loads, self._num_arrived
        adapter = min(adapters, key=self._standing)
        rank_of_first = self._key(adapter)[0]
        is_open = self._open in adapters and rank_of_first == 2
        if is_open and self._open is not None and self._queues[self._open].is_in_group():
            adapter = self._open
        return self._queues[adapter].peek()

    def levels(self, request: R) -> list[int]:
        """As :meth:`GroupQueue.levels`."""
        return self._queues[self._adapter_of(request)].levels(request)

    def remove(self, request: R, *, admitted: bool = False) -> None:
        """Take ``request`` out. Raises KeyError if it does not wait here."""
        adapter = self._adapter_of(request)
        queue = self._queues[adapter]
        queue.remove(request, admitted=admitted)
        self._keys.pop(adapter, None)
        self._arrival_of.pop(request, None)
        if admitted:
            self._open = adapter
        if not queue:
            del self._queues[adapter]

    def __iter__(self) -> Iterator[R]:
        """Requests adapter by adapter, each in the order of admission; read-only."""
        for adapter in sorted(self._queues, key=self._key):
            yield from self._queues[adapter]

    def _changed(self, request: R) -> GroupQueue[R]:
        """The queue of the adapter of ``request``, which is about to change."""
        adapter = self._adapter_of(request)
        self._keys.pop(adapter, None)
        queue = self._queues.get(adapter)
        if queue is None:
            queue = self._queues[adapter] = self._new_queue()
        return queue

    def _startable(self) -> list[int]:
        if self._slots.are_taken:
            return [adapter for adapter in self._slots.startable if adapter in self._queues]
        return list(self._queues)

    def _standing(self, adapter: int) -> tuple[int, bool, Any]:
        """Where the head of an adapter stands beside those of others; the smallest is next."""
        kind, key = self._key(adapter)
        if kind < 2 or not self._slots.has(adapter):
            return kind, True, key
        arrival = self._arrival_of.get(self._queues[adapter].peek(), self._num_arrived)
        return kind, arrival >= self._fence, key

    def _key(self, adapter: int) -> tuple[int, Any]:
        key = self._keys.get(adapter)
        if key is None or self._by_clock:
            key = self._keys[adapter] = self._queues[adapter].head_key()
        return key

    def check_integrity(self) -> None:
        """Raise AssertionError where a structural promise is broken. O(n)."""
        for adapter, queue in self._queues.items():
            queue.check_integrity()
            assert queue, "an empty queue was left behind"
            assert all(self._adapter_of(r) == adapter for r in queue), "a request is misplaced"
        assert self._keys.keys() <= self._queues.keys(), "a key without a queue"
        assert all(r in self for r in self._arrival_of), "the arrival of one who left is kept"
