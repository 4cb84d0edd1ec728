# SPDX-License-Identifier: Apache-2.0
"""What vLLM's handlers return becomes an answer, an error, or the end of the engine."""

from __future__ import annotations

import asyncio
import json
from types import SimpleNamespace
from typing import Any

import pytest
from job_files import chat_line
from starlette.responses import JSONResponse
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionResponse
from vllm.entrypoints.serve import create_error_response
from vllm.entrypoints.serve.engine.protocol import UsageInfo

from vllm_batchllm.input.line import NO_DEFAULTS, JobLine, parse_line
from vllm_batchllm.jobs.answer import Answer
from vllm_batchllm.jobs.handlers import HandlerServer
from vllm_batchllm.jobs.line_server import EngineGoneError


def chat_answer(finish_reason: str = "stop") -> ChatCompletionResponse:
    message = {"role": "assistant", "content": "yes"}
    choice = {"index": 0, "message": message, "finish_reason": finish_reason}
    return ChatCompletionResponse(model="m", choices=[choice], usage=UsageInfo(prompt_tokens=3))


def serve(response: Any, *, errored: bool = False, **fields: Any) -> Answer:
    async def create_chat_completion(request: Any) -> Any:
        if isinstance(response, Exception):
            raise response
        return response

    handlers = SimpleNamespace(create_chat_completion=create_chat_completion)
    client = SimpleNamespace(errored=errored)
    state = SimpleNamespace(
        engine_client=client, openai_serving_chat=handlers, args=SimpleNamespace()
    )
    raw = json.dumps({**chat_line("a", "hi"), **fields}).encode()
    line: JobLine = parse_line(1, raw, NO_DEFAULTS, 10**6)
    return asyncio.run(HandlerServer(state).serve(line))


def test_an_answer_is_the_handlers_own() -> None:
    answer = serve(chat_answer())
    assert answer.status_code == 200 and answer.error is None
    assert answer.body is not None and answer.body["choices"][0]["message"]["content"] == "yes"
    assert answer.usage["prompt_tokens"] == 3


@pytest.mark.parametrize(
    "response",
    [
        create_error_response("too long"),
        ValueError("too long"),
        JSONResponse({"error": {"type": "BadRequestError", "message": "too long"}}, 400),
    ],
)
def test_a_refusal_is_an_error_with_its_status(response: Any) -> None:
    answer = serve(response)
    assert answer.status_code == 400 and answer.error is not None
    assert "too long" in answer.error["message"] and answer.error["code"] == "BadRequestError"
    assert answer.body is not None and "error" in answer.body


def test_a_json_response_is_read() -> None:
    assert serve(JSONResponse({"data": [1]})).body == {"data": [1]}


@pytest.mark.parametrize(
    ("response", "errored"), [(create_error_response("dead"), True), (chat_answer("abort"), False)]
)
def test_what_an_ending_engine_says_is_no_answer(response: Any, errored: bool) -> None:
    with pytest.raises(EngineGoneError, match="given up 'a'"):
        serve(response, errored=errored)


def test_one_requests_error_is_its_own_while_the_engine_lives() -> None:
    answer = serve(RuntimeError("of one request"))
    assert answer.status_code == 500 and answer.error is not None


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"url": "/v1/completions"}, "'/v1/completions' is not served for this model"),
        ({"url": "/etc/passwd"}, "'/etc/passwd' is no endpoint"),
        ({"body": {"model": "m"}}, "messages: Field required"),
        ({"body": {"messages": 5}}, "the body cannot be read"),
        (
            {"body": {"messages": [{"role": "user", "content": "x"}], "max_tokens": "many"}},
            "max_tokens",
        ),
    ],
)
def test_a_body_that_cannot_be_served_says_why(fields: dict[str, Any], said: str) -> None:
    answer = serve(chat_answer(), **fields)
    assert answer.error is not None and said in answer.error["message"], answer.error
