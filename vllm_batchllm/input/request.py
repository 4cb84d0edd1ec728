# SPDX-License-Identifier: Apache-2.0
"""One request of a batch file, checked: the only place that knows the accepted formats.

Three are read: plain (`{"prompt": ...}`), chat (`{"messages": [...]}`) and OpenAI batch lines
(`{"custom_id", "method", "url", "body": {...}}`), whose body is one of the former two. `record.py`
says what else a plain prompt may be.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import TypeAdapter, ValidationError

from vllm_batchllm.input.record import ONE_OBJECT_A_LINE, BadLineError, as_record, kind_of
from vllm_batchllm.input.rendering import PLAIN, Rendering, UnreadableFieldError, rendering_of
from vllm_batchllm.input.scoring import readable_tokens_of
from vllm_batchllm.messages import clip
from vllm_batchllm.prefix.best_saving import TOKEN_TYPECODE, pack_tokens

TEXT_PARTS = {
    "text": "text",
    "input_text": "text",
    "output_text": "text",
    "refusal": "refusal",
    "thinking": "thinking",
}
"""Kinds of content parts that are text, and the field that holds it."""

_WHOLE_NUMBER = TypeAdapter(int)
_URLS = ("/v1/completions", "/v1/chat/completions")
_MOST_TOKENS = 2**63 - 1
"""The largest limit of an output that vLLM's messages can carry."""


@dataclass(frozen=True, slots=True)
class Conversation:
    """What a chat template is rendered from, in the form in which vLLM hands it over."""

    messages: list[dict[str, Any]]
    tools: list[Any] | None
    template_options: dict[str, Any]


@dataclass(frozen=True, slots=True)
class PlanRequest:
    """One request of the file.

    Attributes:
        line: its line number, from 1.
        content: text, a conversation, or token ids in an array of 32-bit integers.
        namespace: requests whose namespaces differ share no blocks (model and cache salt).
        max_tokens: the output length it allows, None if it states none.
        readable: prompt tokens that it may read from a cache at most, None for all of them.
        is_openai: it is the body of an OpenAI batch line.
        rendering: how it becomes tokens, where it says so itself.
    """

    line: int
    content: str | Conversation | array[int]
    namespace: bytes
    max_tokens: int | None
    is_openai: bool = False
    rendering: Rendering = PLAIN
    readable: int | None = None


def parse_request(line: int, text: str) -> PlanRequest:
    """Return the request on one line. Raises BadLineError with the reason."""
    try:
        value = json.loads(text)
    except RecursionError:
        raise BadLineError("not valid JSON: nested too deeply") from None
    except ValueError as error:
        hint = ONE_OBJECT_A_LINE if text.lstrip().startswith("[") else ""
        raise BadLineError(f"not valid JSON: {error}{hint}") from None
    record = as_record(value)
    body = _body(record)
    try:
        rendering = rendering_of(body)
        readable = readable_tokens_of(body)
    except (UnreadableFieldError, ValueError) as error:
        raise BadLineError(str(error)) from None
    return PlanRequest(
        line,
        _content(body),
        _namespace(body),
        _max_tokens(body),
        is_openai=body is not record,
        rendering=rendering,
        readable=readable,
    )


def _body(record: dict[str, Any]) -> dict[str, Any]:
    """Return the part of a line that holds the prompt."""
    if "body" not in record:
        return record
    body = record["body"]
    if not isinstance(body, dict):
        raise BadLineError(f'"body" must be an object, not {kind_of(body)}')
    url = record.get("url")
    if url is not None and url not in _URLS:
        raise BadLineError(f'"url" must be one of {", ".join(_URLS)}, not {_short(url)}')
    return body


def _content(body: Mapping[str, Any]) -> str | Conversation | array[int]:
    if "prompt" in body and "messages" in body:
        raise BadLineError('has both "prompt" and "messages"; only one can be meant')
    if "messages" in body:
        return _conversation(body)
    if "prompt" not in body:
        raise BadLineError('has neither "prompt" nor "messages"')
    prompt = body["prompt"]
    if isinstance(prompt, list) and len(prompt) == 1 and isinstance(prompt[0], str | list):
        prompt = prompt[0]  # one of several, as vLLM reads it
    if not isinstance(prompt, str | list):
        raise BadLineError(f'"prompt" must be a text or a list of token ids, not {kind_of(prompt)}')
    if not prompt:
        raise BadLineError('"prompt" is empty')
    return _checked_text(prompt, '"prompt"') if isinstance(prompt, str) else _token_ids(prompt)


def _token_ids(prompt: list[Any]) -> array[int]:
    if all(isinstance(item, str | list) for item in prompt):
        raise BadLineError('"prompt" holds several prompts; write one line for each')
    for item in prompt:
        if type(item) is not int:  # a bool is an int to Python, but no token id to anybody
            raise BadLineError(f'"prompt" must hold token ids only, found {kind_of(item)}')
    try:
        return array(TOKEN_TYPECODE, pack_tokens(prompt))
    except ValueError as error:
        raise BadLineError(f'"prompt": {error}') from None


def _conversation(body: Mapping[str, Any]) -> Conversation:
    messages = body["messages"]
    if not isinstance(messages, list):
        raise BadLineError(f'"messages" must be a list, not {kind_of(messages)}')
    if not messages:
        raise BadLineError('"messages" is empty')
    tools = body.get("tools")
    if tools is not None and not isinstance(tools, list):
        raise BadLineError(f'"tools" must be a list, not {kind_of(tools)}')
    options = body.get("chat_template_kwargs") or {}
    if not isinstance(options, dict):
        raise BadLineError(f'"chat_template_kwargs" must be an object, not {kind_of(options)}')
    if "chat_template" in options:  # a program, which could loop for hours
        raise BadLineError('"chat_template_kwargs" must not set "chat_template"; vLLM refuses it')
    checked = [_message(message, index) for index, message in enumerate(messages)]
    return Conversation(checked, tools or None, options)


def _message(message: Any, index: int) -> dict[str, Any]:
    """Return one message with its content as one text, as vLLM hands it to a template."""
    where = f'"messages"[{index}]'
    if not isinstance(message, dict):
        raise BadLineError(f"{where} must be an object, not {kind_of(message)}")
    if not isinstance(message.get("role"), str):
        raise BadLineError(f'{where} has no "role"')
    text = _message_text(message.get("content"), where)
    checked = {**message, "content": text}
    calls = checked.pop("tool_calls", None) or []
    if not isinstance(calls, list):
        raise BadLineError(f'"tool_calls" of {where} must be a list, not {kind_of(calls)}')
    if calls:
        checked["tool_calls"] = [_tool_call(call, where) for call in calls]
    return checked


def _message_text(content: Any, where: str) -> str:
    if content is None:
        return ""
    if isinstance(content, str):
        return _checked_text(content, where)
    if not isinstance(content, list):
        raise BadLineError(f'"content" of {where} must be a text or a list, not {kind_of(content)}')
    return "\n".join(_part_text(part, where) for part in content)


def _part_text(part: Any, where: str) -> str:
    if isinstance(part, str):
        return _checked_text(part, where)
    if not isinstance(part, dict) or not isinstance(part.get("type"), str):
        raise BadLineError(f'{where} has a content part without a "type"')
    field = TEXT_PARTS.get(part["type"])
    if field is None:
        raise BadLineError(f"{where} has a part of type {_short(part['type'])}; only text counts")
    text = part.get(field)
    if not isinstance(text, str):
        raise BadLineError(f'{where} has a {part["type"]} part without a "{field}"')
    return _checked_text(text, where)


def _tool_call(call: Any, where: str) -> dict[str, Any]:
    """Return a tool call with its arguments as an object: templates expect that, OpenAI a text."""
    if not isinstance(call, dict) or not isinstance(call.get("function"), dict):
        raise BadLineError(f'{where} has a tool call without a "function"')
    arguments = call["function"].get("arguments") or {}
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError):
            arguments = {}  # as vLLM does
    return {**call, "function": {**call["function"], "arguments": arguments}}


def _namespace(body: Mapping[str, Any]) -> bytes:
    parts = [body.get("model"), body.get("cache_salt")]
    for name, part in zip(("model", "cache_salt"), parts, strict=True):
        if part is not None and not isinstance(part, str):
            raise BadLineError(f'"{name}" must be a text, not {kind_of(part)}')
    return json.dumps(parts).encode() if any(parts) else b""


def _max_tokens(body: Mapping[str, Any]) -> int | None:
    for name in ("max_completion_tokens", "max_tokens"):
        value = body.get(name)
        if value is None:
            continue
        try:
            number = _WHOLE_NUMBER.validate_python(
                value
            )  # 100.0 and "100" are whole numbers to vLLM
        except ValidationError:
            number = 0
        if isinstance(value, bool) or not 1 <= number <= _MOST_TOKENS:
            raise BadLineError(
                f'"{name}" must be a whole number from 1 to 2**63 - 1, not {_short(value)}'
            )
        return int(number)
    return None


def _checked_text(text: str, where: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise BadLineError(
            f"{where} is not valid Unicode: half a surrogate pair at character {error.start}"
        ) from None
    return text


def _short(value: Any) -> str:
    try:
        text = json.dumps(value)
    except RecursionError:
        text = clip(value)
    return text if len(text) <= 40 else text[:37] + "..."
