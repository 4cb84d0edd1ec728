# SPDX-License-Identifier: Apache-2.0
"""Outputs that the engine did not make: of refused requests, and of duplicates."""

from __future__ import annotations

import copy
from typing import Any, TypeVar

from vllm.outputs import CompletionOutput, RequestOutput

T = TypeVar("T")


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
    """A separate output for a duplicate of ``leader``, with all its prompt tokens saved.

    It shares nothing that can be changed: callers close sequences in place, token by token.
    """
    answer = _with_own_values(leader)
    answer.request_id = request_id
    answer.prompt = leader.prompt if prompt is None else prompt
    answer.outputs = [_with_own_values(completion) for completion in leader.outputs]
    answer.num_cached_tokens = len(leader.prompt_token_ids or ())
    return answer


def _with_own_values(output: T) -> T:
    """A copy of ``output`` with values of its own; completions inside are left to the caller."""
    own = copy.copy(output)
    for name, value in vars(own).items():
        if name != "outputs":
            setattr(own, name, _copied(value))
    return own


def _copied(value: Any) -> Any:
    """A deep copy; of a list of numbers, which can be long, a plain one."""
    if isinstance(value, list) and all(type(each) is int for each in value):
        return value.copy()
    return copy.deepcopy(value)
