# SPDX-License-Identifier: Apache-2.0
"""The best possible saving, against a brute-force walk and against every order of arrival."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vllm_batchllm.prefix.best_saving import (
    Saving,
    optimal_saved_tokens,
    optimal_saving,
    pack_tokens,
)
from vllm_batchllm.prefix.hashing import chain_packed

Prompt = list[int]
# Few token values and short prompts, so that prefixes are shared often.
PROMPT = st.lists(st.sampled_from([0, 1, 2**32 - 1]), max_size=9)
PROMPTS = st.lists(PROMPT, max_size=12)
BLOCK_SIZE = st.integers(1, 4)


def saved_in_order(prompts: Sequence[Prompt], block_size: int) -> int:
    """Walk the prompts in the given order with unlimited memory; return the tokens hit."""
    seen: set[tuple[int, ...]] = set()
    saved = 0
    for prompt in prompts:
        ends = range(block_size, len(prompt) + 1, block_size)
        hits = [end for end in ends if tuple(prompt[:end]) in seen and end < len(prompt)]
        saved += max(hits, default=0)
        seen.update(tuple(prompt[:end]) for end in ends)
    return saved


@given(PROMPTS, BLOCK_SIZE)
@settings(max_examples=400)
def test_equals_a_walk_in_sorted_order(prompts: list[Prompt], block_size: int) -> None:
    assert optimal_saved_tokens(prompts, block_size) == saved_in_order(sorted(prompts), block_size)


@given(st.lists(PROMPT, max_size=5), BLOCK_SIZE)
def test_no_order_of_arrival_saves_more(prompts: list[Prompt], block_size: int) -> None:
    best = max(saved_in_order(order, block_size) for order in itertools.permutations(prompts))
    assert optimal_saved_tokens(prompts, block_size) == best


def saved_within_limits(prompts: Sequence[tuple[Prompt, int | None]], block_size: int) -> int:
    """As ``saved_in_order``, where a request may read so many tokens at most."""
    seen: set[tuple[int, ...]] = set()
    saved = 0
    for prompt, limit in prompts:
        most = len(prompt) - 1 if limit is None else min(limit, len(prompt) - 1)
        ends = range(block_size, len(prompt) + 1, block_size)
        saved += max(
            (end for end in ends if tuple(prompt[:end]) in seen and end <= most), default=0
        )
        seen.update(tuple(prompt[:end]) for end in ends)
    return saved


@given(st.lists(st.tuples(PROMPT, st.none() | st.integers(0, 9)), max_size=5), BLOCK_SIZE)
@settings(max_examples=400)
def test_no_order_saves_more_where_requests_may_not_read_all(
    limited: list[tuple[Prompt, int | None]], block_size: int
) -> None:
    best = max(saved_within_limits(order, block_size) for order in itertools.permutations(limited))
    prompts, limits = [prompt for prompt, _ in limited], [limit for _, limit in limited]
    assert optimal_saved_tokens(prompts, block_size, limits=limits) == best


@given(PROMPTS, BLOCK_SIZE, st.randoms(use_true_random=False))
def test_the_input_order_does_not_matter(
    prompts: list[Prompt], block_size: int, rng: random.Random
) -> None:
    shuffled = rng.sample(prompts, len(prompts))
    assert optimal_saved_tokens(shuffled, block_size) == optimal_saved_tokens(prompts, block_size)


@given(st.lists(st.tuples(PROMPT, st.sampled_from(["base", "lora", None])), max_size=12))
def test_namespaces_never_share(tagged: list[tuple[Prompt, str | None]]) -> None:
    apart = sum(
        optimal_saved_tokens([prompt for prompt, name in tagged if name == chosen], 2)
        for chosen in ("base", "lora", None)
    )
    prompts, names = [prompt for prompt, _ in tagged], [name for _, name in tagged]
    assert optimal_saved_tokens(prompts, 2, names) == apart


def test_a_short_prompt_behind_its_extension_costs_nothing() -> None:
    # In file order the short prompt would compute its last block again: it may not hit all of it.
    short, long = [1, 2, 3, 4], [1, 2, 3, 4, 5, 6]
    assert saved_in_order([long, short], 2) == 2
    assert optimal_saved_tokens([long, short], 2) == 4


@pytest.mark.parametrize(("length", "saved"), [(16, 0), (17, 16), (32, 16), (33, 32)])
def test_a_duplicate_computes_at_least_its_last_token(length: int, saved: int) -> None:
    assert optimal_saved_tokens([[7] * length] * 2, 16) == saved


def test_the_saving_carries_its_ratio() -> None:
    assert optimal_saving([[7] * 10, [7] * 10], 4) == Saving(prompt_tokens=20, saved_tokens=8)
    assert optimal_saving([[7] * 10, [7] * 10], 4).saved_ratio == pytest.approx(0.4)


def test_nothing_to_save_without_tokens() -> None:
    assert optimal_saving([], 16).saved_ratio == 0.0
    assert optimal_saving([[], []], 16) == Saving(0, 0)


def test_any_sequence_of_integers_will_do() -> None:
    assert optimal_saved_tokens([np.arange(9), tuple(range(9)), range(9)], 4) == 16


def test_many_identical_prompts() -> None:
    assert optimal_saved_tokens([list(range(500))] * 100_000, 16) == 99_999 * 496


@pytest.mark.parametrize("block_size", [0, -16])
def test_a_block_size_below_one_is_refused(block_size: int) -> None:
    with pytest.raises(ValueError, match=f"block_size .* got {block_size}$"):
        optimal_saved_tokens([[1]], block_size)
    with pytest.raises(ValueError, match=f"block_size .* got {block_size}$"):
        chain_packed(pack_tokens([1]), block_size)


def test_as_many_namespaces_as_prompts() -> None:
    with pytest.raises(ValueError, match="1 namespaces were given for 2 prompts"):
        optimal_saved_tokens([[1], [2]], 16, ["a"])


@pytest.mark.parametrize("token", [-1, 2**32, "x", 0.5])
def test_what_is_not_a_token_id_is_refused(token: object) -> None:
    with pytest.raises(ValueError, match="token ids must be integers from 0"):
        optimal_saved_tokens([[token]], 16)  # type: ignore[list-item]


@given(PROMPT, PROMPT, BLOCK_SIZE, st.sampled_from([b"", b"salt"]))
def test_chained_hashes_are_equal_exactly_where_all_tokens_up_to_there_are(
    left: Prompt, right: Prompt, block_size: int, namespace: bytes
) -> None:
    left_hashes = chain_packed(pack_tokens(left), block_size)
    right_hashes = chain_packed(pack_tokens(right), block_size, namespace)
    assert len(left_hashes) == len(left) // block_size
    for position, (one, other) in enumerate(zip(left_hashes, right_hashes, strict=False)):
        end = (position + 1) * block_size
        assert (one == other) == (left[:end] == right[:end] and namespace == b"")


def test_hashes_of_two_namespaces_differ_however_long_the_names() -> None:
    names = [b"", b"a", b"b", b"a" * 1000, b"a" * 1001]
    assert len({chain_packed(pack_tokens([1, 2]), 2, name)[0] for name in names}) == len(names)
