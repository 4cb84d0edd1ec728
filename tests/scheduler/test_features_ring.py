# SPDX-License-Identifier: Apache-2.0
"""What vLLM cannot run on a CPU, on the real schedulers: async scheduling, with steps in flight, and
pipelines, with a batch in every stage.

A sampled token says which request it is of and at which place of its output it belongs, so an
output that is lost, doubled, or put into the wrong place shows.
"""

from __future__ import annotations

import itertools
import random
from collections import defaultdict, deque
from typing import Any

import pytest
from fake_engine import admitted_ids, make_requests, make_scheduler, make_vllm_config
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.request import RequestStatus

from vllm_batchllm.admission import preemption_price
from vllm_batchllm.scheduler.scheduler import AsyncBatchLLMScheduler, BatchLLMScheduler

STOP = 9
MAX_TOKENS = 40


def length_of(request_id: str) -> int:
    """Where the output of a request stops, the stop token included; some reach ``MAX_TOKENS``."""
    return min(3 + int(request_id) * 13 % 50, MAX_TOKENS + 1)


def sampled(request_id: str, place: int) -> int:
    """The token at ``place`` of the output of a request."""
    if place == length_of(request_id) - 1:
        return STOP
    return 100 + (int(request_id) * 31 + place) % 800


def whole_output(request_id: str) -> list[int]:
    num_tokens = min(length_of(request_id), MAX_TOKENS)
    return [sampled(request_id, place) for place in range(num_tokens)]


class Overlapped:
    """Steps a scheduler with up to ``depth`` steps in flight, as the async engine does."""

    def __init__(self, scheduler: Any, depth: int) -> None:
        self.scheduler, self.depth = scheduler, depth
        self.in_flight: deque[tuple[SchedulerOutput, list[str]]] = deque()
        self.outputs: dict[str, list[int]] = defaultdict(list)
        self.admitted: list[str] = []
        self.num_overlapping = 0

    def step(self) -> None:
        """Schedule one step more, or end the oldest if there is nothing or no room to."""
        output = self.scheduler.schedule()
        self.admitted += admitted_ids(output)
        if output.total_num_scheduled_tokens:
            sampling = [
                request_id
                for request_id in output.num_scheduled_tokens
                if not self.scheduler.requests[request_id].is_prefill_chunk
            ]
            self.in_flight.append((output, sampling))
            self.num_overlapping += len(self.in_flight) > 1
        if len(self.in_flight) >= self.depth or not output.total_num_scheduled_tokens:
            self.end_oldest()

    def end_oldest(self) -> None:
        """The model's answer to the oldest step arrives."""
        if not self.in_flight:
            return
        output, sampling = self.in_flight.popleft()
        ids = list(output.num_scheduled_tokens)
        requests = self.scheduler.requests
        tokens = [
            [sampled(each, requests[each].num_output_tokens)]
            if each in sampling and each in requests
            else []
            for each in ids
        ]
        answer = ModelRunnerOutput(
            req_ids=ids,
            req_id_to_index={request_id: index for index, request_id in enumerate(ids)},
            sampled_token_ids=tokens,
            logprobs=None,
            prompt_logprobs_dict={},
            pooler_output=[],
        )
        for of_client in self.scheduler.update_from_output(output, answer).values():
            for each in of_client.outputs:
                self.outputs[each.request_id] += each.new_token_ids

    def run(self, max_steps: int = 20_000) -> None:
        for _ in range(max_steps):
            if not self.in_flight and not self.scheduler.has_unfinished_requests():
                return
            self.step()
        raise AssertionError(f"{self.scheduler.get_request_counts()} left")


def documents(num_documents: int = 6, members: int = 6, seed: int = 0) -> list[list[int]]:
    rng = random.Random(seed)
    prompts = [
        [document + 1] * 150 + [rng.randrange(1000) for _ in range(rng.randrange(5, 40))]
        for document in range(num_documents)
        for _ in range(members)
    ]
    rng.shuffle(prompts)
    return prompts


def engine(cls: Any, model: str, prompts: list[list[int]], depth: int, **config: Any) -> Overlapped:
    """A scheduler with all ``prompts`` queued, whose cache holds about three documents."""
    priorities = config.pop("priorities", None)
    num_stages = config.pop("num_stages", 1)
    config = {"num_blocks": 52, "max_num_seqs": 6, "async_scheduling": True} | config
    vllm_config = make_vllm_config(model, **config)
    vllm_config.parallel_config.pipeline_parallel_size = num_stages
    scheduler = make_scheduler(cls, vllm_config)
    requests = make_requests(
        prompts, max_tokens=MAX_TOKENS, priorities=priorities, stop_token_ids=[STOP]
    )
    for request in requests:
        scheduler.add_request(request)
    return Overlapped(scheduler, depth)


def check_clean(scheduler: Any) -> None:
    pool = scheduler.kv_cache_manager.block_pool
    assert len(scheduler.waiting) == len(scheduler.running) == 0
    assert pool.get_num_free_blocks() == pool.num_gpu_blocks - 1, "leaked blocks"
    scheduler.waiting.check_integrity()
    pool.check_integrity()


@pytest.mark.parametrize("depth", [2, 3])
@pytest.mark.parametrize("options", [{}, {"admission": "stock"}], ids=["future", "stock"])
def test_no_token_is_lost_doubled_or_misplaced(llama, depth, options, monkeypatch) -> None:
    """Stops are seen while the next step of the request is in flight; with stock's admission
    requests are preempted in flight too."""
    monkeypatch.setattr(preemption_price, "TOKENS_PER_STEP", 0)
    prompts = documents()
    num_blocks = 40 if options else 52
    ours = engine(
        AsyncBatchLLMScheduler, llama, prompts, depth, options=options, num_blocks=num_blocks
    )
    ours.run()
    assert ours.num_overlapping > 50
    assert ours.outputs == {str(n): whole_output(str(n)) for n in range(len(prompts))}
    counters = ours.scheduler.batchllm_snapshot()
    if options:
        assert counters["num_preemptions"] > 0
    else:
        assert counters["num_preemptions"] == 0 and counters["num_needed_lost"] == 0
    check_clean(ours.scheduler)


@pytest.mark.parametrize("depth", [2, 3])
def test_with_steps_in_flight_less_is_computed_than_by_stock(llama, depth) -> None:
    prompts = documents()
    runs = [engine(cls, llama, prompts, depth) for cls in (AsyncScheduler, AsyncBatchLLMScheduler)]
    computed = []
    for run in runs:
        num_tokens = 0
        schedule = run.scheduler.schedule

        def counting(schedule: Any = schedule) -> SchedulerOutput:
            nonlocal num_tokens
            output = schedule()
            num_tokens += output.total_num_scheduled_tokens
            return output

        run.scheduler.schedule = counting
        run.run()
        computed.append(num_tokens)
    assert runs[0].outputs == runs[1].outputs
    assert computed[1] < 0.8 * computed[0]


def test_priorities_hold_with_steps_in_flight(llama) -> None:
    prompts = documents()
    priorities = [number % 3 for number in range(len(prompts))]
    ours = engine(
        AsyncBatchLLMScheduler, llama, prompts, 2, policy="priority", priorities=priorities
    )
    ours.run()
    admitted = list(dict.fromkeys(ours.admitted))
    assert [priorities[int(each)] for each in admitted] == sorted(priorities)
    assert ours.outputs == {str(n): whole_output(str(n)) for n in range(len(prompts))}
    check_clean(ours.scheduler)


@pytest.mark.parametrize("seed", range(5))
def test_requests_aborted_in_flight_leave_nothing_behind(llama, seed) -> None:
    rng = random.Random(seed)
    prompts = documents(seed=seed)
    ours = engine(AsyncBatchLLMScheduler, llama, prompts, 2, options={"admission": "stock"})
    aborted = set()
    for _ in range(20_000):
        if not ours.in_flight and not ours.scheduler.has_unfinished_requests():
            break
        ours.step()
        if rng.random() < 0.15 and ours.scheduler.requests:
            victim = rng.choice(sorted(ours.scheduler.requests))
            aborted.add(victim)
            ours.scheduler.finish_requests(victim, RequestStatus.FINISHED_ABORTED)
    check_clean(ours.scheduler)
    assert 3 < len(aborted) < len(prompts)
    for number in map(str, range(len(prompts))):
        whole = whole_output(number)
        assert ours.outputs[number] == (
            whole[: len(ours.outputs[number])] if number in aborted else whole
        )


@pytest.mark.parametrize("num_stages", [2, 4])
def test_a_pipeline_of_stages_answers_as_one(llama, num_stages, monkeypatch) -> None:
    """A request is in one stage at a time, so several batches take turns."""
    monkeypatch.setattr(preemption_price, "TOKENS_PER_STEP", 0)
    prompts = documents()
    ours = engine(
        BatchLLMScheduler,
        llama,
        prompts,
        num_stages,
        num_stages=num_stages,
        async_scheduling=False,
        max_num_batched_tokens=256,
    )
    ours.run()
    assert ours.num_overlapping > 50
    assert ours.outputs == {str(n): whole_output(str(n)) for n in range(len(prompts))}
    admitted = [prompts[int(each)][0] for each in dict.fromkeys(ours.admitted)]
    assert sum(a != b for a, b in itertools.pairwise(admitted)) == len(set(admitted)) - 1
    assert ours.scheduler.batchllm_snapshot()["num_needed_lost"] == 0
    check_clean(ours.scheduler)
