# SPDX-License-Identifier: Apache-2.0
"""Admission from step to step: told of everything that happens to requests.

vLLM admits what fits now and pays later, with preemptions. Here each step gets an
:class:`AdmissionStep` that says who may start; what it knows comes from the parts that live here.
Nothing in this room reads a clock or a request's id: what is decided is a function of what arrived.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache, partial

from vllm_batchllm.admission.admission_step import AdmissionParts, AdmissionStep
from vllm_batchllm.admission.candidate import Candidate
from vllm_batchllm.admission.interactive_reserve import NOTHING, Reserved
from vllm_batchllm.admission.memory_model import MemoryModel
from vllm_batchllm.admission.options import AdmissionOptions
from vllm_batchllm.admission.pacer import Pacer
from vllm_batchllm.admission.request_lifetime import RequestLifetime
from vllm_batchllm.admission.running_requests import RunningRequests
from vllm_batchllm.stats.counters import ScheduleCounters

MANY_LIVES = 4096
"""Lives that are kept computed: in most batches many requests are alike."""


class AdmissionController:
    """Keeps who runs.

    The scheduler calls :meth:`begin_step` in each step, whose answer decides on admissions, and at any
    time :meth:`finished` and :meth:`preempted`.

    Args:
        num_blocks: KV blocks that requests can hold.
        model: blocks of a request by its tokens.
        options: as users set them.
        counters: where refusals, lengths and blocks held are counted.
        tokens_per_hash: tokens per block hash, if hashes are finer than units of sharing.
        lag: steps that are put together before the output of one is known.

    Raises:
        ValueError: ``num_blocks`` is below 1.
    """

    def __init__(
        self,
        num_blocks: int,
        model: MemoryModel,
        options: AdmissionOptions | None = None,
        *,
        counters: ScheduleCounters | None = None,
        tokens_per_hash: int | None = None,
        lag: int = 0,
    ) -> None:
        if num_blocks < 1:
            raise ValueError(f"num_blocks must be at least 1, got {num_blocks}")
        self.options = options or AdmissionOptions()
        self.counters = counters or ScheduleCounters()
        self.running = RunningRequests(num_blocks, model, tokens_per_hash=tokens_per_hash, lag=lag)
        self.pacer = Pacer(model)
        life_of = lru_cache(MANY_LIVES)(partial(RequestLifetime.of, model))
        self._parts = AdmissionParts(self.options, self.counters, self.running, self.pacer, life_of)
        self.step = AdmissionStep(self._parts)
        """Of the step that has begun last."""

    @property
    def num_running(self) -> int:
        """Requests that were admitted and have neither finished nor been preempted."""
        return len(self.running)

    @property
    def guesses_lengths(self) -> bool:
        """Whether the output of any running request is a guess."""
        return self.running.num_guessed > 0

    @property
    def mean_output(self) -> float | None:
        """Mean output of the requests that have ended, tokens; None until one has."""
        counters = self.counters
        return counters.real_tokens / counters.num_ended if counters.num_ended else None

    def __contains__(self, request_id: str) -> bool:
        return request_id in self.running

    def begin_step(
        self,
        tokens_held: Callable[[], Mapping[str, int]],
        *,
        num_waiting: int,
        num_free_blocks: int,
        num_tokens: int | None = None,
        reserved: Reserved = NOTHING,
        max_num_seqs: int = 0,
    ) -> AdmissionStep:
        """A step begins; who may start in it, the answer says.

        tokens_held: prompt and output of each running request so far, asked for only where it
        matters; requests that were never admitted here are none of its business. num_tokens: that
        the step may have; None leaves it to the engine. reserved: what requests that give way leave free, of
        ``max_num_seqs`` slots and of the memory.
        """
        self.running.step(tokens_held, num_free_blocks)
        counters = self.counters
        counters.num_memory_steps += 1
        counters.held_blocks += self.running.num_held
        counters.held_blocks_peak = max(counters.held_blocks_peak, self.running.num_held)
        self.pacer.step(self.running.capacity, num_waiting, len(self.running) > 0)
        self.step = AdmissionStep(self._parts, num_tokens, reserved, max_num_seqs)
        return self.step

    def continued(self, candidate: Candidate) -> None:
        """A session that runs has got its next turn; unknown ids are ignored."""
        self.running.plan_again(candidate)

    def finished(self, request_id: str, num_generated: int, *, learn: bool = True) -> None:
        """A request has ended with ``num_generated`` output tokens; unknown ids are ignored.

        ``learn``: False if it was aborted, so that its length says nothing.
        """
        if self._leaves(request_id) and learn:
            self.counters.num_ended += 1
            self.counters.real_tokens += num_generated

    def preempted(self, request_id: str) -> None:
        """A request was sent back to wait; unknown ids are ignored."""
        self._leaves(request_id)

    def expected_output(self, num_expected: int | None, max_tokens: int) -> int:
        """Tokens of output that a waiting request will have: as told, as others had, or all of them."""
        if num_expected is not None:
            return num_expected
        mean = self.mean_output
        return max_tokens if mean is None else min(max(round(mean), 1), max_tokens)

    def check_integrity(self, running_ids: set[str]) -> None:
        """Raise AssertionError unless exactly ``running_ids`` are known to run. O(n)."""
        self.running.check_integrity(running_ids)

    def _leaves(self, request_id: str) -> bool:
        self._parts.held_back.end()
        return self.running.pop(request_id) is not None
