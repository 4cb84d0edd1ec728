# SPDX-License-Identifier: Apache-2.0
"""The queue of several adapters shows whom one queue would show if those without a slot were not there."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prefix_trie_oracle import Item

from vllm_batchllm.ordering.adapter_queue import AdapterGroupQueue, AdapterSlots
from vllm_batchllm.ordering.group_queue import GroupQueue
from vllm_batchllm.ordering.policies import DecodeRatio, DepthFirst

NUM_SLOTS = 2
paths = st.lists(st.integers(0, 2), max_size=4).map(tuple)
operations = st.lists(
    st.one_of(
        st.tuples(st.just("add"), paths, st.integers(0, 3)),
        st.tuples(st.just("add"), paths, st.integers(0, 3)),
        st.tuples(st.just("step"), st.integers(0, 4)),
        st.tuples(st.just("abort"), st.integers(0, 50)),
        st.tuples(st.just("end"), st.integers(0, 50)),
    ),
    max_size=40,
)


def adapter_of(item: Item) -> int:
    return int(item.path[0]) % 10


def queue_for(slots: AdapterSlots, order: Any) -> AdapterGroupQueue[Item]:
    return AdapterGroupQueue(slots, adapter_of, lambda: GroupQueue(order, block_size=4))


@pytest.mark.parametrize("order", [DepthFirst(), DecodeRatio()], ids=lambda order: order.name)
@pytest.mark.parametrize("alone", [True, False], ids=["nothing shared", "groups"])
@settings(max_examples=300)
@given(steps=operations)
def test_only_those_with_a_slot_start_and_in_the_order_of_one_queue(order, alone, steps) -> None:
    slots = AdapterSlots(NUM_SLOTS)
    queue = queue_for(slots, order)
    waiting: dict[Item, int] = {}
    running: list[Item] = []
    for serial, (operation, *values) in enumerate(steps):
        if operation == "add":
            path = (values[1] + 10 * serial,) if alone else (values[1], *values[0])
            item = Item(serial, path, tail=1, max_tokens=3)
            queue.add(item, serial)
            waiting[item] = serial
        elif operation == "abort" and waiting:
            item = list(waiting)[values[0] % len(waiting)]
            queue.remove(item)
            del waiting[item]
        elif operation == "end" and running:
            running.pop(values[0] % len(running))
        elif operation == "step":
            slots.begin_step(map(adapter_of, running))
            served: Item | None = None
            for _ in range(values[0]):
                in_use = {adapter_of(item) for item in running} - {0}
                allowed = {
                    item: rank
                    for item, rank in waiting.items()
                    if len(in_use) < NUM_SLOTS or adapter_of(item) in {0, *in_use}
                }
                assert queue.can_start() == bool(allowed)
                if not allowed:
                    with pytest.raises(IndexError, match="whose adapter may start"):
                        queue.peek()
                    break
                head = queue.peek()
                assert head in allowed
                if served is not None and any(served.path[0] == item.path[0] for item in allowed):
                    assert head.path[0] == served.path[0], "a group was torn apart"
                elif alone and not order.dynamic:
                    of_running = {i: r for i, r in allowed.items() if adapter_of(i) in in_use}
                    firsts = [
                        min(some, key=some.__getitem__) for some in (of_running, allowed) if some
                    ]
                    assert head in firsts, "neither who came first nor the first of those who run"
                queue.remove(head, admitted=True)
                slots.take(adapter_of(head))
                served = head
                running.append(head)
                del waiting[head]
            slots.end_step()
        queue.check_integrity()
        assert set(queue) == set(waiting) and len(queue) == len(waiting)


def test_an_open_group_is_served_to_its_end_though_another_adapter_came_earlier() -> None:
    slots = AdapterSlots(NUM_SLOTS)
    queue = queue_for(slots, DepthFirst())
    items = [Item(n, path, tail=1) for n, path in enumerate([(1, 1), (2, 1), (1, 1), (2, 1)])]
    for serial, item in enumerate(items):
        queue.add(item, serial)
    served = []
    while queue:
        served.append(queue.peek())
        queue.remove(served[-1], admitted=True)
    assert [items.index(item) for item in served] == [0, 2, 1, 3]


def test_skipped_and_requeued_requests_of_all_adapters_come_first() -> None:
    slots = AdapterSlots(NUM_SLOTS)
    queue = queue_for(slots, DepthFirst())
    items = [Item(n, (1 + n % 2, n), tail=1) for n in range(5)]
    queue.add(items[0], 0)
    queue.requeue(items[1], -1)
    queue.skip(items[2], -3)
    queue.skip(items[3], -4)
    served = []
    while queue:
        served.append(queue.peek())
        queue.remove(served[-1], admitted=True)
    assert [items.index(item) for item in served] == [3, 2, 1, 0]


def test_adapters_that_run_are_used_up_before_a_slot_is_taken_and_arrivals_do_not_count() -> None:
    slots = AdapterSlots(NUM_SLOTS)
    queue = queue_for(slots, DepthFirst())
    items = [Item(n, (adapter + 10 * n,), tail=1) for n, adapter in enumerate([1, 2, 1, 2, 1])]
    for serial, item in enumerate(items[:4]):
        queue.add(item, serial)
    served = []
    slots.begin_step([])
    while queue:
        served.append(queue.peek())
        queue.remove(served[-1], admitted=True)
        slots.take(adapter_of(served[-1]))
        if len(served) == 1:  # more of the adapter that runs come all the time
            queue.peek()
            queue.add(items[4], 4)
    assert [items.index(item) for item in served] == [0, 2, 1, 3, 4]
