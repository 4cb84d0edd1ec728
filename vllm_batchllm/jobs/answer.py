# SPDX-License-Identifier: Apache-2.0
"""The answer to one line, and how it is written: it has the kind of its line."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic_core import to_json

from vllm_batchllm.input.line import EMBEDDINGS, JobLine

_OK = 200
BAD_REQUEST = 400


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
