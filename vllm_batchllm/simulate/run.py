# SPDX-License-Identifier: Apache-2.0
"""One batch, one arm: step the real scheduler, charge every step, keep the books."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.scheduler import Scheduler

from vllm_batchllm.admission.environment import Environment
from vllm_batchllm.errors import UsageError
from vllm_batchllm.measure.metrics import RunInputs, RunMetrics, run_metrics
from vllm_batchllm.measure.recorder import record
from vllm_batchllm.scheduler.scheduler import AsyncBatchLLMScheduler, BatchLLMScheduler
from vllm_batchllm.simulate.arms import Arm
from vllm_batchllm.simulate.cost_model import CostModel, StepTime
from vllm_batchllm.simulate.ring import RingSpec, build_scheduler, make_requests, sample
from vllm_batchllm.simulate.sglang import (
    AsyncDfsWeightScheduler,
    AsyncLongestPrefixScheduler,
    DfsWeightScheduler,
    LongestPrefixScheduler,
)
from vllm_batchllm.simulate.shared_kv import SharedKVMeter
from vllm_batchllm.simulate.work import WorkMeter, held_kv_tokens
from vllm_batchllm.workloads.batch import Batch

SCHEDULERS: dict[str, tuple[Any, Any]] = {
    "stock": (Scheduler, AsyncScheduler),
    "batchllm": (BatchLLMScheduler, AsyncBatchLLMScheduler),
    "lpm": (LongestPrefixScheduler, AsyncLongestPrefixScheduler),
    "dfs-weight": (DfsWeightScheduler, AsyncDfsWeightScheduler),
}
"""Without and with async scheduling, which is vLLM's default on GPUs."""

OnProgress = Callable[[int], None]
"""Told how many requests have ended since the last call."""


@dataclass(frozen=True, slots=True)
class ArmSizes:
    """What differs between the engines of two arms. num_blocks: KV blocks that requests can hold."""

    num_blocks: int
    max_num_seqs: int
    max_num_batched_tokens: int


@dataclass(frozen=True, slots=True)
class EngineSizes:
    """A fake engine, whatever the arm.

    batchllm_max_num_seqs: requests at once with our scheduler, where its default is larger.
    num_blocks: KV blocks that requests can hold. max_waiting: requests that wait at most at any
    time; None queues the batch before the first step. platform: on which our scheduler decides.
    is_async: whether a step is put together while the one before it runs. tuned: what `performance_mode=throughput`
    makes of it: bounds of a step doubled where the user has set none, less memory for KV; None for no change.
    """

    num_blocks: int
    block_size: int
    max_num_seqs: int
    batchllm_max_num_seqs: int
    max_num_batched_tokens: int
    max_waiting: int | None = None
    prefix_caching: bool = True
    platform: str = "cuda"
    is_async: bool = False
    tuned: ArmSizes | None = None

    def widest(self) -> EngineSizes:
        """With the most that any arm has of everything, for what holds whatever the arm."""
        tuned = self.tuned or ArmSizes(0, 0, 0)
        return replace(
            self,
            num_blocks=max(self.num_blocks, tuned.num_blocks),
            batchllm_max_num_seqs=max(self.batchllm_max_num_seqs, tuned.max_num_seqs),
            max_num_batched_tokens=max(self.max_num_batched_tokens, tuned.max_num_batched_tokens),
        )

    def of(self, arm: Arm) -> ArmSizes:
        """The sizes of the engine of `arm`."""
        if arm.is_tuned and self.tuned is not None:
            return self.tuned
        raised = arm.is_ours and arm.raises_seqs
        seqs = self.batchllm_max_num_seqs if raised else self.max_num_seqs
        return ArmSizes(self.num_blocks, seqs, self.max_num_batched_tokens)


@dataclass(frozen=True, slots=True)
class SimulatedRun:
    """What one run did, and where its time went.

    metrics: as `vllm-batchllm bench` reports them; `makespan_s` is simulated, `plan_s` measured
    here. parts: seconds by part of a step; they sum up to the makespan. wall_s: of the simulation.
    graph_modes: steps by the graphs that they can replay; empty where graphs are not looked at.
    """

    metrics: RunMetrics
    parts: StepTime
    wall_s: float
    counters: dict[str, Any] = field(default_factory=dict)
    graph_modes: dict[str, int] = field(default_factory=dict)

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
    sharing: Callable[[Any], SharedKVMeter] | None = None,
) -> SimulatedRun:
    """Serve `batch` by `arm`; deterministic but for `plan_s` and `wall_s`.

    sharing: makes of the scheduler what counts shared KV; None for that of the costs.

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
    modes: Counter[str] = Counter()
    if sharing is None and costs.reads_shared_kv_once:
        sharing = SharedKVMeter
    meter = WorkMeter(None if sharing is None else sharing(scheduler))
    with record(scheduler) as steps:
        run = _Run(scheduler, requests, ends, costs, clock, total, modes, meter)
        run.serve(sizes, on_progress)
    inputs = RunInputs(
        batch.num_requests, batch.prompt_tokens, batch.output_tokens, optimal_saved_tokens
    )
    snapshot = getattr(scheduler, "batchllm_snapshot", dict)
    return SimulatedRun(
        metrics=run_metrics(arm.name, 0, inputs, steps, clock.now_s),
        parts=total,
        wall_s=time.perf_counter() - began_s,
        counters={**snapshot(), "watermark": arm.watermark},
        graph_modes=dict(modes),
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
    own = sizes.of(arm)
    spec = RingSpec(
        num_blocks=own.num_blocks,
        block_size=sizes.block_size,
        max_num_seqs=own.max_num_seqs,
        max_num_batched_tokens=own.max_num_batched_tokens,
        max_model_len=batch.max_request_tokens,
        prefix_caching=sizes.prefix_caching,
        options=dict(arm.options) if arm.is_ours else None,
    )
    elsewhere = Environment(sizes.platform, clock)
    return build_scheduler(
        SCHEDULERS[arm.scheduler][sizes.is_async],
        spec,
        environment=elsewhere if arm.is_ours else None,
        watermark=arm.watermark,
    )


@dataclass(slots=True)
class _Run:
    """A batch being served."""

    scheduler: Any
    requests: deque[Any]
    ends: dict[str, int]
    costs: CostModel
    clock: _Clock
    total: StepTime
    modes: Counter[str]
    meter: WorkMeter

    def serve(self, sizes: EngineSizes, on_progress: OnProgress | None) -> None:
        """Until all have ended; asynchronous, with one step in flight while the next is put together."""
        scheduler, limit = self.scheduler, sizes.max_waiting
        depth = 2 if sizes.is_async else 1
        in_flight: deque[tuple[Any, Any]] = deque()
        while self.requests or in_flight or scheduler.has_unfinished_requests():
            while self.requests and (limit is None or len(scheduler.waiting) < limit):
                scheduler.add_request(self.requests.popleft())
            output = scheduler.schedule()
            made = sample(scheduler, output, self.ends)
            if output.total_num_scheduled_tokens:
                self._charge(output, made)
                in_flight.append((output, made))
            elif not in_flight:  # nothing to do but what has ended
                scheduler.update_from_output(output, made)
            if len(in_flight) >= depth or (in_flight and not output.total_num_scheduled_tokens):
                scheduler.update_from_output(*in_flight.popleft())
            ended = scheduler.finished_req_ids
            self.meter.forget(ended)
            if on_progress and ended:
                on_progress(len(ended))

    def _charge(self, output: Any, made: Any) -> None:
        """The step that is put together takes its time."""
        num_sampled = sum(map(bool, made.sampled_token_ids))
        work = self.meter.work_of(output, num_sampled, held_kv_tokens(self.scheduler))
        mode = self.costs.mode_of(work)
        if mode is not None:
            self.modes[mode] += 1
        spent = self.costs.time_of(work)
        self.total.add(spent)
        self.clock.now_s += spent.total_s
