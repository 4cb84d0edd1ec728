# SPDX-License-Identifier: Apache-2.0
"""Whether to hold the first of a prefix group until others of it have come.

A request whose prefix is not cached computes it for all that come while it stays cached. Those that come later compute it
again, unless the first one had waited for them. What waiting saves is learnt (``hold_value.py``): device time that is
saved is saved for everybody who runs or waits; what it costs is the wait of those who are held. While that does not pay, nobody is held.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, repeat, takewhile
from typing import Generic, TypeVar

from vllm_batchllm.admission.held_requests import HeldRequests
from vllm_batchllm.admission.hold_value import First, HoldValue

H = TypeVar("H", bound=Hashable)

LEAST_TOKENS = 64
"""Prompt tokens that are not cached, below which nobody is held for them."""

MAX_SEEN = 1 << 16
"""Prefixes that are remembered."""


def _grid() -> tuple[int, ...]:
    """Numbers of leading blocks by which a prompt is known: each is an eighth longer, so that there are few."""
    ends = accumulate(repeat(0), lambda end, _: end + max(1, end // 8), initial=1)
    return tuple(takewhile(lambda end: end < 1 << 22, ends))


GRID = _grid()


@dataclass(slots=True)
class _Group(Generic[H]):
    """Held together. first: who began it. keys: prefixes by which others find it."""

    first: First
    members: list[H] = field(default_factory=list)
    keys: list[Hashable] = field(default_factory=list)


class GroupRelease(Generic[H]):
    """Holds prefix groups.

    Args:
        max_hold_s: longest hold, seconds. tokens_per_hash: tokens of a block hash. wait_weight: as in `HoldValue`.
    """

    def __init__(self, max_hold_s: float, tokens_per_hash: int, wait_weight: float = 1.0) -> None:
        self.held: HeldRequests[H] = HeldRequests(max_hold_s)
        self.num_groups = 0
        """Released so far."""
        self.num_saved_tokens = 0
        """Prompt tokens that those who joined a held group shared with it and had not found in the cache."""
        self._tokens_per_hash = tokens_per_hash
        self.value: HoldValue[H] = HoldValue(max_hold_s, wait_weight)
        self._seen: OrderedDict[Hashable, First] = OrderedDict()
        self._groups: dict[H, _Group[H]] = {}
        self._by_key: dict[Hashable, _Group[H]] = {}

    def arrived(
        self,
        request: H,
        hashes: Sequence[Hashable],
        num_cached: int,
        now_s: float,
        *,
        token_s: float,
        num_present: int,
    ) -> bool:
        """Whether ``request`` is held; :meth:`due` gives it back then. O(log blocks).

        Args:
            hashes: chained, of its blocks. num_cached: of these, leading ones that are cached.
            token_s: device time of a prompt token, seconds. num_present: requests that run or wait.
        """
        self.held.tick(now_s)
        self.value.settle(now_s)
        ends = GRID[: bisect_right(GRID, len(hashes))]
        missing = [end for end in ends if end > num_cached]
        group = self._joined(request, hashes, missing, num_cached)
        if group is None:
            follows = self._followed(request, hashes, ends, now_s)
            uncached = (len(hashes) - num_cached) * self._tokens_per_hash
            if follows or uncached < LEAST_TOKENS:
                return False
            first = self._began(hashes, missing, now_s, token_s, num_present)
            if first.is_control:
                return False
            group = _Group(first)
        self._hold(request, group, [hashes[end - 1] for end in missing], now_s)
        return True

    def admitted(self, request: H, num_hit_tokens: int) -> None:
        """``request``, held or not, starts for the first time, with so many tokens from the cache."""
        self.value.admitted(request, num_hit_tokens)

    def due(self, now_s: float, *, is_idle: bool) -> list[H]:
        """Who is released now. is_idle: nobody runs or waits, so that nobody gains by a longer hold."""
        self.held.tick(now_s)
        released: list[H] = []
        while self.held and (is_idle or self.held.is_overdue()):
            group = self._groups[next(iter(self.held))]
            self._let_go(group)
            self.num_groups += 1
            released += group.members
            for member in group.members:
                self.held.remove(member)
        return released

    def left(self, request: H) -> None:
        """``request``, held or not, has been aborted before it was admitted."""
        self.value.left(request)
        if request not in self.held:
            return
        self.held.remove(request)
        group = self._groups.pop(request)
        group.members.remove(request)
        if not group.members:
            self._let_go(group)

    def _joined(
        self, request: H, hashes: Sequence[Hashable], ends: Sequence[int], num_cached: int
    ) -> _Group[H] | None:
        """The held group with which ``request`` shares most, if any."""
        if not self._by_key:
            return None
        for end in reversed(ends):
            group = self._by_key.get(hashes[end - 1])
            if group is not None:
                self.num_saved_tokens += (end - num_cached) * self._tokens_per_hash
                self.value.follows(request, group.first, end * self._tokens_per_hash)
                return group
        return None

    def _followed(
        self, request: H, hashes: Sequence[Hashable], ends: Sequence[int], now_s: float
    ) -> bool:
        """Whether one has begun a part of this not long ago."""
        for end in reversed(ends):
            first = self._seen.get(hashes[end - 1])
            if first is not None:
                if not self.value.is_followed(first, now_s):
                    return False
                self.value.follows(request, first, end * self._tokens_per_hash)
                return True
        return False

    def _began(
        self,
        hashes: Sequence[Hashable],
        ends: Sequence[int],
        now_s: float,
        token_s: float,
        num_present: int,
    ) -> First:
        """Remember a first one by its prefixes."""
        first = self.value.began(now_s, token_s, num_present)
        for end in ends:
            key = hashes[end - 1]
            self._seen[key] = first
            self._seen.move_to_end(key)
        while len(self._seen) > MAX_SEEN:
            self._seen.popitem(last=False)
        return first

    def _hold(self, request: H, group: _Group[H], keys: list[Hashable], now_s: float) -> None:
        self.held.add(request, now_s)
        self._groups[request] = group
        group.members.append(request)
        for key in keys:
            if self._by_key.setdefault(key, group) is group:
                group.keys.append(key)

    def _let_go(self, group: _Group[H]) -> None:
        """Nobody joins ``group`` any more."""
        for key in group.keys:
            self._by_key.pop(key, None)
        for member in group.members:
            self._groups.pop(member, None)

    def check_integrity(self) -> None:
        """Raise AssertionError where a structural promise is broken. O(held)."""
        assert set(self._groups) == set(self.held), (
            "a held request belongs to no group, or one that left does"
        )
        for request, group in self._groups.items():
            assert request in group.members, "a group does not know its member"
        for key, group in self._by_key.items():
            assert group.members and key in group.keys, "a prefix leads to nobody"
