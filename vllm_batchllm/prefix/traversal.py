# SPDX-License-Identifier: Apache-2.0
"""A depth-first walk over a forest that changes while it is walked.

The open group is the subtree the walk stands in. It is finished before any other is opened, so
arrivals that belong to it are served while its prefix is still in the cache.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from itertools import pairwise
from typing import Generic, TypeVar

from vllm_batchllm.prefix.forest import PrefixForest
from vllm_batchllm.prefix.node import PrefixNode

T = TypeVar("T", bound=Hashable)


class DepthFirstWalk(Generic[T]):
    """Serves the items of ``forest`` group by group.

    At every node: first what ends there (it is a prefix of the rest), aligned prompts before
    others, each in order of arrival;
    then the children in the order of the forest's key.
    """

    def __init__(self, forest: PrefixForest[T]) -> None:
        self._forest = forest
        self._cursor: PrefixNode[T] = forest.root

    @property
    def group(self) -> PrefixNode[T] | None:
        """The innermost open node below which something waits; None between two groups."""
        self._climb()
        return None if self._cursor.parent is None else self._cursor

    def peek(self) -> T:
        """The next item; opens its group. Raises IndexError when nothing waits."""
        if not self._forest:
            raise IndexError("peek from an empty forest")
        self._climb()
        node = self._cursor
        while (item := next(node.ending_here(), None)) is None:
            node = self._forest.best_child(node)
        self._cursor = node
        return item

    def next_root(self) -> PrefixNode[T]:
        """The tree that would be opened next if no group were open.

        Raises:
            ValueError: nothing waits.
        """
        return self._forest.best_child(self._forest.root)

    def jump(self, item: T) -> None:
        """Open ``item``'s group now, whatever group is open. Raises KeyError if unknown."""
        node = self._forest.node_of(item)
        if node is not self._cursor:
            self._forest.refresh(self._cursor)
            self._cursor = node

    def rest_of_tree(self) -> tuple[PrefixNode[T] | None, Iterator[T]]:
        """The open tree (child of the root) and what it will still serve if nothing arrives.

        Read-only. Between two groups: (None, nothing).
        """
        self._climb()
        path = [self._cursor]
        while path[-1].parent is not None:
            path.append(path[-1].parent)
        if len(path) == 1:
            return None, iter(())
        return path[-2], self._rest(path[:-1])

    def _rest(self, path: list[PrefixNode[T]]) -> Iterator[T]:
        yield from self._forest.walk(path[0])
        for done, node in pairwise(path):
            yield from node.ending_here()
            for child in self._forest.ordered_children(node):
                if child is not done:
                    yield from self._forest.walk(child)

    def _climb(self) -> None:
        node = self._cursor
        while node.num_waiting == 0 and node.parent is not None:
            node = node.parent
        self._cursor = node

    def check_integrity(self) -> None:
        """Raise AssertionError where the walk has lost its forest."""
        node = self._cursor
        while node.parent is not None:
            node = node.parent
        assert node is self._forest.root, "the cursor left the forest"
