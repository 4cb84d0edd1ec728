# SPDX-License-Identifier: Apache-2.0
"""One attention layer of a decode step on random KV at random places, and the calls over it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from flash_calls import FlashCall

from vllm_batchllm.attention.grouping import GroupingRule
from vllm_batchllm.attention.launch import (
    LayerInputs,
    attend_own_and_merge,
    attend_shared,
    merge_into,
)
from vllm_batchllm.attention.plan import PartialBuffers, SharedKVPlan, partial_capacity
from vllm_batchllm.attention.reference import dense_attention
from vllm_batchllm.attention.shape import AttentionShape, Tiles
from vllm_batchllm.attention.tiles import INTERPRETED, tiles_of_device


@dataclass(frozen=True)
class Case:
    """Groups of equal rows: how many, of how many, sharing how many tokens, each with how many of its own."""

    groups: int
    degree: int
    prefix: int
    own: int

    def __str__(self) -> str:
        return f"{self.groups} x {self.degree}, {self.prefix:,} + {self.own}"


@dataclass(frozen=True)
class Setting:
    """Where and what: device, sizes of the layer."""

    device: torch.device
    dry: bool
    num_kv_heads: int = 8
    group: int = 4
    head_size: int = 128
    block_size: int = 16
    dtype: torch.dtype = torch.bfloat16

    @property
    def scale(self) -> float:
        return self.head_size**-0.5


class Layer:
    """Random KV at random places, and the calls over it."""

    def __init__(self, case: Case, setting: Setting, flash: FlashCall | None) -> None:
        self.case, self.setting, self.flash = case, setting, flash
        self.num_rows = case.groups * case.degree
        size, device = setting.block_size, setting.device
        shared, own = case.prefix // size, -(-(case.prefix % size + case.own) // size)
        num_blocks = 1 + case.groups * shared + self.num_rows * own
        ids = np.random.default_rng(0).permutation(np.arange(1, num_blocks)).astype(np.int32)
        table = np.zeros((self.num_rows, shared + own + 1), np.int32)
        table[:, :shared] = np.repeat(
            ids[: case.groups * shared].reshape(case.groups, shared), case.degree, 0
        )
        table[:, shared : shared + own] = ids[case.groups * shared :].reshape(self.num_rows, own)
        self.table = torch.from_numpy(table).to(device)
        self.lens = torch.full(
            (self.num_rows,), case.prefix + case.own, dtype=torch.int32, device=device
        )
        self.query_start = torch.arange(self.num_rows + 1, dtype=torch.int32, device=device)
        heads = setting.num_kv_heads * setting.group
        self.q = torch.randn(self.num_rows, heads, setting.head_size, device=device).to(
            setting.dtype
        )
        kv = torch.randn(
            num_blocks, setting.num_kv_heads, size, 2 * setting.head_size, device=device
        )
        self.keys, self.values = (
            kv.to(setting.dtype).transpose(1, 2).split(setting.head_size, dim=-1)
        )
        self.inputs = LayerInputs(
            self.q, self.keys, self.values, self.table, self.query_start, setting.scale
        )

    def plan(self, tiles: Tiles, rule: GroupingRule | None = None) -> SharedKVPlan:
        setting = self.setting
        rule = rule or (GroupingRule(8, 16) if setting.dry else GroupingRule())
        shape = AttentionShape(
            self.q.shape[1],
            setting.num_kv_heads,
            setting.head_size,
            setting.block_size,
            self.num_rows,
            self.table.shape[1],
        )
        partials = PartialBuffers.reserve(shape, partial_capacity(shape, rule), setting.device)
        return SharedKVPlan(shape, rule, tiles, partials)

    def build(self, plan: SharedKVPlan) -> None:
        plan.build(self.table, self.lens, self.query_start)

    def attend(self, plan: SharedKVPlan, out: torch.Tensor) -> None:
        """One layer on a plan: FlashAttention where there is one, our own kernel else."""
        if self.flash is None:
            own = PartialBuffers.reserve(plan.shape, self.num_rows, self.setting.device)
            attend_shared(plan, self.inputs)
            attend_own_and_merge(plan, self.inputs, self.lens, 1, own, 1, out)
            return
        longest = self.case.prefix + self.case.own
        lse = self.flash(self.inputs, plan.own_table, plan.own_lens, longest, out)
        attend_shared(plan, self.inputs)
        merge_into(plan, self.query_start, out, lse)

    def stock(self, out: torch.Tensor) -> Callable[[], None]:
        """Everything read by every row."""
        if self.flash is not None:
            longest, flash = self.case.prefix + self.case.own, self.flash
            return lambda: void(flash(self.inputs, self.table, self.lens, longest, out))
        plan = self.plan(self.shipped(), GroupingRule(min_tokens=10**9))
        self.build(plan)
        return lambda: self.attend(plan, out)

    def shipped(self) -> Tiles:
        if self.setting.dry:
            return INTERPRETED
        return tiles_of_device(self.setting.device, self.setting.head_size)

    def error(self, out: torch.Tensor) -> float:
        """Largest difference from float64, over the first rows and the last one."""
        rows = sorted({*range(min(self.num_rows, 4)), self.num_rows - 1})
        q, keys, values = (x.cpu().double() for x in (self.q[rows], self.keys, self.values))
        expected = dense_attention(
            q, keys.transpose(1, 2), values.transpose(1, 2), self.table[rows].cpu(),
            self.lens[rows].tolist(), list(range(len(rows) + 1)), self.setting.scale,
        )  # fmt: skip
        return float((out[rows].cpu().double() - expected).abs().max())


def void(_: Any) -> None:
    """Nothing of a result."""
