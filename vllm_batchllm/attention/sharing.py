# SPDX-License-Identifier: Apache-2.0
"""What the backends for devices have in common: reserving memory with the layers, and a plan for each group of layers."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from vllm.config import get_current_vllm_config

from vllm_batchllm.attention.checks import check_step, checks_are_on
from vllm_batchllm.attention.grouping import GroupingRule
from vllm_batchllm.attention.limits import is_chosen, layer_reason
from vllm_batchllm.attention.plan import PartialBuffers, SharedKVPlan
from vllm_batchllm.attention.shape import AttentionShape
from vllm_batchllm.attention.tiles import tiles_of_device
from vllm_batchllm.log import get_logger

logger = get_logger(__name__)

MIN_ROWS = 9
"""Steps of fewer rows are vLLM's own, launches and all; decided by size, which is the same at capture and at replay."""

_reserved: weakref.WeakValueDictionary[Any, PartialBuffers] = weakref.WeakValueDictionary()
"""Buffers that all layers of a model share, as long as a layer lives; layers run one after the other."""


def default_rule() -> GroupingRule:
    """The rule that is shipped."""
    return GroupingRule()


def tokens_of_a_decode(vllm_config: Any) -> int:
    """New tokens of a decoding row at most: one, and its drafts."""
    speculative = vllm_config.speculative_config
    return 1 + (speculative.num_speculative_tokens if speculative is not None else 0)


def most_rows(vllm_config: Any) -> int:
    """Rows of the largest step, padding of graphs included."""
    graphs = vllm_config.compilation_config.max_cudagraph_capture_size or 0
    return int(max(vllm_config.scheduler_config.max_num_seqs, graphs))


def refuse_if_chosen(impl: Any) -> None:
    """Where shared attention was asked for by name, a layer of full attention that cannot share ends the start.

    Raises:
        ValueError: names what the layer has.
    """
    reason = layer_reason(impl)
    if reason is not None and is_chosen(get_current_vllm_config()):
        raise ValueError(
            f"batchllm option 'shared_attention' = 'on' cannot be served here: this model has layers with {reason}. "
            "Leave it out, or set it to 'off'"
        )


def reserve(impl: Any, kind: str, rows_per_row: int) -> PartialBuffers:
    """Room for partial results of a layer that is being made: ``rows_per_row`` for each query of the largest step.

    Layers are made before memory is profiled and builders after it, so what is reserved here is counted. Layers of equal
    shape have it in common; kind keeps buffers of different use apart.
    """
    config = get_current_vllm_config()
    shape = AttentionShape(
        impl.num_heads,
        impl.num_kv_heads,
        impl.head_size,
        block_size=1,
        max_rows=most_rows(config),
        max_blocks=1,
        max_query_len=tokens_of_a_decode(config),
    )
    num_rows = shape.max_rows * shape.max_query_len * rows_per_row
    device = torch.get_default_device()
    key = (kind, device, num_rows, impl.num_heads, impl.head_size)
    found = _reserved.get(key)
    if found is None:
        found = _reserved[key] = PartialBuffers.reserve(shape, num_rows, device)
        logger.info("Shared attention: %.0f MiB for %s", found.num_bytes / 2**20, kind)
    return found


class GroupPlan:
    """The plan of one group of layers, made with its first step; or the reasons why it has none."""

    def __init__(self, builder: Any, layer_names: list[str], known: type) -> None:
        """known: the class of builders that plan. vLLM derives others from it, for local attention and fast prefill, whose
        steps or metadata are not those of the engine."""
        layers = builder.vllm_config.compilation_config.static_forward_context
        self._layers = [layers[name] for name in layer_names if name in layers]
        reasons = {reason for layer in self._layers if (reason := layer_reason(layer.impl))}
        if len(self._layers) < len(layer_names):
            reasons.add("a layer that the engine does not know")
        if type(builder) is not known:
            reasons.add(f"metadata of {type(builder).__name__}")
        if reasons:
            logger.info(
                "KV that requests share is read apart in %s and its like: %s",
                layer_names[0],
                "; ".join(sorted(reasons)),
            )
        self.can_share = not reasons
        self.plan: SharedKVPlan | None = None
        self._builder = builder

    def make(self, step: Any, *, shift: bool) -> SharedKVPlan | None:
        """Plan a step on the device; None for those that are vLLM's own.

        step: vLLM's ``CommonAttentionMetadata``.
        """
        num_rows, table = step.num_reqs, step.block_table_tensor
        if not self.can_share or num_rows < MIN_ROWS or step.causal is not True:
            return None
        if self.plan is None:
            self.plan = self._new(table.shape[1])
        seq_lens = step.seq_lens[:num_rows]
        if checks_are_on():
            check_step(table[:num_rows], seq_lens, self._builder.block_size)
        self.plan.build(table, seq_lens, step.query_start_loc[: num_rows + 1], shift=shift)
        return self.plan

    def _new(self, table_width: int) -> SharedKVPlan:
        builder, impl = self._builder, self._layers[0].impl
        max_query_len = tokens_of_a_decode(builder.vllm_config)
        shape = AttentionShape(
            impl.num_heads,
            impl.num_kv_heads,
            impl.head_size,
            builder.block_size,
            # What was reserved decides: sizes of graphs may have been changed since the layers were made.
            max_rows=impl.partials.num_rows // (impl.rule.max_levels * max_query_len),
            max_blocks=table_width,
            max_query_len=max_query_len,
        )
        tiles = tiles_of_device(builder.device, shape.padded_head)
        return SharedKVPlan(shape, impl.rule, tiles, impl.partials)
