# SPDX-License-Identifier: Apache-2.0
"""The two schedulers: vLLM's own, with the waiting queue replaced.

One mixin holds all we do; two leaves put it on vLLM's synchronous and asynchronous scheduler,
because the base class must fit the engine's mode. ``create_scheduler`` picks the leaf; it is
what ``--scheduler batchllm`` names.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

from vllm.config import VllmConfig
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.core.sched.request_queue import SchedulingPolicy
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.metrics.stats import SchedulerStats
from vllm.v1.request import Request

from vllm_batchllm import compat
from vllm_batchllm.config import SECTION, BatchLLMConfig
from vllm_batchllm.log import get_logger
from vllm_batchllm.memory.block_pool import installed_pool
from vllm_batchllm.schedule.counters import ScheduleCounters
from vllm_batchllm.schedule.feed import CounterFeed
from vllm_batchllm.schedule.order import make_order
from vllm_batchllm.schedule.queue import PrefixGroupQueue

logger = get_logger(__name__)


class PrefixGroupMixin(Scheduler):
    """Admits waiting requests prefix group by prefix group.

    With prefix caching off nothing can be shared, and the scheduler is vLLM's, queue included.

    Raises:
        ValueError: an option in ``additional_config["batchllm"]`` is unknown or out of range,
            the leaf does not fit the engine's async mode, or the version of vLLM is not
            supported.
    """

    for_async_mode = False

    def __init__(self, vllm_config: VllmConfig, *args: Any, **kwargs: Any) -> None:
        compat.check_vllm_version()
        self._check_async_mode(vllm_config)
        self.batchllm_config = config_of(vllm_config)
        shares_prefixes = bool(vllm_config.cache_config.enable_prefix_caching)
        with installed_pool() if shares_prefixes else nullcontext():
            super().__init__(vllm_config, *args, **kwargs)
        self.batchllm_counters = ScheduleCounters(hash_block_size=self.hash_block_size)
        self.batchllm_feed = CounterFeed()
        if shares_prefixes:
            self.waiting = self._make_queue()
        compat.install_counters_utility()
        logger.info(
            "Scheduler: batchllm (%s), order=%s, max_wait_s=%s, policy=%s, hash block=%d tokens%s",
            type(self).__name__,
            self.batchllm_config.order,
            self.batchllm_config.max_wait_s,
            self.policy.value,
            self.hash_block_size,
            "" if self.cache_config.enable_prefix_caching else "; prefix caching is off: as stock",
        )

    def schedule(self, throttle_prefills: bool = False) -> SchedulerOutput:
        """vLLM's step, with its outcome counted."""
        output = super().schedule(throttle_prefills)
        self._count(output)
        return output

    def batchllm_snapshot(self) -> dict[str, Any]:
        """The counters so far, as plain numbers."""
        if isinstance(self.waiting, PrefixGroupQueue):
            self.batchllm_counters.plan_s = self.waiting.plan_s
        return self.batchllm_counters.to_dict()

    def make_stats(self, *args: Any, **kwargs: Any) -> SchedulerStats | None:
        """vLLM's figures of the step, with what our counters gained since the last one."""
        stats = super().make_stats(*args, **kwargs)
        self.batchllm_feed.load(stats, self.batchllm_snapshot)
        return stats

    def _make_queue(self) -> PrefixGroupQueue:
        return PrefixGroupQueue(
            make_order(self.batchllm_config.order),
            block_size=self.hash_block_size,
            by_priority=self.policy == SchedulingPolicy.PRIORITY,
            max_wait_s=self.batchllm_config.max_wait_s,
            pool=self.kv_cache_manager.block_pool,
        )

    def _check_async_mode(self, vllm_config: VllmConfig) -> None:
        wanted = bool(vllm_config.scheduler_config.async_scheduling)
        if wanted != self.for_async_mode:
            raise ValueError(
                f"{type(self).__name__} does not fit async_scheduling={wanted}; use "
                f"{leaf_for(wanted).__name__}, or --scheduler batchllm, which picks the right one"
            )

    def _count(self, output: SchedulerOutput) -> None:
        counters = self.batchllm_counters
        counters.step(output.total_num_scheduled_tokens)
        for new in output.scheduled_new_reqs:
            self._count_admission(new.req_id, new.num_computed_tokens)
        cached = output.scheduled_cached_reqs
        if cached.resumed_req_ids:
            starts = dict(zip(cached.req_ids, cached.num_computed_tokens, strict=True))
            for request_id in cached.resumed_req_ids:
                self._count_admission(request_id, starts[request_id])

    def _count_admission(self, request_id: str, num_hit_tokens: int) -> None:
        request = self.requests[request_id]
        self.batchllm_counters.admission(
            request.num_prompt_tokens, num_hit_tokens, first=request.num_preemptions == 0
        )

    def _preempt_request(
        self, request: Request, timestamp: float, drop_stale_output: bool = False
    ) -> None:
        self.batchllm_counters.num_preemptions += 1
        self.batchllm_counters.cut_short(request.num_prompt_tokens, request.num_computed_tokens)
        super()._preempt_request(request, timestamp, drop_stale_output)


class BatchLLMScheduler(PrefixGroupMixin, Scheduler):
    """For engines without async scheduling."""


class AsyncBatchLLMScheduler(PrefixGroupMixin, AsyncScheduler):
    """For engines with async scheduling (vLLM's default on GPUs)."""

    for_async_mode = True


def leaf_for(async_scheduling: bool) -> type[BatchLLMScheduler | AsyncBatchLLMScheduler]:
    """The scheduler class that fits the engine's async mode."""
    return AsyncBatchLLMScheduler if async_scheduling else BatchLLMScheduler


def create_scheduler(vllm_config: VllmConfig, *args: Any, **kwargs: Any) -> PrefixGroupMixin:
    """Build the leaf that fits ``vllm_config``; takes what vLLM's schedulers take."""
    leaf = leaf_for(bool(vllm_config.scheduler_config.async_scheduling))
    return leaf(vllm_config, *args, **kwargs)


def config_of(vllm_config: VllmConfig) -> BatchLLMConfig:
    """Our options inside ``vllm_config``, checked. Raises ValueError as ``parse`` does."""
    additional = vllm_config.additional_config
    section = additional.get(SECTION) if isinstance(additional, Mapping) else None
    return BatchLLMConfig.parse(section)
