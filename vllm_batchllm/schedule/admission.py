# SPDX-License-Identifier: Apache-2.0
"""Whether the request at the head of the queue may start now.

vLLM admits what fits now and pays later, with preemptions. Here two things are asked:

- *peak*: does the memory suffice for as long as the newcomer runs (until all have ended, if that
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
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Literal

from vllm_batchllm.schedule.admission_options import AdmissionOptions
from vllm_batchllm.schedule.candidate import Candidate
from vllm_batchllm.schedule.cost_rule import Costs, Tightness, is_worth_a_try
from vllm_batchllm.schedule.counters import ScheduleCounters
from vllm_batchllm.schedule.footprint import Newcomer, RunningFootprint
from vllm_batchllm.schedule.lengths import Bounds, LengthEstimator
from vllm_batchllm.schedule.pace import Life
from vllm_batchllm.schedule.planner import ENOUGH_LIVES, TightnessPlanner

Refusal = Literal["memory", "pace", "peak"]

NEAR_BLOCKS = 0.75
"""Steps, in blocks of output, in which nothing is overcommitted: what fails there is preempted
at once, and again after each return. On ``skewed-output`` 0.25 brought half as many preemptions
again as this, and 1.5 took 4 % more steps."""

NEAR_LIFE = 0.5
"""The same as a share of a newcomer's life, if that is known and shorter."""

STEPS_PER_LOOK = 4
"""Steps between two looks at a request that does not fit, while nobody leaves."""


@dataclass(slots=True)
class _Running:
    """One running request, as it was admitted."""

    candidate: Candidate
    predicted: int
    num_own_blocks: int
    groups: tuple[Hashable, ...]


@dataclass(frozen=True, slots=True)
class _Expected:
    """What is expected of a candidate; worked out once for the question and the start."""

    candidate: Candidate
    groups: tuple[Hashable, ...]
    predicted: int
    newcomer: Newcomer


class Admission:
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
        costs: Costs,
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
        self.lengths = LengthEstimator()
        self.num_blocks = self._capacity = num_blocks
        self._blocks_per_block = 1.0
        self._block_size = block_size
        self._lag = lag
        self._footprint = RunningFootprint(block_size, tokens_per_hash=tokens_per_hash)
        self._running: dict[str, _Running] = {}
        self.planner = TightnessPlanner(
            block_size, costs, self.options.overcommit, self.options.pace, clock
        )
        self._num_guessed = self._num_held = self._num_waiting = 0
        self._tokens_held: Callable[[], Mapping[str, int]] | None = None
        self._refusal: Refusal | None = None
        self._expected: _Expected | None = None
        self._stuck: str | None = None
        self._stuck_until = 0

    @property
    def num_running(self) -> int:
        """Requests that were admitted and have neither finished nor been preempted."""
        return len(self._running)

    @property
    def refusal(self) -> Refusal | None:
        """Why admissions of this step have ended; None if they have not."""
        return self._refusal

    @property
    def tightness(self) -> Tightness:
        """How tightly requests are admitted now."""
        return self.planner.tightness

    @property
    def guesses_lengths(self) -> bool:
        """Whether the output of any running request is a guess."""
        return self._num_guessed > 0

    @property
    def mean_output(self) -> float | None:
        """Mean output of the requests that have ended, tokens; None until enough have."""
        counters = self.counters
        if counters.num_lengths < ENOUGH_LIVES:
            return None
        return counters.real_tokens / counters.num_lengths

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._running

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
        self._refusal = self._expected = None
        self._footprint.step()
        self._tokens_held = tokens_held
        self._num_held = self.num_blocks - num_free_blocks
        self._num_waiting = num_waiting
        counters = self.counters
        counters.num_memory_steps += 1
        counters.held_blocks += self._num_held
        counters.held_blocks_peak = max(counters.held_blocks_peak, self._num_held)
        self.planner.step(self._capacity, num_waiting, bool(self._running), self._mean_age)
        counters.overcommit = self.tightness.overcommit
        counters.pace = self.tightness.pace or 0.0
        if self.planner.has_chosen and (counters.pace or not counters.choice):
            counters.choice = self.tightness.reason

    def may_admit(self, candidate: Candidate, *, anything_running: bool = True) -> bool:
        """Whether ``candidate`` may start in this step; False ends the step's admissions.

        Always True if nothing runs. Why not is in :attr:`refusal`.
        """
        if self._refusal is None and anything_running and self._running:
            self._refusal = "peak" if self._is_stuck(candidate) else self._judge(candidate)
            if self._refusal is not None:
                self._count_refusal(self._refusal)
            if self._refusal == "peak":
                self.planner.peak_refused()
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
        if candidate.request_id in self._running:
            return
        self._num_waiting -= 1
        expected = self._expect(candidate)
        num_steps = max(expected.predicted - candidate.num_generated, 1)
        num_shared = self._footprint.add(candidate.request_id, expected.newcomer)
        num_own = -(-candidate.num_tokens // self._block_size) - num_shared
        self._num_guessed += not candidate.length_known
        self._running[candidate.request_id] = _Running(
            candidate, expected.predicted, num_own, expected.groups
        )
        # A guess would make all lives look alike, and be paced as if they were.
        if candidate.length_known:
            life = Life.of(num_own, candidate.num_tokens, num_steps, self._block_size)
            self.planner.plan(life)

    def expected_output(self, candidate: Candidate) -> int:
        """Median output of ``candidate``, tokens, as far as is known; ``max_tokens`` at first."""
        if candidate.length_known or (candidate.hint is None and not self.lengths.num_seen):
            return candidate.max_tokens
        bounds = Bounds(candidate.max_tokens, candidate.num_generated, candidate.hint)
        return self.lengths.predict(candidate.groups(), 0.5, bounds)

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
            self.lengths.learn(running.groups, num_generated)
        num_steps = num_generated - candidate.num_generated
        life = Life.of(running.num_own_blocks, candidate.num_tokens, num_steps, self._block_size)
        self.planner.lived(life)

    def preempted(self, request_id: str) -> None:
        """A request was sent back to wait; unknown ids are ignored."""
        self._forget(request_id)

    def worked(self, num_tokens: int, num_requests: int) -> None:
        """The step was put together: so many tokens, of so many requests."""
        num_prefill = max(num_tokens - num_requests, 0)
        self.planner.worked(num_prefill, num_requests, self._footprint.tokens)

    def check_integrity(self, running_ids: set[str]) -> None:
        """Raise AssertionError unless exactly ``running_ids`` are known to run. O(n)."""
        assert set(self._running) == running_ids, "admission and scheduler disagree on who runs"
        assert len(self._footprint) == len(running_ids), "the footprint lost a request"
        assert all(request_id in self._footprint for request_id in running_ids)

    def _judge(self, candidate: Candidate) -> Refusal | None:
        threshold = self.options.threshold
        if threshold is not None:
            self._update_footprint()
            held = self._footprint.outlook(self._newcomer(candidate, 0), until=0).held
            return "peak" if held > threshold * self._capacity else None
        if not candidate.num_generated and len(self._running) + 1 > self.planner.max_running:
            return "pace"
        newcomer = self._expect(candidate).newcomer
        if self._num_guessed:  # one of them may have outgrown its prediction
            self._update_footprint()
        if self._footprint.fits_whatever_happens(newcomer, self._capacity):
            return None
        self._update_footprint()
        near = NEAR_BLOCKS * self._block_size
        if candidate.length_known:  # of a short life that would be all
            near = min(near, NEAR_LIFE * newcomer.num_remaining)
        # What comes after its end it can neither cause nor prevent; but is it the end?
        until = newcomer.num_remaining + 1 if candidate.length_known else None
        outlook = self._footprint.outlook(newcomer, near=int(near), until=until)
        if outlook.near > self._capacity or outlook.peak > self._highest_peak(candidate):
            num_steps = max(int(near), 1) if outlook.near <= self._capacity else 1
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
        return is_worth_a_try(self.planner.costs, candidate.num_tokens, num_steps)

    def _mean_age(self) -> float:
        return self._footprint.mean_age if self._num_guessed else 0.0

    def _highest_peak(self, candidate: Candidate) -> float:
        """Blocks that the far peak may reach; what is certain is hardly bet against unasked."""
        is_certain = candidate.length_known and self.options.overcommit is None
        tightness = self.tightness
        return self._capacity * (tightness.overcommit_known if is_certain else tightness.overcommit)

    def _newcomer(self, candidate: Candidate, num_remaining: int) -> Newcomer:
        return Newcomer(candidate.hashes, candidate.num_tokens, num_remaining)

    def _expect(self, candidate: Candidate) -> _Expected:
        expected = self._expected
        if expected is None or expected.candidate is not candidate:
            groups = () if candidate.length_known else candidate.groups()
            predicted = self._predict(candidate, groups, candidate.num_generated)
            remaining = self._remaining(predicted, candidate.num_generated)
            newcomer = self._newcomer(candidate, remaining)
            expected = self._expected = _Expected(candidate, groups, predicted, newcomer)
        return expected

    def _predict(
        self, candidate: Candidate, groups: tuple[Hashable, ...], num_generated: int
    ) -> int:
        if candidate.length_known:
            return candidate.max_tokens
        bounds = Bounds(candidate.max_tokens, num_generated, candidate.hint)
        return self.lengths.predict(groups, self.options.quantile, bounds)

    def _predict_again(self, request_id: str) -> None:
        running = self._running[request_id]
        num_tokens = self._footprint.num_tokens(request_id)
        num_generated = num_tokens - running.candidate.num_prompt_tokens
        predicted = self._predict(running.candidate, running.groups, num_generated)
        self._footprint.expect(request_id, self._remaining(predicted, num_generated))

    def _remaining(self, predicted: int, num_generated: int) -> int:
        """Steps behind the first one until the blocks come back."""
        return max(predicted - num_generated - 1, 0) + self._lag

    def _forget(self, request_id: str) -> _Running | None:
        self._stuck = self._expected = None
        running = self._running.pop(request_id, None)
        if running is not None:
            self._num_guessed -= not running.candidate.length_known
            self._footprint.remove(request_id)
        return running

    def _update_footprint(self) -> None:
        """Bring the footprint to this step, once a step; O(running)."""
        if self._tokens_held is None:
            return
        for request_id in self._footprint.update(self._tokens_held()):
            self._predict_again(request_id)
        self._tokens_held = None
        # Where a model has several KV cache groups, a block of tokens takes several blocks; how
        # many is read off the pool.
        expected = self._footprint.held
        if expected:
            self._blocks_per_block += 0.1 * (self._num_held / expected - self._blocks_per_block)
            self._capacity = int(self.num_blocks / max(self._blocks_per_block, 1.0))

    def _count_refusal(self, refusal: Refusal) -> None:
        name = f"refused_{refusal}"
        setattr(self.counters, name, getattr(self.counters, name) + 1)
