# SPDX-License-Identifier: Apache-2.0
"""Which rows of a step share which blocks: the trie of shared intervals, from block tables alone.

The reference of the plan that is made on the device (:mod:`planning_kernels`), and what the simulator counts with.
Rows that share are expected to be neighbours, as depth-first admission makes them; rows that share and are not are read
apart, which costs bytes and is never wrong.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True)
class GroupingRule:
    """Which shared intervals are worth an attention pass of their own.

    An interval of ``m`` rows and ``t`` shared tokens is read ``m - 1`` times less, and costs every row one partial result
    that is written and read again. It is kept where ``(m - 1) * t >= cost_tokens * m`` and it ends ``min_tokens`` or
    more from the start of the prompt. At most ``max_levels`` kept intervals lie within each other, the shallow ones first.
    """

    cost_tokens: int = 32
    min_tokens: int = 64
    max_levels: int = 4

    def __post_init__(self) -> None:
        for name, least in (("cost_tokens", 0), ("min_tokens", 0), ("max_levels", 1)):
            value = getattr(self, name)
            if value < least:
                raise ValueError(f"{name} = {value} of a grouping rule: at least {least}")


@dataclass(frozen=True, eq=False)
class SharedIntervals:
    """What the rows of a step share: nodes of a trie, and what is left to each row.

    A node is an interval of rows ``[first_row, end_row)`` whose block tables agree in ``[start_block, end_block)``; what
    lies before ``start_block`` is its parent's. Arrays over nodes are in the order of ``first_row``, parents before
    their children.

    boundary: the row at which the device's table has this node. parent: place of a node in these arrays, -1 for none.
    level: number of nodes around it. node_of_row: deepest node of a row, -1 for none. num_shared_blocks: blocks of a row
    that lie in nodes.
    """

    boundary: IntArray
    first_row: IntArray
    end_row: IntArray
    start_block: IntArray
    end_block: IntArray
    parent: IntArray
    level: IntArray
    node_of_row: IntArray
    num_shared_blocks: IntArray

    @property
    def num_nodes(self) -> int:
        return len(self.first_row)

    @property
    def num_partial_rows(self) -> int:
        """Partial results that are written, one for every row of every node."""
        return int((self.end_row - self.first_row).sum())

    def kv_tokens_read(self, seq_lens: IntArray, block_size: int) -> int:
        """KV tokens that the step reads: each node once, and of every row what is left."""
        shared = int((self.end_block - self.start_block).sum()) * block_size
        return shared + int(seq_lens.sum()) - int(self.num_shared_blocks.sum()) * block_size

    def check_integrity(self, block_table: IntArray) -> None:
        """Every row's blocks before ``num_shared_blocks`` lie in exactly one node each, and they are its own."""
        for row, node in enumerate(self.node_of_row):
            end = int(self.num_shared_blocks[row])
            while node >= 0:
                assert self.first_row[node] <= row < self.end_row[node]
                assert self.end_block[node] == end
                start = int(self.start_block[node])
                first = block_table[self.first_row[node], start:end]
                assert start < end and (first == block_table[row, start:end]).all()
                end, node = start, self.parent[node]
            assert end == 0


def leading_equal_blocks(block_table: IntArray, num_readable_blocks: IntArray) -> IntArray:
    """How many leading blocks each row has in common with the row before it.

    block_table: (rows, width), what lies behind a row's blocks is ignored. num_readable_blocks: full blocks of each row
    that were computed before this step; 0 for rows that take no part.

    Returns: (rows + 1,); the first and the last are 0.
    """
    num_rows, table_width = block_table.shape
    equal = np.zeros(num_rows + 1, dtype=np.int64)
    if num_rows < 2:
        return equal
    limit = np.minimum(num_readable_blocks[1:], num_readable_blocks[:-1]).clip(0, table_width)
    width = int(limit.max())
    if width == 0:
        return equal
    differ = block_table[1:, :width] != block_table[:-1, :width]
    differ |= np.arange(width) >= limit[:, None]
    equal[1:num_rows] = np.where(differ.any(1), differ.argmax(1), width)
    return equal


def readable_blocks(
    seq_lens: IntArray, query_lens: IntArray, block_size: int, max_query_len: int = 1
) -> IntArray:
    """Full blocks of each row computed before this step; 0 for padding and for rows of more than ``max_query_len`` tokens."""
    takes_part = (query_lens >= 1) & (query_lens <= max_query_len)
    return np.where(takes_part, np.maximum(seq_lens - query_lens, 0) // block_size, 0)


def shared_intervals(
    equal_blocks: IntArray, block_size: int, rule: GroupingRule
) -> SharedIntervals:
    """The trie of what :func:`leading_equal_blocks` found, of which those are kept that the rule finds worth it. O(rows)."""
    num_rows = len(equal_blocks) - 1
    values = equal_blocks.tolist()
    low, high, same = _borders(values)
    around = [low[i] if values[low[i]] >= values[high[i]] else high[i] for i in range(num_rows)]
    start = [0] * num_rows
    parent = [-1] * num_rows
    level = [0] * num_rows
    kept = [False] * num_rows

    def deepest_kept(boundary: int) -> int:
        if values[boundary] == 0:
            return -1
        node = same[boundary]
        return node if kept[node] else parent[node]

    for i in sorted(
        (i for i in range(num_rows) if values[i] and same[i] == i), key=values.__getitem__
    ):
        parent[i] = deepest_kept(around[i])
        if parent[i] >= 0:
            start[i] = values[parent[i]]
            level[i] = level[parent[i]] + 1
        rows = high[i] - low[i]
        tokens = (values[i] - values[around[i]]) * block_size
        pays = (rows - 1) * tokens >= rule.cost_tokens * rows
        kept[i] = pays and values[i] * block_size >= rule.min_tokens and level[i] < rule.max_levels
    nodes = sorted((i for i in range(num_rows) if kept[i]), key=lambda i: (low[i], values[i]))
    place = {node: n for n, node in enumerate(nodes)} | {-1: -1}
    leaf = [
        deepest_kept(row + 1 if values[row + 1] > values[row] else row) for row in range(num_rows)
    ]

    def array(numbers: list[int]) -> IntArray:
        return np.array(numbers, dtype=np.int64)

    return SharedIntervals(
        boundary=array(nodes),
        first_row=array([low[i] for i in nodes]),
        end_row=array([high[i] for i in nodes]),
        start_block=array([start[i] for i in nodes]),
        end_block=array([values[i] for i in nodes]),
        parent=array([place[parent[i]] for i in nodes]),
        level=array([level[i] for i in nodes]),
        node_of_row=array([place[node] for node in leaf]),
        num_shared_blocks=array([values[node] if node >= 0 else 0 for node in leaf]),
    )


def _borders(values: list[int]) -> tuple[list[int], list[int], list[int]]:
    """For each boundary: the last smaller one before it (or 0), the first smaller one behind it, the first equal one between."""
    num_rows = len(values) - 1
    low, high, same = [0] * num_rows, [num_rows] * num_rows, list(range(num_rows))
    latest = list(range(num_rows))
    rising: list[int] = []
    for i in range(num_rows + 1):
        while rising and values[rising[-1]] > values[i]:
            high[rising.pop()] = i
        if i == num_rows:
            break
        if rising and values[rising[-1]] == values[i]:
            same[i], low[i] = rising[-1], low[rising[-1]]
            latest[rising[-1]] = i
        else:
            low[i] = latest[rising[-1]] if rising else 0
            rising.append(i)
    for i in range(num_rows):
        high[i] = high[same[i]]
    return low, high, same
