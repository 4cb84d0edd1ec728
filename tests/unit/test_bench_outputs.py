# SPDX-License-Identifier: Apache-2.0
"""Outputs match if they are equal, or differ by a tie that is shown; nothing else does."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from vllm_batchllm.bench.outputs import TIE_GAP, compare_outputs, first_difference, gap_finder
from vllm_batchllm.workloads.batch import Batch

REFERENCE = [[1, 2, 3], [4, 5, 6]]


def never_asked(*_: Any) -> float:
    raise AssertionError("equal outputs need no look at logits")


@pytest.mark.parametrize(
    ("expected", "got", "position"),
    [([1, 2], [1, 2], None), ([1, 2], [3, 2], 0), ([1, 2], [1], 1), ([1], [1, 2], 1)],
)
def test_first_difference(expected: list[int], got: list[int], position: int | None) -> None:
    assert first_difference(expected, got) == position


def test_equal_outputs_match_without_asking_the_engine() -> None:
    match = compare_outputs("batchllm", [(REFERENCE, REFERENCE)] * 3, never_asked)
    assert (match.num_compared, match.num_equal, match.ratio) == (6, 6, 1.0)
    assert match.unresolved == ()


@pytest.mark.parametrize(
    ("gap", "resolved"),
    [(0.0, True), (TIE_GAP, True), (TIE_GAP * 1.01, False), (None, False)],
)
def test_a_difference_counts_only_as_a_shown_tie(gap: float | None, resolved: bool) -> None:
    asked: list[tuple[int, list[int], int, int]] = []

    def gap_of(request: int, common: Sequence[int], one: int, other: int) -> float | None:
        asked.append((request, list(common), one, other))
        return gap

    match = compare_outputs("sorted", [(REFERENCE, [[1, 2, 3], [4, 9, 9]])], gap_of)
    assert asked == [(1, [4], 5, 9)]
    assert match.ratio == (1.0 if resolved else 0.5)
    assert len(match.unresolved) == (0 if resolved else 1)
    assert match.num_near_ties == int(resolved)


def test_a_missing_token_is_never_a_tie() -> None:
    match = compare_outputs("sorted", [([[1, 2]], [[1]])], never_asked)
    assert match.ratio == 0.0
    assert (match.unresolved[0].expected, match.unresolved[0].got) == (2, None)


class FakeEngine:
    """Answers every prompt with fixed log-probabilities."""

    def __init__(self, logprobs: dict[int, float]) -> None:
        self.asked: list[list[int]] = []
        self._logprobs = {t: SimpleNamespace(logprob=value) for t, value in logprobs.items()}

    def generate(self, prompts: list[dict[str, list[int]]], *_: Any, **__: Any) -> list[Any]:
        self.asked += [prompt["prompt_token_ids"] for prompt in prompts]
        return [SimpleNamespace(outputs=[SimpleNamespace(logprobs=[self._logprobs])])]


BATCH = Batch("b", [[10, 11], [12]], [3, 3])


def test_the_gap_is_asked_of_the_engine_once_per_question() -> None:
    engine = FakeEngine({5: -1.0, 9: -1.00005, 7: -3.0})
    gap_of = gap_finder(engine, BATCH)
    assert gap_of(0, [4], 5, 9) == pytest.approx(0.00005)
    assert gap_of(0, [4], 9, 5) == pytest.approx(0.00005)
    assert engine.asked == [[10, 11, 4]]


def test_tokens_that_are_not_the_two_best_have_no_gap() -> None:
    gap_of = gap_finder(FakeEngine({5: -1.0, 9: -1.0, 7: -1.00001}), BATCH)
    assert gap_of(1, [], 5, 7) is None


def test_a_banned_stop_token_is_not_among_the_best() -> None:
    unknown = Batch("b", [[10, 11]], [3], lengths_known=False)
    logprobs = {2: -0.1, 5: -1.0, 9: -1.0}
    assert gap_finder(FakeEngine(logprobs), unknown)(0, [], 5, 9) == 0.0
    assert gap_finder(FakeEngine(logprobs), BATCH)(0, [], 5, 9) is None
