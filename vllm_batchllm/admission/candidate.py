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
    output is certain to have ``max_tokens`` tokens. hint: the user's expectation, or None.
    was_preempted: whether it has started before, and was sent back.
    """

    request_id: str
    hashes: Sequence[Hashable]
    num_prompt_tokens: int
    num_tokens: int
    max_tokens: int
    length_known: bool = False
    hint: int | None = None
    was_preempted: bool = False

    @property
    def num_generated(self) -> int:
        """Output tokens produced in an earlier life."""
        return self.num_tokens - self.num_prompt_tokens

    def groups(self) -> tuple[Hashable, ...]:
        """Its prefix groups, widest first: its hashes after 1, 2, 4, 8 ... blocks.

        Hashes are chained, so each names everything up to it; requests over one document meet
        in all groups that end inside the document.
        """
        hashes = self.hashes
        return tuple(hashes[(1 << level) - 1] for level in range(len(hashes).bit_length()))
