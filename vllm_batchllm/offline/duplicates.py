# SPDX-License-Identifier: Apache-2.0
"""Exact duplicates: which requests of a batch must have the same answer.

Two requests have the same answer only under greedy decoding, with equal prompt tokens and equal
parameters. Whatever could make them differ keeps them apart: sampling, several samples per
prompt, LoRA adapters, cache salts, images, embeddings, transfers of KV blocks.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Mapping
from typing import Any

KV_TRANSFER = "kv_transfer_params"
"""Key inside ``extra_args`` of a request whose blocks come from, or go to, another engine."""

MAX_LEADERS = 64
"""Parameter sets remembered per prompt. They can only be compared one by one, so without a bound
many requests with one prompt and all different parameters would cost quadratic time."""


Key = tuple[bytes, int]
"""A digest of the prompt's tokens, 256 bits, and the priority: a batch may hold millions of long prompts, and a copy of each
would weigh 8 bytes a token."""


class DuplicateTable:
    """The first request ("leader") for every distinct (prompt, parameters, priority).

    Beyond ``MAX_LEADERS`` parameter sets for one prompt, further ones are not remembered: their
    duplicates are computed like any request.
    """

    def __init__(self) -> None:
        self._leaders: dict[Key, list[tuple[Any, str]]] = {}
        self._keys: dict[str, Key] = {}
        self._latest: tuple[Any, Key] | None = None
        """Who is looked up, and is nobody's duplicate, is entered next."""

    def leader(self, prompt: Mapping[str, Any], params: Any, priority: int) -> str | None:
        """Id of an earlier request with the same answer, or None."""
        key = _key(prompt, priority)
        self._latest = prompt, key
        for known, leader_id in self._leaders.get(key, ()):
            if known is params or known == params:
                return leader_id
        return None

    def add(self, prompt: Mapping[str, Any], params: Any, priority: int, request_id: str) -> None:
        """Enter ``request_id`` as the leader for its prompt and parameters."""
        latest, self._latest = self._latest, None
        is_known = latest is not None and latest[0] is prompt and latest[1][1] == priority
        key = latest[1] if latest is not None and is_known else _key(prompt, priority)
        leaders = self._leaders.setdefault(key, [])
        if len(leaders) < MAX_LEADERS:
            leaders.append((params, request_id))
            self._keys[request_id] = key

    def forget(self, request_id: str) -> None:
        """``request_id`` was taken back, and answers for nobody."""
        key = self._keys.pop(request_id, None)
        if key is not None:
            self._leaders[key] = [one for one in self._leaders[key] if one[1] != request_id]


def may_share_answer(prompt: Mapping[str, Any], params: Any, lora_request: Any) -> bool:
    """Whether a duplicate of this request would certainly get the same answer."""
    return (
        prompt.get("type") == "token"
        and not prompt.get("cache_salt")
        and lora_request is None
        and getattr(params, "temperature", None) == 0
        and params.n == 1
        and KV_TRANSFER not in (getattr(params, "extra_args", None) or ())
        and _is_encodable(prompt["prompt_token_ids"])
    )


def _is_encodable(token_ids: Any) -> bool:
    """Whether these can be looked up; what vLLM refuses, it shall refuse itself, in its own words."""
    try:
        array("q", token_ids)
    except (OverflowError, TypeError):
        return False
    return True


def _key(prompt: Mapping[str, Any], priority: int) -> Key:
    tokens = array("q", prompt["prompt_token_ids"])
    return hashlib.blake2b(tokens, digest_size=32).digest(), priority
