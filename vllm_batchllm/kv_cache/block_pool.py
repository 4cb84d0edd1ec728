# SPDX-License-Identifier: Apache-2.0
"""vLLM's block pool, with evictions that know who still waits.

The pool itself is vLLM's, method for method. It gets another free list, and it remembers for
every cached block which hash list the block came from, so that the forests of waiting requests
can be asked for it.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

from vllm.v1.core import kv_cache_coordinator
from vllm.v1.core.block_pool import BlockPool
from vllm.v1.core.kv_cache_utils import (
    BlockHashWithGroupId,
    KVCacheBlock,
    get_group_id,
    make_block_hash_with_group_id,
)
from vllm.v1.request import Request

from vllm_batchllm.compat.patching import substituted
from vllm_batchllm.kv_cache.block_demand import BlockDemand, Urgency
from vllm_batchllm.kv_cache.free_queue import Place, ZonedFreeQueue
from vllm_batchllm.prefix.forest import PrefixForest
from vllm_batchllm.prefix.node import PrefixNode


class Origin(NamedTuple):
    """Where a cached block's hash stands: in the hash list of the request that cached it.

    hash is the entry itself, by which a list that was cut and went on differently is noticed.
    """

    hashes: Sequence[Hashable]
    position: int
    hash: Hashable


class PrefixAwareBlockPool(BlockPool):
    """Gives up blocks that nobody waits for before those that somebody does.

    Takes what vLLM's pool takes. While no watched forest holds a request, the order in which
    blocks are given up is vLLM's. Otherwise a free block is *needed* if its hash is in a watched
    forest, and if it is the copy that vLLM would hit (copies of a hash can only be of use once
    the first is gone). Needed blocks are given up last, the one needed soonest last of all.

    Whether a block is needed is seen when it is to be given up, and not before: arrivals and freed blocks cost
    nothing. For a block that costs O(1) amortised; see :class:`ZonedFreeQueue` and
    :class:`BlockDemand` for what does not.
    """

    free_block_queue: ZonedFreeQueue

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._origins: list[tuple[Origin, ...]] = [()] * self.num_gpu_blocks
        self._demand = BlockDemand(self)
        self.free_block_queue = ZonedFreeQueue(
            self.free_block_queue.get_all_free_blocks(), self.blocks, self._demand, self._place_of
        )

    @property
    def num_unneeded_evicted(self) -> int:
        """Cached blocks given up so far that nobody waited for."""
        return self.free_block_queue.num_unneeded_evicted

    @property
    def num_needed_evicted(self) -> int:
        """Blocks given up so far although somebody waited for them."""
        return self.free_block_queue.num_needed_lost

    def watch(
        self,
        forest: PrefixForest[Any],
        urgency: Urgency = 0,
        open_node: Callable[[], PrefixNode[Any] | None] = lambda: None,
    ) -> None:
        """Keep what waits in ``forest``; arguments and errors as :meth:`BlockDemand.watch`."""
        self._demand.watch(forest, urgency, open_node)

    def unwatch(self, forest: PrefixForest[Any]) -> None:
        """Stop keeping what waits in ``forest``. Raises ValueError if it is not watched."""
        self._demand.unwatch(forest)

    def cache_full_blocks(
        self,
        request: Request,
        blocks: list[KVCacheBlock],
        num_cached_blocks: int,
        num_full_blocks: int,
        block_size: int,
        kv_cache_group_id: int,
        block_mask: list[bool] | None = None,
    ) -> None:
        """vLLM's, and note where the blocks' hashes stand."""
        super().cache_full_blocks(
            request,
            blocks,
            num_cached_blocks,
            num_full_blocks,
            block_size,
            kv_cache_group_id,
            block_mask,
        )
        hashes, ratio = request.block_hashes, block_size // self.hash_block_size
        if 0 < num_cached_blocks < num_full_blocks:
            self._share_hashes(hashes, blocks[num_cached_blocks - 1], num_cached_blocks * ratio)
        for index in range(num_cached_blocks, num_full_blocks):
            block = blocks[index]
            is_skipped = block_mask is not None and not block_mask[index - num_cached_blocks]
            if block.is_null or is_skipped:
                continue
            position = (index + 1) * ratio - 1
            if self._origins[block.block_id]:
                self._note_origin(block, hashes, position)
            else:
                self._origins[block.block_id] = (Origin(hashes, position, hashes[position]),)

    def cache_partial_block(
        self, request: Request, block: KVCacheBlock, num_tokens: int, *args: Any, **kwargs: Any
    ) -> BlockHashWithGroupId | None:
        """vLLM's, and note where the block's hash stands."""
        key: BlockHashWithGroupId | None = super().cache_partial_block(
            request, block, num_tokens, *args, **kwargs
        )
        if key is not None:
            position = num_tokens // self.hash_block_size - 1
            self._note_origin(block, request.block_hashes, position)
        return key

    def move_block_hashes(self, src_block: KVCacheBlock, dst_block: KVCacheBlock) -> None:
        """vLLM's; the origin moves along."""
        origins = self._origins[src_block.block_id]
        super().move_block_hashes(src_block, dst_block)
        self._origins[dst_block.block_id] = origins

    def reset_prefix_cache(self) -> bool:
        """vLLM's; what nobody can hit any more is kept for nobody."""
        if not super().reset_prefix_cache():
            return False
        self._origins = [()] * self.num_gpu_blocks
        self.on_less_needed(list(self._demand.filed))
        return True

    def needed_free_blocks(self) -> set[int]:
        """Ids of the free blocks that somebody waits for. O(n log n), for who wants to look."""
        self.free_block_queue.settle()
        return set(self._demand.filed)

    def on_less_needed(self, block_ids: list[int]) -> None:
        """Let go of blocks that have lost their place, or file them where they still belong."""
        for block_id in block_ids:
            self.free_block_queue.refile(self.blocks[block_id])

    def _remove_cached_block_hashes(self, block: KVCacheBlock) -> list[BlockHashWithGroupId]:
        """vLLM's; the block is of no use now.

        Called for every block that is handed out, most of which never had a hash.
        """
        was_cached = block.block_hash is not None
        removed: list[BlockHashWithGroupId] = super()._remove_cached_block_hashes(block)
        if not (was_cached or removed):
            return removed
        self._origins[block.block_id] = ()
        if block.block_id in self._demand.filed:
            self.free_block_queue.refile(block)
        return removed

    def _share_hashes(self, hashes: list[Hashable], hit: KVCacheBlock, num_hashes: int) -> None:
        """Have ``hashes`` consist of the objects that the origin of ``hit`` consists of.

        ``hit`` ends the first ``num_hashes`` of them. The blocks of a request keep its hash list
        when it has left, and thousands may have asked about one document: equal lists of one's
        own would weigh ten times as much as lists of the same objects.
        """
        last = num_hashes - 1
        for known, position, own_hash in self._origins[hit.block_id]:
            if position != last or known is hashes or own_hash is hashes[last]:
                continue
            if last < len(known) and own_hash == known[last] == hashes[last]:
                hashes[:num_hashes] = known[:num_hashes]
                return

    def _note_origin(self, block: KVCacheBlock, hashes: Sequence[Hashable], position: int) -> None:
        """Remember a prefix that ends in ``block``; the shortest, which most can use, first."""
        origin = Origin(hashes, position, hashes[position])
        known = self._origins[block.block_id]
        if not known:
            self._origins[block.block_id] = (origin,)
        elif all(other.hash != origin.hash for other in known):
            together = sorted((*known, origin), key=lambda each: each.position)
            self._origins[block.block_id] = tuple(together)

    def _place_of(self, block: KVCacheBlock) -> Place | None:
        """Where a free block is to be filed, or None if nobody waits for it."""
        for hashes, position, own_hash in self._origins[block.block_id]:
            if position >= len(hashes) or hashes[position] != own_hash:
                continue
            found = self._demand.find(hashes, position)
            if found is not None and self._is_hit(block, own_hash):
                return (*found, position)
        return None

    def _is_hit(self, block: KVCacheBlock, own_hash: Hashable) -> bool:
        """Whether ``block`` is the copy that a look-up of ``own_hash`` finds."""
        key = make_block_hash_with_group_id(own_hash, get_group_id(block.block_hash))
        return self.cached_block_hash_to_block.get_one_block(key) is block

    def check_integrity(self) -> None:
        """Raise AssertionError where a structural promise is broken. O(pool and forests)."""
        free_list = self.free_block_queue
        free_list.settle()
        free_list.check_integrity()
        self._demand.check_integrity()
        for block in self.blocks:
            if block.is_null:
                continue
            assert free_list.is_free(block) == (block.ref_cnt == 0), "free, but in use"
            filed = self._demand.filed.get(block.block_id)
            if block.ref_cnt:
                continue
            place = self._place_of(block)
            if filed is None:
                assert place is None, f"{block} is needed, but not filed"
            else:
                assert place is not None, f"{block} is filed, but not needed"
                assert filed == (place[1].retained, place[2]), f"{block} is filed at another node"
        for block_id, origins in enumerate(self._origins):
            has_hash = self.blocks[block_id].block_hash is not None
            assert has_hash or not origins, "an origin without a hash"


def installed_block_pool() -> AbstractContextManager[None]:
    """Let KV cache coordinators that are built inside use :class:`PrefixAwareBlockPool`."""
    return substituted(kv_cache_coordinator, "BlockPool", PrefixAwareBlockPool)
