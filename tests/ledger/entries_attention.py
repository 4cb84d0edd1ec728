# SPDX-License-Identifier: Apache-2.0
"""Shared attention: backends derived from vLLM's, how they are chosen, and what they are given in each step."""

from __future__ import annotations

from vllm_symbol import VLLMSymbol

UNTIL_SHARED = "vLLM reads KV that several requests share once in a step"
FLASH = "vllm.v1.attention.backends.flash_attn"
CPU = "vllm.v1.attention.backends.cpu_attn"
TRITON = "vllm.v1.attention.backends.triton_attn"
REGISTRY = "vllm.v1.attention.backends.registry"
QUESTIONS = (
    "supports_head_size",
    "supports_attn_type",
    "supports_sliding_window",
    "supports_mm_prefix",
    "supports_rswa",
    "supports_non_causal",
    "supports_batch_invariance",
    "supports_per_head_quant_scales",
    "supports_device_cpu_query_lens_mismatch",
)
FORWARD = (
    "layer",
    "query",
    "key",
    "value",
    "kv_cache",
    "attn_metadata",
    "output",
    "output_scale",
    "output_block_scale",
)

ATTENTION: tuple[VLLMSymbol, ...] = (
    VLLMSymbol(
        "vllm.config:set_current_vllm_config",
        why="`vllm-batchllm doctor` asks for the attention backend of a config without an engine",
        how="called, guarded",
        until=UNTIL_SHARED,
        parameters=("vllm_config",),
    ),
    VLLMSymbol(
        "vllm.v1.attention.selector:get_attn_backend",
        why="`vllm-batchllm doctor` says which backend an engine would get",
        how="called, guarded: a line less if it is gone",
        until=UNTIL_SHARED,
        parameters=("head_size", "dtype", "kv_cache_dtype", "use_mla"),
    ),
    VLLMSymbol(
        f"{FLASH}:FlashAttentionBackend",
        why="each request's own KV stays FlashAttention's",
        how="subclassed; names ours, and answers what it serves",
        until=UNTIL_SHARED,
    ),
    *(
        VLLMSymbol(
            f"{FLASH}:FlashAttentionBackend.{name}",
            why="vLLM refuses by name what a backend does not serve",
            how="overridden: what shared attention cannot serve",
            until=UNTIL_SHARED,
            source=""
            if name
            in (
                "supports_head_size",
                "supports_attn_type",
                "supports_sliding_window",
                "supports_mm_prefix",
                "supports_rswa",
                "supports_non_causal",
                "supports_batch_invariance",
                "supports_per_head_quant_scales",
            )
            else f"vllm.v1.attention.backend:AttentionBackend.{name}",
        )
        for name in QUESTIONS
    ),
    VLLMSymbol(
        f"{FLASH}:FlashAttentionMetadataBuilder.__init__",
        why="where the layers of a group are known",
        how="extended; reads num_heads_q, num_heads_kv, headdim, block_size, max_cudagraph_size",
        until=UNTIL_SHARED,
        parameters=("kv_cache_spec", "layer_names", "vllm_config", "device"),
    ),
    VLLMSymbol(
        f"{FLASH}:FlashAttentionMetadataBuilder.build",
        why="plan a step before FlashAttention's metadata are made",
        how="called with shorter lengths and block tables that begin behind what is shared",
        until=UNTIL_SHARED,
        parameters=("common_prefix_len", "common_attn_metadata", "fast_build"),
    ),
    VLLMSymbol(
        f"{FLASH}:FlashAttentionImpl.__init__",
        why="memory for partial results is taken before vLLM profiles",
        how="extended; reads num_heads, num_kv_heads, head_size, scale, kv_cache_dtype and what a layer asks for",
        until=UNTIL_SHARED,
    ),
    VLLMSymbol(
        f"{FLASH}:FlashAttentionImpl.forward",
        why="shared KV is attended beside each request's own",
        how="overridden; called where a step was not planned",
        until=UNTIL_SHARED,
        parameters=FORWARD,
    ),
    VLLMSymbol(
        f"{FLASH}:canonicalize_singleton_dim_strides",
        why="FlashAttention wants strides of KV as vLLM gives it",
        how="called",
        until=UNTIL_SHARED,
        source="vllm.utils.torch_utils:canonicalize_singleton_dim_strides",
    ),
    *(
        VLLMSymbol(
            f"{FLASH}:is_quantized_kv_cache",
            why="KV of 8 bits is viewed as such",
            how="called",
            until=UNTIL_SHARED,
            source=f"{module}:is_quantized_kv_cache",
            **version,
        )
        for module, version in (
            ("vllm.utils.torch_utils", {"below": "0.33"}),
            ("vllm.v1.kv_cache_interface", {"since": "0.33"}),
        )
    ),
    VLLMSymbol(
        "vllm.v1.attention.backend:CommonAttentionMetadata",
        why="what a step looks like",
        how="read, and replaced in part by its own method",
        until=UNTIL_SHARED,
        parameters=(
            "query_start_loc",
            "seq_lens",
            "num_reqs",
            "block_table_tensor",
            "causal",
            "_num_computed_tokens_cache",
        ),
    ),
    VLLMSymbol(
        "vllm.v1.attention.backend:CommonAttentionMetadata.replace",
        why="FlashAttention's metadata are made of what is left to each request",
        how="called",
        until=UNTIL_SHARED,
    ),
    VLLMSymbol(
        f"{REGISTRY}:AttentionBackendEnum.CUSTOM",
        why="a place for a backend that is known before plugins load",
        how="registered where shared attention is chosen, and set for full attention",
        until=UNTIL_SHARED,
        source=f"{REGISTRY}:AttentionBackendEnum",
    ),
    VLLMSymbol(
        f"{REGISTRY}:AttentionBackendEnum.CPU_ATTN",
        why="the CPU platform takes no other",
        how="registered anew where shared attention is chosen on a CPU",
        until=UNTIL_SHARED,
        source=f"{REGISTRY}:AttentionBackendEnum",
    ),
    VLLMSymbol(
        f"{REGISTRY}:register_backend",
        why="how a backend is found by name",
        how="called",
        until=UNTIL_SHARED,
        parameters=("backend", "class_path"),
    ),
    VLLMSymbol(
        "vllm.v1.attention.selector:_cached_get_attn_backend",
        why="it remembers what engines of this process were given before",
        how="its cache is cleared where shared attention is chosen",
        until="vLLM forgets backends that are registered anew",
    ),
    VLLMSymbol(
        "vllm.config.attention:AttentionConfig",
        why="hybrids keep their other layers' backends",
        how="backend_per_kind['full_attention'] is set on a finished config",
        until=UNTIL_SHARED,
        parameters=("backend", "backend_per_kind"),
    ),
    VLLMSymbol(
        f"{CPU}:CPUAttentionMetadataBuilder.build",
        why="what the rows of a step share, on a CPU",
        how="extended: adds it to the metadata",
        until=UNTIL_SHARED,
        parameters=("common_prefix_len", "common_attn_metadata", "fast_build"),
    ),
    VLLMSymbol(
        f"{CPU}:CPUAttentionBackendImpl.forward",
        why="rows of groups are answered again, in torch",
        how="extended; reads the layout that the kernels named 'vec' have",
        until=UNTIL_SHARED,
        parameters=FORWARD,
    ),
    VLLMSymbol(
        f"{TRITON}:TritonAttentionBackend",
        why="devices without FlashAttention",
        how="subclassed; names ours, and answers what it serves, as above",
        until=UNTIL_SHARED,
    ),
    VLLMSymbol(
        f"{TRITON}:TritonAttentionBackend.supports_alibi_sqrt",
        why="vLLM refuses by name what a backend does not serve",
        how="overridden: what shared attention cannot serve",
        until=UNTIL_SHARED,
    ),
    VLLMSymbol(
        f"{TRITON}:TritonAttentionMetadataBuilder.build",
        why="plan a step beside vLLM's metadata",
        how="extended",
        until=UNTIL_SHARED,
        parameters=("common_prefix_len", "common_attn_metadata", "fast_build"),
    ),
    VLLMSymbol(
        f"{TRITON}:TritonAttentionImpl.__init__",
        why="memory for partial results is taken before vLLM profiles",
        how="extended; reads num_heads, num_kv_heads, head_size, scale, fp8_dtype and what a layer asks for",
        until=UNTIL_SHARED,
    ),
    VLLMSymbol(
        f"{TRITON}:TritonAttentionImpl.forward",
        why="steps of decodes are attended by our kernels",
        how="overridden; called for all other steps",
        until=UNTIL_SHARED,
        parameters=FORWARD,
    ),
    *(
        VLLMSymbol(
            f"{module}:{name}.{method}",
            why="how vLLM gets the parts of a backend",
            how="overridden: ours",
            until=UNTIL_SHARED,
        )
        for module, name in (
            (FLASH, "FlashAttentionBackend"),
            (TRITON, "TritonAttentionBackend"),
            (CPU, "CPUAttentionBackend"),
        )
        for method in ("get_name", "get_impl_cls", "get_builder_cls")
    ),
    *(
        VLLMSymbol(
            f"{REGISTRY}:AttentionBackendEnum.{method}",
            why="a custom backend of somebody else's is left alone",
            how="called",
            until=UNTIL_SHARED,
        )
        for method in ("is_overridden", "get_path")
    ),
    VLLMSymbol(
        f"{CPU}:CPUAttentionBackend",
        why="the CPU's attention, with shared KV where that is chosen",
        how="subclassed",
        until=UNTIL_SHARED,
    ),
)
