# SPDX-License-Identifier: Apache-2.0
"""Admission from step to step: told of everything that happens to requests.

vLLM admits what fits now and pays later, with preemptions. Here each step gets an
:class:`AdmissionStep` that says who may start; what it knows comes from the parts that live here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from vllm_batchllm.admission.admission_step import AdmissionParts, AdmissionStep
from vllm_batchllm.admission.environment import Environment
from vllm_batchllm.admission.length_prediction import LengthPredictor
from vllm_batchllm.admission.limits import AdmissionLimits
from vllm_batchllm.admission.options import AdmissionOptions
from vllm_batchllm.admission.pacing import RequestLifetime
from vllm_batchllm.admission.running_requests import RunningRequest, RunningRequests
from vllm_batchllm.admission.step_costs import StepCosts, platform_costs
from vllm_batchllm.admission.tuner import ENOUGH_LIVES, LimitTuner
from vllm_batchllm.stats.counters import ScheduleCounters


class AdmissionController:
    """Keeps who runs, what was learnt and how tightly to admit.

    The scheduler calls, in each step: :meth:`begin_step`, whose answer decides on admissions, then
    :meth:`end_step`. At any time :meth:`finished` and :meth:`preempted`.

    Args:
        num_blocks: KV blocks that requests can hold.
        block_size: tokens per block.
        environment: whose costs hold at first, and the clock that measures them.
        options: as users set them.
        costs: of a step, to begin with; None for the platform's.
        counters: where refusals, lengths and blocks held are counted.
        tokens_per_hash: tokens per block hash, if hashes are finer than blocks.
        lag: steps that are put together before the output of one is known.

    Raises:
        ValueError: ``num_blocks`` is below 1, or the platform is unknown.
    """

    def __init__(
        self,
        num_blocks: int,
        block_size: int,
        environment: Environment,
        options: AdmissionOptions | None = None,
        *,
        costs: StepCosts | None = None,
        counters: ScheduleCounters | None = None,
        tokens_per_hash: int | None = None,
        lag: int = 0,
    ) -> None:
        if num_blocks < 1:
            raise ValueError(f"num_blocks must be at least 1, got {num_blocks}")
        self.options = options or AdmissionOptions()
        self.counters = counters or ScheduleCounters()
        self.predictor = LengthPredictor(self.options.quantile, lag)
        self.running = RunningRequests(
            num_blocks, block_size, self.predictor, tokens_per_hash=tokens_per_hash
        )
        self.tuner = LimitTuner(
            block_size,
            costs or platform_costs(environment.platform),
            self.options.overcommit,
            self.options.pace,
            environment.clock,
        )
        self._parts = AdmissionParts(
            self.options, self.counters, self.predictor, self.running, self.tuner, block_size
        )
        self.step = AdmissionStep(self._parts)
        """Of the step that has begun last."""

    @property
    def num_running(self) -> int:
        """Requests that were admitted and have neither finished nor been preempted."""
        return len(self.running)

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

    def begin_step(
        self,
        tokens_held: Callable[[], Mapping[str, int]],
        *,
        num_waiting: int,
        num_free_blocks: int,
        num_tokens: int | None = None,
    ) -> AdmissionStep:
        """A step begins; who may start in it, the answer says.

        tokens_held: prompt and output of each running request so far, asked for only where it
        matters; requests that were never admitted here are none of its business. num_tokens: that
        the step may have; None leaves it to the engine.
        """
        self.running.step(tokens_held, num_free_blocks)
        counters = self.counters
        counters.num_memory_steps += 1
        counters.held_blocks += self.running.num_held
        counters.held_blocks_peak = max(counters.held_blocks_peak, self.running.num_held)
        self.tuner.step(self.running.capacity, num_waiting, len(self.running) > 0, self._mean_age)
        counters.overcommit = self.limits.overcommit
        counters.pace = self.limits.pace or 0.0
        if self.tuner.has_chosen and (counters.pace or not counters.choice):
            counters.choice = self.limits.reason
        self.step = AdmissionStep(self._parts, num_waiting, num_tokens)
        return self.step

    def end_step(self, num_tokens: int, num_requests: int) -> None:
        """The step was put together: so many tokens, of so many requests."""
        num_prefill = max(num_tokens - num_requests, 0)
        self.tuner.worked(num_prefill, num_requests, self.running.memory.tokens)

    def finished(self, request_id: str, num_generated: int, *, learn: bool = True) -> None:
        """A request has ended with ``num_generated`` output tokens; unknown ids are ignored.

        ``learn``: False if it was aborted, so that its length says nothing.
        """
        running = self._leaves(request_id)
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
            running.num_own_blocks, candidate.num_tokens, num_steps, self._parts.block_size
        )
        self.tuner.lived(life)

    def preempted(self, request_id: str) -> None:
        """A request was sent back to wait; unknown ids are ignored."""
        self._leaves(request_id)

    def check_integrity(self, running_ids: set[str]) -> None:
        """Raise AssertionError unless exactly ``running_ids`` are known to run. O(n)."""
        self.running.check_integrity(running_ids)

    def _mean_age(self) -> float:
        return self.running.memory.mean_age if self.running.num_guessed else 0.0

    def _leaves(self, request_id: str) -> RunningRequest | None:
        self._parts.held_back.end()
        return self.running.pop(request_id)
