# SPDX-License-Identifier: Apache-2.0
"""The plan of :mod:`grouping`, made on the device: five small launches a step, no copy to the host.

Grids and buffers are the same whatever a step shares; that is said by values in memory only, so a captured CUDA graph
can be replayed. The node at boundary ``i`` lies between rows ``i - 1`` and ``i``; the table of nodes has one column after
the other, each of PADDED places.
"""

from __future__ import annotations

import triton
import triton.language as tl

FIRST_ROW = tl.constexpr(0)
END_ROW = tl.constexpr(1)
END_BLOCK = tl.constexpr(2)
KEPT = tl.constexpr(3)
START_BLOCK = tl.constexpr(4)
PARENT = tl.constexpr(5)
LEVEL = tl.constexpr(6)
FIRST_PARTIAL = tl.constexpr(7)
NUM_SPLITS = tl.constexpr(8)
FIRST_ITEM = tl.constexpr(9)
NUM_NODE_COLUMNS = 10
"""Columns of the table of nodes."""

NUM_ITEM_COLUMNS = 8
"""Columns of the table of work items: first row, rows, first packed query, token from, token to, first partial row.
Items of wide nodes come first, those of narrow nodes from a fixed place on."""

NUM_WIDE_ITEMS = tl.constexpr(0)
NUM_NARROW_ITEMS = tl.constexpr(1)
NUM_PARTIAL_ROWS = tl.constexpr(2)
NUM_TOKENS_SAVED = tl.constexpr(3)
NUM_COUNTS = 4
"""What a plan counts."""


@triton.jit
def _readable_blocks(
    row, seq_lens, query_start, MAX_QUERY_LEN: tl.constexpr, BLOCK_SIZE: tl.constexpr
):
    query_len = tl.load(query_start + row + 1) - tl.load(query_start + row)
    takes_part = (query_len >= 1) & (query_len <= MAX_QUERY_LEN)
    computed = tl.maximum(tl.load(seq_lens + row) - query_len, 0)
    return tl.where(takes_part, computed // BLOCK_SIZE, 0)


@triton.jit(do_not_specialize=["table_width"])
def equal_blocks_kernel(
    block_table, table_stride, table_width, seq_lens, query_start, equal_blocks,
    MAX_QUERY_LEN: tl.constexpr, BLOCK_SIZE: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """Leading blocks that row ``i`` has in common with the row before it; 0 at both ends. Grid (rows,)."""
    row = tl.program_id(0)
    if row == 0:
        tl.store(equal_blocks, 0)
        tl.store(equal_blocks + tl.num_programs(0), 0)
    else:
        here = _readable_blocks(row, seq_lens, query_start, MAX_QUERY_LEN, BLOCK_SIZE)
        before = _readable_blocks(row - 1, seq_lens, query_start, MAX_QUERY_LEN, BLOCK_SIZE)
        limit = tl.minimum(tl.minimum(here, before), table_width)
        table = block_table + row.to(tl.int64) * table_stride
        first_other = limit
        at = tl.zeros_like(limit)
        while at < first_other:
            block = at + tl.arange(0, CHUNK)
            a = tl.load(table + block, mask=block < limit, other=0)
            b = tl.load(table - table_stride + block, mask=block < limit, other=0)
            other = tl.where((a != b) & (block < limit), block, limit)
            first_other = tl.minimum(first_other, tl.min(other))
            at += CHUNK
        tl.store(equal_blocks + row, first_other)


@triton.jit(do_not_specialize=["num_rows"])
def nodes_kernel(
    equal_blocks, nodes, num_rows,
    COST_TOKENS: tl.constexpr, MIN_TOKENS: tl.constexpr, BLOCK_SIZE: tl.constexpr, PADDED: tl.constexpr,
):  # fmt: skip
    """Interval of the node at every boundary, and whether the rule keeps it. Grid (rows,)."""
    i = tl.program_id(0)
    j = tl.arange(0, PADDED)
    value = tl.load(equal_blocks + i)
    others = tl.load(equal_blocks + j, mask=j <= num_rows, other=0)
    smaller = (others < value) & (j <= num_rows)
    low = tl.max(tl.where(smaller & (j < i), j, 0))
    high = tl.min(tl.where(smaller & (j > i), j, num_rows))
    twins = tl.sum(((j > low) & (j < i) & (others == value)).to(tl.int32))
    around = tl.maximum(tl.load(equal_blocks + low), tl.load(equal_blocks + high))
    rows = high - low
    pays = (rows - 1) * (value - around) * BLOCK_SIZE >= COST_TOKENS * rows
    kept = (value > 0) & (twins == 0) & pays & (value * BLOCK_SIZE >= MIN_TOKENS)
    tl.store(nodes + FIRST_ROW * PADDED + i, low)
    tl.store(nodes + END_ROW * PADDED + i, high)
    tl.store(nodes + END_BLOCK * PADDED + i, value)
    tl.store(nodes + KEPT * PADDED + i, kept.to(tl.int32))


@triton.jit(do_not_specialize=["num_rows"])
def parents_kernel(nodes, num_rows, PADDED: tl.constexpr):
    """Where every node starts: behind the deepest kept node around it. Grid (rows,)."""
    i = tl.program_id(0)
    j = tl.arange(0, PADDED)
    real = j < num_rows
    first = tl.load(nodes + FIRST_ROW * PADDED + i)
    end = tl.load(nodes + END_ROW * PADDED + i)
    depth = tl.load(nodes + END_BLOCK * PADDED + i)
    firsts = tl.load(nodes + FIRST_ROW * PADDED + j, mask=real, other=0)
    ends = tl.load(nodes + END_ROW * PADDED + j, mask=real, other=0)
    depths = tl.load(nodes + END_BLOCK * PADDED + j, mask=real, other=0)
    kept = tl.load(nodes + KEPT * PADDED + j, mask=real, other=0)
    around = (kept == 1) & (firsts <= first) & (ends >= end) & (depths < depth)
    deepest = tl.max(tl.where(around, depths, -1))
    parent = tl.max(tl.where(around & (depths == deepest), j, -1))
    tl.store(nodes + START_BLOCK * PADDED + i, tl.maximum(deepest, 0))
    tl.store(nodes + PARENT * PADDED + i, parent)
    tl.store(nodes + LEVEL * PADDED + i, tl.sum(around.to(tl.int32)))


@triton.jit(do_not_specialize=["num_rows"])
def splits_kernel(
    nodes, counts, num_rows, partial_capacity,
    GROUP: tl.constexpr, NUM_KV_HEADS: tl.constexpr, MAX_QUERY_LEN: tl.constexpr, BLOCK_SIZE: tl.constexpr,
    WIDE_M: tl.constexpr, NARROW_M: tl.constexpr, NARROW_BELOW: tl.constexpr, UNIT: tl.constexpr,
    PROGRAMS: tl.constexpr, MIN_SPLIT: tl.constexpr, MAX_SPLITS: tl.constexpr, MAX_LEVELS: tl.constexpr,
    PADDED: tl.constexpr,
):  # fmt: skip
    """How each node is cut along its tokens, so that about PROGRAMS programs have work. One program.

    Partial results of all nodes together fit into ``partial_capacity`` rows: one for every row of a node is reserved,
    and what is over is shared by the cuts.
    """
    j = tl.arange(0, PADDED)
    real = j < num_rows
    level = tl.load(nodes + LEVEL * PADDED + j, mask=real, other=MAX_LEVELS)
    kept = (tl.load(nodes + KEPT * PADDED + j, mask=real, other=0) == 1) & (level < MAX_LEVELS)
    first = tl.load(nodes + FIRST_ROW * PADDED + j, mask=real, other=0)
    rows = tl.where(kept, tl.load(nodes + END_ROW * PADDED + j, mask=real, other=0) - first, 0)
    start = tl.load(nodes + START_BLOCK * PADDED + j, mask=real, other=0)
    end = tl.load(nodes + END_BLOCK * PADDED + j, mask=real, other=0)
    tokens = tl.where(kept, (end - start) * BLOCK_SIZE, 0)
    queries = rows * MAX_QUERY_LEN
    narrow = queries * GROUP < NARROW_BELOW
    m = tl.where(narrow, NARROW_M, WIDE_M)
    tiles = (queries * GROUP + m - 1) // m
    work = tl.sum(tiles * (tokens // UNIT + 1)) * NUM_KV_HEADS  # in units, far from overflow
    length = tl.maximum((work + PROGRAMS - 1) // PROGRAMS * UNIT, MIN_SPLIT)
    wanted = tl.minimum((tokens + length - 1) // length, MAX_SPLITS)
    more = tl.sum(queries * tl.maximum(wanted - 1, 0))
    spare = tl.maximum(partial_capacity - tl.sum(queries), 0)
    allowed = tl.where(
        more > spare, tl.maximum(wanted - 1, 0) * spare // tl.maximum(more, 1) + 1, wanted
    )
    each = (tokens + allowed - 1) // tl.maximum(allowed, 1)
    each = tl.maximum((each + UNIT - 1) // UNIT * UNIT, UNIT)
    splits = tl.where(kept, (tokens + each - 1) // each, 0)  # none is empty
    wide_items = tl.where(narrow, 0, tiles * splits)
    narrow_items = tl.where(narrow, tiles * splits, 0)
    before = tl.where(
        narrow, tl.cumsum(narrow_items, 0) - narrow_items, tl.cumsum(wide_items, 0) - wide_items
    )
    partials = queries * splits
    tl.store(nodes + KEPT * PADDED + j, kept.to(tl.int32), mask=real)
    tl.store(nodes + FIRST_PARTIAL * PADDED + j, tl.cumsum(partials, 0) - partials, mask=real)
    tl.store(nodes + NUM_SPLITS * PADDED + j, splits, mask=real)
    tl.store(nodes + FIRST_ITEM * PADDED + j, before, mask=real)
    tl.store(counts + NUM_WIDE_ITEMS, tl.sum(wide_items))
    tl.store(counts + NUM_NARROW_ITEMS, tl.sum(narrow_items))
    tl.store(counts + NUM_PARTIAL_ROWS, tl.sum(partials))
    tl.store(counts + NUM_TOKENS_SAVED, tl.sum(tokens * tl.maximum(rows - 1, 0)))


@triton.jit
def _write_items(
    nodes, items, num_wide_places, node,
    GROUP: tl.constexpr, MAX_QUERY_LEN: tl.constexpr, BLOCK_SIZE: tl.constexpr,
    WIDE_M: tl.constexpr, NARROW_M: tl.constexpr, NARROW_BELOW: tl.constexpr, UNIT: tl.constexpr,
    PADDED: tl.constexpr, ITEM_COLUMNS: tl.constexpr,
):  # fmt: skip
    """The items of a node; tiles of one stretch are neighbours, so that all but the first find its KV in the cache."""
    first_row = tl.load(nodes + FIRST_ROW * PADDED + node)
    rows = tl.load(nodes + END_ROW * PADDED + node) - first_row
    start = tl.load(nodes + START_BLOCK * PADDED + node) * BLOCK_SIZE
    end = tl.load(nodes + END_BLOCK * PADDED + node) * BLOCK_SIZE
    partial = tl.load(nodes + FIRST_PARTIAL * PADDED + node)
    splits = tl.load(nodes + NUM_SPLITS * PADDED + node)
    place = tl.load(nodes + FIRST_ITEM * PADDED + node)
    queries = rows * MAX_QUERY_LEN
    narrow = queries * GROUP < NARROW_BELOW
    m = tl.where(narrow, NARROW_M, WIDE_M)
    place += tl.where(narrow, num_wide_places, 0)
    tiles = (queries * GROUP + m - 1) // m
    each = ((end - start + splits - 1) // splits + UNIT - 1) // UNIT * UNIT
    for split in range(splits):
        for tile in range(tiles):
            item = items + (place + split * tiles + tile) * ITEM_COLUMNS
            tl.store(item + 0, first_row)
            tl.store(item + 1, rows)
            tl.store(item + 2, tile * m)
            tl.store(item + 3, start + split * each)
            tl.store(item + 4, tl.minimum(start + (split + 1) * each, end))
            tl.store(item + 5, partial + split * queries)


@triton.jit(do_not_specialize=["num_rows", "table_width"])
def finish_kernel(
    nodes, items, num_wide_places, block_table, table_stride, table_width, seq_lens,
    node_of_row, shared_lens, own_lens, own_table, own_stride, num_rows,
    GROUP: tl.constexpr, MAX_QUERY_LEN: tl.constexpr, BLOCK_SIZE: tl.constexpr, WIDE_M: tl.constexpr,
    NARROW_M: tl.constexpr, NARROW_BELOW: tl.constexpr, UNIT: tl.constexpr, SHIFT: tl.constexpr,
    PADDED: tl.constexpr, CHUNK: tl.constexpr, ITEM_COLUMNS: tl.constexpr,
):  # fmt: skip
    """Of program ``i``: the items of node ``i``, and what is left to row ``i``: its length and its table. Grid (rows,)."""
    row = tl.program_id(0)
    if tl.load(nodes + KEPT * PADDED + row) == 1:
        _write_items(nodes, items, num_wide_places, row, GROUP, MAX_QUERY_LEN, BLOCK_SIZE,
                     WIDE_M, NARROW_M, NARROW_BELOW, UNIT, PADDED, ITEM_COLUMNS)  # fmt: skip
    j = tl.arange(0, PADDED)
    real = j < num_rows
    firsts = tl.load(nodes + FIRST_ROW * PADDED + j, mask=real, other=0)
    ends = tl.load(nodes + END_ROW * PADDED + j, mask=real, other=0)
    depths = tl.load(nodes + END_BLOCK * PADDED + j, mask=real, other=0)
    kept = tl.load(nodes + KEPT * PADDED + j, mask=real, other=0)
    mine = (kept == 1) & (firsts <= row) & (ends > row)
    shared = tl.max(tl.where(mine, depths, 0))
    node = tl.max(tl.where(mine & (depths == shared), j, -1))
    seq_len = tl.load(seq_lens + row)
    tl.store(node_of_row + row, node)
    tl.store(shared_lens + row, shared * BLOCK_SIZE)
    tl.store(own_lens + row, seq_len - shared * BLOCK_SIZE)
    if SHIFT:
        own_blocks = tl.minimum((seq_len + BLOCK_SIZE - 1) // BLOCK_SIZE, table_width) - shared
        source = block_table + row.to(tl.int64) * table_stride + shared
        target = own_table + row.to(tl.int64) * own_stride
        for at in range(0, own_blocks, CHUNK):
            block = at + tl.arange(0, CHUNK)
            ids = tl.load(source + block, mask=block < own_blocks, other=0)
            tl.store(target + block, ids, mask=block < own_blocks)
