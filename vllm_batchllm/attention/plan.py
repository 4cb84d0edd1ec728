# SPDX-License-Identifier: Apache-2.0
"""The plan of a step on the device: persistent buffers, and the launches that fill them.

No copy to the host, no synchronisation, no shape that depends on what is shared. The buffers keep their addresses, so
what a CUDA graph captured stays valid when the next step is planned.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from vllm_batchllm.attention import planning_kernels as kernels
from vllm_batchllm.attention.grouping import GroupingRule
from vllm_batchllm.attention.shape import AttentionShape, Tiles

CHUNK = 256
"""Blocks that a planning kernel looks at together."""


def partial_capacity(shape: AttentionShape, rule: GroupingRule) -> int:
    """Partial results that any step needs room for: one for every query of every level."""
    return shape.max_rows * shape.max_query_len * rule.max_levels


@dataclass(frozen=True)
class PartialBuffers:
    """Room for partial results, used by one layer after the other.

    values: (rows, heads, head size). lse: (rows, heads), in base 2. Both float32.
    """

    values: torch.Tensor
    lse: torch.Tensor

    @classmethod
    def reserve(cls, shape: AttentionShape, num_rows: int, device: torch.device) -> PartialBuffers:
        """Room for ``num_rows`` partial results of every head."""
        size = (num_rows, shape.num_heads)
        return cls(
            torch.zeros(*size, shape.head_size, dtype=torch.float32, device=device),
            torch.zeros(*size, dtype=torch.float32, device=device),
        )

    @property
    def num_rows(self) -> int:
        return int(self.lse.shape[0])

    @property
    def num_bytes(self) -> int:
        return sum(buffer.numel() * buffer.element_size() for buffer in (self.values, self.lse))


class SharedKVPlan:
    """What each node and each row of the current step reads.

    Attributes after :meth:`build`, all int32 on the device: ``node_of_row``, ``shared_lens`` and ``own_lens`` (rows,), in
    tokens; ``own_table`` (rows, blocks), each row's table from its first own block on; ``nodes`` and ``items`` as
    :mod:`planning_kernels` says; ``counts``, of which the last is the KV tokens that need not be read.
    """

    def __init__(
        self, shape: AttentionShape, rule: GroupingRule, tiles: Tiles, partials: PartialBuffers
    ) -> None:
        needed = partial_capacity(shape, rule)
        if partials.num_rows < needed:
            raise ValueError(f"room for {partials.num_rows} partial results, {needed} are needed")
        self.shape, self.rule, self.tiles, self.partials = shape, rule, tiles, partials
        device = partials.lse.device

        def table(*size: int) -> torch.Tensor:
            return torch.zeros(*size, dtype=torch.int32, device=device)

        self.num_wide_places = self._item_capacity(tiles.wide.m)
        num_narrow = self._item_capacity(tiles.narrow.m) if tiles.narrow else 0
        self.equal_blocks = table(shape.max_rows + 1)
        self.nodes = table(kernels.NUM_NODE_COLUMNS, shape.padded_rows)
        self.items = table(self.num_wide_places + num_narrow, kernels.NUM_ITEM_COLUMNS)
        self.counts = table(kernels.NUM_COUNTS)
        self.node_of_row, self.shared_lens, self.own_lens = (
            table(shape.max_rows) for _ in range(3)
        )
        self.own_table = table(shape.max_rows, shape.max_blocks)

    def _item_capacity(self, m: int) -> int:
        """Items of tiles of ``m`` queries: whole tiles of all partial results, and one broken one for each cut of a node."""
        partial_rows = self.partials.num_rows
        return partial_rows * self.shape.group // m + partial_rows // 2 + 1

    def build(
        self,
        block_table: torch.Tensor,
        seq_lens: torch.Tensor,
        query_start: torch.Tensor,
        *,
        shift: bool = True,
    ) -> None:
        """Plan a step.

        block_table: (rows, width) int32, innermost stride 1; what lies behind a row's blocks is ignored. seq_lens: (rows,)
        tokens of each row, the new ones included; 0 for padding. query_start: (rows + 1,) places of the new tokens. shift:
        also write ``own_table``.
        """
        num_rows = seq_lens.shape[0]
        shape, rule, width = self.shape, self.rule, min(block_table.shape[1], self.shape.max_blocks)
        if num_rows > shape.max_rows:
            raise ValueError(f"a step of {num_rows} rows; this plan holds {shape.max_rows}")
        sizes = {"BLOCK_SIZE": shape.block_size, "PADDED": shape.padded_rows}
        kernels.equal_blocks_kernel[(num_rows,)](
            block_table, block_table.stride(0), width, seq_lens, query_start, self.equal_blocks,
            MAX_QUERY_LEN=shape.max_query_len, BLOCK_SIZE=shape.block_size, CHUNK=CHUNK,
        )  # fmt: skip
        kernels.nodes_kernel[(num_rows,)](
            self.equal_blocks, self.nodes, num_rows,
            COST_TOKENS=rule.cost_tokens, MIN_TOKENS=rule.min_tokens, **sizes,
        )  # fmt: skip
        kernels.parents_kernel[(num_rows,)](self.nodes, num_rows, PADDED=shape.padded_rows)
        cut = self._cut_constants()
        kernels.splits_kernel[(1,)](
            self.nodes, self.counts, num_rows, self.partials.num_rows, NUM_KV_HEADS=shape.num_kv_heads,
            PROGRAMS=self.tiles.num_programs, MIN_SPLIT=self.tiles.min_split, MAX_SPLITS=self.tiles.max_splits,
            MAX_LEVELS=rule.max_levels, **cut, **sizes,
        )  # fmt: skip
        kernels.finish_kernel[(num_rows,)](
            self.nodes, self.items, self.num_wide_places, block_table, block_table.stride(0), width, seq_lens,
            self.node_of_row, self.shared_lens, self.own_lens, self.own_table, self.own_table.stride(0), num_rows,
            SHIFT=shift, CHUNK=CHUNK, ITEM_COLUMNS=kernels.NUM_ITEM_COLUMNS, **cut, **sizes,
        )  # fmt: skip

    def _cut_constants(self) -> dict[str, int]:
        return {
            "GROUP": self.shape.group,
            "MAX_QUERY_LEN": self.shape.max_query_len,
            "WIDE_M": self.tiles.wide.m,
            "NARROW_M": self.tiles.narrow_m,
            "NARROW_BELOW": self.tiles.narrow_below,
            "UNIT": max(self.tiles.unit, self.shape.block_size),
        }
