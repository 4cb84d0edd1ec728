# SPDX-License-Identifier: Apache-2.0
"""Models of other kinds than a plain decoder, with random weights, small enough for a pair of engines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers

COMMON: dict[str, Any] = {
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    "initializer_range": 0.3,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "dtype": "float32",
}


def mixture_of_experts() -> transformers.PreTrainedModel:
    """Qwen3-MoE: four experts, two of which compute a token."""
    config = transformers.Qwen3MoeConfig(
        **COMMON,
        num_hidden_layers=2,
        head_dim=32,
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=64,
    )
    return transformers.Qwen3MoeForCausalLM(config)


def latent_attention() -> transformers.PreTrainedModel:
    """DeepSeek-V2: one latent vector a token in the place of keys and values (MLA)."""
    config = transformers.DeepseekV2Config(
        **COMMON,
        num_hidden_layers=2,
        first_k_dense_replace=2,
        n_routed_experts=4,
        n_shared_experts=1,
        num_experts_per_tok=2,
        moe_intermediate_size=64,
        kv_lora_rank=256,
        q_lora_rank=None,
        qk_nope_head_dim=32,
        qk_rope_head_dim=64,
        v_head_dim=32,
    )
    return transformers.DeepseekV2ForCausalLM(config)


def gated_delta_hybrid() -> transformers.PreTrainedModel:
    """Qwen3-Next: three layers that keep a state, one that keeps every token."""
    config = transformers.Qwen3NextConfig(
        **COMMON,
        num_hidden_layers=4,
        head_dim=32,
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=64,
        shared_expert_intermediate_size=64,
        linear_num_key_heads=2,
        linear_num_value_heads=2,
        linear_key_head_dim=64,
        linear_value_head_dim=64,
    )
    return transformers.Qwen3NextForCausalLM(config)


def encoder_decoder() -> transformers.PreTrainedModel:
    """Whisper: a decoder that looks at what an encoder made of sound."""
    config = transformers.WhisperConfig(
        vocab_size=512,
        d_model=64,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=64,
        decoder_ffn_dim=64,
        max_source_positions=64,
        max_target_positions=64,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=1,
    )
    return transformers.WhisperForConditionalGeneration(config)


def saved(make: Any, folder: Path) -> str:
    """The folder of the model, float32."""
    torch.manual_seed(0)
    make().to(torch.float32).save_pretrained(folder)
    return str(folder)
