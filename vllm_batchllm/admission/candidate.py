# SPDX-License-Identifier: Apache-2.0
"""What admission knows of a request that may start."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Candidate:
    """A request at the head of the queue.

    hashes: its chained block hashes, by reference; empty if it may share nothing.
    num_tokens: prompt and what was generated before a preemption. length_known: whether the
    output is certain to have ``max_tokens`` tokens. hint: the user's expectation, or None. holds_elsewhere:
    whether blocks of it are kept by another engine until it starts. gives_way: whether it leaves room for more urgent ones.
    """

    request_id: str
    hashes: Sequence[Hashable]
    num_prompt_tokens: int
    num_tokens: int
    max_tokens: int
    length_known: bool = False
    hint: int | None = None
    holds_elsewhere: bool = False
    gives_way: bool = False

    @property
    def num_generated(self) -> int:
        """Output tokens produced in an earlier life."""
        return self.num_tokens - self.num_prompt_tokens

    @property
    def expected_output(self) -> int | None:
        """Tokens of its whole output, if they are known or told and not outgrown; else None."""
        if self.length_known:
            return self.max_tokens
        if self.hint is None or self.hint <= self.num_generated:
            return None
        return min(self.hint, self.max_tokens)

    def expected_steps(self, lag: int) -> int | None:
        """Steps behind the first one until its blocks come back; None if nobody can say.

        lag: steps that are put together before the output of one is known.
        """
        expected = self.expected_output
        return None if expected is None else max(expected - self.num_generated - 1, 0) + lag
