# SPDX-License-Identifier: Apache-2.0
"""The block pool and its list of free blocks: what is given up first."""

from __future__ import annotations

from vllm_symbol import VLLMSymbol

POOL = "vllm.v1.core.block_pool:BlockPool"
FREE_LIST = "vllm.v1.core.kv_cache_utils:FreeKVCacheBlockQueue"
UNTIL_POOL = "vLLM lets a scheduler choose its block pool and its order of eviction"

KV_CACHE: tuple[VLLMSymbol, ...] = (
    VLLMSymbol(
        "vllm.v1.core.kv_cache_coordinator:BlockPool",
        why="have KV cache coordinators build our pool",
        how="the name is replaced while our scheduler is being built, and put back",
        until=UNTIL_POOL,
    ),
    VLLMSymbol(
        POOL,
        why="keep the blocks that somebody waits for",
        how="subclassed; free_block_queue is replaced after construction",
        until=UNTIL_POOL,
    ),
    VLLMSymbol(
        f"{POOL}.cache_full_blocks",
        why="know which hash list a cached block came from",
        how="overridden; calls super, then notes list and position",
        until=UNTIL_POOL,
        parameters=(
            "request",
            "blocks",
            "num_cached_blocks",
            "num_full_blocks",
            "block_size",
            "kv_cache_group_id",
            "block_mask",
        ),
    ),
    VLLMSymbol(
        f"{POOL}.cache_partial_block",
        why="know which hash list a cached block came from",
        how="overridden; calls super, then notes list and position",
        until=UNTIL_POOL,
        parameters=("request", "block", "num_tokens"),
    ),
    VLLMSymbol(
        f"{POOL}.move_block_hashes",
        why="the origin of a hash moves along with it",
        how="overridden; calls super",
        until=UNTIL_POOL,
        parameters=("src_block", "dst_block"),
    ),
    VLLMSymbol(
        f"{POOL}.reset_prefix_cache",
        why="what nobody can hit any more is kept for nobody",
        how="overridden; calls super",
        until=UNTIL_POOL,
    ),
    VLLMSymbol(
        f"{POOL}._remove_cached_block_hashes",
        why="an evicted block is of no use, and a copy of it may be needed instead",
        how="overridden; calls super, then files both anew",
        until=UNTIL_POOL,
        parameters=("block",),
    ),
    VLLMSymbol(
        "vllm.v1.core.block_pool:BlockHashToBlockMap.get_one_block",
        why="find the copy of a block that a look-up would hit",
        how="called",
        until=UNTIL_POOL,
        parameters=("key",),
    ),
    *(
        VLLMSymbol(
            f"{FREE_LIST}.{name}",
            why="free blocks have three zones",
            how="overridden; calls super for the zones that are in vLLM's own order",
            until=UNTIL_POOL,
        )
        for name in (
            "popleft",
            "popleft_n",
            "remove",
            "append",
            "append_n",
            "prepend_n",
            "get_all_free_blocks",
            "iter_blocks_after",
        )
    ),
    *(
        VLLMSymbol(
            f"{POOL}.{name}",
            why="the ways of a block into the free list and out of it",
            how="not overridden; call our free list",
            until=UNTIL_POOL,
        )
        for name in ("get_new_blocks", "touch", "free_blocks", "evict_blocks")
    ),
    VLLMSymbol(
        "vllm.v1.core.kv_cache_utils:KVCacheBlock",
        why="links, hash and reference count of a block",
        how="read; the links are set by vLLM's list",
        until=UNTIL_POOL,
    ),
    VLLMSymbol(
        "vllm.v1.core.kv_cache_utils:get_request_block_hasher",
        why="equal chained hashes mean equal prefixes, and a hash list only grows",
        how="read as Request.block_hashes, by forest and pool",
        until="vLLM offers its own index of the prefixes of waiting requests",
    ),
)
