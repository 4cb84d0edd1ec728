# SPDX-License-Identifier: Apache-2.0
"""Tells the block pool who waits, and how urgently.

Where all wait in one queue, the pool watches the forest by which the queue orders them, in the order in
which it will serve them. With priorities, or with a queue for each adapter, that would be as many forests as there are
values, to be asked for every block: there one forest holds everybody, ranked by who is served first.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from vllm.v1.request import Request

from vllm_batchllm.kv_cache.block_pool import PrefixAwareBlockPool
from vllm_batchllm.ordering.group_queue import GroupQueue
from vllm_batchllm.prefix.forest import PrefixForest
from vllm_batchllm.prefix.node import PrefixNode
from vllm_batchllm.prefix.ranked_forest import RankedForest
from vllm_batchllm.prefix.readable import grouping_hashes


class WaitingDemand(Protocol):
    """What becomes of a request, told as it happens. ``rank``: smaller is served earlier."""

    forests: list[PrefixForest[Request]]
    """Its own, beside those of the queues; for reading only."""

    def arrived(self, request: Request, priority: int, rank: Any) -> None:
        """``request`` waits for the first time."""

    def returned(self, request: Request, priority: int, rank: Any) -> None:
        """``request`` waits in front of others; it may never have left."""

    def left(self, request: Request) -> None:
        """``request`` waits no more."""


class OneQueueDemand:
    """Of a single queue: its forest, and before that what its returned requests will look up again."""

    def __init__(
        self, pool: PrefixAwareBlockPool | None, queue: GroupQueue[Request], block_size: int
    ) -> None:
        self._returned: PrefixForest[Request] = PrefixForest(block_size)
        self.forests = [self._returned]
        if pool is not None:
            pool.watch(self._returned, urgency=0)
            pool.watch(queue.forest, urgency=1, open_node=queue.open_node)

    def arrived(self, request: Request, priority: int, rank: Any) -> None:
        """The queue has filed it in its forest."""

    def returned(self, request: Request, priority: int, rank: Any) -> None:
        """It has left the queue's forest, and waits in front."""
        hashes = grouping_hashes(request, self._returned.block_size)
        if hashes and request not in self._returned:
            self._returned.insert(request, hashes, rank)

    def left(self, request: Request) -> None:
        """The queue has taken it out of its forest."""
        if request in self._returned:
            self._returned.remove(request)


class RankedDemand:
    """Of any number of queues: one forest, ranked by priority, by who was returned, and by arrival.

    open_node: the innermost node that is being served, of whatever queue it is.
    """

    def __init__(
        self,
        pool: PrefixAwareBlockPool | None,
        block_size: int,
        open_node: Callable[[], PrefixNode[Request] | None],
    ) -> None:
        self._forest: RankedForest[Request] = RankedForest(block_size)
        self.forests: list[PrefixForest[Request]] = [self._forest]
        self._open_node = open_node
        if pool is not None:
            pool.watch(self._forest, open_node=self._open_here)

    def arrived(self, request: Request, priority: int, rank: Any) -> None:
        """One more waits."""
        hashes = grouping_hashes(request, self._forest.block_size)
        if hashes:
            self._forest.insert(request, hashes, (priority, 1, rank))

    def returned(self, request: Request, priority: int, rank: Any) -> None:
        """One that was skipped is here still."""
        hashes = grouping_hashes(request, self._forest.block_size)
        if hashes and request not in self._forest:
            self._forest.insert(request, hashes, (priority, 0, rank))

    def left(self, request: Request) -> None:
        """One fewer waits."""
        if request in self._forest:
            self._forest.remove(request)

    def _open_here(self) -> PrefixNode[Request] | None:
        """The innermost node of this forest on the path that is being served."""
        node = self._open_node()
        if node is None:
            return None
        path, _ = self._forest.match(node.hashes)
        return next((each for each in reversed(path) if each.start < node.end), None)
