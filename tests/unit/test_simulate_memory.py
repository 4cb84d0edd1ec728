# SPDX-License-Identifier: Apache-2.0
"""How much KV a device has left beside a model."""

from __future__ import annotations

from typing import Any

import pytest
from simulated import batch_of

from vllm_batchllm.errors import UsageError
from vllm_batchllm.hardware.devices import GIB, find_device
from vllm_batchllm.hardware.memory import RUNTIME_BYTES, activation_bytes, num_kv_blocks
from vllm_batchllm.hardware.models import find_model
from vllm_batchllm.simulate.setup import SetupOptions, make_setup


def blocks(device: str, model: str, **changes: Any) -> int:
    sizes = {"block_size": 16, "max_num_batched_tokens": 8192, "max_num_seqs": 256} | changes
    return num_kv_blocks(find_device(device), find_model(model), **sizes)


def test_an_a100_holds_as_much_kv_of_llama_8b_as_vllm_reports() -> None:
    assert 26_000 <= blocks("A100-80GB", "Llama-3.1-8B") <= 29_000


def test_blocks_are_what_the_arithmetic_leaves() -> None:
    model = find_model("Qwen2.5-7B")
    step = activation_bytes(model, 8192, 256)
    assert step == 2 * 8192 * 3 * (3584 + 18944) + 2 * 4 * 152064 * 256
    left = 0.5 * 80 * GIB - model.weight_bytes - step - RUNTIME_BYTES
    expected = int(left / (28 * 2 * 4 * 128 * 2 * 32))
    assert blocks("h100-80gb", "Qwen2.5-7B", memory_utilization=0.5, block_size=32) == expected


def test_a_model_that_does_not_fit_is_refused_with_the_arithmetic() -> None:
    with pytest.raises(UsageError) as caught:
        blocks("A100-80GB", "Llama-3.1-70B")
    text = str(caught.value)
    assert "Llama-3.1-70B does not fit 1 x A100-80GB: 90% of 80.0 GiB is 72.0 GiB" in text
    assert "weights 131.4 + one step 1.9 + runtime 1.5 GiB leave -62.8 GiB" in text
    assert "--tensor-parallel" in text and "--weight-bits" in text


def test_more_devices_or_fewer_bits_make_room() -> None:
    two = blocks("A100-80GB", "Llama-3.1-70B", tensor_parallel=4)
    assert two > 0
    assert blocks("A100-80GB", "Llama-3.1-70B", tensor_parallel=8) > 2 * two
    model = find_model("Llama-3.1-70B", 4)
    assert num_kv_blocks(find_device("A100-80GB"), model, block_size=16,
                         max_num_batched_tokens=8192, max_num_seqs=256) > 0  # fmt: skip


@pytest.mark.parametrize("share", [0.0, -1.0, 1.01, float("nan")])
def test_an_impossible_share_of_the_memory_is_refused(share: float) -> None:
    with pytest.raises(UsageError, match="share of the memory"):
        blocks("A100-80GB", "Llama-3.1-8B", memory_utilization=share)


def test_a_setup_takes_vllms_sizes_of_the_device_and_our_larger_batch() -> None:
    sizes = make_setup(batch_of([[1]], [1]), SetupOptions()).sizes
    assert (sizes.max_num_seqs, sizes.max_num_batched_tokens, sizes.block_size) == (256, 8192, 16)
    assert sizes.batchllm_max_num_seqs == 512 and sizes.platform == "cuda"


def test_what_the_user_says_holds_for_all_arms() -> None:
    options = SetupOptions(max_num_seqs=8, kv_blocks=99, block_size=32, max_waiting=4)
    sizes = make_setup(batch_of([[1]], [1]), options).sizes
    assert (sizes.max_num_seqs, sizes.batchllm_max_num_seqs) == (8, 8)
    assert (sizes.num_blocks, sizes.block_size, sizes.max_waiting) == (99, 32, 4)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"block_size": 0}, "block_size must be at least 1, not 0"),
        ({"kv_blocks": -1}, "kv_blocks must be at least 1"),
        ({"max_num_seqs": 0}, "max_num_seqs must be at least 1"),
        ({"max_num_batched_tokens": 0}, "max_num_batched_tokens must be at least 1"),
        ({"max_waiting": 0}, "max_waiting must be at least 1"),
        ({"tensor_parallel": 0}, "tensor parallelism must be at least 1"),
        ({"tensor_parallel": 3}, "32 attention heads of Llama-3.1-8B cannot be divided among 3"),
        ({"device": "cpu", "tensor_parallel": 2}, "the CPU is one device"),
    ],
)
def test_impossible_figures_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        make_setup(batch_of([[1]], [1]), SetupOptions(**options))
