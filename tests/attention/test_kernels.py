# SPDX-License-Identifier: Apache-2.0
"""The kernels, in Triton's interpreter, against float64: no poison in any answer, every shape that is served."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from layers import SMALL, TWO_KINDS, LayerCase
from steps import make_step

from vllm_batchllm.attention.grouping import GroupingRule
from vllm_batchllm.attention.reference import grouped_attention
from vllm_batchllm.attention.shape import Tile, Tiles

from test_grouping import intervals  # isort: skip

TWO_GROUPS = [(128, 5), (16, 1), (192, 3), (32, 2)]
THREE_LEVELS = [(128, [(64, 3), (96, [(64, 2), (32, 3)])]), (256, 2)]
FOUR_LEVELS = [(64, [(32, [(32, [(32, 2), (48, 2)]), (64, 2)]), (16, 2)])]

FLOAT32 = {
    "two groups": LayerCase(make_step(TWO_GROUPS)),
    "two kinds of tiles": LayerCase(make_step([(128, 9), (128, 2), (64, 4)]), tiles=TWO_KINDS),
    "nothing shared": LayerCase(make_step([(64, 1), (64, 1), (96, 1)])),
    "two levels": LayerCase(make_step([(128, [(64, 3), (96, 4)])])),
    "three levels": LayerCase(make_step(THREE_LEVELS)),
    "four levels": LayerCase(make_step(FOUR_LEVELS), rule=GroupingRule(4, 16)),
    "four levels, two kept": LayerCase(make_step(FOUR_LEVELS), rule=GroupingRule(4, 16, 2)),
    "blocks of 32, head of 128": LayerCase(make_step([(256, 18)], block_size=32), 32, 4, 1, 128),
    "blocks of 128": LayerCase(make_step([(512, 4), (256, 3)], block_size=128), 128),
    "tiles of 64": LayerCase(
        make_step([(512, 20), (320, 6)]),
        num_kv_heads=1,
        tiles=Tiles(Tile(64, 64, 4, 1, 3), min_split=128),
    ),
    "tokens before heads": LayerCase(make_step([(128, 5), (192, 3)]), tokens_first=True),
    "padded rows of a graph": LayerCase(make_step([(128, 5), (192, 3)], num_padded=4)),
    "a plan for more rows": LayerCase(make_step([(128, 5), (192, 3)]), extra_rows=20),
    "a prefill chunk beside": LayerCase(
        make_step([(128, 6)], query_lens=(1, 1, 1, 1, 40, 40), own=(50, 90))
    ),
    "drafts": LayerCase(
        make_step([(128, 5), (192, 3)], query_lens=(3, 3, 2, 3), own=(5, 60)), max_query_len=3
    ),
    "shuffled rows": LayerCase(make_step([(128, 5), (192, 4)], shuffled=True)),
    "one query head a KV head": LayerCase(make_step([(128, 9)]), group=1, num_kv_heads=4),
    "seven": LayerCase(make_step([(128, 9)]), group=7, num_kv_heads=1),
    "eight": LayerCase(make_step([(128, 9)]), group=8, num_kv_heads=1),
    "head of 96, padded": LayerCase(make_step([(128, 5), (64, 3)]), head_size=96),
    "head of 80, padded": LayerCase(make_step([(128, 3)]), head_size=80),
    "head of 256": LayerCase(make_step([(128, 3)]), head_size=256, num_kv_heads=1),
    "many cuts": LayerCase(make_step([(1024, 3)]), tiles=replace(SMALL, min_split=32)),
}
NARROW_TYPES = {
    "float16": (LayerCase(make_step([(128, 5), (192, 3)]), dtype=torch.float16), 5e-4),
    "bfloat16": (LayerCase(make_step([(128, 5), (192, 3)]), dtype=torch.bfloat16), 5e-3),
    "float8 KV": (
        LayerCase(make_step([(128, 5), (192, 3)]), dtype=torch.bfloat16, kv_dtype=torch.float8_e4m3fn),
        1e-2,
    ),
    "float8 KV and queries": (
        LayerCase(
            make_step([(128, 5), (192, 3)]), dtype=torch.bfloat16, kv_dtype=torch.float8_e4m3fn, q_dtype=torch.float8_e4m3fn
        ),
        1e-2,
    ),
}  # fmt: skip


LONG = ("tiles of 64", "tokens before heads", "a plan for more rows", "shuffled rows", "one query head a KV head",
        "eight", "head of 80, padded", "two levels", "four levels, two kept", "blocks of 32, head of 128")  # fmt: skip
"""What differs from another case in one thing that is decided outside the kernels, or takes long."""


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.long] if n in LONG else []) for n in FLOAT32]
)
def test_float32_is_exact_to_its_rounding(name):
    case = FLOAT32[name]
    assert case.error(case.portable()) <= 2e-6
    assert case.error(case.beside_flash()) <= 2e-6


@pytest.mark.parametrize("name", NARROW_TYPES)
def test_narrow_types_to_theirs(name):
    case, tolerance = NARROW_TYPES[name]
    assert case.error(case.portable()) <= tolerance
    assert case.error(case.beside_flash()) <= tolerance


@pytest.mark.parametrize("num_splits", [2, pytest.param(4, marks=pytest.mark.long)])
def test_own_kv_in_several_pieces(num_splits):
    case = LayerCase(make_step([(128, 3), (16, 2)], own=(1, 200), query_lens=(1, 1, 30)))
    assert case.error(case.portable(num_splits)) <= 2e-6


@pytest.mark.parametrize("name", ["two groups", "three levels", "drafts", "a prefill chunk beside"])
def test_grouped_attention_in_torch_is_dense_attention(name):
    """The algorithm itself, in float64: nothing but the order of summation differs."""
    case = FLOAT32[name]
    layer, step = case.inputs(), case.step
    found = intervals(step, case.rule)
    out = grouped_attention(
        layer.q.double(), layer.keys.transpose(1, 2).double(), layer.values.transpose(1, 2).double(),
        layer.block_table, step.seq_lens.tolist(), step.query_start.tolist(), case.scale, found,
    )  # fmt: skip
    assert case.error(out) <= 1e-13


@pytest.mark.parametrize(
    "mutate", ["a node is dropped", "a length is off by one", "a parent is lost"]
)
def test_what_is_wrong_is_seen(mutate, monkeypatch):
    """The comparison is worth something: each of these mistakes moves an output by more than any tolerance here."""
    from layers import SharedKVPlan

    from vllm_batchllm.attention import planning_kernels as kernels

    case = FLOAT32["three levels"]
    build = SharedKVPlan.build

    def wrong(plan, *args, **kwargs):
        build(plan, *args, **kwargs)
        if mutate == "a node is dropped":
            plan.node_of_row[0] = -1
        elif mutate == "a length is off by one":
            plan.own_lens[1] -= 1
            plan.shared_lens[1] += 1
        else:
            plan.nodes[kernels.PARENT.value, int(plan.node_of_row[0])] = -1

    monkeypatch.setattr(SharedKVPlan, "build", wrong)
    assert case.error(case.portable()) > 1e-2
    assert case.error(case.beside_flash()) > 1e-2
