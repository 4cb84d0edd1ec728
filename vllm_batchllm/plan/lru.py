# SPDX-License-Identifier: Apache-2.0
"""What first come, first served gets from a KV cache of a given size, simulated.

The simplification: one request at a time, in file order, without its output. A running engine
holds many requests and their outputs at once, which leaves less room for cached prefixes, so
its share is lower as a rule. As in vLLM, the least recently used block is given up first, and
of one request the blocks at its tail before those at its head.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass

from vllm_batchllm.prefix.best_saving import check_block_size


@dataclass(frozen=True, slots=True)
class LruOutcome:
    """Tokens hit in the cache, and the requests that need more blocks than there are."""

    saved_tokens: int
    num_oversized: int


def simulate_lru(
    requests: Iterable[tuple[int, Sequence[Hashable]]], block_size: int, num_kv_blocks: int
) -> LruOutcome:
    """Serve the requests in their order from an LRU cache and count the tokens hit.

    A request hits the longest leading run of its blocks that is cached, never its whole prompt.
    The block that is computed again at the end of a repeated prompt takes the place of its old
    copy. A request that does not fit into the whole cache is counted and passed over: vLLM
    would refuse it. O(1) per block.

    Args:
        requests: (prompt length in tokens, chained hashes of its full blocks) of each request.
        block_size: tokens per block.
        num_kv_blocks: usable blocks (vLLM keeps one of `num_gpu_blocks_override` to itself).

    Raises:
        ValueError: `block_size` or `num_kv_blocks` is below 1.
    """
    check_block_size(block_size)
    if num_kv_blocks < 1:
        raise ValueError(f"num_kv_blocks must be at least 1 block, got {num_kv_blocks}")
    cache: OrderedDict[Hashable, None] = OrderedDict()  # the next block to give up comes first
    num_hits = num_oversized = 0
    for num_tokens, hashes in requests:
        num_blocks = -(-num_tokens // block_size)
        if num_blocks > num_kv_blocks:
            num_oversized += 1
            continue
        num_hits += _leading_hits(cache, hashes, max(num_tokens - 1, 0) // block_size)
        _serve(cache, hashes, num_kv_blocks - num_blocks)
    return LruOutcome(num_hits * block_size, num_oversized)


def _leading_hits(
    cache: OrderedDict[Hashable, None], hashes: Sequence[Hashable], largest_hit: int
) -> int:
    """Return the length of the leading run of cached blocks, `largest_hit` at most."""
    for position in range(largest_hit):
        if hashes[position] not in cache:
            return position
    return largest_hit


def _serve(cache: OrderedDict[Hashable, None], hashes: Sequence[Hashable], num_others: int) -> None:
    """Hold the request's blocks, give up what does not fit beside them, then free them."""
    for block_hash in hashes:
        cache.pop(block_hash, None)
    while len(cache) > num_others:
        cache.popitem(last=False)
    for block_hash in reversed(hashes):
        cache[block_hash] = None
