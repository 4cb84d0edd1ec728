# SPDX-License-Identifier: Apache-2.0
"""A replica as its driver sees it: an engine somewhere that can be given work, asked for answers, and be gone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

Given = tuple[int, Any]
"""The number of an item, and what the engine needs to compute it."""


@dataclass(frozen=True, slots=True)
class Capacity:
    """How much a started engine takes. max_num_seqs: requests that it can run at once.

    sees_input: it reads the input itself, where that is a file.
    """

    max_num_seqs: int
    sees_input: bool = False

    @property
    def least_waiting(self) -> int:
        """So many requests wait at it at any time, so that no step starts with too few before more have come."""
        return max(8, self.max_num_seqs // 8)

    @property
    def most_in_flight(self) -> int:
        """It is never told of more."""
        return 4 * self.max_num_seqs


@dataclass(frozen=True, slots=True)
class Taken:
    """What has happened at a replica since it was asked last.

    answers: numbers of items with their answers. num_running: requests that it computes now. life: changes with every step.
    figures: totals since it was started.
    """

    answers: Sequence[Given]
    num_running: int = 0
    life: int = 0
    figures: Mapping[str, float] = field(default_factory=dict)


class ReplicaGoneError(RuntimeError):
    """The replica has died, hangs, or could not be started; what it was given is lost."""


class NoPlaceError(ReplicaGoneError):
    """There is no machine for the replica now; there may be one later."""


class Replica(Protocol):
    """One engine. Every method but `end` raises ReplicaGoneError once it is gone, and none waits for ever."""

    @property
    def name(self) -> str:
        """What people call it."""

    async def start(self) -> Capacity:
        """Start its engine, anew if it is gone."""

    async def give(self, given: Sequence[Given]) -> None:
        """Hand items over."""

    async def take(self) -> Taken:
        """What has happened; waits a moment if nothing has."""

    async def release(self) -> None:
        """The batch is over, and needs it no more."""

    async def end(self) -> None:
        """End it, in whatever state it is."""
