# SPDX-License-Identifier: Apache-2.0
"""GroupQueue serves requests group by group, as the brute-force order says."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prefix_trie_oracle import Item, OrderOracle

from vllm_batchllm.ordering.group_queue import GroupQueue
from vllm_batchllm.ordering.policies import (
    PATIENCE,
    DecodeRatio,
    DepthFirst,
    ShortFirst,
    make_order,
)

paths = st.lists(st.integers(0, 2), max_size=6).map(tuple)
operations = st.lists(
    st.one_of(
        st.tuples(st.just("add"), paths, st.integers(0, 3), st.integers(1, 9)),
        st.tuples(st.just("pop")),
        st.tuples(st.just("peek")),
        st.tuples(st.just("abort"), st.integers(0, 50)),
        st.tuples(st.just("give back")),
    ),
    max_size=60,
)


@pytest.mark.parametrize("order", [DepthFirst(), DecodeRatio(), ShortFirst()], ids=lambda o: o.name)
@settings(max_examples=400)
@given(steps=operations)
def test_order_equals_brute_force_under_any_mix_of_operations(order, steps) -> None:
    line: GroupQueue[Item] = GroupQueue(order, block_size=4)
    oracle = OrderOracle(ratio=order.name == "decode-ratio")
    waiting: list[Item] = []
    last_popped: Item | None = None
    num_tokens_before = 0
    for serial, (operation, *values) in enumerate(steps):
        if operation == "add":
            item = Item(serial, values[0], tail=values[1], max_tokens=values[2])
            line.add(item, serial)
            rank = (PATIENCE * item.num_tokens + num_tokens_before, serial)
            oracle.add(item, rank if order.name == "short-first" else serial)
            num_tokens_before += item.num_tokens
            waiting.append(item)
        elif operation == "give back" and last_popped is not None:
            line.requeue(last_popped, -serial)
            oracle.requeue(last_popped)
            waiting.append(last_popped)
            last_popped = None
        elif operation == "abort" and waiting:
            item = waiting.pop(values[0] % len(waiting))
            line.remove(item)
            oracle.remove(item)
        elif operation in ("pop", "peek") and waiting:
            item = line.peek()
            assert item is oracle.peek()
            if operation == "pop":
                line.remove(item, admitted=True)
                oracle.remove(item, admitted=True)
                waiting.remove(item)
                last_popped = item
        line.check_integrity()
        assert len(line) == len(waiting)
        assert Counter(line) == Counter(waiting)
    while waiting:
        item = line.peek()
        assert item is oracle.peek()
        line.remove(item, admitted=True)
        oracle.remove(item, admitted=True)
        waiting.remove(item)


@given(st.lists(paths, max_size=25))
def test_iteration_foretells_the_order_of_pops(path_list) -> None:
    line: GroupQueue[Item] = GroupQueue(DepthFirst(), block_size=4)
    for number, path in enumerate(path_list):
        line.add(Item(number, path), number)
    foretold = list(line)
    for expected in foretold:
        assert line.peek() is expected
        line.remove(expected, admitted=True)
        assert list(line) == foretold[foretold.index(expected) + 1 :]


@given(st.lists(st.integers(0, 10**6), unique=True, max_size=20))
def test_with_nothing_shared_the_order_is_that_of_arrival(firsts) -> None:
    line: GroupQueue[Item] = GroupQueue(DepthFirst(), block_size=4)
    items = [Item(n, (first,) if n % 3 else ()) for n, first in enumerate(firsts)]
    for item in items:
        line.add(item, item.name)
    assert list(line) == items


def test_short_first_serves_the_shortest_and_then_what_shares_with_it() -> None:
    line: GroupQueue[Item] = GroupQueue(ShortFirst(), block_size=4)
    long, short, lone, mate = Item(0, (1,) * 6), Item(1, (2, 2)), Item(2, ()), Item(3, (2,) * 9)
    for item in (long, short, lone, mate):
        line.add(item, item.name)
    assert list(line) == [lone, short, mate, long]
    assert line.peek() is lone


def test_short_first_keeps_nobody_waiting_for_ever() -> None:
    """Shorter ones keep coming; they go first until they have brought PATIENCE times its size."""
    line: GroupQueue[Item] = GroupQueue(ShortFirst(), block_size=4)
    long = Item(-1, (0, 0, 0))
    line.add(long, -1)
    num_tokens_before = 0
    for number in range(10_000):
        short = Item(number, (number + 1,))
        line.add(short, number)
        first = line.peek()
        if first is long:
            break
        line.remove(first, admitted=True)
        num_tokens_before += first.num_tokens
    assert num_tokens_before == PATIENCE * (long.num_tokens - 4) - long.num_tokens


def test_an_arrival_joins_the_open_group() -> None:
    line: GroupQueue[Item] = GroupQueue(DepthFirst(), block_size=4)
    a1, b1, a2 = Item(0, (1, 1)), Item(1, (2, 1)), Item(2, (1, 2))
    line.add(a1, 0)
    line.add(b1, 1)
    line.add(Item(9, (1, 3)), 2)
    assert line.peek() is a1
    line.remove(a1, admitted=True)
    line.add(a2, 3)
    served = [line.peek()]
    line.remove(served[0], admitted=True)
    served.append(line.peek())
    assert served[1] is a2, "the arrival is served before group b"


def test_who_waited_too_long_is_next_and_its_group_follows() -> None:
    now = 0.0
    line: GroupQueue[Item] = GroupQueue(
        DepthFirst(), block_size=4, max_wait_s=10.0, clock=lambda: now
    )
    group_a = [Item(n, (1, n)) for n in range(3)]
    group_b = [Item(10 + n, (2, n)) for n in range(3)]
    lone = Item(20, ())
    for item in (*group_a, *group_b, lone):
        line.add(item, item.name)
    served = [line.peek()]
    line.remove(served[0], admitted=True)
    for item in group_a[1:]:
        line.remove(item)
        line.add(item, 100 + item.name)  # group a keeps getting fresh arrivals
    now = 5.0
    for item in group_a[1:]:
        line.remove(item)
        line.add(item, 200 + item.name)
    now = 10.5  # b and lone have waited 10.5 s, the rest of a only 5.5 s
    order = []
    while line:
        order.append(line.peek())
        line.remove(order[-1], admitted=True)
        line.check_integrity()
    assert order[:4] == [*group_b, lone]


def test_an_unknown_order_names_the_known_ones() -> None:
    with pytest.raises(
        ValueError, match="unknown order 'lifo'; known: dfs, decode-ratio, short-first"
    ):
        make_order("lifo")
