# SPDX-License-Identifier: Apache-2.0
"""Devices and models: found by name, read from configurations, refused with the reason."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from simulated import LLAMA_8B

from vllm_batchllm.errors import UsageError
from vllm_batchllm.hardware.devices import DEVICES, Device, find_device
from vllm_batchllm.hardware.models import MODELS, ModelShape, find_model, shape_of

PUBLISHED_WEIGHTS = {
    "Llama-3.1-8B": 8.03e9,
    "Llama-3.1-70B": 70.6e9,
    "Qwen2.5-7B": 7.6e9,
    "Qwen2.5-14B": 14.8e9,
}


def shape(**changes: Any) -> ModelShape:
    return shape_of({**LLAMA_8B, **changes}, "m")


@pytest.mark.parametrize("name", DEVICES)
def test_devices_are_found_in_any_case(name: str) -> None:
    assert find_device(name.lower()) is find_device(name.upper()) is DEVICES[name]


@pytest.mark.parametrize("name", MODELS)
def test_models_are_found_in_any_case(name: str) -> None:
    assert find_model(name.lower()) is find_model(name.upper()) is MODELS[name]


def test_an_unknown_device_lists_the_known_ones() -> None:
    with pytest.raises(UsageError) as caught:
        find_device("A100-40GB")
    text = str(caught.value)
    assert "unknown device 'A100-40GB'" in text and "Did you mean 'A100-80GB'?" in text
    assert all(name in text for name in [*DEVICES, "cpu"])


def test_an_unknown_model_lists_the_known_ones() -> None:
    with pytest.raises(UsageError) as caught:
        find_model("Llama-3.1-8")
    assert all(name in str(caught.value) for name in MODELS)
    assert "a folder with a config.json" in str(caught.value)


@pytest.mark.parametrize("field", ["memory_bytes", "flops", "bandwidth", "link_bandwidth"])
@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
def test_a_device_with_an_impossible_figure_is_refused(field: str, value: float) -> None:
    figures = dict.fromkeys(("memory_bytes", "flops", "bandwidth", "link_bandwidth"), 1.0)
    with pytest.raises(UsageError, match=f"{field} of device 'x'"):
        Device("x", **(figures | {field: value}), max_num_seqs=1, max_num_batched_tokens=1,
               source="")  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_a_model_has_as_many_weights_as_published(name: str) -> None:
    model = MODELS[name]
    total = model.layer_weights + 2 * model.head_weights  # embeddings and output head
    assert total == pytest.approx(PUBLISHED_WEIGHTS[name], rel=0.01)
    assert model.weight_bytes == 2 * total


def test_a_token_of_llama_8b_takes_128_kib_of_kv() -> None:
    model = MODELS["Llama-3.1-8B"]
    assert model.kv_bytes_per_token == 128 * 1024
    # Two products of 128 multiply-adds for each of 32 heads in 32 layers.
    assert model.attention_flops_per_pair == 2 * 2 * 128 * 32 * 32


def test_key_value_heads_are_copied_once_there_are_more_devices_than_heads() -> None:
    model = MODELS["Qwen2.5-7B"]  # 4 key-value heads
    assert model.kv_bytes_per_device(2) == model.kv_bytes_per_token / 2
    assert model.kv_bytes_per_device(7) == model.kv_bytes_per_token / 4


def test_a_public_configuration_gives_the_built_in_shape(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA_8B))
    for path in (tmp_path, tmp_path / "config.json"):
        found = find_model(str(path))
        assert found.name == tmp_path.name
        assert found == shape_of(LLAMA_8B, tmp_path.name)
    assert shape_of(LLAMA_8B, "Llama-3.1-8B") == MODELS["Llama-3.1-8B"]


def test_the_text_part_of_a_larger_model_is_read(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"text_config": LLAMA_8B, "vision": {}}))
    assert find_model(str(tmp_path)).num_layers == 32


def test_without_key_value_heads_every_head_has_its_own() -> None:
    config = {key: value for key, value in LLAMA_8B.items() if key != "num_key_value_heads"}
    assert shape_of(config, "m").num_kv_heads == 32
    assert shape(num_key_value_heads=None).num_kv_heads == 32


def test_heads_divide_the_hidden_size_unless_told() -> None:
    assert shape().head_dim == 128
    assert shape(head_dim=64).head_dim == 64


def test_tied_embeddings_are_held_once() -> None:
    assert shape().weight_bytes - shape(tie_word_embeddings=True).weight_bytes == (
        2 * 4096 * 128256
    )


@pytest.mark.parametrize(
    ("changes", "bits"),
    [
        ({}, 16),
        ({"torch_dtype": "float32"}, 32),
        ({"torch_dtype": None, "dtype": "float32"}, 32),
        ({"quantization_config": {"quant_method": "awq", "bits": 4}}, 4),
        ({"quantization_config": {"quant_method": "fp8"}}, 8),
    ],
)
def test_weights_have_the_bits_that_the_configuration_says(
    changes: dict[str, Any], bits: float
) -> None:
    assert shape(**changes).weight_bits == bits


def test_bits_that_are_given_win() -> None:
    config = {**LLAMA_8B, "quantization_config": {"quant_method": "odd"}}
    assert shape_of(config, "m", 6).weight_bits == 6
    assert find_model("Llama-3.1-8B", 4).layer_bytes == MODELS["Llama-3.1-8B"].layer_weights / 2
    with pytest.raises(UsageError, match="give --weight-bits"):
        shape_of(config, "m")


@pytest.mark.parametrize("bits", [0, 0.5, 33, float("nan")])
def test_impossible_bits_are_refused(bits: float) -> None:
    with pytest.raises(UsageError, match="between 1 and 32 bits"):
        find_model("Llama-3.1-8B", bits)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_experts": 8}, "num_experts = 8: mixtures of experts are not modelled"),
        ({"num_local_experts": 8}, "num_local_experts"),
        ({"n_routed_experts": 160}, "n_routed_experts"),
        ({"num_experts": "many"}, "num_experts = 'many'"),
        ({"state_size": 16}, "state_size: layers with a state are not modelled"),
        ({"kv_lora_rank": 512}, "latent attention is not modelled"),
        ({"hidden_size": None}, "lacks 'hidden_size'"),
        ({"vocab_size": "big"}, "vocab_size of model 'm' must be a whole number above 0"),
        ({"num_hidden_layers": 0}, "num_hidden_layers"),
        ({"num_hidden_layers": True}, "num_hidden_layers"),
        ({"intermediate_size": 1.5}, "intermediate_size"),
    ],
)
def test_what_is_not_modelled_is_refused_by_name(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError) as caught:
        shape(**changes)
    assert words in str(caught.value) and "'m'" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "cannot read"),
        ("{", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ("[]", "holds no JSON object"),
    ],
)
def test_a_file_that_is_no_configuration_is_refused(
    tmp_path: Path, text: str | None, words: str
) -> None:
    path = tmp_path / "config.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UsageError, match=words):
        find_model(str(path))
