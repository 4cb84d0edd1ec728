# SPDX-License-Identifier: Apache-2.0
"""The learner finds what steps cost, and is careful about what it has not seen."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vllm_batchllm.admission.step_times import StepLoad, StepTimes

WEIGHTS_S, TOKEN_S, RIDGE = 0.010, 3e-5, 295
REQUEST_S, KV_S, PAIR_S, PREFILL_KV_S = 2e-5, 9e-8, 1e-9, 0.0


def roofline_s(load: StepLoad) -> float:
    """Weights or computing, whichever takes longer, and attention."""
    linear = max(WEIGHTS_S, WEIGHTS_S + (load.num_tokens - RIDGE) * TOKEN_S)
    return (
        linear
        + REQUEST_S * load.num_requests
        + KV_S * load.decode_kv_tokens
        + PAIR_S * load.prefill_pairs
        + PREFILL_KV_S * load.prefill_kv_tokens
    )


def drawn(draw: random.Random) -> StepLoad:
    decodes, chunk = draw.randrange(1, 200), draw.choice([0, draw.randrange(1, 4000)])
    start = draw.randrange(0, 60_000)
    return StepLoad(
        num_tokens=decodes + chunk,
        num_requests=decodes + bool(chunk),
        decode_kv_tokens=decodes * draw.randrange(100, 4000),
        prefill_pairs=chunk * start + chunk * (chunk + 1) // 2,
        prefill_kv_tokens=(start + chunk) * bool(chunk),
    )


def taught(num: int, seed: int = 0, noise: float = 0.0) -> StepTimes:
    times, draw = StepTimes(), random.Random(seed)
    for _ in range(num):
        load = drawn(draw)
        times.observe(load, roofline_s(load) * (1 + draw.uniform(-noise, noise)))
    return times


@pytest.mark.parametrize(("noise", "within"), [(0.0, 0.04), (0.05, 0.05)])
def test_a_roofline_is_found(noise: float, within: float) -> None:
    times, draw = taught(800, noise=noise), random.Random(99)
    for _ in range(200):
        load = drawn(draw)
        assert times.predict_s(load) == pytest.approx(roofline_s(load), rel=within)


def test_costs_that_change_are_followed() -> None:
    times, draw = taught(1000), random.Random(7)
    for _ in range(2500):
        load = drawn(draw)
        times.observe(load, 2 * roofline_s(load))
    load = drawn(draw)
    assert times.predict_s(load) == pytest.approx(2 * roofline_s(load), rel=0.05)


def test_nothing_is_known_before_the_first_step() -> None:
    assert StepTimes().predict_s(StepLoad(5, 5, 100)) == 0


@pytest.mark.parametrize("duration_s", [0.0, -1.0, float("nan"), float("inf"), 4000.0])
def test_what_no_clock_can_have_measured_is_ignored(duration_s: float) -> None:
    times = StepTimes()
    times.observe(StepLoad(5, 5, 100), duration_s)
    assert times.num_steps == 0
    times.observe(StepLoad(), 0.01)
    assert times.num_steps == 0


def test_a_second_request_is_thought_cheap_where_only_single_ones_were_seen() -> None:
    """What cannot be told apart is the step's: else nobody would ever start beside the first."""
    times = StepTimes()
    for tokens in range(1000, 1200):
        times.observe(StepLoad(1, 1, tokens), WEIGHTS_S + KV_S * tokens)
    alone, both = times.predict_s(StepLoad(1, 1, 1100)), times.predict_s(StepLoad(2, 2, 2200))
    assert alone == pytest.approx(WEIGHTS_S + KV_S * 1100, rel=0.01)
    assert both < 1.1 * alone


def test_steps_are_padded_to_the_sizes_that_are_captured() -> None:
    times, draw = StepTimes([8, 16, 64]), random.Random(3)
    for _ in range(500):
        tokens = draw.randrange(1, 120)
        padded = next((size for size in (8, 16, 64) if size >= tokens), tokens)
        launch_s = 0.002 if tokens > 64 else 0.0
        times.observe(StepLoad(tokens, tokens, 10), 0.001 + 1e-4 * padded + launch_s)
    assert times.predict_s(StepLoad(9, 9, 10)) == pytest.approx(0.001 + 16e-4, rel=0.05)
    assert times.predict_s(StepLoad(100, 100, 10)) == pytest.approx(0.013, rel=0.05)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 1000), st.integers(1, 40), st.data())
def test_more_work_never_takes_less(seed: int, num: int, data: st.DataObject) -> None:
    draw = random.Random(seed)
    times = StepTimes(data.draw(st.sampled_from([(), (8, 64, 512)])))
    for _ in range(num):
        times.observe(drawn(draw), draw.uniform(0.001, 1))
    parts = [data.draw(st.integers(0, 5000)) for _ in range(5)]
    more = [part + data.draw(st.integers(0, 5000)) for part in parts]
    assert times.predict_s(StepLoad(*parts)) <= times.predict_s(StepLoad(*more)) * (1 + 1e-9)
    assert min(times.costs) >= 0


@given(st.lists(st.integers(1, 4000), min_size=3, max_size=40), st.integers(1, 5000))
def test_what_is_foreseen_is_the_sum_of_all_parts(sizes: list[int], asked: int) -> None:
    times = StepTimes((64, 256))
    for place, size in enumerate(sizes):
        load = StepLoad(size, 1 + place % 7, 10 * place, size * size // 2, size)
        times.observe(load, 0.002 + 1e-5 * size + 1e-9 * size * size * (1 + place % 3))
    load = StepLoad(asked, 3, 500, asked * 11, asked)
    foreseen_s = times.predict_s(load)
    parts = times.costs * np.asarray(times._features(load))
    assert foreseen_s == pytest.approx(parts.sum(), rel=1e-9)
