# SPDX-License-Identifier: Apache-2.0
"""One fake engine: a real scheduler with a clock of its own, stepped and charged."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.scheduler import Scheduler

from vllm_batchllm.admission.environment import Environment
from vllm_batchllm.scheduler.scheduler import AsyncBatchLLMScheduler, BatchLLMScheduler
from vllm_batchllm.simulate.arms import Arm
from vllm_batchllm.simulate.cost_model import CostModel, StepTime, StepWork
from vllm_batchllm.simulate.graphs import Agreed
from vllm_batchllm.simulate.ring import (
    RingSpec,
    build_on,
    build_scheduler,
    make_ring_config,
    sample,
)
from vllm_batchllm.simulate.sglang import (
    AsyncDfsWeightScheduler,
    AsyncLongestPrefixScheduler,
    DfsWeightScheduler,
    LongestPrefixScheduler,
)
from vllm_batchllm.simulate.shared_kv import SharedKVMeter
from vllm_batchllm.simulate.sizes import EngineSizes
from vllm_batchllm.simulate.work import WorkMeter, held_kv_tokens
from vllm_batchllm.workloads.batch import Batch

SCHEDULERS: dict[str, tuple[Any, Any]] = {
    "stock": (Scheduler, AsyncScheduler),
    "batchllm": (BatchLLMScheduler, AsyncBatchLLMScheduler),
    "lpm": (LongestPrefixScheduler, AsyncLongestPrefixScheduler),
    "dfs-weight": (DfsWeightScheduler, AsyncDfsWeightScheduler),
}
"""Without and with async scheduling, which is vLLM's default on GPUs."""

MeterMaker = Callable[[Any], SharedKVMeter]
"""Makes of a scheduler what counts the KV that its requests share."""


@dataclass(slots=True)
class Clock:
    """Simulated time of one engine, seconds."""

    now_s: float = 0.0

    def __call__(self) -> float:
        return self.now_s


class ChargedScheduler:
    """The scheduler of `arm` on an engine of `sizes` for the requests of `batch`, and what its steps cost.

    Args:
        sharing: makes what counts shared KV; None for that of the costs.
        config: of `shared_config`; None makes one.
        speed: 1 as the costs say; at 0.5 every step takes twice as long.
        on_work: told the work of each step.

    Attributes:
        ends: output tokens of each request by name, to be filled in before it is added.
        depth: steps in flight at most. parts: seconds by part so far. modes: steps by the graphs that they can replay.
    """

    def __init__(
        self,
        batch: Batch,
        arm: Arm,
        sizes: EngineSizes,
        costs: CostModel,
        *,
        sharing: MeterMaker | None = None,
        config: Any = None,
        speed: float = 1.0,
        on_work: Callable[[StepWork], None] = lambda work: None,
    ) -> None:
        self.clock = Clock()
        self.scheduler = _make_scheduler(batch, arm, sizes, self.clock, config)
        self.ends: dict[str, int] = {}
        self.parts = StepTime()
        self.modes: Counter[str] = Counter()
        self._costs, self._speed, self._on_work = costs, speed, on_work
        self.depth = 2 if sizes.is_async else 1
        if sharing is None and costs.reads_shared_kv_once:
            sharing = SharedKVMeter
        self._meter = WorkMeter(None if sharing is None else sharing(self.scheduler))

    @property
    def num_waiting(self) -> int:
        """Requests that have not started."""
        return len(self.scheduler.waiting)

    def charge(self, output: Any, made: Any) -> float:
        """What the step that was just put together takes, seconds; it is in the books then."""
        return self.book(self.work_of(output, made))

    def work_of(self, output: Any, made: Any) -> StepWork:
        """What the step that was just put together does."""
        num_sampled = sum(map(bool, made.sampled_token_ids))
        return self._meter.work_of(output, num_sampled, held_kv_tokens(self.scheduler))

    def book(self, work: StepWork, together: Agreed | None = None) -> float:
        """Seconds of a step that does `work`. together: what ranks in lockstep have agreed on; None for an engine alone."""
        mode = self._costs.mode_of(work) if together is None else together.mode
        if mode is not None:
            self.modes[mode] += 1
        spent = self._costs.time_of(work, together)
        if self._speed != 1:
            spent = spent.divided(self._speed)
        self.parts.add(spent)
        self._on_work(work)
        return spent.total_s

    def forget_ended(self) -> set[str]:
        """Who has ended since the last `schedule()`; they are followed no longer."""
        ended: set[str] = self.scheduler.finished_req_ids
        self._meter.forget(ended)
        return ended


class SimulatedEngine(ChargedScheduler):
    """One whose requests are all handed over by who steps it: the host takes no time, and the clock is the device's."""

    def __init__(
        self,
        batch: Batch,
        arm: Arm,
        sizes: EngineSizes,
        costs: CostModel,
        **options: Any,
    ) -> None:
        super().__init__(batch, arm, sizes, costs, **options)
        self._in_flight: deque[tuple[Any, Any]] = deque()
        self._is_idle = True

    def has_work(self) -> bool:
        """Whether a step would do anything."""
        return bool(self._in_flight or self.scheduler.has_unfinished_requests())

    def step(self) -> set[str]:
        """One step; with async scheduling, put together while the one before it runs. Who has ended with it."""
        work = self.put_together()
        if work is not None:
            self.clock.now_s += self.book(work)
        return self.take_back()

    def put_together(self) -> StepWork | None:
        """The first half of a step: its work, not in the books yet; None if it gives the device nothing to do."""
        scheduler = self.scheduler
        output = scheduler.schedule()
        made = sample(scheduler, output, self.ends)
        self._is_idle = not output.total_num_scheduled_tokens
        if not self._is_idle:
            self._in_flight.append((output, made))
            return self.work_of(output, made)
        if not self._in_flight:  # nothing to do but what has ended
            scheduler.update_from_output(output, made)
        return None

    def take_back(self) -> set[str]:
        """The second half: what the oldest step in flight has made, if it is its turn. Who has ended with it."""
        in_flight = self._in_flight
        if len(in_flight) >= self.depth or (in_flight and self._is_idle):
            self.scheduler.update_from_output(*in_flight.popleft())
        return self.forget_ended()


def engine_spec(batch: Batch, arm: Arm, sizes: EngineSizes) -> RingSpec:
    """What the scheduler of `arm` is built for."""
    own = sizes.of(arm)
    return RingSpec(
        num_blocks=own.num_blocks,
        block_size=sizes.block_size,
        max_num_seqs=own.max_num_seqs,
        max_num_batched_tokens=own.max_num_batched_tokens,
        max_model_len=batch.max_request_tokens,
        prefix_caching=sizes.prefix_caching,
        options=dict(arm.options) if arm.is_ours else None,
    )


def shared_config(batch: Batch, arm: Arm, sizes: EngineSizes, policy: str = "fcfs") -> Any:
    """A configuration that several engines can have in common: schedulers only read it.

    policy: vLLM's, "fcfs" or "priority".
    """
    spec = engine_spec(batch, arm, sizes)
    return make_ring_config(scheduler_class(arm, sizes), spec, arm.watermark, policy)


def scheduler_class(arm: Arm, sizes: EngineSizes) -> Any:
    """Of `arm`, as vLLM would choose it."""
    return SCHEDULERS[arm.scheduler][sizes.is_async]


def _make_scheduler(batch: Batch, arm: Arm, sizes: EngineSizes, clock: Clock, config: Any) -> Any:
    chosen = scheduler_class(arm, sizes)
    environment = Environment(sizes.platform, clock) if arm.is_ours else None
    if config is not None:
        return build_on(chosen, config, environment=environment)
    spec = engine_spec(batch, arm, sizes)
    return build_scheduler(chosen, spec, environment=environment, watermark=arm.watermark)
