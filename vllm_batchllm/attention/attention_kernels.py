# SPDX-License-Identifier: Apache-2.0
"""Attention over shared KV, and over what is left to each request; :mod:`merge_kernels` puts both together.

Partial results are float32 with a log-sum-exp in base 2. Online softmax over stretches of KV that are merged by their
log-sum-exp is FlashDecoding's; packing the queries of several requests into one tile is RelayAttention's (arXiv
2402.14808) and Hydragen's (arXiv 2402.05099), over every level of a trie here.
"""

from __future__ import annotations

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def _dot(a, b, WIDEN: tl.constexpr):
    # Triton's interpreter multiplies the raw bits of bfloat16: there, and only there, widen first.
    if WIDEN:
        return tl.dot(a.to(tl.float32), b.to(tl.float32), input_precision="ieee")
    else:
        return tl.dot(a, b, input_precision="ieee")


@triton.jit
def load_rows(start, offsets, ok, HEAD_SIZE: tl.constexpr, PADDED_HEAD: tl.constexpr):
    """Rows of HEAD_SIZE elements, padded with zeros to a power of two."""
    d = tl.arange(0, PADDED_HEAD)
    if HEAD_SIZE == PADDED_HEAD:
        return tl.load(start + offsets[:, None] + d[None, :], mask=ok[:, None], other=0.0)
    else:
        return tl.load(
            start + offsets[:, None] + d[None, :],
            mask=ok[:, None] & (d < HEAD_SIZE)[None, :],
            other=0.0,
        )


@triton.jit
def _load_keys(start, offsets, ok, HEAD_SIZE: tl.constexpr, PADDED_HEAD: tl.constexpr):
    """The same, as columns."""
    d = tl.arange(0, PADDED_HEAD)
    if HEAD_SIZE == PADDED_HEAD:
        return tl.load(start + offsets[None, :] + d[:, None], mask=ok[None, :], other=0.0)
    else:
        return tl.load(
            start + offsets[None, :] + d[:, None],
            mask=ok[None, :] & (d < HEAD_SIZE)[:, None],
            other=0.0,
        )


@triton.jit
def _store_partial(partials, partial_lse, place, ok, acc, high, total, v_scale, QUANTIZED: tl.constexpr,
                   HEAD_SIZE: tl.constexpr, PADDED_HEAD: tl.constexpr):  # fmt: skip
    """Normalised results and their log-sum-exp; of a query that saw nothing, zeros and minus infinity."""
    safe = tl.where(total == 0.0, 1.0, total)
    acc = acc / safe[:, None]
    if QUANTIZED:
        acc *= tl.load(v_scale)
    d = tl.arange(0, PADDED_HEAD)
    where = partials + place[:, None] * HEAD_SIZE + d[None, :]
    tl.store(where, acc, mask=ok[:, None] & (d < HEAD_SIZE)[None, :])
    tl.store(
        partial_lse + place, tl.where(total == 0.0, float("-inf"), high + tl.log2(safe)), mask=ok
    )


@triton.jit
def _attend(
    q, acc, high, total, keys, values, table, first, last, visible,
    key_block_stride, key_token_stride, value_block_stride, value_token_stride, scale,
    BLOCK_SIZE: tl.constexpr, HEAD_SIZE: tl.constexpr, PADDED_HEAD: tl.constexpr, TILE_N: tl.constexpr,
    CAUSAL: tl.constexpr, QUANTIZED: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    """Online softmax, in base 2, of queries (M, D) over the tokens ``[first, last)`` of one block table."""
    for start in range(first, last, TILE_N):
        token = start + tl.arange(0, TILE_N)
        ok = token < last
        block = tl.load(table + token // BLOCK_SIZE, mask=ok, other=0).to(tl.int64)
        within = token % BLOCK_SIZE
        k = _load_keys(
            keys, block * key_block_stride + within * key_token_stride, ok, HEAD_SIZE, PADDED_HEAD
        )
        if QUANTIZED:
            k = k.to(q.dtype)
        scores = _dot(q, k, WIDEN) * scale
        if CAUSAL:
            scores = tl.where(
                ok[None, :] & (token[None, :] < visible[:, None]), scores, float("-inf")
            )
        else:
            scores = tl.where(ok[None, :], scores, float("-inf"))
        new_high = tl.maximum(high, tl.max(scores, 1))
        against = tl.where(new_high == float("-inf"), 0.0, new_high)
        weights = tl.exp2(scores - against[:, None])
        keep = tl.exp2(high - against)
        total = total * keep + tl.sum(weights, 1)
        v = load_rows(
            values,
            block * value_block_stride + within * value_token_stride,
            ok,
            HEAD_SIZE,
            PADDED_HEAD,
        )
        if QUANTIZED:
            v = v.to(q.dtype)
        acc = acc * keep[:, None] + _dot(weights.to(q.dtype), v, WIDEN)
        high = new_high
    return acc, high, total


@triton.jit
def prefix_kernel(
    q, keys, values, block_table, query_start, items, num_items, partials, partial_lse, q_scale, k_scale, v_scale,
    table_stride, q_token_stride, q_head_stride, key_block_stride, key_head_stride, key_token_stride,
    value_block_stride, value_head_stride, value_token_stride, softmax_scale,
    GROUP: tl.constexpr, MAX_QUERY_LEN: tl.constexpr, NUM_KV_HEADS: tl.constexpr, HEAD_SIZE: tl.constexpr,
    PADDED_HEAD: tl.constexpr, BLOCK_SIZE: tl.constexpr, TILE_M: tl.constexpr, TILE_N: tl.constexpr,
    QUANTIZED: tl.constexpr, QUANTIZED_Q: tl.constexpr, WIDEN: tl.constexpr, COMPUTE: tl.constexpr,
    ITEM_COLUMNS: tl.constexpr,
):  # fmt: skip
    """Queries of all rows of a node, times the query heads of one KV head, against one stretch of shared KV.

    Persistent: each program takes every so many-th piece of work. A row of fewer than MAX_QUERY_LEN tokens leaves its
    last places empty.
    """
    total_work = tl.load(num_items) * NUM_KV_HEADS
    for work in range(tl.program_id(0), total_work, tl.num_programs(0)):
        kv_head = work % NUM_KV_HEADS
        item = items + (work // NUM_KV_HEADS) * ITEM_COLUMNS
        first_row = tl.load(item + 0)
        num_queries = tl.load(item + 1) * MAX_QUERY_LEN
        packed = tl.load(item + 2) + tl.arange(0, TILE_M)
        first = tl.load(item + 3)
        last = tl.load(item + 4)
        query = packed // GROUP
        in_node = query < num_queries
        row = first_row + query // MAX_QUERY_LEN
        token = tl.load(query_start + row, mask=in_node, other=0) + query % MAX_QUERY_LEN
        ok = in_node & (token < tl.load(query_start + row + 1, mask=in_node, other=0))
        head = kv_head * GROUP + packed % GROUP
        x = load_rows(
            q,
            token.to(tl.int64) * q_token_stride + head * q_head_stride,
            ok,
            HEAD_SIZE,
            PADDED_HEAD,
        )
        scale = softmax_scale * LOG2_E
        if QUANTIZED:
            scale *= tl.load(k_scale)
        if QUANTIZED_Q:
            scale *= tl.load(q_scale)
            x = x.to(COMPUTE)
        acc = tl.zeros([TILE_M, PADDED_HEAD], tl.float32)
        high = tl.full([TILE_M], float("-inf"), tl.float32)
        total = tl.zeros([TILE_M], tl.float32)
        acc, high, total = _attend(
            x, acc, high, total,
            keys + kv_head.to(tl.int64) * key_head_stride, values + kv_head.to(tl.int64) * value_head_stride,
            block_table + first_row.to(tl.int64) * table_stride, first, last, packed,
            key_block_stride, key_token_stride, value_block_stride, value_token_stride, scale,
            BLOCK_SIZE, HEAD_SIZE, PADDED_HEAD, TILE_N, False, QUANTIZED, WIDEN,
        )  # fmt: skip
        place = (tl.load(item + 5) + query).to(tl.int64) * (NUM_KV_HEADS * GROUP) + head
        _store_partial(
            partials,
            partial_lse,
            place,
            ok,
            acc,
            high,
            total,
            v_scale,
            QUANTIZED,
            HEAD_SIZE,
            PADDED_HEAD,
        )


@triton.jit
def suffix_kernel(
    q, keys, values, block_table, query_start, seq_lens, shared_lens, partials, partial_lse, q_scale, k_scale, v_scale,
    table_stride, q_token_stride, q_head_stride, key_block_stride, key_head_stride, key_token_stride,
    value_block_stride, value_head_stride, value_token_stride, softmax_scale,
    GROUP: tl.constexpr, NUM_KV_HEADS: tl.constexpr, HEAD_SIZE: tl.constexpr, PADDED_HEAD: tl.constexpr,
    BLOCK_SIZE: tl.constexpr, TILE_M: tl.constexpr, TILE_N: tl.constexpr, NUM_SPLITS_OWN: tl.constexpr,
    QUANTIZED: tl.constexpr, QUANTIZED_Q: tl.constexpr, WIDEN: tl.constexpr, COMPUTE: tl.constexpr,
):  # fmt: skip
    """Every request's own KV, causal inside its new tokens. Grid (rows, KV heads, NUM_SPLITS_OWN * stripes of queries)."""
    row = tl.program_id(0)
    kv_head = tl.program_id(1)
    split = tl.program_id(2) % NUM_SPLITS_OWN
    stripe = tl.program_id(2) // NUM_SPLITS_OWN
    num_stripes = tl.num_programs(2) // NUM_SPLITS_OWN
    first_token = tl.load(query_start + row)
    query_len = tl.load(query_start + row + 1) - first_token
    end = tl.load(seq_lens + row)
    begin = tl.load(shared_lens + row)
    each = ((end - begin + NUM_SPLITS_OWN - 1) // NUM_SPLITS_OWN + TILE_N - 1) // TILE_N * TILE_N
    first = tl.minimum(begin + split * each, end)
    last = tl.minimum(first + each, end)
    scale = softmax_scale * LOG2_E
    if QUANTIZED:
        scale *= tl.load(k_scale)
    if QUANTIZED_Q:
        scale *= tl.load(q_scale)
    for start in range(stripe * TILE_M, query_len * GROUP, num_stripes * TILE_M):
        packed = start + tl.arange(0, TILE_M)
        ok = packed < query_len * GROUP
        token = first_token + packed // GROUP
        head = kv_head * GROUP + packed % GROUP
        x = load_rows(
            q,
            token.to(tl.int64) * q_token_stride + head * q_head_stride,
            ok,
            HEAD_SIZE,
            PADDED_HEAD,
        )
        if QUANTIZED_Q:
            x = x.to(COMPUTE)
        acc = tl.zeros([TILE_M, PADDED_HEAD], tl.float32)
        high = tl.full([TILE_M], float("-inf"), tl.float32)
        total = tl.zeros([TILE_M], tl.float32)
        visible = end - query_len + packed // GROUP + 1
        acc, high, total = _attend(
            x, acc, high, total,
            keys + kv_head.to(tl.int64) * key_head_stride, values + kv_head.to(tl.int64) * value_head_stride,
            block_table + row.to(tl.int64) * table_stride, first, last, visible,
            key_block_stride, key_token_stride, value_block_stride, value_token_stride, scale,
            BLOCK_SIZE, HEAD_SIZE, PADDED_HEAD, TILE_N, True, QUANTIZED, WIDEN,
        )  # fmt: skip
        place = (token.to(tl.int64) * NUM_SPLITS_OWN + split) * (NUM_KV_HEADS * GROUP) + head
        _store_partial(
            partials,
            partial_lse,
            place,
            ok,
            acc,
            high,
            total,
            v_scale,
            QUANTIZED,
            HEAD_SIZE,
            PADDED_HEAD,
        )
