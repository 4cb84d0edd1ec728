# SPDX-License-Identifier: Apache-2.0
"""Interactive and batch requests in one engine: who goes first, who gives way, who has waited too long."""

from __future__ import annotations

from typing import Any

import pytest
from fake_engine import make_request, make_scheduler, make_vllm_config, model_output

from vllm_batchllm.admission.environment import Environment
from vllm_batchllm.scheduler.scheduler import AsyncBatchLLMScheduler, BatchLLMScheduler

INTERACTIVE, BATCH = 0, 5


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def make(
    llama: str, clock: Clock, options: dict[str, Any], *, is_async: bool = False, **sizes: Any
) -> Any:
    config = make_vllm_config(
        llama, policy="priority", options=options, async_scheduling=is_async, **sizes
    )
    leaf = AsyncBatchLLMScheduler if is_async else BatchLLMScheduler
    return make_scheduler(leaf, config, Environment("cuda", clock))


def request(name: str, priority: int, num_tokens: int = 40, **fields: Any) -> Any:
    first = sum(map(ord, name))
    prompt = [(first * 31 + place * 7) % 900 + 10 for place in range(num_tokens)]
    return make_request(name, prompt, priority=priority, **fields)


def step(scheduler: Any, clock: Clock, seconds: float = 0.01) -> Any:
    output = scheduler.schedule()
    clock.now_s += seconds
    scheduler.update_from_output(output, model_output(scheduler, output))
    return output


@pytest.mark.parametrize("more", [{}, {"target_tbt_ms": 1e6}, {"target_ttft_ms": 1e6}])
def test_who_has_waited_too_long_goes_before_more_urgent_ones(
    llama: str, more: dict[str, Any]
) -> None:
    """Also where the head is looked at before the step, to size it."""
    clock = Clock()
    scheduler = make(llama, clock, {"max_wait_s": 1.0} | more, max_num_seqs=1)
    scheduler.add_request(request("batch", BATCH))
    order = []
    for number in range(60):
        scheduler.add_request(request(f"chat{number}", INTERACTIVE, max_tokens=1))
        output = step(scheduler, clock, 0.05)
        order += [new.req_id for new in output.scheduled_new_reqs]
        if "batch" in order:
            break
    # Arrived first, but less urgent: served once a second is over, and not before.
    assert order.index("batch") == 20
    without = make(llama, clock, {}, max_num_seqs=1)
    without.add_request(request("batch", BATCH))
    for number in range(60):
        without.add_request(request(f"chat{number}", INTERACTIVE, max_tokens=1))
        output = step(without, clock, 0.05)
        assert "batch" not in output.num_scheduled_tokens


def test_who_is_overdue_and_does_not_fit_keeps_nobody_waiting(llama: str) -> None:
    """A batch request that the memory does not hold is tried in every other step only."""
    clock = Clock()
    scheduler = make(llama, clock, {"max_wait_s": 0.5}, num_blocks=14, max_num_seqs=8)
    scheduler.add_request(request("long", INTERACTIVE, max_tokens=60))
    step(scheduler, clock)
    scheduler.add_request(request("batch", BATCH, num_tokens=160))  # 10 of 13 blocks
    clock.now_s += 1.0
    for number in range(6):
        scheduler.add_request(request(f"chat{number}", INTERACTIVE, max_tokens=1))
        started = (
            step(scheduler, clock).scheduled_new_reqs + step(scheduler, clock).scheduled_new_reqs
        )
        assert [new.req_id for new in started] == [f"chat{number}"]
    for _ in range(80):
        step(scheduler, clock)
    assert not scheduler.has_unfinished_requests()


@pytest.mark.parametrize("is_async", [False, True])
def test_a_prompt_of_a_batch_request_pauses_for_an_interactive_one(
    llama: str, is_async: bool
) -> None:
    clock = Clock()
    options = {"target_ttft_ms": 1e6}
    scheduler = make(
        llama, clock, options, is_async=is_async, max_num_batched_tokens=256, max_num_seqs=8
    )
    scheduler.add_request(request("batch", BATCH, num_tokens=2000))
    step(scheduler, clock)
    scheduler.add_request(request("chat", INTERACTIVE, num_tokens=400, max_tokens=5))
    tokens = [dict(step(scheduler, clock).num_scheduled_tokens) for _ in range(3)]
    assert tokens[0] == {"chat": 256}, "the prompt that has begun goes on first in vLLM"
    assert tokens[1] == {"chat": 144}
    assert tokens[2]["batch"] == 255 and tokens[2]["chat"] == 1
    assert [each.request_id for each in scheduler.running] == ["chat", "batch"]
    assert scheduler.batchllm_snapshot()["num_paused_prefills"] == 2
    for _ in range(30):
        step(scheduler, clock)
    assert not scheduler.has_unfinished_requests()


def test_slots_and_memory_are_left_to_interactive_requests(llama: str) -> None:
    clock = Clock()
    scheduler = make(llama, clock, {"target_ttft_ms": 1e6}, max_num_seqs=8, num_blocks=400)
    for number in range(3):
        scheduler.add_request(request(f"chat{number}", INTERACTIVE, max_tokens=2))
    step(scheduler, clock)
    for number in range(20):
        scheduler.add_request(request(f"batch{number}", BATCH, max_tokens=30))
    for _ in range(4):
        step(scheduler, clock)
    running = {each.request_id for each in scheduler.running}
    assert len(running) == 5, "three interactive ones were there at once"
    assert scheduler.batchllm_snapshot()["refused_reserve"] > 0
    for number in range(3, 6):
        scheduler.add_request(request(f"chat{number}", INTERACTIVE, max_tokens=2))
    started = {new.req_id for new in step(scheduler, clock).scheduled_new_reqs}
    assert started == {"chat3", "chat4", "chat5"}
    for _ in range(2):
        step(scheduler, clock)
    clock.now_s += 1000.0  # nobody interactive for long: nothing is kept for them
    for _ in range(10):
        step(scheduler, clock)
    assert len(scheduler.running) == 8
    for _ in range(200):
        step(scheduler, clock)
    assert not scheduler.has_unfinished_requests()


@pytest.mark.parametrize(
    ("options", "sizes", "says"),
    [
        (
            {"target_ttft_ms": 500.0},
            {"policy": "fcfs"},
            "'target_ttft_ms' = 500 .*--scheduling-policy priority",
        ),
        (
            {"target_ttft_ms": 500.0},
            {"policy": "priority", "enable_prefix_caching": False},
            "'target_ttft_ms' = 500 .*--enable-prefix-caching",
        ),
        (
            {"release": "groups"},
            {"enable_prefix_caching": False},
            "'release' = 'groups' .*prefix caching is off",
        ),
    ],
)
def test_what_an_engine_cannot_keep_is_refused_by_name(
    llama: str, options: dict[str, Any], sizes: dict[str, Any], says: str
) -> None:
    with pytest.raises(ValueError, match=says):
        make_scheduler(BatchLLMScheduler, make_vllm_config(llama, options=options, **sizes))


@pytest.mark.parametrize("name", ["enable_chunked_prefill", "disable_chunked_mm_input"])
def test_targets_need_prompts_in_parts(llama: str, name: str) -> None:
    config = make_vllm_config(llama, options={"target_tbt_ms": 20.0}, max_num_batched_tokens=65536)
    setattr(config.scheduler_config, name, name.startswith("disable"))
    with pytest.raises(ValueError, match="'target_tbt_ms' = 20 needs prompts"):
        make_scheduler(BatchLLMScheduler, config)
