# SPDX-License-Identifier: Apache-2.0
"""Outputs that the engine did not make: of refused requests, and of duplicates."""

from __future__ import annotations

import copy
from typing import Any

from vllm.outputs import CompletionOutput, RequestOutput


class FailedRequestOutput(RequestOutput):
    """The place of a request that was refused, in the caller's order.

    It has one completion without tokens, ``finish_reason`` "error" and the message as
    ``stop_reason``; ``error`` is the exception itself.
    """

    def __init__(self, request_id: str, prompt: Any, error: Exception) -> None:
        failure = CompletionOutput(
            index=0,
            text="",
            token_ids=[],
            cumulative_logprob=None,
            logprobs=None,
            finish_reason="error",
            stop_reason=str(error),
        )
        super().__init__(
            request_id=request_id,
            prompt=prompt if isinstance(prompt, str) else None,
            prompt_token_ids=[],
            prompt_logprobs=None,
            outputs=[failure],
            finished=True,
            num_cached_tokens=0,
        )
        self.error = error


def answer_duplicate(leader: RequestOutput, request_id: str, prompt: str | None) -> RequestOutput:
    """A separate output for a duplicate of ``leader``, with all its prompt tokens saved."""
    answer = copy.copy(leader)
    answer.request_id = request_id
    answer.prompt = leader.prompt if prompt is None else prompt
    answer.outputs = [copy.copy(completion) for completion in leader.outputs]
    answer.num_cached_tokens = len(leader.prompt_token_ids or ())
    return answer
