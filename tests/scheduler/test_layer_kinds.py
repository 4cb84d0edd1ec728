# SPDX-License-Identifier: Apache-2.0
"""Blocks by tokens, as admission foresees them, are those that vLLM's own managers hold."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from fake_engine import make_request, make_vllm_config, model_output
from pooled import full, make, mamba, sliding_window
from vllm.v1.core.kv_cache_utils import generate_scheduler_kv_cache_config
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.kv_cache_interface import (
    ChunkedLocalAttentionSpec,
    KVCacheConfig,
    KVCacheGroupSpec,
    MLAAttentionSpec,
    SlidingWindowSpec,
    UniformTypeKVCacheSpecs,
)

from vllm_batchllm.scheduler.layer_kinds import memory_model, unforeseen_kinds


def chunked(chunk: int = 32) -> ChunkedLocalAttentionSpec:
    return ChunkedLocalAttentionSpec(
        block_size=4, num_kv_heads=1, head_size=1, dtype=torch.float32, attention_chunk_size=chunk
    )


def latent() -> MLAAttentionSpec:
    return MLAAttentionSpec(block_size=4, num_kv_heads=1, head_size=1, dtype=torch.float32)


def uniform(spec: Any) -> UniformTypeKVCacheSpecs:
    specs = {"a": spec, "b": dataclasses.replace(spec, head_size=2)}
    return UniformTypeKVCacheSpecs(block_size=spec.block_size, kv_cache_specs=specs)


KINDS: dict[str, list[Any]] = {
    "full": [full()],
    "MLA": [latent()],
    "window": [sliding_window()],
    "full + 2 windows": [full(), sliding_window(), sliding_window()],
    "full + chunk": [full(), chunked()],
    "full + 3 states": [full(), mamba(), mamba(), mamba()],
    "two sizes": [full(8), sliding_window()],
}


def kv_config(specs: list[Any]) -> KVCacheConfig:
    groups = [KVCacheGroupSpec([f"layer {n}"], spec) for n, spec in enumerate(specs)]
    return KVCacheConfig(num_blocks=99, kv_cache_tensors=[], kv_cache_groups=groups)


@pytest.mark.parametrize("cls", [Scheduler, AsyncScheduler])
@pytest.mark.parametrize("name", KINDS)
def test_a_request_holds_what_was_foreseen(llama: str, name: str, cls: Any) -> None:
    specs, lag = KINDS[name], int(cls is AsyncScheduler)
    config = make_vllm_config(llama, num_blocks=99, block_size=4, async_scheduling=bool(lag))
    scheduler = make(cls, config, specs)
    unit = max(spec.block_size for spec in specs)
    model = memory_model(kv_config(specs), config, unit=unit, lag=lag)
    assert model is not None
    scheduler.add_request(make_request("a", range(1, 24), max_tokens=70, block_size=4))
    in_flight, seen = [], []
    while scheduler.has_unfinished_requests():
        output = scheduler.schedule()
        if output.num_scheduled_tokens:
            in_flight.append((output, model_output(scheduler, output)))
            blocks = scheduler.kv_cache_manager.get_blocks("a").blocks
            num_held = sum(not block.is_null for group in blocks for block in group)
            seen.append((scheduler.requests["a"].num_computed_tokens, num_held))
        if len(in_flight) > lag or not output.num_scheduled_tokens:
            scheduler.update_from_output(*in_flight.pop(0))
    decoding = seen[2 + lag :]  # until then a window may still hold all of the prompt
    assert len(decoding) > 60
    windows = sum(kind.num_groups for kind in model.kinds if kind.window is not None)
    too_few = []
    for num_tokens, num_held in decoding:
        foreseen = model.blocks_of(num_tokens)
        assert foreseen <= num_held + windows, num_tokens
        if foreseen < num_held:
            too_few.append(num_tokens)
    # A state that moves to its next block, and a chunk that ends, hold both for a step or two.
    turns = [kind.chunk or (kind.window == 1 and kind.block_size) for kind in model.kinds]
    for num_tokens in too_few:
        assert any(turn and (num_tokens - 1) % turn <= 1 + lag for turn in turns), num_tokens


def test_groups_of_like_layers_come_as_one_of_them(llama: str) -> None:
    """What vLLM hands to its scheduler names one layer of each group."""
    config = generate_scheduler_kv_cache_config([kv_config([full(), uniform(sliding_window())])])
    model = memory_model(config, make_vllm_config(llama), unit=4, lag=0)
    assert model is not None and [kind.window for kind in model.kinds] == [None, 8]


def test_layers_of_a_kind_that_is_not_known_are_named() -> None:
    class Unheard(SlidingWindowSpec):
        """Keeps who knows what."""

    unheard = Unheard(
        block_size=4, num_kv_heads=1, head_size=1, dtype=torch.float32, sliding_window=8
    )
    assert unforeseen_kinds(kv_config([full(), unheard])) == ["Unheard"]
    assert unforeseen_kinds(kv_config(KINDS["full + chunk"])) == []
