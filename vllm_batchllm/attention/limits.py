# SPDX-License-Identifier: Apache-2.0
"""What the backend cannot serve, said by name: of an engine before it starts, of a layer when it is made."""

from __future__ import annotations

from typing import Any

from vllm_batchllm.config import SECTION

ATTENDING_DRAFTS_ARE_NOT = ("ngram", "ngram_gpu", "suffix", "custom")
"""Methods of speculative decoding whose drafts need no attention of their own."""


def layer_reason(impl: Any) -> str | None:
    """Why a layer of vLLM's FlashAttention cannot share KV, or None."""
    if impl.sinks is not None:
        return "attention sinks"
    if impl.alibi_slopes is not None:
        return "ALiBi slopes"
    if impl.logits_soft_cap:
        return f"a soft cap of the logits ({impl.logits_soft_cap:g})"
    if tuple(impl.sliding_window) != (-1, -1):
        return f"a sliding window of {impl.sliding_window[0] + 1} tokens"
    if impl.attn_type != "decoder":
        return f"attention of type {impl.attn_type}"
    if getattr(impl, "fa4_hd256", False):
        return "FlashAttention 4 with heads of 256"
    return None


def is_chosen(vllm_config: Any) -> bool:
    """Whether an engine asked for shared attention by name."""
    options = (vllm_config.additional_config or {}).get(SECTION) or {}
    return bool(options.get("shared_attention") == "on")


def engine_reasons(vllm_config: Any) -> list[str]:
    """Why no layer of an engine can share KV; empty if none is known before its layers are made.

    What vLLM would refuse a backend for is asked here first, so that ``auto`` steps back where ``on`` is refused.
    """
    from vllm import envs

    model, parallel = vllm_config.model_config, vllm_config.parallel_config
    found = []
    if model.use_mla:
        found.append("multi-head latent attention (MLA)")
    if model.is_mm_prefix_lm:
        found.append("attention in both directions inside images")
    if model.rswa_window is not None:
        found.append(f"a window behind the prompt (R-SWA of {model.rswa_window} tokens)")
    if vllm_config.attention_config.use_non_causal:
        found.append("attention that is not causal")
    if envs.VLLM_BATCH_INVARIANT:
        found.append("VLLM_BATCH_INVARIANT = 1")
    for name in ("decode_context_parallel_size", "prefill_context_parallel_size"):
        if getattr(parallel, name) > 1:
            found.append(f"{name} = {getattr(parallel, name)}")
    if parallel.enable_dbo:
        found.append("enable_dbo = True")
    speculative = vllm_config.speculative_config
    if speculative is not None and speculative.method not in ATTENDING_DRAFTS_ARE_NOT:
        found.append(
            f"speculative decoding by {speculative.method!r}, whose drafts attend themselves"
        )
    cache_dtype = vllm_config.cache_config.cache_dtype
    if cache_dtype not in ("auto", "float16", "bfloat16", "fp8", "fp8_e4m3"):
        found.append(f"kv_cache_dtype = {cache_dtype!r}")
    return found + _asked_for_another(vllm_config.attention_config)


def _asked_for_another(attention_config: Any) -> list[str]:
    chosen = [attention_config.backend, attention_config.backend_per_kind.get("full_attention")]
    return [
        f"attention backend {backend.name}, chosen by you"
        for backend in chosen
        if backend is not None and backend.name not in ("FLASH_ATTN", "CUSTOM")
    ]
