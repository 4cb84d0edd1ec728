# SPDX-License-Identifier: Apache-2.0
"""Model folders under the hub names that vLLM's tests ask for, made here from nothing.

A folder `facebook/opt-125m` in the working directory is found before any hub. Most tests read
only the configuration; where a test runs a model, the folder holds a small one with random
weights. The tokenizer knows one token for each byte.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

# As the published models where it matters to a test: how long a prompt may be, and the size.
CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "facebook/opt-350m": ("OPTConfig", {"hidden_size": 1024, "num_hidden_layers": 24}),
    "Qwen/Qwen1.5-7B": ("Qwen2Config", {"architectures": ["Qwen2ForCausalLM"]}),
    "llava-hf/llava-1.5-7b-hf": ("LlavaConfig", {}),
    "Qwen/Qwen2.5-VL-3B-Instruct": ("Qwen2_5_VLConfig", {}),
    "Qwen/Qwen2-VL-2B-Instruct": ("Qwen2VLConfig", {}),
    "Qwen/Qwen3.5-0.8B": ("Qwen3_5Config", {}),
    "google/gemma-3-1b-it": ("Gemma3TextConfig", {}),
    "deepseek-ai/DeepSeek-V2-Lite": ("DeepseekV2Config", {}),
    "tiiuae/falcon-mamba-7b": ("FalconMambaConfig", {}),
    "tiiuae/Falcon-H1-0.5B-Instruct": ("FalconH1Config", {}),
    "state-spaces/mamba-130m-hf": ("MambaConfig", {}),
    "state-spaces/mamba-1.4b-hf": ("MambaConfig", {"hidden_size": 2048, "num_hidden_layers": 48}),
    "Qwen/Qwen2.5-1.5B-Instruct": ("Qwen2Config", {"architectures": ["Qwen2ForCausalLM"]}),
    "Qwen/Qwen3-1.7B": ("Qwen3Config", {"architectures": ["Qwen3ForCausalLM"]}),
    "openai-community/gpt2": ("GPT2Config", {}),
}
SMALL = {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
SMALL_LLAMA = SMALL | {
    "intermediate_size": 256,
    "num_key_value_heads": 2,
    "tie_word_embeddings": True,
}
LLAMA_32 = ("LlamaConfig", SMALL_LLAMA | {"vocab_size": 128256})
TINY_LLAMA = ("LlamaConfig", SMALL_LLAMA | {"vocab_size": 32000})
RUNNABLE: dict[str, tuple[str, dict[str, Any]]] = {
    "facebook/opt-125m": ("OPTConfig", SMALL | {"ffn_dim": 256, "word_embed_proj_dim": 128}),
    "hmellor/tiny-random-LlamaForCausalLM": TINY_LLAMA,
    "JackFram/llama-160m": TINY_LLAMA,
    "HuggingFaceTB/SmolLM2-135M-Instruct": TINY_LLAMA,
    "meta-llama/Llama-3.2-1B": LLAMA_32,
    "meta-llama/Llama-3.2-1B-Instruct": LLAMA_32,
    "Qwen/Qwen3-0.6B": (
        "Qwen3Config",
        SMALL | {"intermediate_size": 256, "num_key_value_heads": 2, "head_dim": 32},
    ),
}
CONTEXT_LENGTHS = {"OPTConfig": 2048, "GPT2Config": 1024}
SEED = 0
CHAT_TEMPLATE = (
    "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)
SPECIAL_TOKENS = ("<s>", "</s>", "<pad>", "<unk>")


def make_models(folder: Path) -> Path:
    """Write every model folder below ``folder``, and return it."""
    import transformers

    for name, (config_class, values) in {**CONFIGS, **RUNNABLE}.items():
        cls = getattr(transformers, config_class, None)
        if cls is None:
            continue
        context = {"max_position_embeddings": CONTEXT_LENGTHS.get(config_class, 32768)}
        config = cls(**(context | values))
        config.architectures = config.architectures or [_architecture(config)]
        path = folder / name
        config.save_pretrained(path)
        _tokenizer().save_pretrained(path)
        if name in RUNNABLE:
            _save_weights(config, path)
    return folder


def _architecture(config: Any) -> str:
    """The class of a generating model of this configuration, as a published one names it."""
    from transformers.models.auto import modeling_auto as auto

    tables = (
        auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
        auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    )
    return next(str(table[config.model_type]) for table in tables if config.model_type in table)


def _save_weights(config: Any, path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    torch.manual_seed(SEED)
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(path)


def _tokenizer() -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate([*SPECIAL_TOKENS, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    begin, end, pad, unknown = SPECIAL_TOKENS
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=begin,
        eos_token=end,
        pad_token=pad,
        unk_token=unknown,
        chat_template=CHAT_TEMPLATE,
    )
