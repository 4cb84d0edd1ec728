# SPDX-License-Identifier: Apache-2.0
"""One batch on a real scheduler without a model: exact counters, and time by fitted costs."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

from fake_engine import STOP_TOKEN, make_requests, make_scheduler, make_vllm_config, model_output
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.request import Request

from vllm_batchllm.bench.batch import Batch, kv_blocks_for
from vllm_batchllm.bench.workloads import make_workload
from vllm_batchllm.schedule.cost_rule import PLATFORM_COSTS
from vllm_batchllm.schedule.scheduler import BatchLLMScheduler

BLOCK_SIZE = 32
COSTS = PLATFORM_COSTS["cpu"]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run computed, and the time it would take by the fitted costs.

    saved_ratio: 1 - prompt tokens computed / prompt tokens, recomputation included.
    """

    saved_ratio: float
    preemptions: int
    steps: int
    modelled_s: float


@cache
def workload(name: str, scale: float, num_requests: int | None = None) -> Batch:
    """The workload of that name, as `vllm-batchllm bench` draws it."""
    return make_workload(name, scale=scale, num_requests=num_requests)


def run(batch: Batch, model: str, options: dict[str, Any] | None) -> Outcome:
    """Serve `batch` by our scheduler, or with None by vLLM's in sorted order."""
    order = range(len(batch.prompts))
    ordered = list(order) if options is not None else sorted(order, key=lambda i: batch.prompts[i])
    scheduler = make_scheduler(
        Scheduler if options is None else BatchLLMScheduler,
        make_vllm_config(
            model,
            num_blocks=kv_blocks_for(batch, BLOCK_SIZE),
            block_size=BLOCK_SIZE,
            max_num_seqs=256,
            max_num_batched_tokens=2048,
            options=options,
        ),
    )
    if options is not None and scheduler.admission is not None:
        scheduler.admission.planner.keep_costs()  # those of this machine are no business of the ring
    lengths = {str(at): batch.output_lens[i] for at, i in enumerate(ordered)}
    for request in _requests(batch, ordered):
        scheduler.add_request(request)
    return _serve(scheduler, batch, lengths)


def _requests(batch: Batch, ordered: list[int]) -> list[Request]:
    requests = make_requests([batch.prompts[i] for i in ordered], block_size=BLOCK_SIZE)
    for request, i in zip(requests, ordered, strict=True):
        known = batch.lengths_known
        request.max_tokens = batch.output_lens[i] if known else batch.max_output_tokens
        request.sampling_params.max_tokens = request.max_tokens
        if not known:
            request.sampling_params.stop_token_ids = [STOP_TOKEN]
    return requests


def _serve(scheduler: Any, batch: Batch, lengths: dict[str, int]) -> Outcome:
    num_tokens = num_preemptions = num_steps = 0
    modelled_s = 0.0
    while scheduler.has_unfinished_requests():
        output = scheduler.schedule()
        made = model_output(scheduler, output)
        num_decodes = 0
        for tokens, name in zip(made.sampled_token_ids, made.req_ids, strict=True):
            num_decodes += bool(tokens)
            if tokens and scheduler.requests[name].num_output_tokens + 1 >= lengths[name]:
                tokens[:] = [STOP_TOKEN]
        scheduled = output.total_num_scheduled_tokens
        num_tokens += scheduled
        num_preemptions += len(output.preempted_req_ids or ())
        num_steps += scheduled > 0
        modelled_s += COSTS.of_step(max(scheduled - num_decodes, 0), num_decodes, 0)
        scheduler.update_from_output(output, made)
    # The last output token of a request is never an input.
    num_prompt_tokens = num_tokens - batch.output_tokens + len(batch.output_lens)
    saved = 1 - num_prompt_tokens / sum(map(len, batch.prompts))
    return Outcome(saved, num_preemptions, num_steps, modelled_s)
