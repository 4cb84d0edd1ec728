# SPDX-License-Identifier: Apache-2.0
"""The report says what the counters say, and nothing where they are silent."""

from __future__ import annotations

import json
from typing import Any

import pytest

from vllm_batchllm.offline.report import BatchReport, make_report
from vllm_batchllm.stats.counters import ScheduleCounters

BUSY = ScheduleCounters(
    num_steps=20,
    num_scheduled_tokens=900,
    num_admitted=10,
    prompt_tokens=1000,
    admission_hit_tokens=500,
    computed_prompt_tokens=520,
    num_preemptions=1,
    plan_s=0.01,
    refused_memory=3,
    refused_peak=2,
    refused_pace=1,
    num_memory_steps=20,
    held_blocks=1200,
    held_blocks_peak=90,
    num_ended=8,
    real_tokens=80,
    num_garbage_blocks=1234,
    num_needed_lost=0,
    hit_tokens_by_level=[400, 0, 100, 0, 0, 0, 0, 0],
    kv_blocks=100,
)


def report_of(counters: ScheduleCounters, **books: Any) -> BatchReport:
    plain = {
        "optimal_saved_tokens": 500,
        "num_requests": 10,
        "num_failed": 0,
        "num_duplicates": 0,
        "output_tokens": 80,
        "makespan_s": 2.0,
    }
    return make_report(counters, **(plain | books))


def test_memory_figures_are_taken_from_the_counters() -> None:
    report = report_of(BUSY)
    assert (report.kv_peak_ratio, report.kv_mean_ratio) == (0.9, 0.6)
    assert (report.refused_memory, report.refused_peak, report.refused_pace) == (3, 2, 1)
    assert (report.num_garbage_blocks, report.num_needed_lost) == (1234, 0)
    assert report.hit_tokens_by_level == (400, 0, 100, 0, 0, 0, 0, 0)


def test_the_earlier_figures_are_unchanged() -> None:
    report = report_of(BUSY)
    assert report.saved_ratio == pytest.approx(0.48)
    assert report.admission_saved_ratio == report.optimal_saved_ratio == 0.5
    assert report.reuse_efficiency == pytest.approx(0.96)
    assert report.tokens_per_step == 45.0 and report.plan_share == pytest.approx(0.005)


def test_an_empty_batch_divides_by_nothing() -> None:
    report = report_of(ScheduleCounters(), optimal_saved_tokens=0, num_requests=0, makespan_s=0.0)
    assert report.saved_ratio == report.tokens_per_step == report.plan_share == 0.0
    assert report.kv_peak_ratio == report.kv_mean_ratio == 0.0
    assert report.reuse_efficiency == 1.0
    assert "batchllm report" in str(report)


def test_the_dict_is_plain_json_with_every_field() -> None:
    figures = report_of(BUSY).to_dict()
    assert json.loads(json.dumps(figures)) == figures
    assert set(BatchReport.__slots__) | {"reuse_efficiency", "plan_share"} == set(figures)


def test_the_table_shows_what_there_is_to_say() -> None:
    text = str(report_of(BUSY, num_duplicates=2))
    for part in (
        "2 duplicates answered once",
        "40.0% / 0.0% / 10.0%",
        "peak 90.0%, mean 60.0%",
        "memory 3, future peak 2, pace 1",
        "1,234 garbage, 0 still needed",
    ):
        assert part in text
    assert max(map(len, text.splitlines())) <= 72


def test_rows_without_content_are_left_out() -> None:
    silent = ScheduleCounters(num_steps=3, prompt_tokens=30, computed_prompt_tokens=30)
    text = str(report_of(silent))
    for row in ("by level", "KV blocks", "refused", "given up"):
        assert row not in text
    assert "tokens per step" in text


def test_a_needed_block_that_was_lost_is_shown_without_garbage() -> None:
    lost = ScheduleCounters(num_steps=3, prompt_tokens=30, num_needed_lost=2)
    assert "0 garbage, 2 still needed" in str(report_of(lost))
