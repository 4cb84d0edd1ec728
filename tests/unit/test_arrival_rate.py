# SPDX-License-Identifier: Apache-2.0
"""The rate of arrivals is found, and followed."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_batchllm.admission.arrival_rate import LEAST, LOOKS, WINDOWS, ArrivalRate


def fed(rate: ArrivalRate, per_s: float, num: int, seed: int, start_s: float = 0.0) -> float:
    """So many of a Poisson stream; when the last came."""
    now_s = start_s
    for gap_s in np.random.default_rng(seed).exponential(1 / per_s, num):
        now_s += gap_s
        rate.arrived(now_s)
    return now_s


def test_nothing_is_said_of_too_few() -> None:
    rate = ArrivalRate()
    assert rate.per_s(0.0) is None
    for number in range(LEAST - 1):
        rate.arrived(float(number))
        assert rate.per_s(number) is None
    rate.arrived(float(LEAST))
    assert rate.per_s(LEAST) == pytest.approx(1.0, rel=0.2)


@pytest.mark.parametrize("seed", range(5))
def test_an_even_stream_is_known_to_a_tenth(seed: int) -> None:
    rate = ArrivalRate()
    now_s = fed(rate, 50.0, 2000, seed)
    assert rate.per_s(now_s) == pytest.approx(50.0, rel=0.1)


@pytest.mark.parametrize("factor", [0.1, 0.3, 4.0, 20.0])
def test_a_step_is_seen_within_two_short_windows(factor: float) -> None:
    rate = ArrivalRate()
    now_s = fed(rate, 20.0, 1000, 0)
    now_s = fed(rate, 20.0 * factor, 2 * WINDOWS[-1], 1, now_s)
    found = rate.per_s(now_s)
    assert found is not None and 0.5 < found / (20.0 * factor) < 2.0


def test_silence_is_seen_although_nobody_comes() -> None:
    rate = ArrivalRate()
    now_s = fed(rate, 100.0, 1000, 0)
    found = [rate.per_s(now_s + wait_s) for wait_s in (0.0, 1.0, 10.0, 1000.0)]
    assert found == sorted(found, reverse=True)  # type: ignore[type-var]
    assert found[-1] is not None and found[-1] < 0.1


@pytest.mark.parametrize("together", [8, 30])
def test_arrivals_that_a_step_kept_from_being_seen_count_by_the_time_between_looks(
    together: int,
) -> None:
    """The engine takes in all that came during a step at once; that is no burst."""
    rate, draw = ArrivalRate(), np.random.default_rng(3)
    now_s, step_s, found = 0.0, 0.01, []
    for _ in range(300):
        now_s += step_s
        number = int(draw.poisson(together))
        if number:
            rate.arrived(now_s, number)
        found.append(rate.per_s(now_s))
    known = [value for value in found[50:] if value is not None]
    assert len(known) == 250
    assert np.allclose(known, together / step_s, rtol=0.35)
    assert known[-1] == pytest.approx(together / step_s, rel=0.15)


def test_bursts_come_to_the_mean_of_the_long_run() -> None:
    rate, now_s = ArrivalRate(), 0.0
    for gap_s in np.random.default_rng(5).exponential(0.1, 400):
        now_s += gap_s
        rate.arrived(now_s, 4)
    found = rate.per_s(now_s)
    assert found is not None and 20 < found < 80


@given(st.lists(st.tuples(st.floats(-100, 100), st.integers(1, 50)), max_size=200))
def test_whatever_the_clock_does_the_rate_is_a_number_above_0_and_memory_is_bounded(
    events: list[tuple[float, int]],
) -> None:
    rate, now_s = ArrivalRate(), 0.0
    for more_s, number in events:
        now_s += more_s
        rate.arrived(now_s, number)
        found = rate.per_s(now_s)
        assert found is None or (np.isfinite(found) and found > 0)
        assert len(rate._times) == len(rate._totals) <= 2 * WINDOWS[0] + LOOKS[0] + 2
