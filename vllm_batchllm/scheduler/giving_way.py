# SPDX-License-Identifier: Apache-2.0
"""Batch requests that give way to interactive ones: in a step's tokens, in slots, in memory.

Interactive is a request of priority 0 or less, batch one above. vLLM asks the more urgent first, but goes on with a prompt
that it has begun, fills every slot, and leaves no memory: so the prompt of a batch request pauses while an interactive one
waits for its first token, and what interactive requests lately needed is kept free.
"""

from __future__ import annotations

from typing import Any

from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.request import Request

from vllm_batchllm.admission.environment import Clock
from vllm_batchllm.admission.interactive_reserve import (
    INTERACTIVE_PRIORITY,
    InteractiveReserve,
    Reserved,
)
from vllm_batchllm.scheduler.request_queue import PrefixGroupQueue


class GivingWay:
    """What batch requests may do in the step that begins.

    Args:
        scheduler: whose running requests are looked at. queue: of those who wait.
        num_blocks: KV blocks that requests can hold.
    """

    def __init__(
        self, scheduler: Scheduler, queue: PrefixGroupQueue, num_blocks: int, clock: Clock
    ) -> None:
        self._scheduler, self._queue, self._clock = scheduler, queue, clock
        self._reserve = InteractiveReserve(int(scheduler.max_num_running_reqs), num_blocks)
        self._paused: list[Request] = []
        self.has_batch = False
        """Whether any batch request runs or waits."""
        self.num_paused = 0
        """Steps of prompts that have paused, in all."""

    def arrived(self, request: Request, num_blocks: int) -> None:
        """``request`` has come, which will hold ``num_blocks`` at its end."""
        if is_interactive(request):
            self._reserve.arrived(num_blocks)

    def begin_step(self) -> int:
        """Take out who pauses in the step that begins; how many they are. O(running)."""
        scheduler: Any = self._scheduler
        urgent = [request for request in scheduler.running if is_interactive(request)]
        num_waiting = self._queue.num_interactive
        self.has_batch = len(urgent) < len(scheduler.running) or len(self._queue) > num_waiting
        self._reserve.step(self._clock(), len(urgent) + num_waiting)
        self._num_urgent = len(urgent)
        if num_waiting or any(request.is_prefill_chunk for request in urgent):
            self._paused = [
                r for r in scheduler.running if r.is_prefill_chunk and not is_interactive(r)
            ]
        if self._paused:
            gone = set(self._paused)
            scheduler.running = [r for r in scheduler.running if r not in gone]
            self.num_paused += len(self._paused)
        return len(self._paused)

    def reserved(self) -> Reserved:
        """What batch requests leave free in the step that begins."""
        return Reserved(
            self._reserve.num_seqs(self._num_urgent),
            self._reserve.num_free_blocks(self._num_urgent),
        )

    def end_step(self) -> None:
        """Who has paused goes on."""
        if self._paused:
            self._scheduler.running = self._scheduler.running + self._paused
            self._paused = []


def is_interactive(request: Request) -> bool:
    """Whether ``request`` belongs to the class that batch requests give way to."""
    return bool(request.priority <= INTERACTIVE_PRIORITY)
