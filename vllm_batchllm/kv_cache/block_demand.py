# SPDX-License-Identifier: Apache-2.0
"""Who still waits for a block: the forests of waiting requests, asked by hash list.

A block's hash alone does not say where it is in a forest (no forest copies hashes); the hash
list it came from does. So a block is known by its origin, a list and a position in it, and the
blocks of one list share one walk down the forest.
"""

from __future__ import annotations

from bisect import bisect_right, insort
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any, Generic, Protocol, TypeVar

from vllm_batchllm.kv_cache.retained_blocks import BlockLocation, RetainedBlocks
from vllm_batchllm.prefix.forest import PrefixForest
from vllm_batchllm.prefix.node import PrefixNode

T = TypeVar("T", bound=Hashable)
Urgency = Any  # totally ordered; smaller is served earlier


class DemandListener(Protocol):
    """Moves blocks when demand ends. Nobody is told when it begins: that is seen when a block is to be
    given up."""

    def on_less_needed(self, block_ids: list[int]) -> None:
        """These filed blocks have lost the node they were filed at."""


class WatchedForest(Generic[T]):
    """One forest of waiting requests and the blocks filed in it; observes the forest."""

    def __init__(
        self,
        forest: PrefixForest[T],
        urgency: Urgency,
        open_node: Callable[[], PrefixNode[T] | None],
        listener: DemandListener,
        filed: dict[int, BlockLocation],
    ) -> None:
        self.forest = forest
        self.urgency = urgency
        self.retained_blocks: RetainedBlocks[T] = RetainedBlocks(forest, open_node, filed)
        self._listener = listener
        self._walked: Sequence[Hashable] | None = None
        self._num_walked = self._num_needed = 0
        self._path: list[PrefixNode[T]] = []
        self._ends: list[int] = []

    def __lt__(self, other: WatchedForest[Any]) -> bool:
        return bool(self.urgency < other.urgency)

    def find(self, hashes: Sequence[Hashable], position: int) -> PrefixNode[T] | None:
        """The node whose run holds ``hashes[position]``, or None if nobody waits for it.

        O(1) after the first call for a list; the first is O(depth * log blocks).
        """
        if self._walked is not hashes or self._num_walked != len(hashes):
            self._path, self._num_needed = self.forest.match(hashes)
            self._ends = [node.end for node in self._path]
            self._walked, self._num_walked = hashes, len(hashes)
        if position >= self._num_needed:
            return None
        return self._path[bisect_right(self._ends, position)]

    def on_new_run(self, node: PrefixNode[Any]) -> None:
        """More is needed than before."""
        self._forget_walk()

    def on_split(self, upper: PrefixNode[Any], lower: PrefixNode[Any]) -> None:
        """Divide what was filed at the run."""
        self._forget_walk()
        self.retained_blocks.split(upper, lower)

    def on_removed(self, node: PrefixNode[Any]) -> None:
        """Let go of what was filed at the node."""
        self._forget_walk()
        if node.retained is not None:
            self._listener.on_less_needed(node.retained.block_ids())

    def on_reordered(self, node: PrefixNode[Any]) -> None:
        """Keep the order of giving up in step with the order of service."""
        self.retained_blocks.reorder(node)

    def _forget_walk(self) -> None:
        self._walked = None


class BlockDemand:
    """All forests of waiting requests, the most urgent first.

    Asking costs one dictionary look-up
    for every forest that has nothing in common with the list.

    filed: where each needed free block is, by block id.
    """

    def __init__(self, listener: DemandListener) -> None:
        self.filed: dict[int, BlockLocation] = {}
        self._listener = listener
        self._watched: list[WatchedForest[Any]] = []

    def __bool__(self) -> bool:
        """Whether anybody waits in a watched forest."""
        for watched in self._watched:  # noqa: SIM110 - asked for every block, no generator
            if watched.forest:
                return True
        return False

    def watch(
        self,
        forest: PrefixForest[T],
        urgency: Urgency = 0,
        open_node: Callable[[], PrefixNode[T] | None] = lambda: None,
    ) -> None:
        """Count what waits in ``forest`` as demand, from now on.

        Args:
            forest: has no observer and is empty.
            urgency: its place among the forests; smaller is served earlier.
            open_node: the innermost node being served, whose path is served before the rest.

        Raises:
            ValueError: ``forest`` is observed already, or something waits in it.
        """
        if forest.observer is not None:
            raise ValueError("this forest is observed already; unwatch it first")
        if forest:
            raise ValueError(
                f"{len(forest)} requests wait in this forest; watch it before the first arrives"
            )
        watched = WatchedForest(forest, urgency, open_node, self._listener, self.filed)
        forest.observer = watched
        insort(self._watched, watched)

    def unwatch(self, forest: PrefixForest[Any]) -> None:
        """Forget ``forest``; what was filed there is filed elsewhere or let go.

        Raises:
            ValueError: ``forest`` is not watched.
        """
        for index, watched in enumerate(self._watched):
            if watched.forest is forest:
                del self._watched[index]
                forest.observer = None
                self._listener.on_less_needed(list(watched.retained_blocks.in_order()))
                return
        raise ValueError("this forest is not watched")

    def find(
        self, hashes: Sequence[Hashable], position: int
    ) -> tuple[RetainedBlocks[Any], PrefixNode[Any]] | None:
        """Where a block with hash ``hashes[position]`` belongs; None if nobody waits for it."""
        for watched in self._watched:
            node = watched.find(hashes, position)
            if node is not None:
                return watched.retained_blocks, node
        return None

    def last(self) -> int:
        """The filed block that is needed last. Raises IndexError if none is filed."""
        for watched in reversed(self._watched):
            retained_blocks = watched.retained_blocks
            if retained_blocks:
                last: int = retained_blocks.last()
                return last
        raise IndexError("no needed block is free")

    def take(self, block_id: int) -> None:
        """Remove a block from where it is filed. Raises KeyError if it is nowhere."""
        self.filed[block_id].retained.retained_blocks.take(block_id)

    def in_order(self) -> Iterator[int]:
        """All filed blocks, the one needed last first; read-only, O(n log n)."""
        for watched in reversed(self._watched):
            yield from watched.retained_blocks.in_order()

    def check_integrity(self) -> None:
        """Raise AssertionError where a structural promise is broken. O(size of the forests)."""
        listed = list(self.in_order())
        assert len(listed) == len(set(listed)), "a block is filed twice"
        assert set(listed) == set(self.filed), "retained blocks and index disagree"
        for watched in self._watched:
            assert watched.forest.observer is watched, "a forest has lost its observer"
            watched.retained_blocks.check_integrity()
