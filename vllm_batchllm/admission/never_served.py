# SPDX-License-Identifier: Apache-2.0
"""Requests that can never be served, told apart before they block the queue."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vllm_batchllm.admission.hints import hint_from

MORE_MEMORY = (
    "give the KV cache more memory (gpu_memory_utilization or kv_cache_memory_bytes; on the CPU "
    "VLLM_CPU_KVCACHE_SPACE; num_gpu_blocks_override if you set it)"
)


def problem_of(
    num_tokens: int, extra_args: Mapping[str, Any] | None, max_tokens_held: int
) -> str | None:
    """Why a request of ``num_tokens`` tokens so far cannot be served, or None if it can.

    extra_args: of its sampling parameters. max_tokens_held: tokens of one request that the
    whole KV cache can hold; 0 if there is no such bound.
    """
    if max_tokens_held and num_tokens > max_tokens_held:
        return (
            f"{num_tokens:,} tokens can never fit into the KV cache, which holds "
            f"{max_tokens_held:,} tokens; shorten the request, or {MORE_MEMORY}"
        )
    try:
        hint_from(extra_args)
    except ValueError as error:
        return str(error)
    return None
