# SPDX-License-Identifier: Apache-2.0
"""One line of a job's input: what is asked, and how its answer is written. The only place that knows the formats.

Two kinds are read: lines of the OpenAI Batch API (``{"custom_id", "method", "url", "body"}``) and plain ones
(``{"id", "prompt" | "messages" | "input", ...parameters}``). An answer has the kind of its line.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic_core import from_json, to_json

from vllm_batchllm.input.request import BadLineError
from vllm_batchllm.messages import clip

CHAT, COMPLETIONS, EMBEDDINGS = "/v1/chat/completions", "/v1/completions", "/v1/embeddings"
_PLAIN_URLS = {"messages": CHAT, "prompt": COMPLETIONS, "input": EMBEDDINGS}
_OK = 200
BAD_REQUEST = 400
BYTE_ORDER_MARK = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class JobLine:
    """A request of the input.

    Attributes:
        number: line number in the file, from 1.
        custom_id: names it in the job; for plain lines the text of its id, or its number where it has none.
        url: the endpoint that serves it.
        body: the request, as the endpoint takes it.
        plain_id: the id of a plain line as it was given. is_plain: its kind.
    """

    number: int
    custom_id: str
    url: str
    body: dict[str, Any]
    is_plain: bool = False
    plain_id: Any = None


@dataclass(frozen=True, slots=True)
class Answer:
    """What became of a line.

    Attributes:
        status_code: 200, or the status of an HTTP error.
        body: the response's JSON object; ``{"error": {...}}`` where it is one.
        error: ``{"code", "message"}`` where the line has no answer, else None.
    """

    status_code: int
    body: Mapping[str, Any] | None
    error: Mapping[str, Any] | None = None

    @classmethod
    def of_error(cls, code: str, message: str, status_code: int = BAD_REQUEST) -> Answer:
        """An error that no endpoint has answered."""
        return cls(status_code, None, {"code": code, "message": message})

    @property
    def usage(self) -> Mapping[str, Any]:
        """Tokens as the endpoint counted them; empty for errors."""
        return (self.body or {}).get("usage") or {}


@dataclass(frozen=True, slots=True)
class LineDefaults:
    """What lines get that do not say it: ``max_tokens`` for plain prompts and chats, None for the endpoint's own."""

    max_tokens: int | None = None


NO_DEFAULTS = LineDefaults()


def parse_line(
    number: int, raw: bytes | None, defaults: LineDefaults, max_line_bytes: int
) -> JobLine:
    """The request on one line.

    Args:
        raw: its bytes; None for a line longer than ``max_line_bytes``.

    Raises:
        BadLineError: with the reason, in words for the user.
    """
    if raw is None:
        raise BadLineError(f"longer than {max_line_bytes / 1e6:,.0f} MB (--max-line-mb)")
    try:
        record = from_json(raw)
    except ValueError as error:
        raise BadLineError(f"not valid JSON: {error}") from None
    if not isinstance(record, dict):
        raise BadLineError(f"not a JSON object but {clip(record)}")
    if "body" in record or "url" in record or "custom_id" in record:
        return _batch_line(number, record)
    return _plain_line(number, record, defaults)


def _batch_line(number: int, record: dict[str, Any]) -> JobLine:
    for name, kind in (("custom_id", str), ("method", str), ("url", str), ("body", dict)):
        if name not in record:
            raise BadLineError(f'"{name}" is missing')
        if not isinstance(record[name], kind):
            what = "an object" if kind is dict else "a text"
            raise BadLineError(f'"{name}" must be {what}, not {clip(record[name])}')
    if not record["custom_id"]:
        raise BadLineError('"custom_id" is empty')
    if record["method"].upper() != "POST":
        raise BadLineError(f'"method" must be POST, not {clip(record["method"])}')
    body = record["body"]
    _check_body(body)
    return JobLine(number, record["custom_id"], record["url"], body)


def _plain_line(number: int, record: dict[str, Any], defaults: LineDefaults) -> JobLine:
    found = [name for name in _PLAIN_URLS if record.get(name) is not None]
    if len(found) != 1:
        known = ", ".join(f'"{name}"' for name in _PLAIN_URLS)
        said = "several of" if found else "none of"
        raise BadLineError(f"has {said} {known}; a plain line has one")
    plain_id = record.pop("id", None)
    if isinstance(plain_id, list | dict):
        raise BadLineError(f'"id" must be a text or a number, not {clip(plain_id)}')
    url = _PLAIN_URLS[found[0]]
    limits = {"max_tokens", "max_completion_tokens"}
    if url != EMBEDDINGS and defaults.max_tokens is not None and not limits & record.keys():
        record["max_tokens"] = defaults.max_tokens
    _check_body(record)
    custom_id = str(number if plain_id is None else plain_id)
    return JobLine(number, custom_id, url, record, is_plain=True, plain_id=plain_id)


def _check_body(body: Mapping[str, Any]) -> None:
    if body.get("stream"):
        raise BadLineError('"stream" is set; the answers of a batch are written whole')


def encode_answer(line: JobLine, answer: Answer) -> bytes:
    """The line of the output that answers ``line``, with its newline."""
    record = _plain_record(line, answer) if line.is_plain else _batch_record(line.custom_id, answer)
    return to_json(record, inf_nan_mode="null") + b"\n"


def encode_bad_line(number: int, reason: str, *, is_plain: bool, custom_id: str | None) -> bytes:
    """The line of the output for one that is no request: it names the line and the reason."""
    error = {"code": "invalid_line", "message": f"line {number}: {reason}", "line": number}
    answer = Answer(BAD_REQUEST, None, error)
    if is_plain:
        record = {"id": custom_id, "line": number, "text": None, "error": error}
    else:
        record = _batch_record(custom_id, answer)
    return to_json(record) + b"\n"


def _batch_record(custom_id: str | None, answer: Answer) -> dict[str, Any]:
    response = None
    if answer.body is not None:
        request_id = f"vllm-batch-{secrets.token_hex(8)}"
        response = {
            "status_code": answer.status_code,
            "request_id": request_id,
            "body": answer.body,
        }
    return {
        "id": f"vllm-{secrets.token_hex(8)}",
        "custom_id": custom_id,
        "response": response,
        "error": answer.error,
    }


def _plain_record(line: JobLine, answer: Answer) -> dict[str, Any]:
    """Of the first choice its text; all choices beside it where they say more than that."""
    name: Any = line.number if line.plain_id is None else line.plain_id
    if answer.error is not None:
        return {"id": name, "line": line.number, "text": None, "error": answer.error}
    body = answer.body or {}
    record: dict[str, Any] = {"id": name}
    if line.url == EMBEDDINGS:
        record["embeddings"] = [one.get("embedding") for one in body.get("data", ())]
    else:
        choices = body.get("choices") or [{}]
        message = choices[0].get("message") or {}
        record["text"] = message.get("content") if message else choices[0].get("text")
        record["finish_reason"] = choices[0].get("finish_reason")
        if len(choices) > 1 or any(map(_says_more, choices)):
            record["choices"] = choices
    return {**record, "usage": dict(answer.usage), "error": None}


def _says_more(choice: Mapping[str, Any]) -> bool:
    message = choice.get("message") or {}
    return bool(
        choice.get("logprobs")
        or choice.get("prompt_logprobs")
        or message.get("tool_calls")
        or message.get("reasoning")
        or message.get("reasoning_content")
    )
