# SPDX-License-Identifier: Apache-2.0
"""The depth-first order of prompts in whatever form vLLM takes them, and what they cost in it."""

from __future__ import annotations

import json
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xxhash

from vllm_batchllm.prefix.prefix_order import HashTable, Ints, prefix_order, shared_depths
from vllm_batchllm.replicas.cut import Costs, Floats

PIECE_BYTES = 128
"""Text that one hash stands for; 32 tokens or so. Token ids are hashed as four bytes each."""
_BYTES_PER_TOKEN = 4.0
_UNKNOWN_OUTPUT_TOKENS = 256


@dataclass(frozen=True, slots=True)
class OrderedPrompts:
    """order: places of prompts in depth-first order. costs: of them in that order, in tokens. prefill: the work without outputs."""

    order: Ints
    costs: Costs
    prefill: Floats


def order_prompts(
    prompts: Sequence[Any], max_tokens: Sequence[int | None], apart: Sequence[Any]
) -> OrderedPrompts:
    """Order prompts so that those that share prefixes are neighbours.

    Args:
        prompts: texts, token ids, vLLM's dictionaries of them, or conversations.
        max_tokens: of each output; None where there is no limit.
        apart: of each what keeps it from sharing with others that have another, say its adapter.
    """
    hashes, starts, sizes = array("Q"), array("q", (0,)), []
    for prompt, namespace in zip(prompts, apart, strict=True):
        text = _bytes_of(prompt)
        hashes.extend(_chain(text, repr(namespace).encode()))
        starts.append(len(hashes))
        sizes.append(len(text))
    table = HashTable(np.frombuffer(hashes, np.uint64), np.frombuffer(starts, np.int64))
    order = prefix_order(table, np.arange(len(prompts), dtype=np.int64))
    size = np.array(sizes, dtype=np.int64)[order]
    shared_bytes = np.minimum(np.maximum(shared_depths(table, order) - 1, 0) * PIECE_BYTES, size)
    prefill: Floats = (size - shared_bytes) / _BYTES_PER_TOKEN
    limits = [_UNKNOWN_OUTPUT_TOKENS if limit is None else limit for limit in max_tokens]
    output = np.array(limits, dtype=np.float64)[order] if len(order) else np.zeros(0)
    costs = Costs(prefill + output, shared_bytes / _BYTES_PER_TOKEN)
    return OrderedPrompts(order, costs, prefill)


def _chain(text: bytes, seed: bytes) -> list[int]:
    chain = xxhash.xxh3_64_intdigest(seed)
    found = [chain]
    for start in range(0, len(text) - PIECE_BYTES + 1, PIECE_BYTES):
        chain = xxhash.xxh3_64_intdigest(text[start : start + PIECE_BYTES], chain)
        found.append(chain)
    return found


def _bytes_of(prompt: Any) -> bytes:
    """What of a prompt decides which others begin like it."""
    if isinstance(prompt, str):
        return prompt.encode("utf-8", "surrogatepass")
    if isinstance(prompt, Mapping):
        known = prompt.get("prompt_token_ids", prompt.get("prompt"))
        if known is not None:
            return _bytes_of(known)
        return _said(prompt)
    if isinstance(prompt, Sequence) and all(isinstance(one, int) for one in prompt):
        return _ids(prompt)
    if isinstance(prompt, Sequence):
        return b"".join(map(_said, prompt))
    return _said(prompt)


def _ids(token_ids: Sequence[int]) -> bytes:
    try:
        return np.array(token_ids, dtype=np.int32).tobytes()
    except OverflowError:  # vLLM refuses it, in its own words
        return b""


def _said(message: Any) -> bytes:
    try:
        return json.dumps(message, default=repr).encode("utf-8", "surrogatepass")
    except (TypeError, ValueError):
        return repr(type(message)).encode()
