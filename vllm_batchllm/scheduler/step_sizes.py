# SPDX-License-Identifier: Apache-2.0
"""Steps by a target of time: what a live scheduler's step would do and has done, for :class:`LatencyTarget`.

Two figures of vLLM's are set for each step: the tokens that it may have and the requests that may run.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Any

from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.request import Request

from vllm_batchllm.admission.environment import Clock
from vllm_batchllm.admission.latency_target import (
    LatencyTarget,
    PrefillAhead,
    StepSize,
    pairs_of,
)
from vllm_batchllm.admission.step_times import StepLoad
from vllm_batchllm.log import get_logger

logger = get_logger(__name__)

PAUSE_S = 1.0
"""Seconds without a step that are a pause of the engine, as when it sleeps, and no step's time."""


@dataclass(frozen=True, slots=True)
class _InFlight:
    """A step whose output is not known yet. target_s, aim_s: what the user asked for and what its size was by; None where
    no token waits for it. is_missed: decodes alone were foreseen to take longer than the target."""

    output: SchedulerOutput
    load: StepLoad
    begin_s: float
    target_s: float | None
    aim_s: float | None
    is_missed: bool


class StepSizer:
    """Sets the sizes of a scheduler's steps and measures what they take.

    Args:
        scheduler: whose figures are set. target: what decides. clock: seconds.
    """

    def __init__(self, scheduler: Scheduler, target: LatencyTarget, clock: Clock) -> None:
        self._scheduler, self._target, self._clock = scheduler, target, clock
        self._most_tokens = int(scheduler.max_num_scheduled_tokens)
        self._most_active = int(scheduler.max_num_active_reqs)
        self._decode_tokens = 1 + int(scheduler.num_spec_tokens)
        self._in_flight: deque[_InFlight] = deque()
        self._begin_s = self._last_end_s = clock()
        self._goes_on = False
        self._target_s: float | None = None
        self._aim_s: float | None = None
        self._is_missed = self._has_warned = False
        self.num_over = 0
        """Steps that took longer than their target."""
        self.num_missed = 0
        """Those of them whose decodes alone were foreseen to take longer."""

    def begin_step(self, tbt_s: float | None, step_s: float | None, num_paused: int = 0) -> None:
        """Set the sizes of the step that begins.

        tbt_s: that a step is to take at most if a request decodes in it. step_s: that it is to take at most, whatever is
        in it. None for no such bound. num_paused: requests that run, but not in this step.
        """
        scheduler = self._scheduler
        self._begin_s, self._target_s, self._aim_s = self._clock(), None, None
        self._is_missed = False
        num_tokens, num_active = self._most_tokens, self._most_active - num_paused
        target_s = min((one for one in (tbt_s, step_s) if one is not None), default=None)
        if target_s is not None:
            size = self._size(target_s, is_bound=step_s is not None)
            num_tokens, self._aim_s, self._is_missed = size.num_tokens, size.aim_s, size.is_missed
            self._target_s = None if size.aim_s is None else target_s
            if size.num_starts is not None:
                num_active = min(num_active, len(scheduler.running) + size.num_starts)
        scheduler.max_num_scheduled_tokens = num_tokens
        scheduler.max_num_active_reqs = num_active

    def end_step(self, output: SchedulerOutput) -> None:
        """The step has been put together."""
        if output.total_num_scheduled_tokens:
            load = self._load_of(output)
            sizes = self._target_s, self._aim_s, self._is_missed
            self._in_flight.append(_InFlight(output, load, self._begin_s, *sizes))

    def updated(self, output: SchedulerOutput) -> None:
        """The output of a step is there."""
        if not any(step.output is output for step in self._in_flight):
            return
        while (step := self._in_flight.popleft()).output is not output:
            pass  # its output never came
        now_s = self._clock()
        duration_s = self._duration_s(step, now_s)
        self._last_end_s, self._goes_on = now_s, bool(self._scheduler.running)
        if step.target_s is not None and duration_s > step.target_s:
            self._was_over(step, step.target_s)
        has_prompts = step.load.prefill_pairs > 0
        self._target.observe(step.load, duration_s, step.aim_s if has_prompts else None)

    def _duration_s(self, step: _InFlight, now_s: float) -> float:
        """Of a step whose output is there. As long as anybody runs, the time since the output before: what the host does between two
        steps, such as taking requests in, is time between two tokens as well."""
        goes_on = self._goes_on and step.begin_s - self._last_end_s < PAUSE_S
        return now_s - (self._last_end_s if goes_on else max(step.begin_s, self._last_end_s))

    def _size(self, target_s: float, *, is_bound: bool) -> StepSize:
        """Of the step that begins. is_bound: even if nobody decodes in it."""
        decodes, ahead, prefills = self._running()
        head, kv_of_start = self._head(), 0
        if head is not None:
            start = self._num_cached(head)
            prefills.append(PrefillAhead(start, max(head.num_tokens - start, 1)))
            kv_of_start = head.num_tokens
        sizes = [request.num_tokens for request in self._scheduler.running]
        return self._target.size(
            target_s,
            decodes,
            prefills,
            ahead,
            kv_of_start,
            least_kv=min([kv_of_start, *sizes] if head is not None else sizes, default=0),
            is_free=not (is_bound or decodes.num_requests),
        )

    def _running(self) -> tuple[StepLoad, StepLoad, list[PrefillAhead]]:
        """Decodes of the step that begins; the same with those whose prompts are being computed; these."""
        num_tokens = num_requests = kv = 0
        prefills: list[PrefillAhead] = []
        for request in self._scheduler.running:
            done = request.num_computed_tokens
            left = request.num_tokens_with_spec + request.num_output_placeholders - done
            if left > self._decode_tokens:
                prefills.append(PrefillAhead(done, left))
            elif left > 0:
                num_tokens += left
                num_requests += 1
                kv += done + left
        decodes = StepLoad(num_tokens, num_requests, kv)
        count = len(prefills)
        more_kv = sum(prefill.start + prefill.num_tokens for prefill in prefills)
        ahead = StepLoad(num_tokens + count, num_requests + count, kv + more_kv)
        return decodes, ahead, prefills

    def _head(self) -> Request | None:
        """Who would start next, if anybody may."""
        waiting = self._scheduler.waiting
        return waiting.peek_request() if waiting else None

    def _num_cached(self, request: Request) -> int:
        """Tokens of ``request`` that are likely to be found in the cache. O(log blocks)."""
        if request.num_computed_tokens:
            return int(request.num_computed_tokens)
        scheduler: Any = self._scheduler
        if scheduler.hash_block_size != scheduler.block_size:
            return 0  # cached under other hashes than the request's
        return int(num_cached(scheduler.kv_cache_manager.block_pool, request.block_hashes)) * int(
            scheduler.block_size
        )

    def _load_of(self, output: SchedulerOutput) -> StepLoad:
        """What the step does. O(requests in it)."""
        decode_kv = pairs = prefill_kv = 0
        requests, width = self._scheduler.requests, self._decode_tokens
        for request_id, count in output.num_scheduled_tokens.items():
            request = requests[request_id]
            end = request.num_computed_tokens
            if count <= width and end > request.num_prompt_tokens:
                decode_kv += end
            else:
                pairs += pairs_of(end - count, count)
                prefill_kv += end
        num_requests = len(output.num_scheduled_tokens)
        return StepLoad(
            output.total_num_scheduled_tokens, num_requests, decode_kv, pairs, prefill_kv
        )

    def _was_over(self, step: _InFlight, target_s: float) -> None:
        """``step`` took longer than its target; only then is it known that what was foreseen was right."""
        self.num_over += 1
        if not step.is_missed:
            return
        self.num_missed += 1
        if not self._has_warned:
            self._has_warned = True
            logger.warning(
                "a target of %.1f ms cannot be kept: a step of %d requests takes longer even if it only decodes; set a "
                "larger target, or a smaller --max-num-seqs",
                1e3 * target_s,
                step.load.num_requests,
            )


def num_cached(pool: Any, hashes: Any) -> int:
    """Leading ``hashes`` that are cached, if a prefix of what is cached is cached. O(log hashes)."""
    low, high = 0, len(hashes)
    while low < high:
        middle = (low + high + 1) // 2
        if pool.get_cached_block(hashes[middle - 1], [0]) is not None:
            low = middle
        else:
            high = middle - 1
    return low
