# SPDX-License-Identifier: Apache-2.0
"""What a plan knows of requests that ask for the log-probabilities of their prompt, and the workload of such."""

from __future__ import annotations

import json
from array import array
from typing import Any

import pytest

from vllm_batchllm.input.request import BadLineError, parse_request
from vllm_batchllm.input.tokenize import TokenizedRequest
from vllm_batchllm.plan.analysis import make_plan
from vllm_batchllm.workloads.catalog import EVALUATIONS, make_workload


@pytest.mark.parametrize(
    ("fields", "readable"),
    [
        ({}, None),
        ({"logprobs": 1}, None),
        ({"prompt_logprobs": 0}, 0),
        ({"echo": True, "logprobs": 1}, 0),
        ({"prompt_logprobs": 1, "vllm_xargs": {"prompt_logprobs_start": 3}}, 2),
        ({"prompt_logprobs": 1, "vllm_xargs": {"prompt_logprobs_start": 0}}, 0),
    ],
)
def test_a_body_says_how_much_of_it_may_be_read(
    fields: dict[str, Any], readable: int | None
) -> None:
    body = {"prompt": [5, 6, 7, 8, 9]} | fields
    assert parse_request(1, json.dumps(body)).readable == readable


@pytest.mark.parametrize("start", [-1, 2.5, "3", True])
def test_a_start_that_is_none_makes_a_bad_line(start: object) -> None:
    body = {"prompt": [5, 6], "prompt_logprobs": 1, "vllm_xargs": {"prompt_logprobs_start": start}}
    with pytest.raises(BadLineError, match="prompt_logprobs_start must be a position"):
        parse_request(1, json.dumps(body))


def test_a_plan_counts_what_may_be_read() -> None:
    tokens = array("I", [7] * 64)
    free = [TokenizedRequest(tokens, b"", None)] * 3
    assert make_plan(free, 16).optimal_saved_tokens == 2 * 48
    scored = [TokenizedRequest(tokens, b"", None, readable) for readable in (40, 40, 0)]
    plan = make_plan(scored, 16)
    assert plan.num_unread == 1
    assert plan.optimal_saved_tokens == 2 * 32  # the third computes everything, for the others, too


@pytest.mark.parametrize("name", EVALUATIONS)
def test_choices_share_their_question_and_are_scored_behind_it(name: str) -> None:
    batch = make_workload(name, num_requests=60, seed=3)
    batch.check()
    assert batch.starts is not None and batch.limits is not None
    contexts = set()
    for prompt, start, limit in zip(batch.prompts, batch.starts, batch.limits, strict=True):
        assert 1 <= len(prompt) - start <= 4 and limit == start - 1
        contexts.add(tuple(prompt[:start]))
    choices = {"multiple-choice-1-shot": 2, "multiple-choice-5-shot": 4}.get(name, 10)
    assert len(contexts) == 60 // choices
