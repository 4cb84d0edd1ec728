# SPDX-License-Identifier: Apache-2.0
"""`plan` counts the tokens that vLLM computes, whatever the body says of its rendering."""

from __future__ import annotations

import json
from typing import Any

import pytest

from vllm_batchllm.input.request import parse_request
from vllm_batchllm.input.tokenize import tokenize_requests

CHAT = [
    {"role": "user", "content": "Name a sea."},
    {"role": "assistant", "content": "The North"},
]
PARTS = [
    {
        "role": "user",
        "content": [
            {"type": "input_text", "text": "Name"},
            {"type": "text", "text": "a sea."},
            {"type": "output_text", "text": "Please."},
        ],
    }
]


def planned(tokenizer: Any, body: dict[str, Any]) -> list[int]:
    """The token ids of a line, as `plan` reads it."""
    line = {"custom_id": "1", "method": "POST", "url": None, "body": body}
    result = tokenize_requests([parse_request(1, json.dumps(line))], tokenizer)
    assert not result.bad_lines, result.bad_lines
    return list(result.requests[0].tokens)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"add_generation_prompt": False},
        {"continue_final_message": True, "add_generation_prompt": False},
        {"chat_template_kwargs": {"enable_thinking": False}},
        {"tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}]},
    ],
    ids=lambda fields: ", ".join(fields) or "plain",
)
@pytest.mark.parametrize("messages", [CHAT, CHAT[:1], PARTS], ids=["two", "one", "parts"])
def test_a_chat_has_the_tokens_that_vllm_makes_of_it(stock_llm, messages, fields) -> None:
    if fields.get("continue_final_message") and messages is PARTS:
        pytest.skip("there is no text to be continued in parts")
    rendered = stock_llm._preprocess_chat_one(messages, **fields)
    ours = planned(stock_llm.get_tokenizer(), {"messages": messages, **fields})
    assert ours == list(rendered["prompt_token_ids"])


@pytest.mark.parametrize(
    ("fields", "arguments"),
    [
        ({}, {}),
        ({"add_special_tokens": False}, {"add_special_tokens": False}),
        (
            {"truncate_prompt_tokens": 3, "truncation_side": "left"},
            {"truncate_prompt_tokens": 3, "truncation_side": "left"},
        ),
        (
            {"truncate_prompt_tokens": 3, "truncation_side": "right"},
            {"truncate_prompt_tokens": 3, "truncation_side": "right"},
        ),
    ],
)
def test_a_prompt_has_the_tokens_that_vllm_makes_of_it(stock_llm, fields, arguments) -> None:
    text = "The sea is deep and the sky is high."
    rendered = stock_llm._preprocess_cmpl_one(text, arguments)
    ours = planned(stock_llm.get_tokenizer(), {"prompt": text, **fields})
    assert ours == list(rendered["prompt_token_ids"])
    assert planned(stock_llm.get_tokenizer(), {"prompt": [text], **fields}) == ours
