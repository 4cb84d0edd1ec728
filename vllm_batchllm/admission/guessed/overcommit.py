# SPDX-License-Identifier: Apache-2.0
"""How far the peak of guessed lengths may reach beyond the memory, by what it costs."""

from __future__ import annotations

import math

from vllm_batchllm.admission.pacing import MeanLifetime
from vllm_batchllm.admission.step_costs import StepCosts

MAX_OVERCOMMIT = 1.5
"""Beyond this nothing more was gained (docs/policies.md)."""

MIN_OVERCOMMIT = 0.97
"""Where lengths are guessed and idle memory costs nearly nothing, so much of the memory is planned
with: a guess of the peak that is right on average is too low half of the time (docs/policies.md)."""

RECOMPUTED_PER_RECLAIMED = 0.7
"""Tokens recomputed per token of KV that preemptions give back: what the victim shares stays cached,
and most of what is overcommitted is never claimed (docs/policies.md)."""


def choose_overcommit(
    costs: StepCosts, life: MeanLifetime | None, mean_age: float, num_tokens: int
) -> tuple[float, str]:
    """Fill idle memory, if the steps saved are worth more than the tokens recomputed.

    In the time of one life, filling a share x more of the memory saves a share x of the steps,
    and preemptions must then give back a share x of it: ``num_tokens`` is all of it. The multiple of
    the memory that the peak may reach, and why, in words.

    mean_age: steps that the running requests have run, weighted by memory.
    """
    if life is None:
        return 1.0, "overcommit 1: no lives seen"
    # Short lives are over first: at the beginning the lives seen say nothing of the long ones that
    # fill the memory. Of those, at any moment, half has passed on average.
    holding_steps = max(life.holding_steps, 2.0 * mean_age)
    saved_s = holding_steps * costs.step_s
    lost_s = RECOMPUTED_PER_RECLAIMED * num_tokens * costs.prefill_s
    ratio = saved_s / lost_s if lost_s else math.inf
    overcommit = min(max(MIN_OVERCOMMIT, ratio), MAX_OVERCOMMIT)
    return overcommit, (
        f"overcommit {overcommit:.2f}: a life's steps cost {saved_s:.3g} s, "
        f"computing again {lost_s:.3g} s"
    )
