# SPDX-License-Identifier: Apache-2.0
"""Counts what a step of a live scheduler has admitted."""

from __future__ import annotations

from collections.abc import Mapping

from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.request import Request

from vllm_batchllm.scheduler.request_queue import PrefixGroupQueue
from vllm_batchllm.stats.counters import ScheduleCounters


def count_step(
    counters: ScheduleCounters,
    output: SchedulerOutput,
    requests: Mapping[str, Request],
    queue: PrefixGroupQueue | None,
) -> None:
    """Add the step whose output is ``output``; what ``queue`` kept of the popped for this is dropped."""
    counters.step(output.total_num_scheduled_tokens)
    started = [(new.req_id, new.num_computed_tokens) for new in output.scheduled_new_reqs]
    cached = output.scheduled_cached_reqs
    if cached.resumed_req_ids:
        starts = dict(zip(cached.req_ids, cached.num_computed_tokens, strict=True))
        started += [(request_id, starts[request_id]) for request_id in cached.resumed_req_ids]
    for request_id, num_hit_tokens in started:
        request = requests[request_id]
        counters.admission(
            request.num_prompt_tokens,
            num_hit_tokens,
            first=request.num_preemptions == 0,
            levels=queue.levels.get(request_id, ()) if queue is not None else (),
        )
    if queue is not None:
        queue.levels.clear()
