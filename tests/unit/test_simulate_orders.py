# SPDX-License-Identifier: Apache-2.0
"""Orders of the input that are tried out, against tries built token by token."""

from __future__ import annotations

from itertools import chain, pairwise

import pytest
from hypothesis import given
from simulated import batch_of, batches, trie_size

from vllm_batchllm.simulate import orders
from vllm_batchllm.simulate.arms import DEFAULT_ARMS, SGLANG, arm_names, find_arm
from vllm_batchllm.simulate.orders import ARRANGED, MIN_SHARED_TOKENS, groups_of
from vllm_batchllm.workloads.batch import Batch, common_prefix_len


def longest_output(batch: Batch, places: tuple[int, ...]) -> int:
    return max(batch.output_lens[place] for place in places)


@given(batches())
def test_an_arranged_order_is_a_permutation(batch: Batch) -> None:
    for arrange in ARRANGED.values():
        assert sorted(arrange(batch)) == list(range(batch.num_requests))


@given(batches())
def test_groups_part_the_batch(batch: Batch) -> None:
    groups = groups_of(batch)
    places = sorted(chain.from_iterable(group.places for group in groups))
    assert places == list(range(batch.num_requests))
    assert sum(group.num_output for group in groups) == batch.output_tokens


@given(batches())
def test_a_group_computes_each_of_its_prefixes_once(batch: Batch) -> None:
    for group in groups_of(batch):
        assert group.num_prefill == trie_size([batch.prompts[place] for place in group.places])


@given(batches())
def test_who_shares_much_more_than_all_do_is_in_one_group(batch: Batch) -> None:
    prompts = batch.prompts
    shared = {
        (a, b): common_prefix_len(prompts[a], prompts[b])
        for a in range(len(prompts))
        for b in range(a)
    }
    common = min(shared.values(), default=0)
    groups = [set(group.places) for group in groups_of(batch)]
    for (a, b), tokens in shared.items():
        together = any({a, b} <= group for group in groups)
        assert together == (tokens >= common + MIN_SHARED_TOKENS)


@given(batches())
def test_longest_first_serves_groups_and_members_by_falling_length(batch: Batch) -> None:
    order = orders.longest_first(batch)
    rest = list(order)
    longest = []
    groups = {group.places[0]: group for group in groups_of(batch)}
    while rest:
        group = next(g for g in groups.values() if rest[0] in g.places)
        members = rest[: len(group.places)]
        assert sorted(members) == sorted(group.places)
        lengths = [batch.output_lens[place] for place in members]
        assert lengths == sorted(lengths, reverse=True)
        longest.append(longest_output(batch, group.places))
        rest = rest[len(members) :]
    assert longest == sorted(longest, reverse=True)


def test_mix_takes_groups_from_both_ends() -> None:
    # Densities 30, 20, 2 and 1 tokens to compute for each one to produce; on average 53 / 4.
    heavy, light = [[1] * 30, [2] * 20], [[3] * 20, [4] * 10]
    batch = batch_of([*heavy, *light], [1, 1, 10, 10])
    assert orders.mix(batch) == [0, 3, 1, 2] or orders.mix(batch) == [0, 3, 2, 1]
    assert orders.mix(batch)[0] == 0, "what needs most compute comes first"
    assert orders.mix(batch)[1] == 3, "then what needs most memory"


@given(batches())
def test_mix_keeps_groups_together(batch: Batch) -> None:
    order = orders.mix(batch)
    for group in groups_of(batch):
        start = min(order.index(place) for place in group.places)
        assert tuple(order[start : start + len(group.places)]) == group.places


def saved_in(batch: Batch, order: list[int]) -> int:
    """Tokens found with the request before, beyond what all requests share."""
    common = min(
        (common_prefix_len(batch.prompts[0], prompt) for prompt in batch.prompts), default=0
    )
    pairs = pairwise(order)
    shared = (common_prefix_len(batch.prompts[a], batch.prompts[b]) for a, b in pairs)
    return sum(max(0, tokens - common) for tokens in shared)


@given(batches(max_requests=8))
def test_split_groups_keep_99_percent_of_the_saving(batch: Batch) -> None:
    assert saved_in(batch, orders.mix_split(batch)) >= 0.99 * saved_in(batch, orders.mix(batch)) - (
        MIN_SHARED_TOKENS * len(groups_of(batch))  # neighbours of two groups share by chance
    )


def test_an_outlier_leaves_its_group_where_the_saving_stays() -> None:
    shared = [5] * 100
    prompts = [[*shared, 100 + number] for number in range(200)]
    lengths = [1] * 199 + [500]
    order = orders.mix_split(batch_of([*prompts, *([9] * 300 for _ in range(2))], [*lengths, 1, 1]))
    group = [place for place in order if place < 199]
    start = order.index(group[0])
    assert order[start : start + 199] == group and 199 not in order[start : start + 199]
    few = batch_of(prompts[:5], [1, 1, 1, 1, 500])
    assert orders.mix_split(few) == orders.mix(few), "too dear in a small group"


@pytest.mark.parametrize("name", arm_names())
def test_every_arm_is_found_by_its_name(name: str) -> None:
    batch = batch_of([[2], [1], [1]], [1, 2, 3])
    arm = find_arm(name, {"pace": 1.0})
    assert arm.name == name and sorted(arm.input_order(batch)) == [0, 1, 2]
    assert arm.is_ours == (name not in ("stock", "sorted", "tuned", *SGLANG))
    assert bool(arm.options) == arm.is_ours


def test_only_sorted_and_arranged_inputs_are_not_as_they_come() -> None:
    batch = batch_of([[2], [1]], [1, 2])
    assert [find_arm(name).input_order(batch) for name in DEFAULT_ARMS] == [
        [0, 1],
        [1, 0],
        [1, 0],
        [0, 1],
    ]
