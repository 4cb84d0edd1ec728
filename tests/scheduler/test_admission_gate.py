# SPDX-License-Identifier: Apache-2.0
"""Admission on real schedulers: preemptions avoided, nobody stuck, nobody lost."""

from __future__ import annotations

import inspect
import random
from typing import Any
from unittest.mock import patch

import pytest
from fake_engine import (
    make_requests,
    make_scheduler,
    make_vllm_config,
    model_output,
    run_overlapped,
)
from vllm.sampling_params import StructuredOutputsParams
from vllm.v1.core.kv_cache_manager import KVCacheManager
from vllm.v1.core.sched import scheduler as scheduler_module
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.engine import FinishReason
from vllm.v1.request import Request

from vllm_batchllm.admission import preemption_price
from vllm_batchllm.admission.preemption_price import TOKENS_PER_STEP
from vllm_batchllm.scheduler.kv_cache_manager import (
    AdmissionControlledKVCacheManager,
    length_is_known,
)
from vllm_batchllm.scheduler.scheduler import AsyncBatchLLMScheduler, BatchLLMScheduler

STOP = 999


def documents(num_groups: int = 48, members: int = 8) -> list[list[int]]:
    """Documents of four blocks of 16, each with questions of its own."""
    rng = random.Random(3)
    return [
        [group + 1] * 64 + [rng.randrange(20, 900) for _ in range(8)]
        for group in range(num_groups)
        for _ in range(members)
    ]


def build(cls: Any, model: str, prompts: list[list[int]], **config: Any) -> Any:
    names = {"max_tokens", "stop_token_ids", "priorities", "extra_args"}
    request_args = {name: config.pop(name) for name in names & config.keys()}
    sizes = {"num_blocks": 241, "max_num_seqs": 128, "max_num_batched_tokens": 256}
    scheduler = make_scheduler(cls, make_vllm_config(model, **{**sizes, **config}))
    for request in make_requests(prompts, **request_args):
        scheduler.add_request(request)
    return scheduler


def run(scheduler: Any, lengths: dict[str, int] | None = None) -> dict[str, int]:
    """Run to the end; with ``lengths``, requests stop by themselves. Steps and preemptions."""
    num_steps = num_preempted = 0
    while scheduler.has_unfinished_requests():
        num_steps += 1
        assert num_steps < 20_000, "stuck"
        output = scheduler.schedule()
        num_preempted += len(output.preempted_req_ids or ())
        made = model_output(scheduler, output)
        for tokens, name in zip(made.sampled_token_ids, made.req_ids, strict=True):
            if (
                lengths
                and tokens
                and scheduler.requests[name].num_output_tokens + 1 >= lengths[name]
            ):
                tokens[:] = [STOP]
        scheduler.update_from_output(output, made)
    return {"steps": num_steps, "preempted": num_preempted}


def test_known_lengths_are_never_preempted_and_cost_few_steps(llama, monkeypatch) -> None:
    monkeypatch.setattr(preemption_price, "TOKENS_PER_STEP", 0)
    prompts = documents()
    stock = run(build(Scheduler, llama, prompts, max_tokens=48))
    scheduler = build(BatchLLMScheduler, llama, prompts, max_tokens=48)
    ours = run(scheduler)
    assert stock["preempted"] > 20, "memory is short here"
    assert ours["preempted"] == 0
    assert ours["steps"] <= 1.12 * stock["steps"]
    counters = scheduler.batchllm_snapshot()
    assert counters["num_ended"] == len(prompts)
    assert counters["real_tokens"] == 48 * len(prompts)
    assert counters["num_needed_lost"] == 0
    assert 0 < counters["held_blocks_peak"] <= counters["kv_blocks"] == 240
    assert sum(counters["hit_tokens_by_level"]) == counters["admission_hit_tokens"] > 0


def test_few_large_ones_start_as_by_stock_where_waiting_costs_more(llama, monkeypatch) -> None:
    """Two that fit together for a while: one after the other they take a third more steps."""
    prompts = [[1] * 40, [2] * 40]
    results = {}
    for name, tokens_per_step in (("strict", 0), ("default", TOKENS_PER_STEP)):
        monkeypatch.setattr(preemption_price, "TOKENS_PER_STEP", tokens_per_step)
        scheduler = build(BatchLLMScheduler, llama, prompts, max_tokens=60, num_blocks=11)
        results[name] = run(scheduler)
    stock = run(build(Scheduler, llama, prompts, max_tokens=60, num_blocks=11))
    assert results["strict"]["preempted"] == 0 < results["default"]["preempted"] <= 1
    assert results["default"]["steps"] <= stock["steps"] < results["strict"]["steps"]


def test_with_steps_in_flight_known_lengths_are_not_preempted_either(llama, monkeypatch) -> None:
    monkeypatch.setattr(preemption_price, "TOKENS_PER_STEP", 0)
    prompts = documents()
    scheduler = build(
        AsyncBatchLLMScheduler,
        llama,
        prompts,
        max_tokens=48,
        async_scheduling=True,
    )
    run_overlapped(scheduler)
    counters = scheduler.batchllm_snapshot()
    assert counters["num_preemptions"] == 0
    assert counters["num_ended"] == len(prompts)
    assert counters["refused_peak"] > 0
    assert scheduler.admission.num_running == 0


def test_unknown_lengths_are_preempted_less_and_less_is_computed_twice(llama) -> None:
    prompts = documents(num_groups=90)
    rng = random.Random(5)
    lengths = {str(n): 80 if rng.random() < 0.1 else 6 for n in range(len(prompts))}
    results = {}
    for cls in (Scheduler, BatchLLMScheduler):
        scheduler = build(cls, llama, prompts, max_tokens=2000, stop_token_ids=[STOP])
        assert not any(map(length_is_known, scheduler.requests.values()))
        results[cls] = run(scheduler, lengths)
    stock, ours = results[Scheduler], results[BatchLLMScheduler]
    assert ours["preempted"] < 0.4 * stock["preempted"]
    assert ours["steps"] <= 1.25 * stock["steps"]


@pytest.mark.parametrize("policy", ["fcfs", "priority"])
@pytest.mark.parametrize(
    "options",
    [
        {"admission": "future"},
        {"admission": "threshold", "kv_threshold": 0.01},
        {"admission": "stock"},
        {"order": "paper"},
    ],
)
def test_no_setting_can_get_stuck_and_all_blocks_come_back(llama, options, policy) -> None:
    prompts = documents(num_groups=4)
    scheduler = build(
        BatchLLMScheduler,
        llama,
        prompts,
        max_tokens=60,
        options=options,
        policy=policy,
        priorities=[n % 3 for n in range(len(prompts))],
        num_blocks=20,
    )
    run(scheduler)
    pool = scheduler.kv_cache_manager.block_pool
    assert pool.get_num_free_blocks() == 19
    pool.check_integrity()
    scheduler.waiting.check_integrity()


def ended_with_errors(scheduler: Any) -> set[str]:
    """Run to the end; the requests that ended with an error."""
    failed: set[str] = set()
    while scheduler.has_unfinished_requests():
        output = scheduler.schedule()
        results = scheduler.update_from_output(output, model_output(scheduler, output))
        for outputs in results.values():
            failed |= {
                o.request_id for o in outputs.outputs if o.finish_reason == FinishReason.ERROR
            }
    return failed


def test_a_prompt_that_can_never_fit_ends_alone(llama) -> None:
    prompts = [[1] * 40, [2] * (16 * 20 + 1), [3] * (16 * 19 + 1), [4] * 40]
    scheduler = build(BatchLLMScheduler, llama, prompts, num_blocks=20, max_num_batched_tokens=1024)
    assert scheduler.batchllm_snapshot()["max_tokens_held"] == 19 * 16
    assert ended_with_errors(scheduler) == {"1", "2"}


def test_a_request_that_outgrows_the_whole_cache_ends_alone(llama) -> None:
    scheduler = build(BatchLLMScheduler, llama, [[1] * 40, [2] * 40], num_blocks=11, max_tokens=500)
    assert ended_with_errors(scheduler) == {"0", "1"}, "after 160 tokens each"
    assert scheduler.kv_cache_manager.block_pool.get_num_free_blocks() == 10


@pytest.mark.parametrize("hint", ["12", 0, -3, 1.5, True, [4]])
def test_a_bad_hint_ends_its_request_alone(llama, hint) -> None:
    scheduler = build(BatchLLMScheduler, llama, [[1] * 40])
    (bad,) = make_requests([[2] * 40], extra_args={"expected_output_tokens": hint})
    bad.request_id = "bad"
    scheduler.add_request(bad)
    assert ended_with_errors(scheduler) == {"bad"}


def test_a_watermark_of_the_users_stays_and_without_one_guesses_leave_some_memory(llama) -> None:
    for watermark, expected in ((0.0, 4), (0.1, 24)):
        config = make_vllm_config(llama, num_blocks=241, max_num_seqs=128)
        config.scheduler_config.watermark = watermark
        scheduler = make_scheduler(BatchLLMScheduler, config)
        for request in make_requests([[n] * 40 for n in range(9)], stop_token_ids=[STOP]):
            scheduler.add_request(request)
        scheduler.schedule()
        manager = scheduler.kv_cache_manager
        assert manager.watermark_blocks == expected
        assert manager.num_usable_blocks == scheduler.admission.running.capacity - 9 * 3


def test_the_manager_is_ours_only_while_ours_is_built(llama) -> None:
    assert scheduler_module.KVCacheManager is KVCacheManager
    scheduler = build(BatchLLMScheduler, llama, [])
    assert type(scheduler.kv_cache_manager) is AdmissionControlledKVCacheManager
    assert scheduler_module.KVCacheManager is KVCacheManager
    off = build(BatchLLMScheduler, llama, [], enable_prefix_caching=False)
    assert type(off.kv_cache_manager) is KVCacheManager and off.admission is None


def test_the_manager_takes_what_vllms_takes_in_the_same_places() -> None:
    stock, ours = (
        list(inspect.signature(cls.allocate_slots).parameters)
        for cls in (KVCacheManager, AdmissionControlledKVCacheManager)
    )
    assert ours == [*stock[:6], "args", "kwargs"]


def known(**sampling: Any) -> bool:
    requests: list[Request] = make_requests([[1] * 8], **sampling)
    return length_is_known(requests[0])


def test_a_length_is_known_if_nothing_can_end_the_output_early() -> None:
    assert known(max_tokens=5)
    assert known(max_tokens=5, min_tokens=5, stop_token_ids=[3])
    assert not known(max_tokens=5, stop_token_ids=[3])
    assert not known(max_tokens=5, stop="end")
    assert not known(max_tokens=5, structured_outputs=StructuredOutputsParams(regex="a|b"))


def test_a_method_that_somebody_else_puts_into_the_manager_is_asked_and_can_be_taken_out(
    llama,
) -> None:
    scheduler = build(BatchLLMScheduler, llama, documents(2, 2), max_tokens=4)
    with patch.object(scheduler.kv_cache_manager, "allocate_slots", return_value=None) as refuse:
        assert scheduler.schedule().total_num_scheduled_tokens == 0
        refuse.assert_called_once()
    run(scheduler)
    assert scheduler.batchllm_snapshot()["num_ended"] == 4


def test_an_urgent_request_does_not_wait_for_the_end_of_a_less_urgent_one(llama) -> None:
    config = make_vllm_config(llama, num_blocks=5, policy="priority", max_num_seqs=2)
    scheduler = make_scheduler(BatchLLMScheduler, config)
    less, more = make_requests([[1] * 30, [2] * 32], priorities=[1, 0], max_tokens=16)
    scheduler.add_request(less)
    output = scheduler.schedule()
    scheduler.update_from_output(output, model_output(scheduler, output))
    scheduler.add_request(more)
    assert [new.req_id for new in scheduler.schedule().scheduled_new_reqs] == [more.request_id]


def test_in_front_of_those_who_hold_blocks_nobody_is_asked_to_wait(llama) -> None:
    """Its transfer has failed and its blocks are gone; those behind it cannot give theirs back."""
    scheduler = build(BatchLLMScheduler, llama, [[1] * 40])
    scheduler.schedule()
    one, other = make_requests([[n] * 320 for n in (2, 3)], max_tokens=9000)
    one.request_id, other.request_id = "one", "other"
    step = scheduler.admission.step
    for request in (one, other):
        scheduler.kv_holding_waiting.add_request(request)
        scheduler.requests[request.request_id] = request
    step.refusal = "peak"
    manager = scheduler.kv_cache_manager
    assert manager.allocate_slots(one, 320, has_scheduled_reqs=True) is not None
    assert manager.allocate_slots(other, 320, has_scheduled_reqs=True) is None
    scheduler.kv_holding_waiting.pop_request()
    assert manager.allocate_slots(other, 320, has_scheduled_reqs=True) is not None
