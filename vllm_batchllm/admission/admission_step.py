# SPDX-License-Identifier: Apache-2.0
"""Who may start in one step.

One object a step: it counts who has started and why nobody else may, and is gone when the next step
begins. Where the lengths of outputs are known, the memory is looked at as far as a candidate runs,
everybody else growing and ending as expected: it starts if all fit until then, or if it is worth being
sent back (``preemption_price.py``), and starts are paced where that keeps ages mixed (``pacer.py``).
Where nobody can say how long a request runs, it counts as it is,
and a share of the memory is kept free for what will come.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from vllm_batchllm.admission.candidate import Candidate
from vllm_batchllm.admission.interactive_reserve import NOTHING, Reserved
from vllm_batchllm.admission.memory_forecast import Entrant
from vllm_batchllm.admission.options import AdmissionOptions
from vllm_batchllm.admission.pacer import Pacer
from vllm_batchllm.admission.preemption_price import is_worth_starting
from vllm_batchllm.admission.request_lifetime import RequestLifetime
from vllm_batchllm.admission.running_requests import RunningRequests
from vllm_batchllm.stats.counters import ScheduleCounters

Refusal = Literal["memory", "pace", "peak", "reserve"]

RESERVE_RATIO = 0.02
"""Share of the memory that is kept free where the length of any output is a guess. Forecasts by what
was learnt of other outputs were no better than this (docs/policies.md)."""

STEPS_PER_LOOK = 4
"""Steps between two looks at a request that does not fit, while nobody leaves."""


@dataclass(slots=True)
class HeldBack:
    """The request at the head that was refused at the peak, as steps go by.

    It is not looked at again before somebody has left or ``STEPS_PER_LOOK`` steps have passed: as time
    goes by, others end earlier in its life. Begins with the refusal, ends with either.
    """

    request_id: str | None = None
    until_step: int = 0

    def begin(self, request_id: str, step: int) -> None:
        """``request_id`` was refused in this step."""
        self.request_id, self.until_step = request_id, step + STEPS_PER_LOOK

    def end(self) -> None:
        """Somebody has left."""
        self.request_id = None

    def covers(self, request_id: str, step: int) -> bool:
        """Whether ``request_id`` need not be looked at in this step."""
        return self.request_id == request_id and step < self.until_step


@dataclass(frozen=True, slots=True)
class AdmissionParts:
    """What lasts from step to step, each with a file of its own."""

    options: AdmissionOptions
    counters: ScheduleCounters
    running: RunningRequests
    pacer: Pacer
    life_of: Callable[[int, int, int], RequestLifetime]
    """Of so many tokens, shared units and steps."""
    held_back: HeldBack = field(default_factory=HeldBack)


class AdmissionStep:
    """The admissions of one step: for the head of the queue, as long as the answer is yes,
    :meth:`may_start`, and then :meth:`started` or :meth:`no_memory`.

    A decision is vectorised over the running requests; the waiting queue is never looked at.

    Args:
        parts: what lasts from step to step.
        num_tokens: that the step may have; None leaves it to the engine.
        reserved: what those that give way leave free.
        max_num_seqs: requests that run at once at most; read with ``reserved`` only.
    """

    def __init__(
        self,
        parts: AdmissionParts,
        num_tokens: int | None = None,
        reserved: Reserved = NOTHING,
        max_num_seqs: int = 0,
    ) -> None:
        self.num_tokens = num_tokens
        self._reserved, self._max_num_seqs = reserved, max_num_seqs
        self.refusal: Refusal | None = None
        """Why nobody else may start in this step; None as long as somebody may."""
        self._parts = parts
        self._running = parts.running

    def may_start(self, candidate: Candidate, *, anything_running: bool = True) -> bool:
        """Whether ``candidate`` may start; False ends the step's admissions.

        Always True if nothing runs, so no setting can deadlock. Why not is in :attr:`refusal`.
        """
        if self.refusal is None and anything_running and len(self._running):
            self.refusal = self._judge(candidate)
            if self.refusal is not None:
                self._count(self.refusal)
            if self.refusal == "peak":
                self._parts.pacer.peak_refused()
        return self.refusal is None

    def num_kept_blocks(self, candidate: Candidate) -> int:
        """Blocks that are to stay free as ``candidate`` starts, for lengths that nobody knows and those it gives way to.

        Rounded down, as vLLM rounds its watermark: where blocks are few, one is much.
        """
        kept = self._reserved.num_blocks if candidate.gives_way else 0
        is_certain = candidate.length_known and not self._running.num_guessed
        if is_certain or self._parts.options.threshold is not None:
            return kept
        return kept + int(RESERVE_RATIO * self._running.capacity)

    def no_memory(self) -> None:
        """vLLM itself found no room for a request that :meth:`may_start` let pass."""
        self.refusal = "memory"
        self._count("memory")

    def started(self, candidate: Candidate) -> None:
        """``candidate`` has started. Without effect if it runs already."""
        if candidate.request_id in self._running:
            return
        num_shared = self._running.add(candidate)
        if candidate.length_known:
            num_steps = max(candidate.max_tokens - candidate.num_generated, 1)
            self._parts.pacer.plan(self._parts.life_of(candidate.num_tokens, num_shared, num_steps))

    def _judge(self, candidate: Candidate) -> Refusal | None:
        """Why ``candidate`` may not start, or None if it may."""
        parts, running = self._parts, self._running
        if candidate.gives_way and self._is_reserved(len(running)):
            return "reserve"
        if parts.options.threshold is not None:
            return None if self._fits_threshold(candidate, parts.options.threshold) else "peak"
        if parts.held_back.covers(candidate.request_id, parts.counters.num_memory_steps):
            return "peak"
        is_new = candidate.length_known and not candidate.num_generated
        if is_new and not candidate.holds_elsewhere and len(running) + 1 > parts.pacer.max_running:
            return "pace"
        entrant = running.entrant_of(candidate)
        if entrant.num_remaining is None and not running.num_planned:
            return None  # nothing can be foreseen: vLLM itself sees whether it fits now
        if self._fits_ahead(candidate, entrant):
            return None
        parts.held_back.begin(candidate.request_id, parts.counters.num_memory_steps)
        return "peak"

    def _is_reserved(self, num_running: int) -> bool:
        """Whether the slots that are left are not for requests that give way."""
        num_seqs = self._reserved.num_seqs
        return num_seqs > 0 and num_running >= self._max_num_seqs - num_seqs

    def _fits_ahead(self, candidate: Candidate, entrant: Entrant) -> bool:
        """Whether the memory suffices until ``candidate`` has ended, or long enough."""
        running, memory = self._running, self._running.memory
        capacity = running.capacity - self.num_kept_blocks(candidate)
        if running.num_hinted:  # one of them may have outgrown what was expected
            running.update()
        if memory.fits_whatever_happens(entrant, capacity):
            return True
        running.update()
        is_certain = candidate.length_known
        shortage = memory.shortage(entrant, capacity, is_certain=is_certain)
        if shortage is None:
            return True
        if not is_certain or running.num_guessed:
            return False
        num_own = entrant.num_tokens - memory.num_shared_tokens(entrant) + shortage.num_steps
        return is_worth_starting(shortage.num_steps, len(running), shortage.lost_ratio * num_own)

    def _fits_threshold(self, candidate: Candidate, threshold: float) -> bool:
        """The published rule: the blocks held, the candidate's included, stay within a share."""
        self._running.update()
        entrant = Entrant(candidate.hashes, candidate.num_tokens, 0)
        held = self._running.memory.held_with(entrant)
        return held <= threshold * self._running.capacity

    def _count(self, refusal: Refusal) -> None:
        counters, name = self._parts.counters, f"refused_{refusal}"
        setattr(counters, name, getattr(counters, name) + 1)
