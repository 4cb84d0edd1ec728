# SPDX-License-Identifier: Apache-2.0
"""The trie of shared intervals against a search over all intervals of rows."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from steps import make_step

from vllm_batchllm.attention.grouping import (
    GroupingRule,
    leading_equal_blocks,
    readable_blocks,
    shared_intervals,
)

GROUPS = st.recursive(
    st.tuples(st.integers(0, 8).map(lambda n: 16 * n), st.integers(1, 6)),
    lambda inner: st.tuples(
        st.integers(0, 5).map(lambda n: 16 * n), st.lists(inner, min_size=1, max_size=3)
    ),
    max_leaves=6,
)
STEPS = st.builds(
    make_step,
    st.lists(GROUPS, min_size=1, max_size=4),
    seed=st.integers(0, 1000),
    query_lens=st.sampled_from([(1,), (1, 1, 1, 7)]),
    num_padded=st.integers(0, 2),
    shuffled=st.booleans(),
)
RULES = st.builds(GroupingRule, st.integers(0, 64), st.integers(0, 200), st.integers(1, 5))


def intervals(step, rule):
    readable = readable_blocks(step.seq_lens, step.query_lens, 16)
    return shared_intervals(leading_equal_blocks(step.block_table, readable), 16, rule)


def brute_force(step, rule):
    """Kept intervals as (first row, end row, blocks), by looking at every interval of rows."""
    readable = readable_blocks(step.seq_lens, step.query_lens, 16)
    num_rows = len(readable)

    def common(first, end):
        depth = min(readable[first:end])
        for block in range(depth):
            if len(set(step.block_table[first:end, block])) > 1:
                return block
        return depth

    depth = {(a, b): common(a, b) for a in range(num_rows) for b in range(a + 2, num_rows + 1)}

    def around(a, b):
        wider = [depth[i] for i in depth if i != (a, b) and i[0] <= a and i[1] >= b]
        return max(wider, default=0)

    kept = set()
    for (a, b), blocks in depth.items():
        outside = around(a, b)
        if blocks > outside:  # maximal: nobody beside it shares as much
            rows, tokens = b - a, (blocks - outside) * 16
            if (rows - 1) * tokens >= rule.cost_tokens * rows and blocks * 16 >= rule.min_tokens:
                kept.add((a, b, blocks))
    inside = {k: sum(o != k and o[0] <= k[0] and o[1] >= k[1] for o in kept) for k in kept}
    return {k for k in kept if inside[k] < rule.max_levels}


@given(STEPS, RULES)
def test_intervals_are_those_of_a_search_over_all(step, rule):
    found = intervals(step, rule)
    found.check_integrity(step.block_table)
    nodes = set(zip(found.first_row, found.end_row, found.end_block, strict=True))
    assert nodes == brute_force(step, rule)
    for row in range(len(step.seq_lens)):
        mine = [end for a, b, end in nodes if a <= row < b]
        assert found.num_shared_blocks[row] == max(mine, default=0)
        assert found.num_shared_blocks[row] * 16 <= max(
            step.seq_lens[row] - step.query_lens[row], 0
        )


@given(STEPS)
def test_without_a_cost_each_block_of_neighbours_is_read_once(step):
    """Neighbours in the order in which they were made: every distinct shared block is read once."""
    found = intervals(step, GroupingRule(cost_tokens=0, min_tokens=0, max_levels=99))
    readable = readable_blocks(step.seq_lens, step.query_lens, 16)
    runs = 0
    for row, num_blocks in enumerate(readable):
        same = leading_equal_blocks(step.block_table, readable)[row]
        runs += int(num_blocks) - int(same)
    own = int(step.seq_lens.sum()) - int(readable.sum()) * 16
    assert found.kv_tokens_read(step.seq_lens, 16) == runs * 16 + own


def test_a_deep_group_inside_a_shallow_one():
    step = make_step([(128, [(64, 3), (96, 2)])], own=(5, 6))
    found = intervals(step, GroupingRule(cost_tokens=8))
    nodes = zip(found.first_row, found.end_row, found.start_block, found.end_block, strict=True)
    assert [tuple(map(int, node)) for node in nodes] == [(0, 5, 0, 8), (0, 3, 8, 12), (3, 5, 8, 14)]
    assert found.parent.tolist() == [-1, 0, 0]
    assert found.level.tolist() == [0, 1, 1]
    assert found.kv_tokens_read(step.seq_lens, 16) == 128 + 64 + 96 + 5 * 5
    assert found.num_partial_rows == 10


def test_new_tokens_are_never_shared():
    """The block that a row writes in this step is its own, though a stale entry of the next row may equal it."""
    step = make_step([(64, 2)], own=(0, 1), query_lens=(1,))
    found = intervals(step, GroupingRule(cost_tokens=0, min_tokens=0))
    assert found.num_shared_blocks.tolist() == [3, 3]


def test_a_table_narrower_than_its_lengths_is_not_read_past():
    step = make_step([(128, 3)])
    equal = leading_equal_blocks(step.block_table[:, :4], np.array([9, 9, 9]))
    assert equal.tolist() == [0, 4, 4, 0]


@pytest.mark.parametrize("options", [{"cost_tokens": -1}, {"min_tokens": -1}, {"max_levels": 0}])
def test_a_rule_out_of_range_is_refused_by_name(options):
    (name,) = options
    with pytest.raises(ValueError, match=f"{name} = {options[name]}"):
        GroupingRule(**options)
