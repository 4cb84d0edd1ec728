# SPDX-License-Identifier: Apache-2.0
"""The answer of a duplicate shares nothing that can be changed with the answer it was made of."""

from __future__ import annotations

from typing import Any

import pytest
from vllm.logprobs import Logprob
from vllm.outputs import CompletionOutput, RequestOutput
from vllm.v1.metrics.stats import RequestStateStats

from vllm_batchllm.offline.outputs import answer_duplicate


def leader() -> RequestOutput:
    completion = CompletionOutput(
        index=0,
        text="sea",
        token_ids=[5, 6, 7],
        cumulative_logprob=-1.0,
        logprobs=[{5: Logprob(-0.5)}],
        finish_reason="length",
    )
    return RequestOutput(
        request_id="0",
        prompt="The sea",
        prompt_token_ids=[1, 2],
        prompt_logprobs=[None, {2: Logprob(-0.1)}],
        outputs=[completion],
        finished=True,
        metrics=RequestStateStats(),
        kv_transfer_params={"block_ids": [1]},
    )


def mutable_parts(value: Any) -> dict[int, Any]:
    """Everything reachable that can be changed, by identity."""
    if isinstance(value, (list, tuple)):
        inner = list(value)
    elif isinstance(value, dict):
        inner = list(value.values())
    elif hasattr(value, "__dict__"):
        inner = list(vars(value).values())
    else:
        return {}
    found = {} if isinstance(value, tuple) else {id(value): value}
    for each in inner:
        found |= mutable_parts(each)
    return found


def test_nothing_mutable_is_shared() -> None:
    first = leader()
    second = answer_duplicate(first, "1", None)
    assert len(mutable_parts(first)) > 8, "the oracle sees the parts"
    assert not mutable_parts(first).keys() & mutable_parts(second).keys()


def test_closing_one_sequence_leaves_the_others() -> None:
    first = leader()
    answers = [first, answer_duplicate(first, "1", None), answer_duplicate(first, "2", "The  sea")]
    for answer in answers:
        answer.outputs[0].token_ids.append(2)
    assert [answer.outputs[0].token_ids for answer in answers] == [[5, 6, 7, 2]] * 3
    assert [answer.request_id for answer in answers] == ["0", "1", "2"]
    assert [answer.prompt for answer in answers] == ["The sea", "The sea", "The  sea"]


@pytest.mark.parametrize("name", ["text", "finish_reason", "cumulative_logprob", "logprobs"])
def test_the_answer_itself_is_the_same(name: str) -> None:
    first = leader()
    (mine,), (other,) = first.outputs, answer_duplicate(first, "1", None).outputs
    assert getattr(mine, name) == getattr(other, name)
