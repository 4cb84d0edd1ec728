# SPDX-License-Identifier: Apache-2.0
"""What is expected of requests: one by one bounded, together as they were seen to be."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_batchllm.admission.candidate import Candidate
from vllm_batchllm.admission.guessed.quantiles import drawn_quantile
from vllm_batchllm.admission.length_prediction import LengthPredictor
from vllm_batchllm.admission.running_requests import RunningRequests


def request(name: str, num_generated: int = 0, max_tokens: int = 400, **more: object) -> Candidate:
    return Candidate(name, (), 64, 64 + num_generated, max_tokens, **more)  # type: ignore[arg-type]


@given(st.integers(0, 2**40), st.integers(0, 2**31))
def test_a_draw_is_a_quantile_and_stays(serial: int, num_generated: int) -> None:
    drawn = drawn_quantile(serial, num_generated)
    assert 0.01 <= drawn <= 0.99
    assert drawn == drawn_quantile(serial, num_generated)


def test_draws_are_even() -> None:
    tenths = Counter(int(drawn_quantile(n, 0) * 10) for n in range(10_000))
    assert all(850 < tenths[tenth] < 1150 for tenth in range(10)), tenths


def test_requests_that_run_are_planned_together_as_they_were_seen() -> None:
    predictor = LengthPredictor(None, lag=0)
    for n in range(1000):
        predictor.lengths.learn((), 400 if n % 10 == 0 else 16)
    steps = Counter(predictor.remaining(request("r"), (), 0, n) for n in range(2000))
    assert set(steps) == {15, 399}
    assert 140 < steps[399] < 260, "a tenth, give or take"


def test_who_asks_to_start_is_not_held_back_by_a_draw() -> None:
    predictor = LengthPredictor(None, lag=0)
    for n in range(1000):
        predictor.lengths.learn((), 400 if n % 10 == 0 else 16)
    assert {predictor.of(request(f"r{n}")).predicted for n in range(200)} == {16}


def test_one_quantile_plans_all_alike() -> None:
    predictor = LengthPredictor(0.8, lag=0)
    for n in range(1000):
        predictor.lengths.learn((), 400 if n % 10 == 0 else 16)
    assert {predictor.of(request(f"r{n}")).predicted for n in range(50)} == {16}
    assert {predictor.remaining(request("r"), (), 0, n) for n in range(50)} == {15}


@given(st.lists(st.integers(1, 400), max_size=30), st.integers(0, 399), st.text())
def test_an_expectation_is_bounded(lengths: list[int], num_generated: int, name: str) -> None:
    predictor = LengthPredictor(None, lag=1)
    for length in lengths:
        predictor.lengths.learn((), length)
    candidate = request(name, num_generated)
    expected = predictor.of(candidate)
    assert num_generated < expected.predicted <= 400
    assert expected.entrant.num_remaining == expected.predicted - num_generated - 1 + 1
    assert 1 <= predictor.remaining(candidate, (), num_generated, len(name)) <= 400 - num_generated


def test_the_same_request_is_expected_alike_whenever_it_is_asked_about() -> None:
    predictor = LengthPredictor(None, lag=0)
    for n in range(100):
        predictor.lengths.learn((), n + 1)
    first = predictor.of(request("a"))
    assert predictor.of(request("a")) == first
    assert len({predictor.remaining(request("a"), (), n, 5) + n for n in range(50)}) > 10


@pytest.mark.parametrize("quantile", [None, 0.5])
def test_known_lengths_and_hints_are_taken_as_they_are(quantile: float | None) -> None:
    predictor = LengthPredictor(quantile, lag=0)
    predictor.lengths.learn((), 7)
    assert predictor.of(request("a", length_known=True)).predicted == 400
    assert predictor.of(request("b", hint=33)).predicted == 33


def test_the_peak_to_come_counts_the_long_ones_among_those_who_run() -> None:
    """200 requests of 4 blocks; half get 400 tokens, so each of these holds 29 blocks at its end."""
    peaks = {}
    for quantile in (None, 0.8, 0.2):
        predictor = LengthPredictor(quantile, lag=0)
        for n in range(1000):
            predictor.lengths.learn((), 400 if n % 2 else 16)
        running = RunningRequests(10_000, 16, predictor)
        for n in range(200):
            running.add(predictor.of(request(f"r{n}")))
        running.check_integrity({f"r{n}" for n in range(200)})
        peaks[quantile] = running.memory.forecast().peak
    assert peaks[0.8] == 200 * 29, "all are planned as long"
    assert peaks[0.2] == 200 * 5, "all are planned as short"
    assert 80 * 29 < peaks[None] < 120 * 29, "about half of each"
