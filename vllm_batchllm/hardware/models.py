# SPDX-License-Identifier: Apache-2.0
"""Shapes of models: what a cost model needs of a `config.json`, and a few public ones by name."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vllm_batchllm.errors import UsageError, unknown_name
from vllm_batchllm.messages import clip

_MOE_KEYS = ("num_experts", "num_local_experts", "n_routed_experts")
_STATE_KEYS = ("ssm_state_size", "state_size", "mamba_d_state", "linear_num_key_heads")
KV_BITS = 16
"""Bits of a key or value in the cache."""


@dataclass(frozen=True, slots=True)
class ModelShape:
    """A decoder of dense layers with gated feed-forward parts and grouped-query attention.

    weight_bits: of each weight in the layers; embeddings and the output head have 16.
    """

    name: str
    num_layers: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    tied_embeddings: bool = False
    weight_bits: float = 16

    @property
    def layer_weights(self) -> int:
        """Weights of all layers, those through which every token goes."""
        attention = self.hidden_size * self.head_dim * (2 * self.num_heads + 2 * self.num_kv_heads)
        return self.num_layers * (attention + 3 * self.hidden_size * self.intermediate_size)

    @property
    def head_weights(self) -> int:
        """Weights of the output head, used for each sampled token."""
        return self.vocab_size * self.hidden_size

    @property
    def layer_bytes(self) -> float:
        """Bytes of the layers' weights."""
        return self.layer_weights * self.weight_bits / 8

    @property
    def head_bytes(self) -> float:
        """Bytes of the output head."""
        return self.head_weights * 2.0

    @property
    def weight_bytes(self) -> float:
        """Bytes of all weights in the device's memory."""
        return self.layer_bytes + self.head_bytes * (1 if self.tied_embeddings else 2)

    @property
    def kv_bytes_per_token(self) -> float:
        """Bytes of one token's keys and values."""
        return self.num_layers * 2 * self.num_kv_heads * self.head_dim * KV_BITS / 8

    def kv_bytes_per_device(self, tensor_parallel: int) -> float:
        """Bytes of one token's keys and values on each device; heads are not cut in pieces."""
        return self.kv_bytes_per_token / min(tensor_parallel, self.num_kv_heads)

    @property
    def attention_flops_per_pair(self) -> float:
        """Operations for one query and one key, over all layers: two products of head size."""
        return 4.0 * self.num_layers * self.num_heads * self.head_dim

    def __post_init__(self) -> None:
        if not 1 <= self.weight_bits <= 32:
            raise UsageError(f"weights have between 1 and 32 bits, not {self.weight_bits:g}")


def _llama(name: str, layers: int, hidden: int, intermediate: int, heads: int) -> ModelShape:
    return ModelShape(name, layers, hidden, intermediate, heads, 8, 128, 128256)


MODELS = {
    model.name: model
    for model in (
        _llama("Llama-3.1-8B", 32, 4096, 14336, 32),
        _llama("Llama-3.1-70B", 80, 8192, 28672, 64),
        ModelShape("Qwen2.5-7B", 28, 3584, 18944, 28, 4, 128, 152064),
        ModelShape("Qwen2.5-14B", 48, 5120, 13824, 40, 8, 128, 152064),
    )
}


def find_model(name: str, weight_bits: float | None = None) -> ModelShape:
    """A known model, or the one whose `config.json` (or its folder) `name` is the path of.

    weight_bits: instead of those that the model says.

    Raises:
        UsageError: unknown (the known ones are listed), or a file that describes no such model.
    """
    for known, model in MODELS.items():
        if known.lower() == name.lower():
            return model if weight_bits is None else replace(model, weight_bits=weight_bits)
    path = Path(name)
    if path.is_dir():
        path = path / "config.json"
    if path.suffix == ".json" or path.exists():
        return _read(path, weight_bits)
    raise unknown_name("model", name, [*MODELS, "a folder with a config.json"])


def _read(path: Path, weight_bits: float | None) -> ModelShape:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(data, dict):
        raise UsageError(f"{path} holds no JSON object")
    text = data.get("text_config")
    name = path.parent.name or path.name
    return shape_of(text if isinstance(text, dict) else data, name, weight_bits)


def shape_of(config: Mapping[str, Any], name: str, weight_bits: float | None = None) -> ModelShape:
    """The shape that a Hugging Face configuration describes.

    weight_bits: instead of those that it says.

    Raises:
        UsageError: a figure is missing or wrong, or the architecture is not modelled.
    """
    for key in _MOE_KEYS:
        if (config.get(key) or 0) not in (0, 1):
            raise UsageError(
                f"model {name!r} has {key} = {clip(config[key])}: mixtures of experts are not "
                "modelled; use a dense model"
            )
    for key in _STATE_KEYS:
        if config.get(key):
            raise UsageError(f"model {name!r} has {key}: layers with a state are not modelled")
    if config.get("kv_lora_rank"):
        raise UsageError(f"model {name!r} has kv_lora_rank: latent attention is not modelled")
    count = _Counts(config, name)
    hidden, heads = count("hidden_size"), count("num_attention_heads")
    return ModelShape(
        name=name,
        num_layers=count("num_hidden_layers"),
        hidden_size=hidden,
        intermediate_size=count("intermediate_size"),
        num_heads=heads,
        num_kv_heads=count("num_key_value_heads", heads),
        head_dim=count("head_dim", max(1, hidden // heads)),
        vocab_size=count("vocab_size"),
        tied_embeddings=bool(config.get("tie_word_embeddings", False)),
        weight_bits=_weight_bits(config, name) if weight_bits is None else weight_bits,
    )


class _Counts:
    """Positive whole numbers of a configuration."""

    def __init__(self, config: Mapping[str, Any], name: str) -> None:
        self._config, self._name = config, name

    def __call__(self, key: str, default: int | None = None) -> int:
        value = self._config.get(key)
        value = default if value is None else value
        if value is None:
            raise UsageError(f"the configuration of model {self._name!r} lacks {key!r}")
        if not isinstance(value, int) or isinstance(value, bool) or not 0 < value < 2**31:
            raise UsageError(
                f"{key} of model {self._name!r} must be a whole number above 0, not {clip(value)}"
            )
        return value


def _weight_bits(config: Mapping[str, Any], name: str) -> float:
    quantization = config.get("quantization_config")
    if isinstance(quantization, dict):
        if isinstance(bits := quantization.get("bits"), int):
            return bits
        if quantization.get("quant_method") == "fp8":
            return 8
        raise UsageError(
            f"the quantization_config of model {name!r} has no 'bits'; give --weight-bits"
        )
    dtype = config.get("torch_dtype") or config.get("dtype")
    return 32 if dtype == "float32" else 16
