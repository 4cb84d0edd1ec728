# SPDX-License-Identifier: Apache-2.0
"""A schedule is a function of what arrived and in which order: never of request ids.

Where several schedulers serve one batch together (one a rank), each gets ids with random characters
of its own, and they must decide alike.
"""

from __future__ import annotations

import random
from typing import Any

import pytest
from fake_engine import make_request, make_scheduler, make_vllm_config, model_output

from vllm_batchllm.admission.environment import Environment
from vllm_batchllm.scheduler.scheduler import BatchLLMScheduler

STOP = 999
NUM_REQUESTS = 160


def schedule_of(model: str, salt: str, policy: str = "fcfs") -> list[tuple[Any, ...]]:
    """What each step did, with requests named by their number; lengths are unknown."""
    scheduler = make_scheduler(
        BatchLLMScheduler,
        make_vllm_config(
            model, num_blocks=160, max_num_seqs=64, max_num_batched_tokens=512, policy=policy
        ),
        Environment("cpu", clock=None),
    )
    draw, names = random.Random(2), random.Random(salt)
    number_of, lengths = {}, {}
    for number in range(NUM_REQUESTS):
        name = f"{number}-{names.getrandbits(32):08x}"
        prompt = [1 + number % 20] * 64 + [draw.randrange(30, 900) for _ in range(9)]
        number_of[name], lengths[name] = number, 150 if draw.random() < 0.1 else 8
        scheduler.add_request(
            make_request(
                name,
                prompt,
                max_tokens=400,
                sampling={"stop_token_ids": [STOP]},
                priority=number % 3,
                arrival_time=float(number),
            )
        )
    steps = []
    while scheduler.has_unfinished_requests():
        output = scheduler.schedule()
        preempted = sorted(number_of[name] for name in output.preempted_req_ids or ())
        scheduled = [(number_of[name], n) for name, n in output.num_scheduled_tokens.items()]
        steps.append((scheduled, preempted))
        made = model_output(scheduler, output)
        for tokens, name in zip(made.sampled_token_ids, made.req_ids, strict=True):
            if tokens and scheduler.requests[name].num_output_tokens + 1 >= lengths[name]:
                tokens[:] = [STOP]
        scheduler.update_from_output(output, made)
    return steps


@pytest.mark.parametrize("policy", ["fcfs", "priority"])
def test_other_ids_change_nothing(llama: str, policy: str) -> None:
    first, second = (schedule_of(llama, salt, policy) for salt in ("one", "another"))
    assert len(first) > 100 and any(preempted for _, preempted in first), "memory is short here"
    assert first == second
