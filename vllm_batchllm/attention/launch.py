# SPDX-License-Identifier: Apache-2.0
"""Launching attention over shared KV, over own KV, and the merges, for one layer of a planned step."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl

from vllm_batchllm.attention import attention_kernels, merge_kernels
from vllm_batchllm.attention.plan import PartialBuffers, SharedKVPlan
from vllm_batchllm.attention.planning_kernels import (
    NUM_ITEM_COLUMNS,
    NUM_NARROW_ITEMS,
    NUM_WIDE_ITEMS,
)
from vllm_batchllm.attention.shape import Tile, next_power_of_two

MAX_TILE_HEADS = 16
"""Heads that one program merges."""

OWN_TILE_M = 16
OWN_WARPS, OWN_STAGES = 4, 2
MAX_STRIPES = 64
"""Programs among which the new tokens of one long row are shared out."""

COMPUTE_TYPES = {torch.float16: tl.float16, torch.bfloat16: tl.bfloat16, torch.float32: tl.float32}


def interpreted() -> bool:
    """Whether Triton's interpreter runs the kernels (``TRITON_INTERPRET=1``)."""
    return os.environ.get("TRITON_INTERPRET") == "1"


@dataclass(frozen=True)
class LayerInputs:
    """What one attention layer brings to a step.

    q: (tokens, heads, head size). keys, values: (blocks, block size, KV heads, head size) with any strides but the last,
    which is 1. The scales are tensors of one element, for KV and queries of 8 bits; None for others. compute_type: what
    queries of 8 bits are widened to.
    """

    q: torch.Tensor
    keys: torch.Tensor
    values: torch.Tensor
    block_table: torch.Tensor
    query_start: torch.Tensor
    softmax_scale: float
    q_scale: torch.Tensor | None = None
    k_scale: torch.Tensor | None = None
    v_scale: torch.Tensor | None = None
    compute_type: torch.dtype = torch.bfloat16

    def strides(self) -> tuple[int, ...]:
        """Strides in the order of the kernels' arguments."""
        k, v = self.keys.stride(), self.values.stride()
        return (
            self.block_table.stride(0), self.q.stride(0), self.q.stride(1),
            k[0], k[2], k[1], v[0], v[2], v[1],
        )  # fmt: skip

    def scales(self) -> tuple[torch.Tensor, ...]:
        """Scales of queries, keys, values; where there is none any tensor stands, and is not read."""
        return tuple(self.q if s is None else s for s in (self.q_scale, self.k_scale, self.v_scale))

    def constants(self, plan: SharedKVPlan) -> dict[str, Any]:
        """What the attention kernels are compiled for."""
        shape = plan.shape
        narrow_q = self.q.element_size() == 1
        return {
            "GROUP": shape.group,
            "NUM_KV_HEADS": shape.num_kv_heads,
            "HEAD_SIZE": shape.head_size,
            "PADDED_HEAD": shape.padded_head,
            "BLOCK_SIZE": shape.block_size,
            "QUANTIZED": self.keys.element_size() == 1,
            "QUANTIZED_Q": narrow_q,
            "WIDEN": interpreted() and self.q.dtype != torch.float32,
            "COMPUTE": COMPUTE_TYPES[self.compute_type if narrow_q else self.q.dtype],
        }


def attend_shared(plan: SharedKVPlan, layer: LayerInputs) -> None:
    """Partial results of every node of the plan. One launch for each tile of the device; they are empty where nothing is shared."""
    tiles = plan.tiles
    _launch_prefix(plan, layer, tiles.wide, plan.items, plan.counts[NUM_WIDE_ITEMS.value :])
    if tiles.narrow is not None:
        narrow_items = plan.items[plan.num_wide_places :]
        _launch_prefix(
            plan, layer, tiles.narrow, narrow_items, plan.counts[NUM_NARROW_ITEMS.value :]
        )


def _launch_prefix(
    plan: SharedKVPlan, layer: LayerInputs, tile: Tile, items: torch.Tensor, num_items: torch.Tensor
) -> None:
    attention_kernels.prefix_kernel[(tile.num_programs,)](
        layer.q, layer.keys, layer.values, layer.block_table, layer.query_start, items, num_items,
        plan.partials.values, plan.partials.lse, *layer.scales(), *layer.strides(), layer.softmax_scale,
        MAX_QUERY_LEN=plan.shape.max_query_len, TILE_M=tile.m, TILE_N=tile.n, ITEM_COLUMNS=NUM_ITEM_COLUMNS,
        **layer.constants(plan), num_warps=tile.num_warps, num_stages=tile.num_stages,
    )  # fmt: skip


def merge_into(
    plan: SharedKVPlan, query_start: torch.Tensor, out: torch.Tensor, own_lse: torch.Tensor
) -> None:
    """Fold the shared parts into ``out``.

    out: (tokens, heads, head size), each request's own part. own_lse: (heads, tokens), natural logarithm.
    """
    shape = plan.shape
    num_rows = query_start.shape[0] - 1
    tile_heads = min(MAX_TILE_HEADS, next_power_of_two(shape.num_heads))
    merge_kernels.merge_into_kernel[(num_rows * shape.max_query_len, triton.cdiv(shape.num_heads, tile_heads))](
        out, out.stride(0), out.stride(1), own_lse, own_lse.stride(0),
        plan.partials.values, plan.partials.lse, plan.nodes, plan.node_of_row, query_start,
        NUM_HEADS=shape.num_heads, MAX_QUERY_LEN=shape.max_query_len, HEAD_SIZE=shape.head_size,
        PADDED_HEAD=shape.padded_head, TILE_HEADS=tile_heads, PADDED=shape.padded_rows,
    )  # fmt: skip


def attend_own_and_merge(
    plan: SharedKVPlan, layer: LayerInputs, seq_lens: torch.Tensor, max_query_len: int,
    own: PartialBuffers, num_splits_own: int, out: torch.Tensor,
) -> None:  # fmt: skip
    """The portable way: own KV by our own kernel, then all parts into ``out`` (tokens, heads, head size).

    max_query_len: new tokens of the longest row of this step. own: room for ``num_splits_own`` partial results of each token.
    """
    shape = plan.shape
    num_rows = seq_lens.shape[0]
    tile_heads = min(MAX_TILE_HEADS, next_power_of_two(shape.num_heads))
    stripes = min(MAX_STRIPES, triton.cdiv(max_query_len * shape.group, OWN_TILE_M))
    attention_kernels.suffix_kernel[(num_rows, shape.num_kv_heads, num_splits_own * stripes)](
        layer.q, layer.keys, layer.values, layer.block_table, layer.query_start, seq_lens, plan.shared_lens,
        own.values, own.lse, *layer.scales(), *layer.strides(), layer.softmax_scale,
        TILE_M=OWN_TILE_M, TILE_N=plan.tiles.wide.n, NUM_SPLITS_OWN=num_splits_own, **layer.constants(plan),
        num_warps=OWN_WARPS, num_stages=OWN_STAGES,
    )  # fmt: skip
    grid = (num_rows, triton.cdiv(shape.num_heads, tile_heads), min(MAX_STRIPES, max_query_len))
    merge_kernels.merge_kernel[grid](
        out, out.stride(0), out.stride(1), own.values, own.lse, plan.partials.values, plan.partials.lse,
        plan.nodes, plan.node_of_row, layer.query_start,
        NUM_HEADS=shape.num_heads, MAX_QUERY_LEN=shape.max_query_len, HEAD_SIZE=shape.head_size,
        PADDED_HEAD=shape.padded_head, TILE_HEADS=tile_heads, NUM_SPLITS_OWN=num_splits_own, PADDED=shape.padded_rows,
    )  # fmt: skip
