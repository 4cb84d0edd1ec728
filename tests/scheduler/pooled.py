# SPDX-License-Identifier: Apache-2.0
"""Schedulers on ``PrefixAwareBlockPool``, on KV configs of several kinds of groups."""

from __future__ import annotations

from typing import Any

import torch
from vllm.config import VllmConfig
from vllm.v1.core.kv_cache_utils import KVCacheBlock, get_block_hash
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.kv_cache_interface import (
    FullAttentionSpec,
    KVCacheConfig,
    KVCacheGroupSpec,
    KVCacheSpec,
    MambaSpec,
    SlidingWindowSpec,
)
from vllm.v1.request import RequestStatus
from vllm.v1.structured_output import StructuredOutputManager

from vllm_batchllm.admission.environment import Clock, Environment
from vllm_batchllm.kv_cache.block_pool import installed_block_pool
from vllm_batchllm.prefix.readable import grouping_hashes
from vllm_batchllm.scheduler.request_queue import PrefixGroupQueue
from vllm_batchllm.scheduler.scheduler import BatchLLMScheduler

BLOCK_SIZE = 4


def full(block_size: int = BLOCK_SIZE) -> KVCacheSpec:
    return FullAttentionSpec(
        block_size=block_size, num_kv_heads=1, head_size=1, dtype=torch.float32
    )


def sliding_window() -> KVCacheSpec:
    return SlidingWindowSpec(
        block_size=BLOCK_SIZE,
        num_kv_heads=1,
        head_size=1,
        dtype=torch.float32,
        sliding_window=2 * BLOCK_SIZE,
    )


def mamba() -> KVCacheSpec:
    return MambaSpec(
        block_size=BLOCK_SIZE,
        shapes=((1, 1),),
        dtypes=(torch.float32,),
        mamba_cache_mode="align",  # the one that can cache prefixes; 0.33 insists on it
    )


KV_GROUPS: dict[str, list[KVCacheSpec]] = {
    "full": [full()],
    "full + sliding window": [full(), sliding_window()],
    "full + 2 sliding windows": [full(), sliding_window(), sliding_window()],
    "full + Mamba": [full(), mamba()],
    "full, blocks of two hashes, + sliding window": [full(2 * BLOCK_SIZE), sliding_window()],
}


class LruScheduler(BatchLLMScheduler):
    """Our queue on vLLM's pool."""

    def _make_queue(self, clock: Clock) -> PrefixGroupQueue:
        queue = super()._make_queue(clock)
        pool = self.kv_cache_manager.block_pool
        for forest in queue.forests:
            if forest.observer is not None:
                pool.unwatch(forest)
        return queue


class BlindScheduler(Scheduler):
    """vLLM's scheduler on our pool, which is told nothing of who waits."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        with installed_block_pool():
            super().__init__(*args, **kwargs)


def make(
    cls: Any, vllm_config: VllmConfig, specs: list[KVCacheSpec], **environment: Environment
) -> Any:
    """Build scheduler ``cls`` on KV groups of ``specs``; ``environment`` is for ours only."""
    groups = [KVCacheGroupSpec([f"layer {n}"], spec) for n, spec in enumerate(specs)]
    return cls(
        vllm_config=vllm_config,
        kv_cache_config=KVCacheConfig(
            num_blocks=vllm_config.cache_config.num_gpu_blocks,
            kv_cache_tensors=[],
            kv_cache_groups=groups,
        ),
        structured_output_manager=StructuredOutputManager(vllm_config),
        include_finished_set=False,
        log_stats=True,
        block_size=max(spec.block_size for spec in specs),
        hash_block_size=min(spec.block_size for spec in specs),
        **environment,
    )


def pool_of(scheduler: Scheduler) -> Any:
    return scheduler.kv_cache_manager.block_pool


def waiting_hashes(scheduler: Scheduler, num_late_tokens: int = 0) -> set[bytes]:
    """By brute force: the hashes of everything that waits and may read the cache.

    num_late_tokens: so many tokens of a preempted request may have come when it waited already, and
    are left out.
    """
    hashes: set[bytes] = set()
    for request in getattr(scheduler, "prefix_queue", scheduler.waiting):
        num_late = num_late_tokens if request.status is RequestStatus.PREEMPTED else 0
        num_known = (request.num_tokens - num_late) // scheduler.hash_block_size
        hashes.update(grouping_hashes(request, scheduler.hash_block_size)[:num_known])
    return hashes


def needed_blocks(pool: Any, hashes: set[bytes]) -> set[int]:
    """By brute force: free blocks that a look-up of one of ``hashes`` would find."""
    needed = set()
    for block in pool.blocks:
        if block.is_null or block.ref_cnt:
            continue  # looked at without the free list, which would file what it lists
        others = pool.cached_block_hashes_by_block.get(block.block_id, ())
        keys = [key for key in (block.block_hash, *others) if key is not None]
        if any(is_hit(pool, block, key) and get_block_hash(key) in hashes for key in keys):
            needed.add(block.block_id)
    return needed


def is_hit(pool: Any, block: KVCacheBlock, key: bytes) -> bool:
    return pool.cached_block_hash_to_block.get_one_block(key) is block
