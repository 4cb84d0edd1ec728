# SPDX-License-Identifier: Apache-2.0
"""vLLM's list of free blocks, with those that waiting requests need given up last.

Three zones, given up in this order: never cached; cached, but needed by nobody who waits; needed.
The first two are one list in vLLM's own order, so where nobody waits nothing differs. A block
that leaves the third zone takes the place it would have in that list now, as if it had never
been needed: every place has a serial number.

A block is asked for when its turn has come to be given up: if somebody waits for it, it is filed then. Until
that it stays in vLLM's list, whoever comes or goes.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator
from itertools import chain, dropwhile, islice

from vllm.v1.core.kv_cache_utils import FreeKVCacheBlockQueue, KVCacheBlock

from vllm_batchllm.kv_cache.block_demand import BlockDemand
from vllm_batchllm.kv_cache.retained_blocks import RetainedBlocks
from vllm_batchllm.prefix.node import PrefixNode

Place = tuple[RetainedBlocks[object], PrefixNode[object], int]
"""Where a needed block is filed: whose retained blocks, which node, position of its hash."""


class ZonedFreeQueue(FreeKVCacheBlockQueue):
    """Free blocks in the order in which they are given up; takes the place of vLLM's list.

    Args:
        blocks: all free blocks, in order.
        blocks_by_id: every block of the pool.
        demand: who waits for what.
        place_of: where a cached block belongs, or None if nobody needs it.

    A block is *listed* (in vLLM's linked list), *late* (it was needed, and no longer is; in a
    heap by serial number, because it does not belong to an end of the list), or *filed* (needed;
    filed by ``demand``). Everything is O(1) but for late blocks, O(log n), and for giving up
    a needed one, O(depth * log children).

    num_unneeded_evicted: cached blocks given up that nobody waited for.
    num_needed_lost: blocks given up although somebody waited for them.
    """

    def __init__(
        self,
        blocks: list[KVCacheBlock],
        blocks_by_id: list[KVCacheBlock],
        demand: BlockDemand,
        place_of: Callable[[KVCacheBlock], Place | None],
    ) -> None:
        super().__init__(blocks)
        self.num_unneeded_evicted = 0
        self.num_needed_lost = 0
        self._blocks = blocks_by_id
        self._demand = demand
        self._place_of = place_of
        self._serials = [0] * len(blocks_by_id)
        self._first_serial = self._next_serial = 0
        self._late: dict[int, int] = {}
        self._late_heap: list[tuple[int, int]] = []
        self._number_appended(blocks)

    def is_free(self, block: KVCacheBlock) -> bool:
        """Whether ``block`` is in one of the zones."""
        return (
            block.next_free_block is not None
            or block.block_id in self._late
            or block.block_id in self._demand.filed
        )

    def popleft(self) -> KVCacheBlock:
        """Take the first block. Raises ValueError when there is none."""
        if not self.num_free_blocks:
            raise ValueError("No free blocks available")
        return self.popleft_n(1)[0]

    def popleft_n(self, n: int) -> list[KVCacheBlock]:
        """Take the first ``n`` blocks. Raises ValueError when there are fewer."""
        if n > self.num_free_blocks:
            raise ValueError(f"{n} blocks wanted, {self.num_free_blocks} are free")
        if n == 1 and not self._late:
            first = self.fake_free_list_head.next_free_block
            if first is not self.fake_free_list_tail and self._is_needed_by_nobody(first):
                return [super().popleft()]
        taken: list[KVCacheBlock] = []
        while len(taken) < n:
            batch = self._pop_others(n - len(taken))
            if not batch:
                taken += [self._give_up_needed() for _ in range(n - len(taken))]
            elif not self._demand:
                self.num_unneeded_evicted += sum(block.block_hash is not None for block in batch)
                taken += batch
            else:
                taken += [block for block in batch if not self._filed_now(block)]
        return taken

    def settle(self) -> None:
        """File whatever is needed now, wherever it is. O(n log n); for who wants to see the order."""
        if not self._demand:
            return
        listed = list(super().iter_blocks_after(None))
        late, filed = list(self._late), list(self._demand.filed)
        for block in (*listed, *(self._blocks[block_id] for block_id in (*late, *filed))):
            if block.block_hash is not None:
                self.refile(block)

    def remove(self, block: KVCacheBlock) -> None:
        """Take ``block`` out of whatever zone it is in. Raises RuntimeError if it is in none."""
        if block.block_id in self._demand.filed:
            self._demand.take(block.block_id)
        elif block.block_id in self._late:
            del self._late[block.block_id]
        else:
            super().remove(block)
            return
        self.num_free_blocks -= 1

    def append(self, block: KVCacheBlock) -> None:
        """As :meth:`append_n` for one block."""
        self.append_n([block])

    def append_n(self, blocks: list[KVCacheBlock]) -> None:
        """Free ``blocks``: to the end of vLLM's list."""
        self._number_appended(blocks)
        super().append_n(blocks)

    def prepend_n(self, blocks: list[KVCacheBlock]) -> None:
        """Free blocks that hold nothing of use: to the front, in the order given."""
        self._first_serial -= len(blocks)
        for serial, block in enumerate(blocks, self._first_serial):
            self._serials[block.block_id] = serial
        super().prepend_n(blocks)

    def refile(self, block: KVCacheBlock) -> None:
        """Move a free block to where it belongs now; nothing happens to one in use."""
        if not self.is_free(block):
            return
        place = self._place_of(block)
        filed = self._demand.filed.get(block.block_id)
        if place is None:
            if filed is not None:
                self._demand.take(block.block_id)
                self._add_late(block.block_id)
        elif filed is None or (filed.retained.node, filed.position) != place[1:]:
            self.remove(block)
            self._file(block, place)
            self.num_free_blocks += 1

    def get_all_free_blocks(self) -> list[KVCacheBlock]:
        """All free blocks in the order in which they are given up. O(n log n)."""
        self.settle()
        return list(self.iter_blocks_after(None))

    def iter_blocks_after(self, cursor: KVCacheBlock | None) -> Iterator[KVCacheBlock]:
        """Free blocks that are given up after ``cursor`` (None: all), lazily, in order as far as is known.

        O(1) a block while no block is late or filed; else it starts at the front.
        """
        if not self._late and (cursor is None or cursor.next_free_block is not None):
            unneeded = super().iter_blocks_after(cursor)
            return chain(unneeded, self._filed_in_order())
        late = sorted((serial, block_id) for block_id, serial in self._late.items())
        listed = ((self._serials[b.block_id], b.block_id) for b in super().iter_blocks_after(None))
        unneeded = (self._blocks[block_id] for _, block_id in heapq.merge(listed, late))
        everything = chain(unneeded, self._filed_in_order())
        if cursor is None:
            return everything
        return islice(dropwhile(lambda block: block is not cursor, everything), 1, None)

    def _filed_in_order(self) -> Iterator[KVCacheBlock]:
        return (self._blocks[block_id] for block_id in self._demand.in_order())

    def _pop_others(self, n: int) -> list[KVCacheBlock]:
        """Up to ``n`` blocks that are not filed, in order."""
        num_others = self.num_free_blocks - len(self._demand.filed)
        if not self._late:
            popped: list[KVCacheBlock] = super().popleft_n(min(n, num_others))
            return popped
        return [self._pop_unneeded() for _ in range(min(n, num_others))]

    def _is_needed_by_nobody(self, block: KVCacheBlock) -> bool:
        """Whether the listed ``block`` can be given up; it is counted then. Most are asked for one by one."""
        if block.block_hash is None:
            return True
        if self._demand and self._place_of(block) is not None:
            return False
        self.num_unneeded_evicted += 1
        return True

    def _filed_now(self, block: KVCacheBlock) -> bool:
        """File ``block``, just popped, if somebody waits for it; else it is given up."""
        if block.block_hash is None:
            return False
        place = self._place_of(block)
        if place is None:
            self.num_unneeded_evicted += 1
            return False
        self._file(block, place)
        self.num_free_blocks += 1
        return True

    def _give_up_needed(self) -> KVCacheBlock:
        """Take the filed block that is needed last. One that has become more urgent is filed anew."""
        while True:
            block = self._blocks[self._demand.last()]
            place, filed = self._place_of(block), self._demand.filed[block.block_id]
            if place is not None and place[1:] != (filed.retained.node, filed.position):
                self.refile(block)
                continue
            self.remove(block)
            if place is None:
                self.num_unneeded_evicted += 1
            else:
                self.num_needed_lost += 1
            return block

    def _file(self, block: KVCacheBlock, place: Place) -> None:
        retained_blocks, node, position = place
        retained_blocks.put(block.block_id, node, position)

    def _pop_unneeded(self) -> KVCacheBlock:
        """The first listed or late block, by serial number."""
        serial, block_id = self._first_late()
        first = self.fake_free_list_head.next_free_block
        is_listed = first is not self.fake_free_list_tail
        if is_listed and (block_id < 0 or self._serials[first.block_id] < serial):
            block: KVCacheBlock = super().popleft()
            return block
        heapq.heappop(self._late_heap)
        del self._late[block_id]
        self.num_free_blocks -= 1
        return self._blocks[block_id]

    def _first_late(self) -> tuple[int, int]:
        """Serial number and id of the first late block; id -1 when there is none."""
        heap = self._late_heap
        while heap:
            serial, block_id = heap[0]
            if self._late.get(block_id) == serial:
                return serial, block_id
            heapq.heappop(heap)
        return 0, -1

    def _add_late(self, block_id: int) -> None:
        serial = self._late[block_id] = self._serials[block_id]
        if len(self._late_heap) > 2 * len(self._late) + 64:
            self._late_heap = [(serial, block_id) for block_id, serial in self._late.items()]
            heapq.heapify(self._late_heap)
        else:
            heapq.heappush(self._late_heap, (serial, block_id))

    def _number_appended(self, blocks: list[KVCacheBlock]) -> None:
        for serial, block in enumerate(blocks, self._next_serial):
            self._serials[block.block_id] = serial
        self._next_serial += len(blocks)

    def check_integrity(self) -> None:
        """Raise AssertionError where a structural promise is broken. O(n)."""
        listed = [block.block_id for block in super().iter_blocks_after(None)]
        zones = (listed, list(self._late), list(self._demand.filed))
        together = [block_id for zone in zones for block_id in zone]
        assert len(together) == len(set(together)), "a block is in two zones"
        assert len(together) == self.num_free_blocks, "the number of free blocks is wrong"
        serials = [self._serials[block_id] for block_id in listed]
        assert serials == sorted(set(serials)), "the list is out of order"
        entries = set(self._late_heap)
        assert all((s, b) in entries for b, s in self._late.items()), "a late block was lost"
        for block_id in (*self._late, *self._demand.filed):
            assert self._blocks[block_id].next_free_block is None, "a needed block is linked"
