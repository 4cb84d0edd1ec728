# SPDX-License-Identifier: Apache-2.0
"""What a benchmark runs: prompts of token ids with output lengths, and how much KV they get.

The KV size belongs to the batch, not to the machine: a workload is defined by the ratio of
its distinct prefix tokens to the KV capacity, and a cache that is too large hides what the
order of admission does.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from vllm_batchllm.errors import UsageError

#: Block size in which `Batch.kv_blocks` is stated, tokens.
REFERENCE_BLOCK_SIZE = 32
#: Blocks beyond the largest request that every KV size leaves (one is vLLM's null block).
KV_MARGIN_BLOCKS = 8


@dataclass(frozen=True, slots=True)
class Batch:
    """Requests in the order in which they arrive.

    Attributes:
        name: the workload's name.
        prompts: token ids of each prompt.
        output_lens: tokens that each request produces, exactly.
        lengths_known: False if the engine must not be told the output lengths; requests then
            end with a stop token at the right place.
        starts: positions from which on the log-probabilities of each prompt are wanted; None if
            they are not.
        pressure: distinct prefix tokens / KV capacity in tokens; None if `kv_blocks` is fixed.
        kv_blocks: fixed KV capacity in blocks of `REFERENCE_BLOCK_SIZE` tokens, or None.
        seed: what the prompts were drawn with.
        scale: what the lengths of the definition were divided by.
        description: one line for reports.
        arrivals_s: when each request arrived, seconds, the first at 0; None where nobody recorded it.
        sample_of: requests of the file that these are a sample of; None if they are all.
    """

    name: str
    prompts: list[list[int]]
    output_lens: list[int]
    lengths_known: bool = True
    pressure: float | None = None
    kv_blocks: int | None = None
    seed: int = 0
    scale: float = 1.0
    description: str = ""
    starts: list[int] | None = None
    arrivals_s: list[float] | None = None
    sample_of: int | None = None

    @property
    def limits(self) -> list[int | None] | None:
        """Prompt tokens that each request may read from a cache; None if all may read all."""
        return None if self.starts is None else [max(start - 1, 0) for start in self.starts]

    @property
    def num_requests(self) -> int:
        return len(self.prompts)

    @property
    def prompt_tokens(self) -> int:
        """Sum of prompt lengths, tokens."""
        return sum(map(len, self.prompts))

    @property
    def output_tokens(self) -> int:
        """Sum of output lengths, tokens."""
        return sum(self.output_lens)

    @property
    def max_output_tokens(self) -> int:
        """`max_tokens` of every request whose length the engine must not know.

        A power of two above the longest output, so that it tells nothing.
        """
        return 1 << max(self.output_lens).bit_length()

    @property
    def max_request_tokens(self) -> int:
        """The longest prompt + output that the engine must be prepared for, tokens."""
        if not self.lengths_known:
            return max(map(len, self.prompts)) + self.max_output_tokens
        return max(len(p) + n for p, n in zip(self.prompts, self.output_lens, strict=True))

    def check(self) -> None:
        """Raise UsageError if the batch cannot be run."""
        if not self.prompts:
            raise UsageError(f"batch {self.name!r} holds no requests")
        if len(self.prompts) != len(self.output_lens):
            raise UsageError(
                f"batch {self.name!r} has {len(self.prompts)} prompts but "
                f"{len(self.output_lens)} output lengths"
            )
        for index, (prompt, length) in enumerate(zip(self.prompts, self.output_lens, strict=True)):
            if not prompt or length < 1:
                raise UsageError(
                    f"request {index} of batch {self.name!r} has {len(prompt)} prompt tokens "
                    f"and {length} output tokens; both must be at least 1"
                )


def common_prefix_len(first: Sequence[int], second: Sequence[int]) -> int:
    """Tokens at the start that two prompts have in common."""
    limit = min(len(first), len(second))
    if first[:limit] == second[:limit]:
        return limit
    low, high = 0, limit
    while high - low > 1:
        middle = (low + high) // 2
        if first[low:middle] == second[low:middle]:
            low = middle
        else:
            high = middle
    return low


def distinct_prefix_tokens(prompts: Sequence[list[int]]) -> int:
    """Tokens that lie in the shared part of at least two prompts, each counted once.

    This is the number of nodes that two or more prompts pass through in the trie of all
    prompts. In sorted order a node is first seen where a prompt shares more with the next one
    than with the one before, which gives the sum below.
    """
    ordered = sorted(prompts)
    total = before = 0
    for this, following in pairwise(ordered):
        shared = common_prefix_len(this, following)
        total += max(0, shared - before)
        before = shared
    return total


def kv_blocks_for(batch: Batch, block_size: int) -> int:
    """KV capacity of the batch in blocks of `block_size` tokens.

    Fixed by the batch, or from its pressure; never less than its largest request needs plus
    a margin, since the engine would refuse to start.
    """
    smallest = math.ceil(batch.max_request_tokens / block_size) + KV_MARGIN_BLOCKS
    if batch.kv_blocks is not None:
        wanted = math.ceil(batch.kv_blocks * REFERENCE_BLOCK_SIZE / block_size)
    elif batch.pressure is not None:
        tokens = distinct_prefix_tokens(batch.prompts) / batch.pressure
        wanted = math.ceil(tokens / block_size)
    else:
        raise UsageError(
            f"batch {batch.name!r} has neither a pressure nor a KV size; give --kv-blocks"
        )
    return max(smallest, wanted)
