# SPDX-License-Identifier: Apache-2.0
"""How many tokens a step may have."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_batchllm.admission.token_budget import (
    MIN_STEP_TOKENS,
    Outstanding,
    TokenBudget,
    step_tokens,
)

LONG = Outstanding(num_requests=400, num_prompt_tokens=400 * 2200, num_output_tokens=400 * 100)


def tokens(outstanding: Outstanding = LONG, **figures: int) -> int:
    defaults = {"num_running": 0, "most": 16384, "ridge": 256}
    defaults |= {"capacity_tokens": 99_000, "max_num_seqs": 1024}
    return step_tokens(outstanding, **(defaults | figures))


def test_a_step_has_the_tokens_of_the_steady_state() -> None:
    """44 requests of 2,250 tokens fit; each brings 22 prompt tokens for every output token."""
    assert tokens() == 44 * 23
    assert tokens(capacity_tokens=2 * 99_000) == 88 * 23


def test_where_many_run_steps_stay_as_they_are() -> None:
    assert tokens(capacity_tokens=10**6) == 16384
    assert tokens(capacity_tokens=10**6, max_num_seqs=40) == 40 * 23, "they may not run"


def test_where_all_fit_steps_stay_as_they_are() -> None:
    few = Outstanding(num_requests=40, num_prompt_tokens=40 * 2200, num_output_tokens=40 * 100)
    assert tokens(few) == 16384
    assert tokens(few, num_running=4) == 16384
    assert tokens(few, num_running=5) == 44 * 23


def test_devices_without_a_ridge_and_unknown_work_keep_the_engine_s_steps() -> None:
    assert tokens(ridge=0) == 16384
    assert tokens(Outstanding(0, 0, 0)) == 16384


@pytest.mark.parametrize("most", [1, 256, MIN_STEP_TOKENS])
def test_small_steps_are_not_made_smaller(most: int) -> None:
    assert tokens(most=most) == most


@given(st.integers(0, 10**7), st.integers(0, 10**10), st.integers(0, 10**10), st.integers(1, 10**6))
def test_between_the_least_and_the_most(requests: int, prompt: int, output: int, most: int) -> None:
    found = tokens(Outstanding(requests, prompt, output if requests else 0), most=most)
    assert min(most, MIN_STEP_TOKENS) <= found <= most


def budget(**figures: int) -> TokenBudget:
    defaults = {"most": 16384, "ridge": 256, "capacity_tokens": 99_000, "max_num_seqs": 1024}
    return TokenBudget(**(defaults | figures))


NOTHING = Outstanding(0, 0, 0)


def next_tokens(of: TokenBudget, outstanding: Outstanding, num_running: int, **guess: Any) -> int:
    guess = {"output_is_guessed": False, "mean_output": None, "is_prefilling": True} | guess
    return of.tokens(outstanding, num_running=num_running, **guess)


def test_the_last_requests_are_spread_as_those_before_them_and_then_it_is_over() -> None:
    spreading = budget()
    assert next_tokens(spreading, LONG, 44) == 44 * 23
    assert next_tokens(spreading, NOTHING, 44) == 44 * 23
    assert next_tokens(spreading, NOTHING, 44, is_prefilling=False) == 16384, "or it would stay"
    assert next_tokens(spreading, NOTHING, 0, is_prefilling=False) == 16384


def test_running_requests_are_never_starved_drafts_included() -> None:
    assert next_tokens(budget(), LONG, 256) == 16384
    assert next_tokens(budget(tokens_per_decode=6), LONG, 43) == 16384
    assert next_tokens(budget(tokens_per_decode=6), LONG, 42) == 44 * 23
    spreading = budget(tokens_per_decode=6)
    next_tokens(spreading, LONG, 1)
    assert next_tokens(spreading, NOTHING, 43) == 16384


def test_guesses_are_replaced_by_the_mean_of_those_that_have_ended() -> None:
    unknown = Outstanding(LONG.num_requests, LONG.num_prompt_tokens, 400 * 4096)
    assert next_tokens(budget(), unknown, 9, output_is_guessed=True) == 16384
    found = next_tokens(budget(), unknown, 9, output_is_guessed=True, mean_output=100.0)
    assert found == 44 * 23
