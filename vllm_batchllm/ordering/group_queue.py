# SPDX-License-Identifier: Apache-2.0
"""The waiting requests of one priority, in the order in which they are admitted.

Three places to wait: requests requeued by the scheduler (preempted, or skipped for now),
which come first; the prefix forest; and requests without block hashes, which share nothing.
This file decides between the three; it knows requests only through :class:`WaitingRequest`.
"""

from __future__ import annotations

import time
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any, Generic, Protocol, TypeVar

from vllm_batchllm.ordering.lazy_heap import LazyHeap
from vllm_batchllm.ordering.policies import GroupOrder, LoneRequestLoad, RankingOrder
from vllm_batchllm.prefix.forest import PrefixForest
from vllm_batchllm.prefix.node import Load, PrefixNode, load_of
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

    Requeued requests first; then the oldest request that waited longer than ``max_wait_s``,
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
        self._requeued_forest: PrefixForest[R] = PrefixForest(block_size)
        self._unhashed: LazyHeap[R] = LazyHeap()
        self._waiting_since: OrderedDict[R, float] = OrderedDict()

    def __len__(self) -> int:
        return len(self._requeued) + len(self._forest) + len(self._unhashed)

    def __contains__(self, request: R) -> bool:
        return any(request in place for place in (self._requeued, self._forest, self._unhashed))

    @property
    def forest(self) -> PrefixForest[R]:
        """The prefix forest; for reading only."""
        return self._forest

    @property
    def requeued(self) -> PrefixForest[R]:
        """What the requeued requests will look up again; for reading only."""
        return self._requeued_forest

    def open_node(self) -> PrefixNode[R] | None:
        """The innermost node being served; None between two groups."""
        return self._walk.group

    def add(self, request: R, rank: Any) -> None:
        """File a new request. ``rank`` orders arrivals; smaller is earlier."""
        if self._ranking is not None:
            rank = self._ranking.rank(rank, request.num_tokens, self._num_tokens_arrived)
            self._num_tokens_arrived += request.num_tokens
        if shares_prefixes(request):
            self._forest.insert(request, request.block_hashes, rank, self._load(request))
        else:
            self._unhashed.add(request, rank)
        if self._max_wait_s is not None:
            self._waiting_since[request] = self._clock()

    def requeue(self, request: R, rank: Any) -> None:
        """Put ``request`` in front; among those in front the smallest rank is first."""
        self._requeued.add(request, rank)
        if shares_prefixes(request):
            self._requeued_forest.insert(request, request.block_hashes, rank)

    def peek(self) -> R:
        """The next request. Raises IndexError when nobody waits."""
        if self._requeued:
            return self._requeued.peek()[1]
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
        if request in self._requeued:
            self._requeued.remove(request)
            if request in self._requeued_forest:
                self._requeued_forest.remove(request)
            return
        if request in self._unhashed:
            self._unhashed.remove(request)
        else:
            self._forest.remove(request, admitted=admitted)
        self._waiting_since.pop(request, None)

    def __iter__(self) -> Iterator[R]:
        """Requests in the order of admission as it stands now; read-only.

        Waiting-time limits are left out, and a policy's comparison of a tree with a request
        without hashes is made on the trees as they are.
        """
        yield from self._requeued
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

    def _unhashed_is_next(self) -> bool:
        if self._walk.group is not None:
            return False
        rank, request = self._unhashed.peek()
        tree_key = self._order.key(self._walk.next_root())
        return bool(self._unhashed_key(request, rank) < tree_key)

    def _unhashed_key(self, request: R, rank: Any) -> Any:
        return self._order.key(LoneRequestLoad(1, self.expect(request), request.num_tokens, rank))

    def _load(self, request: R) -> Load:
        num_block_tokens = len(request.block_hashes) * self._forest.block_size
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
        self._requeued_forest.check_integrity()
        assert all(r in self._requeued for r in self._requeued_forest.walk()), (
            "a requeued request is stale"
        )
        self._unhashed.check_integrity()
        if self._max_wait_s is not None:
            timed = set(self._waiting_since)
            assert all(r in self._forest or r in self._unhashed for r in timed), "a stale time"
            assert len(timed) == len(self._forest) + len(self._unhashed), "a time is missing"


def shares_prefixes(request: WaitingRequest) -> bool:
    """Whether ``request`` can be grouped by its hashes.

    Not without a full block; not if it may not read the prefix cache; and not a streaming
    session, whose hashes are cut back when it goes on.
    """
    return bool(
        request.block_hashes and not request.skip_reading_prefix_cache and not request.resumable
    )
