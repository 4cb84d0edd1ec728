# SPDX-License-Identifier: Apache-2.0
"""A small Llama with random weights, so that a benchmark needs no download and no GPU.

Scheduling does not care what a model says; it cares how long steps take and how tokens
differ. The weights are drawn with a larger spread than transformers' default: with that
default a model this small repeats its input token, and a comparison of outputs between two
schedulers would see very little.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

from vllm_batchllm.cache_folder import cache_folder
from vllm_batchllm.errors import UsageError

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"


@dataclass(frozen=True, slots=True)
class RandomModelSpec:
    """Shape and seed of the random model; the folder name is derived from them."""

    hidden_size: int = 256
    num_layers: int = 6
    num_heads: int = 4
    num_kv_heads: int = 2
    intermediate_size: int = 768
    vocab_size: int = 4096
    max_position_embeddings: int = 32768
    initializer_range: float = 0.08
    seed: int = 0

    @property
    def folder_name(self) -> str:
        """A name that changes whenever any figure of the shape does."""
        figures = "-".join(f"{value:g}" for value in asdict(self).values())
        return f"random-llama-{figures}"


def random_model(cache_dir: Path | None = None, spec: RandomModelSpec | None = None) -> Path:
    """Return the folder of the random model, generating it on first use.

    The folder holds `config.json` and `model.safetensors` (float32) and no tokenizer: run it
    with `skip_tokenizer_init=True` and prompts of token ids. It is written beside its final
    place and renamed, so that an interrupted or a second, simultaneous generation leaves no
    half-written model behind.

    Raises:
        UsageError: the cache folder cannot be written.
    """
    spec = spec or RandomModelSpec()
    parent = cache_dir or cache_folder()
    folder = parent / spec.folder_name
    if (folder / CONFIG_FILE).is_file() and (folder / WEIGHTS_FILE).is_file():
        return folder
    try:
        parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=f".{spec.folder_name}-", dir=parent))
    except OSError as error:
        raise UsageError(
            f"cannot write the random model into {parent}: {error.strerror}; "
            "give a writable folder or pass --model"
        ) from error
    try:
        _write_model(staging, spec)
        _publish(staging, folder)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return folder


def _publish(staging: Path, folder: Path) -> None:
    try:
        staging.rename(folder)
    except OSError:
        complete = (folder / CONFIG_FILE).is_file() and (folder / WEIGHTS_FILE).is_file()
        if complete:
            return
        # What stands there is a leftover that cannot be loaded; only ours has this name.
        shutil.rmtree(folder, ignore_errors=True)
        staging.rename(folder)


def model_config(spec: RandomModelSpec) -> dict[str, object]:
    """The `config.json` of the model, as transformers and vLLM read it."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": spec.hidden_size,
        "intermediate_size": spec.intermediate_size,
        "num_hidden_layers": spec.num_layers,
        "num_attention_heads": spec.num_heads,
        "num_key_value_heads": spec.num_kv_heads,
        "head_dim": spec.hidden_size // spec.num_heads,
        "vocab_size": spec.vocab_size,
        "max_position_embeddings": spec.max_position_embeddings,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "attention_bias": False,
        "mlp_bias": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "dtype": "float32",
        "initializer_range": spec.initializer_range,
    }


def _write_model(folder: Path, spec: RandomModelSpec) -> None:
    import torch
    from safetensors.torch import save_file

    generator = torch.Generator().manual_seed(spec.seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator) * spec.initializer_range

    hidden, inner = spec.hidden_size, spec.intermediate_size
    head_dim = hidden // spec.num_heads
    num_kv = spec.num_kv_heads * head_dim
    # Unit-sized embeddings keep the token, not the position, in charge of the output.
    tensors = {
        "model.embed_tokens.weight": torch.randn(spec.vocab_size, hidden, generator=generator)
    }
    for layer in range(spec.num_layers):
        name = f"model.layers.{layer}"
        tensors[f"{name}.self_attn.q_proj.weight"] = normal(hidden, hidden)
        tensors[f"{name}.self_attn.k_proj.weight"] = normal(num_kv, hidden)
        tensors[f"{name}.self_attn.v_proj.weight"] = normal(num_kv, hidden)
        tensors[f"{name}.self_attn.o_proj.weight"] = normal(hidden, hidden)
        tensors[f"{name}.mlp.gate_proj.weight"] = normal(inner, hidden)
        tensors[f"{name}.mlp.up_proj.weight"] = normal(inner, hidden)
        tensors[f"{name}.mlp.down_proj.weight"] = normal(hidden, inner)
        tensors[f"{name}.input_layernorm.weight"] = torch.ones(hidden)
        tensors[f"{name}.post_attention_layernorm.weight"] = torch.ones(hidden)
    tensors["model.norm.weight"] = torch.ones(hidden)
    tensors["lm_head.weight"] = normal(spec.vocab_size, hidden)
    save_file(tensors, folder / WEIGHTS_FILE, metadata={"format": "pt"})
    (folder / CONFIG_FILE).write_text(json.dumps(model_config(spec), indent=2) + "\n")
