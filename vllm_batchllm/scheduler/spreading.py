# SPDX-License-Identifier: Apache-2.0
"""Steps made smaller so that prompts are computed beside decodes (option ``spread_prefills``), in a live scheduler."""

from __future__ import annotations

from vllm.v1.core.sched.request_queue import SchedulingPolicy
from vllm.v1.core.sched.scheduler import Scheduler

from vllm_batchllm.admission.controller import AdmissionController
from vllm_batchllm.admission.token_budget import PLATFORM_RIDGE, TokenBudget
from vllm_batchllm.config import BatchLLMConfig
from vllm_batchllm.scheduler.request_queue import PrefixGroupQueue


def make_token_budget(scheduler: Scheduler, config: BatchLLMConfig, platform: str) -> TokenBudget:
    """For a scheduler that has just been built; it spreads nothing unless the user asks for it and it can."""
    # By priority there may be as many queues to add up in each step as requests that wait.
    is_one_queue = scheduler.policy == SchedulingPolicy.FCFS
    can_split = is_one_queue and bool(scheduler.scheduler_config.enable_chunked_prefill)
    spreads = can_split and config.spread_prefills and config.admission_rule == "future"
    num_blocks = scheduler.kv_cache_manager.block_pool.num_gpu_blocks - 1
    return TokenBudget(
        most=scheduler.max_num_scheduled_tokens,
        ridge=PLATFORM_RIDGE[platform] if spreads else 0,
        capacity_tokens=num_blocks * scheduler.block_size,
        max_num_seqs=scheduler.max_num_running_reqs,
        tokens_per_decode=1 + scheduler.num_spec_tokens,
    )


def step_tokens(
    scheduler: Scheduler,
    queue: PrefixGroupQueue | None,
    budget: TokenBudget,
    admission: AdmissionController,
) -> int | None:
    """Tokens of the step that begins, where prefills are spread; else None."""
    if not budget.spreads or queue is None:
        return None
    return budget.tokens(
        queue.outstanding(),
        num_running=len(scheduler.running),
        is_prefilling=any(request.is_prefill_chunk for request in scheduler.running),
        output_is_guessed=admission.guesses_lengths,
        mean_output=admission.mean_output,
    )
