# SPDX-License-Identifier: Apache-2.0
"""How many requests may run, so that their ages stay mixed.

Requests that start together are small together and large together: memory lies idle while
they are young, so that it holds them when they are old. If every age is present at any time,
memory stays full, and it holds capacity / (mean blocks held over a life) requests: Little's law.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Hashable
from dataclasses import dataclass
from itertools import islice

import numpy as np

from vllm_batchllm.admission.request_lifetime import RequestLifetime

MAX_COHORTS = 8
"""Cohorts to a life at most; more would not be more even, and start more slowly."""

SAMPLE = 16
"""Latest lives that the shape of a life is read from."""

MANY_SAMPLES = 64
"""Samples of lives whose cohorts are remembered."""

FULL_SHARE, MIN_SHARE, SHARE_STEP = 0.97, 0.8, 0.05
"""Share of the ideal number of requests that pacing aims at: at first, at least, and what it is
lowered by (docs/policies.md)."""

PEAKS_ALLOWED = 0.05
"""Share of steps that may end at the future peak before the pace counts as too high."""


@dataclass(frozen=True, slots=True)
class MeanLifetime:
    """Means over many lives.

    steps: a life lasts. blocks: held in a step, over a life. cohort_blocks: most that
    they hold in any step, on average over requests, if as many as the index and one cohorts
    start spread over a life; empty where that was not worked out. spread: standard deviation of a life / its mean. holding_steps: mean life, each weighted
    by the block-steps it takes: how long those live that fill the memory.
    """

    steps: float
    blocks: float
    cohort_blocks: tuple[float, ...]
    spread: float
    holding_steps: float


class LatestLifetimes:
    """Means over the latest ``window`` lives. O(1) each."""

    def __init__(self, window: int = 256) -> None:
        if window < 1:
            raise ValueError(f"window must be at least 1 life, got {window}")
        self._latest: deque[RequestLifetime] = deque()
        self._window = window
        self._sums = [0.0] * 4
        self._known: dict[Hashable, tuple[float, ...]] = {}

    def __len__(self) -> int:
        return len(self._latest)

    def add(self, life: RequestLifetime) -> None:
        """Count ``life``, and forget the oldest one if the window is full."""
        self._latest.append(life)
        self._count(life, 1)
        if len(self._latest) > self._window:
            self._count(self._latest.popleft(), -1)

    def mean(self, most_spread: float = math.inf) -> MeanLifetime | None:
        """The means; None before there is any life. Where lives differ by more than ``most_spread``, what cohorts of them
        hold is not worked out."""
        if not self._latest:
            return None
        number = len(self._latest)
        steps, squares, block_steps, holding = self._sums
        mean = steps / number
        spread = math.sqrt(max(squares / number - mean * mean, 0.0)) / mean
        return MeanLifetime(
            steps=mean,
            blocks=block_steps / steps,
            cohort_blocks=self._cohort_blocks(mean) if spread <= most_spread else (),
            spread=spread,
            holding_steps=holding / block_steps if block_steps else mean,
        )

    def _cohort_blocks(self, mean_steps: float) -> tuple[float, ...]:
        """Read off the latest lives, laid over each other. Many are alike, and so are many samples of them."""
        num_steps = max(round(mean_steps), 1)
        sample = Counter(islice(reversed(self._latest), SAMPLE))
        key = num_steps, frozenset(sample.items())
        found = self._known.get(key)
        if found is None:
            if len(self._known) >= MANY_SAMPLES:
                self._known.clear()
            found = self._known[key] = _cohorts_of(sample, num_steps)
        return found

    def _count(self, life: RequestLifetime, sign: int) -> None:
        sums, steps, block_steps = self._sums, life.steps, life.block_steps * sign
        sums[0] += sign * steps
        sums[1] += sign * steps * steps
        sums[2] += block_steps
        sums[3] += block_steps * steps


def _cohorts_of(sample: Counter[RequestLifetime], num_steps: int) -> tuple[float, ...]:
    """Most blocks that cohorts of ``sample``, laid over each other, hold; lives last ``num_steps`` steps."""
    total = np.zeros(num_steps)
    for life, number in sample.items():
        profile = life.profile()[:num_steps]
        total[: len(profile)] += profile * (number / sample.total())
    twice = np.concatenate((total, total))
    starts = [[at * num_steps // m for at in range(m)] for m in range(1, MAX_COHORTS + 1)]
    return tuple(
        float(np.max(sum(twice[start : start + num_steps] for start in some)) / len(some))
        for some in starts
    )


class StaggeredStart:
    """How many requests may run, so that those that do are of mixed ages.

    The number grows over one life, a cohort at a time, to what the memory holds of requests of
    mixed ages; from then on a request starts when one ends, and ages stay mixed. What a request
    holds grows by whole blocks, so a few cohorts can be as even as starts spread over every
    step, and they fill the memory sooner.

    Ages never pack perfectly. Where the future peak keeps ending admissions, the number was too
    high, and it is lowered once a life: admissions that wait for the peak come in waves, which
    is what pacing is there to avoid.

    Time is counted in steps; nothing here reads a clock.
    """

    def __init__(self) -> None:
        self._share = FULL_SHARE
        self._max_running = math.inf
        self._num_cohorts = 1
        self._num_steps = 0
        self._num_steps_of_life = 0
        self._num_peaks = 0

    @property
    def max_running(self) -> float:
        """Requests that may run now; infinite while pacing is off."""
        return self._max_running

    def step(self, capacity_blocks: float, life: MeanLifetime, num_cohorts: int) -> None:
        """A paced step has begun."""
        if math.isinf(self._max_running):
            self._num_cohorts = num_cohorts
        self._num_steps += 1
        self._num_steps_of_life += 1
        if self._num_steps_of_life >= life.steps:
            self._end_life()
        number = self._num_cohorts
        cohort = 1 + int(self._num_steps * number / life.steps)
        most = capacity_blocks / max(life.cohort_blocks[number - 1], 1e-6)
        self._max_running = self._share * most * min(cohort / number, 1.0)

    def peak_refused(self) -> None:
        """Admissions of this step ended at the future peak."""
        self._num_peaks += 1

    def stop(self) -> None:
        """Pacing is off; the next time it begins with the first cohort again."""
        self._max_running = math.inf
        self._num_steps = self._num_steps_of_life = self._num_peaks = 0

    def _end_life(self) -> None:
        if self._num_peaks > PEAKS_ALLOWED * self._num_steps_of_life:
            self._share = max(self._share - SHARE_STEP, MIN_SHARE)
        self._num_steps_of_life = self._num_peaks = 0
