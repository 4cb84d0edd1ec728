# SPDX-License-Identifier: Apache-2.0
"""Which requests share what: the groups of a batch that are worth most.

A node of the radix forest is a group: the requests below it share the blocks down to its end.
Two views are given. In the flat one every request belongs to at most one group, and the groups
are chosen so that together they save the most. In the nested one every node stands for itself
and counts only its own run of blocks, so that the sum over all nodes is the best possible.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush, nlargest
from itertools import count, pairwise

from vllm_batchllm.prefix.best_saving import TOKEN_BYTES, pack_tokens, shared_blocks
from vllm_batchllm.prefix.forest import PrefixForest
from vllm_batchllm.prefix.groups import disjoint_nodes
from vllm_batchllm.prefix.node import PrefixNode

Node = PrefixNode[int]


@dataclass(frozen=True, slots=True)
class SharedPrefix:
    """A prefix that at least two requests share.

    Attributes:
        level: how many wider groups enclose it, 0 in the flat view.
        start, end: the run of tokens that sets it apart; it shares those before with others.
        num_members: requests that share it.
        saved_tokens: tokens its members need not compute (nested view: of the run alone).
        member: index of a request that has it.
    """

    level: int
    start: int
    end: int
    num_members: int
    saved_tokens: int
    member: int


class SharingTree:
    """The forest over all requests of a batch, with the worth of each node.

    Args:
        lengths: prompt tokens of each request.
        hashes: chained hashes of the full blocks of each request.
        block_size: tokens per block.
    """

    def __init__(
        self, lengths: Sequence[int], hashes: Sequence[Sequence[bytes]], block_size: int
    ) -> None:
        self._block_size = block_size
        self._lengths = lengths
        forest: PrefixForest[int] = PrefixForest(block_size)
        for index, chain in enumerate(hashes):
            if chain:
                forest.insert(index, chain, index)
        self._root = forest.root
        self._nodes = [node for node in _top_down(forest.root) if _is_shared(node)]

    def flat(self) -> list[SharedPrefix]:
        """Return the groups of the best single-level choice, the most valuable first.

        Groups that enclose one another are left out: `disjoint_nodes` says what is chosen.
        """
        chosen = disjoint_nodes(self._nodes, lambda node: self._saved(node, 0))
        groups = [self._prefix(node, 0, self._saved(node, 0)) for node in chosen]
        return sorted(groups, key=lambda group: -group.saved_tokens)

    def nested(self, top: int) -> list[SharedPrefix]:
        """Return the `top` most valuable nodes below the nodes that enclose them, depth first."""
        worth = {node: self._saved(node, node.start) for node in self._nodes}
        shown: dict[Node, int] = {}
        for node in sorted(self._nodes, key=lambda node: -worth[node])[:top]:
            if worth[node]:
                shown.update((above, level) for level, above in enumerate(_path(node)))
        total = dict(worth)
        for node in reversed(self._nodes):
            if node.parent in total:
                total[node.parent] += total[node]
        return self._rows(shown, worth, lambda node: total[node])

    def widest(self, top: int, max_depth: int, max_width: int) -> list[SharedPrefix]:
        """Return the `top` nodes with most members, depth first, within a frame.

        At most `max_depth` levels are entered, and of the nodes beside each other at most
        `max_width` kept. Only what is kept and its children are looked at, so prompts that nest
        at any depth cost no more.
        """
        shown: dict[Node, int] = {}
        serial = count()
        heap: list[tuple[int, int, int, Node]] = []

        def offer(node: Node, level: int) -> None:
            shared = filter(_is_shared, _children(node))
            for child in nlargest(max_width, shared, key=lambda child: child.num_waiting):
                heappush(heap, (-child.num_waiting, next(serial), level, child))

        offer(self._root, 0)
        while heap and len(shown) < top:
            _, _, level, node = heappop(heap)
            shown[node] = level
            if level + 1 < max_depth:
                offer(node, level + 1)
        worth = {node: self._saved(node, node.start) for node in shown}
        return self._rows(shown, worth, lambda node: node.num_waiting)

    def _rows(
        self, shown: Mapping[Node, int], worth: Mapping[Node, int], key: Callable[[Node], int]
    ) -> list[SharedPrefix]:
        """The shown nodes depth first, of those beside each other the one with most `key` first."""
        rows = []
        stack = [self._root]
        while stack:
            node = stack.pop()
            if node in shown:
                rows.append(self._prefix(node, shown[node], worth[node]))
            children = [child for child in _children(node) if child in shown]
            stack.extend(sorted(children, key=lambda child: -key(child))[::-1])
        return rows

    def _saved(self, node: Node, start: int) -> int:
        """Return the tokens that all members but the first need not compute, from a block on.

        A prompt that ends with the node must still compute its last block, except for the
        first such prompt, which can be the one that computes it for all.
        """
        end = node.end * self._block_size
        num_ending = sum(self._lengths[index] == end for index in node.ending_here())
        blocks = (node.num_waiting - 1) * (node.end - start) - max(num_ending - 1, 0)
        return blocks * self._block_size

    def _prefix(self, node: Node, level: int, saved_tokens: int) -> SharedPrefix:
        return SharedPrefix(
            level=level,
            start=node.start * self._block_size,
            end=node.end * self._block_size,
            num_members=node.num_waiting,
            saved_tokens=saved_tokens,
            member=_any_member(node),
        )


def _is_shared(node: Node) -> bool:
    return node.parent is not None and node.num_waiting > 1


def _children(node: Node) -> Iterator[Node]:
    return iter((node.children or {}).values())


def _top_down(root: Node) -> list[Node]:
    """Return all nodes, each behind its parent. Iterative: prompts may nest at any depth."""
    nodes = [root]
    for node in nodes:
        nodes.extend(_children(node))
    return nodes


def _path(node: Node) -> list[Node]:
    """Return the shared nodes from the widest group down to `node`."""
    path = []
    current: Node | None = node
    while current is not None and current.parent is not None:
        path.append(current)
        current = current.parent
    return path[::-1]


def _any_member(node: Node) -> int:
    while (member := next(node.ending_here(), None)) is None:
        node = next(_children(node))
    return member


def departures(groups: Sequence[SharedPrefix], prompts: Sequence[Sequence[int]]) -> list[int]:
    """Return for each group the token at which its prefix departs from those of the others.

    That is where it begins to tell something: a system prompt is often the same for all, but
    too short or too unaligned for a level of its own. At the earliest, it is the group's start.
    """
    prefixes = [pack_tokens(prompts[group.member][: group.end]) for group in groups]
    order = sorted(range(len(groups)), key=prefixes.__getitem__)
    starts = [group.start for group in groups]
    for one, other in pairwise(order):
        departure = shared_blocks(prefixes[one], prefixes[other], TOKEN_BYTES)
        for index in (one, other):
            if departure < groups[index].end:
                starts[index] = max(starts[index], departure)
    return starts


def preview(
    tokens: Sequence[int], start: int, end: int, decode: Callable[[Sequence[int]], str]
) -> str:
    """Return the first 60 characters of tokens `start` to `end`, on one line and printable.

    An ellipsis in front says that the prefix starts earlier.
    """
    width = 60
    # A token is seldom less than a quarter of a character; what is behind would be cut anyway.
    text = decode(list(tokens[start : min(end, start + 4 * width)]))
    text = " ".join("".join(char if char.isprintable() else " " for char in text).split())
    text = "…" + text if start else text
    return text if len(text) <= width else text[: width - 1] + "…"
