# SPDX-License-Identifier: Apache-2.0
"""What holding the first of a prefix group has saved so far: those that were held against a control that was not.

A request *begins* something if its prefix is neither cached nor asked for by another one lately; those that share it and come
within the longest hold *follow*. What counts is what followers compute although the first one has computed it, and that is
seen when they are admitted: that a prefix is not cached when they come says nothing, as the first one may just be waiting.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

H = TypeVar("H", bound=Hashable)

CONTROL_EVERY = 8
"""One of so many first ones is not held, so that what holding saves is seen."""

LEAST_CONTROL = 16
"""First ones that were not held before anybody is."""

FORGET = 0.98
"""Weight that a first one loses with every later one."""

LEAST_WEIGHT = (1 - FORGET**LEAST_CONTROL) / (1 - FORGET) - 1e-9
"""What `LEAST_CONTROL` of them weigh."""

TRIAL = 4.0
"""First ones that are taken to lose nothing when held, beside those that were: until it is seen, and again once that is forgotten."""

LONGEST_S = 60.0
"""Seconds after which a first one is counted although followers of it still wait."""


@dataclass(slots=True)
class First:
    """A request that began something. is_control: it was not held. tokens: that followers computed again; followers: how many there
    were; waiting: how many of them have not been admitted."""

    came_s: float
    is_control: bool
    tokens: int = 0
    followers: int = 0
    waiting: int = 0


@dataclass(slots=True)
class _Tally:
    """Sums over first ones, the latest counting most."""

    weight: float = 0.0
    tokens: float = 0.0
    followers: float = 0.0

    def add(self, first: First | None) -> None:
        """One more, or None where it was of the other kind."""
        self.weight *= FORGET
        self.tokens *= FORGET
        self.followers *= FORGET
        if first is not None:
            self.weight += 1
            self.tokens += first.tokens
            self.followers += first.followers


class HoldValue(Generic[H]):
    """Learns it.

    Args:
        max_hold_s: longest hold, seconds.
        wait_weight: what a second that a held request waits counts against one by which everybody's waiting is shortened.
    """

    def __init__(self, max_hold_s: float, wait_weight: float = 1.0) -> None:
        self._max_hold_s, self._wait_weight = max_hold_s, wait_weight
        self._open: deque[First] = deque()
        self._control, self._held = _Tally(), _Tally()
        self._following: dict[H, tuple[First, int]] = {}
        self._num_firsts = 0

    def began(self, now_s: float, token_s: float, num_present: int) -> First:
        """A request begins something; whether it is held is decided here.

        Args:
            token_s: device time of a prompt token, seconds. num_present: requests that run or wait.
        """
        is_control = not self.pays(token_s, num_present) or self._is_turn_of_control()
        first = First(now_s, is_control)
        self._open.append(first)
        return first

    def is_followed(self, first: First, now_s: float) -> bool:
        """Whether who comes now follows `first`."""
        return 0 <= now_s - first.came_s <= self._max_hold_s

    def follows(self, request: H, first: First, num_shared_tokens: int) -> None:
        """`request` follows, and shares so many tokens."""
        first.followers += 1
        first.waiting += 1
        self._following[request] = first, num_shared_tokens

    def admitted(self, request: H, num_hit_tokens: int) -> None:
        """`request` starts, with so many tokens from the cache. O(1), also for one that follows nobody."""
        found = self._following.pop(request, None)
        if found is not None:
            first, num_shared_tokens = found
            first.waiting -= 1
            first.tokens += max(num_shared_tokens - num_hit_tokens, 0)

    def left(self, request: H) -> None:
        """`request` was aborted."""
        found = self._following.pop(request, None)
        if found is not None:
            found[0].waiting -= 1

    def settle(self, now_s: float) -> None:
        """Count those whom nobody can follow any more. O(1) amortised."""
        while self._open:
            first = self._open[0]
            waits = first.waiting and 0 <= now_s - first.came_s <= LONGEST_S
            if self.is_followed(first, now_s) or waits:
                return
            self._open.popleft()
            self._control.add(first if first.is_control else None)
            self._held.add(None if first.is_control else first)

    @property
    def saved_tokens(self) -> float:
        """Prompt tokens that holding a first one can be expected to save."""
        if not self._control.weight:
            return 0.0
        lost_if_held = self._held.tokens / (self._held.weight + TRIAL)
        return self._control.tokens / self._control.weight - lost_if_held

    def pays(self, token_s: float, num_present: int) -> bool:
        """Whether device time saved for all is worth more than the waiting of those held."""
        control = self._control
        if control.weight < LEAST_WEIGHT and not self._held.weight:
            return False
        num_held = 1 + control.followers / max(control.weight, 1e-9)
        cost_s = self._wait_weight * num_held * self._max_hold_s
        return self.saved_tokens * token_s * num_present > cost_s

    def _is_turn_of_control(self) -> bool:
        self._num_firsts += 1
        return self._num_firsts % CONTROL_EVERY == 0
