# SPDX-License-Identifier: Apache-2.0
"""Replicas that die, hang and come back: every item is answered once, and nothing waits for ever."""

from __future__ import annotations

import asyncio
import random
import time

import pytest
from replicas_world import FakeReplica, drive, no_place

from vllm_batchllm.replicas import driver as driver_module
from vllm_batchllm.replicas.assignment import Assignment
from vllm_batchllm.replicas.errors import NoReplicaLeftError
from vllm_batchllm.replicas.replica import ReplicaGoneError
from vllm_batchllm.replicas.slot import DriveLimits


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch):
    monkeypatch.setattr(driver_module, "_FIRST_PAUSE_S", 0.005)
    monkeypatch.setattr(driver_module, "_LONGEST_PAUSE_S", 0.02)


def all_answered_once(book, num_items=200):
    assert sorted(book.answers) == list(range(num_items))
    assert book.num_twice == 0


def test_each_replica_computes_its_part_in_order():
    replicas = [FakeReplica(name) for name in "abcd"]
    book, driver, is_done = drive(replicas)
    assert is_done
    all_answered_once(book)
    assert not any(replica.is_alive for replica in replicas)
    for number, replica in enumerate(replicas):
        first = [item for piece in replica.had for item in piece][:30]
        assert first == list(range(50 * number, 50 * number + 30))
    assert driver.figures() == {"steps": sum(replica.num_steps for replica in replicas)}


def test_an_engine_is_never_told_of_much_more_than_it_runs_towards_the_end():
    replica = FakeReplica("a", max_num_seqs=2)
    drive([replica, FakeReplica("b")], num_items=400)
    assert max(map(len, replica.had)) <= 8


def test_a_busy_replica_asks_for_several_at_once(monkeypatch):
    """Asking costs O(replicas), so it must not be done for every answer."""
    asked = []
    take = Assignment.take

    def counting(self, replica, num_items, now_s=0.0):
        asked.append(num_items)
        return take(self, replica, num_items, now_s)

    monkeypatch.setattr(Assignment, "take", counting)
    replicas = [FakeReplica(name, max_num_seqs=64) for name in "ab"]
    book, _, _ = drive(replicas, num_items=6400)
    all_answered_once(book, 6400)
    assert len(asked) < sum(replica.num_steps for replica in replicas) * 4
    assert min(number for number in asked[10:-10]) >= 4


def test_a_slow_replica_is_relieved():
    slow, quick = FakeReplica("slow", max_num_seqs=1), FakeReplica("quick", max_num_seqs=8)
    book, _, _ = drive([slow, quick])
    all_answered_once(book)
    assert sum(map(len, quick.had)) > 120


def test_what_a_dead_replica_had_goes_to_whoever_is_free():
    replicas = [FakeReplica("a", dies_at={3, 9}), FakeReplica("b", dies_at={5})]
    book, driver, is_done = drive(replicas)
    assert is_done
    assert driver.num_restarts == 3
    all_answered_once(book)


def test_random_deaths_lose_nothing():
    draw = random.Random(3)
    for _ in range(10):
        replicas = [
            FakeReplica(name, draw.randint(1, 6), dies_at=set(draw.sample(range(1, 60), 4)))
            for name in "abc"
        ]
        book, _, is_done = drive(replicas, limits=DriveLimits(max_restarts=100))
        assert is_done
        all_answered_once(book)
        assert not book.given_up


@pytest.mark.parametrize("poison", [frozenset({77}), frozenset({0, 77, 78, 199})])
def test_items_that_kill_are_given_up_and_no_other(poison):
    replicas = [FakeReplica(name, poison=poison) for name in "abc"]
    book, driver, is_done = drive(replicas, limits=DriveLimits(max_restarts=100))
    assert is_done
    assert sorted(book.given_up) == sorted(poison)
    all_answered_once(book)
    assert driver.num_restarts <= 8 * len(poison)


def test_a_replica_that_hangs_is_ended_and_started_again():
    hanging = FakeReplica("a", hangs_at=2)
    book, driver, is_done = drive(
        [hanging, FakeReplica("b", max_num_seqs=1)], limits=DriveLimits(stall_s=0.05)
    )
    assert is_done
    assert hanging.num_lives == 2
    assert driver.num_restarts == 1
    all_answered_once(book)


def test_one_that_cannot_be_started_leaves_the_work_to_the_others(heard):
    broken = FakeReplica("broken", starts=[ReplicaGoneError("out of memory")] * 9)
    book, _, is_done = drive([broken, FakeReplica("b", max_num_seqs=1)])
    assert is_done
    assert broken.num_lives == 0
    all_answered_once(book)
    assert "broken is not started again; the others go on" in heard.text


def test_if_none_can_be_started_the_reason_is_said_at_once():
    replicas = [FakeReplica(name, starts=[ReplicaGoneError("no such model")] * 9) for name in "ab"]
    with pytest.raises(NoReplicaLeftError, match="no such model"):
        drive(replicas)
    assert [len(replica.starts) for replica in replicas] == [8, 8]


def test_a_node_that_joins_later_takes_its_share():
    late = FakeReplica("late", starts=[no_place(), no_place()])
    book, driver, is_done = drive([late, FakeReplica("b", max_num_seqs=1)], num_items=600)
    assert is_done
    assert sum(map(len, late.had)) > 100
    assert driver.num_restarts == 0
    all_answered_once(book, 600)


def test_a_node_that_leaves_for_good_changes_nothing_but_speed():
    leaving = FakeReplica("a", dies_at={4}, starts=[None, *[no_place()] * 1000])
    book, _, is_done = drive([leaving, FakeReplica("b")])
    assert is_done
    all_answered_once(book)
    assert not book.given_up


def test_a_batch_that_is_stopped_lets_what_runs_end():
    replicas = [FakeReplica(name, max_num_seqs=1) for name in "ab"]
    book, driver, is_done = drive(replicas, num_items=5000, stop_after_s=0.1)
    assert not is_done
    assert 0 < len(book.answers) < 5000
    assert len(book.answers) == sum(len(piece) for replica in replicas for piece in replica.had)
    assert driver.num_in_flight == 0


def test_a_batch_that_is_stopped_does_not_wait_for_what_hangs():
    hanging = FakeReplica("a", hangs_at=0)
    _, _, is_done = drive([hanging], stop_after_s=0.02, limits=DriveLimits(grace_s=0.05))
    assert not is_done
    assert not hanging.is_alive


@pytest.mark.parametrize("num_items", [0, 40])
def test_nothing_waits_for_a_replica_that_still_starts(num_items):
    class Starting(FakeReplica):
        async def start(self):
            await asyncio.sleep(3600)

    began = time.monotonic()
    book, _, is_done = drive([Starting("slow"), FakeReplica("b")], num_items=num_items)
    assert is_done
    all_answered_once(book, num_items)
    _, _, is_done = drive([Starting("slow")], stop_after_s=0.02)
    assert not is_done
    assert time.monotonic() - began < 10


def test_an_error_of_the_books_ends_everything(monkeypatch):
    from replicas_world import Book

    async def full(self, item, answer):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Book, "answered", full)
    replicas = [FakeReplica("a"), FakeReplica("b")]
    with pytest.raises(OSError, match="No space left"):
        drive(replicas)
    assert not any(replica.is_alive for replica in replicas)


def test_nothing_to_do():
    assert drive([FakeReplica("a")], num_items=0)[2]
