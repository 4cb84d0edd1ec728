# SPDX-License-Identifier: Apache-2.0
"""Savings, efficiencies, and the pairing of runs by round."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_batchllm.measure.metrics import (
    ABResult,
    RunInputs,
    RunMetrics,
    arm_medians,
    paired_ratio,
    run_metrics,
)
from vllm_batchllm.measure.recorder import StepRecord

INPUTS = RunInputs(num_requests=10, prompt_tokens=1000, output_tokens=200, optimal_saved_tokens=800)


def run_of(arm: str, round_index: int, makespan_s: float) -> RunMetrics:
    record = StepRecord(step_tokens=[100, 50], computed_prompt_tokens=1000)
    return run_metrics(arm, round_index, INPUTS, record, makespan_s)


def test_savings_at_admission_and_after_recomputation_are_told_apart() -> None:
    record = StepRecord(
        step_tokens=[300, 100, 200],
        computed_prompt_tokens=400,
        admission_hit_tokens=800,
        preemptions=3,
        plan_s=0.5,
    )
    run = run_metrics("batchllm", 1, INPUTS, record, makespan_s=2.0)
    assert run.admission_saved_ratio == pytest.approx(0.8)
    assert run.admission_efficiency == pytest.approx(1.0)
    assert run.saved_ratio == pytest.approx(0.6)
    assert run.reuse_efficiency == pytest.approx(0.75)
    assert (run.steps, run.tokens_per_step) == (3, 200)
    assert (run.requests_per_s, run.tokens_per_s) == (5, 600)
    assert run.plan_share == 0.25
    assert run.step_tokens == (300, 100, 200)


def test_where_nothing_can_be_saved_efficiency_is_one() -> None:
    inputs = RunInputs(num_requests=1, prompt_tokens=10, output_tokens=1, optimal_saved_tokens=0)
    record = StepRecord(step_tokens=[10], computed_prompt_tokens=10)
    run = run_metrics("stock", 0, inputs, record, makespan_s=1.0)
    assert (run.reuse_efficiency, run.admission_efficiency) == (1.0, 1.0)


def test_ratios_are_taken_within_rounds_before_the_median() -> None:
    runs = [
        run_of("stock", 0, 10.0),
        run_of("batchllm", 0, 5.0),
        run_of("batchllm", 1, 100.0),  # the machine was slow in this round, for both
        run_of("stock", 1, 300.0),
        run_of("stock", 2, 8.0),
        run_of("batchllm", 2, 2.0),
    ]
    ratio = paired_ratio(runs, "stock", "batchllm")
    assert ratio.ratios == (2.0, 3.0, 4.0)
    assert (ratio.median, ratio.min, ratio.max) == (3.0, 2.0, 4.0)


def test_rounds_in_which_only_one_arm_ran_do_not_count() -> None:
    runs = [run_of("stock", 0, 4.0), run_of("batchllm", 0, 2.0), run_of("stock", 1, 9.0)]
    assert paired_ratio(runs, "stock", "batchllm").ratios == (2.0,)
    with pytest.raises(ValueError, match="sorted"):
        paired_ratio(runs, "stock", "sorted")


@given(st.lists(st.tuples(st.floats(0.1, 10), st.floats(0.1, 10)), min_size=1, max_size=9))
def test_a_common_slowdown_of_a_round_leaves_the_ratios(times: list[tuple[float, float]]) -> None:
    def ratios(factor: float) -> tuple[float, ...]:
        runs = []
        for index, (stock, ours) in enumerate(times):
            slow = factor if index % 2 else 1.0
            runs += [run_of("stock", index, stock * slow), run_of("batchllm", index, ours * slow)]
        return paired_ratio(runs, "stock", "batchllm").ratios

    assert ratios(7.0) == pytest.approx(ratios(1.0))


def test_medians_are_over_the_rounds_of_one_arm() -> None:
    runs = [run_of("stock", i, t) for i, t in enumerate((9.0, 1.0, 2.0))] + [run_of("x", 0, 50)]
    assert arm_medians(runs, "stock")["makespan_s"] == 2.0
    with pytest.raises(ValueError, match="sorted"):
        arm_medians(runs, "sorted")


def test_every_other_arm_is_held_against_batchllm_else_the_last() -> None:
    arms = ("stock", "sorted", "batchllm")
    runs = tuple(run_of(arm, 0, 1.0 + i) for i, arm in enumerate(arms))
    full = ABResult({}, {}, arms, runs)
    assert [(r.slower, r.faster) for r in full.ratios()] == [
        ("stock", "batchllm"),
        ("sorted", "batchllm"),
    ]
    without = ABResult({}, {}, arms[:2], runs[:2])
    assert [(r.slower, r.faster) for r in without.ratios()] == [("stock", "sorted")]
