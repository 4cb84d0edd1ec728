# SPDX-License-Identifier: Apache-2.0
"""The real schedulers on a fake KV config: order, reuse, and equality with stock."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from typing import Any

import pytest
from fake_engine import (
    admitted_ids,
    make_requests,
    make_scheduler,
    make_vllm_config,
    model_output,
    run_overlapped,
    run_to_end,
)
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.interface import PauseState
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.request import RequestStatus

from vllm_batchllm.ordering.policies import ORDERS
from vllm_batchllm.prefix.best_saving import optimal_saved_tokens
from vllm_batchllm.scheduler.request_queue import PrefixGroupQueue
from vllm_batchllm.scheduler.scheduler import (
    AsyncBatchLLMScheduler,
    BatchLLMScheduler,
    create_scheduler,
)

Prompts = list[list[int]]


def shared_documents(num_groups: int = 8, members: int = 6, seed: int = 0) -> Prompts:
    """Groups of prompts over one document each, shuffled."""
    rng = random.Random(seed)
    prompts = [
        [group + 1] * 150 + [rng.randrange(1000) for _ in range(rng.randrange(5, 40))]
        for group in range(num_groups)
        for _ in range(members)
    ]
    rng.shuffle(prompts)
    return prompts


def build(cls: Any, model: str, prompts: Prompts, **config: Any) -> Any:
    """A scheduler with all ``prompts`` queued."""
    request_keys = {"max_tokens", "priorities", "hashed"}
    request_args = {key: config.pop(key) for key in request_keys & config.keys()}
    scheduler = make_scheduler(cls, make_vllm_config(model, **config))
    for request in make_requests(prompts, **request_args):
        scheduler.add_request(request)
    return scheduler


def steps_of(scheduler: Any, max_steps: int = 5000) -> list[tuple[dict[str, int], list[str]]]:
    """Everything that can be seen of a run: tokens per request and admissions, step by step."""
    seen = []
    while scheduler.has_unfinished_requests():
        assert len(seen) < max_steps
        output = scheduler.schedule()
        seen.append((dict(output.num_scheduled_tokens), admitted_ids(output)))
        scheduler.update_from_output(output, model_output(scheduler, output))
    return seen


def first_admissions(steps: list[tuple[dict[str, int], list[str]]]) -> list[str]:
    return list(dict.fromkeys(name for _, names in steps for name in names))


def num_tokens(steps: list[tuple[dict[str, int], list[str]]]) -> int:
    return sum(sum(tokens.values()) for tokens, _ in steps)


def group_changes(prompts: Prompts, order: Sequence[str]) -> int:
    firsts = [prompts[int(request_id)][0] for request_id in order]
    return sum(a != b for a, b in itertools.pairwise(firsts))


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(
    ("cls", "async_scheduling", "run"),
    [(BatchLLMScheduler, False, run_to_end), (AsyncBatchLLMScheduler, True, run_overlapped)],
)
def test_groups_are_admitted_one_after_the_other_and_nothing_is_computed_twice(
    llama, cls, async_scheduling, run, order
) -> None:
    prompts = shared_documents()
    scheduler = build(
        cls,
        llama,
        prompts,
        num_blocks=45,  # far less than the 8 documents need
        max_num_seqs=4,
        async_scheduling=async_scheduling,
        options={"order": order},
    )
    admitted = run(scheduler)
    assert sorted(admitted, key=int) == [str(n) for n in range(len(prompts))]
    assert group_changes(prompts, admitted) == 7
    counters = scheduler.batchllm_snapshot()
    assert counters["num_preemptions"] == 0
    assert counters["admission_hit_tokens"] == optimal_saved_tokens(prompts, 16)
    assert counters["computed_prompt_tokens"] == sum(map(len, prompts)) - optimal_saved_tokens(
        prompts, 16
    )


def test_stock_computes_the_same_documents_again_and_again(llama) -> None:
    """The control for the test above: the pressure there is real."""
    prompts = shared_documents()
    scheduler = build(Scheduler, llama, prompts, num_blocks=45, max_num_seqs=4)
    computed = sum(
        sum(tokens.values()) for tokens, _ in steps_of(scheduler)
    )  # prompt and output tokens
    assert computed > 1.3 * (sum(map(len, prompts)) - optimal_saved_tokens(prompts, 16))


def unrelated_load(seed: int, num_blocks: int, policy: str) -> tuple[Prompts, dict[str, Any]]:
    """Prompts that share nothing, and settings under which eight of them run at once."""
    rng = random.Random(seed)
    prompts = [
        [number * 7 + 1, *(rng.randrange(1000) for _ in range(rng.choice([3, 40, 90, 200])))]
        for number in range(60)
    ]
    return prompts, {
        "num_blocks": num_blocks,
        "max_num_seqs": 8,
        "max_num_batched_tokens": 256,
        "policy": policy,
        "max_tokens": 30,
        "priorities": [rng.randrange(3) for _ in prompts],
    }


@pytest.mark.parametrize("policy", ["fcfs", "priority"])
@pytest.mark.parametrize(("caching", "num_blocks"), [(True, 150), (False, 150), (False, 60)])
@pytest.mark.parametrize("seed", range(4))
def test_with_nothing_shared_every_step_is_stocks(llama, policy, caching, num_blocks, seed) -> None:
    prompts, settings = unrelated_load(seed, num_blocks, policy)
    settings["enable_prefix_caching"] = caching
    stock = steps_of(build(Scheduler, llama, prompts, **settings))
    ours = steps_of(build(BatchLLMScheduler, llama, prompts, **settings))
    assert ours == stock


@pytest.mark.parametrize("policy", ["fcfs", "priority"])
@pytest.mark.parametrize("seed", range(4))
def test_with_nothing_shared_and_no_room_less_is_computed_twice(llama, policy, seed) -> None:
    """The blocks of preempted requests are kept, so the steps differ from stock's."""
    prompts, settings = unrelated_load(seed, 60, policy)
    stock = build(Scheduler, llama, prompts, **settings)
    ours = build(BatchLLMScheduler, llama, prompts, **settings)
    of_stock, of_ours = steps_of(stock), steps_of(ours)
    assert first_admissions(of_ours) == first_admissions(of_stock)
    assert num_tokens(of_ours) <= num_tokens(of_stock)


def test_with_prefix_caching_off_the_queue_is_stocks_own(llama) -> None:
    prompts = shared_documents()
    ours = build(BatchLLMScheduler, llama, prompts, enable_prefix_caching=False)
    stock = build(Scheduler, llama, prompts, enable_prefix_caching=False)
    assert type(ours.waiting) is type(stock.waiting)
    assert steps_of(ours) == steps_of(stock)


def test_priority_comes_before_groups(llama) -> None:
    prompts = shared_documents(num_groups=3, members=4)
    priorities = [number % 2 for number in range(len(prompts))]
    scheduler = build(
        BatchLLMScheduler, llama, prompts, policy="priority", priorities=priorities, max_num_seqs=2
    )
    admitted = run_to_end(scheduler)
    assert [priorities[int(i)] for i in admitted] == sorted(priorities)
    for priority in (0, 1):
        of_class = [i for i in admitted if priorities[int(i)] == priority]
        firsts = {prompts[int(i)][0] for i in of_class}
        assert group_changes(prompts, of_class) == len(firsts) - 1


TIGHT: dict[str, Any] = {
    "num_blocks": 40,
    "max_num_seqs": 10,
    "max_tokens": 60,
    "options": {"admission": "stock"},
}
"""Memory so small that vLLM's own admission preempts."""


def test_preempted_requests_come_back_first_and_are_counted(llama) -> None:
    prompts = shared_documents(num_groups=4, members=5)
    scheduler = build(
        BatchLLMScheduler,
        llama,
        prompts,
        **TIGHT,
    )
    num_seen, came_back, waiting_preempted = 0, [], set()
    while scheduler.has_unfinished_requests():
        output = scheduler.schedule()
        admitted = admitted_ids(output)
        back = [i for i in admitted if i in waiting_preempted]
        if len(admitted) > len(back):
            assert waiting_preempted <= set(back), "a newcomer overtook a preempted request"
        came_back += back
        waiting_preempted -= set(back)
        preempted = output.preempted_req_ids or set()
        num_seen += len(preempted)
        waiting_preempted |= preempted
        scheduler.waiting.check_integrity()
        scheduler.update_from_output(output, model_output(scheduler, output))
    assert num_seen > 0
    assert scheduler.batchllm_snapshot()["num_preemptions"] == num_seen
    assert len(came_back) == num_seen


def test_computed_prompt_tokens_equal_a_recount_position_by_position(llama) -> None:
    prompts = shared_documents(num_groups=4, members=5)
    scheduler = build(
        BatchLLMScheduler,
        llama,
        prompts,
        max_num_batched_tokens=64,
        **TIGHT,
    )
    recount = 0
    while scheduler.has_unfinished_requests():
        output = scheduler.schedule()
        for request_id, num_tokens in output.num_scheduled_tokens.items():
            request = scheduler.requests[request_id]
            start = request.num_computed_tokens - num_tokens
            recount += max(min(start + num_tokens, request.num_prompt_tokens) - start, 0)
        scheduler.update_from_output(output, model_output(scheduler, output))
    counters = scheduler.batchllm_snapshot()
    assert counters["num_preemptions"] > 0
    assert counters["computed_prompt_tokens"] == recount


def test_aborted_requests_leave_at_once(llama) -> None:
    prompts = shared_documents()
    scheduler = build(BatchLLMScheduler, llama, prompts, max_num_seqs=4)
    scheduler.schedule()
    waiting = [request.request_id for request in scheduler.waiting]
    scheduler.finish_requests(waiting[::2], RequestStatus.FINISHED_ABORTED)
    scheduler.waiting.check_integrity()
    assert [request.request_id for request in scheduler.waiting] == waiting[1::2]
    scheduler.finish_requests(None, RequestStatus.FINISHED_ABORTED)
    assert len(scheduler.waiting) == 0 and not scheduler.waiting
    assert scheduler.kv_cache_manager.block_pool.get_num_free_blocks() == 10_000 - 1


def test_the_queue_can_be_indexed_and_asked(llama) -> None:
    scheduler = build(BatchLLMScheduler, llama, [[n] * 40 for n in range(1, 6)])
    queue = scheduler.waiting
    assert [queue[n].request_id for n in range(5)] == ["0", "1", "2", "3", "4"]
    assert queue[-1].request_id == "4" and queue[0] in queue
    with pytest.raises(IndexError, match="out of range for 5 requests"):
        queue[5]
    with pytest.raises(ValueError, match="request 99 is not in the waiting queue"):
        (stranger,) = make_requests([[1] * 40])
        stranger.request_id = "99"
        queue.remove_request(stranger)
    for _ in range(5):
        queue.pop_request()
    with pytest.raises(IndexError, match="empty queue"):
        queue.peek_request()


def test_a_paused_scheduler_admits_nobody_and_goes_on_where_it_was(llama) -> None:
    prompts = shared_documents(num_groups=2, members=3)
    scheduler = build(BatchLLMScheduler, llama, prompts)
    scheduler.set_pause_state(PauseState.PAUSED_ALL)
    assert scheduler.schedule().total_num_scheduled_tokens == 0
    scheduler.set_pause_state(PauseState.UNPAUSED)
    assert group_changes(prompts, run_to_end(scheduler)) == 1


def test_prompts_shorter_than_a_block_and_prompt_logprobs_wait_in_line(llama) -> None:
    prompts = [[number] * 5 for number in range(1, 9)]
    assert run_to_end(build(BatchLLMScheduler, llama, prompts)) == [str(n) for n in range(8)]
    scheduler = make_scheduler(BatchLLMScheduler, make_vllm_config(llama, max_num_seqs=1))
    for request in make_requests([[1] * 40, [2] * 40, [1] * 40], prompt_logprobs=1):
        assert request.skip_reading_prefix_cache
        scheduler.add_request(request)
    assert [request.request_id for request in scheduler.waiting] == ["0", "1", "2"]


def test_a_hundred_thousand_identical_prompts(llama) -> None:
    (first,) = make_requests([[5] * 100])
    scheduler = make_scheduler(BatchLLMScheduler, make_vllm_config(llama, max_num_seqs=4))
    requests = make_requests([[5] * 100 for _ in range(100_000)], hashed=False)
    for request in requests:
        request.block_hashes = list(first.block_hashes)
        scheduler.add_request(request)
    scheduler.waiting.check_integrity()
    order: list[str] = []
    for _ in range(200):
        output = scheduler.schedule()
        order += admitted_ids(output)
        scheduler.update_from_output(output, model_output(scheduler, output))
    assert order == [str(number) for number in range(len(order))] and len(order) > 100
    assert len(scheduler.waiting) == 100_000 - len(order)


@pytest.mark.parametrize(
    ("cls", "async_scheduling", "right"),
    [
        (BatchLLMScheduler, True, "AsyncBatchLLMScheduler"),
        (AsyncBatchLLMScheduler, False, "BatchLLMScheduler"),
    ],
)
def test_a_leaf_that_does_not_fit_the_async_mode_is_refused(
    llama, cls, async_scheduling, right
) -> None:
    config = make_vllm_config(llama, async_scheduling=async_scheduling)
    with pytest.raises(ValueError, match=rf"does not fit async_scheduling=\w+; use {right}"):
        make_scheduler(cls, config)


def test_the_factory_picks_the_leaf(llama) -> None:
    leaves = [
        make_scheduler(create_scheduler, make_vllm_config(llama, async_scheduling=mode))
        for mode in (False, True)
    ]
    assert [type(leaf) for leaf in leaves] == [BatchLLMScheduler, AsyncBatchLLMScheduler]
    assert isinstance(leaves[0], Scheduler) and isinstance(leaves[1], AsyncScheduler)
    assert all(isinstance(leaf.waiting, PrefixGroupQueue) for leaf in leaves)


def test_options_have_defaults_and_bad_ones_are_refused(llama) -> None:
    scheduler = make_scheduler(BatchLLMScheduler, make_vllm_config(llama))
    assert scheduler.batchllm_config.order == "dfs"
    with pytest.raises(ValueError, match=r"unknown batchllm option 'ordering' .* 'order'"):
        make_scheduler(BatchLLMScheduler, make_vllm_config(llama, options={"ordering": "dfs"}))
    with pytest.raises(ValueError, match="'max_wait_s' = 0 is not allowed; allowed: a number > 0"):
        make_scheduler(BatchLLMScheduler, make_vllm_config(llama, options={"max_wait_s": 0}))


def test_an_unsupported_vllm_is_refused(llama, monkeypatch) -> None:
    monkeypatch.setattr("vllm_batchllm.compat.version.installed_vllm_version", lambda: "0.31.2")
    with pytest.raises(RuntimeError, match=r"vLLM 0\.31\.2 is installed.*>= 0\.32\.0, < 0\.34"):
        make_scheduler(BatchLLMScheduler, make_vllm_config(llama))
    monkeypatch.setenv("VLLM_BATCHLLM_SKIP_VERSION_CHECK", "1")
    assert make_scheduler(BatchLLMScheduler, make_vllm_config(llama)).waiting is not None
