# SPDX-License-Identifier: Apache-2.0
"""The margin is what almost all of the latest steps stayed within."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_batchllm.admission.step_scatter import (
    LEAST_STEPS,
    MOST,
    WINDOW,
    WITHIN_RATIO,
    StepScatter,
)


@given(st.lists(st.floats(0.2, 4.0), max_size=3 * WINDOW))
def test_the_margin_is_that_of_the_latest_steps(ratios: list[float]) -> None:
    scatter = StepScatter()
    for ratio in ratios:
        scatter.add(2.0, 2.0 * ratio)
    latest = sorted(2.0 * ratio / 2.0 for ratio in ratios[-WINDOW:])
    if len(latest) < LEAST_STEPS:
        assert scatter.margin == 1
    else:
        assert scatter.margin == min(max(latest[int(WITHIN_RATIO * (len(latest) - 1))], 1.0), MOST)


def test_steps_of_which_nothing_was_foreseen_do_not_count() -> None:
    scatter = StepScatter()
    for _ in range(100):
        scatter.add(0.0, 1.0)
        scatter.add(1.0, -5.0)
        scatter.add(1.0, float("nan"))
    assert scatter.margin == 1


@pytest.mark.parametrize("spread", [0.02, 0.1, 0.3])
def test_of_a_hundred_steps_to_come_one_is_beyond_it(spread: float) -> None:
    draw, scatter = np.random.default_rng(0), StepScatter()
    for ratio in draw.lognormal(0.0, spread, 2 * WINDOW):
        scatter.add(1.0, ratio)
    beyond = float(np.mean(draw.lognormal(0.0, spread, 10_000) > scatter.margin))
    assert 0.001 < beyond < 0.03
