# SPDX-License-Identifier: Apache-2.0
"""Whether to hold the first of a prefix group until others of it have come.

A request whose prefix is not cached computes it for all that come while it stays cached. Those that come later compute it
again, unless the first one had waited for them. What waiting saves is learnt from requests that were not held, the *control*:
prompt tokens that others had to compute again within the longest hold. Device time that is saved is saved for everybody
who runs or waits; what it costs is the wait of those who are held. While that does not pay, nobody is held.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, repeat, takewhile
from typing import Generic, TypeVar

from vllm_batchllm.admission.held_requests import HeldRequests

H = TypeVar("H", bound=Hashable)

LEAST_TOKENS = 64
"""Prompt tokens that are not cached, below which nobody is held for them."""

CONTROL_EVERY = 8
"""One of so many first ones is not held, so that what holding saves is seen."""

LEAST_CONTROL = 16
"""First ones that were not held before anybody is."""

FORGET = 0.98
"""Weight that a first one loses with every later one."""

MAX_SEEN = 1 << 16
"""Prefixes that are remembered."""


def _grid() -> tuple[int, ...]:
    """Numbers of leading blocks by which a prompt is known: each is an eighth longer, so that there are few."""
    ends = accumulate(repeat(0), lambda end, _: end + max(1, end // 8), initial=1)
    return tuple(takewhile(lambda end: end < 1 << 22, ends))


GRID = _grid()


@dataclass(slots=True)
class _First:
    """A request that began something new. came_s: when. is_control: it was not held; gathered: tokens that others had to
    compute again, and how many others there were."""

    came_s: float
    is_control: bool
    tokens: int = 0
    followers: int = 0


@dataclass(slots=True)
class _Group(Generic[H]):
    """Held together. keys: prefixes by which others find it."""

    due_s: float
    members: list[H] = field(default_factory=list)
    keys: list[Hashable] = field(default_factory=list)


class GroupRelease(Generic[H]):
    """Holds prefix groups.

    Args:
        max_hold_s: longest hold, seconds. tokens_per_hash: tokens of a block hash.
    """

    def __init__(self, max_hold_s: float, tokens_per_hash: int) -> None:
        self.held: HeldRequests[H] = HeldRequests(max_hold_s)
        self.num_groups = 0
        """Released so far."""
        self.num_saved_tokens = 0
        """Prompt tokens that those who joined a held group shared with it and had not found in the cache."""
        self._tokens_per_hash = tokens_per_hash
        self._seen: OrderedDict[Hashable, _First] = OrderedDict()
        self._control: OrderedDict[int, _First] = OrderedDict()
        self._num_firsts = 0
        self._weight = self._tokens = self._followers = 0.0
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
        self._settle(now_s)
        ends = [end for end in GRID[: bisect_right(GRID, len(hashes))] if end > num_cached]
        group = self._joined(request, hashes, ends, num_cached)
        if group is None:
            follows = self._followed(hashes, ends, num_cached, now_s)
            uncached = (len(hashes) - num_cached) * self._tokens_per_hash
            if follows or uncached < LEAST_TOKENS:
                return False
            is_control = not self._pays(token_s, num_present) or self._is_turn_of_control()
            first = self._began(hashes, ends, is_control, now_s)
            if first.is_control:
                return False
            group = _Group(now_s + self.held.max_hold_s)
        self._hold(request, group, [hashes[end - 1] for end in ends], now_s)
        return True

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
        """``request`` was held, and has been aborted."""
        self.held.remove(request)
        group = self._groups.pop(request)
        group.members.remove(request)
        if not group.members:
            self._let_go(group)

    @property
    def saved_tokens_of_hold(self) -> float:
        """Prompt tokens that holding a first one can be expected to save."""
        return self._tokens / self._weight if self._weight else 0.0

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
                return group
        return None

    def _followed(
        self, hashes: Sequence[Hashable], ends: Sequence[int], num_cached: int, now_s: float
    ) -> bool:
        """Whether one that was not held has computed a part of this already, not long ago."""
        for end in reversed(ends):
            first = self._seen.get(hashes[end - 1])
            if first is not None:
                if not 0 <= now_s - first.came_s <= self.held.max_hold_s:
                    return False
                first.tokens += (end - num_cached) * self._tokens_per_hash
                first.followers += 1
                return True
        return False

    def _began(
        self, hashes: Sequence[Hashable], ends: Sequence[int], is_control: bool, now_s: float
    ) -> _First:
        """Remember a first one by its prefixes."""
        first = _First(now_s, is_control)
        for end in ends:
            key = hashes[end - 1]
            self._seen[key] = first
            self._seen.move_to_end(key)
        while len(self._seen) > MAX_SEEN:
            self._seen.popitem(last=False)
        if is_control:
            self._control[id(first)] = first
        return first

    def _settle(self, now_s: float) -> None:
        """Count first ones of the control nobody can follow any more."""
        while self._control:
            key, first = next(iter(self._control.items()))
            if 0 <= now_s - first.came_s <= self.held.max_hold_s:
                return
            del self._control[key]
            self._weight = FORGET * self._weight + 1
            self._tokens = FORGET * self._tokens + first.tokens
            self._followers = FORGET * self._followers + first.followers

    def _pays(self, token_s: float, num_present: int) -> bool:
        """Whether device time saved for all is worth more than the waiting of those held."""
        if self._weight < LEAST_CONTROL * FORGET**LEAST_CONTROL:
            return False
        num_held = 1 + self._followers / self._weight
        gain_s = self.saved_tokens_of_hold * token_s * num_present
        return gain_s > num_held * self.held.max_hold_s

    def _is_turn_of_control(self) -> bool:
        self._num_firsts += 1
        return self._num_firsts % CONTROL_EVERY == 0

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
