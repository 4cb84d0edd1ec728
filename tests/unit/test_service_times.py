# SPDX-License-Identifier: Apache-2.0
"""Times of batches by their size are learnt."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_batchllm.admission.service_times import LEAST_BATCHES, ServiceTime, ServiceTimes


def fed(times: ServiceTimes, sizes: list[int], of: ServiceTime, noise: float = 0.0) -> None:
    draw = np.random.default_rng(0)
    for size in sizes:
        times.served(size, of.of(size) * float(1 + noise * draw.standard_normal()))


def sizes_of(num: int, most: int = 32) -> list[int]:
    return np.random.default_rng(1).integers(1, most + 1, num).tolist()


@pytest.mark.parametrize(
    "truth", [ServiceTime(0.01, 0.002), ServiceTime(0.0, 0.004), ServiceTime(0.02, 0.0)]
)
def test_a_line_is_found(truth: ServiceTime) -> None:
    times = ServiceTimes()
    fed(times, sizes_of(200), truth, 0.02)
    found = times.learnt
    assert found is not None
    assert np.allclose(found.up_to(32), truth.up_to(32), rtol=0.05)
    assert found.fixed_s == pytest.approx(truth.fixed_s, abs=0.002)
    assert found.each_s == pytest.approx(truth.each_s, abs=0.0002)


def test_a_bend_is_found_where_sizes_were_seen() -> None:
    """A device reads its weights for one request as for four, and needs a time for each from there on."""

    def bent(size: int) -> float:
        return max(10.0, 3.0 * size)

    times = ServiceTimes()
    for size in sizes_of(400):
        times.served(size, bent(size))
    found = times.learnt
    assert found is not None
    assert [found.of(size) for size in (1, 2, 4, 8, 16, 32)] == pytest.approx(
        [bent(size) for size in (1, 2, 4, 8, 16, 32)], rel=0.2
    )


def test_nothing_is_said_of_few_batches_or_of_one_size() -> None:
    times, truth = ServiceTimes(), ServiceTime(0.01, 0.001)
    fed(times, sizes_of(LEAST_BATCHES - 1), truth)
    assert times.learnt is None
    alike = ServiceTimes()
    fed(alike, [7] * 100, truth)
    assert alike.learnt is None


def test_sizes_that_differ_by_little_say_nothing_where_times_are_noisy() -> None:
    times = ServiceTimes()
    fed(times, [30, 31, 32] * 10, ServiceTime(0.01, 0.001), 0.1)
    assert times.learnt is None


def test_what_was_known_is_kept_and_rescaled_once_sizes_are_alike() -> None:
    times, truth = ServiceTimes(), ServiceTime(0.01, 0.001)
    fed(times, sizes_of(100), truth)
    assert times.learnt is not None
    fed(times, [32] * 6000, truth)
    found = times.learnt
    assert found is not None and found.of(1) == pytest.approx(truth.of(1), rel=0.1)
    fed(times, [32] * 2000, ServiceTime(0.02, 0.002))
    found = times.learnt
    assert found is not None
    assert (found.of(32), found.of(1)) == pytest.approx((0.084, 0.022), rel=0.1)


def test_durations_that_no_clock_can_have_measured_are_ignored() -> None:
    times = ServiceTimes()
    for _ in range(50):
        for duration_s in (0.0, -1.0, 1e9, float("nan")):
            times.served(3, duration_s)
        times.served(0, 1.0)
    assert times.learnt is None


@given(st.lists(st.tuples(st.integers(1, 1024), st.floats(1e-5, 100)), max_size=120))
def test_whatever_was_seen_times_are_above_0_and_do_not_fall(
    seen: list[tuple[int, float]],
) -> None:
    times = ServiceTimes()
    for size, duration_s in seen:
        times.served(size, duration_s)
        found = times.learnt
        if found is not None:
            curve = np.array(found.up_to(64))
            assert (np.isfinite(curve) & (curve >= 0)).all() and (np.diff(curve) >= 0).all()


def test_what_taking_requests_in_takes_is_told_beside() -> None:
    times, truth = ServiceTimes(), ServiceTime(0.01, 0.001)
    times.took_in(50.0)  # nobody came for a while: no intake takes that long
    for _ in range(100):
        times.took_in(0.0002)
    times.took_in(0.5)  # something else had the thread: three times the mean at most
    times.took_in(-1.0)
    fed(times, [1, 4, 8, 16] * 10, truth)
    learnt = times.learnt
    assert learnt is not None and learnt.intake_s == pytest.approx(0.0002, rel=0.05)
    assert learnt.of(8) == pytest.approx(truth.of(8), rel=0.01)


@pytest.mark.parametrize(
    ("other", "expected"),
    [
        (ServiceTime(0.0104, 0.00104), False),
        (ServiceTime(0.0112, 0.001), True),
        (ServiceTime(0.01, 0.00115), True),
        (ServiceTime(0.01, 0.001, intake_s=0.0001), True),
    ],
)
def test_times_differ_where_a_batch_of_any_size_does(other: ServiceTime, expected: bool) -> None:
    known = ServiceTime(0.01, 0.001)
    assert known.differs(other, 32, 0.05) is other.differs(known, 32, 0.05) is expected
