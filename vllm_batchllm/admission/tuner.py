# SPDX-License-Identifier: Apache-2.0
"""How tightly to admit, kept up to date: lives seen, costs measured, pace set.

The choice itself is a pure function (``limits.py``); here is what it is fed with, and when.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from vllm_batchllm.admission.limits import AdmissionLimits, WorkAhead, choose_limits
from vllm_batchllm.admission.pacing import (
    LatestLifetimes,
    MeanLifetime,
    RequestLifetime,
    StaggeredStart,
)
from vllm_batchllm.admission.step_costs import StepCostMeter, StepCosts

ENOUGH_LIVES = 8
"""Lives seen before they are planned with: the first member of a group brings its prefix, so
fewer would make all look large."""

STEPS_PER_CHOICE = 16
"""Steps between two estimates of the costs, and between two choices by them."""


class LimitTuner:
    """Chooses the :class:`AdmissionLimits` as work comes and goes, and keeps the pace.

    Args:
        block_size: tokens per block.
        costs: of a step, to begin with.
        overcommit, pace: as the user fixed them; None for the cost rule's.
        clock: seconds; measures the costs. None keeps ``costs``.
    """

    def __init__(
        self,
        block_size: int,
        costs: StepCosts,
        overcommit: float | None,
        pace: float | None,
        clock: Callable[[], float] | None,
    ) -> None:
        self.costs = costs
        self._block_size = block_size
        self._fixed = (overcommit, pace)
        self.limits = self._by_hand(AdmissionLimits(1.0, None, "nothing to choose by yet"))
        self._planned, self._lived = LatestLifetimes(), LatestLifetimes()
        self._life: MeanLifetime | None = None
        self._pace = StaggeredStart()
        self._meter = StepCostMeter(costs)
        self._clock = clock
        self._began_s: float | None = None
        self._work: tuple[int, int, int] | None = None
        self._capacity = self._num_waiting = self._num_steps = 0
        self._mean_age: Callable[[], float] = float

    @property
    def has_chosen(self) -> bool:
        """Whether enough has been seen to choose by."""
        return self._life is not None

    @property
    def max_running(self) -> float:
        """Requests that may run now, by the pace."""
        return self._pace.max_running

    def step(
        self,
        capacity_blocks: int,
        num_waiting: int,
        anything_running: bool,
        mean_age: Callable[[], float] = float,
    ) -> None:
        """A step begins; with nothing running, what comes is planned by its own lives.

        mean_age: steps that those running have run, weighted by memory; 0 if their ends are
        known. Asked for only where a choice is made.
        """
        self._mean_age = mean_age
        self._measure(anything_running)
        self._num_steps += 1
        self._capacity, self._num_waiting = capacity_blocks, num_waiting
        if not anything_running:
            self._planned, self._lived, self._life = LatestLifetimes(), LatestLifetimes(), None
            self._pace = StaggeredStart()
        if self._life is None or not self._num_steps % STEPS_PER_CHOICE:
            self._choose()
        self._set_pace()

    def worked(self, num_prefill: int, num_decode: int, num_kv: int) -> None:
        """What the step does, in tokens: prefilled, produced, read from the KV cache."""
        self._work = (num_prefill, num_decode, num_kv)

    def plan(self, life: RequestLifetime) -> None:
        """A request starts whose life is known."""
        self._planned.add(life)
        if self._life is None:  # at once, before one step has filled the memory
            self._choose()
            self._set_pace()

    def lived(self, life: RequestLifetime) -> None:
        """A request has ended."""
        self._lived.add(life)

    def peak_refused(self) -> None:
        """Admissions of this step ended at the peak."""
        self._pace.peak_refused()

    def _choose(self) -> None:
        lives = self._planned if len(self._planned) >= ENOUGH_LIVES else self._lived
        if len(lives) < ENOUGH_LIVES:
            return
        self._life = lives.mean()
        assert self._life is not None
        is_paced = math.isfinite(self._pace.max_running)
        workload = WorkAhead(
            self._capacity,
            self._block_size,
            self._num_waiting,
            self._life,
            is_paced,
            self._mean_age(),
        )
        self.limits = self._by_hand(choose_limits(self.costs, workload))

    def _set_pace(self) -> None:
        limits = self.limits
        if limits.pace is None or self._life is None:
            self._pace.stop()
        else:
            self._pace.step(self._capacity, self._life, limits.num_cohorts, limits.pace)

    def _by_hand(self, chosen: AdmissionLimits) -> AdmissionLimits:
        """``chosen``, with what the user has fixed."""
        overcommit, pace, reason = chosen.overcommit, chosen.pace, chosen.reason
        fixed_overcommit, fixed_pace = self._fixed
        if fixed_overcommit is not None:
            overcommit = fixed_overcommit
            reason = f"overcommit {overcommit:g} as set; {reason}"
        if fixed_pace is not None:
            pace = fixed_pace or None
            reason = f"pace {fixed_pace:g} as set; {reason}"
        return AdmissionLimits(
            overcommit, pace, reason, chosen.num_cohorts, chosen.overcommit_known
        )

    def _measure(self, anything_running: bool) -> None:
        """Learn from the time since the last step, unless the engine was idle in between."""
        if self._clock is None:
            return
        now_s = self._clock()
        if self._began_s is not None and self._work is not None and anything_running:
            self._meter.observe(now_s - self._began_s, *self._work)
            if self._meter.num_steps % STEPS_PER_CHOICE == 0:
                self.costs = self._meter.costs()
        self._began_s, self._work = now_s, None
