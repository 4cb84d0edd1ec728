# SPDX-License-Identifier: Apache-2.0
"""Partial results of a request as one: by their log-sum-exp, its own part and those of the nodes around it."""

from __future__ import annotations

import triton
import triton.language as tl

from vllm_batchllm.attention.attention_kernels import LOG2_E, load_rows
from vllm_batchllm.attention.planning_kernels import (
    END_ROW,
    FIRST_PARTIAL,
    FIRST_ROW,
    NUM_SPLITS,
    PARENT,
)


@triton.jit
def _fold(
    acc,
    high,
    total,
    partials,
    partial_lse,
    place,
    ok,
    HEAD_SIZE: tl.constexpr,
    PADDED_HEAD: tl.constexpr,
):
    """One more partial result for each head."""
    lse = tl.load(partial_lse + place, mask=ok, other=float("-inf"))
    part = load_rows(partials, place * HEAD_SIZE, ok, HEAD_SIZE, PADDED_HEAD)
    new_high = tl.maximum(high, lse)
    against = tl.where(new_high == float("-inf"), 0.0, new_high)
    keep = tl.exp2(high - against)
    weight = tl.exp2(lse - against)
    return acc * keep[:, None] + part * weight[:, None], new_high, total * keep + weight


@triton.jit
def _fold_nodes(acc, high, total, partials, partial_lse, nodes, node, row, query, heads, ok,
                NUM_HEADS: tl.constexpr, MAX_QUERY_LEN: tl.constexpr, HEAD_SIZE: tl.constexpr,
                PADDED_HEAD: tl.constexpr, PADDED: tl.constexpr):  # fmt: skip
    """The partial results of a row's deepest node and of all around it."""
    while node >= 0:
        first_row = tl.load(nodes + FIRST_ROW * PADDED + node)
        rows = tl.load(nodes + END_ROW * PADDED + node) - first_row
        partial = tl.load(nodes + FIRST_PARTIAL * PADDED + node)
        splits = tl.load(nodes + NUM_SPLITS * PADDED + node)
        for split in range(splits):
            at = partial + (split * rows + row - first_row) * MAX_QUERY_LEN + query
            place = at.to(tl.int64) * NUM_HEADS + heads
            acc, high, total = _fold(
                acc, high, total, partials, partial_lse, place, ok, HEAD_SIZE, PADDED_HEAD
            )
        node = tl.load(nodes + PARENT * PADDED + node)
    return acc, high, total


@triton.jit
def merge_into_kernel(
    out, out_token_stride, out_head_stride, own_lse, own_lse_head_stride,
    partials, partial_lse, nodes, node_of_row, query_start,
    NUM_HEADS: tl.constexpr, MAX_QUERY_LEN: tl.constexpr, HEAD_SIZE: tl.constexpr, PADDED_HEAD: tl.constexpr,
    TILE_HEADS: tl.constexpr, PADDED: tl.constexpr,
):  # fmt: skip
    """Fold shared parts into ``out``, which holds each request's own part; its log-sum-exp is natural, (heads, tokens).

    Grid (rows * MAX_QUERY_LEN, tiles of heads): by rows, so nothing is assumed about where decodes stand in the batch.
    Rows that share nothing are left alone.
    """
    row = tl.program_id(0) // MAX_QUERY_LEN
    query = tl.program_id(0) % MAX_QUERY_LEN
    node = tl.load(node_of_row + row)
    token = tl.load(query_start + row) + query
    if (node >= 0) & (token < tl.load(query_start + row + 1)):
        heads = tl.program_id(1) * TILE_HEADS + tl.arange(0, TILE_HEADS)
        ok = heads < NUM_HEADS
        d = tl.arange(0, PADDED_HEAD)
        offsets = token.to(tl.int64) * out_token_stride + heads * out_head_stride
        acc = load_rows(out, offsets, ok, HEAD_SIZE, PADDED_HEAD).to(tl.float32)
        lse = own_lse + heads.to(tl.int64) * own_lse_head_stride + token
        high = tl.load(lse, mask=ok, other=0.0) * LOG2_E
        total = tl.full([TILE_HEADS], 1.0, tl.float32)
        acc, high, total = _fold_nodes(acc, high, total, partials, partial_lse, nodes, node, row, query, heads, ok,
                                       NUM_HEADS, MAX_QUERY_LEN, HEAD_SIZE, PADDED_HEAD, PADDED)  # fmt: skip
        result = (acc / total[:, None]).to(out.dtype.element_ty)
        where = out + offsets[:, None] + d[None, :]
        tl.store(where, result, mask=ok[:, None] & (d < HEAD_SIZE)[None, :])


@triton.jit
def merge_kernel(
    out, out_token_stride, out_head_stride, own, own_lse, partials, partial_lse, nodes, node_of_row, query_start,
    NUM_HEADS: tl.constexpr, MAX_QUERY_LEN: tl.constexpr, HEAD_SIZE: tl.constexpr, PADDED_HEAD: tl.constexpr,
    TILE_HEADS: tl.constexpr, NUM_SPLITS_OWN: tl.constexpr, PADDED: tl.constexpr,
):  # fmt: skip
    """``out`` from the suffix kernel's partial results and the shared ones.

    Grid (rows, tiles of heads, stripes of queries).
    """
    row = tl.program_id(0)
    heads = tl.program_id(1) * TILE_HEADS + tl.arange(0, TILE_HEADS)
    ok = heads < NUM_HEADS
    d = tl.arange(0, PADDED_HEAD)
    node = tl.load(node_of_row + row)
    first_token = tl.load(query_start + row)
    for query in range(
        tl.program_id(2), tl.load(query_start + row + 1) - first_token, tl.num_programs(2)
    ):
        token = (first_token + query).to(tl.int64)
        acc = tl.zeros([TILE_HEADS, PADDED_HEAD], tl.float32)
        high = tl.full([TILE_HEADS], float("-inf"), tl.float32)
        total = tl.zeros([TILE_HEADS], tl.float32)
        for split in range(NUM_SPLITS_OWN):
            place = (token * NUM_SPLITS_OWN + split) * NUM_HEADS + heads
            acc, high, total = _fold(
                acc, high, total, own, own_lse, place, ok, HEAD_SIZE, PADDED_HEAD
            )
        acc, high, total = _fold_nodes(acc, high, total, partials, partial_lse, nodes, node, row, query, heads, ok,
                                       NUM_HEADS, MAX_QUERY_LEN, HEAD_SIZE, PADDED_HEAD, PADDED)  # fmt: skip
        acc = acc / tl.where(total == 0.0, 1.0, total)[:, None]
        where = out + token * out_token_stride + heads[:, None] * out_head_stride + d[None, :]
        tl.store(where, acc.to(out.dtype.element_ty), mask=ok[:, None] & (d < HEAD_SIZE)[None, :])
