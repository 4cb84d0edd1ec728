# SPDX-License-Identifier: Apache-2.0
"""Which lines are requests, and what is said of those that are not."""

from __future__ import annotations

import json
from array import array
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from plan_model import write_lines

from vllm_batchllm.input.reader import BadLine, ReadResult, read_requests
from vllm_batchllm.input.request import Conversation, PlanRequest, parse_request

HELLO = [{"role": "user", "content": "hello"}]


def read(folder: Path, *records: Any, **options: int) -> ReadResult:
    return read_requests(write_lines(folder / "batch.jsonl", records), **options)


def only_request(folder: Path, record: Any) -> PlanRequest:
    result = read(folder, record)
    assert result.bad_lines == []
    (request,) = result.requests
    return request


@pytest.mark.parametrize(
    ("record", "content", "max_tokens"),
    [
        ({"prompt": "hello"}, "hello", None),
        ({"prompt": [1, 2, 2**32 - 1], "max_tokens": 7}, array("I", [1, 2, 2**32 - 1]), 7),
        ({"messages": HELLO}, Conversation(HELLO, None, {}), None),
        ({"custom_id": "a", "method": "POST", "url": "/v1/completions",
          "body": {"prompt": "hello", "max_tokens": 5}}, "hello", 5),
        ({"custom_id": "a", "method": "POST", "url": "/v1/chat/completions",
          "body": {"messages": HELLO, "max_completion_tokens": 6, "max_tokens": 9}},
         Conversation(HELLO, None, {}), 6),
    ],
)  # fmt: skip
def test_the_three_formats(
    tmp_path: Path, record: Any, content: object, max_tokens: int | None
) -> None:
    request = only_request(tmp_path, record)
    assert (request.content, request.max_tokens) == (content, max_tokens)


def test_messages_are_handed_over_as_vllm_hands_them_over(tmp_path: Path) -> None:
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}
    messages = [
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "assistant", "content": "c", "tool_calls": []},
    ]
    request = only_request(tmp_path, {"messages": messages, "tools": [{"name": "f"}]})
    assert isinstance(request.content, Conversation)
    assert request.content.tools == [{"name": "f"}]
    assert request.content.messages == [
        {"role": "user", "content": "a\nb"},
        {"role": "assistant", "content": "",
         "tool_calls": [{**call, "function": {"name": "f", "arguments": {"x": 1}}}]},
        {"role": "assistant", "content": "c"},
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"{", "not valid JSON: Expecting property name"),
        (b"[" * 100_000, "not valid JSON"),
        (b"[1]", "not a JSON object but a list"),
        (b"null", "not a JSON object but null"),
        (b'{"prompt": "\xff"}', "not valid UTF-8: invalid start byte at byte 12"),
        (b'{"prompt": "a\\ud800"}', "half a surrogate pair at character 1"),
        ({}, 'has neither "prompt" nor "messages"'),
        ({"prompt": "a", "messages": HELLO}, 'has both "prompt" and "messages"'),
        ({"prompt": ""}, '"prompt" is empty'),
        ({"prompt": []}, '"prompt" is empty'),
        ({"prompt": None}, '"prompt" must be a text or a list of token ids, not null'),
        ({"prompt": ["a", "b"]}, "several prompts; write one line for each"),
        ({"prompt": [1, None]}, '"prompt" must hold token ids only, found null'),
        ({"prompt": [True]}, "found a boolean"),
        ({"prompt": [1.0]}, "found a number"),
        ({"prompt": [-1]}, "token ids must be integers from 0 to"),
        ({"prompt": [2**32]}, "token ids must be integers from 0 to"),
        ({"messages": []}, '"messages" is empty'),
        ({"messages": "hello"}, '"messages" must be a list, not a text'),
        ({"messages": ["hello"]}, '"messages"[0] must be an object, not a text'),
        ({"messages": [*HELLO, {"content": "a"}]}, '"messages"[1] has no "role"'),
        ({"messages": [{"role": "user", "content": 5}]}, "must be a text or a list, not a number"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, '"image_url"'),
        ({"messages": [{"role": "user", "content": [{"text": "a"}]}]}, 'part without a "type"'),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, 'without a "text"'),
        ({"messages": [{"role": "assistant", "tool_calls": 1}]}, '"tool_calls" of'),
        ({"messages": [{"role": "assistant", "tool_calls": [1]}]}, 'without a "function"'),
        ({"messages": HELLO, "tools": "f"}, '"tools" must be a list'),
        ({"messages": HELLO, "chat_template_kwargs": 1}, "must be an object, not a number"),
        ({"body": "hello"}, '"body" must be an object, not a text'),
        ({"url": "/v1/embeddings", "body": {"input": "a"}}, 'not "/v1/embeddings"'),
        (
            {"prompt": "a", "max_tokens": 0},
            '"max_tokens" must be a whole number from 1 to 2**63 - 1, not 0',
        ),
        ({"prompt": "a", "max_tokens": "many"}, 'not "many"'),
        ({"prompt": "a", "cache_salt": 1}, '"cache_salt" must be a text'),
    ],
)
def test_a_bad_line_is_reported_with_number_and_reason(
    tmp_path: Path, line: object, reason: str
) -> None:
    result = read(tmp_path, {"prompt": "good"}, b"", line, {"prompt": "good"})
    assert [request.line for request in result.requests] == [1, 4]
    (bad_line,) = result.bad_lines
    assert bad_line.line == 3
    assert reason in bad_line.reason


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(),
                    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
                        st.sampled_from(["prompt", "messages", "body", "role", "content", "type",
                                         "text", "tool_calls", "function", "max_tokens"]), inner)))  # fmt: skip
def test_any_json_is_a_request_or_a_bad_line(value: object) -> None:
    try:
        assert parse_request(1, json.dumps(value)).content
    except ValueError as error:
        assert str(error)


def test_blank_lines_and_a_byte_order_mark_do_no_harm(tmp_path: Path) -> None:
    result = read(tmp_path, b'\xef\xbb\xbf{"prompt": "a"}', b"", b"  \t", {"prompt": "b"}, b"\r")
    assert [(request.line, request.content) for request in result.requests] == [(1, "a"), (4, "b")]
    assert result.bad_lines == []


def test_a_line_beyond_the_limit_is_left_out_and_the_next_one_read(tmp_path: Path) -> None:
    fits, too_long = {"prompt": "a" * 35}, {"prompt": "a" * 500}
    result = read(tmp_path, fits, too_long, fits, max_line_bytes=50)
    assert [request.line for request in result.requests] == [1, 3]
    assert result.bad_lines == [BadLine(2, "longer than 50 bytes")]


def test_the_model_and_the_salt_of_a_line_set_its_namespace(tmp_path: Path) -> None:
    fields = [{}, {"model": "a"}, {"model": "b"}, {"cache_salt": "a"}, {"model": "a"}]
    result = read(tmp_path, *({"body": {"prompt": "x", **extra}} for extra in fields))
    first, model_a, model_b, salted, again = (request.namespace for request in result.requests)
    assert model_a == again
    assert len({first, model_a, model_b, salted}) == 4
