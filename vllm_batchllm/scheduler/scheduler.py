# SPDX-License-Identifier: Apache-2.0
"""The two schedulers: vLLM's own, with the waiting queue replaced.

One mixin holds all we do; two leaves put it on vLLM's synchronous and asynchronous scheduler,
because the base class must fit the engine's mode. ``create_scheduler`` picks the leaf; it is
what ``--scheduler batchllm`` names.
"""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial
from typing import Any

from vllm.config import VllmConfig
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.core.sched.request_queue import SchedulingPolicy
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.engine import EngineCoreOutputs
from vllm.v1.kv_cache_interface import KVCacheConfig
from vllm.v1.metrics.stats import SchedulerStats
from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.request import Request, RequestStatus, StreamingUpdate

from vllm_batchllm.admission.controller import AdmissionController
from vllm_batchllm.admission.environment import Clock, Environment
from vllm_batchllm.admission.interactive_reserve import NOTHING
from vllm_batchllm.admission.never_served import problem_of
from vllm_batchllm.admission.options import AdmissionOptions
from vllm_batchllm.compat import version as vllm_version
from vllm_batchllm.compat.features import end_with_error
from vllm_batchllm.compat.patching import install_counters_utility
from vllm_batchllm.kv_cache.block_pool import installed_block_pool
from vllm_batchllm.log import get_logger
from vllm_batchllm.ordering.adapter_queue import AdapterSlots
from vllm_batchllm.ordering.policies import make_order
from vllm_batchllm.prefix.readable import unplaceable_start
from vllm_batchllm.scheduler.kv_cache_manager import candidate_of, installed_kv_cache_manager
from vllm_batchllm.scheduler.kv_capacity import max_tokens_held
from vllm_batchllm.scheduler.layer_kinds import memory_model
from vllm_batchllm.scheduler.online import OnlineControl, is_asked_for
from vllm_batchllm.scheduler.request_queue import PrefixGroupQueue
from vllm_batchllm.scheduler.settings import admission_for, config_of, current_environment
from vllm_batchllm.scheduler.spreading import make_token_budget, step_tokens
from vllm_batchllm.scheduler.step_counts import count_step
from vllm_batchllm.stats.counters import ScheduleCounters
from vllm_batchllm.stats.transport import CounterTransport

logger = get_logger(__name__)


class PrefixGroupMixin(Scheduler):
    """Admits waiting requests prefix group by prefix group.

    With prefix caching off nothing can be shared, and the scheduler is vLLM's, queue included.

    Args:
        environment: where it decides; None for the device at hand.
        *args, **kwargs: as vLLM's.

    Raises:
        ValueError: an option in ``additional_config["batchllm"]`` is unknown or out of range,
            the leaf does not fit the engine's async mode, or the version of vLLM is not
            supported.
    """

    for_async_mode = False
    serves_prefix_groups = True
    max_num_scheduled_tokens: int
    online: OnlineControl | None = None
    """What a server asks for beyond throughput; None where it asks for nothing."""
    prefix_queue: PrefixGroupQueue | None = None
    """Who waits, by prefix groups; None where prefix caching is off. With `release` there are held ones before it."""

    def __init__(
        self,
        vllm_config: VllmConfig,
        kv_cache_config: KVCacheConfig,
        *args: Any,
        environment: Environment | None = None,
        **kwargs: Any,
    ) -> None:
        vllm_version.check_vllm_version()
        self._check_async_mode(vllm_config)
        self.batchllm_config = config_of(vllm_config)
        environment = environment or current_environment()
        shares_prefixes = bool(vllm_config.cache_config.enable_prefix_caching)
        options = admission_for(self.batchllm_config, kv_cache_config) if shares_prefixes else None
        self.batchllm_counters = ScheduleCounters()
        self.batchllm_transport = CounterTransport()
        with ExitStack() as stack:
            if shares_prefixes:
                stack.enter_context(installed_block_pool())
                make = partial(self._make_admission, options) if options is not None else None
                stack.enter_context(installed_kv_cache_manager(make, self._goes_first))
            super().__init__(vllm_config, kv_cache_config, *args, **kwargs)
        self.admission: AdmissionController | None = (
            self.kv_cache_manager.admission if shares_prefixes else None
        )
        self.batchllm_counters.hash_block_size = self.hash_block_size
        self.batchllm_counters.kv_blocks = self.kv_cache_manager.block_pool.num_gpu_blocks - 1
        self.batchllm_counters.max_tokens_held = max_tokens_held(
            self.kv_cache_manager, self.kv_cache_config, self.vllm_config.parallel_config
        )
        self.token_budget = make_token_budget(self, self.batchllm_config, environment.platform)
        if shares_prefixes:
            self.waiting = self.prefix_queue = self._make_queue(environment.clock)
        self.online = self._make_online(environment.clock)
        install_counters_utility()
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
        """vLLM's step, with the admission told that it begins, and its outcome counted."""
        online, queue = self.online, self.prefix_queue
        if (
            queue is not None
        ):  # before anybody looks at its head, and with those who pause in this step
            queue.begin_step(self.running)
        try:
            if online is not None:
                online.begin_step()
            if self.admission is not None:
                self._begin_step(self.admission)
            output = super().schedule(throttle_prefills)
        finally:
            if online is not None:
                online.after_schedule()
        if queue is not None:
            self._end_step(queue)
        count_step(self.batchllm_counters, output, self.requests, queue)
        if online is not None:
            online.end_step(output)
        return output

    def update_from_output(
        self, scheduler_output: SchedulerOutput, model_runner_output: ModelRunnerOutput
    ) -> dict[int, EngineCoreOutputs]:
        """vLLM's, and how long the step took is noted where somebody asks."""
        outputs: dict[int, EngineCoreOutputs] = super().update_from_output(
            scheduler_output, model_runner_output
        )
        if self.online is not None:
            self.online.updated(scheduler_output)
        return outputs

    def next_release_s(self) -> float | None:
        """When held requests have to go if nothing else happens, on the scheduler's clock; None if nobody is held."""
        releases = self.online.releases if self.online is not None else None
        return releases.next_release_s() if releases is not None else None

    def batchllm_snapshot(self) -> dict[str, Any]:
        """The counters so far, as plain values."""
        counters = self.batchllm_counters
        if self.online is not None:
            for name, value in self.online.snapshot().items():
                setattr(counters, name, value)
        if self.prefix_queue is not None:
            counters.plan_s = self.prefix_queue.plan_s
            pool = self.kv_cache_manager.block_pool
            counters.num_garbage_blocks = pool.num_unneeded_evicted
            counters.num_needed_lost = pool.num_needed_evicted
        return counters.to_dict()

    def add_request(self, request: Request) -> None:
        """vLLM's; a request that can never be served ends with an error at the next step."""
        if self.online is not None:
            self.online.arrived(request, self._expected_output(request))
        super().add_request(request)
        self._end_if_hopeless(request)

    def make_stats(self, *args: Any, **kwargs: Any) -> SchedulerStats | None:
        """vLLM's figures of the step, with what our counters gained since the last one."""
        stats = super().make_stats(*args, **kwargs)
        is_busy = self.has_unfinished_requests()
        self.batchllm_transport.attach(stats, self.batchllm_snapshot, can_wait=is_busy)
        return stats

    def _make_admission(self, options: AdmissionOptions, num_blocks: int) -> AdmissionController:
        """While vLLM's scheduler is being built: its sizes are known, its queue is not ours yet."""
        lag = self.parallel_config.pipeline_parallel_size - 1 + self.for_async_mode
        model = memory_model(self.kv_cache_config, self.vllm_config, unit=self.block_size, lag=lag)
        assert model is not None, "an admission was chosen for layers that it cannot foresee"
        return AdmissionController(
            num_blocks,
            model,
            options,
            counters=self.batchllm_counters,
            tokens_per_hash=self.hash_block_size,
            lag=lag,
        )

    def _goes_first(self, request: Request) -> bool:
        """Whether ``request`` may not be asked to wait.

        By priority, if it is more urgent than one that runs: vLLM preempts that if memory ends. O(running).
        And in front of those who hold blocks, who could not go on and give them back (it had blocks
        itself, until its transfer failed).
        """
        if self.kv_holding_waiting and self.kv_holding_waiting.peek_request() is request:
            return True
        return self.policy == SchedulingPolicy.PRIORITY and any(
            other.priority > request.priority for other in self.running
        )

    def _begin_step(self, admission: AdmissionController) -> None:
        step = admission.begin_step(
            self._tokens_held,
            num_waiting=len(self.waiting),
            num_free_blocks=self.kv_cache_manager.block_pool.get_num_free_blocks(),
            num_tokens=step_tokens(self, self.prefix_queue, self.token_budget, admission),
            reserved=self.online.reserved() if self.online is not None else NOTHING,
            max_num_seqs=self.max_num_running_reqs,
        )
        if step.num_tokens is not None:
            self.max_num_scheduled_tokens = step.num_tokens

    def _end_step(self, queue: PrefixGroupQueue) -> None:
        """What was popped has left. Whoever waits for a slot, the encoder or the pace does not show that capacity
        is spent: with data parallelism vLLM would stop balancing the prefills of its engines."""
        num_kept_out = queue.end_step()
        is_paced = self.admission is not None and self.admission.step.refusal == "pace"
        if is_paced or num_kept_out:
            self.prefill_capacity_bound = False

    def _tokens_held(self) -> dict[str, int]:
        return {r.request_id: r.num_tokens + r.num_output_placeholders for r in self.running}

    def _make_queue(self, clock: Clock) -> PrefixGroupQueue:
        order = make_order(self.batchllm_config.order)
        return PrefixGroupQueue(
            order,
            block_size=self.hash_block_size,
            by_priority=self.policy == SchedulingPolicy.PRIORITY,
            max_wait_s=self.batchllm_config.max_wait_s,
            clock=clock,
            pool=self.kv_cache_manager.block_pool,
            expect=self._expected_output if order.dynamic else None,
            slots=AdapterSlots(self.lora_config.max_loras) if self.lora_config else None,
        )

    def _make_online(self, clock: Clock) -> OnlineControl | None:
        if not is_asked_for(self.batchllm_config):
            return None
        lag = self.parallel_config.pipeline_parallel_size - 1 + self.for_async_mode
        return OnlineControl(self, self.batchllm_config, self.prefix_queue, clock, lag)

    def _expected_output(self, request: Request) -> int:
        """Tokens of output that ``request`` is expected to have, for orders that ask."""
        if self.admission is None:
            return int(request.max_tokens)
        candidate = candidate_of(request, self.max_model_len, self.hash_block_size)
        return self.admission.expected_output(candidate.expected_output, candidate.max_tokens)

    def _check_async_mode(self, vllm_config: VllmConfig) -> None:
        wanted = bool(vllm_config.scheduler_config.async_scheduling)
        if wanted != self.for_async_mode:
            raise ValueError(
                f"{type(self).__name__} does not fit async_scheduling={wanted}; use "
                f"{leaf_for(wanted).__name__}, or --scheduler batchllm, which picks the right one"
            )

    def _preempt_request(
        self, request: Request, timestamp: float, drop_stale_output: bool = False
    ) -> None:
        self.batchllm_counters.num_preemptions += 1
        self.batchllm_counters.cut_short(request.num_prompt_tokens, request.num_computed_tokens)
        super()._preempt_request(request, timestamp, drop_stale_output)
        self._end_if_hopeless(request)

    def _try_schedule_encoder_inputs(
        self, request: Request, *args: Any, **kwargs: Any
    ) -> tuple[list[int], int, int, list[int], list[int]]:
        """vLLM's; the queue learns who does not fit the encoder in this step.

        Not with a connector: those who stand behind have transfers to begin when they are looked at.
        """
        found: tuple[list[int], int, int, list[int], list[int]]
        found = super()._try_schedule_encoder_inputs(request, *args, **kwargs)
        queue, has_connector = self.prefix_queue, self.connector or self.ec_connector
        if queue is not None and request.status != RequestStatus.RUNNING and not has_connector:
            num_new_tokens = found[1]
            queue.encoder.answered(is_refused=num_new_tokens == 0)
        return found

    def _update_request_as_session(self, session: Request, update: StreamingUpdate) -> None:
        super()._update_request_as_session(session, update)
        if self.admission is not None:
            self.admission.continued(
                candidate_of(session, self.max_model_len, self.hash_block_size)
            )
        self._end_if_hopeless(session)

    def _end_if_hopeless(self, request: Request) -> None:
        """Have vLLM end ``request`` if it would block the queue for ever."""
        params = request.sampling_params
        problem = problem_of(
            request.num_tokens,
            params.extra_args if params is not None else None,
            self.batchllm_counters.max_tokens_held,
        ) or unplaceable_start(params, self.parallel_config.pipeline_parallel_size)
        if problem is not None:
            logger.warning("request %s ends with an error: %s", request.request_id, problem)
            end_with_error(self, request.request_id, problem)


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
