# SPDX-License-Identifier: Apache-2.0
"""How tightly to fill the memory, decided by what it costs.

Two errors are possible. Admit too little, and memory lies idle: the same work takes more
steps, and each step costs a fixed time whatever it does. Admit too much, and a running request
is sent back to wait: its tokens go through the model again. Which one is dearer depends on the
platform and the workload, so both are put into seconds and compared.
"""

from __future__ import annotations

from dataclasses import dataclass

from vllm_batchllm.admission.guessed.overcommit import choose_overcommit
from vllm_batchllm.admission.pacing import MeanLifetime
from vllm_batchllm.admission.step_costs import StepCosts

EVEN_SPREAD = 0.25
"""Lives that differ by more (standard deviation / mean) even out their ages by themselves."""

SHORT_LIFE_BLOCKS = 2.0
"""Lives of fewer blocks of output hardly grow. They are not paced: there is nothing to even out, and
the first cohorts leave memory idle. And where their lengths are known, they may be
overcommitted all the same: nobody ends in time to make room for a last block that all need, so what
fits for certain leaves idle what stock fills (docs/policies.md)."""

LAST_WAVE = 1.0
"""Pacing ends when no more wait than the memory holds: those may be large together."""


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


def choose_limits(costs: StepCosts, workload: WorkAhead) -> AdmissionLimits:
    """The limits with the least expected time."""
    # Towards the end of a batch idle memory is nobody's gain: no more is lost than is to start.
    to_start = int(workload.num_waiting * workload.life.blocks) if workload.life else 0
    blocks = min(workload.capacity_blocks, to_start or workload.capacity_blocks)
    overcommit, why_overcommit = _overcommit(costs, workload, blocks)
    pace, num_cohorts, why_pace = _choose_pace(workload)
    reason = f"{why_overcommit}; {why_pace}"
    known = 1.0
    if _is_short(workload):
        known = max(_overcommit(costs, workload, workload.capacity_blocks)[0], 1.0)
    return AdmissionLimits(overcommit, pace, reason, num_cohorts, known)


def _overcommit(costs: StepCosts, workload: WorkAhead, num_blocks: int) -> tuple[float, str]:
    num_tokens = num_blocks * workload.block_size
    return choose_overcommit(costs, workload.life, workload.mean_age, num_tokens)


def _is_short(workload: WorkAhead) -> bool:
    life = workload.life
    return life is not None and life.steps < SHORT_LIFE_BLOCKS * workload.block_size


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
