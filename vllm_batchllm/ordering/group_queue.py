# SPDX-License-Identifier: Apache-2.0
"""The waiting requests of one priority, in the order in which they are admitted.

Four places to wait: requests that were looked at and skipped for now, and requests requeued by the
scheduler (preempted), which come first; the prefix forest; and requests without block hashes, which share
nothing.
This file decides between the three; it knows requests only through :class:`WaitingRequest`.
"""

from __future__ import annotations

import time
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any, Generic, Protocol, TypeVar

from vllm_batchllm.ordering.policies import GroupOrder, LoneRequestLoad, RankingOrder
from vllm_batchllm.prefix.forest import PrefixForest
from vllm_batchllm.prefix.lazy_heap import LazyHeap
from vllm_batchllm.prefix.node import Load, PrefixNode, load_of
from vllm_batchllm.prefix.readable import grouping_hashes
from vllm_batchllm.prefix.traversal import DepthFirstWalk


class WaitingRequest(Hashable, Protocol):
    """What a queue needs to know of a request; vLLM's ``Request`` has it all."""

    @property
    def block_hashes(self) -> Sequence[Any]: ...
    @property
    def skip_reading_prefix_cache(self) -> bool: ...
    @property
    def resumable(self) -> bool: ...
    @property
    def num_tokens(self) -> int: ...
    @property
    def max_tokens(self) -> int: ...


R = TypeVar("R", bound=WaitingRequest)


class GroupQueue(Generic[R]):
    """Order of admission among requests of equal priority.

    Skipped and requeued requests first; then the oldest request that waited longer than ``max_wait_s``,
    whose group is opened; then the open group; then whatever ``order`` prefers among the trees
    of the forest and the first request without hashes. Every operation is O(log n) amortised
    or O(depth of the tree).
    """

    def __init__(
        self,
        order: GroupOrder,
        block_size: int,
        max_wait_s: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._order = order
        self._ranking = order if isinstance(order, RankingOrder) else None
        self._num_tokens_arrived = 0
        self.expect: Callable[[R], int] = lambda request: request.max_tokens
        """Output expected of a request when it comes, tokens; for orders that read it."""
        self._max_wait_s = max_wait_s
        self._clock = clock
        self._forest: PrefixForest[R] = PrefixForest(block_size, order.key, order.dynamic)
        self._walk = DepthFirstWalk(self._forest)
        self._requeued: LazyHeap[R] = LazyHeap()
        self._skipped: OrderedDict[R, Any] = OrderedDict()
        self._unhashed: LazyHeap[R] = LazyHeap()
        self._waiting_since: OrderedDict[R, float] = OrderedDict()
        self._served: PrefixNode[R] | None = None
        """The tree of whoever started last; a look at the head opens a group, too."""

    def __len__(self) -> int:
        return len(self._skipped) + len(self._requeued) + len(self._forest) + len(self._unhashed)

    def __contains__(self, request: R) -> bool:
        places = (self._skipped, self._requeued, self._forest, self._unhashed)
        return any(request in place for place in places)

    @property
    def forest(self) -> PrefixForest[R]:
        """The prefix forest; for reading only."""
        return self._forest

    @property
    def queues(self) -> list[GroupQueue[R]]:
        """This queue; for who meets queues that consist of several."""
        return [self]

    def open_node(self) -> PrefixNode[R] | None:
        """The innermost node being served; None between two groups."""
        return self._walk.group

    def add(self, request: R, rank: Any) -> None:
        """File a new request. ``rank`` orders arrivals; smaller is earlier."""
        if self._ranking is not None:
            rank = self._ranking.rank(rank, request.num_tokens, self._num_tokens_arrived)
            self._num_tokens_arrived += request.num_tokens
        hashes = grouping_hashes(request, self._forest.block_size)
        if hashes:
            self._forest.insert(request, hashes, rank, self._load(request, len(hashes)))
        else:
            self._unhashed.add(request, rank)
        if self._max_wait_s is not None:
            self._waiting_since[request] = self._clock()

    def requeue(self, request: R, rank: Any) -> None:
        """Put ``request`` in front; among those in front the smallest rank is first."""
        self._requeued.add(request, rank)

    def skip(self, request: R, rank: Any) -> None:
        """Put ``request`` back in front, which was the head and could not start for now. O(1).

        A request may be skipped in every step for a long time, and with it thousands.
        """
        self._skipped[request] = rank
        self._skipped.move_to_end(request, last=False)

    def was_skipped(self, request: R) -> bool:
        """Whether ``request`` waits here since it was skipped."""
        return request in self._skipped

    def peek(self) -> R:
        """The next request. Raises IndexError when nobody waits."""
        if self._skipped and not self._requeued:  # thousands in a step, perhaps
            return next(iter(self._skipped))
        returned = self._returned()
        if returned is not None:
            return returned[1]
        overdue = self._overdue()
        if overdue is not None:
            if overdue in self._forest:
                self._walk.jump(overdue)
            return overdue
        if self._unhashed and (not self._forest or self._unhashed_is_next()):
            return self._unhashed.peek()[1]
        return self._walk.peek()

    def levels(self, request: R) -> list[int]:
        """Blocks at which the shared prefixes of a waiting ``request`` end, the widest first.

        Empty if it is not in the forest.
        """
        ends: list[int] = []
        node = self._forest.node_of(request) if request in self._forest else None
        while node is not None and node.parent is not None:
            ends.append(node.end)
            node = node.parent
        return ends[::-1]

    def remove(self, request: R, *, admitted: bool = False) -> None:
        """Take ``request`` out. Raises KeyError if it does not wait here."""
        if request in self._skipped:
            del self._skipped[request]
            return
        if request in self._requeued:
            self._requeued.remove(request)
            return
        if request in self._unhashed:
            self._unhashed.remove(request)
        else:
            if admitted:
                self._served = self._root_of(request)
            self._forest.remove(request, admitted=admitted)
            if self._served is not None and not self._served.num_waiting:
                self._served = None
        self._waiting_since.pop(request, None)

    def __iter__(self) -> Iterator[R]:
        """Requests in the order of admission as it stands now; read-only.

        Waiting-time limits are left out, and a policy's comparison of a tree with a request
        without hashes is made on the trees as they are.
        """
        yield from self._in_front()
        open_tree, rest = self._walk.rest_of_tree()
        yield from rest
        lone = deque(
            (self._unhashed_key(request, rank), request)
            for rank, request in self._unhashed.ranked()
        )
        for tree in self._forest.ordered_children(self._forest.root):
            if tree is open_tree:
                continue
            tree_key = self._order.key(tree)
            while lone and lone[0][0] < tree_key:
                yield lone.popleft()[1]
            yield from self._forest.walk(tree)
        yield from (request for _, request in lone)

    def head_key(self) -> tuple[int, Any]:
        """Where the head stands beside those of other queues of this order; the smallest is next.

        Raises:
            IndexError: nobody waits.
        """
        returned = self._returned()
        if returned is not None:
            return 0, returned[0]
        overdue = self._overdue()
        if overdue is not None:
            return 1, self._waiting_since[overdue]
        head = self.peek()
        if head in self._unhashed:
            return 2, self._unhashed_key(head, self._unhashed.peek()[0])
        return 2, self._order.key(self._root_of(head))

    def is_in_group(self) -> bool:
        """Whether the head belongs to a group of which somebody has been served already."""
        return self._served is not None and self._returned() is None

    def _root_of(self, request: R) -> PrefixNode[R]:
        """The tree in which ``request`` waits. O(depth)."""
        node = self._forest.node_of(request)
        while node.parent is not None and node.parent.parent is not None:
            node = node.parent
        return node

    def _returned(self) -> tuple[Any, R] | None:
        """The first of those who were skipped or requeued, and its rank."""
        requeued = self._requeued.peek() if self._requeued else None
        if not self._skipped:
            return requeued
        request, rank = next(iter(self._skipped.items()))
        return requeued if requeued is not None and requeued[0] < rank else (rank, request)

    def _in_front(self) -> Iterator[R]:
        """Skipped and requeued requests, in order; read-only."""
        requeued = deque(self._requeued.ranked())
        for request, rank in self._skipped.items():
            while requeued and requeued[0][0] < rank:
                yield requeued.popleft()[1]
            yield request
        yield from (request for _, request in requeued)

    def _unhashed_is_next(self) -> bool:
        if self._walk.group is not None:
            return False
        rank, request = self._unhashed.peek()
        tree_key = self._order.key(self._walk.next_root())
        return bool(self._unhashed_key(request, rank) < tree_key)

    def _unhashed_key(self, request: R, rank: Any) -> Any:
        return self._order.key(LoneRequestLoad(1, self.expect(request), request.num_tokens, rank))

    def _load(self, request: R, num_blocks: int) -> Load:
        num_block_tokens = num_blocks * self._forest.block_size
        return load_of(self.expect(request), max(request.num_tokens - num_block_tokens, 0))

    def _overdue(self) -> R | None:
        """The oldest waiting request, if it has waited longer than allowed."""
        if self._max_wait_s is None or not self._waiting_since:
            return None
        request, since = next(iter(self._waiting_since.items()))
        return request if self._clock() - since > self._max_wait_s else None

    def check_integrity(self) -> None:
        """Raise AssertionError where a structural promise is broken. O(n)."""
        self._forest.check_integrity()
        self._walk.check_integrity()
        self._requeued.check_integrity()
        self._unhashed.check_integrity()
        if self._max_wait_s is not None:
            timed = set(self._waiting_since)
            assert all(r in self._forest or r in self._unhashed for r in timed), "a stale time"
            assert len(timed) == len(self._forest) + len(self._unhashed), "a time is missing"
