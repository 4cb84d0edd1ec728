# SPDX-License-Identifier: Apache-2.0
"""Free blocks that somebody waits for are kept, and given up in the reverse order of service."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prefix_trie_oracle import Item, Path

from vllm_batchllm.kv_cache.block_demand import BlockDemand
from vllm_batchllm.ordering.group_queue import GroupQueue
from vllm_batchllm.ordering.policies import DecodeRatio, DepthFirst, GroupOrder
from vllm_batchllm.prefix.forest import PrefixForest

paths = st.lists(st.integers(0, 2), min_size=1, max_size=6).map(tuple)
operations = st.lists(
    st.one_of(
        st.tuples(st.just("add"), paths, st.integers(0, 3), st.integers(1, 9), st.integers(0, 1)),
        st.tuples(st.just("free"), paths),
        st.tuples(st.just("touch"), st.integers(0, 99)),
        st.tuples(st.just("give up")),
        st.tuples(st.just("admit")),
        st.tuples(st.just("abort"), st.integers(0, 99)),
    ),
    max_size=70,
)


class DemandListener:
    """Blocks without a pool: ``origins`` of the free ones, looked through from end to end."""

    def __init__(self) -> None:
        self.future = BlockDemand(self)
        self.origins: dict[int, tuple[Sequence[Path], int]] = {}

    def free(self, block_id: int, path: Path) -> None:
        self.origins[block_id] = ([path[: end + 1] for end in range(len(path))], len(path) - 1)
        self.refile(block_id)

    def use(self, block_id: int) -> None:
        del self.origins[block_id]
        if block_id in self.future.filed:
            self.future.take(block_id)

    def refile(self, block_id: int) -> None:
        if block_id in self.future.filed:
            self.future.take(block_id)
        hashes, position = self.origins[block_id]
        found = self.future.find(hashes, position)
        if found is not None:
            retained_blocks, node = found
            retained_blocks.put(block_id, node, position)

    def settle(self) -> None:
        """File what is needed by now: nobody tells when demand begins."""
        for block_id in self.origins:
            self.refile(block_id)

    def on_less_needed(self, block_ids: list[int]) -> None:
        for block_id in block_ids:
            self.refile(block_id)


class Bench:
    """Two lines, the first more urgent, and the truth about every free block."""

    def __init__(self, order: GroupOrder) -> None:
        self.lines: list[GroupQueue[Item]] = [GroupQueue(order, 4) for _ in range(2)]
        self.listener = DemandListener()
        self.waiting: list[tuple[GroupQueue[Item], Item]] = []
        for urgency in (1, 0):
            line = self.lines[urgency]
            self.listener.future.watch(line.forest, urgency, lambda line=line: line._walk.group)

    def next_use(self, block_id: int) -> tuple[int, int] | None:
        """(how many are served before it is used, its depth); None if nobody needs it."""
        hashes, position = self.listener.origins[block_id]
        path = hashes[position]
        served = [item.path for line in self.lines for item in line]
        uses = [when for when, other in enumerate(served) if other[: len(path)] == path]
        return (uses[0], len(path)) if uses else None

    def check(self) -> None:
        self.listener.settle()
        self.listener.future.check_integrity()
        for line in self.lines:
            line.check_integrity()
        uses = {block_id: self.next_use(block_id) for block_id in self.listener.origins}
        needed = {block_id: use for block_id, use in uses.items() if use is not None}
        assert set(self.listener.future.filed) == set(needed)
        given_up = [needed[block_id] for block_id in self.listener.future.in_order()]
        assert given_up == sorted(needed.values(), reverse=True)
        if needed:
            assert needed[self.listener.future.last()] == given_up[0]


@pytest.mark.parametrize("order", [DepthFirst(), DecodeRatio()], ids=lambda o: o.name)
@settings(max_examples=300)
@given(steps=operations)
def test_the_order_of_giving_up_is_that_of_service_reversed(order, steps) -> None:
    bench = Bench(order)
    listener = bench.listener
    for serial, (operation, *values) in enumerate(steps):
        if operation == "add":
            line = bench.lines[values[3]]
            item = Item(serial, values[0], tail=values[1], max_tokens=values[2])
            line.add(item, serial)
            bench.waiting.append((line, item))
        elif operation == "free":
            listener.free(serial, values[0])
        elif operation == "touch" and listener.origins:
            listener.use(list(listener.origins)[values[0] % len(listener.origins)])
        elif operation == "give up" and listener.future.filed:
            listener.use(listener.future.last())
        elif operation == "admit" and bench.waiting:
            line = next(line for line in bench.lines if line)
            item = line.peek()
            line.remove(item, admitted=True)
            bench.waiting.remove((line, item))
        elif operation == "abort" and bench.waiting:
            line, item = bench.waiting.pop(values[0] % len(bench.waiting))
            line.remove(item)
        bench.check()
    while listener.future.filed:
        listener.use(listener.future.last())
        bench.check()


def test_the_open_group_is_kept_to_the_end_whatever_its_key() -> None:
    bench = Bench(DepthFirst())
    line = bench.lines[0]
    first, second, third = (Item(n, (n, 0)) for n in range(3))
    for item in (first, second, third, Item(3, (2, 1))):
        line.add(item, item.name)
    for block_id in range(3):
        bench.listener.free(block_id, (block_id,))
    assert list(bench.listener.future.in_order()) == [2, 1, 0]
    line._walk.jump(third)
    assert list(bench.listener.future.in_order()) == [1, 0, 2]
    assert bench.listener.future.last() == 1


def test_a_forest_that_is_no_longer_watched_keeps_nothing() -> None:
    bench = Bench(DepthFirst())
    future, (urgent, other) = bench.listener.future, bench.lines
    for number, line in enumerate((urgent, other)):
        line.add(Item(number, (1, 2)), number)
    bench.listener.free(0, (1, 2))
    assert future.filed[0].retained is urgent.forest.node_of(next(iter(urgent))).retained
    future.unwatch(urgent.forest)
    assert future.filed[0].retained is other.forest.node_of(next(iter(other))).retained
    future.unwatch(other.forest)
    assert not future.filed and other.forest.root.retained is None
    with pytest.raises(ValueError, match="not watched"):
        future.unwatch(other.forest)


def test_only_an_empty_unobserved_forest_can_be_watched() -> None:
    future = BlockDemand(DemandListener())
    forest: PrefixForest[Item] = PrefixForest(block_size=4)
    item = Item(0, (1,))
    forest.insert(item, item.block_hashes, 0)
    with pytest.raises(ValueError, match="1 requests wait in this forest; watch it before"):
        future.watch(forest)
    forest.remove(item)
    future.watch(forest)
    with pytest.raises(ValueError, match="observed already"):
        future.watch(forest)
    with pytest.raises(IndexError, match="no needed block is free"):
        future.last()


def test_a_cut_run_costs_no_more_than_the_head_that_is_cut_off() -> None:
    """10,000 filed blocks behind the cut are not touched."""
    listener = DemandListener()
    forest: PrefixForest[Item] = PrefixForest(block_size=4)
    listener.future.watch(forest)
    long = list(range(10_000))
    forest.insert(Item(0, ()), long, 0)
    for position in reversed(long):
        listener.origins[position] = (long, position)
        listener.refile(position)
    retained = listener.future.filed[9_999].retained
    slots = dict(retained.blocks)
    forest.insert(Item(1, ()), [0, 1, "other"], 1)
    assert {position for position in slots if position not in retained.blocks} == {0, 1}
    assert all(retained.blocks[position] is slots[position] for position in retained.blocks)
    listener.future.check_integrity()
