# SPDX-License-Identifier: Apache-2.0
"""The same algorithm in vLLM's CPU engine, in torch: to see that it is right on whole batches, not to be fast.

vLLM's own kernel answers every row; rows of a group are then answered again, their shared KV for all of them at once. Only
when chosen (``'shared_attention': 'on'``), and in float32, whose layout of keys this reads.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from vllm.v1.attention.backends.cpu_attn import (
    CPUAttentionBackend,
    CPUAttentionBackendImpl,
    CPUAttentionMetadataBuilder,
)

from vllm_batchllm.attention.grouping import (
    GroupingRule,
    IntArray,
    SharedIntervals,
    leading_equal_blocks,
    readable_blocks,
    shared_intervals,
)
from vllm_batchllm.attention.limits import is_chosen
from vllm_batchllm.attention.reference import attend, gather_kv, merge

COLUMNS = "vec"
"""vLLM's name of the kernels that keep keys as columns, block by block."""


@dataclass(frozen=True, eq=False)
class SharedStep:
    """What the rows of a step share."""

    shared: SharedIntervals
    block_table: torch.Tensor
    seq_lens: IntArray
    query_start: IntArray


class SharedCPUBackend(CPUAttentionBackend):
    """vLLM's CPU attention where this is not chosen, and beside it where it is."""

    @staticmethod
    def get_impl_cls() -> type[SharedCPUImpl]:
        return SharedCPUImpl

    @staticmethod
    def get_builder_cls() -> type[SharedCPUMetadataBuilder]:
        return SharedCPUMetadataBuilder


class SharedCPUMetadataBuilder(CPUAttentionMetadataBuilder):
    """Adds ``shared_kv`` to the metadata: a :class:`SharedStep`, or None."""

    rule = GroupingRule()

    def build(
        self, common_prefix_len: int, common_attn_metadata: Any, fast_build: bool = False
    ) -> Any:
        metadata = super().build(common_prefix_len, common_attn_metadata, fast_build)
        metadata.shared_kv = self._find(common_attn_metadata) if self._can_share() else None
        return metadata

    def _can_share(self) -> bool:
        return is_chosen(self.vllm_config) and self.isa == COLUMNS and self.window_size == -1

    def _find(self, step: Any) -> SharedStep | None:
        num_rows = step.num_reqs
        table = step.block_table_tensor[:num_rows]
        seq_lens = step.seq_lens[:num_rows].numpy().astype(np.int64)
        query_start = step.query_start_loc[: num_rows + 1].numpy().astype(np.int64)
        readable = readable_blocks(seq_lens, np.diff(query_start), self.block_size)
        equal = leading_equal_blocks(table.numpy(), readable)
        shared = shared_intervals(equal, self.block_size, self.rule)
        return (
            SharedStep(shared, table.clone(), seq_lens, query_start) if shared.num_nodes else None
        )


class SharedCPUImpl(CPUAttentionBackendImpl):
    """One layer."""

    def forward(
        self, layer: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, kv_cache: torch.Tensor,
        attn_metadata: Any, output: torch.Tensor, output_scale: Any = None, output_block_scale: Any = None,
    ) -> torch.Tensor:  # fmt: skip
        """As vLLM's; rows of groups are answered by :mod:`reference`."""
        super().forward(
            layer,
            query,
            key,
            value,
            kv_cache,
            attn_metadata,
            output,
            output_scale,
            output_block_scale,
        )
        step: SharedStep | None = (
            None if attn_metadata is None else getattr(attn_metadata, "shared_kv", None)
        )
        plain = self.sinks is None and self.alibi_slopes is None and not self.logits_soft_cap
        if step is not None and plain and self.sliding_window == -1:
            self._answer_groups(step, query, *self._caches(kv_cache), output)
        return output

    def _caches(self, kv_cache: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values (blocks, KV heads, block size, head size); vLLM keeps keys as columns."""
        num_blocks, num_heads, block_size, _ = kv_cache.shape
        keys, values = kv_cache.view(num_blocks, num_heads, 2 * block_size, -1).chunk(2, dim=2)
        columns = keys.reshape(num_blocks, num_heads, self.head_size, block_size)
        return columns.transpose(2, 3), values

    def _answer_groups(
        self, step: SharedStep, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, output: torch.Tensor
    ) -> None:  # fmt: skip
        shared, block_size = step.shared, keys.shape[2]
        rows = np.flatnonzero(shared.node_of_row >= 0)
        tokens = torch.from_numpy(step.query_start[rows])
        q = (
            query[tokens].unflatten(1, (self.num_kv_heads, -1))
            if query.dim() == 3
            else self._heads(query[tokens])
        )
        out, lse = torch.empty_like(q), torch.empty_like(q[..., 0])

        def kv(row: int, start: int, end: int) -> tuple[torch.Tensor, torch.Tensor]:
            blocks = step.block_table[row, start:end]
            return gather_kv(keys, blocks), gather_kv(values, blocks)

        for n, row in enumerate(rows):
            start = int(shared.num_shared_blocks[row])
            num_own = int(step.seq_lens[row]) - start * block_size
            k, v = kv(row, start, start + -(-num_own // block_size))
            out[n : n + 1], lse[n : n + 1] = attend(
                q[n : n + 1], k[:, :num_own], v[:, :num_own], self.scale
            )
        place = {int(row): n for n, row in enumerate(rows)}
        for node in range(shared.num_nodes):
            first_row = int(shared.first_row[node])
            mine = slice(place[first_row], place[int(shared.end_row[node]) - 1] + 1)
            k, v = kv(first_row, int(shared.start_block[node]), int(shared.end_block[node]))
            out[mine], lse[mine] = merge(out[mine], lse[mine], *attend(q[mine], k, v, self.scale))
        output.view(output.shape[0], -1)[tokens] = out.flatten(1)

    def _heads(self, query: torch.Tensor) -> torch.Tensor:
        return query.view(len(query), self.num_kv_heads, -1, self.head_size)
