# SPDX-License-Identifier: Apache-2.0
"""Groups of a large batch that are worth most, from what neighbours share in the order of their prefixes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from vllm_batchllm.plan.groups import SharedPrefix


@dataclass(slots=True)
class _Open:
    """A group that is not over yet: what its members share, its first place, the best choice among groups inside it."""

    depth: int
    first: int
    worth: int = 0
    chosen: list[tuple[int, int, int]] = field(default_factory=list)

    def add(self, other: _Open) -> None:
        self.worth += other.worth
        self.chosen += other.chosen

    def close(self, end: int) -> None:
        """Choose the group itself, or those inside it, whichever saves more."""
        own = (end - self.first - 1) * self.depth
        if own and own >= self.worth:
            self.worth, self.chosen = own, [(self.depth, self.first, end)]


def text_groups(shared: Sequence[int]) -> list[SharedPrefix]:
    """The best single-level choice of groups, the most valuable first; a member is a place in the order.

    shared: for each place in the order of prefixes, what its line shares with the one before it, in bytes.
    O(places * levels inside each other).
    """
    root = _Open(0, 0)
    stack = [root]
    for place in range(1, len(shared) + 1):
        depth = shared[place] if place < len(shared) else 0
        inner = _Open(depth, place - 1)
        while stack[-1].depth > depth:
            ended = stack.pop()
            ended.close(place)
            inner.first = ended.first
            (stack[-1] if stack[-1].depth >= depth else inner).add(ended)
        if stack[-1].depth < depth:
            stack.append(inner)
    groups = [
        SharedPrefix(0, 0, depth, end - first, (end - first - 1) * depth, first)
        for depth, first, end in root.chosen
    ]
    return sorted(groups, key=lambda group: -group.saved_tokens)
