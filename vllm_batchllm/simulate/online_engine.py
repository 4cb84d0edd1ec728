# SPDX-License-Identifier: Apache-2.0
"""One fake engine with a host and a device, in which both take turns as in vLLM's engine core."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

from vllm_batchllm.simulate.arms import Arm
from vllm_batchllm.simulate.cost_model import CostModel
from vllm_batchllm.simulate.engine import ChargedScheduler
from vllm_batchllm.simulate.ring import sample
from vllm_batchllm.simulate.sizes import EngineSizes
from vllm_batchllm.workloads.batch import Batch

OnTokens = Callable[[str, int, float], None]
"""Told a request's name, how many tokens it gets, and when, seconds."""


class OnlineEngine(ChargedScheduler):
    """One that requests reach over time.

    Its clock is the host's: what a scheduler reads while it decides. The host takes no time of its own; it waits for the device
    where vLLM's would, with one step in flight (`EngineCore.step`) or two (`step_with_batch_queue`). A step starts when the
    one before it has ended, and its tokens come when it ends.

    Args:
        on_tokens: told of tokens as they come, in order of time.
        **options: of `ChargedScheduler`.

    Attributes:
        device_s: when the device will have done all it was given, seconds.
    """

    def __init__(
        self,
        batch: Batch,
        arm: Arm,
        sizes: EngineSizes,
        costs: CostModel,
        *,
        on_tokens: OnTokens,
        **options: Any,
    ) -> None:
        super().__init__(batch, arm, sizes, costs, **options)
        self.device_s = 0.0
        self._on_tokens = on_tokens
        self._in_flight: deque[tuple[Any, Any, float]] = deque()

    def turn(self) -> bool:
        """One turn of the engine's loop: a step is begun, or the oldest one awaited, or both.

        Returns:
            Whether there may be more to do at once; False if nothing happens any more before the outside changes.
        """
        has_begun = self.scheduler.has_requests() and self._begin()
        if has_begun and len(self._in_flight) < self.depth:
            return True
        if self._in_flight:
            self._await_oldest()
            return True
        return has_begun

    def _begin(self) -> bool:
        """Put a step together; whether that has changed anything."""
        scheduler = self.scheduler
        output = scheduler.schedule()
        made = sample(scheduler, output, self.ends)
        if output.total_num_scheduled_tokens:
            cost_s = self.charge(output, made)
            self.device_s = max(self.clock.now_s, self.device_s) + cost_s
            self._in_flight.append((output, made, self.device_s))
            return True
        if self._in_flight:
            return False
        scheduler.update_from_output(output, made)  # nothing to do but what has ended
        return bool(output.preempted_req_ids)  # who was sent back may start

    def _await_oldest(self) -> None:
        output, made, end_s = self._in_flight.popleft()
        self.clock.now_s = max(self.clock.now_s, end_s)
        for outputs in self.scheduler.update_from_output(output, made).values():
            for one in outputs.outputs:
                self._on_tokens(one.request_id, len(one.new_token_ids), end_s)
        self.forget_ended()
