# SPDX-License-Identifier: Apache-2.0
"""Which running request is sent back to wait, if one must be.

vLLM takes the last of its running list. So the choice is made by the order of that list, just
before a step in which the free blocks cannot suffice.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from typing import Any

from vllm.v1.core.kv_cache_manager import KVCacheManager
from vllm.v1.request import Request

NUM_VICTIMS = 8
"""Requests brought to the end, the cheapest last; a step rarely takes more."""


def put_victims_last(running: list[Request], manager: KVCacheManager, block_size: int) -> None:
    """Let the cheapest requests of ``running`` be the last, if a preemption is unavoidable.

    The cheapest has the fewest blocks of its own, which are what it would compute again; shared
    ones stay with those that share them. O(running) while memory suffices.
    """
    num_free = manager.block_pool.get_num_free_blocks()
    if num_free >= len(running):
        return
    if sum(request.num_computed_tokens % block_size == 0 for request in running) <= num_free:
        return
    costs = {
        request.request_id: num_own_blocks(manager.get_blocks(request.request_id).blocks)
        for request in running
    }
    victims = heapq.nsmallest(
        NUM_VICTIMS,
        enumerate(running),
        # Among equals the youngest goes first, as in vLLM.
        key=lambda item: (costs[item[1].request_id], -item[0]),
    )
    positions = {position for position, _ in victims}
    running[:] = [
        *(request for position, request in enumerate(running) if position not in positions),
        *(request for _, request in reversed(victims)),
    ]


def num_own_blocks(groups: Sequence[Sequence[Any]]) -> int:
    """Blocks behind the last one that is shared, in all KV cache groups. O(own blocks)."""
    number = 0
    for blocks in groups:
        for block in reversed(blocks):
            if block.ref_cnt > 1:
                break
            number += not block.is_null
    return number
