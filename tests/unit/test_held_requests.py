# SPDX-License-Identifier: Apache-2.0
"""Nobody is held for longer than the bound, whatever the clock does."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from vllm_batchllm.admission.held_requests import HeldRequests


def test_they_go_in_the_order_in_which_they_came_and_their_waits_are_added_up() -> None:
    held: HeldRequests[str] = HeldRequests(10.0)
    held.add("a", 1.0)
    held.add("b", 2.0)
    held.tick(4.0)
    assert held.take(1) == ["a"] and held.hold_s == 3.0
    assert list(held) == ["b"] and "b" in held and "a" not in held and len(held) == 1
    assert held.take(5) == ["b"] and held.hold_s == 5.0 and held.num_held_ever == 2
    assert held.take(1) == [] and held.due_s() is None and not held.is_overdue()


def test_the_first_is_due_after_the_longest_hold() -> None:
    held: HeldRequests[str] = HeldRequests(0.5)
    held.add("a", 1.0)
    assert held.due_s() == 1.5
    held.tick(1.4)
    assert not held.is_overdue()
    held.tick(1.5)
    assert held.is_overdue()


def test_a_clock_that_jumps_back_begins_holds_anew() -> None:
    held: HeldRequests[str] = HeldRequests(1.0)
    held.add("a", 100.0)
    held.tick(5.0)
    assert held.due_s() == 6.0
    held.tick(6.0)
    assert held.is_overdue()
    held.remove("a")
    assert 0 <= held.hold_s <= 1.0


Step = tuple[str, float]
steps = st.lists(
    st.tuples(
        st.sampled_from(["come", "look", "abort"]),
        st.one_of(st.floats(0, 2), st.floats(-50, 50)),
    ),
    max_size=80,
)


@given(steps, st.floats(0.01, 5))
def test_nobody_is_held_longer_than_the_bound_after_the_last_jump(
    events: list[Step], max_hold_s: float
) -> None:
    held: HeldRequests[int] = HeldRequests(max_hold_s)
    came: dict[int, float] = {}
    now_s, gone = 0.0, []
    for number, (what, more_s) in enumerate(events):
        if now_s + more_s < now_s:
            came = {name: min(at_s, now_s + more_s) for name, at_s in came.items()}
        now_s += more_s
        held.tick(now_s)
        if what == "come":
            held.add(number, now_s)
            came[number] = now_s
        elif what == "abort" and came:
            name = next(reversed(came))
            held.remove(name)
            del came[name]
        while held.is_overdue():
            gone += held.take(1)
            came.pop(gone[-1])
        assert list(held) == list(came)
        assert all(now_s - at_s < max_hold_s for at_s in came.values())
    assert len(gone) == len(set(gone)) and held.hold_s >= 0
