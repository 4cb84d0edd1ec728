# SPDX-License-Identifier: Apache-2.0
"""The requests that run: as they were admitted, and what they hold now and will hold."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from vllm_batchllm.admission.candidate import Candidate
from vllm_batchllm.admission.memory_forecast import Entrant, RunningMemory
from vllm_batchllm.admission.memory_model import MemoryModel


class RunningRequests:
    """Who runs, and their :class:`RunningMemory`, brought up to date only where it is asked for.

    Args:
        num_blocks: KV blocks that requests can hold.
        model: blocks of a request by its tokens.
        tokens_per_hash: tokens per block hash, if hashes are finer than units of sharing.
        lag: steps that are put together before the output of one is known.
    """

    def __init__(
        self,
        num_blocks: int,
        model: MemoryModel,
        *,
        tokens_per_hash: int | None = None,
        lag: int = 0,
    ) -> None:
        self.memory = RunningMemory(model, tokens_per_hash=tokens_per_hash)
        self.capacity = num_blocks
        self.num_guessed = 0
        """Requests whose output is not certain; those with a hint are among them."""
        self.num_held = 0
        self._lag = lag
        self._by_id: dict[str, Candidate] = {}
        self._hinted: set[str] = set()
        self._tokens_held: Callable[[], Mapping[str, int]] | None = None
        self._seen: tuple[Candidate, Entrant] | None = None
        """The latest: whoever may start is looked at again as it starts."""

    def __len__(self) -> int:
        return len(self._by_id)

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._by_id

    @property
    def ids(self) -> set[str]:
        """Of the requests that run; a copy."""
        return set(self._by_id)

    @property
    def num_hinted(self) -> int:
        """Requests that are planned by their hint."""
        return len(self._hinted)

    @property
    def num_planned(self) -> int:
        """Requests whose end is expected at some step."""
        return len(self._by_id) - self.num_guessed + self.num_hinted

    def step(self, tokens_held: Callable[[], Mapping[str, int]], num_free_blocks: int) -> None:
        """A step begins; ``tokens_held`` of each running request is asked for at most once."""
        self._tokens_held = tokens_held
        self.num_held = self.capacity - num_free_blocks

    def entrant_of(self, candidate: Candidate) -> Entrant:
        """``candidate``, as the memory forecast sees it."""
        if self._seen is None or self._seen[0] is not candidate:
            steps = candidate.expected_steps(self._lag)
            self._seen = candidate, Entrant(candidate.hashes, candidate.num_tokens, steps)
        return self._seen[1]

    def add(self, candidate: Candidate) -> int:
        """A request has started; the number of units that it shares with those that run."""
        entrant = self.entrant_of(candidate)
        num_shared = self.memory.add(candidate.request_id, entrant)
        self._by_id[candidate.request_id] = candidate
        self.num_guessed += not candidate.length_known
        if not candidate.length_known and entrant.num_remaining is not None:
            self._hinted.add(candidate.request_id)
        return num_shared

    def plan_again(self, candidate: Candidate) -> None:
        """What is known of a running request has changed; one that does not run is ignored."""
        if (before := self._by_id.get(candidate.request_id)) is None:
            return
        self._by_id[candidate.request_id] = candidate
        self.num_guessed += before.length_known - candidate.length_known
        self._hinted.discard(candidate.request_id)
        entrant = self.entrant_of(candidate)
        if not candidate.length_known and entrant.num_remaining is not None:
            self._hinted.add(candidate.request_id)
        self.memory.expect(candidate.request_id, entrant)

    def pop(self, request_id: str) -> Candidate | None:
        """A request has left; None if it was not known to run."""
        candidate = self._by_id.pop(request_id, None)
        if candidate is not None:
            self.num_guessed -= not candidate.length_known
            self._hinted.discard(request_id)
            self.memory.remove(request_id)
        return candidate

    def update(self) -> None:
        """Bring the memory to this step, once a step; O(running)."""
        if self._tokens_held is None:
            return
        for request_id in self.memory.update(self._tokens_held()):
            if not self._by_id[request_id].length_known:
                self._hinted.discard(request_id)
                self.memory.expect_no_end(request_id)
        self._tokens_held = None

    def check_integrity(self, running_ids: set[str]) -> None:
        """Raise AssertionError unless exactly ``running_ids`` are known to run. O(n)."""
        assert set(self._by_id) == running_ids, "admission and scheduler disagree on who runs"
        assert len(self.memory) == len(running_ids), "the memory lost a request"
        assert all(request_id in self.memory for request_id in running_ids)
        self.memory.check_integrity()
        guessed = sum(not candidate.length_known for candidate in self._by_id.values())
        assert self.num_guessed == guessed, "guessed lengths are miscounted"
        assert self._hinted <= running_ids, "a hint of nobody is kept"
        assert not any(self._by_id[hinted].length_known for hinted in self._hinted)
