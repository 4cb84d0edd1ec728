# SPDX-License-Identifier: Apache-2.0
"""ZonedFreeQueue against vLLM's own list: the same order, but for blocks somebody waits for."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from vllm.v1.core.kv_cache_utils import FreeKVCacheBlockQueue, KVCacheBlock

from vllm_batchllm.kv_cache.block_demand import BlockDemand
from vllm_batchllm.kv_cache.free_queue import Place, ZonedFreeQueue
from vllm_batchllm.prefix.forest import PrefixForest

NUM_BLOCKS = 12
ids = st.integers(0, NUM_BLOCKS - 1)
id_lists = st.lists(ids, unique=True, max_size=5)
operations = st.lists(
    st.one_of(
        st.tuples(st.just("pop"), st.integers(0, 5)),
        st.tuples(st.just("append"), id_lists),
        st.tuples(st.just("prepend"), id_lists),
        st.tuples(st.just("touch"), ids),
        st.tuples(st.just("wait"), ids),
        st.tuples(st.just("leave"), ids),
    ),
    max_size=60,
)


class Twins:
    """Our list, and vLLM's with the same blocks; block n is needed while n waits in the forest."""

    def __init__(self) -> None:
        self.blocks = [KVCacheBlock(block_id) for block_id in range(NUM_BLOCKS)]
        self.twins = [KVCacheBlock(block_id) for block_id in range(NUM_BLOCKS)]
        for block in self.blocks:
            block.set_block_hash(b"cached", 1)
        self.stock = FreeKVCacheBlockQueue(self.twins)
        self.future = BlockDemand(self)
        self.forest: PrefixForest[int] = PrefixForest(1)
        self.future.watch(self.forest)
        self.ours = ZonedFreeQueue(self.blocks, self.blocks, self.future, self.place_of)
        self.uncached: set[int] = set()
        self.num_arrived = 0

    def place_of(self, block: KVCacheBlock) -> Place | None:
        found = self.future.find([block.block_id], 0)
        return None if found is None or block.block_id in self.uncached else (*found, 0)

    def on_less_needed(self, block_ids: list[int]) -> None:
        for block_id in block_ids:
            self.ours.refile(self.blocks[block_id])

    def free_ids(self) -> list[int]:
        return [block.block_id for block in self.stock.get_all_free_blocks()]

    def expected(self) -> list[int]:
        """vLLM's order with the needed ones behind: the last arrival's first."""
        arrivals = {n: self.forest.node_of(n).rank for n in range(NUM_BLOCKS) if n in self.forest}
        needed = arrivals.keys() - self.uncached
        free = self.free_ids()
        kept = sorted(needed & set(free), key=arrivals.__getitem__, reverse=True)
        return [n for n in free if n not in needed] + kept

    def put_back(self, block_ids: list[int], at_front: bool) -> None:
        free = set(self.free_ids())
        block_ids = [n for n in block_ids if n not in free]
        self.uncached -= set(block_ids)
        if at_front:
            self.uncached |= set(block_ids)
        for block_id in block_ids:
            self.blocks[block_id].reset_hash()
            if not at_front:
                self.blocks[block_id].set_block_hash(b"cached", 1)
        name = "prepend_n" if at_front else "append_n"
        getattr(self.ours, name)([self.blocks[n] for n in block_ids])
        getattr(self.stock, name)([self.twins[n] for n in block_ids])

    def pop(self, num_blocks: int) -> None:
        expected = self.expected()[:num_blocks]
        taken = self.ours.popleft_n(len(expected))
        assert [block.block_id for block in taken] == expected
        for block_id in expected:
            self.stock.remove(self.twins[block_id])

    def touch(self, block_id: int) -> None:
        if self.twins[block_id].next_free_block is not None:
            self.stock.remove(self.twins[block_id])
            self.ours.remove(self.blocks[block_id])
        else:
            with pytest.raises(RuntimeError, match="invalid block"):
                self.ours.remove(self.blocks[block_id])

    def wait(self, block_id: int) -> None:
        if block_id not in self.forest:
            self.num_arrived += 1
            self.forest.insert(block_id, [block_id], self.num_arrived)

    def leave(self, block_id: int) -> None:
        if block_id in self.forest:
            self.forest.remove(block_id)

    def check(self) -> None:
        self.ours.check_integrity()
        self.future.check_integrity()
        expected = self.expected()
        assert [block.block_id for block in self.ours.get_all_free_blocks()] == expected
        assert self.ours.num_free_blocks == len(expected)
        for block in self.blocks:
            assert self.ours.is_free(block) == (block.block_id in expected)


@pytest.mark.parametrize("looked_at", [True, False], ids=["after each", "at the end"])
@settings(max_examples=250)
@given(steps=operations)
def test_the_order_is_vllms_with_the_needed_ones_behind(looked_at, steps) -> None:
    """A look files what is needed; without one, that is seen when a block is to be given up."""
    lists = Twins()
    for operation, value in steps:
        if operation in ("append", "prepend"):
            lists.put_back(value, at_front=operation == "prepend")
        else:
            getattr(lists, operation)(value)
        if looked_at:
            lists.check()
    lists.check()
    expected = lists.expected()
    for rank, block_id in enumerate(expected):
        behind = lists.ours.iter_blocks_after(lists.blocks[block_id])
        assert [block.block_id for block in behind] == expected[rank + 1 :]


@given(operations)
def test_with_nobody_waiting_every_single_answer_is_vllms(steps) -> None:
    lists = Twins()
    for operation, value in steps:
        if operation == "pop":
            num_blocks = min(value, lists.stock.num_free_blocks)
            ours, stock = lists.ours.popleft_n(num_blocks), lists.stock.popleft_n(num_blocks)
            assert [b.block_id for b in ours] == [b.block_id for b in stock]
        elif operation in ("append", "prepend"):
            lists.put_back(value, at_front=operation == "prepend")
        elif operation == "touch":
            lists.touch(value)
        ours, stock = lists.ours.get_all_free_blocks(), lists.stock.get_all_free_blocks()
        assert [b.block_id for b in ours] == [b.block_id for b in stock]
        assert lists.ours.num_free_blocks == lists.stock.num_free_blocks


def test_a_block_that_was_needed_goes_back_to_the_place_it_would_have_had() -> None:
    lists = Twins()
    lists.wait(3)
    lists.pop(2)
    lists.put_back([0], at_front=False)
    lists.put_back([1], at_front=True)
    assert lists.expected() == [1, 2, 4, 5, 6, 7, 8, 9, 10, 11, 0, 3]
    lists.leave(3)
    assert [b.block_id for b in lists.ours.popleft_n(4)] == [1, 2, 3, 4]


def test_what_is_given_up_is_counted() -> None:
    lists = Twins()
    for number in range(NUM_BLOCKS):
        lists.ours.remove(lists.blocks[number])
        lists.stock.remove(lists.twins[number])
    lists.wait(1)
    lists.wait(2)
    lists.put_back([0, 1, 2], at_front=False)
    lists.put_back([3], at_front=True)
    lists.pop(3)
    assert (lists.ours.num_unneeded_evicted, lists.ours.num_needed_lost) == (1, 1)


def test_an_empty_list_says_so() -> None:
    lists = Twins()
    lists.pop(NUM_BLOCKS)
    with pytest.raises(ValueError, match="No free blocks available"):
        lists.ours.popleft()
    with pytest.raises(ValueError, match="1 blocks wanted, 0 are free"):
        lists.ours.popleft_n(1)
    lists.put_back([4], at_front=False)
    assert lists.ours.popleft().block_id == 4
