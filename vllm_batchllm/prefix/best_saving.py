# SPDX-License-Identifier: Apache-2.0
"""The best possible saving of a batch, the yardstick that every measured saving is held against.

With unlimited memory the best order is prefix order (a prompt before its extensions, neighbours
sharing as much as possible). In that order a request can hit exactly the full blocks it shares
with its predecessor, so one sort and one comparison per neighbour give the optimum.
"""

from __future__ import annotations

from array import array
from collections import Counter, defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Final

TOKEN_TYPECODE: Final = "I"
"""Type code of the arrays in which token ids are packed."""
TOKEN_BYTES = array(TOKEN_TYPECODE).itemsize
"""Bytes per token in the result of `pack_tokens`."""


@dataclass(frozen=True, slots=True)
class Saving:
    """How many of a batch's prompt tokens need not be computed, in tokens."""

    prompt_tokens: int
    saved_tokens: int

    @property
    def saved_ratio(self) -> float:
        """Saved share of the prompt tokens, 0.0 for a batch without tokens."""
        return self.saved_tokens / self.prompt_tokens if self.prompt_tokens else 0.0


def pack_tokens(tokens: Sequence[int]) -> bytes:
    """Return the tokens as fixed-width bytes: equal bytes if and only if equal tokens.

    Raises:
        ValueError: a token id is negative, not an integer, or does not fit into 32 bits.
    """
    if isinstance(tokens, array) and tokens.typecode == TOKEN_TYPECODE:
        return tokens.tobytes()
    try:
        return array(TOKEN_TYPECODE, list(tokens)).tobytes()
    except (OverflowError, TypeError) as error:
        raise ValueError(f"token ids must be integers from 0 to 2**32 - 1: {error}") from error


def check_block_size(block_size: int) -> None:
    """Raise a ValueError that names the value unless `block_size` (tokens) is at least 1."""
    if block_size < 1:
        raise ValueError(f"block_size must be at least 1 token, got {block_size}")


def optimal_saving(
    prompts: Sequence[Sequence[int]],
    block_size: int,
    namespaces: Sequence[Hashable] | None = None,
) -> Saving:
    """Return the best possible saving at KV-block granularity with unlimited memory.

    The requests are walked in prefix order; each may hit every full block already seen, but never
    its whole prompt, since at least its last token is computed: a hit is at most
    `(len - 1) // block_size * block_size` tokens. The order of `prompts` does not matter.

    Args:
        prompts: token ids of each request.
        block_size: tokens per KV block.
        namespaces: one value per request (LoRA, cache salt); requests whose values differ share
            nothing. None puts all of them into one namespace.

    Raises:
        ValueError: `block_size` is below 1, `namespaces` has another length than `prompts`, or a
            token id does not fit into 32 bits.
    """
    check_block_size(block_size)
    if namespaces is not None and len(namespaces) != len(prompts):
        raise ValueError(f"{len(namespaces)} namespaces were given for {len(prompts)} prompts")
    counts: defaultdict[Hashable, Counter[bytes]] = defaultdict(Counter)
    prompt_tokens = 0
    for index, prompt in enumerate(prompts):
        prompt_tokens += len(prompt)
        counts[None if namespaces is None else namespaces[index]][pack_tokens(prompt)] += 1
    saved_blocks = sum(_saved_blocks(counter, block_size) for counter in counts.values())
    return Saving(prompt_tokens, saved_blocks * block_size)


def optimal_saved_tokens(
    prompts: Sequence[Sequence[int]],
    block_size: int,
    namespaces: Sequence[Hashable] | None = None,
) -> int:
    """Return only the saved tokens of `optimal_saving`, with the same arguments and errors."""
    return optimal_saving(prompts, block_size, namespaces).saved_tokens


def _saved_blocks(counts: Counter[bytes], block_size: int) -> int:
    """Return the blocks saved over distinct packed prompts of one namespace and their counts."""
    block_bytes = block_size * TOKEN_BYTES
    saved = 0
    previous = b""
    # Any order that puts a prefix before its extensions and keeps shared prefixes together will
    # do; that of the packed bytes is one of them, and it compares with memcmp.
    for prompt in sorted(counts):
        largest_hit = max(len(prompt) - TOKEN_BYTES, 0) // block_bytes
        saved += min(shared_blocks(previous, prompt, block_bytes), largest_hit)
        saved += (counts[prompt] - 1) * largest_hit
        previous = prompt
    return saved


def shared_blocks(left: bytes, right: bytes, block_bytes: int) -> int:
    """Return how many leading whole blocks of `block_bytes` bytes two packed prompts share."""
    low, high = 0, min(len(left), len(right)) // block_bytes
    while low < high:
        middle = (low + high + 1) // 2
        if left.startswith(right[: middle * block_bytes]):
            low = middle
        else:
            high = middle - 1
    return low
