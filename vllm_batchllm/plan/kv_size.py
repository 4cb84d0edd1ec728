# SPDX-License-Identifier: Apache-2.0
"""How large the KV cache is that a plan is held against: as given, or from a device's data sheet and a model's shape."""

from __future__ import annotations

from vllm_batchllm.errors import UsageError
from vllm_batchllm.hardware.devices import find_device
from vllm_batchllm.hardware.memory import num_kv_blocks
from vllm_batchllm.hardware.models import find_model
from vllm_batchllm.plan.judge import Cache

DEFAULT_SEQS = 256
"""Requests at once where no device says how many vLLM lets run."""


def cache_of(
    block_size: int,
    *,
    kv_blocks: int | None = None,
    kv_tokens: int | None = None,
    device: str | None = None,
    model_shape: str | None = None,
    output_tokens: int | None = None,
) -> Cache | None:
    """The cache that the options describe; None where none of them does.

    Raises:
        UsageError: two of them say it, one lacks the other, a name is unknown, or the model does not fit.
    """
    if kv_blocks is not None and kv_tokens is not None:
        raise UsageError("--kv-blocks and --kv-tokens say the same; give only one of them")
    if kv_tokens is not None and kv_tokens < block_size:
        raise UsageError(f"--kv-tokens {kv_tokens} is less than one block of {block_size} tokens")
    given = kv_blocks if kv_tokens is None else kv_tokens // block_size
    if model_shape is not None and device is None:
        raise UsageError(f"--model-shape {model_shape} needs a device; give --device, too")
    if device is None:
        return None if given is None else Cache(given, DEFAULT_SEQS, output_tokens)
    if given is not None:
        raise UsageError(f"--device {device} says how large the KV cache is; leave --kv-* out")
    if model_shape is None:
        raise UsageError(
            f"--device {device} needs the model's shape; give --model-shape, a name or a folder with config.json"
        )
    found = find_device(device)
    seqs = min(found.max_num_seqs, found.max_num_batched_tokens)
    model = find_model(model_shape)
    blocks = num_kv_blocks(
        found,
        model,
        block_size=block_size,
        max_num_batched_tokens=found.max_num_batched_tokens,
        max_num_seqs=seqs,
    )
    return Cache(blocks, seqs, output_tokens, found, model)
