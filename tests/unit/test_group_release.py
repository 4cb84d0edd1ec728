# SPDX-License-Identifier: Apache-2.0
"""Groups that trickle in are held where that has been seen to pay, each request once, none for long."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from vllm_batchllm.admission.group_release import GroupRelease
from vllm_batchllm.admission.hold_value import CONTROL_EVERY, LEAST_CONTROL

HOLD_S, BLOCK = 0.5, 16
PAYS = {"token_s": 1e-5, "num_present": 50}
"""Four that are held save about a fifth more than they wait, if they save all."""


def hashes(group: int, own: int, shared: int = 100, more: int = 4) -> list[tuple[int, int]]:
    """Chained hashes: equal up to where two prompts are equal."""
    head = [(group, place) for place in range(shared)]
    return head + [(10**6 + own, place) for place in range(more)]


def asked(
    release: GroupRelease[int], group: int, now_s: float, num_cached: int = 0, hits: int = 0
) -> bool:
    """A document with three more questions, admitted at once if they were not held; whether they were."""
    names = [10_000 + 10 * group + place for place in range(4)]
    held = [release.arrived(name, hashes(group, name), num_cached, now_s, **PAYS) for name in names]
    assert len(set(held)) == 1
    if not held[0]:
        for place, name in enumerate(names):
            release.admitted(name, BLOCK * hits if place else 0)
    return held[0]


def taught(release: GroupRelease[int], now_s: float = 0.0, hits: int = 0) -> float:
    """Enough groups of which nobody was held, and what the others found in the cache."""
    for group in range(LEAST_CONTROL):
        now_s += 1.0
        assert not asked(release, -group - 1, now_s, hits=hits)
    return now_s + 1.0


def let_go(release: GroupRelease[int], now_s: float, hits: int) -> int:
    """Whoever is due is admitted: the first of them computes it all. How many they were."""
    due = release.due(now_s, is_idle=False)
    for place, name in enumerate(due):
        release.admitted(name, BLOCK * hits if place else 0)
    return len(due)


def first_held(release: GroupRelease[int], now_s: float, group: int, **load: float) -> bool:
    return release.arrived(group, hashes(group, group), 0, now_s, **(PAYS | load))  # type: ignore[arg-type]


def test_nobody_is_held_before_it_is_known_to_pay() -> None:
    taught(GroupRelease(HOLD_S, BLOCK))


def test_a_first_one_is_held_and_the_others_join_it_and_go_together() -> None:
    release: GroupRelease[int] = GroupRelease(HOLD_S, BLOCK)
    now_s = taught(release)
    assert first_held(release, now_s, 1)
    assert release.arrived(2, hashes(1, 2), 0, now_s + 0.3, **PAYS)
    assert release.num_saved_tokens > 80 * BLOCK
    assert release.due(now_s + 0.4, is_idle=False) == []
    assert release.due(now_s + 0.5, is_idle=False) == [1, 2], "the group goes with its first"
    assert release.num_groups == 1 and not release.held
    assert not release.arrived(3, hashes(1, 3), 100, now_s + 0.4, **PAYS), "cached by now"


def test_an_idle_engine_holds_nobody() -> None:
    release: GroupRelease[int] = GroupRelease(HOLD_S, BLOCK)
    now_s = taught(release)
    assert first_held(release, now_s, 1)
    assert release.due(now_s, is_idle=True) == [1]


def test_nobody_is_held_for_what_is_cached_or_small_or_saves_little() -> None:
    release: GroupRelease[int] = GroupRelease(HOLD_S, BLOCK)
    now_s = taught(release)
    assert not release.arrived(1, hashes(1, 1), 104, now_s, **PAYS)
    assert not release.arrived(2, hashes(2, 2, shared=2, more=1), 0, now_s, **PAYS)
    assert not first_held(release, now_s, 3, token_s=1e-9)
    assert not first_held(release, now_s, 4, num_present=0)


def test_what_is_not_cached_when_they_come_but_is_when_they_start_is_no_loss() -> None:
    """The first one may just be waiting."""
    release: GroupRelease[int] = GroupRelease(HOLD_S, BLOCK)
    now_s = taught(release, hits=100)
    for group in range(100):
        now_s += 1.0
        assert not asked(release, group, now_s, hits=100)


def test_requests_that_share_nothing_stop_holding() -> None:
    release: GroupRelease[int] = GroupRelease(HOLD_S, BLOCK)
    now_s, held = taught(release), []
    for number in range(1000):
        now_s += 1.0
        let_go(release, now_s, 0)
        held.append(first_held(release, now_s, number))
    assert held[0] and sum(held) < 700 and not any(held[-100:])


def test_holding_that_does_not_help_stops_and_is_tried_again_later() -> None:
    """What is computed again although they were held: the memory does not suffice for them together."""
    release: GroupRelease[int] = GroupRelease(HOLD_S, BLOCK)
    now_s, held = taught(release), []
    for group in range(600):
        now_s += 1.0
        let_go(release, now_s, hits=0)
        held.append(asked(release, group, now_s))
    assert held[0] and 0 < sum(held[-300:]) < 60


def test_some_are_never_held_so_that_the_gain_stays_known() -> None:
    release: GroupRelease[int] = GroupRelease(HOLD_S, BLOCK)
    now_s, held = taught(release), 0
    for group in range(10, 10 + 5 * CONTROL_EVERY):
        now_s += 1.0
        let_go(release, now_s, hits=100)
        held += asked(release, group, now_s)
    assert held == 5 * (CONTROL_EVERY - 1)


def test_an_aborted_member_leaves_nothing_behind() -> None:
    release: GroupRelease[int] = GroupRelease(HOLD_S, BLOCK)
    now_s = taught(release)
    assert first_held(release, now_s, 1)
    assert release.arrived(2, hashes(1, 2), 0, now_s, **PAYS)
    release.left(1)
    release.check_integrity()
    assert release.arrived(3, hashes(1, 3), 0, now_s, **PAYS), "the group goes on"
    release.left(2)
    release.left(3)
    release.check_integrity()
    assert not release.held and release.due(now_s + 9, is_idle=False) == []
    assert not release._groups and not release._by_key and not release.value._following


event = st.tuples(
    st.sampled_from(["come", "come", "come", "look", "idle", "abort"]),
    st.one_of(st.floats(0, 0.1), st.floats(0, 2), st.floats(-100, 100)),
    st.integers(0, 4),
)


@given(st.lists(event, max_size=120))
def test_each_is_released_once_and_nobody_is_held_for_longer(
    events: list[tuple[str, float, int]],
) -> None:
    release: GroupRelease[int] = GroupRelease(HOLD_S, BLOCK)
    now_s = taught(release)
    came: dict[int, float] = {}
    released: list[int] = []
    for number, (what, more_s, group) in enumerate(events):
        now_s += more_s
        came = {name: min(at_s, now_s) for name, at_s in came.items()}
        if what == "come":
            prompt = hashes(group + 100 * (number // 20), number, shared=40 * (group + 1))
            if release.arrived(number, prompt, 0, now_s, **PAYS):
                came[number] = now_s
        elif what == "abort" and came:
            release.left(next(iter(came)))
            del came[next(iter(came))]
        release.check_integrity()
        due = release.due(now_s, is_idle=what == "idle")
        release.check_integrity()
        released += due
        for name in due:
            del came[name]
        assert set(release.held) == set(came)
        assert all(now_s - at_s < HOLD_S for at_s in came.values())
        assert not (what == "idle" and came)
    assert len(released) == len(set(released))
