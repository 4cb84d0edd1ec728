# SPDX-License-Identifier: Apache-2.0
"""Fields of a body that change its tokens: honoured as vLLM does, or named as a bad line."""

from __future__ import annotations

import gzip
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from vllm_batchllm.input.plain_file import plain_file
from vllm_batchllm.input.reader import read_requests
from vllm_batchllm.input.rendering import PLAIN, UnreadableFieldError, rendering_of
from vllm_batchllm.input.request import BadLineError, parse_request

HELLO = [{"role": "user", "content": "hello"}]


def test_a_body_without_them_needs_no_vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm.entrypoints.openai.chat_completion.protocol", None)
    assert rendering_of({"messages": HELLO, "temperature": 0, "max_tokens": 5}) is PLAIN
    with pytest.raises(UnreadableFieldError, match=r'"documents": .* not installed; leave it out'):
        rendering_of({"messages": HELLO, "documents": [{"text": "unread so far"}]})


def test_what_a_chat_says_of_its_rendering() -> None:
    found = rendering_of(
        {"messages": HELLO, "continue_final_message": True, "add_generation_prompt": False}
    )
    assert found.template_options["continue_final_message"] is True
    assert found.template_options["add_generation_prompt"] is False
    assert found.special_tokens is False
    assert rendering_of({"messages": HELLO, "add_special_tokens": True}).special_tokens is True


def test_what_a_prompt_says_of_its_rendering() -> None:
    found = rendering_of({"prompt": "x", "truncate_prompt_tokens": 7, "truncation_side": "left"})
    assert (found.special_tokens, found.keep, found.side) == (True, 7, "left")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"messages": HELLO, "chat_template": "{{ x }}"}, r'"chat_template" cannot be honoured'),
        ({"prompt": "x", "prompt_embeds": "abc"}, r'"prompt_embeds" cannot be honoured'),
        ({"prompt": "x", "suffix": "y"}, r'"suffix" cannot be honoured'),
        ({"prompt": "x", "truncate_prompt_tokens": -1}, r"of -1 is the longest context"),
        (
            {"messages": HELLO, "add_generation_prompt": "perhaps"},
            r"add_generation_prompt.*refuses",
        ),
        (
            {"messages": HELLO, "add_generation_prompt": True, "continue_final_message": True},
            r"vLLM refuses it: .*continue_final_message",
        ),
    ],
)
def test_a_field_that_cannot_be_honoured_is_a_bad_line(body: dict[str, Any], message: str) -> None:
    with pytest.raises(BadLineError, match=message):
        parse_request(1, json.dumps(body))


@pytest.mark.parametrize("value", [100.0, "100", 100])
def test_whole_numbers_are_whole_numbers_however_they_are_written(value: object) -> None:
    assert parse_request(1, json.dumps({"prompt": "x", "max_tokens": value})).max_tokens == 100


@pytest.mark.parametrize("value", [100.5, True, "many", 0, [5]])
def test_and_nothing_else_is(value: object) -> None:
    with pytest.raises(BadLineError, match='"max_tokens" must be a whole number'):
        parse_request(1, json.dumps({"prompt": "x", "max_tokens": value}))


def test_one_prompt_in_a_list_is_that_prompt() -> None:
    assert parse_request(1, '{"prompt": ["x"]}').content == "x"
    assert list(parse_request(1, '{"prompt": [[5, 6]]}').content) == [5, 6]
    with pytest.raises(BadLineError, match="several prompts; write one line for each"):
        parse_request(1, '{"prompt": ["x", "y"]}')


def test_a_packed_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "batch.jsonl.gz"
    with gzip.open(path, "wt") as stream:
        stream.write('{"prompt": "x"}\n{"prompt": "y"}\n')
    with plain_file(str(path)) as plain:
        assert [request.content for request in read_requests(plain).requests] == ["x", "y"]


@pytest.mark.parametrize("text", ['[{"prompt": "x"}]\n', '[\n{"prompt": "x"}\n]\n'])
def test_a_file_that_is_one_array_gets_the_way_out(tmp_path: Path, text: str) -> None:
    path = tmp_path / "batch.json"
    path.write_text(text)
    assert "write one object a line: jq -c" in str(read_requests(path).bad_lines[0])
