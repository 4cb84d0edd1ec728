# SPDX-License-Identifier: Apache-2.0
"""How many KV blocks a device has left beside a model, as vLLM would find when it starts."""

from __future__ import annotations

from vllm_batchllm.errors import UsageError
from vllm_batchllm.hardware.devices import GIB, Device
from vllm_batchllm.hardware.models import ModelShape

RUNTIME_BYTES = 1.5 * GIB
"""Context, collectives and captured graphs of one process."""

_LOGITS_COPIES = 2


def activation_bytes(model: ModelShape, max_num_batched_tokens: int, max_num_seqs: int) -> float:
    """Peak of one step beside weights and KV: one layer's activations in 16 bits, and logits."""
    per_token = 3 * model.hidden_size + 3 * model.intermediate_size
    logits = _LOGITS_COPIES * 4.0 * model.vocab_size * max_num_seqs
    return 2.0 * per_token * max_num_batched_tokens + logits


def num_kv_blocks(
    device: Device,
    model: ModelShape,
    *,
    block_size: int,
    max_num_batched_tokens: int,
    max_num_seqs: int,
    tensor_parallel: int = 1,
    memory_utilization: float = 0.9,
) -> int:
    """KV blocks that requests can hold.

    Raises:
        UsageError: the model does not fit; the message shows the arithmetic.
    """
    if not 0 < memory_utilization <= 1:
        raise UsageError(
            f"the share of the memory must be above 0 and at most 1, not {memory_utilization:g}"
        )
    usable = device.memory_bytes * memory_utilization
    weights = model.weight_bytes / tensor_parallel
    step = activation_bytes(model, max_num_batched_tokens, max_num_seqs) / tensor_parallel
    free = usable - weights - step - RUNTIME_BYTES
    block = model.kv_bytes_per_device(tensor_parallel) * block_size
    if free < block:
        raise UsageError(
            f"{model.name} does not fit {tensor_parallel} x {device.name}: "
            f"{memory_utilization:.0%} of {device.memory_bytes / GIB:.1f} GiB is "
            f"{usable / GIB:.1f} GiB a device; weights {weights / GIB:.1f} + one step "
            f"{step / GIB:.1f} + runtime {RUNTIME_BYTES / GIB:.1f} GiB leave "
            f"{free / GIB:.1f} GiB for KV. Use more devices (--tensor-parallel) or fewer bits "
            "(--weight-bits)"
        )
    return int(free / block)
