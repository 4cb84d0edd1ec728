# SPDX-License-Identifier: Apache-2.0
"""How much of its prompt an OpenAI body lets be read from a cache: less where it asks for the prompt's log-probabilities."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vllm_batchllm.messages import clip
from vllm_batchllm.prefix.readable import START


def readable_tokens_of(body: Mapping[str, Any]) -> int | None:
    """Prompt tokens that the request may read at most; None for all of them.

    Raises:
        ValueError: the start is no whole number of at least 0; names the key and the value.
    """
    if not _asks_for_prompt(body):
        return None
    extra = body.get("vllm_xargs")
    if not isinstance(extra, Mapping) or START not in extra:
        return 0
    start = extra[START]
    if not isinstance(start, int) or isinstance(start, bool) or start < 0:
        raise ValueError(f"{START} must be a position in the prompt, not {clip(start)}")
    return max(start - 1, 0)


def _asks_for_prompt(body: Mapping[str, Any]) -> bool:
    """Whether the answer holds log-probabilities of the prompt."""
    if body.get("prompt_logprobs") is not None:
        return True
    return "messages" not in body and bool(body.get("echo")) and body.get("logprobs") is not None
