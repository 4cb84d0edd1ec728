# SPDX-License-Identifier: Apache-2.0
"""Several replicas as plain values: how many, how fast, how far they look ahead, and what came of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from vllm_batchllm.errors import UsageError
from vllm_batchllm.replicas.assignment import waiting_limit
from vllm_batchllm.simulate.arms import Arm
from vllm_batchllm.simulate.placement import OURS_PLACED, check_placement
from vllm_batchllm.simulate.sizes import EngineSizes

MOST_REPLICAS = 1024
"""All run in one process; a slip of the keyboard is refused before it fills the memory."""
_LEAST_STEPS = 2
_FEWEST = 8


@dataclass(frozen=True, slots=True)
class Pool:
    """Replicas that share a batch.

    placement: who gets which requests (`placement.py`). slowest_speed: of the first replica; the others run at 1. lockstep: all make
    every step together.

    Raises:
        UsageError: a figure out of range, or an unknown placement.
    """

    num_replicas: int = 1
    placement: str = OURS_PLACED
    slowest_speed: float = 1.0
    lockstep: bool = False

    def __post_init__(self) -> None:
        check_placement(self.placement)
        if not 1 <= self.num_replicas <= MOST_REPLICAS:
            raise UsageError(
                f"the number of replicas must be from 1 to {MOST_REPLICAS:,}, not {self.num_replicas:,}"
            )
        if not 0 < self.slowest_speed <= 1:
            raise UsageError(
                "the speed of the slowest replica must be above 0 and at most 1, which is that of the "
                f"others, not {self.slowest_speed:g}"
            )

    def row_of(self, arm: Arm) -> str:
        """What a run of `arm` is called."""
        return f"{arm.name}, {self.placement}"

    @property
    def speeds(self) -> list[float]:
        """Of each replica, 1 as the costs say."""
        return [self.slowest_speed, *[1.0] * (self.num_replicas - 1)]

    @property
    def capacity(self) -> float:
        """As so many replicas of speed 1."""
        return math.fsum(self.speeds)


def pools_of(
    num_replicas: int,
    placements: Sequence[str] | None,
    slowest_speed: float | None,
    lockstep: bool,
) -> list[Pool]:
    """One for each placement; None for what was not asked for. Raises UsageError."""
    if num_replicas == 1:
        asked = {
            "--placement": None if placements is None else ", ".join(placements),
            "--slowest-speed": slowest_speed,
            "--lockstep": "" if lockstep else None,
        }
        for name, value in asked.items():
            if value is not None:
                shown = f"{name} {value}".strip()
                raise UsageError(f"{shown} is for several replicas; give --replicas, too")
        return [Pool()]
    speed = 1.0 if slowest_speed is None else slowest_speed
    names = dict.fromkeys(placements or [OURS_PLACED])
    return [Pool(num_replicas, name, speed, lockstep) for name in names]


@dataclass(frozen=True, slots=True)
class Window:
    """How many requests may wait at a replica, beside those that run.

    least: always let in. most: never more, those that run included. num_sharing: replicas that take from each other; 0 where
    nobody does, and nothing has to be kept back.
    """

    least: int
    most: int
    num_sharing: int

    @classmethod
    def of(cls, sizes: EngineSizes, arm: Arm, num_sharing: int, new_tokens: float) -> Window:
        """For an engine whose requests compute ``new_tokens`` prompt tokens each, in the mean.

        At most four times what can run, as a job's window has it (`jobs/feed.py`). At least what two steps can start: one is put
        together while the other runs, and nobody is told of more than that before his turn, since what a replica knows of is
        not for others to take. A bound that the user has set stands for both.
        """
        own = sizes.of(arm)
        if sizes.max_waiting is not None:
            return cls(sizes.max_waiting, sizes.max_waiting, num_sharing)
        started = math.ceil(_LEAST_STEPS * own.max_num_batched_tokens / max(new_tokens, 1.0))
        least = min(max(started, _FEWEST), own.max_num_seqs)
        return cls(least, 4 * own.max_num_seqs, num_sharing)

    def limit(self, num_left: int, num_running: int) -> int:
        """Requests that may wait at a replica that runs ``num_running``, where nobody was told of ``num_left``."""
        most = self.least if self.most == self.least else max(self.most - num_running, self.least)
        if not self.num_sharing:
            return most
        return waiting_limit(num_left, self.num_sharing, self.least, most)


@dataclass(frozen=True, slots=True)
class PoolFigures:
    """What several replicas did.

    duplicated_tokens: prompt tokens that were best possible computed by one replica, once, and here by several: what each could
    save of its own requests at best, together, against one that has the whole batch. optimal_duplicated_tokens: the same of the
    cheapest cut into as many parts of near equal work; None for placements that cut elsewhere. thefts: times that a replica took
    from another. idle_ratio: share of the makespan in which a replica did nothing, in the mean. ends_s, num_requests: of each replica.
    """

    num_replicas: int
    placement: str
    slowest_speed: float
    duplicated_tokens: int
    optimal_duplicated_tokens: int | None
    thefts: int
    idle_ratio: float
    ends_s: Sequence[float] = ()
    num_requests: Sequence[int] = ()
