# SPDX-License-Identifier: Apache-2.0
"""One line of a job's input: what is asked. The only place that knows the formats.

Two kinds are read: lines of the OpenAI Batch API (``{"custom_id", "method", "url", "body"}``) and plain ones
(``{"id", "prompt" | "messages" | "input", ...parameters}``). A plain line is what `record.py` makes of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic_core import from_json

from vllm_batchllm.input.record import BadLineError, as_record
from vllm_batchllm.messages import clip

CHAT, COMPLETIONS, EMBEDDINGS = "/v1/chat/completions", "/v1/completions", "/v1/embeddings"
_PLAIN_URLS = {"messages": CHAT, "prompt": COMPLETIONS, "input": EMBEDDINGS}


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
        value = from_json(raw)
    except ValueError as error:
        raise BadLineError(f"not valid JSON: {error}") from None
    record = as_record(value)
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
