# SPDX-License-Identifier: Apache-2.0
"""One-shot requests are released by a table, by time, and each just once."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_batchllm.admission.one_shot_release import (
    EXPLORE_EVERY,
    RENEW_EVERY,
    RENEW_LEAST_S,
    OneShotRelease,
    ReleaseTable,
)
from vllm_batchllm.admission.release_tables import make_table
from vllm_batchllm.admission.service_times import ServiceTime

HOLD_S, MAX_BATCH = 0.5, 8


@dataclass(frozen=True)
class WaitFor:
    num: int
    saved_w: float = 10.0

    def batch_of(self, num_waiting: int) -> int:
        return min(num_waiting, MAX_BATCH) if num_waiting >= self.num else 0


class Told:
    """Makes tables that wait for four, and counts."""

    def __init__(self, table: ReleaseTable | None = None) -> None:
        self.asked: list[tuple[float, ServiceTime]] = []
        self._table = table or WaitFor(4)

    def __call__(self, rate: float, service: ServiceTime) -> ReleaseTable | None:
        self.asked.append((rate, service))
        return self._table


def holder(solve: Told) -> OneShotRelease[int]:
    return OneShotRelease(HOLD_S, MAX_BATCH, solve)


def taught(release: OneShotRelease[int], now_s: float = 0.0, rate: float = 100.0) -> float:
    """Teach it times and a rate; the time then."""
    for size in (1, 2, 3, 5, 8) * 5:
        release.services.served(size, 0.01 + 0.001 * size)
    for number in range(100):
        now_s += 1 / rate
        release.arrived(-number - 1, now_s)
        assert release.due(now_s, num_in_service=0, others_run=True) == [-number - 1]
    return now_s


def test_before_anything_is_known_all_are_released_at_once() -> None:
    release = holder(Told())
    for number in range(3):
        release.arrived(number, 0.0)
    assert release.due(0.0, num_in_service=0, others_run=False) == [0, 1, 2]


def test_the_table_decides_while_the_device_is_free() -> None:
    release = holder(solve := Told())
    now_s = taught(release)
    for number in range(3):
        release.arrived(number, now_s)
        assert release.due(now_s, num_in_service=0, others_run=False) == []
    release.arrived(3, now_s)
    assert release.due(now_s, num_in_service=0, others_run=False) == [0, 1, 2, 3]
    assert solve.asked[0][0] == pytest.approx(100, rel=0.2)


def test_now_and_then_a_batch_is_served_a_little_early_to_learn_its_time() -> None:
    release = holder(Told(WaitFor(5)))
    now_s, early = taught(release), 0
    for number in range(1000):
        now_s += 0.01
        release.arrived(number, now_s)
        due = release.due(now_s, num_in_service=0, others_run=False)
        assert len(due) in (0, 4, 5)
        early += len(due) == 4
    assert 1000 / 5 / EXPLORE_EVERY - 2 < early < 1000 / 5 / EXPLORE_EVERY + 3


def test_beside_other_work_all_are_released_and_beside_a_batch_only_a_full_one() -> None:
    release = holder(Told())
    now_s = taught(release)
    release.arrived(0, now_s)
    assert release.due(now_s, num_in_service=0, others_run=True) == [0]
    for number in range(MAX_BATCH):
        assert release.due(now_s, num_in_service=4, others_run=False) == []
        release.arrived(number, now_s)
    assert len(release.due(now_s, num_in_service=4, others_run=False)) == MAX_BATCH


def test_who_was_held_longest_goes_in_time_and_takes_the_others_along() -> None:
    release = holder(Told())
    now_s = taught(release)
    release.arrived(0, now_s)
    release.arrived(1, now_s + 0.4)
    assert release.due(now_s + 0.499, num_in_service=0, others_run=False) == []
    assert release.due(now_s + 0.501, num_in_service=1, others_run=False) == [0, 1]


def test_a_table_is_made_anew_after_some_batches_or_a_change_of_the_rate() -> None:
    release = holder(solve := Told())
    now_s = taught(release)
    before = len(solve.asked)
    for number in range(4 * RENEW_EVERY):
        now_s += 0.01
        release.arrived(number, now_s)
        release.due(now_s, num_in_service=0, others_run=False)
    assert before <= len(solve.asked) <= before + 3
    before = len(solve.asked)
    for number in range(1000, 1040):
        now_s += 0.0005
        release.arrived(number, now_s)
        release.due(now_s, num_in_service=0, others_run=False)
    assert solve.asked[-1][0] > 500 and len(solve.asked) <= before + 15


def test_joules_are_counted_by_the_model_between_batches() -> None:
    release = holder(Told())
    now_s = taught(release)
    before = release.saved_j
    for number in range(4):
        release.arrived(number, now_s + 2.0)
    assert release.due(now_s + 2.0, num_in_service=0, others_run=False)
    assert release.saved_j - before == pytest.approx(20.0)


def test_the_real_table_waits_where_power_counts_and_not_where_only_time_does() -> None:
    service = ServiceTime(0.01, 0.0001)
    assert make_table(100.0, service, 32, 0.0, 600.0) is None or make_table(
        100.0, service, 32, 0.0, 600.0
    ).batch_of(4)  # type: ignore[union-attr]
    table = make_table(100.0, service, 32, 1.0, 600.0)
    assert table is not None and table.batch_of(4) == 0 and table.batch_of(32) and table.saved_w > 0


def test_beyond_what_the_server_can_do_batches_are_the_fastest() -> None:
    table = make_table(1e6, ServiceTime(0.01, 0.001), 32, 0.1, 600.0)
    assert table is None or table.batch_of(1000) == 32


event = st.tuples(
    st.sampled_from(["come", "come", "look", "look beside others", "look beside a batch", "abort"]),
    st.one_of(st.floats(0, 0.05), st.floats(0, 3), st.floats(-1000, 1000)),
)


@given(st.lists(event, max_size=120), st.integers(1, 20))
def test_each_is_released_once_and_nobody_is_held_for_longer(
    events: list[tuple[str, float]], limit: int
) -> None:
    release = holder(Told(WaitFor(limit)))
    now_s = taught(release)
    came: dict[int, float] = {}
    released: list[int] = []
    for number, (what, more_s) in enumerate(events):
        now_s += more_s
        came = {name: min(at_s, now_s) for name, at_s in came.items()}
        if what == "come":
            release.arrived(number, now_s)
            came[number] = now_s
        elif what == "abort" and came:
            name = min(came)
            release.held.remove(name)
            del came[name]
        due = release.due(
            now_s,
            num_in_service=3 if what.endswith("batch") else 0,
            others_run=what.endswith("others"),
        )
        assert due == [name for name in came if name in due], "out of order, or aborted"
        released += due
        for name in due:
            del came[name]
        assert list(release.held) == list(came)
        over = [name for name, at_s in came.items() if now_s - at_s >= HOLD_S]
        assert not over or len(due) == MAX_BATCH, "held for too long beside room in the batch"
    assert len(released) == len(set(released))


def test_a_table_from_what_was_learnt_saves_what_the_model_says() -> None:
    """The whole of it: a device that takes 10 ms whatever it is given, and power that counts."""
    solve = partial(make_table, max_batch=32, power_weight=0.1, more_w=600.0)
    release: OneShotRelease[int] = OneShotRelease(10.0, 32, solve)
    arrivals = np.cumsum(np.random.default_rng(0).exponential(1 / 200, 4000)).tolist()
    now_s = busy_s = 0.0
    place, sizes = 0, []
    while place < len(arrivals) or release.held:
        while place < len(arrivals) and arrivals[place] <= now_s:
            release.arrived(place, now_s)
            place += 1
        due = release.due(now_s, num_in_service=0, others_run=False)
        if due:
            service_s = 0.01 + 1e-5 * len(due)
            release.services.served(len(due), service_s)
            now_s, busy_s = now_s + service_s, busy_s + service_s
            sizes.append(len(due))
        else:
            due_s = release.held.due_s() or np.inf
            now_s = min(arrivals[place] if place < len(arrivals) else np.inf, due_s)
    assert sum(sizes) == 4000
    assert np.mean(sizes[50:]) > 6 and busy_s / now_s < 0.35


def test_only_requests_that_are_taken_in_one_after_the_other_say_what_that_takes() -> None:
    release, now_s = holder(Told()), taught(holder(Told()))
    for number in range(40):
        for place in range(3):
            release.arrived(3 * number + place, now_s + 0.001 * place)
        now_s += 0.5
        release.due(now_s, num_in_service=0, others_run=True)
    for size in (1, 2, 3, 5, 8) * 5:
        release.services.served(size, 0.01 + 0.001 * size)
    learnt = release.services.learnt
    assert learnt is not None and learnt.intake_s == pytest.approx(0.001)


def test_a_server_that_takes_requests_in_meanwhile_holds_fewer_and_saves_less() -> None:
    """More come while it is busy anyway, and near its limit there is nothing to wait for."""
    made = [
        make_table(1000.0, ServiceTime(0.005, 0.0002, intake_s=seconds), 32, 0.2, 100.0)
        for seconds in (0.0, 0.0002, 0.0005)
    ]
    quick, slow, busy = made
    assert quick is not None and slow is not None and busy is None
    assert quick.policy.control_limit > slow.policy.control_limit > 1
    assert quick.saved_w > slow.saved_w > 0


def test_no_table_is_made_while_nothing_has_changed_and_none_too_soon() -> None:
    release = holder(solve := Told())
    now_s = taught(release)
    before = len(solve.asked)
    for number in range(40 * RENEW_EVERY):  # as evenly as it was taught
        now_s += 0.01
        release.services.served(1 + number % 8, 0.01 + 0.001 * (1 + number % 8))
        release.arrived(number, now_s)
        release.due(now_s, num_in_service=0, others_run=False)
    assert len(solve.asked) <= before + 3
    before, began_s = len(solve.asked), now_s
    for number in range(1000, 1400):  # ever slower, 2,000 batches a second
        now_s += 0.0005
        release.num_batches += 1
        release.services.served(1 + number % 8, 0.0001 * (number - 900))
        release.table(now_s)
    assert len(solve.asked) - before <= 2 + (now_s - began_s) / RENEW_LEAST_S
