# SPDX-License-Identifier: Apache-2.0
"""Lines served by vLLM's own handlers, as its server and its ``run-batch`` do: templates, tools, formats, adapters are theirs."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

from pydantic import TypeAdapter, ValidationError
from vllm.entrypoints.launchers.run_batch import BatchRequestInput, make_transcription_wrapper
from vllm.entrypoints.openai.completion.protocol import CompletionRequest
from vllm.entrypoints.serve import create_error_response
from vllm.entrypoints.serve.engine.protocol import ErrorResponse

from vllm_batchllm.input.line import CHAT, COMPLETIONS, EMBEDDINGS, JobLine
from vllm_batchllm.jobs.answer import Answer
from vllm_batchllm.jobs.line_server import EngineGoneError

Handler = Callable[[Any], Awaitable[Any]]

_COMPLETION: TypeAdapter[Any] = TypeAdapter(CompletionRequest)
_SCORES = ("/score", "/v1/score", "/rerank", "/v1/rerank", "/v2/rerank")
_SPEECH = {
    "/v1/audio/transcriptions": ("openai_serving_transcription", "create_transcription", False),
    "/v1/audio/translations": ("openai_serving_translation", "create_translation", True),
}


class HandlerServer:
    """A `LineServer` over the handlers in a server's state.

    Args:
        state: as vLLM's ``init_app_state`` has filled it.

    Attributes:
        gone: set once the engine has died or been given up.
    """

    def __init__(self, state: Any) -> None:
        self._client = state.engine_client
        self._handlers = _handlers_of(state)
        self.gone = asyncio.Event()

    async def serve(self, line: JobLine) -> Answer:
        """The handler's answer. Raises EngineGoneError where the engine has died meanwhile."""
        handler = self._handlers.get(line.url)
        if handler is None:
            return self._unserved(line.url)
        try:
            request = _request_of(line)
        except (ValidationError, ValueError, TypeError) as error:
            return _error(create_error_response(_readable(error)))
        try:
            response = await handler(request)
        except Exception as error:  # noqa: BLE001 - whatever one request raises is its own answer
            response = create_error_response(error)
        answer = _answer(response)
        if (answer.error is not None and self._client.errored) or _was_aborted(answer):
            self.gone.set()
            raise EngineGoneError(f"the engine has given up {line.custom_id!r}")
        return answer

    def _unserved(self, url: str) -> Answer:
        known = url in (CHAT, COMPLETIONS, EMBEDDINGS, *_SCORES, *_SPEECH)
        reason = "is not served for this model" if known else "is no endpoint that batches can use"
        served = ", ".join(sorted(self._handlers))
        message = f"The URL {url!r} {reason}. Served: {served}."
        return Answer.of_error("unsupported_url", message)


def _was_aborted(answer: Answer) -> bool:
    """Whether it was cut short by an engine that ends, and only looks like an answer."""
    choices = (answer.body or {}).get("choices") or ()
    return any(choice.get("finish_reason") == "abort" for choice in choices)


def _handlers_of(state: Any) -> dict[str, Handler]:
    found: dict[str, Handler | None] = {}
    chat = getattr(state, "openai_serving_chat", None)
    completion = getattr(state, "openai_serving_completion", None)
    found[CHAT] = chat and chat.create_chat_completion
    found[COMPLETIONS] = completion and completion.create_completion
    found[EMBEDDINGS] = getattr(state, "serving_embedding", None)
    scores = getattr(state, "serving_scores", None)
    found.update(dict.fromkeys(_SCORES, scores))
    domains = getattr(state.args, "allowed_media_domains", None)
    for url, (name, method, is_translation) in _SPEECH.items():
        serving = getattr(state, name, None)
        if serving is not None:
            wrap = make_transcription_wrapper(is_translation, domains)
            found[url] = wrap(getattr(serving, method))
    return {url: handler for url, handler in found.items() if handler is not None}


def _request_of(line: JobLine) -> Any:
    """The body as the handler takes it, checked by vLLM's own models."""
    if line.url == COMPLETIONS:
        return _COMPLETION.validate_python(line.body)
    whole = {"custom_id": line.custom_id, "method": "POST", "url": line.url, "body": line.body}
    return BatchRequestInput.model_validate(whole).body


def _answer(response: Any) -> Answer:
    if isinstance(response, ErrorResponse):
        return _error(response)
    if hasattr(response, "model_dump"):
        return Answer(200, response.model_dump(mode="json"))
    packed = getattr(response, "body", None)
    if packed is None:
        message = 'the answer would be streamed; leave "stream" out'
        return Answer.of_error("invalid_request", message)
    body = json.loads(packed)
    status = int(getattr(response, "status_code", 200))
    if status == 200:
        return Answer(200, body)
    error = body.get("error") or {}
    return _failed(status, body, str(error.get("type")), str(error.get("message")))


def _error(response: ErrorResponse) -> Answer:
    error = response.error
    return _failed(int(error.code), response.model_dump(mode="json"), error.type, error.message)


def _failed(status: int, body: dict[str, Any], kind: str, message: str) -> Answer:
    return Answer(status, body, {"code": kind, "message": message})


def _readable(error: Exception) -> Exception:
    """Of a validation by pydantic what is wrong and where, without its links and inputs."""
    if not isinstance(error, ValidationError):
        return ValueError(f"the body cannot be read: {error}")
    found = error.errors(include_url=False, include_context=False, include_input=False)
    said = (f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in found[:3])
    return ValueError("; ".join(said))
