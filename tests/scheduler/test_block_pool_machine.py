# SPDX-License-Identifier: Apache-2.0
"""Anything that can happen to a scheduler, in any order: the pool stays sound and keeps promise."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from fake_engine import make_requests, make_vllm_config, model_output
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule
from hypothesis.stateful import run_state_machine_as_test as run_machine
from pooled import (
    KV_GROUPS,
    BlindScheduler,
    make,
    needed_blocks,
    pool_of,
    waiting_hashes,
)
from vllm.config import VllmConfig
from vllm.v1.core.sched.interface import PauseState
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.kv_cache_interface import KVCacheSpec
from vllm.v1.request import Request, RequestStatus

from vllm_batchllm.scheduler.scheduler import BatchLLMScheduler

STOP = 999
NUM_BLOCKS = 24
arrivals = st.fixed_dictionaries(
    {
        "prompt": st.builds(
            lambda document, cut, tail: [document + 1] * cut + tail,
            st.integers(0, 3),
            st.sampled_from(range(2, 24)),
            st.lists(st.integers(10, 11), max_size=5),
        ),
        "max_tokens": st.sampled_from(range(1, 30)),
        "priority": st.integers(0, 2),
        "reads_cache": st.sampled_from([True] * 9 + [False]),
    }
)


class SchedulerMachine(RuleBasedStateMachine):
    """Requests come, run, stop, leave; ``arms`` are schedulers that all see the same.

    num_changes: arrivals, steps, aborts and disturbances so far, each followed by a check.
    """

    num_changes = 0

    def __init__(self, arms: list[Any]) -> None:
        super().__init__()
        self.arms = arms
        self.num_requests = 0

    @rule(arrivals=st.lists(arrivals, min_size=1, max_size=6))
    def add(self, arrivals: list[dict[str, Any]]) -> None:
        for arrival in arrivals:
            for arm in self.arms:
                arm.add_request(self.request(arm, **arrival))
            self.num_requests += 1
            SchedulerMachine.num_changes += 1
            self.check()

    def request(
        self, arm: Any, prompt: list[int], max_tokens: int, priority: int, reads_cache: bool
    ) -> Request:
        (request,) = make_requests(
            [prompt],
            max_tokens=max_tokens,
            block_size=arm.hash_block_size,
            priorities=[priority],
            stop_token_ids=[STOP],
            skip_reading_prefix_cache=not reads_cache,
        )
        request.request_id = str(self.num_requests)
        request.arrival_time = float(self.num_requests)
        return request

    @rule(stopping=st.lists(st.sets(st.integers(0, 19), max_size=3), min_size=1, max_size=8))
    def run(self, stopping: list[set[int]]) -> None:
        for stops in stopping:
            for arm in self.arms:
                output = arm.schedule()
                made = model_output(arm, output)
                for tokens, request_id in zip(made.sampled_token_ids, made.req_ids, strict=True):
                    if tokens and int(request_id) % 20 in stops:
                        tokens[:] = [STOP]
                arm.update_from_output(output, made)
            SchedulerMachine.num_changes += 1
            self.check()

    @precondition(lambda self: self.arms[0].requests)
    @rule(numbers=st.lists(st.integers(0, 99), min_size=1, max_size=4))
    def abort(self, numbers: list[int]) -> None:
        for number in numbers:
            known = sorted(self.arms[0].requests, key=int)
            for arm in self.arms:
                names = known[number % len(known) :][:1]
                arm.finish_requests(names, RequestStatus.FINISHED_ABORTED)
            SchedulerMachine.num_changes += 1
            self.check()
            if len(known) == 1:
                break

    @rule(states=st.lists(st.sampled_from(PauseState), max_size=2))
    def pause_and_resume(self, states: list[PauseState]) -> None:
        for state in (*states, PauseState.UNPAUSED):
            for arm in self.arms:
                arm.set_pause_state(state)
            self.run([set()])

    @rule(how=st.sampled_from(["evict", "evict", "reset", "preempt all"]), first=st.integers(1, 20))
    def disturb(self, how: str, first: int) -> None:
        for arm in self.arms:
            if how == "evict":
                pool_of(arm).evict_blocks({first, first + 1})
            else:
                arm.reset_prefix_cache(reset_running_requests=how == "preempt all")
        SchedulerMachine.num_changes += 1
        self.check()

    def check(self) -> None:
        """What must hold after every change."""


class KeepingPromise(SchedulerMachine):
    """One scheduler with the pool, against brute force."""

    def __init__(self, scheduler: Any) -> None:
        super().__init__([scheduler])
        self.scheduler = scheduler
        self.pool = pool_of(scheduler)
        self.give_up = self.pool.free_block_queue.popleft_n
        self.pool.free_block_queue.popleft_n = self.checked_give_up

    def checked_give_up(self, num_blocks: int) -> list[Any]:
        """No needed block is given up while a free one without future uses exists."""
        needed = needed_blocks(self.pool, waiting_hashes(self.scheduler))
        num_lost = self.pool.num_needed_evicted
        num_unneeded = self.pool.get_num_free_blocks() - len(needed)
        taken: list[Any] = self.give_up(num_blocks)
        lost = {block.block_id for block in taken} & needed
        assert len(lost) == max(num_blocks - num_unneeded, 0)
        assert self.pool.num_needed_evicted == num_lost + len(lost)
        return taken

    def check(self) -> None:
        self.scheduler.waiting.check_integrity()
        self.pool.check_integrity()
        admission = self.scheduler.admission
        if admission is not None:
            admission.check_integrity({r.request_id for r in self.scheduler.running})
        needed = needed_blocks(self.pool, waiting_hashes(self.scheduler))
        assert self.pool.needed_free_blocks() == needed
        if not self.scheduler.requests:
            assert self.pool.get_num_free_blocks() == NUM_BLOCKS - 1


class SameAsStock(SchedulerMachine):
    """Our pool with nobody to think of, step for step beside vLLM's."""

    def check(self) -> None:
        stock, ours = self.arms
        assert block_tables(ours) == block_tables(stock)
        assert free_ids(ours) == free_ids(stock)


def block_tables(scheduler: Scheduler) -> dict[str, Any]:
    running = [request.request_id for request in scheduler.running]
    return {name: scheduler.kv_cache_manager.get_block_ids(name) for name in running}


def free_ids(scheduler: Scheduler) -> list[int]:
    return [b.block_id for b in pool_of(scheduler).free_block_queue.get_all_free_blocks()]


def config(model: str, policy: str, order: str, admission: str = "stock") -> VllmConfig:
    return make_vllm_config(
        model,
        num_blocks=NUM_BLOCKS,
        block_size=4,
        max_num_seqs=5,
        max_num_batched_tokens=24,
        policy=policy,
        options={"order": order, "admission": admission},
    )


def run_changes(machine: Callable[[], SchedulerMachine], num_changes: int) -> None:
    """Run ``machine`` until at least ``num_changes`` changes were checked."""
    start = SchedulerMachine.num_changes
    profile = settings(
        max_examples=num_changes // 100,
        stateful_step_count=40,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    while SchedulerMachine.num_changes - start < num_changes:
        run_machine(machine, settings=profile)


@pytest.mark.parametrize(
    ("groups", "policy", "order", "admission", "num_changes"),
    [
        ("full", "fcfs", "dfs", "stock", 4000),
        ("full", "fcfs", "dfs", "future", 4000),
        ("full", "priority", "dfs", "stock", 2000),
        ("full", "priority", "dfs", "future", 2000),
        ("full", "fcfs", "paper", "threshold", 1000),
        ("full", "priority", "exact-groups", "future", 1000),
        ("full", "fcfs", "decode-ratio", "stock", 1000),
        ("full", "priority", "short-first", "future", 2000),
        ("full + sliding window", "fcfs", "dfs", "future", 3000),
        ("full + 2 sliding windows", "priority", "decode-ratio", "stock", 1000),
        ("full + Mamba", "fcfs", "dfs", "future", 1000),
        ("full, blocks of two hashes, + sliding window", "fcfs", "dfs", "stock", 1000),
    ],
)
def test_no_needed_block_is_lost_while_another_is_free(
    llama, groups, policy, order, admission, num_changes
) -> None:
    vllm_config, specs = config(llama, policy, order, admission), KV_GROUPS[groups]
    run_changes(lambda: KeepingPromise(make(BatchLLMScheduler, vllm_config, specs)), num_changes)


@pytest.mark.parametrize("groups", KV_GROUPS)
@pytest.mark.parametrize("policy", ["fcfs", "priority"])
def test_with_nobody_to_think_of_every_block_is_where_stock_has_it(llama, groups, policy) -> None:
    vllm_config, specs = config(llama, policy, "dfs"), KV_GROUPS[groups]
    run_changes(lambda: SameAsStock(both(vllm_config, specs)), 500)


def both(vllm_config: VllmConfig, specs: list[KVCacheSpec]) -> list[Any]:
    return [make(cls, vllm_config, specs) for cls in (Scheduler, BlindScheduler)]
