# SPDX-License-Identifier: Apache-2.0
"""Which requests of a batch each replica gets, and in which order: ours, and what others do.

Nothing here runs anything: a placement is a function of the prompts.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from vllm_batchllm.errors import unknown_name
from vllm_batchllm.workloads.batch import Batch, common_prefix_len

Ints = npt.NDArray[np.int64]
Parts = list[list[int]]
"""Places in the batch for each replica, in the order in which it gets them."""

OURS_PLACED, STEALING_OFF = "ours", "stealing-off"
HASH_TOKENS = 256
"""Leading tokens that a router hashes; those of a shorter prompt are all it has. Generous: routers that look at the first block
send everything behind a common instruction to one replica."""


def prefix_order(prompts: Sequence[Sequence[int]]) -> list[int]:
    """Places of the prompts sorted by their token ids, which is depth first through the tree of their prefixes.

    Equal prompts keep their order. Compared as bytes, the most significant first, which is many times as fast.
    """
    keys = [np.asarray(prompt, dtype=">u4").tobytes() for prompt in prompts]
    return sorted(range(len(prompts)), key=keys.__getitem__)


def shared_before(
    prompts: Sequence[list[int]],
    order: Sequence[int],
    block_size: int,
    limits: Sequence[int | None] | None = None,
) -> Ints:
    """Tokens that each prompt of ``order`` finds in the cache behind the one before it: whole blocks, never all; 0 for the first.

    limits: tokens that each prompt may read from a cache, None for all but its last.
    """
    shared = np.zeros(len(order), dtype=np.int64)
    for at, (before, this) in enumerate(pairwise(order), start=1):
        most = len(prompts[this]) - 1
        limit = None if limits is None else limits[this]
        most = most if limit is None else min(most, limit)
        common = common_prefix_len(prompts[before], prompts[this])
        shared[at] = min(common, most) // block_size * block_size
    return shared


def round_robin(batch: Batch, num_replicas: int) -> Parts:
    """Request i goes to replica i mod N, in order of arrival."""
    return [list(range(first, batch.num_requests, num_replicas)) for first in range(num_replicas)]


def by_hash(batch: Batch, num_replicas: int) -> Parts:
    """By a hash of the leading `HASH_TOKENS` tokens, as a consistent-hash router: a group stays together, its replica may get more than others."""
    parts: Parts = [[] for _ in range(num_replicas)]
    for place, prompt in enumerate(batch.prompts):
        leading = np.asarray(prompt[:HASH_TOKENS], dtype=">u4").tobytes()
        digest = hashlib.blake2b(leading, digest_size=8).digest()
        parts[int.from_bytes(digest, "big") % num_replicas].append(place)
    return parts


def sorted_split(batch: Batch, num_replicas: int) -> Parts:
    """Sorted, then cut into parts of equally many requests."""
    order = prefix_order(batch.prompts)
    edges = [round(at * len(order) / num_replicas) for at in range(num_replicas + 1)]
    return [order[begin:end] for begin, end in pairwise(edges)]


FIXED: dict[str, Callable[[Batch, int], Parts]] = {
    "round-robin": round_robin,
    "hash": by_hash,
    "sorted-split": sorted_split,
}
"""Placements that are decided before anything runs."""

PLACEMENTS = (OURS_PLACED, *FIXED, STEALING_OFF)


def check_placement(name: str) -> str:
    """The name, if it is a placement's.

    Raises:
        UsageError: unknown; the known ones are listed.
    """
    if name not in PLACEMENTS:
        raise unknown_name("placement", name, PLACEMENTS)
    return name
