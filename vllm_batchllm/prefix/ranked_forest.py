# SPDX-License-Identifier: Apache-2.0
"""A forest in which every node knows the first of those who still wait below it.

In a plain forest ``rank`` is that of the earliest arrival, whether it has gone since or not. Here it
goes up again as the first ones leave: with priorities in the ranks, the forest says how urgently each
shared prefix is needed, whatever mixture of priorities needs it.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import TypeVar

from vllm_batchllm.prefix.forest import PrefixForest
from vllm_batchllm.prefix.lazy_heap import LazyHeap
from vllm_batchllm.prefix.node import FEW, NO_LOAD, Load, PrefixNode, Rank

T = TypeVar("T", bound=Hashable)


class RankedForest(PrefixForest[T]):
    """As :class:`PrefixForest`, siblings in order of the smallest rank that waits below them.

    Insert and remove cost O(depth * log blocks), and a removal O(log siblings) for every node that
    loses its first one.
    """

    def __init__(self, block_size: int) -> None:
        super().__init__(block_size)
        self._rank_of: dict[T, Rank] = {}
        self._own: dict[PrefixNode[T], LazyHeap[T]] = {}
        """Items by rank, of nodes at which many end."""

    def insert(
        self, item: T, hashes: Sequence[Hashable], rank: Rank, load: Load = NO_LOAD
    ) -> PrefixNode[T]:
        """As :meth:`PrefixForest.insert`."""
        node = super().insert(item, hashes, rank, load)
        self._rank_of[item] = rank
        if node in self._own:
            self._own[node].add(item, rank)
        return node

    def remove(self, item: T, *, admitted: bool = False) -> None:
        """As :meth:`PrefixForest.remove`; ranks above follow."""
        node = self._node_of[item]
        super().remove(item, admitted=admitted)
        rank = self._rank_of.pop(item)
        own = self._own.get(node)
        if own is not None:
            own.remove(item)
            if not own:
                del self._own[node]
        current = node
        while current.parent is not None and current.rank == rank:
            if current.num_waiting:
                first = self._first_rank(current)
                if first == rank:
                    return
                current.rank = first
                self._file(current, current.parent)
            current = current.parent

    def _first_rank(self, node: PrefixNode[T]) -> Rank:
        """The smallest rank at or below ``node``, those of its children being right."""
        own = self._first_own_rank(node)
        if not node.children:
            return own
        below = self.best_child(node).rank
        return below if own is None else min(own, below)

    def _first_own_rank(self, node: PrefixNode[T]) -> Rank | None:
        num_own = len(node.aligned or ()) + len(node.members or ())
        if num_own <= FEW and node not in self._own:
            return min(map(self._rank_of.__getitem__, node.ending_here()), default=None)
        heap = self._own.get(node)
        if heap is None:
            heap = self._own[node] = LazyHeap()
            for item in node.ending_here():
                heap.add(item, self._rank_of[item])
        return heap.peek()[0] if heap else None

    def check_integrity(self) -> None:
        """Raise AssertionError where a structural promise is broken. O(size of the forest)."""
        super().check_integrity()
        assert self._rank_of.keys() == self._node_of.keys(), "an item without a rank"
        nodes = [self.root]
        for node in nodes:
            nodes.extend((node.children or {}).values())
        for node in nodes[1:]:
            first = min(self._rank_of[item] for item in self.walk(node))
            assert node.rank == first, "a rank is not that of the first who waits"
        for node, heap in self._own.items():
            heap.check_integrity()
            assert set(heap) == set(node.ending_here()), "items and heap disagree"
