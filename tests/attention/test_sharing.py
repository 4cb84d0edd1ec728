# SPDX-License-Identifier: Apache-2.0
"""Which steps of a group of layers are planned, and which are vLLM's own."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from layers import CPU
from steps import make_step

from vllm_batchllm.attention import sharing
from vllm_batchllm.attention.checks import CHECK
from vllm_batchllm.attention.grouping import GroupingRule
from vllm_batchllm.attention.plan import PartialBuffers
from vllm_batchllm.attention.shape import AttentionShape
from vllm_batchllm.attention.sharing import (
    MIN_ROWS,
    GroupPlan,
    most_rows,
    tokens_of_a_decode,
)

RULE = GroupingRule(8, 16)
ROWS = 24


def config(drafts: int = 0, graphs: int | None = None) -> Any:
    return SimpleNamespace(
        scheduler_config=SimpleNamespace(max_num_seqs=ROWS),
        compilation_config=SimpleNamespace(
            max_cudagraph_capture_size=graphs, static_forward_context={}
        ),
        speculative_config=SimpleNamespace(num_speculative_tokens=drafts) if drafts else None,
    )


class Builder:
    """As far as a plan looks at it."""

    device, block_size = CPU, 16

    def __init__(self, **layer: Any) -> None:
        self.vllm_config = config()
        plain = {
            "sinks": None,
            "alibi_slopes": None,
            "logits_soft_cap": 0,
            "sliding_window": (-1, -1),
            "attn_type": "decoder",
            "num_heads": 4,
            "num_kv_heads": 2,
            "head_size": 64,
            "rule": RULE,
        }
        shape = AttentionShape(4, 2, 64, 16, ROWS, 64)
        plain["partials"] = PartialBuffers.reserve(shape, ROWS * RULE.max_levels, CPU)
        layers = self.vllm_config.compilation_config.static_forward_context
        layers["layer"] = SimpleNamespace(impl=SimpleNamespace(**plain | layer))


class Derived(Builder):
    """What vLLM derives for layers with local attention, or for fast prefill."""


def step_of(num_rows: int, **more: Any) -> Any:
    table, seq_lens, query_start = make_step([(64, num_rows)]).tensors()
    found = {
        "num_reqs": num_rows,
        "block_table_tensor": table,
        "seq_lens": seq_lens,
        "query_start_loc": query_start,
        "causal": True,
    }
    return SimpleNamespace(**found | more)


def test_steps_large_enough_are_planned_with_one_plan() -> None:
    group = GroupPlan(Builder(), ["layer"], Builder)
    assert group.make(step_of(MIN_ROWS - 1), shift=True) is None and group.plan is None
    plan = group.make(step_of(MIN_ROWS), shift=True)
    assert plan is not None and plan.shared_lens[:MIN_ROWS].tolist() == [64] * MIN_ROWS
    assert group.make(step_of(MIN_ROWS + 2), shift=True) is plan


def test_sizes_of_graphs_that_change_behind_the_layers_change_nothing() -> None:
    builder = Builder()
    builder.vllm_config.compilation_config.max_cudagraph_capture_size = 512
    plan = GroupPlan(builder, ["layer"], Builder).make(step_of(12), shift=True)
    assert plan is not None and plan.shape.max_rows == ROWS


def test_steps_that_are_not_causal_are_vllms() -> None:
    group = GroupPlan(Builder(), ["layer"], Builder)
    for causal in (False, torch.ones(12, dtype=torch.int32)):
        assert group.make(step_of(12, causal=causal), shift=True) is None


@pytest.mark.parametrize(
    ("layer", "words"),
    [({"sinks": object()}, "attention sinks"), ({"logits_soft_cap": 30}, "a soft cap")],
)
def test_a_layer_that_cannot_share_leaves_its_group_to_vllm(
    layer: dict[str, Any], words: str, heard: pytest.LogCaptureFixture
) -> None:
    group = GroupPlan(Builder(**layer), ["layer"], Builder)
    assert group.make(step_of(12), shift=True) is None
    assert words in heard.text


def test_builders_derived_from_ours_do_not_plan(heard: pytest.LogCaptureFixture) -> None:
    """Their steps are not the engine's, or what is added to the metadata is lost: lengths would be short and nothing merged."""
    group = GroupPlan(Derived(), ["layer"], Builder)
    assert group.make(step_of(12), shift=True) is None
    assert "metadata of Derived" in heard.text


def test_layers_that_the_engine_does_not_know_are_left_to_vllm() -> None:
    group = GroupPlan(Builder(), ["layer", "another"], Builder)
    assert not group.can_share and group.make(step_of(12), shift=True) is None


def test_tables_are_checked_where_that_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CHECK, "1")
    group = GroupPlan(Builder(), ["layer"], Builder)
    step = step_of(12)
    assert group.make(step, shift=True) is not None
    step.block_table_tensor[3, 0] = 0
    with pytest.raises(ValueError, match="row 3 of this step"):
        group.make(step, shift=True)


def test_sizes_of_the_largest_step() -> None:
    assert most_rows(config()) == ROWS and most_rows(config(graphs=512)) == 512
    assert tokens_of_a_decode(config()) == 1 and tokens_of_a_decode(config(drafts=3)) == 4


@pytest.mark.parametrize("option", ["on", "auto"])
def test_only_on_refuses_a_model_whose_layers_cannot_share(
    option: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = SimpleNamespace(additional_config={"batchllm": {"shared_attention": option}})
    monkeypatch.setattr(sharing, "get_current_vllm_config", lambda: chosen)
    layers = Builder(sinks=object()).vllm_config.compilation_config.static_forward_context
    sharing.refuse_if_chosen(
        Builder().vllm_config.compilation_config.static_forward_context["layer"].impl
    )
    if option == "auto":
        sharing.refuse_if_chosen(layers["layer"].impl)
        return
    with pytest.raises(
        ValueError, match="'on' cannot be served here: this model has layers with attention sinks"
    ):
        sharing.refuse_if_chosen(layers["layer"].impl)
