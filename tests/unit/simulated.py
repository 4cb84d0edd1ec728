# SPDX-License-Identifier: Apache-2.0
"""Small batches, and plain answers to what the simulator answers cleverly."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import strategies as st

from vllm_batchllm.workloads.batch import Batch

LLAMA_8B = {
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "torch_dtype": "bfloat16",
}


def batch_of(prompts: Sequence[Sequence[int]], outputs: Sequence[int]) -> Batch:
    """A batch of these prompts and lengths."""
    return Batch("drawn", [list(prompt) for prompt in prompts], list(outputs), kv_blocks=1000)


def trie_size(prompts: Sequence[Sequence[int]]) -> int:
    """Tokens that are computed if every prefix is computed once: nodes of the trie of prompts."""
    return len({tuple(prompt[:end]) for prompt in prompts for end in range(1, len(prompt) + 1)})


@st.composite
def batches(draw: st.DrawFn, max_requests: int = 12, piece: int = 8) -> Batch:
    """Prompts that are a few pieces of `piece` tokens from a small set, and a tail of their own."""
    count = draw(st.integers(1, max_requests))
    prompts = []
    for number in range(count):
        pieces = draw(st.lists(st.integers(1, 2), max_size=4))
        tail = draw(st.integers(0, 6))
        prompt = [value for value in pieces for _ in range(piece)] + [1000 + number] * tail
        prompts.append(prompt or [3])
    return batch_of(prompts, draw(st.lists(st.integers(1, 9), min_size=count, max_size=count)))
