# SPDX-License-Identifier: Apache-2.0
"""The order of admission by brute force: one trie entry per block, recomputed at every step."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

Path = tuple[int, ...]


@dataclass(eq=False)
class Item:
    """A stand-in for a request: ``path`` is one symbol per block, hashes are chained."""

    name: int
    path: Path
    tail: int = 0
    max_tokens: int = 1
    block_size: int = 4
    skip_reading_prefix_cache: bool = False
    resumable: bool = False
    block_hashes: list[Path] = field(init=False)

    def __post_init__(self) -> None:
        self.block_hashes = [self.path[: end + 1] for end in range(len(self.path))]

    @property
    def num_tokens(self) -> int:
        return len(self.path) * self.block_size + self.tail

    def __repr__(self) -> str:
        return f"Item({self.name}, {self.path})"


class OrderOracle:
    """What :class:`GroupQueue` promises, without any clever structure."""

    def __init__(self, ratio: bool) -> None:
        self.ratio = ratio
        self.ranks: dict[Item, int] = {}
        self.prefix_rank: dict[Path, int] = {}
        self.computed: set[Path] = set()
        self.position: Path = ()
        self.returned: list[Item] = []

    def below(self, prefix: Path) -> list[Item]:
        return [item for item in self.ranks if item.path and item.path[: len(prefix)] == prefix]

    def add(self, item: Item, rank: int) -> None:
        self.ranks[item] = rank
        for end in range(1, len(item.path) + 1):
            prefix = item.path[:end]
            self.prefix_rank[prefix] = min(rank, self.prefix_rank.get(prefix, rank))

    def requeue(self, item: Item) -> None:
        self.returned.insert(0, item)

    def remove(self, item: Item, admitted: bool = False) -> None:
        if item in self.returned:
            self.returned.remove(item)
            return
        del self.ranks[item]
        for end in range(1, len(item.path) + 1):
            prefix = item.path[:end]
            if admitted:
                self.computed.add(prefix)
            if not self.below(prefix):
                del self.prefix_rank[prefix]
                self.computed.discard(prefix)
        while self.position and not self.below(self.position):
            self.position = self.position[:-1]

    def key(self, prefix: Path) -> Any:
        items = self.below(prefix)
        if not self.ratio:
            return self.prefix_rank[prefix]
        blocks = {
            item.path[:end]
            for item in items
            for end in range(len(prefix), len(item.path) + 1)
            if item.path[:end] not in self.computed
        }
        tokens = 4 * len(blocks) + sum(item.tail for item in items)
        output = sum(item.max_tokens for item in items)
        return (-output / max(tokens, 1), self.prefix_rank[prefix])

    def lone_key(self, item: Item) -> Any:
        rank = self.ranks[item]
        return (-item.max_tokens / max(item.num_tokens, 1), rank) if self.ratio else rank

    def peek(self) -> Item:
        if self.returned:
            return self.returned[0]
        if not self.position:
            lone = min((i for i in self.ranks if not i.path), key=self.ranks.get, default=None)
            trees = {item.path[:1] for item in self.ranks if item.path}
            first = min(trees, key=self.key, default=None)
            if lone and (first is None or self.lone_key(lone) < self.key(first)):
                return lone
        while True:
            items = self.below(self.position)
            here = [item for item in items if item.path == self.position]
            if here:
                arrivals = list(self.ranks)
                return min(here, key=lambda item: (item.tail > 0, arrivals.index(item)))
            depth = len(self.position) + 1
            self.position = min({item.path[:depth] for item in items}, key=self.key)
