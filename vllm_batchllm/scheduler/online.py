# SPDX-License-Identifier: Apache-2.0
"""What a server may ask for beyond throughput: steps by a target of time, room for interactive requests, held releases.

One object beside the scheduler, made only where an option asks for it, told when a step begins, has been put together, and
has its output. Who decides is in ``admission/``.
"""

from __future__ import annotations

from typing import Any

from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.core.sched.request_queue import SchedulingPolicy
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.request import Request

from vllm_batchllm.admission.environment import Clock
from vllm_batchllm.admission.interactive_reserve import NOTHING, Reserved
from vllm_batchllm.admission.latency_target import FLOOR_TOKENS, LatencyTarget
from vllm_batchllm.admission.step_times import StepTimes
from vllm_batchllm.config import BatchLLMConfig
from vllm_batchllm.scheduler.giving_way import GivingWay
from vllm_batchllm.scheduler.releases import Releases
from vllm_batchllm.scheduler.request_queue import PrefixGroupQueue
from vllm_batchllm.scheduler.step_sizes import StepSizer

STEPS_TO_FIRST_TOKEN = 2
"""Parts of a target for the first token of which a step beside batch requests may take one: an interactive request
waits for the step that runs, and its prompt has a step of its own. With steps in flight there is one more."""


class OnlineControl:
    """Steps the scheduler by the user's targets.

    Args:
        scheduler: fully built. config: the options, of which at least one asks for this. queue: ours, or None where
            prefix caching is off. clock: seconds.

    Raises:
        ValueError: an option cannot be kept on this engine; the message names it, why, and the way out.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        config: BatchLLMConfig,
        queue: PrefixGroupQueue | None,
        clock: Clock,
        lag: int,
    ) -> None:
        check_targets(scheduler, config, queue)
        sizes = scheduler.vllm_config.compilation_config.cudagraph_capture_sizes
        times = StepTimes(sizes or ())
        target = LatencyTarget(
            int(scheduler.max_num_scheduled_tokens), times, _floor_tokens(scheduler)
        )
        self._sizer: StepSizer | None = None
        if needs_step_times(config):
            self._sizer = StepSizer(scheduler, target, clock)
        self.releases: Releases | None = None
        if config.release is not None:
            self.releases = Releases(scheduler, config, queue, times, clock)
        self.giving_way: GivingWay | None = None
        num_blocks = scheduler.kv_cache_manager.block_pool.num_gpu_blocks - 1
        if config.target_ttft_ms is not None and queue is not None:
            self.giving_way = GivingWay(scheduler, queue, num_blocks, clock)
        self._block_size = int(scheduler.block_size)
        self._tbt_s = _seconds(config.target_tbt_ms)
        ttft_s = _seconds(config.target_ttft_ms)
        self._batch_step_s = None if ttft_s is None else ttft_s / (STEPS_TO_FIRST_TOKEN + lag)

    def arrived(self, request: Request, expected_output: int) -> None:
        """``request`` has come, and is expected to have so many tokens of output."""
        if self.giving_way is not None:
            num_tokens = request.num_prompt_tokens + expected_output
            self.giving_way.arrived(request, -(-num_tokens // self._block_size))

    def begin_step(self) -> None:
        """A step begins: release who was held long enough, let batch requests give way, set its size."""
        if self.releases is not None:
            self.releases.begin_step()
        num_paused = 0 if self.giving_way is None else self.giving_way.begin_step()
        beside_batch = self.giving_way is not None and self.giving_way.has_batch
        step_s = self._batch_step_s if beside_batch else None
        if self._sizer is not None:
            self._sizer.begin_step(self._tbt_s, step_s, num_paused)

    def reserved(self) -> Reserved:
        """What batch requests leave free in this step."""
        return NOTHING if self.giving_way is None else self.giving_way.reserved()

    def after_schedule(self) -> None:
        """The step has been put together, or that has failed."""
        if self.giving_way is not None:
            self.giving_way.end_step()

    def end_step(self, output: SchedulerOutput) -> None:
        """The step that has been put together."""
        if self._sizer is not None:
            self._sizer.end_step(output)
        if self.releases is not None:
            self.releases.end_step(output)

    def updated(self, output: SchedulerOutput) -> None:
        """The output of a step has been taken in."""
        if self._sizer is not None:
            self._sizer.updated(output)
        if self.releases is not None:
            self.releases.updated()

    def snapshot(self) -> dict[str, Any]:
        """Figures so far, by the names of :class:`~vllm_batchllm.stats.counters.ScheduleCounters`."""
        sizer = self._sizer
        figures: dict[str, Any] = {
            "num_steps_over_target": 0 if sizer is None else sizer.num_over,
            "num_steps_beyond_target": 0 if sizer is None else sizer.num_missed,
        }
        if self.giving_way is not None:
            figures["num_paused_prefills"] = self.giving_way.num_paused
        return figures | (self.releases.snapshot() if self.releases is not None else {})


def is_asked_for(config: BatchLLMConfig) -> bool:
    """Whether any option needs an :class:`OnlineControl`."""
    asked = (config.target_tbt_ms, config.target_ttft_ms, config.release)
    return any(option is not None for option in asked)


def needs_step_times(config: BatchLLMConfig) -> bool:
    """Whether steps are measured: for a target, or for what a prefix costs that a held group would compute once."""
    has_target = config.target_tbt_ms is not None or config.target_ttft_ms is not None
    return has_target or config.release in ("groups", "all")


def check_targets(
    scheduler: Scheduler, config: BatchLLMConfig, queue: PrefixGroupQueue | None
) -> None:
    """Raise ValueError for a target that this engine cannot keep."""
    sizes = scheduler.scheduler_config
    for name in ("target_tbt_ms", "target_ttft_ms"):
        value = getattr(config, name)
        if value is None:
            continue
        shown = f"batchllm option {name!r} = {value:g}"
        if not sizes.enable_chunked_prefill:
            raise ValueError(
                f"{shown} needs prompts that can be computed in parts, and chunked prefill is off for this engine; "
                "leave the option out, or start with --enable-chunked-prefill"
            )
        if sizes.disable_chunked_mm_input:
            raise ValueError(
                f"{shown} needs prompts that can be computed in parts, and disable_chunked_mm_input = True keeps the "
                "inputs of this model whole; leave one of them out"
            )
    if config.target_ttft_ms is None:
        return
    shown = f"batchllm option 'target_ttft_ms' = {config.target_ttft_ms:g}"
    if scheduler.policy != SchedulingPolicy.PRIORITY:
        raise ValueError(
            f"{shown} is a promise to requests of priority 0 against those of priority 1 and more, and this engine knows no "
            "priorities; start with --scheduling-policy priority"
        )
    if queue is None:
        raise ValueError(
            f"{shown} needs our waiting queue, which prefix caching brings; start with --enable-prefix-caching"
        )


def _floor_tokens(scheduler: Scheduler) -> int:
    """Prompt tokens without which no prompt can progress: a block where states are kept at their ends."""
    aligned = scheduler.need_mamba_block_aligned_split
    return max(FLOOR_TOKENS, int(scheduler.block_size) if aligned else 0)


def _seconds(milliseconds: float | None) -> float | None:
    return None if milliseconds is None else milliseconds / 1e3
