# SPDX-License-Identifier: Apache-2.0
"""A schedule is a function of what arrived and in which order: never of request ids, never of a clock.

Where several schedulers serve one batch together (one a rank), each gets ids with random characters
of its own, reads a clock of its own and renders at its own speed, and they must decide alike.
"""

from __future__ import annotations

import random
from typing import Any

import pytest
from fake_engine import make_request, make_scheduler, make_vllm_config, model_output
from vllm.v1.request import RequestStatus

from vllm_batchllm.admission.environment import Environment
from vllm_batchllm.scheduler.scheduler import AsyncBatchLLMScheduler, BatchLLMScheduler

STOP = 999
NUM_REQUESTS, NUM_STEPS = 700, 2000


class Rank:
    """One of the schedulers; ``salt`` is all that sets it apart.

    Requests come in a step of their own, some are aborted in another, some have known lengths, some a
    hint, most none; memory is short.
    """

    def __init__(self, model: str, salt: int, policy: str, is_async: bool) -> None:
        self.own, shared = random.Random(salt), random.Random(2)
        self.now_s = self.own.random() * 1e6
        self.scheduler = make_scheduler(
            AsyncBatchLLMScheduler if is_async else BatchLLMScheduler,
            make_vllm_config(
                model,
                num_blocks=70,
                max_num_seqs=24,
                max_num_batched_tokens=256,
                policy=policy,
                async_scheduling=is_async,
            ),
            Environment("cuda", self.clock),
        )
        self.depth = 2 if is_async else 1
        self.in_flight: list[Any] = []
        self.number_of: dict[str, int] = {}
        self.name_of: dict[int, str] = {}
        self.coming = [self.describe(number, shared) for number in range(NUM_REQUESTS)]
        self.aborted = {shared.randrange(NUM_STEPS): n for n in range(0, NUM_REQUESTS, 12)}

    def clock(self) -> float:
        self.now_s += self.own.random()
        return self.now_s

    def describe(self, number: int, shared: random.Random) -> dict[str, Any]:
        length = 90 if shared.random() < 0.15 else shared.randrange(4, 30)
        kind = shared.choice(["known", "hinted", "guessed", "guessed"])
        return {
            "step": 0 if number < 60 else shared.randrange(NUM_STEPS - 200),
            "number": number,
            "prompt": [1 + number % 20] * 64 + [shared.randrange(30, 900) for _ in range(9)],
            "length": length,
            "max_tokens": length if kind == "known" else 400,
            "stop": [] if kind == "known" else [STOP],
            "hint": length + shared.randrange(-3, 9) if kind == "hinted" else None,
            "priority": shared.randrange(3),
        }

    def add(self, step: int) -> None:
        for one in [one for one in self.coming if one["step"] == step]:
            name = f"{one['number']}-{self.own.getrandbits(32):08x}"
            self.number_of[name], self.name_of[one["number"]] = one["number"], name
            sampling: dict[str, Any] = {"stop_token_ids": one["stop"]}
            if one["hint"] is not None:
                sampling["extra_args"] = {"expected_output_tokens": max(one["hint"], 1)}
            self.scheduler.add_request(
                make_request(
                    name,
                    one["prompt"],
                    max_tokens=one["max_tokens"],
                    sampling=sampling,
                    priority=one["priority"],
                    arrival_time=self.clock(),
                )
            )

    def step(self, step: int) -> tuple[Any, ...]:
        """What the step did, with requests named by their number."""
        scheduler = self.scheduler
        self.add(step)
        if self.aborted.get(step) in self.name_of:
            name = self.name_of[self.aborted[step]]
            if name in scheduler.requests:
                scheduler.finish_requests(name, RequestStatus.FINISHED_ABORTED)
        output = scheduler.schedule()
        if output.total_num_scheduled_tokens:
            self.in_flight.append((output, self.sampled(output)))
        is_due = len(self.in_flight) >= self.depth or not output.total_num_scheduled_tokens
        if self.in_flight and is_due:
            scheduler.update_from_output(*self.in_flight.pop(0))
        scheduled = [(self.number_of[name], n) for name, n in output.num_scheduled_tokens.items()]
        blocks = [(self.number_of[new.req_id], new.block_ids) for new in output.scheduled_new_reqs]
        preempted = sorted(self.number_of[name] for name in output.preempted_req_ids or ())
        return scheduled, blocks, preempted

    def sampled(self, output: Any) -> Any:
        made = model_output(self.scheduler, output)
        for tokens, name in zip(made.sampled_token_ids, made.req_ids, strict=True):
            request, one = self.scheduler.requests[name], self.coming[self.number_of[name]]
            if tokens and request.num_output_tokens + self.depth >= one["length"] and one["stop"]:
                tokens[:] = [STOP]
        return made


@pytest.mark.parametrize("policy", ["fcfs", "priority"])
@pytest.mark.parametrize("is_async", [False, True])
def test_ranks_of_other_ids_and_clocks_decide_alike(
    llama: str, policy: str, is_async: bool
) -> None:
    one, other = (Rank(llama, salt, policy, is_async) for salt in (1, 2))
    num_preempted = num_scheduled = 0
    for step in range(NUM_STEPS):
        first, second = one.step(step), other.step(step)
        assert first == second, f"step {step}"
        num_scheduled += bool(first[0])
        num_preempted += len(first[2])
    assert num_scheduled > 0.9 * NUM_STEPS and num_preempted > 10, "memory is short here"
    assert one.scheduler.batchllm_snapshot()["refused_peak"] > 100


@pytest.mark.parametrize(
    ("name", "value", "shown"),
    [
        ("max_wait_s", 5.0, "5"),
        ("target_tbt_ms", 20.0, "20"),
        ("target_ttft_ms", 500.0, "500"),
        ("release", "groups", "groups"),
    ],
)
def test_where_ranks_must_agree_what_reads_a_clock_is_refused_by_name(
    llama: str, name: str, value: object, shown: str
) -> None:
    config = make_vllm_config(llama, options={name: value})
    config.parallel_config.distributed_executor_backend = "external_launcher"
    with pytest.raises(ValueError, match=rf"'{name}' = {shown} .* 'external_launcher'"):
        make_scheduler(BatchLLMScheduler, config)
    config = make_vllm_config(llama, options={})
    config.parallel_config.distributed_executor_backend = "external_launcher"
    make_scheduler(BatchLLMScheduler, config)
