# SPDX-License-Identifier: Apache-2.0
"""How many tokens a step may have, so that prefills are spread over the decodes beside them.

A device that reads all weights in every step takes as long for a step of few tokens as for one of
many, up to the *ridge*. Where memory lets fewer requests run than that, a step of decodes leaves
it idle, while vLLM computes prompts in bursts as large as a step may be: 8,192 or 16,384 tokens.
Here a step has as many tokens as prompts and outputs to come ask for on average. This is
token-batching in BatchLLM's sense (section on memory-centric token batching): tokens a step stay
even, without valleys.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

PLATFORM_RIDGE = {"cpu": 0, "cuda": 256}
"""Tokens a step up to which reading 16-bit weights takes longer than computing with them: operations
per byte of a device (docs/policies.md). On the CPU even a small step is bound by compute, so nothing
is spread."""

MIN_STEP_TOKENS = 512
"""No step is made smaller: matrix products of fewer rows lose efficiency, and up to here vLLM
captures steps as graphs."""


@dataclass(frozen=True, slots=True)
class Outstanding:
    """What waits: requests, prompt tokens to compute (shared ones once), output tokens expected."""

    num_requests: int
    num_prompt_tokens: int
    num_output_tokens: int


def step_tokens(
    outstanding: Outstanding,
    *,
    num_running: int,
    most: int,
    ridge: int,
    capacity_tokens: int,
    max_num_seqs: int,
) -> int:
    """Tokens of a step: ``most``, or fewer where that evens out the steps to come.

    Args:
        num_running: requests that run now; if those who wait fit beside them, nothing is spread.
        most: as the engine was configured.
        ridge: tokens a step up to which they are free; 0 never spreads.
        capacity_tokens: of KV.
        max_num_seqs: requests that may run at once.
    """
    waiting = outstanding
    if not ridge or most <= MIN_STEP_TOKENS or waiting.num_output_tokens < 1:
        return most
    # A request holds its own prompt tokens and, on average over its life, half of its output.
    held = (waiting.num_prompt_tokens + waiting.num_output_tokens / 2) / waiting.num_requests
    most_running = min(capacity_tokens / held, max_num_seqs)
    if most_running >= min(ridge, waiting.num_requests + num_running):
        return most
    per_output = 1 + waiting.num_prompt_tokens / waiting.num_output_tokens
    return min(most, max(MIN_STEP_TOKENS, int(most_running * per_output)))


class TokenBudget:
    """The tokens of one step after the other, for an engine of the given sizes.

    Args: as for :func:`step_tokens`; tokens_per_decode: of one running request, drafts included.
    """

    def __init__(
        self,
        *,
        most: int,
        ridge: int,
        capacity_tokens: int,
        max_num_seqs: int,
        tokens_per_decode: int = 1,
    ) -> None:
        self._most, self._ridge = most, ridge
        self._tokens_per_decode = tokens_per_decode
        self._capacity_tokens, self._max_num_seqs = capacity_tokens, max_num_seqs
        self._last = most

    @property
    def spreads(self) -> bool:
        """Whether steps may be made smaller at all."""
        return self._ridge > 0 and self._most > MIN_STEP_TOKENS

    def tokens(
        self,
        outstanding: Outstanding,
        *,
        num_running: int,
        is_prefilling: bool,
        output_is_guessed: bool,
        mean_output: float | None,
    ) -> int:
        """Tokens of the next step.

        is_prefilling: whether the prompt of one that runs is not computed yet. With nobody in the forests the last
        ones of a batch are spread as those before them; when they have started, so have all.
        output_is_guessed: what is expected of those who wait is a guess; then ``mean_output``
        takes its place, tokens of the requests that have ended, and without it nothing changes.
        """
        if num_running * self._tokens_per_decode >= self._ridge:  # decodes alone fill the device
            self._last = self._most
        elif outstanding.num_requests == 0:
            self._last = self._last if is_prefilling else self._most
        elif output_is_guessed and mean_output is None:
            self._last = self._most
        else:
            if output_is_guessed and mean_output is not None:
                expected = round(outstanding.num_requests * mean_output)
                outstanding = replace(outstanding, num_output_tokens=expected)
            self._last = step_tokens(
                outstanding,
                num_running=num_running,
                most=self._most,
                ridge=self._ridge,
                capacity_tokens=self._capacity_tokens,
                max_num_seqs=self._max_num_seqs,
            )
        return self._last
