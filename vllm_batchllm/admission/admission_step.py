# SPDX-License-Identifier: Apache-2.0
"""Who may start in one step.

One object a step: it has the step's budget, counts who has started and why nobody else may, and is
gone when the next step begins. Two things are asked of a candidate:

- *peak*: does the memory suffice for as long as it runs (until all have ended, if that is a guess),
  everybody else growing and ending as expected? The next steps must be sure. Later ones are certain
  where lengths are known; where they are guessed, a preemption there is rare and late, so the
  capacity may be overcommitted if idle memory costs more.
- *pace*: are the requests that run of mixed ages? (``pacing.py``)

The last one that waits is let in as vLLM would, where it cannot lose by it: nobody behind it could
use the memory meanwhile, and if that ends early, the newest is sent back, which is itself. How
strictly, is a question of cost (``limits.py``).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from vllm_batchllm.admission.candidate import Candidate
from vllm_batchllm.admission.length_prediction import LengthPredictor, Prediction
from vllm_batchllm.admission.memory_forecast import Entrant
from vllm_batchllm.admission.options import AdmissionOptions
from vllm_batchllm.admission.pacing import RequestLifetime
from vllm_batchllm.admission.running_requests import RunningRequests
from vllm_batchllm.admission.step_costs import is_worth_a_try
from vllm_batchllm.admission.tuner import LimitTuner
from vllm_batchllm.stats.counters import ScheduleCounters

Refusal = Literal["memory", "pace", "peak"]

NEAR_BLOCKS = 0.75
"""Steps, in blocks of output, in which nothing is overcommitted: what fails there is preempted at
once, and again after each return (docs/policies.md)."""

NEAR_LIFE = 0.5
"""The same as a share of an entrant's life, if that is known and shorter."""

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
    predictor: LengthPredictor
    running: RunningRequests
    tuner: LimitTuner
    block_size: int
    held_back: HeldBack = field(default_factory=HeldBack)


class AdmissionStep:
    """The admissions of one step: for the head of the queue, as long as the answer is yes,
    :meth:`may_start`, and then :meth:`started` or :meth:`no_memory`.

    A decision is vectorised over the running requests; the waiting queue is never looked at.

    Args:
        parts: what lasts from step to step.
        num_waiting: requests that wait as the step begins.
        num_tokens: that the step may have; None leaves it to the engine.
    """

    def __init__(
        self, parts: AdmissionParts, num_waiting: int = 0, num_tokens: int | None = None
    ) -> None:
        self.num_tokens = num_tokens
        self.refusal: Refusal | None = None
        """Why nobody else may start in this step; None as long as somebody may."""
        self._parts = parts
        self._running, self._memory = parts.running, parts.running.memory
        self._num_waiting = num_waiting
        self._asked: Prediction | None = None

    def may_start(self, candidate: Candidate, *, anything_running: bool = True) -> bool:
        """Whether ``candidate`` may start; False ends the step's admissions.

        Always True if nothing runs, so no setting can deadlock. Why not is in :attr:`refusal`.
        """
        if self.refusal is None and anything_running and len(self._running):
            self.refusal = self._judge(candidate)
            if self.refusal is not None:
                self._count(self.refusal)
            if self.refusal == "peak":
                self._parts.tuner.peak_refused()
        return self.refusal is None

    def no_memory(self) -> None:
        """vLLM itself found no room for a request that :meth:`may_start` let pass."""
        self.refusal = "memory"
        self._count("memory")

    def started(self, candidate: Candidate) -> None:
        """``candidate`` has started. Without effect if it runs already."""
        if candidate.request_id in self._running:
            return
        self._num_waiting -= 1
        prediction = self._predicted(candidate)
        num_steps = max(prediction.predicted - candidate.num_generated, 1)
        num_own_blocks = self._running.add(prediction).num_own_blocks
        # A guess would make all lives look alike, and be paced as if they were.
        if candidate.length_known:
            life = RequestLifetime.of(
                num_own_blocks, candidate.num_tokens, num_steps, self._parts.block_size
            )
            self._parts.tuner.plan(life)

    def _judge(self, candidate: Candidate) -> Refusal | None:
        """Why ``candidate`` may not start, or None if it may."""
        parts, running = self._parts, self._running
        if parts.held_back.covers(candidate.request_id, parts.counters.num_memory_steps):
            return "peak"
        if parts.options.threshold is not None:
            return self._judge_by_threshold(candidate, parts.options.threshold)
        if not candidate.num_generated and len(running) + 1 > parts.tuner.max_running:
            return "pace"
        entrant = self._predicted(candidate).entrant
        if running.num_guessed:  # one of them may have outgrown its prediction
            running.update()
        if self._memory.fits_whatever_happens(entrant, running.capacity):
            return None
        running.update()
        if self._fits_ahead(candidate, entrant):
            return None
        parts.held_back.begin(candidate.request_id, parts.counters.num_memory_steps)
        return "peak"

    def _judge_by_threshold(self, candidate: Candidate, threshold: float) -> Refusal | None:
        """The published rule: the blocks held, the candidate's included, stay within a share."""
        self._running.update()
        entrant = Entrant(candidate.hashes, candidate.num_tokens, 0)
        held = self._memory.forecast(entrant, until=0).held
        return "peak" if held > threshold * self._running.capacity else None

    def _fits_ahead(self, candidate: Candidate, entrant: Entrant) -> bool:
        """Whether the memory suffices in the next steps for certain, and later as expected."""
        capacity = self._running.capacity
        near = NEAR_BLOCKS * self._parts.block_size
        if candidate.length_known:  # of a short life that would be all
            near = min(near, NEAR_LIFE * entrant.num_remaining)
        # What comes after its end it can neither cause nor prevent; but is it the end?
        until = entrant.num_remaining + 1 if candidate.length_known else None
        forecast = self._memory.forecast(entrant, near=int(near), until=until)
        if forecast.near <= capacity and forecast.peak <= self._highest_peak(candidate):
            return True
        num_steps = max(int(near), 1) if forecast.near <= capacity else 1
        return self._may_try(candidate, num_steps)

    def _may_try(self, candidate: Candidate, num_steps: int) -> bool:
        """Whether the memory may end before ``candidate`` does, ``num_steps`` ahead at least.

        Once in its life, if nobody waits behind it and the steps are worth its tokens.
        """
        is_last = self._num_waiting <= 1 and not candidate.was_preempted
        if not is_last or self._parts.options.overcommit is not None:
            return False
        return is_worth_a_try(self._parts.tuner.costs, candidate.num_tokens, num_steps)

    def _highest_peak(self, candidate: Candidate) -> float:
        """Blocks that the far peak may reach; what is certain is hardly bet against unasked."""
        is_certain = candidate.length_known and self._parts.options.overcommit is None
        limits = self._parts.tuner.limits
        return self._running.capacity * (
            limits.overcommit_known if is_certain else limits.overcommit
        )

    def _predicted(self, candidate: Candidate) -> Prediction:
        """What ``candidate`` will be; worked out once for the question and the start."""
        if self._asked is None or self._asked.candidate is not candidate:
            self._asked = self._parts.predictor.of(candidate)
        return self._asked

    def _count(self, refusal: Refusal) -> None:
        counters, name = self._parts.counters, f"refused_{refusal}"
        setattr(counters, name, getattr(counters, name) + 1)
