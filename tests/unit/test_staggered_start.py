# SPDX-License-Identifier: Apache-2.0
"""Starts follow the rate that the memory can absorb."""

from __future__ import annotations

import dataclasses
import math
import random
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_batchllm.admission.memory_model import MemoryModel
from vllm_batchllm.admission.pacer import Pacer, WorkAhead, choose_cohorts
from vllm_batchllm.admission.pacing import (
    FULL_SHARE,
    MIN_SHARE,
    LatestLifetimes,
    MeanLifetime,
    StaggeredStart,
)
from vllm_batchllm.admission.request_lifetime import BlockGrowth, RequestLifetime


def held_over_a_life(own: int, tokens: int, steps: int, size: int) -> list[int]:
    """Blocks of its own in each step, block by block."""
    shared = -(-tokens // size) - own
    return [-(-(tokens + step) // size) - shared for step in range(steps)]


def life_of(own: int, tokens: int, steps: int, size: int) -> RequestLifetime:
    return RequestLifetime.of(MemoryModel.full(size), tokens, -(-tokens // size) - own, steps)


@given(st.integers(1, 200), st.integers(1, 300), st.integers(1, 40), st.data())
def test_a_life_is_the_sum_over_its_steps(tokens, steps, size, data) -> None:
    own = data.draw(st.integers(0, -(-tokens // size)))
    held = held_over_a_life(own, tokens, steps, size)
    life = life_of(own, tokens, steps, size)
    assert (life.steps, life.block_steps, life.full_blocks) == (steps, sum(held), held[-1])


@given(
    st.lists(st.tuples(st.integers(1, 50), st.integers(1, 50)), min_size=1, max_size=40),
    st.integers(1, 10),
)
def test_means_are_those_of_the_latest_lives(figures, window) -> None:
    lives = LatestLifetimes(window)
    kept = [
        RequestLifetime(steps, float(steps * blocks), (BlockGrowth(blocks, steps + 1),))
        for steps, blocks in figures
    ]
    for life in kept:
        lives.add(life)
    kept = kept[-window:]
    mean = lives.mean()
    assert mean is not None and len(lives) == len(kept)
    steps = [life.steps for life in kept]
    block_steps = [life.block_steps for life in kept]
    assert mean.steps == pytest.approx(statistics.fmean(steps))
    assert mean.blocks == pytest.approx(sum(block_steps) / sum(steps))
    assert mean.spread == pytest.approx(
        statistics.pstdev(steps) / statistics.fmean(steps), abs=1e-5
    )
    assert mean.holding_steps == pytest.approx(
        statistics.fmean(steps, [float(weight) for weight in block_steps])
    )


def test_without_lives_there_are_no_means() -> None:
    assert LatestLifetimes().mean() is None
    with pytest.raises(ValueError, match="window must be at least 1 life, got 0"):
        LatestLifetimes(0)


LIFE = MeanLifetime(
    steps=96, blocks=6, cohort_blocks=(7, 6.5, 6, 6, 6, 6, 6, 6), spread=0.0, holding_steps=96
)


def paced(pace: StaggeredStart, num_steps: int) -> list[float]:
    limits = []
    for _ in range(num_steps):
        pace.step(750, LIFE, 3)
        limits.append(pace.max_running)
    return limits


def test_the_number_grows_one_cohort_at_a_time() -> None:
    limits = paced(StaggeredStart(), 200)
    full = FULL_SHARE * 750 / 6
    assert sorted(set(limits)) == pytest.approx([full / 3, full * 2 / 3, full])
    assert limits == sorted(limits)
    assert limits.index(max(limits)) in range(63, 67), "two thirds of a life"


def test_until_it_is_paced_nothing_is_limited() -> None:
    pace = StaggeredStart()
    assert math.isinf(pace.max_running)
    paced(pace, 5)
    assert math.isfinite(pace.max_running)
    pace.stop()
    assert math.isinf(pace.max_running)
    assert paced(pace, 1)[0] == pytest.approx(FULL_SHARE * 750 / 6 / 3), "the first cohort again"


def test_the_number_is_lowered_while_the_peak_keeps_ending_admissions() -> None:
    pace = StaggeredStart()
    limits = []
    for _ in range(96 * 8):
        pace.step(750, LIFE, 3)
        pace.peak_refused()
        limits.append(pace.max_running)
    assert limits[-1] == pytest.approx(MIN_SHARE * 750 / 6)
    assert min(limits[200:]) >= MIN_SHARE * 750 / 6 * (1 - 1e-9)


def test_a_few_refusals_at_the_peak_change_nothing() -> None:
    pace = StaggeredStart()
    for step in range(96 * 8):
        pace.step(750, LIFE, 3)
        if step % 40 == 0:
            pace.peak_refused()
    assert pace.max_running == pytest.approx(FULL_SHARE * 750 / 6)


@given(st.integers(1, 40), st.integers(1, 90), st.integers(1, 80), st.integers(1, 20))
def test_cohorts_hold_what_a_roll_of_their_profiles_says(own, tokens, steps, size) -> None:
    own = min(own, -(-tokens // size))
    held = held_over_a_life(own, tokens, steps, size)
    life = life_of(own, tokens, steps, size)
    assert life.profile().tolist() == held
    lives = LatestLifetimes()
    lives.add(life)
    mean = lives.mean()
    assert mean is not None
    for number, most in enumerate(mean.cohort_blocks, 1):
        starts = [at * steps // number for at in range(number)]
        together = [sum(held[(t + s) % steps] for s in starts) / number for t in range(steps)]
        assert most == pytest.approx(max(together))


def test_what_was_worked_out_for_one_sample_is_not_told_of_another() -> None:
    rng = random.Random(3)
    kinds = [life_of(own, 60, steps, 8) for own in (1, 3) for steps in (30, 40, 50)]
    lives, latest = LatestLifetimes(), []
    for _ in range(120):
        latest.append(rng.choice(kinds))
        lives.add(latest[-1])
        fresh = LatestLifetimes()
        for life in latest:
            fresh.add(life)
        known, right = lives.mean(), fresh.mean()
        assert known is not None and right is not None
        assert known.cohort_blocks == pytest.approx(right.cohort_blocks)
    few = lives.mean(most_spread=0.0)
    assert few is not None and few.cohort_blocks == (), (
        "lives that differ are not laid over each other"
    )


def test_a_paced_population_fills_the_memory_evenly() -> None:
    """A population simulation: after one life the blocks held stay near the capacity."""
    life = life_of(4, 576, 96, 32)
    lives = LatestLifetimes()
    lives.add(life)
    mean = lives.mean()
    assert mean is not None
    held = held_over_a_life(4, 576, 96, 32)
    pace, ages, totals = StaggeredStart(), [], []
    for _ in range(600):
        ages = [age + 1 for age in ages if age + 1 < life.steps]
        pace.step(750, mean, 3)
        while len(ages) + 1 <= pace.max_running:
            ages.append(0)
        totals.append(sum(held[age] for age in ages))
    assert all(0.8 * 750 <= total <= 750 for total in totals[100:])


EVEN = MeanLifetime(100, 4.0, (6.0, 5.0, 4.5, 4.2, 4.1, 4.05, 4.0, 4.0), 0.0, 100)


def cohorts(life: MeanLifetime | None = EVEN, **figures: object) -> int | None:
    work = {
        "capacity_blocks": 400,
        "block_size": 16,
        "tokens_per_block": 16.0,
        "num_waiting": 2048,
    } | figures
    return choose_cohorts(WorkAhead(life=life, **work))  # type: ignore[arg-type]


def test_starts_are_paced_where_many_waves_of_equal_lives_come() -> None:
    number = cohorts()
    assert number is not None and number > 1
    assert cohorts(num_waiting=80) is None, "less than a wave"
    assert cohorts(num_waiting=0) is None and cohorts(None) is None
    assert cohorts(dataclasses.replace(EVEN, spread=0.5)) is None, "ages mix by themselves"
    assert cohorts(capacity_blocks=40) is None, "few, which do so by being sent back"
    assert cohorts(block_size=64) is None, "lives of less than two blocks"
    assert cohorts(dataclasses.replace(EVEN, cohort_blocks=(4.0,) * 8)) is None, "they hardly grow"
    assert cohorts(is_paced=True) == 1 and cohorts(is_paced=True, num_waiting=80) is None


def test_a_pacer_begins_anew_when_nothing_runs() -> None:
    pacer = Pacer(MemoryModel.full(16))
    pacer.step(400, 2048, False)
    for _ in range(8):
        assert math.isinf(pacer.max_running)
        pacer.plan(life_of(2, 20, 100, 16))
    assert math.isfinite(pacer.max_running)
    pacer.step(400, 2048, False)
    assert math.isinf(pacer.max_running)
