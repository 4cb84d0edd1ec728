# SPDX-License-Identifier: Apache-2.0
"""Free blocks that waiting requests need, filed at the forest node that holds their hash.

Kept beside the forest, they are never sorted by a next use that every arrival would change:
the order in which nodes are served is the forest's own, and it is read only when a needed block
must be given up after all.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Hashable, Iterable, Iterator
from itertools import count
from typing import Any, Generic, NamedTuple, TypeVar

from vllm_batchllm.prefix.forest import PrefixForest
from vllm_batchllm.prefix.node import PrefixNode

T = TypeVar("T", bound=Hashable)


class NodeBlocks(Generic[T]):
    """The filed blocks of one node, and which children have any.

    blocks: ids by the position of their hash in the run's hash list. depths: heap of negated
    positions. latest: heap of children, the one served last on top. Both heaps are built when
    first asked for; entry: the valid entry of these in its parent's ``latest``.
    """

    __slots__ = ("blocks", "children", "depths", "entry", "latest", "node", "retained_blocks")

    def __init__(self, retained_blocks: RetainedBlocks[T], node: PrefixNode[T]) -> None:
        self.retained_blocks = retained_blocks
        self.node = node
        self.blocks: dict[int, dict[int, None]] = {}
        self.children: dict[NodeBlocks[T], None] = {}
        self.depths: list[int] | None = None
        self.latest: list[Entry[T]] | None = None
        self.entry: Entry[T] | None = None

    def block_ids(self) -> list[int]:
        """These blocks, the deepest first."""
        return [b for position in sorted(self.blocks, reverse=True) for b in self.blocks[position]]

    def deepest(self) -> int:
        """A block of these that no other lies behind. O(log blocks) amortised."""
        if self.depths is None or len(self.depths) > 2 * len(self.blocks) + 64:
            self.depths = [-position for position in self.blocks]
            heapq.heapify(self.depths)
        while -self.depths[0] not in self.blocks:
            heapq.heappop(self.depths)
        return next(iter(self.blocks[-self.depths[0]]))

    def add(self, position: int, block_ids: dict[int, None]) -> None:
        """Put blocks at a position that had none."""
        self.blocks[position] = block_ids
        if self.depths is not None:
            heapq.heappush(self.depths, -position)


class Entry(Generic[T]):
    """A child in its parent's heap; the largest key comes first."""

    __slots__ = ("key", "retained", "serial")

    def __init__(self, key: Any, serial: int, retained: NodeBlocks[T]) -> None:
        self.key = key
        self.serial = serial
        self.retained = retained

    def __lt__(self, other: Entry[T]) -> bool:
        if self.key == other.key:
            return self.serial > other.serial
        return bool(self.key > other.key)


class BlockLocation(NamedTuple):
    """Where a needed free block is."""

    retained: NodeBlocks[Any]
    position: int


class RetainedBlocks(Generic[T]):
    """The filed blocks of one forest.

    Args:
        forest: whose nodes hold the hashes.
        open_node: the innermost node that is being served, or None; everything on its path is
            served before its siblings.
        filed: block id to place, shared by the retained blocks of all forests.

    ``NodeBlocks`` exist while their node or anything below has filed blocks, so putting and taking are
    O(1) amortised over the blocks of a run. ``last`` is O(depth * log children) amortised.
    """

    def __init__(
        self,
        forest: PrefixForest[T],
        open_node: Callable[[], PrefixNode[T] | None],
        filed: dict[int, BlockLocation],
    ) -> None:
        self.forest = forest
        self._open_node = open_node
        self._filed = filed
        self._serial = count()

    def __bool__(self) -> bool:
        """Whether any block is filed here."""
        return self.forest.root.retained is not None

    def put(self, block_id: int, node: PrefixNode[T], position: int) -> None:
        """File a block whose hash is at ``position``, in the run of ``node``."""
        retained: NodeBlocks[T] = node.retained or self._open_node_blocks(node)
        slot = retained.blocks.get(position)
        if slot is None:
            retained.add(position, {block_id: None})
        else:
            slot[block_id] = None
        self._filed[block_id] = BlockLocation(retained, position)

    def take(self, block_id: int) -> None:
        """Remove a block from its node. Raises KeyError if it is filed at none."""
        retained, position = self._filed.pop(block_id)
        slot = retained.blocks[position]
        del slot[block_id]
        if not slot:
            del retained.blocks[position]
            self._close_empty(retained)

    def last(self) -> int:
        """The block needed last: of the group served last, the deepest.

        Raises:
            IndexError: no block is filed.
        """
        retained: NodeBlocks[T] | None = self.forest.root.retained
        if retained is None:
            raise IndexError("no block is filed in this forest")
        on_path = self._open_path()
        while retained.children:
            retained = self._last_child(retained, on_path)
        return retained.deepest()

    def in_order(self) -> Iterator[int]:
        """All filed blocks, the one needed last first; read-only, O(n log n)."""
        on_path = self._open_path()
        stack: list[tuple[NodeBlocks[T], bool]] = []
        if self.forest.root.retained is not None:
            stack.append((self.forest.root.retained, False))
        while stack:
            retained, children_done = stack.pop()
            if children_done:
                yield from retained.block_ids()
                continue
            stack.append((retained, True))
            stack.extend((child, False) for child in self._soonest_first(retained, on_path))

    def split(self, upper: PrefixNode[T], lower: PrefixNode[T]) -> None:
        """Divide the blocks of ``lower``, whose run has lost its head to ``upper``.

        O(length of the head): no more than the hashes of the request that caused the cut.
        """
        retained: NodeBlocks[T] | None = lower.retained
        if retained is None:
            return
        assert upper.parent is not None
        above: NodeBlocks[T] = upper.parent.retained
        del above.children[retained]
        head = self._open_node_blocks(upper)
        positions: Iterable[int] = range(upper.start, upper.end)
        if len(retained.blocks) < upper.num_blocks:
            positions = [position for position in retained.blocks if position < upper.end]
        for position in positions:
            slot = retained.blocks.pop(position, None)
            if slot is not None:
                head.add(position, slot)
                self._filed.update(dict.fromkeys(slot, BlockLocation(head, position)))
        if retained.blocks or retained.children:
            self._add_child(head, retained)
        else:
            lower.retained = None

    def reorder(self, node: PrefixNode[T]) -> None:
        """Take note of the key of ``node``, which may have changed."""
        parent = node.parent
        if parent is not None and parent.retained is not None:
            self._rank(parent.retained, node.retained)

    def _open_node_blocks(self, node: PrefixNode[T]) -> NodeBlocks[T]:
        """New ``NodeBlocks`` for ``node``, and for its ancestors where they have none."""
        retained: NodeBlocks[T] = NodeBlocks(self, node)
        node.retained = retained
        child, parent = retained, node.parent
        while parent is not None:
            existing: NodeBlocks[T] | None = parent.retained
            if existing is not None:
                self._add_child(existing, child)
                break
            parent.retained = NodeBlocks(self, parent)
            self._add_child(parent.retained, child)
            child, parent = parent.retained, parent.parent
        return retained

    def _close_empty(self, retained: NodeBlocks[T]) -> None:
        """Drop ``retained`` and its ancestors as far as nothing is left on them."""
        while not retained.blocks and not retained.children:
            node = retained.node
            node.retained = None
            if node.parent is None:
                return
            above: NodeBlocks[T] = node.parent.retained
            del above.children[retained]
            retained = above

    def _add_child(self, parent: NodeBlocks[T], child: NodeBlocks[T]) -> None:
        parent.children[child] = None
        self._rank(parent, child)

    def _rank(self, parent: NodeBlocks[T], child: NodeBlocks[T]) -> None:
        """(Re)enter ``child`` into the heap of ``parent``, if that has been built."""
        if parent.latest is None:
            return
        if len(parent.latest) > 2 * len(parent.children) + 64:
            parent.latest = None
            return
        heapq.heappush(parent.latest, self._entry(child))

    def _entry(self, child: NodeBlocks[T]) -> Entry[T]:
        child.entry = Entry(self.forest.key_of(child.node), next(self._serial), child)
        return child.entry

    def _last_child(self, retained: NodeBlocks[T], on_path: set[PrefixNode[T]]) -> NodeBlocks[T]:
        """The child served last. The one being served is served first, whatever its key."""
        if len(retained.children) == 1:
            return next(iter(retained.children))
        heap = retained.latest
        if heap is None:
            heap = retained.latest = [self._entry(child) for child in retained.children]
            heapq.heapify(heap)
        top = self._top(retained, heap)
        if top.retained.node not in on_path:
            return top.retained
        heapq.heappop(heap)
        second = self._top(retained, heap)
        heapq.heappush(heap, top)
        return second.retained

    def _soonest_first(
        self, retained: NodeBlocks[T], on_path: set[PrefixNode[T]]
    ) -> list[NodeBlocks[T]]:
        children = sorted(retained.children, key=lambda child: self.forest.key_of(child.node))
        return sorted(children, key=lambda child: child.node not in on_path)

    def _top(self, retained: NodeBlocks[T], heap: list[Entry[T]]) -> Entry[T]:
        while heap[0].retained.entry is not heap[0] or heap[0].retained not in retained.children:
            heapq.heappop(heap)
        return heap[0]

    def _open_path(self) -> set[PrefixNode[T]]:
        path: set[PrefixNode[T]] = set()
        node = self._open_node()
        while node is not None:
            path.add(node)
            node = node.parent
        return path

    def check_integrity(self) -> None:
        """Raise AssertionError where a structural promise is broken. O(nodes with blocks)."""
        retained_blocks = [self.forest.root.retained] if self else []
        on_path = self._open_path()
        for retained in retained_blocks:
            retained_blocks.extend(retained.children)
            node = retained.node
            assert node.retained is retained and retained.retained_blocks is self, (
                "blocks are at the wrong node"
            )
            assert retained.blocks or retained.children, "empty node blocks were left behind"
            assert all(child.node.parent is node for child in retained.children), "broken link"
            for position, slot in retained.blocks.items():
                assert node.start <= position < node.end, "a block is not in the run of its node"
                assert slot, "an empty position was left behind"
                for block_id in slot:
                    assert self._filed[block_id] == (retained, position), "the index is wrong"
            assert retained.depths is None or {-p for p in retained.depths} >= set(retained.blocks)
            for child in retained.children if retained.latest is not None else ():
                assert child.entry in retained.latest, "a child cannot be found"
                assert child.node in on_path or child.entry.key == self.forest.key_of(child.node)
