# SPDX-License-Identifier: Apache-2.0
"""The plan that the device makes: equal to the one in numpy, every token of every row read once, within its buffers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from layers import SMALL, TWO_KINDS, LayerCase
from steps import make_step
from test_grouping import GROUPS, RULES, intervals

from vllm_batchllm.attention import planning_kernels as kernels
from vllm_batchllm.attention.grouping import GroupingRule
from vllm_batchllm.attention.plan import PartialBuffers, SharedKVPlan, partial_capacity
from vllm_batchllm.attention.shape import AttentionShape, Tile, Tiles

SMALL_STEPS = st.builds(
    make_step,
    st.lists(GROUPS, min_size=1, max_size=2),
    seed=st.integers(0, 1000),
    query_lens=st.sampled_from([(1,), (1, 1, 1, 7)]),
    num_padded=st.integers(0, 2),
)
TILES = st.builds(
    lambda tiles, programs, splits, least: Tiles(
        Tile(tiles.wide.m, tiles.wide.n, 4, 1, programs),
        tiles.narrow,
        tiles.narrow_below,
        splits,
        least,
    ),
    st.sampled_from([SMALL, TWO_KINDS]),
    st.integers(1, 400),
    st.integers(1, 8),
    st.sampled_from([32, 64, 256]),
)


def work_of(plan, case):
    """How often the items of a plan read each token of each row."""
    times = np.zeros((len(case.step.seq_lens), int(case.step.seq_lens.max()) + 1), dtype=int)
    wide, narrow = (
        int(plan.counts[n.value]) for n in (kernels.NUM_WIDE_ITEMS, kernels.NUM_NARROW_ITEMS)
    )
    tiles = plan.tiles
    assert wide <= plan.num_wide_places and narrow <= len(plan.items) - plan.num_wide_places
    kinds = [(plan.items[:wide], tiles.wide.m)]
    kinds.append((plan.items[plan.num_wide_places : plan.num_wide_places + narrow], tiles.narrow_m))
    written = set()
    for items, m in kinds:
        for first_row, rows, start, first, last, partial, *_ in items.tolist():
            assert first < last
            for packed in range(start, min(start + m, rows * plan.shape.group)):
                place = (partial + packed // plan.shape.group, packed % plan.shape.group)
                assert place not in written and place[0] < plan.partials.num_rows
                written.add(place)
                if packed % plan.shape.group == 0:
                    times[first_row + packed // plan.shape.group, first:last] += 1
    assert len(written) == int(plan.counts[kernels.NUM_PARTIAL_ROWS.value]) * plan.shape.group
    return times


@settings(max_examples=25)
@given(SMALL_STEPS, RULES, TILES)
def test_the_device_plans_as_numpy_does(step, rule, tiles):
    case = LayerCase(step, rule=rule, tiles=tiles)
    plan = case.plan()
    plan.build(*step.tensors())
    found = intervals(step, rule)
    rows = len(step.seq_lens)
    assert (plan.shared_lens[:rows].numpy() == found.num_shared_blocks * 16).all()
    assert (plan.own_lens[:rows].numpy() == step.seq_lens - found.num_shared_blocks * 16).all()
    boundary = np.append(found.boundary, -1)
    assert (plan.node_of_row[:rows].numpy() == boundary[found.node_of_row]).all()
    kept = np.flatnonzero(plan.nodes[kernels.KEPT.value, :rows].numpy() == 1)
    assert kept.tolist() == sorted(found.boundary.tolist())
    for column, values in (
        (kernels.FIRST_ROW, found.first_row), (kernels.END_ROW, found.end_row), (kernels.LEVEL, found.level),
        (kernels.START_BLOCK, found.start_block), (kernels.END_BLOCK, found.end_block), (kernels.PARENT, boundary[found.parent]),
    ):  # fmt: skip
        assert (plan.nodes[column.value].numpy()[found.boundary] == values).all()
    saved = int(step.seq_lens.sum()) - found.kv_tokens_read(step.seq_lens, 16)
    assert int(plan.counts[kernels.NUM_TOKENS_SAVED.value]) == saved
    times = work_of(plan, case)
    for row in range(rows):
        shared = found.num_shared_blocks[row] * 16
        assert (times[row, :shared] == 1).all() and (times[row, shared:] == 0).all()
        blocks = -(-int(step.seq_lens[row]) // 16)
        mine = plan.own_table[row, : blocks - shared // 16].numpy()
        assert (mine == step.block_table[row, shared // 16 : blocks]).all()


def test_partial_results_fit_where_all_nodes_want_to_be_cut():
    """Eight cuts of four levels are more than there is room for: cuts are given up, rows are not."""
    step = make_step(
        [(1024, [(512, [(512, [(512, 2), (512, 2)]), (512, 2)]), (512, 2)])], own=(5, 9)
    )
    case = LayerCase(step, tiles=Tiles(Tile(16, 32, 4, 1, 10_000), min_split=32))
    plan = case.plan()
    plan.build(*step.tensors())
    work_of(plan, case)
    used = int(plan.counts[kernels.NUM_PARTIAL_ROWS.value])
    needed = int(sum(case.plan().shape.max_query_len * n for n in (8, 6, 4, 2, 2)))
    assert needed < used <= plan.partials.num_rows == 8 * 4


def test_a_table_narrower_than_its_lengths_is_not_read_past():
    step = make_step([(128, 3)])
    table, seq_lens, query_start = step.tensors()
    plan = LayerCase(step).plan()
    plan.build(table[:, :4], seq_lens + 16 * 1000, query_start)
    assert plan.shared_lens[:3].tolist() == [64, 64, 64]


def test_a_step_larger_than_the_plan_is_refused():
    step = make_step([(64, 5)])
    plan = LayerCase(make_step([(64, 3)])).plan()
    with pytest.raises(ValueError, match="a step of 5 rows; this plan holds 3"):
        plan.build(*step.tensors())


def test_too_little_room_for_partial_results_is_refused():
    shape = AttentionShape(8, 2, 64, 16, max_rows=10, max_blocks=8)
    rule = GroupingRule()
    partials = PartialBuffers.reserve(shape, partial_capacity(shape, rule) - 1, torch.device("cpu"))
    assert partials.num_bytes == shape.partial_bytes(39)
    with pytest.raises(ValueError, match="room for 39 partial results, 40 are needed"):
        SharedKVPlan(shape, rule, SMALL, partials)
