# SPDX-License-Identifier: Apache-2.0
"""What engines of the benchmark have by default: on the CPU what is comparable there, elsewhere vLLM's own."""

from __future__ import annotations

from dataclasses import dataclass

_GPU_BLOCK_SIZE = 16
"""vLLM's own, where no backend of attention asks for another."""


@dataclass(frozen=True, slots=True)
class DeviceSizes:
    """The type of weights and KV, tokens per block, and the bounds of a step."""

    dtype: str
    block_size: int
    max_num_batched_tokens: int
    max_num_seqs: int


CPU_SIZES = DeviceSizes("float32", 32, 2048, 256)
"""float32 keeps outputs comparable token for token; blocks are multiples of 32 there."""


def sizes_here(on_cpu: bool) -> DeviceSizes:
    """Those of the machine at hand."""
    if on_cpu:
        return CPU_SIZES
    from vllm.engine.arg_utils import EngineArgs
    from vllm.usage.usage_lib import UsageContext

    tokens, seqs = (int(by[UsageContext.LLM_CLASS]) for by in EngineArgs.get_batch_defaults(1))
    return DeviceSizes("auto", _GPU_BLOCK_SIZE, tokens, seqs)
