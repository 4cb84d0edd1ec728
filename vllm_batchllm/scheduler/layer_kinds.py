# SPDX-License-Identifier: Apache-2.0
"""What vLLM's KV cache specs say of the blocks that a request holds, in admission's words."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from vllm.config import ParallelConfig, VllmConfig
from vllm.v1.kv_cache_interface import (
    ChunkedLocalAttentionSpec,
    FullAttentionSpec,
    KVCacheConfig,
    KVCacheGroupRole,
    KVCacheSpec,
    MambaSpec,
    MLAAttentionSpec,
    SinkFullAttentionSpec,
    SlidingWindowMLASpec,
    SlidingWindowSpec,
)

from vllm_batchllm.admission.memory_model import LayerKind, MemoryModel

KEEP_ALL_TOKENS = (FullAttentionSpec, MLAAttentionSpec, SinkFullAttentionSpec)
"""KV cache specs of layers that hold every token of a request."""

WINDOWS = (SlidingWindowSpec, SlidingWindowMLASpec)
"""Of layers that hold the latest tokens."""


def memory_model(
    config: KVCacheConfig, vllm_config: VllmConfig, *, unit: int, lag: int
) -> MemoryModel | None:
    """Blocks of a request by its tokens; None where a kind of layers is not known here.

    unit: tokens of a block that all groups can share. lag: steps that are put together before one
    has been worked off: a window gives its blocks back so much later.
    """
    if unforeseen_kinds(config):
        return None
    kinds: Counter[LayerKind] = Counter()
    num_drafts = vllm_config.num_speculative_tokens
    num_ahead = num_drafts + vllm_config.num_lookahead_tokens if num_drafts else 0
    for group in config.kv_cache_groups:
        spec = group.kv_cache_spec
        kind = _kind_of(spec, lag)
        assert kind is not None
        size = spec.block_size * _num_shards(spec, vllm_config.parallel_config)
        ahead = 0 if isinstance(spec, MambaSpec) else num_ahead
        kinds[replace(kind, block_size=size, num_ahead=ahead)] += 1
    return MemoryModel([replace(kind, num_groups=number) for kind, number in kinds.items()], unit)


def unforeseen_kinds(config: KVCacheConfig) -> list[str]:
    """Names of the kinds of layers whose blocks the admission cannot foresee."""
    return sorted(
        {
            type(group.kv_cache_spec).__name__
            for group in config.kv_cache_groups
            if _kind_of(group.kv_cache_spec, 0) is None
            or group.role is not KVCacheGroupRole.DEFAULT
        }
    )


def keeps_all_tokens(spec: KVCacheSpec) -> bool:
    """Whether a layer of this kind holds every token of a request until it ends."""
    return type(spec) in KEEP_ALL_TOKENS


def _kind_of(spec: KVCacheSpec, lag: int) -> LayerKind | None:
    """What a layer keeps; None if that is not known. By exact types: a subclass may keep other things."""
    size = spec.block_size
    if keeps_all_tokens(spec):
        return LayerKind(size)
    if type(spec) in WINDOWS:
        assert isinstance(spec, SlidingWindowSpec)
        return LayerKind(size, window=spec.sliding_window + spec.extra_retained_tokens + lag)
    if type(spec) is ChunkedLocalAttentionSpec:
        return LayerKind(size, chunk=spec.attention_chunk_size)
    if type(spec) is MambaSpec:
        return LayerKind(size, window=1, num_extra=spec.num_speculative_blocks)
    return None


def _num_shards(spec: KVCacheSpec, parallel: ParallelConfig) -> int:
    """Ranks that a block's tokens are spread over."""
    if not spec.dcp_sharded:
        return 1
    return int(parallel.decode_context_parallel_size)
