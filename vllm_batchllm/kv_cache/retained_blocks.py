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


class Shelf(Generic[T]):
    """The filed blocks of one node, and which children have shelves.

    blocks: ids by the position of their hash in the run's hash list. depths: heap of negated
    positions. latest: heap of children, the one served last on top. Both heaps are built when
    first asked for; entry: this shelf's valid entry in its parent's ``latest``.
    """

    __slots__ = ("blocks", "children", "depths", "entry", "latest", "node", "shelves")

    def __init__(self, shelves: Shelves[T], node: PrefixNode[T]) -> None:
        self.shelves = shelves
        self.node = node
        self.blocks: dict[int, dict[int, None]] = {}
        self.children: dict[Shelf[T], None] = {}
        self.depths: list[int] | None = None
        self.latest: list[Entry[T]] | None = None
        self.entry: Entry[T] | None = None

    def block_ids(self) -> list[int]:
        """The blocks on this shelf, the deepest first."""
        return [b for position in sorted(self.blocks, reverse=True) for b in self.blocks[position]]

    def deepest(self) -> int:
        """A block of this shelf that no other lies behind. O(log blocks) amortised."""
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

    __slots__ = ("key", "serial", "shelf")

    def __init__(self, key: Any, serial: int, shelf: Shelf[T]) -> None:
        self.key = key
        self.serial = serial
        self.shelf = shelf

    def __lt__(self, other: Entry[T]) -> bool:
        if self.key == other.key:
            return self.serial > other.serial
        return bool(self.key > other.key)


class Filed(NamedTuple):
    """Where a needed free block is."""

    shelf: Shelf[Any]
    position: int


class Shelves(Generic[T]):
    """The filed blocks of one forest.

    Args:
        forest: whose nodes hold the hashes.
        open_node: the innermost node that is being served, or None; everything on its path is
            served before its siblings.
        filed: block id to place, shared by the shelves of all forests.

    A shelf exists while its node or anything below has filed blocks, so putting and taking are
    O(1) amortised over the blocks of a run. ``last`` is O(depth * log children) amortised.
    """

    def __init__(
        self,
        forest: PrefixForest[T],
        open_node: Callable[[], PrefixNode[T] | None],
        filed: dict[int, Filed],
    ) -> None:
        self.forest = forest
        self._open_node = open_node
        self._filed = filed
        self._serial = count()

    def __bool__(self) -> bool:
        """Whether any block is filed here."""
        return self.forest.root.shelf is not None

    def put(self, block_id: int, node: PrefixNode[T], position: int) -> None:
        """File a block whose hash is at ``position``, in the run of ``node``."""
        shelf: Shelf[T] = node.shelf or self._open_shelf(node)
        slot = shelf.blocks.get(position)
        if slot is None:
            shelf.add(position, {block_id: None})
        else:
            slot[block_id] = None
        self._filed[block_id] = Filed(shelf, position)

    def take(self, block_id: int) -> None:
        """Remove a block from its shelf. Raises KeyError if it is on none."""
        shelf, position = self._filed.pop(block_id)
        slot = shelf.blocks[position]
        del slot[block_id]
        if not slot:
            del shelf.blocks[position]
            self._close_empty(shelf)

    def last(self) -> int:
        """The block needed last: of the group served last, the deepest.

        Raises:
            IndexError: no block is filed.
        """
        shelf: Shelf[T] | None = self.forest.root.shelf
        if shelf is None:
            raise IndexError("no block is filed in this forest")
        on_path = self._open_path()
        while shelf.children:
            shelf = self._last_child(shelf, on_path)
        return shelf.deepest()

    def in_order(self) -> Iterator[int]:
        """All filed blocks, the one needed last first; read-only, O(n log n)."""
        on_path = self._open_path()
        stack: list[tuple[Shelf[T], bool]] = []
        if self.forest.root.shelf is not None:
            stack.append((self.forest.root.shelf, False))
        while stack:
            shelf, children_done = stack.pop()
            if children_done:
                yield from shelf.block_ids()
                continue
            stack.append((shelf, True))
            stack.extend((child, False) for child in self._soonest_first(shelf, on_path))

    def split(self, upper: PrefixNode[T], lower: PrefixNode[T]) -> None:
        """Divide the shelf of ``lower``, whose run has lost its head to ``upper``.

        O(length of the head): no more than the hashes of the request that caused the cut.
        """
        shelf: Shelf[T] | None = lower.shelf
        if shelf is None:
            return
        assert upper.parent is not None
        above: Shelf[T] = upper.parent.shelf
        del above.children[shelf]
        head = self._open_shelf(upper)
        positions: Iterable[int] = range(upper.start, upper.end)
        if len(shelf.blocks) < upper.num_blocks:
            positions = [position for position in shelf.blocks if position < upper.end]
        for position in positions:
            slot = shelf.blocks.pop(position, None)
            if slot is not None:
                head.add(position, slot)
                self._filed.update(dict.fromkeys(slot, Filed(head, position)))
        if shelf.blocks or shelf.children:
            self._add_child(head, shelf)
        else:
            lower.shelf = None

    def reorder(self, node: PrefixNode[T]) -> None:
        """Take note of the key of ``node``, which may have changed."""
        parent = node.parent
        if parent is not None and parent.shelf is not None:
            self._rank(parent.shelf, node.shelf)

    def _open_shelf(self, node: PrefixNode[T]) -> Shelf[T]:
        """A new shelf for ``node``, and for its ancestors where they have none."""
        shelf: Shelf[T] = Shelf(self, node)
        node.shelf = shelf
        child, parent = shelf, node.parent
        while parent is not None:
            existing: Shelf[T] | None = parent.shelf
            if existing is not None:
                self._add_child(existing, child)
                break
            parent.shelf = Shelf(self, parent)
            self._add_child(parent.shelf, child)
            child, parent = parent.shelf, parent.parent
        return shelf

    def _close_empty(self, shelf: Shelf[T]) -> None:
        """Drop ``shelf`` and its ancestors as far as nothing is left on them."""
        while not shelf.blocks and not shelf.children:
            node = shelf.node
            node.shelf = None
            if node.parent is None:
                return
            above: Shelf[T] = node.parent.shelf
            del above.children[shelf]
            shelf = above

    def _add_child(self, parent: Shelf[T], child: Shelf[T]) -> None:
        parent.children[child] = None
        self._rank(parent, child)

    def _rank(self, parent: Shelf[T], child: Shelf[T]) -> None:
        """(Re)enter ``child`` into the heap of ``parent``, if that has been built."""
        if parent.latest is None:
            return
        if len(parent.latest) > 2 * len(parent.children) + 64:
            parent.latest = None
            return
        heapq.heappush(parent.latest, self._entry(child))

    def _entry(self, child: Shelf[T]) -> Entry[T]:
        child.entry = Entry(self.forest.key_of(child.node), next(self._serial), child)
        return child.entry

    def _last_child(self, shelf: Shelf[T], on_path: set[PrefixNode[T]]) -> Shelf[T]:
        """The child served last. The one being served is served first, whatever its key."""
        if len(shelf.children) == 1:
            return next(iter(shelf.children))
        heap = shelf.latest
        if heap is None:
            heap = shelf.latest = [self._entry(child) for child in shelf.children]
            heapq.heapify(heap)
        top = self._top(shelf, heap)
        if top.shelf.node not in on_path:
            return top.shelf
        heapq.heappop(heap)
        second = self._top(shelf, heap)
        heapq.heappush(heap, top)
        return second.shelf

    def _soonest_first(self, shelf: Shelf[T], on_path: set[PrefixNode[T]]) -> list[Shelf[T]]:
        children = sorted(shelf.children, key=lambda child: self.forest.key_of(child.node))
        return sorted(children, key=lambda child: child.node not in on_path)

    def _top(self, shelf: Shelf[T], heap: list[Entry[T]]) -> Entry[T]:
        while heap[0].shelf.entry is not heap[0] or heap[0].shelf not in shelf.children:
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
        """Raise AssertionError where a structural promise is broken. O(shelves)."""
        shelves = [self.forest.root.shelf] if self else []
        on_path = self._open_path()
        for shelf in shelves:
            shelves.extend(shelf.children)
            node = shelf.node
            assert node.shelf is shelf and shelf.shelves is self, "a shelf is at the wrong node"
            assert shelf.blocks or shelf.children, "an empty shelf was left behind"
            assert all(child.node.parent is node for child in shelf.children), "broken link"
            for position, slot in shelf.blocks.items():
                assert node.start <= position < node.end, "a block is not in the run of its node"
                assert slot, "an empty position was left behind"
                for block_id in slot:
                    assert self._filed[block_id] == (shelf, position), "the index is wrong"
            assert shelf.depths is None or {-p for p in shelf.depths} >= set(shelf.blocks)
            for child in shelf.children if shelf.latest is not None else ():
                assert child.entry in shelf.latest, "a child cannot be found"
                assert child.node in on_path or child.entry.key == self.forest.key_of(child.node)
