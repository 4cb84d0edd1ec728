# SPDX-License-Identifier: Apache-2.0
"""One attention layer of a step, by our kernels in Triton's interpreter and by a reference in float64."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from steps import Step

from vllm_batchllm.attention.grouping import GroupingRule
from vllm_batchllm.attention.launch import (
    LayerInputs,
    attend_own_and_merge,
    attend_shared,
    merge_into,
)
from vllm_batchllm.attention.plan import PartialBuffers, SharedKVPlan, partial_capacity
from vllm_batchllm.attention.reference import attend, dense_attention, gather_kv
from vllm_batchllm.attention.shape import AttentionShape, Tile, Tiles

CPU = torch.device("cpu")
SMALL = Tiles(wide=Tile(16, 32, 4, 1, 3), min_split=64)
"""Tiles for the interpreter: few programs, small stretches, so that small inputs meet every branch."""

TWO_KINDS = Tiles(
    wide=Tile(32, 32, 4, 1, 3), narrow=Tile(16, 16, 4, 1, 2), narrow_below=20, min_split=64
)
RULE = GroupingRule(cost_tokens=8, min_tokens=16)


@dataclass(frozen=True)
class LayerCase:
    """A layer, and what its step looks like."""

    step: Step
    block_size: int = 16
    group: int = 4
    num_kv_heads: int = 2
    head_size: int = 64
    dtype: torch.dtype = torch.float32
    kv_dtype: torch.dtype | None = None
    q_dtype: torch.dtype | None = None
    max_query_len: int = 1
    tokens_first: bool = False
    rule: GroupingRule = RULE
    tiles: Tiles = SMALL
    seed: int = 0
    extra_rows: int = 0
    made: dict[str, Any] = field(default_factory=dict)

    @property
    def num_heads(self) -> int:
        return self.group * self.num_kv_heads

    @property
    def scale(self) -> float:
        return self.head_size**-0.5

    def plan(self) -> SharedKVPlan:
        """A plan of this step, with poison where nothing is written."""
        shape = AttentionShape(
            self.num_heads, self.num_kv_heads, self.head_size, self.block_size,
            max_rows=len(self.step.seq_lens) + self.extra_rows, max_blocks=self.step.block_table.shape[1],
            max_query_len=self.max_query_len,
        )  # fmt: skip
        partials = PartialBuffers.reserve(shape, partial_capacity(shape, self.rule), CPU)
        partials.values.fill_(float("nan"))
        partials.lse.fill_(float("nan"))
        plan = SharedKVPlan(shape, self.rule, self.tiles, partials)
        for buffer in (plan.nodes, plan.items, plan.own_table, plan.equal_blocks):
            buffer.fill_(-12345)
        return plan

    def inputs(self) -> LayerInputs:
        """Random queries and KV; entries of tokens that no row has are NaN where the type has one."""
        random = torch.Generator().manual_seed(self.seed)
        q = torch.randn(self.step.num_tokens, self.num_heads, self.head_size, generator=random)
        size = (self.num_kv_heads, self.block_size)
        if self.tokens_first:
            size = size[::-1]
        kv = torch.randn(self.step.num_blocks, *size, 2 * self.head_size, generator=random)
        if not self.tokens_first:
            kv = kv.transpose(1, 2)
        table, _, query_start = self.step.tensors()
        kv = kv.to(self.kv_dtype or self.dtype)
        keys, values = kv.split(self.head_size, dim=-1)
        scales = [torch.tensor([s]) if t else None for s, t in
                  ((0.9, self.q_dtype), (0.7, self.kv_dtype), (1.3, self.kv_dtype))]  # fmt: skip
        q = q.to(self.q_dtype or self.dtype)
        return LayerInputs(
            q, keys, values, table, query_start, self.scale, *scales, compute_type=self.dtype
        )

    def expected(self) -> torch.Tensor:
        """Dense attention in float64."""
        layer = self.inputs()
        q, keys, values = (x.double() for x in (layer.q, layer.keys, layer.values))
        q, keys, values = (
            x if scale is None else x * scale
            for x, scale in ((q, layer.q_scale), (keys, layer.k_scale), (values, layer.v_scale))
        )
        return dense_attention(
            q, keys.transpose(1, 2), values.transpose(1, 2), layer.block_table,
            self.step.seq_lens.tolist(), self.step.query_start.tolist(), self.scale,
        )  # fmt: skip

    def portable(self, num_splits_own: int = 1) -> torch.Tensor:
        """All by our kernels."""
        plan, layer = self.plan(), self.inputs()
        table, seq_lens, query_start = self.step.tensors()
        plan.build(table, seq_lens, query_start, shift=False)
        attend_shared(plan, layer)
        own = PartialBuffers.reserve(plan.shape, self.step.num_tokens * num_splits_own, CPU)
        own.values.fill_(float("nan"))
        out = torch.full(layer.q.shape, float("nan"), dtype=self.dtype)
        longest = int(self.step.query_lens.max())
        attend_own_and_merge(plan, layer, seq_lens, longest, own, num_splits_own, out)
        return out

    def beside_flash(self) -> torch.Tensor:
        """Own KV by a stand-in with FlashAttention's interface, on shifted tables and shortened lengths."""
        plan, layer = self.plan(), self.inputs()
        table, seq_lens, query_start = self.step.tensors()
        plan.build(table, seq_lens, query_start)
        out, lse = flash_stand_in(layer, plan.own_table, plan.own_lens, self.dtype)
        attend_shared(plan, layer)
        merge_into(plan, query_start, out, lse)
        return out

    def error(self, out: torch.Tensor) -> float:
        """Largest difference from the reference."""
        return float((out.double() - self.expected()).abs().max())


def flash_stand_in(
    layer: LayerInputs, table: torch.Tensor, lens: torch.Tensor, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """Causal attention of each row over its own table: output, and the natural log-sum-exp (heads, tokens)."""
    num_kv_heads = layer.keys.shape[2]
    out = torch.full(layer.q.shape, float("nan"), dtype=dtype)
    lse = torch.full((layer.q.shape[1], layer.q.shape[0]), float("nan"))
    q, keys, values = (
        x.double() if scale is None else x.double() * scale
        for x, scale in (
            (layer.q, layer.q_scale),
            (layer.keys, layer.k_scale),
            (layer.values, layer.v_scale),
        )
    )
    for row, length in enumerate(lens[: len(layer.query_start) - 1].tolist()):
        first, end = layer.query_start[row : row + 2].tolist()
        if first == end:
            continue
        assert length >= end - first, "a row keeps its own new tokens"
        visible = torch.arange(length - (end - first), length) + 1
        blocks = table[row, : -(-length // layer.keys.shape[1])]
        k, v = (gather_kv(x.transpose(1, 2), blocks)[:, :length] for x in (keys, values))
        mine, its_lse = attend(
            q[first:end].unflatten(1, (num_kv_heads, -1)), k, v, layer.softmax_scale, visible
        )
        out[first:end] = mine.flatten(1, 2).to(dtype)
        lse[:, first:end] = its_lse.flatten(1).T.float()
    return out, lse
