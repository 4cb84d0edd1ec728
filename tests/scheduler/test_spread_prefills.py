# SPDX-License-Identifier: Apache-2.0
"""Prompts spread over the decodes beside them: real schedulers, as on a GPU."""

from __future__ import annotations

from typing import Any

import pytest
from fake_engine import (
    make_requests,
    make_scheduler,
    make_vllm_config,
    model_output,
    run_overlapped,
)
from vllm.v1.core.sched.scheduler import Scheduler

from vllm_batchllm.admission.environment import Environment
from vllm_batchllm.config import BatchLLMConfig
from vllm_batchllm.scheduler.scheduler import AsyncBatchLLMScheduler, BatchLLMScheduler

NUM_REQUESTS, PROMPT, OUTPUT = 60, 1600, 40
PROMPTS = [[1 + number, *[5] * (PROMPT - 1)] for number in range(NUM_REQUESTS)]


def make(
    scheduler_cls: Any,
    model: str,
    *,
    platform: str = "cuda",
    is_async: bool = False,
    policy: str = "fcfs",
    **options: Any,
) -> Any:
    is_ours = scheduler_cls is not Scheduler
    options = {"spread_prefills": True} | options
    return make_scheduler(
        scheduler_cls,
        make_vllm_config(
            model,
            num_blocks=10 * (PROMPT + OUTPUT) // 16,
            max_num_seqs=64,
            max_num_batched_tokens=8192,
            async_scheduling=is_async,
            policy=policy,
            options=options if is_ours else None,
        ),
        Environment(platform) if is_ours else None,
    )


def add(scheduler: Any) -> None:
    for request in make_requests(PROMPTS, max_tokens=OUTPUT):
        scheduler.add_request(request)


def step_sizes(scheduler: Any) -> list[int]:
    """Tokens of each step of the whole batch."""
    add(scheduler)
    return sizes_until_the_end(scheduler)


def sizes_until_the_end(scheduler: Any) -> list[int]:
    """Tokens of each step until all requests have ended."""
    sizes = []
    while scheduler.has_unfinished_requests():
        output = scheduler.schedule()
        sizes.append(output.total_num_scheduled_tokens)
        scheduler.update_from_output(output, model_output(scheduler, output))
    return sizes


def test_steps_are_more_even_and_fewer_are_nearly_empty(llama: str) -> None:
    stock, ours = (
        step_sizes(make(cls, llama, **options))
        for cls, options in ((Scheduler, {}), (BatchLLMScheduler, {}))
    )
    assert sum(ours) <= sum(stock), "the same work, recomputation aside"
    assert max(ours[: int(0.8 * len(ours))]) <= 1024 < max(stock), "but for the last that all fit"

    def num_valleys(sizes: list[int]) -> int:
        return sum(size < 64 for size in sizes[: int(0.8 * len(sizes))])

    assert 0 < 3 * num_valleys(ours) < num_valleys(stock)
    assert len(ours) < 1.1 * len(stock)


def test_without_the_option_steps_are_left_alone(llama: str) -> None:
    """CUDA graphs are captured up to 512 tokens: a device must show first that it pays."""
    assert BatchLLMConfig().spread_prefills is False
    sizes = step_sizes(make(BatchLLMScheduler, llama, spread_prefills=False))
    assert max(sizes) > 4096


@pytest.mark.parametrize("options", [{"admission": "stock"}, {"order": "paper"}])
def test_only_our_admission_spreads(llama: str, options: dict[str, Any]) -> None:
    assert not make(BatchLLMScheduler, llama, **options).token_budget.spreads


def test_by_priority_nothing_is_spread_as_every_step_would_add_up_all_priorities(
    llama: str,
) -> None:
    assert make(BatchLLMScheduler, llama).token_budget.spreads
    assert not make(BatchLLMScheduler, llama, policy="priority").token_budget.spreads


def test_on_the_cpu_nothing_is_spread(llama: str) -> None:
    scheduler = make(BatchLLMScheduler, llama, platform="cpu")
    assert max(step_sizes(scheduler)) > 4096


def test_with_room_for_all_every_step_is_stock_s(llama: str) -> None:
    sizes = []
    for cls in (Scheduler, BatchLLMScheduler):
        scheduler = make(cls, llama)
        for request in make_requests(PROMPTS[:8], max_tokens=OUTPUT):
            scheduler.add_request(request)
        sizes.append(sizes_until_the_end(scheduler))
    assert sizes[0] == sizes[1]
    assert max(sizes[0]) == 8192


def test_overlapped_steps_end_too(llama: str) -> None:
    scheduler = make(AsyncBatchLLMScheduler, llama, is_async=True)
    add(scheduler)
    assert len(run_overlapped(scheduler)) == NUM_REQUESTS
    assert not scheduler.has_unfinished_requests()


def test_a_lone_request_after_the_batch_has_whole_steps_again(llama: str) -> None:
    scheduler = make(BatchLLMScheduler, llama)
    step_sizes(scheduler)
    (request,) = make_requests([[9] * 6000], max_tokens=2)
    scheduler.add_request(request)
    assert scheduler.schedule().total_num_scheduled_tokens == 6000
