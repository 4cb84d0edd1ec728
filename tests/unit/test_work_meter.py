# SPDX-License-Identifier: Apache-2.0
"""The work of a step, against requests that are followed token by token."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from vllm_batchllm.simulate.work import WorkMeter


def step(
    counts: dict[str, int],
    new: dict[str, int] | None = None,
    running: dict[str, int] | None = None,
    resumed: dict[str, int] | None = None,
) -> Any:
    """What `schedule()` returns: tokens of each request, and where those of each kind start."""
    cached = (running or {}) | (resumed or {})
    return SimpleNamespace(
        scheduled_new_reqs=[
            SimpleNamespace(req_id=name, num_computed_tokens=start)
            for name, start in (new or {}).items()
        ],
        scheduled_cached_reqs=SimpleNamespace(
            req_ids=list(cached),
            num_computed_tokens=list(cached.values()),
            resumed_req_ids=set(resumed or {}),
        ),
        num_scheduled_tokens=counts,
        total_num_scheduled_tokens=sum(counts.values()),
    )


def test_a_prompt_in_two_chunks_and_its_outputs() -> None:
    meter = WorkMeter()
    first = meter.work_of(step({"a": 4}, new={"a": 0}), 0, 9)
    assert (first.prefill_pairs, first.prefill_kv_tokens) == (1 + 2 + 3 + 4, 4)
    assert (first.num_tokens, first.num_requests, first.num_sampled) == (4, 1, 0)
    assert first.held_kv_tokens == 9
    second = meter.work_of(step({"a": 2}, running={"a": 4}), 1, 9)
    assert (second.prefill_pairs, second.prefill_kv_tokens) == (5 + 6, 6)
    third = meter.work_of(step({"a": 1}, running={"a": 6}), 1, 9)
    assert (third.prefill_pairs, third.decode_kv_tokens) == (0, 7)


def test_a_hit_is_attended_to_but_not_computed() -> None:
    work = WorkMeter().work_of(step({"a": 2}, new={"a": 32}), 1, 0)
    assert (work.num_tokens, work.prefill_pairs, work.prefill_kv_tokens) == (2, 33 + 34, 34)


def test_a_request_that_comes_back_starts_where_it_is_found() -> None:
    meter = WorkMeter()
    meter.work_of(step({"a": 40}, new={"a": 0}), 1, 0)
    work = meter.work_of(step({"a": 9}, resumed={"a": 32}), 1, 0)
    assert work.prefill_kv_tokens == 41
    assert meter.work_of(step({"a": 1}, running={"a": 41}), 1, 0).decode_kv_tokens == 42


def test_nobody_who_has_ended_is_remembered() -> None:
    meter = WorkMeter()
    meter.work_of(step({"a": 4, "b": 4}, new={"a": 0, "b": 0}), 2, 0)
    meter.forget(["a", "unknown"])
    assert list(meter._computed) == ["b"]


@st.composite
def lives(draw: st.DrawFn) -> list[dict[str, tuple[int, int]]]:
    """Steps: for each request in it, where it starts and how many tokens it has."""
    at: dict[str, int] = {}
    steps = []
    for _ in range(draw(st.integers(1, 8))):
        names = draw(st.lists(st.sampled_from("abcd"), min_size=1, unique=True))
        this = {}
        for name in names:
            if name not in at or (draw(st.booleans()) and draw(st.booleans())):
                at[name] = draw(st.integers(0, 50))  # comes, or was sent away and comes back
            count = draw(st.sampled_from([1, 1, 2, 7, 33]))
            this[name] = (at[name], count)
            at[name] += count
        steps.append(this)
    return steps


@given(lives())
def test_the_work_is_that_of_every_single_token(life: list[dict[str, tuple[int, int]]]) -> None:
    meter, ends = WorkMeter(), {}
    for this in life:
        starts = {name: start for name, (start, _) in this.items()}
        new = {name: start for name, start in starts.items() if name not in ends}
        resumed = {name: s for name, s in starts.items() if name in ends and s != ends[name]}
        running = {name: s for name, s in starts.items() if name not in new | resumed}
        counts = {name: count for name, (_, count) in this.items()}
        work = meter.work_of(step(counts, new, running, resumed), 0, 0)
        ends.update({name: start + count for name, (start, count) in this.items()})
        keys = {name: range(s + 1, s + c + 1) for name, (s, c) in this.items()}
        several = [attended for attended in keys.values() if len(attended) > 1]
        assert work.prefill_pairs == sum(map(sum, several))
        assert work.prefill_kv_tokens == sum(attended[-1] for attended in several)
        assert work.decode_kv_tokens == sum(a[0] for a in keys.values() if len(a) == 1)
        assert work.num_tokens == sum(map(len, keys.values()))
