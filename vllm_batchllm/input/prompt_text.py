# SPDX-License-Identifier: Apache-2.0
"""A request's prompt as chained hashes of its text: what a plan is made from, long before anything is tokenised.

Prefixes of text are nearly always prefixes of tokens, so requests that share leading hashes share KV blocks. Only an order
follows from this: the engine finds by itself, token by token, what is really shared.
"""

from __future__ import annotations

import hashlib
from array import array
from typing import Any

import numpy as np
import xxhash
from pydantic_core import to_json

from vllm_batchllm.input.line import CHAT, COMPLETIONS, JobLine
from vllm_batchllm.prefix.prefix_order import HashTable, Ints, shared_depths

FINE_BYTES, FINE_UNTIL = 64, 1024
COARSE_BYTES, COARSE_UNTIL = 256, 64 * 1024
"""Pieces are short where short prompts are told apart, and long behind; nothing is looked at behind COARSE_UNTIL."""

_BEFORE_THE_TEXT = ("model", "cache_salt", "tools", "chat_template", "chat_template_kwargs")
_PROMPTS = ("prompt", "input", "query", "queries", "text_1", "data_1", "documents", "text_2")
_SMALLEST_DIGESTED = 512


def piece_ends(num_bytes: int) -> list[int]:
    """Where the whole pieces of a text of ``num_bytes`` end, in bytes."""
    fine = range(FINE_BYTES, min(num_bytes, FINE_UNTIL) + 1, FINE_BYTES)
    coarse = range(FINE_UNTIL + COARSE_BYTES, min(num_bytes, COARSE_UNTIL) + 1, COARSE_BYTES)
    return [*fine, *coarse]


_ALL_ENDS = piece_ends(COARSE_UNTIL)
END_OF_HASH = array("q", [0, *_ALL_ENDS])
"""Bytes of text behind which the hash at a position stands; the first hash is of what comes before the text."""


def shared_text_bytes(table: HashTable, order: Ints) -> Ints:
    """(len(order),): bytes of text that each request shares with the one before it in ``order``, in whole pieces; 0 for the first."""
    depths = shared_depths(table, order)
    ends = np.frombuffer(END_OF_HASH, np.int64)
    shared: Ints = np.where(depths > 0, ends[np.maximum(depths - 1, 0)], 0)
    return shared


def chained_hashes(line: JobLine) -> tuple[array[int], int]:
    """64-bit hashes of a line's prompt, chained: equal at a position means equal up to there. And its bytes.

    The first is of all that keeps requests from sharing blocks whatever their text: endpoint, model or adapter, salt, tools.
    """
    text = _text(line.body)
    return hash_text(text, _before(line))[0], len(text)


def hash_text(text: bytes, before: bytes) -> tuple[array[int], int]:
    """Chained hashes of a text, the first of what comes `before` it; and one of all of it."""
    intdigest = xxhash.xxh3_64_intdigest
    chain = intdigest(before)
    hashes = array("Q", (chain,))
    start = 0
    for end in _ALL_ENDS:
        if end > len(text):
            break
        chain = intdigest(text[start:end], chain)
        hashes.append(chain)
        start = end
    return hashes, intdigest(text[start:], chain)


def body_digest(line: JobLine) -> bytes:
    """16 bytes; equal for two lines only if one answer does for both: they ask exactly the same, and nothing is drawn."""
    asked: list[Any] = [line.url, line.body]
    if not _has_one_answer(line):
        asked.append(line.number)
    return hashlib.blake2b(to_json(asked), digest_size=16).digest()


def _has_one_answer(line: JobLine) -> bool:
    body = line.body
    if line.url not in (CHAT, COMPLETIONS):
        return True
    is_fixed = body.get("temperature") == 0 or body.get("seed") is not None
    return is_fixed and body.get("kv_transfer_params") is None


def _before(line: JobLine) -> bytes:
    said = {name: line.body[name] for name in _BEFORE_THE_TEXT if line.body.get(name) is not None}
    return to_json([line.url, said])


def _text(body: dict[str, Any]) -> bytes:
    messages = body.get("messages")
    if isinstance(messages, list):
        return messages_text(messages)
    for name in _PROMPTS:
        if body.get(name) is not None:
            return _plain(body[name])
    return b""


def messages_text(messages: list[Any]) -> bytes:
    """Roles and contents of a chat, one behind the other."""
    return b"".join(map(_message, messages))


def _message(message: Any) -> bytes:
    if not isinstance(message, dict):
        return _plain(message)
    rest = {key: value for key, value in message.items() if key not in ("role", "content")}
    content = message.get("content")
    parts = content if isinstance(content, list) else [content]
    text = b"\x02".join(map(_part, parts))
    said = to_json(rest) if rest else b""
    return b"\x00" + _plain(message.get("role")) + b"\x01" + text + said


def _part(part: Any) -> bytes:
    """Text as it is; an image, a sound or a file by its digest, which is as long whatever its size."""
    if isinstance(part, dict) and isinstance(part.get("text"), str):
        return _plain(part["text"])
    if not isinstance(part, dict):
        return _plain(part)
    packed = to_json(part)
    if len(packed) <= _SMALLEST_DIGESTED:
        return packed
    return hashlib.blake2b(packed, digest_size=FINE_BYTES).digest()


def _plain(value: Any) -> bytes:
    if isinstance(value, str):
        return value.encode("utf-8", "surrogatepass")
    return b"" if value is None else to_json(value)
