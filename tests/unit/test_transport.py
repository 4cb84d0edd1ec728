# SPDX-License-Identifier: Apache-2.0
"""Counters ride on a step's statistics as changes, and their sum is what was counted."""

from __future__ import annotations

import dataclasses
from collections import Counter as Sums
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_batchllm.stats import transport as transport_module
from vllm_batchllm.stats.counters import NUM_LEVELS, ScheduleCounters
from vllm_batchllm.stats.transport import CARRIER, OCCUPANCY, OTHER_HITS, CounterTransport, detach


def stats_of_vllm() -> Any:
    """Stands for vLLM's SchedulerStats: one map, with a key of its own."""
    return SimpleNamespace(**{CARRIER: {"in_progress": 2}})


def ride(transport: CounterTransport, counters: ScheduleCounters) -> dict[str, float]:
    """One step's way from engine core to front end."""
    stats = stats_of_vllm()
    transport.attach(stats, counters.to_dict)
    assert all(type(value) is int and value >= 0 for value in getattr(stats, CARRIER).values())
    figures = detach(stats)
    assert getattr(stats, CARRIER) == {"in_progress": 2}
    return figures


def test_only_what_changed_is_sent() -> None:
    transport, counters = CounterTransport(), ScheduleCounters(kv_blocks=100)
    first = ride(transport, counters)
    assert first == {
        "hash_block_size": 1,
        "kv_blocks": 100,
        "held_blocks_peak": 0,
        "max_tokens_held": 0,
        "num_held": 0,
    }
    assert ride(transport, counters) == {}
    counters.step(30)
    counters.plan_s = 0.25
    counters.hit_tokens_by_level[2] = counters.admission_hit_tokens = 16
    assert ride(transport, counters) == {
        "num_steps": 1,
        "num_scheduled_tokens": 30,
        "plan_s": 0.25,
        "admission_hit_tokens": 16,
        "hit_tokens_by_level.2": 16,
    }


def test_hits_without_a_level_are_counted_apart() -> None:
    counters = ScheduleCounters(admission_hit_tokens=50)
    counters.hit_tokens_by_level[0] = 30
    assert ride(CounterTransport(), counters)[OTHER_HITS] == 20


def test_a_figure_taken_back_is_held_until_it_is_passed() -> None:
    """A stopped prefill takes prompt tokens back; a Prometheus counter must not fall."""
    transport, counters = CounterTransport(), ScheduleCounters()
    sent = []
    for value in (100, 60, 90, 120):
        counters.computed_prompt_tokens = value
        sent.append(ride(transport, counters).get("computed_prompt_tokens", 0))
    assert sent == [100, 0, 0, 20]


def test_occupancy_is_that_of_the_last_steps() -> None:
    transport, counters = CounterTransport(), ScheduleCounters(kv_blocks=100)
    counters.num_memory_steps, counters.held_blocks = 1, 40
    assert ride(transport, counters)[OCCUPANCY] == pytest.approx(0.4)
    counters.num_memory_steps, counters.held_blocks = 3, 40 + 80 + 60
    assert ride(transport, counters)[OCCUPANCY] == pytest.approx(0.7)
    assert OCCUPANCY not in ride(transport, counters)


INCREASES = st.lists(
    st.dictionaries(
        st.sampled_from(["num_steps", "prompt_tokens", "refused_memory", "num_memory_steps"]),
        st.integers(0, 1000),
    ),
    max_size=12,
)


@given(INCREASES, st.lists(st.floats(0, 2), max_size=12), st.data())
def test_sums_over_front_ends_are_the_counters(increases, seconds, data) -> None:
    """Whichever front end gets a step, all together have seen what was counted."""
    transport, counters = CounterTransport(), ScheduleCounters()
    front_ends: list[Sums[str]] = [Sums(), Sums(), Sums()]
    for index, step in enumerate(increases):
        for name, more in step.items():
            setattr(counters, name, getattr(counters, name) + more)
        counters.plan_s += seconds[index] if index < len(seconds) else 0.0
        counters.hit_tokens_by_level[index % NUM_LEVELS] += 1
        counters.admission_hit_tokens += 1
        data.draw(st.sampled_from(front_ends)).update(ride(transport, counters))
    total = sum(front_ends, Sums())
    for name in ("num_steps", "prompt_tokens", "refused_memory", "admission_hit_tokens"):
        assert total[name] == getattr(counters, name)
    assert total["plan_s"] == pytest.approx(counters.plan_s, abs=1e-5)
    levels = [total[f"hit_tokens_by_level.{index}"] for index in range(NUM_LEVELS)]
    assert levels == counters.hit_tokens_by_level


def test_every_number_of_the_counters_can_ride() -> None:
    values = {
        item.name: 2.5 if item.type == "float" else 3
        for item in dataclasses.fields(ScheduleCounters)
        if item.name != "hit_tokens_by_level"
    }
    figures = ride(CounterTransport(), ScheduleCounters(**values))
    assert values.items() <= figures.items()


def test_without_statistics_nothing_is_asked() -> None:
    def snapshot() -> dict[str, Any]:
        raise AssertionError("asked for counters that nobody wants")

    CounterTransport().attach(None, snapshot)


@pytest.mark.parametrize("bad", [{"plan_s": float("inf")}, {"num_steps": None}, {}])
def test_a_failure_switches_the_feed_off_and_is_said_once(bad, monkeypatch) -> None:
    logger = Mock()
    monkeypatch.setattr(transport_module, "logger", logger)
    transport = CounterTransport()
    for _ in range(3):
        stats = stats_of_vllm()
        transport.attach(stats, lambda: bad)
        assert getattr(stats, CARRIER) == {"in_progress": 2}
    logger.warning.assert_called_once()
    assert "cannot be sent" in logger.warning.call_args.args[0]


def test_a_field_that_moved_does_not_stop_the_engine() -> None:
    CounterTransport().attach(SimpleNamespace(), ScheduleCounters().to_dict)


def test_while_the_engine_is_busy_changes_wait_for_the_next_load_and_none_is_lost() -> None:
    now_s = 100.0
    transport, counters = CounterTransport(clock=lambda: now_s), ScheduleCounters()
    sums: Sums[str] = Sums()
    for _ in range(50):
        counters.step(3)
        stats = stats_of_vllm()
        transport.attach(stats, counters.to_dict, can_wait=True)
        sums.update(detach(stats))
        now_s += transport_module.PERIOD_S / 10
    assert 0 < sums["num_steps"] < 50, "not every step was worth a load"
    stats = stats_of_vllm()
    transport.attach(stats, counters.to_dict)
    sums.update(detach(stats))
    assert (sums["num_steps"], sums["num_scheduled_tokens"]) == (50, 150)


def test_a_busy_engine_loads_once_a_period() -> None:
    times = iter(range(10_000))
    transport, counters = CounterTransport(clock=lambda: next(times) * 1e-3), ScheduleCounters()
    loads = 0
    for _ in range(1000):
        counters.step(1)
        stats = stats_of_vllm()
        transport.attach(stats, counters.to_dict, can_wait=True)
        loads += bool(detach(stats))
    assert 8 <= loads <= 1000 * 1e-3 / transport_module.PERIOD_S + 2
