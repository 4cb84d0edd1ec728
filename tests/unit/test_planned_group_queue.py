# SPDX-License-Identifier: Apache-2.0
"""PlannedGroupQueue serves single-level groups by a plan, as the brute-force order says."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prefix_trie_oracle import Item

from vllm_batchllm.ordering.group_queue import GroupQueue
from vllm_batchllm.ordering.planned_group_queue import (
    REPLANNING_SHARE,
    PlannedGroupQueue,
    queue_class_for,
)
from vllm_batchllm.ordering.policies import ORDERS as KNOWN
from vllm_batchllm.ordering.policies import ExactGroups, Paper, make_order
from vllm_batchllm.prefix.forest import PrefixForest
from vllm_batchllm.prefix.groups import RequestGroup

ORDERS = [Paper(), ExactGroups()]
by_order = pytest.mark.parametrize("order", ORDERS, ids=lambda order: order.name)
paths = st.lists(st.integers(0, 2), max_size=5).map(tuple)
operations = st.lists(
    st.one_of(
        st.tuples(st.just("add"), paths, st.integers(0, 3), st.integers(1, 9)),
        st.tuples(st.just("pop")),
        st.tuples(st.just("pop")),
        st.tuples(st.just("peek")),
        st.tuples(st.just("abort"), st.integers(0, 50)),
        st.tuples(st.just("give back")),
        st.tuples(st.just("wait"), st.integers(1, 6)),
    ),
    max_size=80,
)


def line_of(order: Any, items: list[Item], **options: Any) -> PlannedGroupQueue[Item]:
    line: PlannedGroupQueue[Item] = PlannedGroupQueue(order, block_size=4, **options)
    for rank, item in enumerate(items):
        line.add(item, rank)
    return line


def serve(line: PlannedGroupQueue[Item]) -> Item:
    item = line.peek()
    line.remove(item, admitted=True)
    line.check_integrity()
    return item


class PlanOracle:
    """What :class:`PlannedGroupQueue` promises, with lists that are searched and made anew."""

    def __init__(self, order: Any, max_wait_s: float | None) -> None:
        self.order, self.max_wait_s, self.now = order, max_wait_s, 0
        self.ranks: dict[Item, int] = {}
        self.since: dict[Item, int] = {}
        self.plan: list[list[Item]] = []
        self.is_open = False
        self.num_changes = 0
        self.returned: list[Item] = []

    def add(self, item: Item, rank: int) -> None:
        self.ranks[item], self.since[item] = rank, self.now
        self.num_changes += 1

    def remove(self, item: Item) -> None:
        if item in self.returned:
            self.returned.remove(item)
            return
        del self.ranks[item]
        self.num_changes += 1
        if self.plan and self.plan[0] == [item]:
            self.is_open = False
        self.plan = [left for g in self.plan if (left := [i for i in g if i is not item])]

    def peek(self) -> Item:
        if self.returned:
            return self.returned[0]
        oldest = min(self.ranks, key=self.ranks.__getitem__)
        if self.max_wait_s is not None and self.now - self.since[oldest] > self.max_wait_s:
            if not any(oldest in group for group in self.plan):
                self.make_plan_if_due()
            self.plan.sort(key=lambda group: oldest not in group)
            self.is_open = True
            return oldest
        if not self.is_open:
            self.make_plan_if_due()
        self.is_open = True
        return self.plan[0][0]

    def make_plan_if_due(self) -> None:
        planned = [item for group in self.plan for item in group]
        if len(planned) == len(self.ranks):
            return
        if self.num_changes < len(self.ranks) / REPLANNING_SHARE:
            return
        self.num_changes, self.is_open = 0, False
        forest: PrefixForest[Item] = PrefixForest(4)
        groups = []
        for item, rank in self.ranks.items():
            if item.path:
                forest.insert(item, item.block_hashes, rank)
            else:
                groups.append(RequestGroup(0, (item,)))
        groups += self.order.groups(forest)
        self.plan = [list(group.members) for group in sorted(groups, key=self.key)]

    def key(self, group: RequestGroup[Item]) -> tuple[float, int]:
        prefix = 4 * group.num_prefix_blocks
        tokens = prefix + sum(item.num_tokens - prefix for item in group.members)
        earliest = min(self.ranks[item] for item in group.members)
        if self.order.name == "paper":
            return (-1 / tokens if tokens else float("-inf"), earliest)
        return (-sum(item.max_tokens for item in group.members) / max(tokens, 1), earliest)

    def agree(self, item: Item) -> bool:
        """Whether `item` may come next: any member of the open group. It is put first."""
        expected = self.peek()
        if item is expected or self.returned or expected not in self.plan[0]:
            return item is expected
        overdue = self.max_wait_s is not None and (
            self.now - self.since[expected] > self.max_wait_s
        )
        if overdue or item not in self.plan[0]:
            return False
        self.plan[0].remove(item)
        self.plan[0].insert(0, item)
        return True


@by_order
@pytest.mark.parametrize("max_wait_s", [None, 8], ids=["patient", "8 s at most"])
@settings(max_examples=400)
@given(steps=operations)
def test_order_equals_brute_force_under_any_mix_of_operations(order, max_wait_s, steps) -> None:
    oracle = PlanOracle(order, max_wait_s)
    line = line_of(order, [], max_wait_s=max_wait_s, clock=lambda: oracle.now)
    waiting: list[Item] = []
    last_popped: Item | None = None
    steps += [("pop",)] * len(steps)
    for serial, (operation, *values) in enumerate(steps):
        if operation == "add":
            item = Item(serial, values[0], tail=values[1], max_tokens=values[2])
            line.add(item, serial)
            oracle.add(item, serial)
            waiting.append(item)
        elif operation == "give back" and last_popped is not None:
            line.requeue(last_popped, -serial)
            oracle.returned.insert(0, last_popped)
            waiting.append(last_popped)
            last_popped = None
        elif operation == "abort" and waiting:
            item = waiting.pop(values[0] % len(waiting))
            line.remove(item)
            oracle.remove(item)
        elif operation == "wait":
            oracle.now += values[0]
        elif operation in ("pop", "peek") and waiting:
            foretold = next(iter(line))
            item = line.peek()
            assert line.peek() is item
            assert oracle.agree(item)
            assert max_wait_s or item is foretold
            if operation == "pop":
                line.remove(item, admitted=True)
                oracle.remove(item)
                waiting.remove(item)
                last_popped = item
        line.check_integrity()
        assert len(line) == len(waiting)
        assert Counter(line) == Counter(waiting)
        assert all(item in line for item in waiting)


@by_order
@given(st.lists(paths, max_size=25))
def test_a_batch_is_planned_once_and_iteration_foretells_the_order_of_pops(
    order, path_list: list[tuple[int, ...]]
) -> None:
    plans = []

    class Counted(type(order)):  # type: ignore[misc]
        def groups(self, forest: PrefixForest[Item]) -> list[RequestGroup[Item]]:
            plans.append(len(forest))
            return super().groups(forest)

    line = line_of(Counted(), [Item(n, path) for n, path in enumerate(path_list)])
    foretold = list(line)
    plans.clear()
    served = [serve(line) for _ in path_list]
    assert served == foretold
    assert len(plans) == min(len(path_list), 1)


@by_order
def test_members_come_in_prefix_order_and_equal_prompts_in_order_of_arrival(order) -> None:
    ends = [(1, 1, 3), (1, 1), (1, 1, 2), (1, 1, 3), (1, 1, 2, 4)]
    line = line_of(order, [Item(n, end, tail=1) for n, end in enumerate(ends)])
    assert [serve(line).name for _ in ends] == [1, 0, 3, 2, 4]


def test_the_paper_puts_the_group_with_the_fewest_tokens_first_whatever_its_members() -> None:
    large = [Item(n, (1, 1, 1, 1, n)) for n in range(3)]  # 4 + 3 blocks for 3 answers
    small = [Item(10 + n, (2, 2, n)) for n in range(2)]  # 2 + 2 blocks for 2 answers
    lone = Item(20, (3,), tail=2)
    unhashed, also_small = Item(21, (), tail=3), Item(22, (4,), tail=2)
    line = line_of(Paper(), [*large, *small, lone, unhashed, also_small])
    names = [serve(line).name for _ in range(8)]
    assert names == [21, 20, 22, 10, 11, 0, 1, 2]


def test_exact_groups_put_the_most_output_per_token_first() -> None:
    modest = [Item(n, (1, 1, n), max_tokens=20) for n in range(2)]  # 40 tokens of 16
    best = [Item(10 + n, (2, 2, 2, 2, n), max_tokens=30) for n in range(3)]  # 90 of 28
    unhashed = Item(20, (), tail=3, max_tokens=9)  # 9 of 3
    line = line_of(ExactGroups(), [*modest, *best, unhashed])
    assert [serve(line).name for _ in range(6)] == [10, 11, 12, 20, 0, 1]


@by_order
def test_between_equal_groups_the_earliest_arrival_decides(order) -> None:
    items = [Item(n, (first, n)) for n, first in enumerate([1, 2, 2, 1])]
    assert [item.name for item in line_of(order, items)] == [0, 3, 1, 2]


def test_arrivals_wait_until_the_open_group_is_done() -> None:
    first = [Item(n, (1, n)) for n in range(3)]
    second = [Item(10 + n, (2, 2, n)) for n in range(3)]
    line = line_of(Paper(), [*first, *second])
    assert serve(line) is first[0]
    short, joins = Item(20, (3,)), Item(21, (1, 9))
    line.add(short, 20)
    line.add(joins, 21)
    assert list(line) == [*first[1:], *second, short, joins]
    assert [serve(line) for _ in range(2)] == first[1:]
    assert list(line) == [short, joins, *second], "the group is done: all are planned anew"
    assert [serve(line) for _ in range(5)] == [short, joins, *second]


def test_few_arrivals_do_not_make_a_new_plan() -> None:
    line = line_of(Paper(), [Item(n, (n, n)) for n in range(100)])
    assert serve(line).name == 0
    line.add(Item(200, (200,)), 200)  # the shortest, but one of a hundred
    served = [serve(line).name for _ in range(100)]
    due = served.index(200)
    assert served == [*range(1, due + 1), 200, *range(due + 1, 100)]
    # The `due` served after the first, that first and the arrival against those who waited.
    assert (due + 2) * REPLANNING_SHARE >= 100 - due > (due + 1) * REPLANNING_SHARE - 1


@by_order
@pytest.mark.parametrize("backlog", [0, 1, 500])
def test_a_stream_of_single_arrivals_costs_a_few_plannings_a_request(order, backlog: int) -> None:
    num_planned = 0
    plan = order.groups

    def counted(forest: PrefixForest[Item]) -> list[RequestGroup[Item]]:
        nonlocal num_planned
        num_planned += len(forest)
        return plan(forest)

    class Counted(type(order)):  # type: ignore[misc]
        groups: Callable[..., Any] = staticmethod(counted)

    line = line_of(Counted(), [Item(n, (n % 7, n)) for n in range(backlog)])
    for n in range(backlog, backlog + 2000):
        line.add(Item(n, (n % 7, n)), n)
        line.remove(line.peek(), admitted=True)
    assert num_planned <= 2 * REPLANNING_SHARE * (backlog + 2000)


def test_who_waited_too_long_is_next_and_its_group_follows() -> None:
    now = 0.0
    first = [Item(n, (1, n), tail=n) for n in range(3)]
    line = line_of(Paper(), [], max_wait_s=10.0, clock=lambda: now)
    late = [Item(10 + n, (2, 2, 2, n)) for n in range(3)]
    line.add(late[0], 0)
    now = 5.0
    for rank, item in enumerate([*first, *late[1:]], start=1):
        line.add(item, rank)
    assert serve(line) is first[0], "fewest tokens"
    now = 11.0
    assert serve(line) is late[0], "overdue"
    assert [serve(line) for _ in range(4)] == [*late[1:], *first[1:]]


def test_who_is_overdue_when_the_plan_has_run_out_is_planned_with_the_others() -> None:
    now = 0.0
    line = line_of(Paper(), [Item(0, (9,))], max_wait_s=10.0, clock=lambda: now)
    assert line.peek().name == 0
    oldest, other, shortest = Item(1, (1, 1, 1)), Item(2, (1, 1, 2)), Item(3, (2,))
    for rank, item in enumerate([oldest, shortest, other]):
        line.add(item, 10 + rank)
        now += 4.0
    assert serve(line).name == 0
    assert serve(line) is oldest
    assert [serve(line) for _ in range(2)] == [other, shortest]


def test_a_request_that_is_waiting_cannot_be_added_again_nor_removed_twice() -> None:
    hashed, unhashed = Item(0, (1,)), Item(1, ())
    line = line_of(Paper(), [hashed, unhashed])
    for item in (hashed, unhashed):
        with pytest.raises(ValueError):
            line.add(item, 9)
        line.remove(item)
        with pytest.raises(KeyError):
            line.remove(item)
    with pytest.raises(IndexError, match="empty"):
        line.peek()
    line.check_integrity()


def test_one_who_left_and_came_back_is_an_arrival() -> None:
    items = [Item(n, (1, n)) for n in range(4)]
    line = line_of(Paper(), items)
    assert line.peek() is items[0]
    line.remove(items[1])
    line.add(items[1], 9)
    assert [serve(line) for _ in range(4)] == [items[0], items[2], items[3], items[1]]


def test_only_orders_that_make_groups_are_served_by_a_plan() -> None:
    lines = {name: queue_class_for(make_order(name)) for name in KNOWN}
    assert lines == {
        "dfs": GroupQueue,
        "decode-ratio": GroupQueue,
        "short-first": GroupQueue,
        "paper": PlannedGroupQueue,
        "exact-groups": PlannedGroupQueue,
    }
