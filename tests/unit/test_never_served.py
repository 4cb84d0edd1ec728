# SPDX-License-Identifier: Apache-2.0
"""Requests that can never be served are told by name, figure and way out."""

from __future__ import annotations

import pytest

from vllm_batchllm.admission.never_served import problem_of


def test_what_fits_has_no_problem() -> None:
    assert problem_of(100, None, 100) is None
    assert problem_of(10**9, {}, 0) is None, "no bound"
    assert problem_of(5, {"expected_output_tokens": 3, "other": "x"}, 100) is None


def test_what_is_longer_than_the_cache_is_refused_with_both_figures_and_the_way_out() -> None:
    problem = problem_of(12_345, None, 9_999)
    assert problem is not None
    assert "12,345 tokens can never fit" in problem and "holds 9,999 tokens" in problem
    assert "gpu_memory_utilization" in problem


@pytest.mark.parametrize("value", ["7", 0, -1, 2.0, True, None])
def test_a_bad_hint_is_named_with_its_value(value) -> None:
    problem = problem_of(5, {"expected_output_tokens": value}, 100)
    assert problem is not None
    assert f"'expected_output_tokens' = {value!r} is not allowed" in problem
