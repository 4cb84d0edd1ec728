# SPDX-License-Identifier: Apache-2.0
"""Limits follow from costs: the rule weighs idle memory against recomputation."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from vllm_batchllm.admission.guessed.overcommit import MAX_OVERCOMMIT, MIN_OVERCOMMIT
from vllm_batchllm.admission.limits import WorkAhead, choose_limits
from vllm_batchllm.admission.pacing import MeanLifetime
from vllm_batchllm.admission.step_costs import (
    PLATFORM_COSTS,
    StepCostMeter,
    StepCosts,
    platform_costs,
)

EVEN = MeanLifetime(
    steps=96, blocks=6, cohort_blocks=(7, 6.5, *[6] * 6), spread=0.0, holding_steps=96
)
SKEWED = MeanLifetime(steps=55, blocks=19, cohort_blocks=(25,) * 8, spread=2.1, holding_steps=380)


def workload(life: MeanLifetime | None, **figures) -> WorkAhead:
    defaults = {"capacity_blocks": 750, "block_size": 32, "num_waiting": 1024, "life": life}
    return WorkAhead(**(defaults | figures))


def test_dear_steps_and_cheap_tokens_mean_more_concurrency() -> None:
    work = workload(EVEN)
    decode_bound = choose_limits(StepCosts(step_s=1.0, prefill_s=1e-6), work)
    compute_bound = choose_limits(StepCosts(step_s=1e-3, prefill_s=1e-3), work)
    assert decode_bound.overcommit == MAX_OVERCOMMIT
    assert compute_bound.overcommit == MIN_OVERCOMMIT


def test_more_is_overcommitted_the_more_a_step_costs() -> None:
    chosen = [
        choose_limits(StepCosts(step_s, 5e-5), workload(EVEN)).overcommit
        for step_s in np.geomspace(1e-4, 1, 30)
    ]
    assert chosen == sorted(chosen)
    assert chosen[0] == MIN_OVERCOMMIT and chosen[-1] == MAX_OVERCOMMIT
    assert all(MIN_OVERCOMMIT <= overcommit <= MAX_OVERCOMMIT for overcommit in chosen)


def test_where_recomputing_costs_nothing_memory_is_filled() -> None:
    assert choose_limits(StepCosts(1e-3, 0.0), workload(EVEN)).overcommit == MAX_OVERCOMMIT


@pytest.mark.parametrize("platform", PLATFORM_COSTS)
def test_a_data_centre_cache_is_never_overcommitted(platform) -> None:
    """411,000 tokens of KV take far longer to compute than the steps of a life cost."""
    work = workload(EVEN, capacity_blocks=25_700, block_size=16)
    assert choose_limits(platform_costs(platform), work).overcommit == MIN_OVERCOMMIT < 1


def test_more_is_overcommitted_the_fewer_are_still_to_start() -> None:
    work = [workload(EVEN, num_waiting=n) for n in (100_000, 1000, 100, 10, 1)]
    chosen = [choose_limits(PLATFORM_COSTS["cuda"], each).overcommit for each in work]
    assert chosen == sorted(chosen)
    assert chosen[0] == chosen[1] < chosen[-1] == MAX_OVERCOMMIT
    assert {choose_limits(PLATFORM_COSTS["cuda"], each).overcommit_known for each in work} == {1.0}


def test_equal_lives_in_several_waves_are_paced() -> None:
    chosen = choose_limits(PLATFORM_COSTS["cpu"], workload(EVEN, num_waiting=512))
    assert (chosen.pace, chosen.num_cohorts) == (1.0, 3)
    assert "paced: lives lost in lockstep 0.68, in 3 cohorts 0.33" in chosen.reason


def test_few_waves_are_not_because_filling_slowly_takes_longer() -> None:
    assert choose_limits(PLATFORM_COSTS["cpu"], workload(EVEN, num_waiting=200)).pace is None


@pytest.mark.parametrize("num_waiting", [10, 100, 1000, 10_000, 100_000])
def test_lives_that_do_not_grow_are_never_paced(num_waiting) -> None:
    """Full size from the start: ages make no difference."""
    flat = dataclasses.replace(EVEN, cohort_blocks=(EVEN.blocks,) * 8)
    assert (
        choose_limits(PLATFORM_COSTS["cpu"], workload(flat, num_waiting=num_waiting)).pace is None
    )


def test_lives_shorter_than_two_blocks_are_not_paced_since_they_hardly_grow() -> None:
    for steps, pace in ((63, None), (64, 1.0)):
        short = dataclasses.replace(EVEN, steps=steps)
        chosen = choose_limits(
            PLATFORM_COSTS["cpu"], workload(short, block_size=32, num_waiting=512)
        )
        assert chosen.pace == pace


def test_known_lengths_are_overcommitted_only_where_lives_are_short() -> None:
    dear_steps = StepCosts(step_s=1.0, prefill_s=1e-6)
    for steps, overcommit in ((63, MAX_OVERCOMMIT), (64, 1.0)):
        short = dataclasses.replace(EVEN, steps=steps)
        chosen = choose_limits(dear_steps, workload(short, block_size=32, num_waiting=512))
        assert chosen.overcommit_known == overcommit
        assert chosen.overcommit == MAX_OVERCOMMIT, "guesses, in any case"


def test_the_ages_of_those_running_count_where_only_short_lives_have_ended() -> None:
    seen = dataclasses.replace(EVEN, steps=16, holding_steps=16)
    costs = PLATFORM_COSTS["cpu"]
    young = choose_limits(costs, workload(seen, mean_age=8)).overcommit
    old = choose_limits(costs, workload(seen, mean_age=200)).overcommit
    assert (young, old) == (MIN_OVERCOMMIT, MAX_OVERCOMMIT)


def test_lives_of_all_lengths_are_not_paced_since_they_mix_by_themselves() -> None:
    chosen = choose_limits(PLATFORM_COSTS["cpu"], workload(SKEWED, num_waiting=100_000))
    assert chosen.pace is None
    assert "lives spread by 2.10" in chosen.reason


def test_pacing_goes_on_until_the_last_wave() -> None:
    """Once ages are even, going on costs nothing; only the end is no longer worth it."""
    costs = PLATFORM_COSTS["cpu"]
    assert choose_limits(costs, workload(EVEN, num_waiting=130, pacing=True)).pace == 1.0
    assert choose_limits(costs, workload(EVEN, num_waiting=120, pacing=True)).pace is None


@pytest.mark.parametrize("life", [None, EVEN])
def test_with_nothing_to_plan_nothing_is_limited(life) -> None:
    chosen = choose_limits(PLATFORM_COSTS["cpu"], workload(life, num_waiting=0))
    assert chosen.pace is None
    assert chosen.reason


TRUE = StepCosts(step_s=8e-3, prefill_s=4e-5, decode_s=9e-4, kv_s=2e-7)


def seconds_of(costs: StepCosts, prefill: int, decode: int, kv: int) -> float:
    """Of one step with so many tokens prefilled, produced, and read from the KV cache."""
    work = np.array([1, prefill, decode, kv])
    return float(work @ [costs.step_s, costs.prefill_s, costs.decode_s, costs.kv_s])


def observe(meter: StepCostMeter, costs: StepCosts, num_steps: int, seed: int = 0) -> None:
    rng = np.random.default_rng(seed)
    for _ in range(num_steps):
        prefill, decode = int(rng.integers(0, 2048)), int(rng.integers(1, 200))
        kv = int(rng.integers(100, 1000)) * decode
        seconds = seconds_of(costs, prefill, decode, kv) * rng.uniform(0.9, 1.1)
        meter.observe(seconds, prefill, decode, kv)


def test_costs_are_learned_from_noisy_steps() -> None:
    meter = StepCostMeter(PLATFORM_COSTS["cuda"])
    observe(meter, TRUE, 2000)
    measured = meter.costs()
    assert measured.prefill_s == pytest.approx(TRUE.prefill_s, rel=0.1)
    assert measured.decode_s == pytest.approx(TRUE.decode_s, rel=0.2)
    assert seconds_of(measured, 500, 100, 50_000) == pytest.approx(
        seconds_of(TRUE, 500, 100, 50_000), rel=0.05
    )


def test_before_anything_is_measured_the_prior_stands() -> None:
    prior = PLATFORM_COSTS["cpu"]
    for name, value in dataclasses.asdict(StepCostMeter(prior).costs()).items():
        assert value == pytest.approx(getattr(prior, name)), name


def test_a_pause_in_between_moves_little() -> None:
    meter = StepCostMeter(PLATFORM_COSTS["cpu"])
    observe(meter, TRUE, 500)
    before = seconds_of(meter.costs(), 500, 100, 50_000)
    meter.observe(3600.0, 500, 100, 50_000)
    assert seconds_of(meter.costs(), 500, 100, 50_000) == pytest.approx(before, rel=0.1)


def test_old_steps_fade_when_the_platform_changes() -> None:
    meter = StepCostMeter(PLATFORM_COSTS["cpu"], memory_steps=200)
    observe(meter, TRUE, 1000)
    slower = StepCosts(*(3 * value for value in dataclasses.astuple(TRUE)))
    observe(meter, slower, 2000, seed=1)
    assert meter.costs().prefill_s == pytest.approx(slower.prefill_s, rel=0.2)


def test_no_cost_is_negative_even_if_the_data_say_so() -> None:
    meter = StepCostMeter(StepCosts(1e-3, 1e-5))
    for prefill in range(1, 200):
        meter.observe(1.0 / prefill, prefill, 0, 0)
    assert min(dataclasses.astuple(meter.costs())) >= 0


def test_steps_without_a_duration_are_left_out() -> None:
    meter = StepCostMeter(PLATFORM_COSTS["cpu"])
    meter.observe(0.0, 100, 1, 1)
    meter.observe(-1.0, 100, 1, 1)
    assert meter.num_steps == 0


@pytest.mark.parametrize("value", [-1e-9, math.nan, math.inf])
@pytest.mark.parametrize("name", ["step_s", "prefill_s", "decode_s", "kv_s"])
def test_impossible_costs_are_refused_by_name(name, value) -> None:
    figures = {"step_s": 1e-3, "prefill_s": 1e-5} | {name: value}
    with pytest.raises(ValueError, match=f"{name} must be 0 seconds or more, got"):
        StepCosts(**figures)


def test_an_unknown_platform_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="no costs for platform 'tpu'; known: cpu, cuda"):
        platform_costs("tpu")
