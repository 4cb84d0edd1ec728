# SPDX-License-Identifier: Apache-2.0
"""What the backends for devices answer to vLLM, which refuses by name what a backend does not serve."""

from __future__ import annotations

from vllm_batchllm.attention.shape import HEAD_SIZES


class CustomBackend:
    """To be named before the class of vLLM's that a backend is derived from."""

    @staticmethod
    def get_name() -> str:
        return "CUSTOM"  # a member of vLLM's enum, and known before plugins load

    @classmethod
    def supports_head_size(cls, head_size: int) -> bool:
        return head_size in HEAD_SIZES

    @classmethod
    def supports_attn_type(cls, attn_type: str) -> bool:
        return attn_type == "decoder"

    @classmethod
    def supports_sliding_window(cls) -> bool:
        return False

    @classmethod
    def supports_mm_prefix(cls) -> bool:
        return False

    @classmethod
    def supports_rswa(cls) -> bool:
        return False

    @classmethod
    def supports_non_causal(cls) -> bool:
        return False

    @classmethod
    def supports_batch_invariance(cls) -> bool:
        return False

    @classmethod
    def supports_per_head_quant_scales(cls) -> bool:
        return False

    @classmethod
    def supports_alibi_sqrt(cls) -> bool:
        return False

    @classmethod
    def supports_device_cpu_query_lens_mismatch(cls) -> bool:
        return False
