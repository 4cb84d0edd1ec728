# SPDX-License-Identifier: Apache-2.0
"""What each workload promises about sharing, lengths, order and KV size."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_batchllm.errors import UsageError
from vllm_batchllm.workloads.batch import (
    KV_MARGIN_BLOCKS,
    Batch,
    common_prefix_len,
    distinct_prefix_tokens,
    kv_blocks_for,
)
from vllm_batchllm.workloads.catalog import ALIASES, make_workload, workload_names
from vllm_batchllm.workloads.shapes import FIRST_TOKEN_ID

NAMES = [*workload_names(), *ALIASES]


def group_sizes(batch: Batch, prefix_len: int) -> Counter[int]:
    """How many groups of each size share their first `prefix_len` tokens."""
    sizes = Counter(tuple(prompt[:prefix_len]) for prompt in batch.prompts)
    return Counter(sizes.values())


@pytest.mark.parametrize("name", NAMES)
def test_every_workload_is_complete_and_drawn_from_the_vocabulary(name: str) -> None:
    batch = make_workload(name, num_requests=48, vocab_size=512)
    batch.check()
    assert batch.num_requests == 48
    tokens = {token for prompt in batch.prompts for token in prompt}
    assert min(tokens) >= FIRST_TOKEN_ID and max(tokens) < 512


@pytest.mark.parametrize("name", NAMES)
def test_a_seed_fixes_the_batch(name: str) -> None:
    first = make_workload(name, num_requests=32, seed=3)
    assert first == make_workload(name, num_requests=32, seed=3)
    assert first.prompts != make_workload(name, num_requests=32, seed=4).prompts


@pytest.mark.parametrize(
    ("name", "prefix", "suffix", "degree"),
    [
        ("micro-2000-200-d16", 250, 25, 16),
        ("micro-2000-200-d4", 250, 25, 4),
        ("micro-2000-1000-d16", 250, 125, 16),
        ("micro-1000-1000-d4", 125, 125, 4),
        ("long-16000", 2000, 25, 16),
        ("decode-heavy", 512, 64, 8),
        ("skewed-output", 512, 64, 8),
    ],
)
def test_two_part_shapes(name: str, prefix: int, suffix: int, degree: int) -> None:
    batch = make_workload(name, num_requests=64)
    assert {len(prompt) for prompt in batch.prompts} == {prefix + suffix}
    assert group_sizes(batch, prefix) == {degree: 64 // degree}
    assert len({tuple(prompt) for prompt in batch.prompts}) == 64


def test_requests_are_shuffled_so_that_groups_lie_apart() -> None:
    batch = make_workload("micro-2000-200-d16", num_requests=256)
    neighbours = sum(one[0] == two[0] for one, two in pairwise(batch.prompts))
    assert neighbours < 256 / 4


def test_names_without_a_degree_mean_sixteen() -> None:
    assert make_workload("micro-2000-200").name == "micro-2000-200-d16"


def test_scale_divides_lengths() -> None:
    whole = make_workload("micro-2000-200", scale=1, num_requests=16)
    quarter = make_workload("micro-2000-200", scale=4, num_requests=16)
    assert (len(whole.prompts[0]), whole.output_lens[0]) == (2200, 100)
    assert (len(quarter.prompts[0]), quarter.output_lens[0]) == (550, 25)


@pytest.mark.parametrize(("name", "kv_blocks"), [("decode-heavy", 750), ("skewed-output", 372)])
def test_workloads_about_decoding_keep_their_lengths_and_kv(name: str, kv_blocks: int) -> None:
    batch = make_workload(name, scale=8, num_requests=64)
    assert batch.scale == 1
    assert len(batch.prompts[0]) == 576
    assert kv_blocks_for(batch, 32) == kv_blocks
    assert kv_blocks_for(batch, 16) == 2 * kv_blocks


def test_skewed_output_hides_lengths_of_which_a_tenth_is_long() -> None:
    batch = make_workload("skewed-output", num_requests=100)
    assert Counter(batch.output_lens) == {16: 90, 400: 10}
    assert not batch.lengths_known
    assert batch.max_output_tokens == 512
    assert batch.max_request_tokens == 576 + 512


def test_industry_has_one_instruction_and_documents_shared_by_about_three() -> None:
    batch = make_workload("industry", scale=1, num_requests=600)
    assert group_sizes(batch, 60) == {600: 1}
    documents = Counter(tuple(prompt[60:200]) for prompt in batch.prompts)
    assert 2.5 < 600 / len(documents) < 3.5
    mean_len = batch.prompt_tokens / 600
    assert 1450 < mean_len - 60 - 30 < 1700


def test_tree_shares_at_three_levels_with_uneven_degrees() -> None:
    batch = make_workload("tree-3", scale=1, num_requests=400)
    levels = [Counter(tuple(prompt[:end]) for prompt in batch.prompts) for end in (800, 1400, 2200)]
    assert len(levels[0]) < len(levels[1]) < len(levels[2]) < 400
    for counts in levels:
        assert len(set(counts.values())) > 2
    leaves_by_middle = Counter(leaf[:1400] for leaf in levels[2])
    assert max(leaves_by_middle.values()) > 1


def test_three_in_ten_are_exact_duplicates() -> None:
    batch = make_workload("duplicates", num_requests=200)
    outputs_of: dict[tuple[int, ...], set[int]] = {}
    for prompt, length in zip(batch.prompts, batch.output_lens, strict=True):
        outputs_of.setdefault(tuple(prompt), set()).add(length)
    assert len(outputs_of) == 140
    assert all(len(lengths) == 1 for lengths in outputs_of.values())


def test_prompts_are_strict_prefixes_of_others_some_at_block_boundaries() -> None:
    batch = make_workload("prefix-of-prefix", num_requests=200)
    ordered = sorted(batch.prompts)
    chained = [one for one, two in pairwise(ordered) if two[: len(one)] == one]
    assert len(chained) > 100
    assert len(set(map(tuple, batch.prompts))) == 200
    assert any(len(prompt) % 32 == 0 for prompt in chained)
    assert any(len(prompt) % 32 for prompt in chained)


def test_the_control_shares_nothing() -> None:
    batch = make_workload("no-sharing", num_requests=64, vocab_size=100_000)
    assert distinct_prefix_tokens(batch.prompts) < 10


def test_mixed_is_half_shared_and_half_long_outputs() -> None:
    batch = make_workload("mixed", num_requests=64)
    sizes = Counter(tuple(prompt[:250]) for prompt in batch.prompts)
    assert Counter(sizes.values()) == {16: 2, 1: 32}
    alone = {
        length
        for prompt, length in zip(batch.prompts, batch.output_lens, strict=True)
        if sizes[tuple(prompt[:250])] == 1
    }
    assert alone == {50}


@pytest.mark.parametrize(
    ("name", "pressure"), [("micro-2000-200-d16", 2.0), ("long-16000", 4.0), ("industry", 9.0)]
)
def test_kv_size_follows_from_the_pressure(name: str, pressure: float) -> None:
    batch = make_workload(name)
    capacity = kv_blocks_for(batch, 32) * 32
    assert distinct_prefix_tokens(batch.prompts) / capacity == pytest.approx(pressure, rel=0.01)


def test_kv_always_holds_the_largest_request() -> None:
    batch = make_workload("long-16000", num_requests=1)
    assert kv_blocks_for(batch, 32) == -(-batch.max_request_tokens // 32) + KV_MARGIN_BLOCKS


def test_a_batch_without_pressure_and_size_asks_for_one() -> None:
    with pytest.raises(UsageError, match="--kv-blocks"):
        kv_blocks_for(Batch("mine", [[1, 2]], [1]), 32)


def test_an_unknown_name_lists_the_known_and_the_closest() -> None:
    with pytest.raises(UsageError, match=r"'industri'.*mean 'industry'.*long-16000.*tree-3"):
        make_workload("industri")


@pytest.mark.parametrize("bad", [{"scale": 0}, {"num_requests": 0}, {"vocab_size": 4}])
def test_figures_out_of_range_are_refused(bad: dict[str, int]) -> None:
    with pytest.raises(UsageError, match=str(next(iter(bad.values())))):
        make_workload("industry", **bad)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("batch", "words"),
    [
        (Batch("b", [], []), "no requests"),
        (Batch("b", [[1]], [1, 2]), "1 prompts but 2"),
        (Batch("b", [[1], []], [1, 1]), "request 1 .* 0 prompt tokens"),
        (Batch("b", [[1]], [0]), "request 0 .* 0 output tokens"),
    ],
)
def test_batches_that_cannot_run_say_why(batch: Batch, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        batch.check()


prompts_strategy = st.lists(st.lists(st.integers(0, 2), max_size=6), max_size=8)


@given(prompts_strategy)
def test_distinct_prefix_tokens_counts_trie_nodes_passed_twice(prompts: list[list[int]]) -> None:
    visits = Counter(tuple(prompt[:end]) for prompt in prompts for end in range(1, len(prompt) + 1))
    assert distinct_prefix_tokens(prompts) == sum(count >= 2 for count in visits.values())


@given(st.lists(st.integers(0, 2)), st.lists(st.integers(0, 2)))
def test_common_prefix_len(first: list[int], second: list[int]) -> None:
    expected = 0
    while expected < min(len(first), len(second)) and first[expected] == second[expected]:
        expected += 1
    assert common_prefix_len(first, second) == expected


def test_equal_token_ids_are_one_object() -> None:
    prompts = make_workload("no-sharing", scale=8, num_requests=64, vocab_size=1000).prompts
    objects: dict[int, int] = {}
    assert all(objects.setdefault(one, id(one)) == id(one) for prompt in prompts for one in prompt)
    assert max(objects) > 256, "small ones are shared by Python itself"
