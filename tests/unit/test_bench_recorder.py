# SPDX-License-Identifier: Apache-2.0
"""The recorder counts from what `schedule()` returns, and leaves the scheduler as it was."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from vllm_batchllm.measure.recorder import record


def step(
    scheduled: dict[str, int],
    new: dict[str, int] | None = None,
    cached: dict[str, int] | None = None,
    preempted: set[str] | None = None,
) -> SimpleNamespace:
    """A SchedulerOutput: tokens per request, and where new and old requests start."""
    new, cached = new or {}, cached or {}
    return SimpleNamespace(
        num_scheduled_tokens=scheduled,
        total_num_scheduled_tokens=sum(scheduled.values()),
        scheduled_new_reqs=[
            SimpleNamespace(req_id=name, num_computed_tokens=start) for name, start in new.items()
        ],
        scheduled_cached_reqs=SimpleNamespace(
            req_ids=list(cached), num_computed_tokens=list(cached.values())
        ),
        preempted_req_ids=preempted,
    )


class FakeScheduler:
    """Plays back steps; holds one block more after each."""

    def __init__(self, steps: list[SimpleNamespace], num_prompt_tokens: dict[str, int]) -> None:
        self._steps = iter(steps)
        self._held = 0
        self.requests = {
            name: SimpleNamespace(num_prompt_tokens=count)
            for name, count in num_prompt_tokens.items()
        }
        self.running = [None] * 2
        self.waiting = SimpleNamespace(plan_s=1.0)
        pool = SimpleNamespace(num_gpu_blocks=11, get_num_free_blocks=lambda: 10 - self._held)
        self.kv_cache_manager = SimpleNamespace(block_pool=pool)

    def schedule(self, throttle_prefills: bool = False) -> Any:
        self._held += 1
        self.waiting.plan_s += 0.25
        return next(self._steps)


def test_prompt_tokens_are_told_from_output_tokens_by_position() -> None:
    steps = [
        step({"a": 60, "b": 40}, new={"a": 0, "b": 32}),  # b hits 32 of its 80
        step({"a": 40, "b": 8}, cached={"a": 60, "b": 72}),
        step({"a": 1, "b": 1}, cached={"a": 100, "b": 80}),
        step({}),
    ]
    scheduler = FakeScheduler(steps, {"a": 100, "b": 80})
    with record(scheduler) as counts:
        for _ in steps:
            scheduler.schedule()
    assert counts.step_tokens == [100, 48, 2]
    assert counts.steps == 3
    assert counts.computed_prompt_tokens == 100 + 48
    assert counts.admission_hit_tokens == 32
    assert (counts.kv_peak_blocks, counts.running_peak) == (4, 2)
    assert counts.step_kv_blocks == [1, 2, 3]  # the step without tokens is left out
    assert counts.plan_s == pytest.approx(1.0)


def test_recomputation_after_preemption_counts_again_but_not_as_admission() -> None:
    steps = [
        step({"a": 100}, new={"a": 0}),
        step({"a": 1}, cached={"a": 100}),
        step({}, preempted={"a"}),
        step({"a": 70}, cached={"a": 32}),  # resumed: 68 prompt tokens and 2 output tokens again
        step({"a": 1}, cached={"a": 102}),
    ]
    scheduler = FakeScheduler(steps, {"a": 100})
    with record(scheduler) as counts:
        for _ in steps:
            scheduler.schedule()
    assert counts.preemptions == 1
    assert counts.computed_prompt_tokens == 100 + 68
    assert counts.admission_hit_tokens == 0


def test_a_resumed_request_that_is_sent_as_new_is_not_admitted_twice() -> None:
    steps = [step({"a": 10}, new={"a": 0}), step({"a": 4}, new={"a": 6}, preempted={"a"})]
    scheduler = FakeScheduler(steps, {"a": 10})
    with record(scheduler) as counts:
        scheduler.schedule()
        scheduler.schedule()
    assert counts.admission_hit_tokens == 0
    assert counts.computed_prompt_tokens == 14


def test_the_scheduler_is_restored_even_after_an_error() -> None:
    scheduler = FakeScheduler([step({})], {})
    with pytest.raises(StopIteration), record(scheduler):
        assert "schedule" in vars(scheduler)
        scheduler.schedule(throttle_prefills=True)
        scheduler.schedule()
    assert "schedule" not in vars(scheduler)


def test_a_queue_without_plan_time_counts_as_none() -> None:
    scheduler = FakeScheduler([step({})], {})
    scheduler.waiting = []  # type: ignore[assignment]
    with record(scheduler) as counts:
        pass
    assert counts.plan_s == 0.0
