# SPDX-License-Identifier: Apache-2.0
"""The same attention in plain torch: what the kernels are held against, and what a CPU engine can run.

Two ways to one result: :func:`dense_attention` reads every row's KV whole, :func:`grouped_attention` reads shared KV once.
"""

from __future__ import annotations

import torch

from vllm_batchllm.attention.grouping import SharedIntervals


def gather_kv(cache: torch.Tensor, blocks: torch.Tensor) -> torch.Tensor:
    """Keys or values of some blocks as (KV heads, tokens, head size); cache: (blocks, KV heads, block size, head size)."""
    return cache[blocks.long()].transpose(0, 1).flatten(1, 2)


def attend(
    q: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    scale: float,
    visible: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention and its natural log-sum-exp.

    q: (queries, KV heads, group, head size). keys, values: (KV heads, tokens, head size). visible: (queries,), tokens that
    each query sees; None for all.

    Returns: (queries, KV heads, group, head size) and (queries, KV heads, group).
    """
    scores = torch.einsum("mhgd,hnd->mhgn", q, keys) * scale
    if visible is not None:
        hidden = torch.arange(keys.shape[1], device=q.device)[None] >= visible[:, None]
        scores = scores.masked_fill(hidden[:, None, None, :], float("-inf"))
    lse = torch.logsumexp(scores, -1)
    return torch.einsum("mhgn,hnd->mhgd", torch.exp(scores - lse[..., None]), values), lse


def merge(
    out: torch.Tensor, lse: torch.Tensor, more: torch.Tensor, more_lse: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Two results over different tokens as one over all of them."""
    both = torch.logaddexp(lse, more_lse)
    weights = torch.exp(lse - both), torch.exp(more_lse - both)
    return out * weights[0][..., None] + more * weights[1][..., None], both


def dense_attention(
    q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, block_table: torch.Tensor,
    seq_lens: list[int], query_start: list[int], scale: float,
) -> torch.Tensor:  # fmt: skip
    """Causal attention of every row over all of its KV. q: (tokens, heads, head size), as is what it returns."""
    num_kv_heads, block_size = keys.shape[1], keys.shape[2]
    out = torch.zeros_like(q)
    for row, length in enumerate(seq_lens):
        first, end = query_start[row], query_start[row + 1]
        if first == end:
            continue
        blocks = block_table[row, : -(-length // block_size)]
        mine = q[first:end].unflatten(1, (num_kv_heads, -1))
        visible = torch.arange(length - (end - first), length, device=q.device) + 1
        k, v = (gather_kv(cache, blocks)[:, :length] for cache in (keys, values))
        out[first:end] = attend(mine, k, v, scale, visible)[0].flatten(1, 2)
    return out


def grouped_attention(
    q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, block_table: torch.Tensor,
    seq_lens: list[int], query_start: list[int], scale: float, shared: SharedIntervals,
) -> torch.Tensor:  # fmt: skip
    """The same, with the KV of every node of ``shared`` read once for all of its rows."""
    num_kv_heads, block_size = keys.shape[1], keys.shape[2]
    queries = q.unflatten(1, (num_kv_heads, -1))
    out, lse = torch.zeros_like(queries), torch.zeros_like(queries[..., 0])
    for row, length in enumerate(seq_lens):
        first, end = query_start[row], query_start[row + 1]
        if first == end:
            continue
        start = int(shared.num_shared_blocks[row])
        blocks = block_table[row, start : -(-length // block_size)]
        own = length - start * block_size
        visible = torch.arange(own - (end - first), own, device=q.device) + 1
        k, v = (gather_kv(cache, blocks)[:, :own] for cache in (keys, values))
        out[first:end], lse[first:end] = attend(queries[first:end], k, v, scale, visible)
    for node in range(shared.num_nodes):
        first_row, end_row = int(shared.first_row[node]), int(shared.end_row[node])
        tokens = slice(query_start[first_row], query_start[end_row])
        blocks = block_table[first_row, int(shared.start_block[node]) : int(shared.end_block[node])]
        part = attend(queries[tokens], gather_kv(keys, blocks), gather_kv(values, blocks), scale)
        out[tokens], lse[tokens] = merge(out[tokens], lse[tokens], *part)
    return out.flatten(1, 2)
