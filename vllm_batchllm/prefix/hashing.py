# SPDX-License-Identifier: Apache-2.0
"""Block hashes of a prompt without vLLM, so that a batch can be planned where vLLM is absent.

They have the property of vLLM's own hashes that everything here relies on (equal hash at one
position means equal tokens up to there), not their values.
"""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Sequence

from vllm_batchllm.prefix.best_saving import TOKEN_BYTES, check_block_size

_DIGEST_BYTES = 16


def chain_packed(packed: bytes, block_size: int, namespace: bytes = b"") -> list[bytes]:
    """Return one 16-byte hash per full block of `block_size` tokens; the tail has none.

    Equal hashes at position k mean equal tokens in blocks 0 to k and equal namespaces.

    Args:
        packed: what `pack_tokens` makes of the tokens.

    Raises:
        ValueError: `block_size` is below 1.
    """
    check_block_size(block_size)
    block_bytes = block_size * TOKEN_BYTES
    # The running state is fed block by block: its digest covers everything so far, the same
    # promise as hashing (previous digest, block) at a lower cost.
    state = hashlib.blake2b(digest_size=_DIGEST_BYTES, key=_namespace_key(namespace))
    hashes = []
    for end in range(block_bytes, len(packed) + 1, block_bytes):
        state.update(packed[end - block_bytes : end])
        hashes.append(state.digest())
    return hashes


def _namespace_key(namespace: bytes) -> bytes:
    """Return a blake2b key (at most 64 bytes) for a namespace of any length."""
    return hashlib.blake2b(namespace, digest_size=32).digest() if namespace else b""


def num_equal(
    left: Sequence[Hashable], right: Sequence[Hashable], start: int = 0, end: int | None = None
) -> int:
    """Leading hashes that two chained lists share, given that the first ``start`` are equal.

    Looks no further than ``end``. Chained hashes are equal up to some position and different behind it, hence binary search.
    """
    low, high = start, min(len(left) if end is None else end, len(right))
    if high > low and left[high - 1] == right[high - 1]:
        return high
    while low < high:
        middle = (low + high) // 2
        if left[middle] == right[middle]:
            low = middle + 1
        else:
            high = middle
    return low
