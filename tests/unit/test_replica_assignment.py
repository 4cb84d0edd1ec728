# SPDX-License-Identifier: Apache-2.0
"""Who takes what: every item once whatever happens, and thefts against all that could be stolen."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from vllm_batchllm.replicas.assignment import (
    PRICES,
    TOLERANCE,
    WORTHWHILE,
    Assignment,
    waiting_limit,
)
from vllm_batchllm.replicas.cut import SLACK, Costs


def costs_of(seed: int, num_items: int) -> Costs:
    draw = np.random.default_rng(seed)
    shared = draw.integers(0, 50, num_items).astype(float)
    shared[:1] = 0
    return Costs(draw.integers(1, 30, num_items).astype(float), shared)


class AssignmentMachine(RuleBasedStateMachine):
    """Replicas take, die, come back and speed up in any order; nothing is lost, nothing is given twice."""

    def __init__(self) -> None:
        super().__init__()
        self.num_items = 60
        self.assignment = Assignment(costs_of(7, self.num_items), ["a", "b", "c"])
        self.held: dict[str, list[int]] = {name: [] for name in "abcde"}
        self.done: set[int] = set()

    @rule(replica=st.sampled_from("abcde"), number=st.integers(0, 9))
    def take(self, replica: str, number: int) -> None:
        taken = self.assignment.take(replica, number)
        assert len(taken) <= number
        assert not set(taken) & self.done
        for held in self.held.values():
            assert not set(taken) & set(held)
        self.held[replica] += taken

    @rule(replica=st.sampled_from("abcde"))
    def finish(self, replica: str) -> None:
        if self.held[replica]:
            self.done.add(self.held[replica].pop(0))

    @rule(replica=st.sampled_from("abcde"))
    def die(self, replica: str) -> None:
        self.assignment.put_back(self.held[replica])
        self.held[replica] = []
        self.assignment.leave(replica)

    @rule(replica=st.sampled_from("abcde"), speed=st.floats(0.1, 10))
    def learn_speed(self, replica: str, speed: float) -> None:
        self.assignment.set_speed(replica, speed)

    @precondition(lambda self: self.num_items)
    @rule(seed=st.integers(0, 99))
    def learn_lengths(self, seed: int) -> None:
        self.assignment.reweigh(costs_of(seed, self.num_items).work)

    @invariant()
    def adds_up(self) -> None:
        self.assignment.check_integrity()
        held = sum(map(len, self.held.values()))
        assert self.assignment.num_left + held + len(self.done) == self.num_items

    def teardown(self) -> None:
        """One replica that goes on gets everything that is left, alone."""
        for name in "bcde":
            self.die(name)
        while taken := self.assignment.take("a", 5):
            self.held["a"] += taken
        assert self.assignment.num_left == 0


TestAssignment = AssignmentMachine.TestCase


def run_alone(assignment: Assignment, replica: str) -> list[int]:
    taken = []
    while some := assignment.take(replica, 1):
        taken += some
    return taken


def test_each_begins_with_its_interval_in_order():
    assignment = Assignment(Costs(np.ones(12), np.zeros(12)), ["a", "b", "c"], steals=False)
    assert [run_alone(assignment, name) for name in "abc"] == [
        [0, 1, 2, 3],
        [4, 5, 6, 7],
        [8, 9, 10, 11],
    ]
    assert assignment.num_left == 0


def test_without_stealing_who_is_dry_stays_dry():
    assignment = Assignment(Costs(np.ones(12), np.zeros(12)), ["a", "b"], steals=False)
    assert len(run_alone(assignment, "a")) == 6
    assert assignment.take("a", 3) == []
    assert assignment.num_stolen == 0


speeds = st.floats(0.2, 5)
backlogs = st.floats(0, 300)


@given(st.integers(0, 10**6), st.integers(2, 40), speeds, speeds, backlogs, backlogs)
def test_a_theft_is_as_good_as_any_and_cheap(
    seed, num_items, victim_speed, thief_speed, victim_backlog, thief_backlog
):
    costs = costs_of(seed, num_items)
    assignment = Assignment(costs, ["victim"])
    assignment.set_speed("victim", victim_speed)
    assignment.set_speed("thief", thief_speed)
    assignment.set_backlog("victim", victim_backlog)
    assignment.set_backlog("thief", thief_backlog)
    taken = assignment.take("thief", 1)
    work = costs.work.sum()
    alone = (victim_backlog + work) / victim_speed
    worthwhile = WORTHWHILE * work / (victim_speed + thief_speed)
    ends = {
        place: max(
            (victim_backlog + costs.work[:place].sum()) / victim_speed,
            (thief_backlog + costs.work[place:].sum() + costs.shared[place]) / thief_speed,
        )
        for place in range(num_items)
    }
    gain = {place: alone - end for place, end in ends.items()}
    all_end = (victim_backlog + thief_backlog + work) / (victim_speed + thief_speed)
    dear = max(worthwhile, SLACK * max(all_end, thief_backlog / thief_speed))
    least = {
        p: (dear if costs.shared[p] else worthwhile) + PRICES * costs.shared[p] / thief_speed
        for p in ends
    }
    pays = {place: end for place, end in ends.items() if gain[place] >= least[place]}
    if not pays or thief_backlog / thief_speed > all_end + worthwhile:
        assert taken == [], "nothing is worth it, or it has enough"
        return
    (place,) = taken
    latest = min(pays.values()) + TOLERANCE * work / victim_speed + 1e-9
    good = [p for p, end in pays.items() if end <= latest]
    assert place in good
    assert costs.shared[place] == min(costs.shared[p] for p in good)
    assert assignment.cut_work == costs.shared[place]


def test_who_has_enough_is_told_of_no_more_until_others_have_as_much():
    assignment = Assignment(Costs(np.ones(100), np.zeros(100)), ["slow", "fast"])
    assignment.set_speed("slow", 0.25)
    assignment.set_speed("fast", 1.0)
    assignment.set_backlog("slow", 10.0)
    assignment.set_backlog("fast", 0.0)
    told = 0
    while taken := assignment.take("slow", 1):
        told += len(taken)
    assert told == 13, "a fifth of all 110, and what a theft is not worth"
    assert len(run_alone(assignment, "fast")) == 87, (
        "the rest of its own, and all of the slow one's"
    )
    assert assignment.num_left == 0


def test_a_backlog_becomes_less_while_nobody_tells():
    assignment = Assignment(Costs(np.ones(100), np.zeros(100)), ["slow", "fast"])
    for name, speed in (("slow", 1.0), ("fast", 4.0)):
        assignment.set_speed(name, speed)
        assignment.set_backlog(name, 20.0, at_s=10.0)
    assert len(assignment.take("slow", 100, now_s=10.0)) == 9, "a fifth of all 140, and a little"
    assert assignment.take("slow", 100, now_s=10.0) == []
    assert assignment.take("slow", 100, now_s=14.0) == [], "both have done as much as they can"
    assert len(assignment.take("slow", 100, now_s=30.0)) == 12, "the fast one has been idle"


def test_a_faster_thief_takes_more():
    def stolen(speed: float) -> int:
        assignment = Assignment(Costs(np.ones(100), np.zeros(100)), ["victim"])
        assignment.set_speed("victim", 1.0)
        assignment.set_speed("thief", speed)
        assignment.take("thief", 1)
        begin, end = assignment.rest_of("thief")
        return end - begin + 1

    assert abs(stolen(1.0) - 50) <= 6
    assert abs(stolen(3.0) - 75) <= 6


def test_what_costs_more_to_cut_than_to_leave_is_left():
    costs = Costs(np.array([1000.0, 10, 10, 10]), np.array([0.0, 1000, 1000, 1000]))
    assignment = Assignment(costs, ["victim"])
    assert assignment.take("victim", 1) == [0]
    assert assignment.take("thief", 1) == []
    assert run_alone(assignment, "victim") == [1, 2, 3]


def test_the_last_item_of_one_that_has_not_started_is_taken():
    assignment = Assignment(Costs(np.ones(8), np.zeros(8)), ["late", "here"])
    assignment.set_absent("late")
    assert sorted(run_alone(assignment, "here")) == list(range(8))


def test_one_of_many_that_end_late_is_helped_where_it_is_cheap_alone():
    def stolen(price: float, late: float) -> int:
        costs = Costs(np.full(40, 10.0), np.full(40, price))
        assignment = Assignment(costs, ["a", "b", "c", "d"])
        for name in "abcd":
            assignment.set_speed(name, 1.0)
            assignment.set_backlog(name, late if name == "a" else 0.0)
        assert assignment.take("idle", 1) or price
        return assignment.num_stolen

    assert stolen(price=0.1, late=0.0) == 1
    assert stolen(price=12.0, late=0.0) == 0, "the other three end as late"
    assert stolen(price=12.0, late=90.0) == 1


def test_what_came_back_goes_first_and_to_anybody():
    assignment = Assignment(Costs(np.ones(10), np.zeros(10)), ["a", "b"])
    assert assignment.take("a", 3) == [0, 1, 2]
    assignment.put_back([2, 1])
    assignment.leave("a")
    assert assignment.take("b", 1) == [1]
    assert assignment.take("b", 3) == [2]
    assert run_alone(assignment, "b") == [5, 6, 7, 8, 9, 3, 4]


def test_a_batch_without_replicas_waits_for_the_first():
    assignment = Assignment(Costs(np.ones(3), np.zeros(3)), [])
    assert assignment.take("late", 5) == [0, 1, 2]
    assert Assignment(Costs(np.ones(0), np.zeros(0)), ["a"]).take("a", 1) == []


def test_a_million_items_are_found_once():
    assignment = Assignment(costs_of(1, 10**6), list(range(256)))
    seen = np.zeros(10**6, dtype=np.int64)
    for replica in range(256):
        while taken := assignment.take(replica, 50_000):
            seen[taken] += 1
    assert (seen == 1).all()


@pytest.mark.parametrize(
    ("num_left", "limit"), [(0, 16), (16 * 8 * 4, 16), (100 * 8 * 4, 100), (10**6, 512)]
)
def test_fewer_wait_towards_the_end(num_left, limit):
    assert waiting_limit(num_left, 8, 16, 512) == limit
