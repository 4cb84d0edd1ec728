# SPDX-License-Identifier: Apache-2.0
"""A radix forest over chained block hashes.

vLLM's block hashes are chained: an equal hash at position ``k`` means that everything up to
and including block ``k`` is equal (tokens, LoRA adapter, salt, images). So two requests share
exactly their common run of leading hashes, and its length is found by binary search; no token
is ever compared and no hash is copied.

The forest holds *waiting* items only. It knows, for every shared prefix, how many of them wait
at or below it and how much work they bring, which is all that an ordering of groups needs.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Hashable, Iterator, Sequence
from itertools import count
from typing import Generic, TypeVar

from vllm_batchllm.prefix.node import NO_LOAD, Key, Load, PrefixNode, Rank, with_item
from vllm_batchllm.prefix.observer import ForestObserver

T = TypeVar("T", bound=Hashable)


class PrefixForest(Generic[T]):
    """Waiting items, arranged by their shared prefixes.

    Args:
        block_size: tokens per block, for the sums of prompt tokens.
        key: orders siblings; smaller comes first. It may read every public figure of a node.
        dynamic: whether ``key`` reads figures that change while a node waits (anything but
            ``rank``).

    Insert and remove cost O(depth * log blocks); ``best_child`` is O(log children) amortised.
    """

    def __init__(
        self,
        block_size: int,
        key: Callable[[PrefixNode[T]], Key] = lambda node: node.rank,
        dynamic: bool = False,
    ) -> None:
        if block_size < 1:
            raise ValueError(f"block_size must be at least 1 token, got {block_size}")
        self.block_size = block_size
        self.root: PrefixNode[T] = PrefixNode((), 0, 0, None, None)
        self.observer: ForestObserver | None = None
        self._key = key
        self._dynamic = dynamic
        self._node_of: dict[T, PrefixNode[T]] = {}
        self._serial = count()

    def __len__(self) -> int:
        return len(self._node_of)

    def __contains__(self, item: T) -> bool:
        return item in self._node_of

    def node_of(self, item: T) -> PrefixNode[T]:
        """The node at whose end ``item`` waits. Raises KeyError if it does not wait here."""
        return self._node_of[item]

    def insert(
        self, item: T, hashes: Sequence[Hashable], rank: Rank, load: Load = NO_LOAD
    ) -> PrefixNode[T]:
        """Add ``item`` under its chained ``hashes`` and return its node.

        The sequence is kept by reference: it may grow, but its first ``len(hashes)`` entries
        must stay as they are while anything waits below them.

        Raises:
            ValueError: ``item`` waits already, or has no hashes (nothing to share).
        """
        if item in self._node_of:
            raise ValueError(f"{item!r} waits in this forest already")
        if not hashes:
            raise ValueError(f"{item!r} has no block hashes; it cannot be placed in a forest")
        node, num_new_blocks = self._place(hashes, rank)
        if load.num_tail_tokens:
            node.members = with_item(node.members, item, load)
        else:
            node.aligned = with_item(node.aligned, item, load)
        self._node_of[item] = node
        self._grow(node, rank, load, num_new_blocks * self.block_size + load.num_tail_tokens)
        if num_new_blocks and self.observer is not None:
            self.observer.on_new_run(node)
        return node

    def remove(self, item: T, *, admitted: bool = False) -> None:
        """Take ``item`` out and drop the nodes that only it kept.

        With ``admitted`` the runs on its path count as computed from now on, and the order of
        the open path is left alone (the walk is inside it).

        Raises:
            KeyError: ``item`` does not wait here.
        """
        node = self._node_of.pop(item)
        load = node.aligned.pop(item, None) if node.aligned else None
        if load is None:
            assert node.members is not None
            load = node.members.pop(item)
        num_tokens = load.num_tail_tokens
        current: PrefixNode[T] | None = node
        while current is not None:
            if not current.computed and (admitted or current.num_waiting == 1):
                num_tokens += current.num_blocks * self.block_size
                current.computed = True
            current.num_waiting -= 1
            current.num_output_tokens -= load.num_output_tokens
            current.num_prompt_tokens -= num_tokens
            parent = current.parent
            if parent is not None:
                if current.num_waiting == 0:
                    assert parent.children is not None
                    del parent.children[current.hashes[current.start]]
                    if not parent.children:  # nor does an idle forest keep whom its heap knew
                        parent.heap = None
                    if self.observer is not None:
                        self.observer.on_removed(current)
                elif self._dynamic and not admitted:
                    self._file(current, parent)
            current = parent

    def match(self, hashes: Sequence[Hashable]) -> tuple[list[PrefixNode[T]], int]:
        """The nodes that ``hashes`` runs through from the top, and how many leading ones wait.

        The last node may be matched in part. O(depth * log blocks).
        """
        path: list[PrefixNode[T]] = []
        node, position, num_hashes = self.root, 0, len(hashes)
        while position == node.end and position < num_hashes and node.children:
            child = node.children.get(hashes[position])
            if child is None:
                break
            path.append(child)
            node, position = child, child.match_end(hashes)
        return path, position

    def key_of(self, node: PrefixNode[T]) -> Key:
        """The key of ``node`` as its figures stand now; smaller is served earlier."""
        return self._key(node)

    def best_child(self, node: PrefixNode[T]) -> PrefixNode[T]:
        """The child of ``node`` that comes first by ``key``.

        Raises:
            ValueError: ``node`` has no children.
        """
        if not node.children:
            raise ValueError("a node without children has no best child")
        heap = node.heap
        if heap is None:
            if len(node.children) == 1:
                return next(iter(node.children.values()))
            heap = self._build_heap(node)
        while True:
            key, _, child = heap[0]
            if child.num_waiting and child.parent is node and child.key is key:
                return child
            heapq.heappop(heap)

    def refresh(self, node: PrefixNode[T]) -> None:
        """Bring the order of ``node`` and its ancestors up to date after admissions below."""
        while node.parent is not None:
            if node.num_waiting:
                self._file(node, node.parent)
            node = node.parent

    def walk(self, node: PrefixNode[T] | None = None) -> Iterator[T]:
        """Every waiting item below ``node`` (default: all), depth first in order of the keys.

        Read-only and iterative (any depth); O(n log n).
        """
        stack = [self.root if node is None else node]
        while stack:
            current = stack.pop()
            yield from current.ending_here()
            stack.extend(reversed(self.ordered_children(current)))

    def ordered_children(self, node: PrefixNode[T]) -> list[PrefixNode[T]]:
        """The children of ``node`` in the order of the keys. O(n log n)."""
        return sorted((node.children or {}).values(), key=self._key)

    def _place(self, hashes: Sequence[Hashable], rank: Rank) -> tuple[PrefixNode[T], int]:
        """Find or make the node that ends exactly where ``hashes`` ends."""
        node, position, num_hashes = self.root, 0, len(hashes)
        while position < num_hashes:
            if node.children is None:
                node.children = {}
            child = node.children.get(hashes[position])
            if child is None:
                leaf = PrefixNode(hashes, position, num_hashes, node, rank)
                node.children[hashes[position]] = leaf
                return leaf, num_hashes - position
            position = child.match_end(hashes)
            node = child if position == child.end else self._split(child, position)
        return node, 0

    def _split(self, node: PrefixNode[T], at: int) -> PrefixNode[T]:
        """Cut ``node``'s run at block ``at``; return the new upper part."""
        parent = node.parent
        assert parent is not None and parent.children is not None
        upper = PrefixNode(node.hashes, node.start, at, parent, node.rank)
        upper.children = {node.hashes[at]: node}
        upper.num_waiting = node.num_waiting
        upper.num_output_tokens = node.num_output_tokens
        upper.num_prompt_tokens = node.num_prompt_tokens
        upper.computed = node.computed
        parent.children[node.hashes[node.start]] = upper
        if not node.computed:
            node.num_prompt_tokens -= (at - node.start) * self.block_size
        node.start = at
        node.parent = upper
        self._file(upper, parent)
        if self.observer is not None:
            self.observer.on_split(upper, node)
        return upper

    def _grow(self, node: PrefixNode[T], rank: Rank, load: Load, num_tokens: int) -> None:
        """Add one item's work to ``node`` and all its ancestors."""
        current: PrefixNode[T] | None = node
        while current is not None:
            current.num_waiting += 1
            current.num_output_tokens += load.num_output_tokens
            current.num_prompt_tokens += num_tokens
            parent = current.parent
            if parent is not None:
                older = rank < current.rank
                if older:
                    current.rank = rank
                if self._dynamic or older or current.num_waiting == 1:
                    self._file(current, parent)
            current = parent

    def _file(self, node: PrefixNode[T], parent: PrefixNode[T]) -> None:
        """(Re)enter ``node`` into its parent's heap, if that has been built."""
        if node.retained is not None and self.observer is not None:
            self.observer.on_reordered(node)
        heap = parent.heap
        if heap is None:
            return
        assert parent.children is not None
        if len(heap) > 2 * len(parent.children) + 64:
            self._build_heap(parent)
            return
        node.key = self._key(node)
        heapq.heappush(heap, (node.key, next(self._serial), node))

    def _build_heap(self, node: PrefixNode[T]) -> list[tuple[Key, int, PrefixNode[T]]]:
        assert node.children is not None
        for child in node.children.values():
            child.key = self._key(child)
        heap = [(child.key, next(self._serial), child) for child in node.children.values()]
        heapq.heapify(heap)
        node.heap = heap
        return heap

    def check_integrity(self) -> None:
        """Raise AssertionError where a structural promise is broken. O(size of the forest)."""
        seen: dict[T, PrefixNode[T]] = {}
        nodes = [self.root]
        for node in nodes:
            nodes.extend((node.children or {}).values())
        for node in reversed(nodes):
            self._check_node(node)
            seen.update(dict.fromkeys(node.ending_here(), node))
        assert seen == self._node_of, "items and nodes disagree"

    def _check_node(self, node: PrefixNode[T]) -> None:
        children = list((node.children or {}).items())
        loads = [*(node.aligned or {}).values(), *(node.members or {}).values()]
        own = 0 if node.computed or node.parent is None else node.num_blocks * self.block_size
        assert node.num_waiting == len(loads) + sum(c.num_waiting for _, c in children)
        assert node.num_output_tokens == (
            sum(load.num_output_tokens for load in loads)
            + sum(c.num_output_tokens for _, c in children)
        )
        assert node.num_prompt_tokens == (
            own
            + sum(load.num_tail_tokens for load in loads)
            + sum(c.num_prompt_tokens for _, c in children)
        )
        for first_hash, child in children:
            assert child.parent is node and child.start == node.end, "broken link"
            assert child.start < child.end and child.hashes[child.start] == first_hash
            assert child.num_waiting > 0, "an empty node was left behind"
            if node.heap is not None:
                assert any(c is child and k is child.key for k, _, c in node.heap), "not filed"
