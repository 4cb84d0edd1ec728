# SPDX-License-Identifier: Apache-2.0
"""Whether the request at the head of the queue may start now.

vLLM admits what fits now and pays later, with preemptions. Here two things are asked:

- *peak*: does the memory suffice for as long as the entrant runs (until all have ended, if that
  is a guess), everybody else growing and ending as expected? The next steps must be sure. Later
  ones are certain where lengths are known; where they are guessed, a preemption there is rare and
  late, so the capacity may be overcommitted if idle memory costs more.
- *pace*: are the requests that run of mixed ages? (``pace.py``)

The last one that waits is let in as vLLM would, where it cannot lose by it: nobody behind it could
use the memory meanwhile, and if that ends early, the newest is sent back, which is itself.

How strictly, is a question of cost (``cost_rule.py``). With nothing running the head is always
admitted, so no setting can deadlock.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Literal

from vllm_batchllm.admission.candidate import Candidate
from vllm_batchllm.admission.length_prediction import LengthPredictor
from vllm_batchllm.admission.memory_forecast import Entrant
from vllm_batchllm.admission.options import AdmissionOptions
from vllm_batchllm.admission.pacing import RequestLifetime
from vllm_batchllm.admission.running_requests import RunningRequest, RunningRequests
from vllm_batchllm.admission.step_costs import AdmissionLimits, StepCosts, is_worth_a_try
from vllm_batchllm.admission.tuner import ENOUGH_LIVES, LimitTuner
from vllm_batchllm.stats.counters import ScheduleCounters

Refusal = Literal["memory", "pace", "peak"]

NEAR_BLOCKS = 0.75
"""Steps, in blocks of output, in which nothing is overcommitted: what fails there is preempted
at once, and again after each return. On ``skewed-output`` 0.25 brought half as many preemptions
again as this, and 1.5 took 4 % more steps."""

NEAR_LIFE = 0.5
"""The same as a share of an entrant's life, if that is known and shorter."""

STEPS_PER_LOOK = 4
"""Steps between two looks at a request that does not fit, while nobody leaves."""


class AdmissionController:
    """Decides on admissions; told of everything that happens to requests.

    The scheduler calls, in each step: :meth:`step`; then for the head of the queue, as long as
    the answer is yes, :meth:`may_admit` and :meth:`admitted`; then :meth:`worked`. At any time
    :meth:`finished` and :meth:`preempted`. A decision is vectorised over the running requests;
    the waiting queue is never looked at.

    Args:
        num_blocks: KV blocks that requests can hold.
        block_size: tokens per block.
        costs: of a step, to begin with.
        options: as users set them.
        counters: where refusals, lengths and blocks held are counted.
        tokens_per_hash: tokens per block hash, if hashes are finer than blocks.
        lag: steps that are put together before the output of one is known.
        clock: seconds; measures the costs. None keeps ``costs``, for tests and simulation.
    """

    def __init__(
        self,
        num_blocks: int,
        block_size: int,
        costs: StepCosts,
        options: AdmissionOptions | None = None,
        *,
        counters: ScheduleCounters | None = None,
        tokens_per_hash: int | None = None,
        lag: int = 0,
        clock: Callable[[], float] | None = time.perf_counter,
    ) -> None:
        if num_blocks < 1:
            raise ValueError(f"num_blocks must be at least 1, got {num_blocks}")
        self.options = options or AdmissionOptions()
        self.counters = counters or ScheduleCounters()
        self.predictor = LengthPredictor(self.options.quantile, lag)
        self.running = RunningRequests(
            num_blocks, block_size, self.predictor, tokens_per_hash=tokens_per_hash
        )
        self._memory = self.running.memory
        self._block_size = block_size
        self.tuner = LimitTuner(
            block_size, costs, self.options.overcommit, self.options.pace, clock
        )
        self._num_waiting = 0
        self._refusal: Refusal | None = None
        self._stuck: str | None = None
        self._stuck_until = 0

    @property
    def num_running(self) -> int:
        """Requests that were admitted and have neither finished nor been preempted."""
        return len(self.running)

    @property
    def refusal(self) -> Refusal | None:
        """Why admissions of this step have ended; None if they have not."""
        return self._refusal

    @property
    def limits(self) -> AdmissionLimits:
        """How tightly requests are admitted now."""
        return self.tuner.limits

    @property
    def guesses_lengths(self) -> bool:
        """Whether the output of any running request is a guess."""
        return self.running.num_guessed > 0

    @property
    def mean_output(self) -> float | None:
        """Mean output of the requests that have ended, tokens; None until enough have."""
        counters = self.counters
        if counters.num_lengths < ENOUGH_LIVES:
            return None
        return counters.real_tokens / counters.num_lengths

    def __contains__(self, request_id: str) -> bool:
        return request_id in self.running

    def step(
        self,
        tokens_held: Callable[[], Mapping[str, int]],
        *,
        num_waiting: int,
        num_free_blocks: int,
    ) -> None:
        """A step begins.

        tokens_held: prompt and output of each running request so far, asked for only where it
        matters; requests that were never admitted here are none of its business.
        """
        self._refusal = None
        self.predictor.forget()
        self.running.step(tokens_held, num_free_blocks)
        self._num_waiting = num_waiting
        counters = self.counters
        counters.num_memory_steps += 1
        counters.held_blocks += self.running.num_held
        counters.held_blocks_peak = max(counters.held_blocks_peak, self.running.num_held)
        self.tuner.step(self.running.capacity, num_waiting, len(self.running) > 0, self._mean_age)
        counters.overcommit = self.limits.overcommit
        counters.pace = self.limits.pace or 0.0
        if self.tuner.has_chosen and (counters.pace or not counters.choice):
            counters.choice = self.limits.reason

    def may_admit(self, candidate: Candidate, *, anything_running: bool = True) -> bool:
        """Whether ``candidate`` may start in this step; False ends the step's admissions.

        Always True if nothing runs. Why not is in :attr:`refusal`.
        """
        if self._refusal is None and anything_running and len(self.running):
            self._refusal = "peak" if self._is_stuck(candidate) else self._judge(candidate)
            if self._refusal is not None:
                self._count_refusal(self._refusal)
            if self._refusal == "peak":
                self.tuner.peak_refused()
        return self._refusal is None

    def _is_stuck(self, candidate: Candidate) -> bool:
        """Whether ``candidate`` was refused at the peak just now, and nobody has left since.

        It is looked at again every few steps: as time goes by, others end earlier in its life.
        """
        is_same = self._stuck == candidate.request_id
        return is_same and self.counters.num_memory_steps < self._stuck_until

    def no_memory(self) -> None:
        """vLLM itself found no room for a request that :meth:`may_admit` let pass."""
        self._refusal = "memory"
        self._count_refusal("memory")

    def admitted(self, candidate: Candidate) -> None:
        """``candidate`` has started. Without effect if it runs already."""
        if candidate.request_id in self.running:
            return
        self._num_waiting -= 1
        expected = self.predictor.of(candidate)
        num_steps = max(expected.predicted - candidate.num_generated, 1)
        num_own_blocks = self.running.add(expected).num_own_blocks
        # A guess would make all lives look alike, and be paced as if they were.
        if candidate.length_known:
            life = RequestLifetime.of(
                num_own_blocks, candidate.num_tokens, num_steps, self._block_size
            )
            self.tuner.plan(life)

    def finished(self, request_id: str, num_generated: int, *, learn: bool = True) -> None:
        """A request has ended with ``num_generated`` output tokens; unknown ids are ignored.

        ``learn``: False if it was aborted, so that its length says nothing.
        """
        running = self._forget(request_id)
        if running is None or not learn:
            return
        candidate, counters = running.candidate, self.counters
        counters.num_lengths += 1
        counters.predicted_tokens += running.predicted
        counters.real_tokens += num_generated
        counters.length_error_tokens += abs(running.predicted - num_generated)
        if not candidate.length_known:
            self.predictor.lengths.learn(running.groups, num_generated)
        num_steps = num_generated - candidate.num_generated
        life = RequestLifetime.of(
            running.num_own_blocks, candidate.num_tokens, num_steps, self._block_size
        )
        self.tuner.lived(life)

    def preempted(self, request_id: str) -> None:
        """A request was sent back to wait; unknown ids are ignored."""
        self._forget(request_id)

    def worked(self, num_tokens: int, num_requests: int) -> None:
        """The step was put together: so many tokens, of so many requests."""
        num_prefill = max(num_tokens - num_requests, 0)
        self.tuner.worked(num_prefill, num_requests, self._memory.tokens)

    def check_integrity(self, running_ids: set[str]) -> None:
        """Raise AssertionError unless exactly ``running_ids`` are known to run. O(n)."""
        self.running.check_integrity(running_ids)

    def _judge(self, candidate: Candidate) -> Refusal | None:
        threshold = self.options.threshold
        if threshold is not None:
            self.running.update()
            entrant = Entrant(candidate.hashes, candidate.num_tokens, 0)
            held = self._memory.forecast(entrant, until=0).held
            return "peak" if held > threshold * self.running.capacity else None
        if not candidate.num_generated and len(self.running) + 1 > self.tuner.max_running:
            return "pace"
        entrant = self.predictor.of(candidate).entrant
        if self.running.num_guessed:  # one of them may have outgrown its prediction
            self.running.update()
        if self._memory.fits_whatever_happens(entrant, self.running.capacity):
            return None
        self.running.update()
        near = NEAR_BLOCKS * self._block_size
        if candidate.length_known:  # of a short life that would be all
            near = min(near, NEAR_LIFE * entrant.num_remaining)
        # What comes after its end it can neither cause nor prevent; but is it the end?
        until = entrant.num_remaining + 1 if candidate.length_known else None
        forecast = self._memory.forecast(entrant, near=int(near), until=until)
        if forecast.near > self.running.capacity or forecast.peak > self._highest_peak(candidate):
            num_steps = max(int(near), 1) if forecast.near <= self.running.capacity else 1
            if self._may_try(candidate, num_steps):
                return None
            self._stuck = candidate.request_id
            self._stuck_until = self.counters.num_memory_steps + STEPS_PER_LOOK
            return "peak"
        return None

    def _may_try(self, candidate: Candidate, num_steps: int) -> bool:
        """Whether the memory may end before ``candidate`` does, ``num_steps`` ahead at least.

        Once in its life, if nobody waits behind it and the steps are worth its tokens.
        """
        is_last = self._num_waiting <= 1 and not candidate.was_preempted
        if not is_last or self.options.overcommit is not None:
            return False
        return is_worth_a_try(self.tuner.costs, candidate.num_tokens, num_steps)

    def _mean_age(self) -> float:
        return self._memory.mean_age if self.running.num_guessed else 0.0

    def _highest_peak(self, candidate: Candidate) -> float:
        """Blocks that the far peak may reach; what is certain is hardly bet against unasked."""
        is_certain = candidate.length_known and self.options.overcommit is None
        limits = self.limits
        return self.running.capacity * (
            limits.overcommit_known if is_certain else limits.overcommit
        )

    def _forget(self, request_id: str) -> RunningRequest | None:
        self._stuck = None
        self.predictor.forget()
        return self.running.pop(request_id)

    def _count_refusal(self, refusal: Refusal) -> None:
        name = f"refused_{refusal}"
        setattr(self.counters, name, getattr(self.counters, name) + 1)
