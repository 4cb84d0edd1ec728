# SPDX-License-Identifier: Apache-2.0
"""The LRU simulation, against a free list of single blocks kept the way vLLM keeps its own."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vllm_batchllm.plan.lru import LruOutcome, simulate_lru
from vllm_batchllm.prefix.best_saving import optimal_saved_tokens, pack_tokens
from vllm_batchllm.prefix.hashing import chain_packed

Prompt = list[int]
PROMPTS = st.lists(st.lists(st.integers(0, 1), max_size=9), max_size=15)
BLOCK_SIZE = st.integers(1, 3)


def simulate(prompts: Sequence[Prompt], block_size: int, num_kv_blocks: int) -> LruOutcome:
    requests = [(len(prompt), chain_packed(pack_tokens(prompt), block_size)) for prompt in prompts]
    return simulate_lru(requests, block_size, num_kv_blocks)


def serve_from_a_free_list(prompts: Sequence[Prompt], block_size: int, num_kv_blocks: int) -> int:
    """Move every block by hand: the free list's head is given out first; None is uncached."""
    free: list[tuple[int, ...] | None] = [None] * num_kv_blocks
    saved = 0
    for prompt in prompts:
        num_blocks = -(-len(prompt) // block_size)
        if num_blocks > num_kv_blocks:
            continue
        full = [tuple(prompt[:end]) for end in range(block_size, len(prompt) + 1, block_size)]
        hits = 0
        while hits < len(full) and full[hits] in free and (hits + 1) * block_size < len(prompt):
            hits += 1
        for key in full[:hits]:
            free.remove(key)
        for key in full[hits:]:  # a block that is computed again replaces its old copy
            if key in free:
                free[free.index(key)] = None
                free.sort(key=lambda held: held is not None)
        del free[: num_blocks - hits]
        free = [None] * (num_blocks - len(full)) + free + full[::-1]
        saved += hits * block_size
    return saved


@given(PROMPTS, BLOCK_SIZE, st.integers(1, 12))
@settings(max_examples=500)
def test_equals_a_free_list_moved_by_hand(
    prompts: list[Prompt], block_size: int, num_kv_blocks: int
) -> None:
    saved = serve_from_a_free_list(prompts, block_size, num_kv_blocks)
    assert simulate(prompts, block_size, num_kv_blocks).saved_tokens == saved


@given(PROMPTS, BLOCK_SIZE)
def test_in_sorted_order_and_with_room_for_all_it_is_the_optimum(
    prompts: list[Prompt], block_size: int
) -> None:
    outcome = simulate(sorted(prompts), block_size, 1000)
    assert outcome == LruOutcome(optimal_saved_tokens(prompts, block_size), 0)


@given(PROMPTS, BLOCK_SIZE, st.integers(1, 12))
def test_no_cache_saves_more_than_is_possible(
    prompts: list[Prompt], block_size: int, num_kv_blocks: int
) -> None:
    saved = simulate(prompts, block_size, num_kv_blocks).saved_tokens
    assert 0 <= saved <= optimal_saved_tokens(prompts, block_size)


def test_the_tail_of_a_request_goes_before_its_head() -> None:
    first, other = [1, 1, 2, 2, 3, 3, 4], [9, 9, 8, 8]
    # Six blocks: four of the first (one of them partial) and two of the other; three of one
    # block then push out the tail of the first, but not its head.
    assert simulate([first, other, [5, 5], first], 2, 6).saved_tokens == 6
    assert simulate([first, other, [5, 5], [6, 6], first], 2, 6).saved_tokens == 4
    assert simulate([first, other, [5, 5], [6, 6], [7, 7], first], 2, 6).saved_tokens == 2


def test_a_prompt_larger_than_the_cache_is_counted_and_changes_nothing() -> None:
    small, large = [1] * 5, [2] * 13
    assert simulate([small, large, small], 4, 3) == LruOutcome(saved_tokens=4, num_oversized=1)


@pytest.mark.parametrize(("block_size", "num_kv_blocks"), [(0, 5), (16, 0)])
def test_sizes_below_one_are_refused(block_size: int, num_kv_blocks: int) -> None:
    with pytest.raises(ValueError, match=r"must be at least 1 .* got 0"):
        simulate_lru([], block_size, num_kv_blocks)
