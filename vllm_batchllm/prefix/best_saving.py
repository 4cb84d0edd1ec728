# SPDX-License-Identifier: Apache-2.0
"""The best possible saving of a batch, the yardstick that every measured saving is held against.

With unlimited memory a block is computed once, and by everybody who may not read it: who has no more than it, or
wants the log-probabilities of its tokens. If those who may read least go first, no reader comes too early for
any block. So the saving is what all may read, less the distinct blocks that only readers have; one sort and one
comparison per neighbour count them.
"""

from __future__ import annotations

from array import array
from collections import defaultdict
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
    limits: Sequence[int | None] | None = None,
) -> Saving:
    """Return the best possible saving at KV-block granularity with unlimited memory.

    Each request may hit every full block that another has, but never its whole prompt, since at least
    its last token is computed: a hit is at most `(len - 1) // block_size * block_size` tokens. The
    order of `prompts` does not matter.

    Args:
        prompts: token ids of each request.
        block_size: tokens per KV block.
        namespaces: one value per request (LoRA, cache salt); requests whose values differ share
            nothing. None puts all of them into one namespace.
        limits: tokens that each request may read from the cache at most, None for no limit; None for
            no limit anywhere.

    Raises:
        ValueError: `block_size` is below 1, `namespaces` has another length than `prompts`, or a
            token id does not fit into 32 bits.
    """
    check_block_size(block_size)
    if namespaces is not None and len(namespaces) != len(prompts):
        raise ValueError(f"{len(namespaces)} namespaces were given for {len(prompts)} prompts")
    if limits is not None and len(limits) != len(prompts):
        raise ValueError(f"{len(limits)} limits were given for {len(prompts)} prompts")
    least: defaultdict[Hashable, dict[bytes, int]] = defaultdict(dict)
    prompt_tokens = readable_blocks = 0
    for index, prompt in enumerate(prompts):
        prompt_tokens += len(prompt)
        limit = limits[index] if limits is not None else None
        num_blocks = _readable_blocks(len(prompt), limit, block_size)
        readable_blocks += num_blocks
        of_namespace = least[None if namespaces is None else namespaces[index]]
        packed = pack_tokens(prompt)
        of_namespace[packed] = min(num_blocks, of_namespace.get(packed, num_blocks))
    once = sum(_read_by_all(of_namespace, block_size) for of_namespace in least.values())
    return Saving(prompt_tokens, (readable_blocks - once) * block_size)


def optimal_saved_tokens(
    prompts: Sequence[Sequence[int]],
    block_size: int,
    namespaces: Sequence[Hashable] | None = None,
    limits: Sequence[int | None] | None = None,
) -> int:
    """Return only the saved tokens of `optimal_saving`, with the same arguments and errors."""
    return optimal_saving(prompts, block_size, namespaces, limits).saved_tokens


def _readable_blocks(num_tokens: int, limit: int | None, block_size: int) -> int:
    """Whole blocks that a prompt may read at most."""
    most = max(num_tokens - 1, 0)
    return (most if limit is None else min(most, limit)) // block_size


def _read_by_all(least: dict[bytes, int], block_size: int) -> int:
    """Return how many distinct blocks nobody has who may not read them: one reader computes each.

    least: blocks that the distinct packed prompts of one namespace may read, by the request of that
    prompt that may read least.
    """
    block_bytes = block_size * TOKEN_BYTES
    count = 0
    # Open runs of blocks on the path of the latest prompt: where each begins, and the least that
    # anybody on it may read. Any order that keeps shared prefixes together will do; that of the packed
    # bytes is one, and it compares with memcmp.
    runs: list[tuple[int, int]] = []
    previous = b""
    for prompt in sorted(least):
        shared = shared_blocks(previous, prompt, block_bytes)
        count += _close(runs, shared, len(previous) // block_bytes)
        runs.append((shared, least[prompt]))
        previous = prompt
    return count + _close(runs, 0, len(previous) // block_bytes)


def _close(runs: list[tuple[int, int]], end: int, last: int) -> int:
    """End all runs at block `end`, the deepest at `last`; return their blocks that all may read."""
    count = 0
    while runs:
        start, least = runs[-1]
        begin = max(start, end)
        count += max(min(last, least) - begin, 0)
        last = begin
        if start < end:
            break
        runs.pop()
        if runs:
            runs[-1] = (runs[-1][0], min(runs[-1][1], least))
    return count


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
