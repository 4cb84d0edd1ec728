# SPDX-License-Identifier: Apache-2.0
"""Whether and how starts are paced, kept up to date as work comes and goes.

Only lives of known length are looked at: a guess would make all look alike, and pace them as if they were.
Time is counted in steps; nothing here reads a clock.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from vllm_batchllm.admission.memory_model import MemoryModel
from vllm_batchllm.admission.pacing import LatestLifetimes, MeanLifetime, StaggeredStart
from vllm_batchllm.admission.preemption_price import is_worth_starting
from vllm_batchllm.admission.request_lifetime import RequestLifetime

ENOUGH_LIVES = 8
"""Lives seen before they are planned with: the first member of a group brings its prefix, so
fewer would make all look large."""

STEPS_PER_CHOICE = 16
"""Steps between two choices."""

EVEN_SPREAD = 0.25
"""Lives that differ by more (standard deviation / mean) even out their ages by themselves."""

SHORT_LIFE_BLOCKS = 2.0
"""Lives of fewer blocks of output hardly grow: there is nothing to even out, and the first cohorts
leave memory idle (docs/policies.md)."""

LEAST_GAIN = 1.0
"""Lives that pacing must be worth. Lockstep costs less than the sum says, since those whom the forecast
refuses start later than others (docs/policies.md)."""

LAST_WAVE = 1.0
"""Pacing ends when no more wait than the memory holds: those may be large together."""


@dataclass(frozen=True, slots=True)
class WorkAhead:
    """What is known of the work at hand.

    capacity_blocks: KV blocks there are. block_size: tokens until a request takes another block.
    tokens_per_block: tokens in a block, if those of all KV cache groups count. num_waiting: requests
    to come. life: means over the latest lives; None if there were none. is_paced: whether starts
    are being paced now.
    """

    capacity_blocks: int
    block_size: int
    tokens_per_block: float
    num_waiting: int
    life: MeanLifetime | None
    is_paced: bool = False


def choose_cohorts(work: WorkAhead) -> int | None:
    """In how many cohorts to start over one life; None for no pacing.

    In lives: requests in so many cohorts hold some multiple of their mean at the worst time, so
    that much is lost in every wave; and until the last cohort has come, memory lies idle. One
    cohort is lockstep.
    """
    life = work.life
    if life is None or not work.num_waiting or life.spread > EVEN_SPREAD:
        return None
    if life.steps < SHORT_LIFE_BLOCKS * work.block_size:
        return None
    num_running = int(work.capacity_blocks / max(life.blocks, 1e-6))
    if is_worth_starting(int(life.steps / 2), num_running, life.blocks * work.tokens_per_block):
        return None  # they will start beside others, be sent back, and so be of mixed ages
    waves = work.num_waiting * life.blocks / work.capacity_blocks
    if work.is_paced:
        return 1 if waves >= LAST_WAVE else None
    losses = [
        waves * (blocks / max(life.blocks, 1e-6) - 1.0) + (1.0 - 1.0 / (at + 1)) / 2.0
        for at, blocks in enumerate(life.cohort_blocks)
    ]
    gain = losses[0] - min(losses)
    return losses.index(min(losses)) + 1 if gain > LEAST_GAIN else None


class Pacer:
    """How many requests may run, so that their ages stay mixed.

    Args:
        model: blocks of a request by its tokens.
    """

    def __init__(self, model: MemoryModel) -> None:
        self._block_size = model.unit
        self._tokens_per_block = model.unit / model.blocks_of(model.unit)
        self._lives = LatestLifetimes()
        self._life: MeanLifetime | None = None
        self._start = StaggeredStart()
        self._num_cohorts: int | None = None
        self._capacity = self._num_waiting = self._num_steps = 0

    @property
    def max_running(self) -> float:
        """Requests that may run now; infinite where starts are not paced."""
        return self._start.max_running

    def step(self, capacity_blocks: int, num_waiting: int, anything_running: bool) -> None:
        """A step begins; with nothing running, what comes is planned by its own lives."""
        self._num_steps += 1
        self._capacity, self._num_waiting = capacity_blocks, num_waiting
        if not anything_running:
            self._lives, self._life = LatestLifetimes(), None
            self._start, self._num_cohorts = StaggeredStart(), None
        if self._life is None or not self._num_steps % STEPS_PER_CHOICE:
            self._choose()
        self._set_pace()

    def plan(self, life: RequestLifetime) -> None:
        """A request starts whose life is known."""
        self._lives.add(life)
        if self._life is None:  # at once, before one step has filled the memory
            self._choose()
            self._set_pace()

    def peak_refused(self) -> None:
        """Admissions of this step ended at the peak."""
        self._start.peak_refused()

    def _choose(self) -> None:
        if len(self._lives) < ENOUGH_LIVES:
            return
        self._life = self._lives.mean(EVEN_SPREAD)
        is_paced = math.isfinite(self._start.max_running)
        self._num_cohorts = choose_cohorts(
            WorkAhead(
                self._capacity,
                self._block_size,
                self._tokens_per_block,
                self._num_waiting,
                self._life,
                is_paced,
            )
        )

    def _set_pace(self) -> None:
        if self._num_cohorts is None or self._life is None:
            self._start.stop()
        else:
            self._start.step(self._capacity, self._life, self._num_cohorts)
