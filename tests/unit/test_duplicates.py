# SPDX-License-Identifier: Apache-2.0
"""DuplicateTable finds the leader of a request, at a bounded cost."""

from __future__ import annotations

import tracemalloc
from types import SimpleNamespace

from vllm_batchllm.offline.duplicates import MAX_LEADERS, DuplicateTable, may_share_answer


class Params:
    """Parameters that count how often they are compared."""

    comparisons = 0

    def __init__(self, value: int) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        Params.comparisons += 1
        return isinstance(other, Params) and other.value == self.value

    __hash__ = None  # type: ignore[assignment]


def prompt(*tokens: int) -> dict[str, object]:
    return {"type": "token", "prompt_token_ids": list(tokens)}


def test_equal_prompt_parameters_and_priority_make_a_duplicate() -> None:
    table = DuplicateTable()
    table.add(prompt(1, 2), Params(1), 0, "a")
    assert table.leader(prompt(1, 2), Params(1), 0) == "a"
    assert table.leader(prompt(1, 2), Params(2), 0) is None
    assert table.leader(prompt(1, 2), Params(1), 1) is None
    assert table.leader(prompt(1, 2, 3), Params(1), 0) is None


def test_one_prompt_with_ever_new_parameters_stays_cheap() -> None:
    table, Params.comparisons = DuplicateTable(), 0
    for number in range(2000):
        assert table.leader(prompt(1), Params(number), 0) is None
        table.add(prompt(1), Params(number), 0, str(number))
    assert Params.comparisons <= 2000 * MAX_LEADERS
    assert table.leader(prompt(1), Params(MAX_LEADERS - 1), 0) == str(MAX_LEADERS - 1)


def test_a_salt_an_adapter_or_sampling_keeps_duplicates_apart() -> None:
    greedy = SimpleNamespace(temperature=0, n=1)
    assert may_share_answer(prompt(1, 2), greedy, None)
    assert not may_share_answer(prompt(1, 2) | {"cache_salt": "tenant"}, greedy, None)
    assert not may_share_answer(prompt(1, 2), greedy, object())
    assert not may_share_answer(prompt(1, 2), SimpleNamespace(temperature=0.5, n=1), None)
    assert not may_share_answer(prompt(1, 2), SimpleNamespace(temperature=0, n=2), None)


def test_who_is_entered_need_not_be_who_was_looked_up() -> None:
    table = DuplicateTable()
    first, second = prompt(1, 2), prompt(3, 4)
    assert table.leader(first, Params(1), 0) is None
    table.add(second, Params(1), 0, "b")
    assert table.leader(first, Params(1), 0) is None
    table.add(first, Params(1), 1, "a")
    assert table.leader(prompt(3, 4), Params(1), 0) == "b"
    assert table.leader(prompt(1, 2), Params(1), 0) is None
    assert table.leader(prompt(1, 2), Params(1), 1) == "a"


def test_no_copy_of_a_prompt_is_kept() -> None:
    """A batch may hold millions of long ones."""
    prompts = [prompt(*range(number, number + 2_000)) for number in range(100)]
    table, params = DuplicateTable(), Params(1)
    tracemalloc.start()
    try:
        for number, each in enumerate(prompts):
            assert table.leader(each, params, 0) is None
            table.add(each, params, 0, str(number))
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held < 100 * 1_000
