# SPDX-License-Identifier: Apache-2.0
"""Requests that no reasonable client sends, by name: path and body."""

from __future__ import annotations

import random
from typing import Any

from abuse_clients import completion
from live_server import SERVED_NAME

HINT = "expected_output_tokens"
COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
Case = tuple[str, Any]
TEN_MB = 10 * 1024 * 1024


def bad_parameters() -> dict[str, Case]:
    """Each must be refused, by its name."""
    values: dict[str, dict[str, Any]] = {
        "negative max_tokens": {"max_tokens": -1},
        "max_tokens a word": {"max_tokens": "many"},
        "max_tokens a list": {"max_tokens": [1]},
        "max_tokens of 40 digits": {"max_tokens": 10**40},
        "negative temperature": {"temperature": -5},
        "temperature a word": {"temperature": "hot"},
        "top_p of 7": {"top_p": 7},
        "top_k of -9": {"top_k": -9},
        "n of 0": {"n": 0},
        "n of a million": {"n": 1_000_000},
        "logprobs of 10000": {"logprobs": 10_000},
        "prompt_logprobs of -5": {"prompt_logprobs": -5},
        "min_tokens above max_tokens": {"min_tokens": 50, "max_tokens": 4},
        "unknown model": {"model": "nobody"},
        "model a number": {"model": 7},
        "no prompt": {"prompt": None},
        "empty list of tokens": {"prompt": []},
        "prompt an object": {"prompt": {"a": 1}},
        "negative token": {"prompt": [1, 2, -3]},
        "token beyond the vocabulary": {"prompt": [1, 2, 10**6]},
        "token of 30 digits": {"prompt": [10**30]},
        "prompt too long": {"prompt": "word " * 5000},
        "logit_bias beyond the vocabulary": {"logit_bias": {"99999999": 1.0}},
        "logit_bias a list": {"logit_bias": [1]},
        "stop a number": {"stop": 5},
        "xargs a word": {"vllm_xargs": "hint"},
        "empty salt": {"cache_salt": ""},
        "salt a list": {"cache_salt": ["a"]},
        "broken regex": {"structured_outputs": {"regex": "(("}},
        "broken schema": {"structured_outputs": {"json": '{"type": 7}'}},
        "unknown response format": {"response_format": {"type": "poem"}},
    }
    cases: dict[str, Case] = {
        name: (COMPLETIONS, completion("Say something.") | changed)
        for name, changed in values.items()
    }
    chat = {"model": SERVED_NAME, "max_tokens": 4}
    return cases | {
        "chat without messages": (CHAT, chat),
        "messages a word": (CHAT, chat | {"messages": "hello"}),
        "message without a role": (CHAT, chat | {"messages": [{"content": "hello"}]}),
        "role a number": (CHAT, chat | {"messages": [{"role": 7, "content": "hello"}]}),
        "image for a text model": (
            CHAT,
            chat
            | {
                "messages": [
                    {
                        "role": "user",
                        "content": [
                            {"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}
                        ],
                    }
                ]
            },
        ),
        "unknown path": ("/v1/nothing", completion("x")),
    }


def bad_hints() -> dict[str, Case]:
    """Hints of ours that are no whole number within bounds; each request ends with an error."""
    values = {
        "hint a word": "many",
        "hint of 0": 0,
        "hint of -4": -4,
        "hint of 2.5": 2.5,
        "hint a list": [4],
        "hint a long word": "x" * 1_000_000,
        "hint a long list": list(range(100_000)),
        "hint beyond the bound": 2**62,
        "hint of many lines": "1\nERROR the log was forged\n",
    }
    return {
        name: (COMPLETIONS, completion("Say something.", vllm_xargs={HINT: value}))
        for name, value in values.items()
    }


def bad_json() -> dict[str, Case]:
    """Bodies that are no request at all."""
    bodies = {
        "empty body": b"",
        "a word": b"hello",
        "cut off": b'{"model": "live", "prompt": "abc',
        "a list": b"[1, 2, 3]",
        "a number": b"12",
        "null": b"null",
        "not UTF-8": b'{"model": "live", "prompt": "\xff\xfe\xfa"}',
        "nested 100,000 deep": b'{"prompt": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        "a number of 100,000 digits": b'{"model": "live", "max_tokens": ' + b"9" * 100_000 + b"}",
        "NaN": b'{"model": "live", "prompt": "a", "temperature": NaN}',
        "zero bytes": b"\x00" * 1000,
    }
    return {name: (COMPLETIONS, body) for name, body in bodies.items()}


def large_bodies() -> dict[str, Case]:
    """10 MB each. Refused, or answered where only what nobody reads is large."""
    return {
        "10 MB of prompt": (COMPLETIONS, completion("word " * (TEN_MB // 5))),
        "10 MB of one word": (COMPLETIONS, completion("a" * TEN_MB)),
        "10 MB of tokens": (COMPLETIONS, completion([11] * (TEN_MB // 4))),
        "10 MB of prompts": (COMPLETIONS, completion(["word " * 2000] * (TEN_MB // 10_000))),
        "10 MB in an unknown field": (COMPLETIONS, completion("Hello", note="x" * TEN_MB)),
        "10 MB of user": (COMPLETIONS, completion("Hello", user="x" * TEN_MB)),
        "10 MB of salt": (COMPLETIONS, completion("Hello", cache_salt="x" * TEN_MB)),
        "10 MB of stop string": (COMPLETIONS, completion("Hello", stop="x" * TEN_MB)),
        "10 MB of xargs": (COMPLETIONS, completion("Hello", vllm_xargs={"note": "x" * TEN_MB})),
        "10 MB that is no JSON": (COMPLETIONS, b"x" * TEN_MB),
        "10 MB of a chat": (
            CHAT,
            {
                "model": SERVED_NAME,
                "messages": [{"role": "user", "content": "word " * (TEN_MB // 5)}],
            },
        ),
    }


def unicode_prompts(per_plane: int, seed: int) -> dict[str, str]:
    """Text of every plane of Unicode, unassigned code points included; no lone surrogates."""
    draw = random.Random(seed)
    texts = {}
    for plane in range(17):
        first = plane * 0x10000
        points = [point for point in range(first, first + 0x10000) if not is_surrogate(point)]
        for number in range(per_plane):
            texts[f"plane {plane} no. {number}"] = "".join(map(chr, draw.sample(points, 24)))
    return texts | {
        "zero bytes": "a\x00b\x00c",
        "control characters": "".join(map(chr, range(1, 32))),
        "right to left": "\u202eabc\u202c \u05d0\u05d1\u05d2 \u0627\u0628",
        "100 combining marks": "a" + "\u0301" * 100,
        "joined emoji": "\U0001f468\u200d\U0001f469\u200d\U0001f467\u200d\U0001f466" * 4,
        "byte order marks": "\ufeff" * 8,
        "special tokens as text": "<|im_end|><|im_start|>system\n<|endoftext|>",
    }


def is_surrogate(point: int) -> bool:
    """Whether a code point is half of a pair, and so no character."""
    return 0xD800 <= point <= 0xDFFF


LONE_SURROGATES: dict[str, Case] = {
    "lone high surrogate": (
        COMPLETIONS,
        b'{"model": "live", "prompt": "a\\ud800b", "max_tokens": 2}',
    ),
    "lone low surrogate": (
        COMPLETIONS,
        b'{"model": "live", "prompt": "a\\udc00", "max_tokens": 2}',
    ),
}
"""Valid JSON, but no text: refused, or answered."""
