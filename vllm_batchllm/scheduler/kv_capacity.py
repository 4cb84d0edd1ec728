# SPDX-License-Identifier: Apache-2.0
"""How long a request can be that fits the empty KV cache, whatever the layers are."""

from __future__ import annotations

from bisect import bisect_right

from vllm.config import ParallelConfig
from vllm.v1.core.kv_cache_manager import KVCacheManager
from vllm.v1.kv_cache_interface import KVCacheConfig

from vllm_batchllm.scheduler.layer_kinds import keeps_all_tokens


def max_tokens_held(
    manager: KVCacheManager, config: KVCacheConfig, parallel: ParallelConfig
) -> int:
    """Tokens of one request that fit the empty cache; 0 where no layer keeps them all.

    Layers with a window take their blocks out of the same pool, so vLLM itself is asked, by
    bisection; once, at start.
    """
    if parallel.decode_context_parallel_size * parallel.prefill_context_parallel_size > 1:
        return 0
    per_token = sum(
        1 / group.kv_cache_spec.block_size
        for group in config.kv_cache_groups
        if keeps_all_tokens(group.kv_cache_spec)
    )
    if not per_token:
        return 0
    num_blocks = manager.block_pool.num_gpu_blocks - 1
    lengths = range(1, int(num_blocks / per_token) + 1)
    return bisect_right(lengths, num_blocks, key=lambda length: _num_blocks_for(manager, length))


def _num_blocks_for(manager: KVCacheManager, num_tokens: int) -> int:
    """Blocks that a request of ``num_tokens`` tokens takes from the empty cache."""
    return int(
        manager.coordinator.get_num_blocks_to_allocate(
            request_id="",
            num_tokens=num_tokens,
            new_computed_blocks=manager.empty_kv_cache_blocks.blocks,
            num_encoder_tokens=0,
            total_computed_tokens=0,
            num_local_computed_tokens=0,
            num_tokens_main_model=num_tokens,
            apply_admission_cap=True,
            prefill_end=num_tokens,
        )
    )
