# SPDX-License-Identifier: Apache-2.0
"""One batch, one arm: step the real scheduler, charge every step, keep the books."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from vllm.v1.core.sched.scheduler import Scheduler

from vllm_batchllm.admission.environment import Environment
from vllm_batchllm.errors import UsageError
from vllm_batchllm.measure.metrics import RunInputs, RunMetrics, run_metrics
from vllm_batchllm.measure.recorder import record
from vllm_batchllm.scheduler.scheduler import BatchLLMScheduler
from vllm_batchllm.simulate.arms import Arm
from vllm_batchllm.simulate.cost_model import CostModel, StepTime
from vllm_batchllm.simulate.ring import RingSpec, build_scheduler, make_requests, sample
from vllm_batchllm.simulate.sglang import DfsWeightScheduler, LongestPrefixScheduler
from vllm_batchllm.simulate.work import WorkMeter, held_kv_tokens
from vllm_batchllm.workloads.batch import Batch

SCHEDULERS = {
    "stock": Scheduler,
    "batchllm": BatchLLMScheduler,
    "lpm": LongestPrefixScheduler,
    "dfs-weight": DfsWeightScheduler,
}

OnProgress = Callable[[int], None]
"""Told how many requests have ended since the last call."""


@dataclass(frozen=True, slots=True)
class EngineSizes:
    """A fake engine, whatever the arm.

    batchllm_max_num_seqs: requests at once with our scheduler, where its default is larger.
    num_blocks: KV blocks that requests can hold. max_waiting: requests that wait at most at any
    time; None queues the batch before the first step. platform: on which our scheduler decides.
    """

    num_blocks: int
    block_size: int
    max_num_seqs: int
    batchllm_max_num_seqs: int
    max_num_batched_tokens: int
    max_waiting: int | None = None
    prefix_caching: bool = True
    platform: str = "cuda"


@dataclass(frozen=True, slots=True)
class SimulatedRun:
    """What one run did, and where its time went.

    metrics: as `vllm-batchllm bench` reports them; `makespan_s` is simulated, `plan_s` measured
    here. parts: seconds by part of a step; they sum up to the makespan. wall_s: of the simulation.
    """

    metrics: RunMetrics
    parts: StepTime
    wall_s: float
    counters: dict[str, Any] = field(default_factory=dict)

    def mean_kv_share(self, num_blocks: int) -> float | None:
        """Mean share of the KV blocks held by requests over the steps; None if not recorded."""
        held = getattr(self.metrics, "step_kv_blocks", ())
        return sum(held) / len(held) / num_blocks if held else None


def run_arm(
    batch: Batch,
    arm: Arm,
    sizes: EngineSizes,
    costs: CostModel,
    optimal_saved_tokens: int,
    on_progress: OnProgress | None = None,
) -> SimulatedRun:
    """Serve `batch` by `arm`; deterministic but for `plan_s` and `wall_s`.

    Raises:
        UsageError: a request can never fit into the KV blocks.
    """
    check_fits(batch, sizes)
    began_s = time.perf_counter()
    clock = _Clock()
    scheduler = _make_scheduler(batch, arm, sizes, clock)
    order = arm.input_order(batch)
    requests = deque(make_requests(batch, order, sizes.block_size))
    ends = {str(place): batch.output_lens[index] for place, index in enumerate(order)}
    total = StepTime()
    with record(scheduler) as steps:
        _serve(scheduler, requests, ends, sizes, costs, clock, total, on_progress)
    inputs = RunInputs(
        batch.num_requests, batch.prompt_tokens, batch.output_tokens, optimal_saved_tokens
    )
    snapshot = getattr(scheduler, "batchllm_snapshot", dict)
    return SimulatedRun(
        metrics=run_metrics(arm.name, 0, inputs, steps, clock.now_s),
        parts=total,
        wall_s=time.perf_counter() - began_s,
        counters=snapshot(),
    )


@dataclass(slots=True)
class _Clock:
    now_s: float = 0.0

    def __call__(self) -> float:
        return self.now_s


def check_fits(batch: Batch, sizes: EngineSizes) -> None:
    """Raise UsageError if a request of `batch` is larger than the KV cache."""
    longest = max(len(p) + n for p, n in zip(batch.prompts, batch.output_lens, strict=True))
    needed = -(-longest // sizes.block_size)
    if needed > sizes.num_blocks:
        raise UsageError(
            f"the largest request of {batch.name!r} has {longest} tokens, which is {needed} KV "
            f"blocks of {sizes.block_size}; there are {sizes.num_blocks}"
        )


def _make_scheduler(batch: Batch, arm: Arm, sizes: EngineSizes, clock: _Clock) -> Any:
    raised = arm.is_ours and arm.raises_seqs
    spec = RingSpec(
        num_blocks=sizes.num_blocks,
        block_size=sizes.block_size,
        max_num_seqs=sizes.batchllm_max_num_seqs if raised else sizes.max_num_seqs,
        max_num_batched_tokens=sizes.max_num_batched_tokens,
        max_model_len=batch.max_request_tokens,
        prefix_caching=sizes.prefix_caching,
        options=dict(arm.options) if arm.is_ours else None,
    )
    elsewhere = Environment(sizes.platform, clock)
    return build_scheduler(
        SCHEDULERS[arm.scheduler], spec, environment=elsewhere if arm.is_ours else None
    )


def _serve(
    scheduler: Any,
    requests: deque[Any],
    ends: dict[str, int],
    sizes: EngineSizes,
    costs: CostModel,
    clock: _Clock,
    total: StepTime,
    on_progress: OnProgress | None,
) -> None:
    meter = WorkMeter()
    limit = sizes.max_waiting
    while requests or scheduler.has_unfinished_requests():
        while requests and (limit is None or len(scheduler.waiting) < limit):
            scheduler.add_request(requests.popleft())
        output = scheduler.schedule()
        made = sample(scheduler, output, ends)
        if output.total_num_scheduled_tokens:
            held = held_kv_tokens(scheduler)
            num_sampled = sum(map(bool, made.sampled_token_ids))
            spent = costs.time_of(meter.work_of(output, num_sampled, held))
            total.add(spent)
            clock.now_s += spent.total_s
        scheduler.update_from_output(output, made)
        ended = scheduler.finished_req_ids
        meter.forget(ended)
        if on_progress and ended:
            on_progress(len(ended))
