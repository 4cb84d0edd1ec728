# SPDX-License-Identifier: Apache-2.0
"""The backend for devices without FlashAttention: all parts by our own kernels, beside vLLM's Triton attention.

Nothing of vLLM's metadata is changed, and every step is planned; a step with prefills is attended by vLLM's kernel, a step of
decodes by ours. Which of both a captured graph holds was decided by its size, and either is right for any plan.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from vllm.v1.attention.backends.triton_attn import (
    TritonAttentionBackend,
    TritonAttentionImpl,
    TritonAttentionMetadataBuilder,
)

from vllm_batchllm.attention.custom_backend import CustomBackend
from vllm_batchllm.attention.launch import LayerInputs, attend_own_and_merge, attend_shared
from vllm_batchllm.attention.sharing import GroupPlan, default_rule, refuse_if_chosen, reserve

NUM_SPLITS_OWN = 4
"""Pieces of each request's own KV: few requests with much of their own keep a device busy."""


class SharedTritonBackend(CustomBackend, TritonAttentionBackend):
    """vLLM's Triton attention, with KV that several requests of a step share read once."""

    @staticmethod
    def get_impl_cls() -> type[SharedTritonImpl]:
        return SharedTritonImpl

    @staticmethod
    def get_builder_cls() -> type[SharedTritonMetadataBuilder]:
        return SharedTritonMetadataBuilder


class SharedTritonMetadataBuilder(TritonAttentionMetadataBuilder):
    """Plans each step beside vLLM's builder."""

    def __init__(
        self, kv_cache_spec: Any, layer_names: list[str], vllm_config: Any, device: torch.device
    ) -> None:
        super().__init__(kv_cache_spec, layer_names, vllm_config, device)
        self.group = GroupPlan(self, layer_names, SharedTritonMetadataBuilder)
        if self.group.can_share:
            self.supports_draft_decode_metadata_update = False

    def build(
        self, common_prefix_len: int, common_attn_metadata: Any, fast_build: bool = False
    ) -> Any:
        """As vLLM's; the metadata also has ``shared_kv``: the plan, or None."""
        metadata = super().build(common_prefix_len, common_attn_metadata, fast_build)
        metadata.shared_kv = self.group.make(common_attn_metadata, shift=False)
        return metadata


class SharedTritonImpl(TritonAttentionImpl):
    """One layer."""

    supports_dcp: ClassVar[bool] = False
    supports_pcp: ClassVar[bool] = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        refuse_if_chosen(self)
        self.rule = default_rule()
        self.partials = reserve(self, "partial results", self.rule.max_levels)
        self.own = reserve(self, "parts of own KV", NUM_SPLITS_OWN)

    def forward(
        self, layer: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, kv_cache: torch.Tensor,
        attn_metadata: Any, output: torch.Tensor, output_scale: Any = None, output_block_scale: Any = None,
    ) -> torch.Tensor:  # fmt: skip
        """As vLLM's: writes (tokens, heads * head size) into ``output``."""
        plan = getattr(attn_metadata, "shared_kv", None)
        if (
            plan is None
            or attn_metadata.max_query_len > plan.shape.max_query_len
            or output_scale is not None
            or output_block_scale is not None
        ):
            return super().forward(
                layer,
                query,
                key,
                value,
                kv_cache,
                attn_metadata,
                output,
                output_scale,
                output_block_scale,
            )
        num_tokens, seq_lens = attn_metadata.num_actual_tokens, attn_metadata.seq_lens
        keys, values = kv_cache.transpose(1, 2).split(self.head_size, dim=-1)
        quantized = keys.element_size() == 1
        if quantized and keys.dtype != self.fp8_dtype:
            keys, values = keys.view(self.fp8_dtype), values.view(self.fp8_dtype)
        q, out = query[:num_tokens], output[:num_tokens]
        inputs = LayerInputs(
            q, keys, values, attn_metadata.block_table, attn_metadata.query_start_loc[: len(seq_lens) + 1], self.scale,
            q_scale=layer._q_scale if q.element_size() == 1 else None,
            k_scale=layer._k_scale if quantized else None,
            v_scale=layer._v_scale if quantized else None,
            compute_type=out.dtype,
        )  # fmt: skip
        attend_shared(plan, inputs)
        longest = plan.shape.max_query_len
        attend_own_and_merge(plan, inputs, seq_lens, longest, self.own, NUM_SPLITS_OWN, out)
        return output
