# SPDX-License-Identifier: Apache-2.0
"""The backend for CUDA: vLLM's FlashAttention for each request's own KV, our kernel for what is shared.

``build`` plans on the device and hands vLLM's own ``build`` shorter lengths and block tables that begin behind what is
shared; ``forward`` is the FlashAttention call with its log-sum-exp, the prefix kernels, and a merge in place. No decision
depends on data on the host, so full CUDA graphs stay on. Where the rule keeps nothing, the prefix kernels and the merge
find no work.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from vllm.v1.attention.backends import flash_attn
from vllm.v1.attention.backends.flash_attn import (
    FlashAttentionBackend,
    FlashAttentionImpl,
    FlashAttentionMetadataBuilder,
)

from vllm_batchllm.attention.custom_backend import CustomBackend
from vllm_batchllm.attention.launch import LayerInputs, attend_shared, merge_into
from vllm_batchllm.attention.sharing import GroupPlan, default_rule, refuse_if_chosen, reserve


class SharedFlashBackend(CustomBackend, FlashAttentionBackend):
    """FlashAttention, with KV that several requests of a step share read once.

    What it cannot serve is refused by vLLM, by name, from what :class:`CustomBackend` answers.
    """

    @staticmethod
    def get_impl_cls() -> type[SharedFlashImpl]:
        return SharedFlashImpl

    @staticmethod
    def get_builder_cls() -> type[SharedFlashMetadataBuilder]:
        return SharedFlashMetadataBuilder


class SharedFlashMetadataBuilder(FlashAttentionMetadataBuilder):
    """Plans each step before vLLM's builder sees it.

    A group with a layer that cannot share (:func:`limits.layer_reason`) is built as vLLM builds it.
    """

    supports_update_block_table: bool = False

    def __init__(
        self, kv_cache_spec: Any, layer_names: list[str], vllm_config: Any, device: torch.device
    ) -> None:
        super().__init__(kv_cache_spec, layer_names, vllm_config, device)
        self.group = GroupPlan(self, layer_names, SharedFlashMetadataBuilder)
        if self.group.can_share:
            # A draft that is built on the device would lengthen rows under a plan that is made.
            self.supports_draft_decode_metadata_update = False

    def build(
        self, common_prefix_len: int, common_attn_metadata: Any, fast_build: bool = False
    ) -> Any:
        """As vLLM's; the metadata also has ``shared_kv``: the plan, block tables, and places of the new tokens, or None."""
        step = common_attn_metadata
        plan = self.group.make(step, shift=True)
        if plan is None:
            metadata = super().build(common_prefix_len, step, fast_build)
            metadata.shared_kv = None
            return metadata
        num_rows = step.num_reqs
        own = step.replace(
            seq_lens=plan.own_lens[:num_rows],
            block_table_tensor=plan.own_table[:num_rows],
            _num_computed_tokens_cache=None,
        )
        metadata = super().build(0, own, fast_build)
        places = step.query_start_loc[: num_rows + 1]
        metadata.shared_kv = (plan, step.block_table_tensor, places)
        return metadata


class SharedFlashImpl(FlashAttentionImpl):
    """One layer: FlashAttention over own KV, then what is shared."""

    supports_dcp: bool = False
    supports_pcp: ClassVar[bool] = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        refuse_if_chosen(self)
        self.rule = default_rule()
        self.partials = reserve(self, "partial results", self.rule.max_levels)

    def forward(
        self, layer: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, kv_cache: torch.Tensor,
        attn_metadata: Any, output: torch.Tensor, output_scale: Any = None, output_block_scale: Any = None,
    ) -> torch.Tensor:  # fmt: skip
        """As vLLM's: writes (tokens, heads * head size) into ``output``."""
        shared = getattr(attn_metadata, "shared_kv", None)
        if shared is None or output_scale is not None or output_block_scale is not None:
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
        plan, table, query_start = shared
        num_tokens = attn_metadata.num_actual_tokens
        q, out = query[:num_tokens], output[:num_tokens]
        keys, values = self._caches(kv_cache)
        own_lse = self._attend_own(layer, q, keys, values, attn_metadata, out)
        quantized = keys.element_size() == 1
        inputs = LayerInputs(
            q, keys, values, table, query_start, self.scale,
            q_scale=layer._q_scale if q.element_size() == 1 else None,
            k_scale=layer._k_scale if quantized else None,
            v_scale=layer._v_scale if quantized else None,
            compute_type=out.dtype,
        )  # fmt: skip
        attend_shared(plan, inputs)
        merge_into(plan, query_start, out, own_lse)
        return output

    def _caches(self, kv_cache: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values, (blocks, block size, KV heads, head size) each."""
        caches = kv_cache.transpose(1, 2).split(self.head_size, dim=-1)
        fixed = [flash_attn.canonicalize_singleton_dim_strides(cache) for cache in caches]
        if flash_attn.is_quantized_kv_cache(self.kv_cache_dtype):
            fixed = [cache.view(flash_attn.current_platform.fp8_dtype()) for cache in fixed]
        return fixed[0], fixed[1]

    def _attend_own(
        self, layer: Any, q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, metadata: Any, out: torch.Tensor
    ) -> torch.Tensor:  # fmt: skip
        """Each request's own KV, into ``out``; returns the natural log-sum-exp (heads, tokens)."""
        scale_shape = (metadata.query_start_loc.shape[0] - 1, self.num_kv_heads)
        q_scale = layer._q_scale.expand(scale_shape) if self.supports_quant_query_input else None
        _, lse = flash_attn.flash_attn_varlen_func(
            q=q,
            k=keys,
            v=values,
            out=out,
            cu_seqlens_q=metadata.query_start_loc,
            max_seqlen_q=metadata.max_query_len,
            seqused_k=metadata.seq_lens,
            max_seqlen_k=metadata.max_seq_len,
            softmax_scale=self.scale,
            causal=True,
            block_table=metadata.block_table,
            scheduler_metadata=metadata.scheduler_metadata,
            fa_version=self.vllm_flash_attn_version,
            q_descale=q_scale,
            k_descale=layer._k_scale.expand(scale_shape),
            v_descale=layer._v_scale.expand(scale_shape),
            num_splits=metadata.max_num_splits,
            return_softmax_lse=True,
        )
        return lse
