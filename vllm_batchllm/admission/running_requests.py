# SPDX-License-Identifier: Apache-2.0
"""The requests that run: as they were admitted, and what they hold now and will hold."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, replace

from vllm_batchllm.admission.candidate import Candidate
from vllm_batchllm.admission.length_prediction import LengthPredictor, Prediction
from vllm_batchllm.admission.memory_forecast import RunningMemory

CAPACITY_SMOOTHING = 0.1
"""Weight of the newest look at how many blocks a block of tokens takes."""


@dataclass(frozen=True, slots=True)
class RunningRequest:
    """One running request, as it was admitted.

    predicted: tokens of its output. num_own_blocks: those that nobody else held when it started.
    groups: those its length is learnt in; empty where the length is known. serial: of its admission.
    """

    candidate: Candidate
    predicted: int
    num_own_blocks: int
    groups: tuple[Hashable, ...]
    serial: int


class RunningRequests:
    """Who runs, and their :class:`RunningMemory`, brought up to date only where it is asked for.

    Args:
        num_blocks: KV blocks that requests can hold.
        block_size: tokens per block.
        predictor: how long each will run; asked again where one outgrows what was expected.
        tokens_per_hash: tokens per block hash, if hashes are finer than blocks.
    """

    def __init__(
        self,
        num_blocks: int,
        block_size: int,
        predictor: LengthPredictor,
        *,
        tokens_per_hash: int | None = None,
    ) -> None:
        self.memory = RunningMemory(block_size, tokens_per_hash=tokens_per_hash)
        self.capacity = self.num_blocks = num_blocks
        self.num_guessed = 0
        self.num_held = 0
        self._blocks_per_block = 1.0
        self._block_size = block_size
        self._expectations = predictor
        self._by_id: dict[str, RunningRequest] = {}
        self._num_admitted = 0
        self._tokens_held: Callable[[], Mapping[str, int]] | None = None

    def __len__(self) -> int:
        return len(self._by_id)

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._by_id

    @property
    def ids(self) -> set[str]:
        """Of the requests that run; a copy."""
        return set(self._by_id)

    def step(self, tokens_held: Callable[[], Mapping[str, int]], num_free_blocks: int) -> None:
        """A step begins; ``tokens_held`` of each running request is asked for at most once."""
        self.memory.step()
        self._tokens_held = tokens_held
        self.num_held = self.num_blocks - num_free_blocks

    def add(self, prediction: Prediction) -> RunningRequest:
        """A request has started."""
        candidate, entrant = prediction.candidate, prediction.entrant
        serial = self._num_admitted
        self._num_admitted += 1
        if not candidate.length_known:
            num_steps = self._expectations.remaining(
                candidate, prediction.groups, candidate.num_generated, serial
            )
            entrant = replace(entrant, num_remaining=num_steps)
        num_shared = self.memory.add(candidate.request_id, entrant)
        num_own = -(-candidate.num_tokens // self._block_size) - num_shared
        running = RunningRequest(
            candidate, prediction.predicted, num_own, prediction.groups, serial
        )
        self._by_id[candidate.request_id] = running
        self.num_guessed += not candidate.length_known
        return running

    def pop(self, request_id: str) -> RunningRequest | None:
        """A request has left; None if it was not known to run."""
        running = self._by_id.pop(request_id, None)
        if running is not None:
            self.num_guessed -= not running.candidate.length_known
            self.memory.remove(request_id)
        return running

    def update(self) -> None:
        """Bring the memory to this step, once a step; O(running)."""
        if self._tokens_held is None:
            return
        for request_id in self.memory.update(self._tokens_held()):
            self._expect_again(request_id)
        self._tokens_held = None
        # Where a model has several KV cache groups, a block of tokens takes several blocks; how
        # many is read off the pool.
        expected = self.memory.held
        if expected:
            change = self.num_held / expected - self._blocks_per_block
            self._blocks_per_block += CAPACITY_SMOOTHING * change
            self.capacity = int(self.num_blocks / max(self._blocks_per_block, 1.0))

    def check_integrity(self, running_ids: set[str]) -> None:
        """Raise AssertionError unless exactly ``running_ids`` are known to run. O(n)."""
        assert set(self._by_id) == running_ids, "admission and scheduler disagree on who runs"
        assert len(self.memory) == len(running_ids), "the memory lost a request"
        assert all(request_id in self.memory for request_id in running_ids)
        guessed = sum(not running.candidate.length_known for running in self._by_id.values())
        assert self.num_guessed == guessed, "guessed lengths are miscounted"

    def _expect_again(self, request_id: str) -> None:
        running = self._by_id[request_id]
        num_tokens = self.memory.num_tokens(request_id)
        num_generated = num_tokens - running.candidate.num_prompt_tokens
        remaining = self._expectations.remaining(
            running.candidate, running.groups, num_generated, running.serial
        )
        self.memory.expect(request_id, remaining)
