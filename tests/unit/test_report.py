# SPDX-License-Identifier: Apache-2.0
"""The report says what the counters say, and nothing where they are silent."""

from __future__ import annotations

import json
from typing import Any

import pytest

from vllm_batchllm.offline.report import BatchReport, make_report
from vllm_batchllm.offline.report_book import ReportBook, together
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


def test_what_an_earlier_batch_left_counts_as_possible_and_is_told() -> None:
    report = report_of(BUSY, optimal_saved_tokens=200)
    assert report.saved_ratio == report.optimal_saved_ratio == pytest.approx(0.48)
    assert (report.num_warm_tokens, report.reuse_efficiency) == (280, 1.0)
    assert "of it left by earlier batches" in str(report) and "28.0%" in str(report)
    assert "left by earlier" not in str(report_of(BUSY))


def test_two_reports_together_are_that_of_one_batch_with_both() -> None:
    other = ScheduleCounters(
        num_steps=5,
        num_scheduled_tokens=3000,
        prompt_tokens=3000,
        computed_prompt_tokens=1500,
        admission_hit_tokens=1200,
        kv_blocks=100,
        num_memory_steps=5,
        held_blocks=100,
        held_blocks_peak=95,
        hit_tokens_by_level=[1500],
    )
    both = together(report_of(BUSY), report_of(other, optimal_saved_tokens=2000, makespan_s=3.0))
    assert (both.num_batches, both.num_requests, both.steps) == (2, 20, 25)
    assert both.saved_ratio == pytest.approx((480 + 1500) / 4000)
    assert both.optimal_saved_ratio == pytest.approx((500 + 2000) / 4000)
    assert both.tokens_per_step == pytest.approx(3900 / 25)
    assert (both.kv_peak_ratio, both.makespan_s) == (0.95, 5.0)
    assert both.hit_tokens_by_level[:3] == (1900, 0, 100)
    assert both.reuse_efficiency <= 1 and "batches" in str(both)
    # Every figure is a sum, a mean or the largest: none is forgotten.
    unlike = {
        name for name, value in both.to_dict().items() if value == report_of(BUSY).to_dict()[name]
    }
    assert unlike <= {
        "num_failed", "num_duplicates", "preemptions", "plan_s", "num_unshared", "refused_memory", "refused_peak",
        "refused_pace", "num_garbage_blocks", "num_needed_lost", "num_replicas", "num_restarts", "num_warm_tokens",
    }  # fmt: skip


def test_a_book_makes_each_report_once_and_adds_them_up() -> None:
    book, made = ReportBook(), []

    def make() -> BatchReport:
        made.append(len(made))
        return report_of(BUSY)

    with pytest.raises(RuntimeError, match="no batch has run yet"):
        book.last()
    for number in range(1, 4):
        book.begin()
        book.finished(make)
        assert len(made) == number - 1, "only when it is asked for, or the next batch begins"
        assert book.last() is book.last()
        assert book.total().num_batches == number
    assert book.total().num_requests == 30 and len(made) == 3
    unasked = ReportBook()
    for _ in range(3):
        unasked.finished(make)
    assert unasked.total().num_batches == 3 and unasked.last().num_batches == 1


def test_no_batch_fails_for_the_report_of_another() -> None:
    def broken() -> BatchReport:
        raise TypeError("a token is no number")

    book = ReportBook()
    book.finished(broken)
    book.begin()
    book.finished(lambda: report_of(BUSY))
    assert book.last().num_requests == 10
    with pytest.raises(RuntimeError, match=r"an earlier one failed \(a token is no number\)"):
        book.total()
    with pytest.raises(TypeError):
        only = ReportBook()
        only.finished(broken)
        only.last()
