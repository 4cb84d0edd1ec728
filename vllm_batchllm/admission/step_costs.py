# SPDX-License-Identifier: Apache-2.0
"""How tightly to fill the memory, decided by what it costs.

Two errors are possible. Admit too little, and memory lies idle: the same work takes more
steps, and each step costs a fixed time whatever it does. Admit too much, and a running request
is sent back to wait: its tokens go through the model again. Which one is dearer depends on the
platform and the workload, so both are put into seconds and compared.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import numpy as np

from vllm_batchllm.admission.pacing import MeanLifetime

Vector = np.ndarray[tuple[int], np.dtype[np.float64]]
Matrix = np.ndarray[tuple[int, int], np.dtype[np.float64]]

MAX_OVERCOMMIT = 1.5
"""Beyond this, trials gained no more steps."""

MIN_OVERCOMMIT = 0.97
"""Where lengths are guessed and idle memory costs nearly nothing, so much of the memory is planned
with: a guess of the peak that is right on average is too low half of the time. On ``skewed-output``
(70B on an H100, 6,400 requests, simulated) 0.97 and 0.95 halve the preemptions of 1; with fewer
requests 0.95 leaves more of them to a long end."""

EVEN_SPREAD = 0.25
"""Lives that differ by more (standard deviation / mean) even out their ages by themselves."""

SHORT_LIFE_BLOCKS = 2.0
"""Lives of fewer blocks of output hardly grow. They are not paced: there is nothing to even out, and
the first cohorts leave memory idle (``industry``). And where their lengths are known, they may be
overcommitted all the same: nobody ends in time to make room for a last block that all need, so what
fits for certain leaves idle what stock fills (``micro-1000-1000-d16``: 12 % more steps)."""

LAST_WAVE = 1.0
"""Pacing ends when no more wait than the memory holds: those may be large together."""

RECOMPUTED_PER_RECLAIMED = 0.7
"""Tokens recomputed per token of KV that preemptions give back. On the scheduler ring 0.5 to 0.8:
what the victim shares stays cached, and most of what is overcommitted is never claimed."""


@dataclass(frozen=True, slots=True)
class StepCosts:
    """What a step costs, seconds.

    step_s: whatever it does. prefill_s: per prompt token. decode_s: per request that produces
    a token. kv_s: per token of KV that decoding reads.
    """

    step_s: float
    prefill_s: float
    decode_s: float = 0.0
    kv_s: float = 0.0

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{field.name} must be 0 seconds or more, got {value}")


PLATFORM_COSTS = {
    "cpu": StepCosts(step_s=1.3e-2, prefill_s=4.2e-5, decode_s=1.2e-4),
    "cuda": StepCosts(step_s=1e-2, prefill_s=8e-5, decode_s=2e-5, kv_s=8e-8),
}
"""Starting points until enough has been measured: a small model on two cores (least squares over
the runs in ``benchmarks/results/cpu-2-cores``), and an 8B model on one data-centre GPU (weights
read once a step; 16 GFLOP a token)."""


def platform_costs(platform: str) -> StepCosts:
    """Costs to begin with. Raises ValueError that lists the known platforms."""
    try:
        return PLATFORM_COSTS[platform]
    except KeyError:
        known = ", ".join(PLATFORM_COSTS)
        raise ValueError(f"no costs for platform {platform!r}; known: {known}") from None


class StepCostMeter:
    """Learns :class:`StepCosts` from the steps that were run.

    Least squares over (1, prefill tokens, decodes, KV tokens read), drawn to the platform's
    costs as if those had been seen in ``prior_steps`` steps. Old steps fade away.
    """

    _TYPICAL = np.array([1.0, 256.0, 32.0, 16384.0])
    _BATCH = 16

    def __init__(
        self, prior: StepCosts, prior_steps: float = 20.0, memory_steps: int = 1000
    ) -> None:
        self._prior = np.array([prior.step_s, prior.prefill_s, prior.decode_s, prior.kv_s])
        self._prior_matrix = np.diag(prior_steps * self._TYPICAL**2)
        self._keep = 1.0 - 1.0 / memory_steps
        self._matrix = np.zeros((4, 4))
        self._vector = np.zeros(4)
        self._solution = self._prior
        self._pending: list[tuple[float, int, int, int, float]] = []
        self.num_steps = 0

    def observe(self, seconds: float, num_prefill: int, num_decode: int, num_kv: int) -> None:
        """A step took ``seconds``. A pause (ten times what was expected) is cut down."""
        if not seconds > 0:
            return
        self._pending.append((1.0, num_prefill, num_decode, num_kv, seconds))
        self.num_steps += 1
        if len(self._pending) == self._BATCH:
            self._take_in()

    def _take_in(self) -> None:
        """Add the pending steps to the sums; together, as one by one would cost the step."""
        observed = np.array(self._pending)
        rows, seconds = observed[:, :4], observed[:, 4]
        if self.num_steps > len(self._pending):
            seconds = np.minimum(seconds, 10.0 * (rows @ self._solution))
        self._pending.clear()
        kept = self._keep ** np.arange(len(rows), -1, -1.0)
        weighted = rows * kept[1:, None]
        self._matrix = kept[0] * self._matrix + weighted.T @ rows
        self._vector = kept[0] * self._vector + seconds @ weighted
        self._solution = self._solve()

    def costs(self) -> StepCosts:
        """The best estimate so far; none of the figures is negative."""
        if self._pending:
            self._take_in()
        return StepCosts(*map(float, self._solution))

    def _solve(self) -> Vector:
        matrix = self._matrix + self._prior_matrix
        return solve_nonnegative(matrix, self._vector + self._prior_matrix @ self._prior)


def solve_nonnegative(matrix: Matrix, vector: Vector) -> Vector:
    """Solve the normal equations of least squares; what would be negative is left out, as 0."""
    free = np.ones(len(vector), dtype=bool)
    solution = np.zeros(len(vector))
    while free.any():
        solution[:] = 0.0
        solution[free] = np.linalg.solve(matrix[np.ix_(free, free)], vector[free])
        if (solution >= 0).all():
            break
        free &= solution > 0
    return solution


@dataclass(frozen=True, slots=True)
class WorkAhead:
    """What is known of the work at hand.

    capacity_blocks: KV blocks there are. block_size: tokens in one. num_waiting: requests to
    come. life: means over the latest lives; None if there were none. pacing: whether starts
    are being paced now. mean_age: steps that the running requests have run so far, weighted by
    memory; 0 if their ends are known.
    """

    capacity_blocks: int
    block_size: int
    num_waiting: int
    life: MeanLifetime | None
    pacing: bool = False
    mean_age: float = 0.0


@dataclass(frozen=True, slots=True)
class AdmissionLimits:
    """What was chosen, and why.

    overcommit: the far future peak may reach this multiple of the capacity, where lengths are
    guessed; from ``MIN_OVERCOMMIT``, a little less than all, to ``MAX_OVERCOMMIT``. pace: multiple
    of the number of requests that mixed ages allow, or None for no limit. num_cohorts: in so many
    parts these start, spread over a life. overcommit_known: as ``overcommit``, where lengths are
    known.
    """

    overcommit: float
    pace: float | None
    reason: str
    num_cohorts: int = 1
    overcommit_known: float = 1.0


def is_worth_a_try(costs: StepCosts, num_tokens: int, num_steps: int) -> bool:
    """Whether starting ``num_steps`` earlier saves more than computing ``num_tokens`` again costs."""
    return num_tokens * costs.prefill_s <= num_steps * costs.step_s


def choose_limits(costs: StepCosts, workload: WorkAhead) -> AdmissionLimits:
    """The limits with the least expected time."""
    # Towards the end of a batch idle memory is nobody's gain: no more is lost than is to start.
    to_start = int(workload.num_waiting * workload.life.blocks) if workload.life else 0
    blocks = min(workload.capacity_blocks, to_start or workload.capacity_blocks)
    overcommit, why_overcommit = _choose_overcommit(costs, workload, blocks)
    pace, num_cohorts, why_pace = _choose_pace(workload)
    reason = f"{why_overcommit}; {why_pace}"
    known = 1.0
    if _is_short(workload):
        known = max(_choose_overcommit(costs, workload, workload.capacity_blocks)[0], 1.0)
    return AdmissionLimits(overcommit, pace, reason, num_cohorts, known)


def _is_short(workload: WorkAhead) -> bool:
    life = workload.life
    return life is not None and life.steps < SHORT_LIFE_BLOCKS * workload.block_size


def _choose_overcommit(costs: StepCosts, workload: WorkAhead, num_blocks: int) -> tuple[float, str]:
    """Fill idle memory, if the steps saved are worth more than the tokens recomputed.

    In the time of one life, filling a share x more of the memory saves a share x of the steps,
    and preemptions must then give back a share x of it: ``num_blocks`` is all of it.
    """
    life = workload.life
    if life is None:
        return 1.0, "overcommit 1: no lives seen"
    # Short lives are over first: at the beginning the lives seen say nothing of the long ones that
    # fill the memory. Of those, at any moment, half has passed on average.
    holding_steps = max(life.holding_steps, 2.0 * workload.mean_age)
    saved_s = holding_steps * costs.step_s
    lost_s = RECOMPUTED_PER_RECLAIMED * num_blocks * workload.block_size * costs.prefill_s
    ratio = saved_s / lost_s if lost_s else math.inf
    overcommit = min(max(MIN_OVERCOMMIT, ratio), MAX_OVERCOMMIT)
    return overcommit, (
        f"overcommit {overcommit:.2f}: a life's steps cost {saved_s:.3g} s, "
        f"computing again {lost_s:.3g} s"
    )


def _choose_pace(workload: WorkAhead) -> tuple[float | None, int, str]:
    """Pace starts, if mixed ages save more steps than filling the memory slowly costs.

    In lives: requests in so many cohorts hold some multiple of their mean at the worst time, so
    that much is lost in every wave; and until the last cohort has come, memory lies idle. One
    cohort is lockstep.
    """
    life = workload.life
    if life is None or workload.num_waiting == 0:
        return None, 1, "no pace: nothing to plan with"
    if life.spread > EVEN_SPREAD:
        return None, 1, f"no pace: lives spread by {life.spread:.2f} of their mean"
    if _is_short(workload):
        return None, 1, f"no pace: lives of {life.steps:.0f} steps are short"
    waves = workload.num_waiting * life.blocks / workload.capacity_blocks
    if workload.pacing:
        if waves >= LAST_WAVE:
            return 1.0, 1, f"paced: {waves:.1f} waves to come"
        return None, 1, "no pace: the last wave"
    losses = [
        waves * (blocks / max(life.blocks, 1e-6) - 1.0) + (1.0 - 1.0 / (at + 1)) / 2.0
        for at, blocks in enumerate(life.cohort_blocks)
    ]
    number = losses.index(min(losses)) + 1
    reason = f"lives lost in lockstep {losses[0]:.2f}, in {number} cohorts {min(losses):.2f}"
    if number == 1:
        return None, 1, f"no pace: {reason}"
    return 1.0, number, f"paced: {reason}"
