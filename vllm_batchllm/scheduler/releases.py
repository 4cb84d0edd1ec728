# SPDX-License-Identifier: Apache-2.0
"""When held requests are released, in a live scheduler: what the holders are told, and who they are."""

from __future__ import annotations

from functools import partial
from typing import Any

from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.request import Request

from vllm_batchllm.admission.environment import Clock
from vllm_batchllm.admission.group_release import GroupRelease
from vllm_batchllm.admission.one_shot_release import OneShotRelease
from vllm_batchllm.admission.release_tables import make_table
from vllm_batchllm.admission.step_times import StepLoad, StepTimes
from vllm_batchllm.config import BatchLLMConfig
from vllm_batchllm.prefix.readable import grouping_hashes
from vllm_batchllm.scheduler.device_power import power_of
from vllm_batchllm.scheduler.holding_queue import HoldingQueue
from vllm_batchllm.scheduler.request_queue import PrefixGroupQueue
from vllm_batchllm.scheduler.step_sizes import num_cached

MAX_BATCH = 64
"""Largest batch that a table is made for: its size is that of the process to solve."""

TYPICAL_CHUNK = 1024
"""Prompt tokens whose predicted time says what a prompt token costs."""


class Releases:
    """Puts a :class:`HoldingQueue` before the scheduler's queue and empties it.

    Raises:
        ValueError: groups are to be held and there is no prefix cache, or the power of the device is needed and not known.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        config: BatchLLMConfig,
        queue: PrefixGroupQueue | None,
        times: StepTimes,
        clock: Clock,
    ) -> None:
        if config.release != "one-shot" and queue is None:
            raise ValueError(
                f"batchllm option 'release' = {config.release!r} holds prefix groups, and prefix caching is off for this "
                "engine; set 'release' = 'one-shot', or start with --enable-prefix-caching"
            )
        self._scheduler, self._times, self._clock = scheduler, times, clock
        self._one_shot_tokens = config.one_shot_tokens or 1
        self._hash_tokens = int(scheduler.hash_block_size)
        self._in_service: dict[str, Request] = {}
        self._service: tuple[float, int] | None = None
        """Since when a batch is served alone, and how many it has."""
        max_batch = min(int(scheduler.max_num_running_reqs), MAX_BATCH)
        self._one_shot: OneShotRelease[Request] | None = None
        if config.release != "groups":
            power = power_of(config)
            solve = partial(
                make_table,
                max_batch=max_batch,
                power_weight=config.power_weight,
                more_w=0.0 if power is None else power.more_w,
            )
            self._one_shot = OneShotRelease(config.hold_s, max_batch, solve)
        self._groups: GroupRelease[Request] | None = None
        if config.release != "one-shot":
            self._groups = GroupRelease(config.hold_s, self._hash_tokens, config.wait_weight)
        self.queue = HoldingQueue(
            scheduler.waiting,
            self._one_shot,
            self._groups,
            self._is_one_shot,
            self._hold_one_shot,
            self._hold_group,
        )
        scheduler.waiting = self.queue

    def begin_step(self) -> None:
        """A step begins: whoever is due waits from now on."""
        now_s, running = self._clock(), self._scheduler.running
        if self._one_shot is not None:
            if self._forget_ended():  # aborted: no output of a step says so
                self._service = None
            num_others = len(running) - sum(r.request_id in self._in_service for r in running)
            others_run = num_others > 0 or bool(self.queue.inner)
            due = self._one_shot.due(
                now_s, num_in_service=len(self._in_service), others_run=others_run
            )
            self._serve(due, now_s, alone=not others_run and not self._in_service)
        if self._groups is not None:
            is_idle = not running and not self.queue.inner
            self.queue.release(self._groups.due(now_s, is_idle=is_idle))

    def end_step(self, output: SchedulerOutput) -> None:
        """The step has been put together. Other work in it: what the batch takes says nothing."""
        if self._groups is not None:
            for new in output.scheduled_new_reqs:
                request = self._scheduler.requests[new.req_id]
                self._groups.admitted(request, new.num_computed_tokens)
        if self._service is not None and len(output.num_scheduled_tokens) > len(self._in_service):
            self._service = None

    def updated(self) -> None:
        """The output of a step is there: who has ended is served no longer."""
        if not self._forget_ended() or self._in_service or self._one_shot is None:
            return
        if self._service is not None:
            began_s, count = self._service
            self._one_shot.services.served(count, self._clock() - began_s)
            self._service = None

    def _forget_ended(self) -> bool:
        """Whether any released one-shot request has ended since; it is served no longer."""
        ended = [name for name, request in self._in_service.items() if request.is_finished()]
        for name in ended:
            del self._in_service[name]
        return bool(ended)

    def next_release_s(self) -> float | None:
        """When somebody who is held has to go, if nothing else happens."""
        holders = (self._one_shot, self._groups)
        times = [holder.held.due_s() for holder in holders if holder is not None]
        return min((time for time in times if time is not None), default=None)

    def snapshot(self) -> dict[str, Any]:
        """Figures so far, by the names of ``ScheduleCounters``."""
        holders = [holder for holder in (self._one_shot, self._groups) if holder is not None]
        figures = {
            "num_held": self.queue.num_held,
            "num_held_ever": sum(holder.held.num_held_ever for holder in holders),
            "hold_s": sum(holder.held.hold_s for holder in holders),
            "num_releases": 0,
        }
        if self._one_shot is not None:
            figures["num_releases"] += self._one_shot.num_batches
            figures["hold_saved_j"] = self._one_shot.saved_j
        if self._groups is not None:
            figures["num_releases"] += self._groups.num_groups
            figures["hold_saved_tokens"] = self._groups.num_saved_tokens
        return figures

    def _serve(self, requests: list[Request], now_s: float, *, alone: bool) -> None:
        """Release a batch of one-shot requests."""
        if not requests:
            return
        self.queue.release(requests)
        self._in_service |= {request.request_id: request for request in requests}
        self._service = (now_s, len(requests)) if alone else None

    def _is_one_shot(self, request: Request) -> bool:
        return request.pooling_params is not None or request.max_tokens <= self._one_shot_tokens

    def _hold_one_shot(self, request: Request) -> None:
        assert self._one_shot is not None
        self._one_shot.arrived(request, self._clock())

    def _hold_group(self, request: Request) -> bool:
        """Whether the request is held for others of its group."""
        assert self._groups is not None
        hashes = grouping_hashes(request, self._hash_tokens)
        if not hashes:
            return False
        chunk = TYPICAL_CHUNK
        load = StepLoad(chunk, 1, 0, chunk * chunk // 2, chunk)
        base_s = self._times.predict_s(StepLoad(1, 1))
        token_s = max(self._times.predict_s(load) - base_s, 0.0) / chunk
        return self._groups.arrived(
            request,
            hashes,
            num_cached(self._scheduler.kv_cache_manager.block_pool, hashes),
            self._clock(),
            token_s=token_s,
            num_present=len(self._scheduler.running) + len(self.queue),
        )
