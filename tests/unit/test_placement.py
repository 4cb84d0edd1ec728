# SPDX-License-Identifier: Apache-2.0
"""Who gets which requests: every one once whatever the placement, and costs that add up to those of the steps."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from simulated import batch_of, batches, trie_size

from vllm_batchllm.errors import UsageError
from vllm_batchllm.hardware.devices import DEVICES
from vllm_batchllm.hardware.models import MODELS
from vllm_batchllm.prefix.best_saving import optimal_saved_tokens
from vllm_batchllm.simulate.arms import find_arm
from vllm_batchllm.simulate.cost_model import Measured, MeasuredCosts, Roofline, StepWork
from vllm_batchllm.simulate.feeds import Feed, FixedFeed, PlannedFeed
from vllm_batchllm.simulate.placement import (
    FIXED,
    HASH_TOKENS,
    PLACEMENTS,
    by_hash,
    check_placement,
    prefix_order,
    round_robin,
    shared_before,
    sorted_split,
)
from vllm_batchllm.simulate.pool import Pool, Window
from vllm_batchllm.simulate.request_costs import RequestCosts
from vllm_batchllm.simulate.sizes import EngineSizes
from vllm_batchllm.workloads.batch import Batch
from vllm_batchllm.workloads.catalog import make_workload

GPU = Roofline(DEVICES["A100-80GB"], MODELS["Llama-3.1-8B"])
ON_CPU = Measured(MeasuredCosts(5e-3, 4e-5, 6e-5, kv_s=9e-8, held_s=3.5e-7, pair_s=1e-8))
SIZES = EngineSizes(
    num_blocks=60, block_size=16, max_num_seqs=8, batchllm_max_num_seqs=12,
    max_num_batched_tokens=256,
)  # fmt: skip


def feed_of(batch: Batch, pool: Pool, arm: str = "batchllm") -> Feed:
    if pool.placement in FIXED:
        return FixedFeed(batch, find_arm(arm), pool)
    return PlannedFeed(batch, GPU, pool, 4)


@given(
    batches(),
    st.sampled_from(PLACEMENTS),
    st.integers(1, 5),
    st.sampled_from(["batchllm", "sorted", "stock", "mix"]),
    st.booleans(),
    st.integers(0, 10**6),
)
def test_every_request_is_handed_over_once(batch, placement, num_replicas, arm, known, seed):
    random = Random(seed)
    feed = feed_of(replace(batch, lengths_known=known), Pool(num_replicas, placement), arm)
    handed: list[list[int]] = [[] for _ in range(num_replicas)]
    for _ in range(1000):
        if not feed.num_left:
            break
        number = random.randrange(num_replicas)
        room = random.randint(0, 3)
        taken = feed.take(number, room, 0.0)
        assert len(taken) <= room
        handed[number] += taken
        feed.worked(number, StepWork(random.randint(1, 50), 1, 1))
        for place in taken[: random.randint(0, 3)]:
            feed.ended(number, place)
        feed.look(number, random.random(), 0.0)
    places = [place for part in handed for place in part]
    if placement == "ours" and feed.num_left:  # those that have enough wait for others to ask
        places += [
            place
            for _ in range(50)
            for number in range(num_replicas)
            for place in feed.take(number, 3, 0.0)
        ]
    assert sorted(places) == list(range(batch.num_requests))
    assert feed.num_left == 0


@given(batches(), st.integers(1, 4))
def test_fixed_parts_are_what_their_names_say(batch, num_replicas):
    assert round_robin(batch, num_replicas)[0] == list(range(batch.num_requests))[::num_replicas]
    part_of = {p: n for n, part in enumerate(by_hash(batch, num_replicas)) for p in part}
    for first in range(batch.num_requests):
        for second in range(first):
            if batch.prompts[first][:HASH_TOKENS] == batch.prompts[second][:HASH_TOKENS]:
                assert part_of[first] == part_of[second]
    split = sorted_split(batch, num_replicas)
    ordered = [batch.prompts[place] for part in split for place in part]
    assert ordered == sorted(batch.prompts)
    sizes = list(map(len, split))
    assert max(sizes) - min(sizes) <= 1


@given(st.lists(st.lists(st.integers(0, 2**32 - 1), max_size=4), max_size=8))
def test_the_order_of_bytes_is_that_of_tokens(prompts):
    assert prefix_order(prompts) == sorted(range(len(prompts)), key=lambda at: prompts[at])


@given(batches(), st.sampled_from([1, 2, 4, 16]))
def test_what_neighbours_share_adds_up_to_the_best_saving(batch, block_size):
    order = prefix_order(batch.prompts)
    shared = shared_before(batch.prompts, order, block_size)
    assert shared.sum() == optimal_saved_tokens(batch.prompts, block_size)
    if block_size == 1 and len({*map(tuple, batch.prompts)}) == batch.num_requests:
        assert batch.prompt_tokens - shared.sum() >= trie_size(batch.prompts)


def test_who_may_read_less_shares_less():
    prompts = [[1] * 9, [1] * 9]
    assert shared_before(prompts, [0, 1], 4).tolist() == [0, 8]
    assert shared_before(prompts, [0, 1], 4, [None, 7]).tolist() == [0, 4]


@pytest.mark.parametrize("costs", [GPU, ON_CPU])
def test_a_request_costs_what_its_steps_do(costs):
    rates = RequestCosts.of(costs)
    length, hit, output = 1000, 400, 20
    steps = [StepWork(600, 1, 1, prefill_pairs=sum(range(401, 1001)))]
    steps += [StepWork(1, 1, 1, decode_kv_tokens=length + at) for at in range(1, output)]
    (alone,) = rates.of_requests(np.array([length]), np.array([hit]), np.array([float(output)]))
    assert alone == pytest.approx(sum(map(rates.of_step, steps)))


@pytest.mark.parametrize("costs", [GPU, ON_CPU])
def test_a_full_step_takes_what_its_requests_cost(costs):
    work = StepWork(9000, 1001, 1001, prefill_pairs=8000 * 4000, decode_kv_tokens=10**6,
                    held_kv_tokens=10**6)  # fmt: skip
    parts = costs.time_of(work)
    counted = parts.total_s - parts.step_s
    assert RequestCosts.of(costs).of_step(work) == pytest.approx(counted, rel=0.02)


def test_a_mean_output_is_learnt_from_those_that_have_ended():
    batch = batch_of([[at] * 8 for at in range(100)], [40] * 100)
    unknown = replace(batch, lengths_known=False)
    told, guessed = feed_of(batch, Pool(2)), feed_of(unknown, Pool(2))
    assert isinstance(told, PlannedFeed) and isinstance(guessed, PlannedFeed)
    assert guessed.assignment.certainty < 1
    for place in guessed.take(0, 50, 0.0)[:32]:
        guessed.ended(0, place)
    assert guessed.assignment.certainty == 1
    rest = guessed.assignment._costs.work
    assert rest == pytest.approx(told.assignment._costs.work)


def test_what_is_still_to_do_is_what_was_told_less_what_was_done():
    batch = make_workload("micro-2000-200-d16", scale=8, num_requests=64)
    feed = feed_of(batch, Pool(2))
    assert isinstance(feed, PlannedFeed)
    places = feed.take(0, 16, 0.0)
    feed.look(0, 0.0, 0.0)
    before = feed.assignment._outlook.backlog(0)
    feed.worked(0, StepWork(100, 1, 0))
    feed.look(0, 1.0, 0.0)
    assert feed.assignment._outlook.backlog(0) == pytest.approx(before - feed._books[0].done)
    for place in places:
        feed.ended(0, place)
    feed.look(0, 1.0, 0.0)
    assert feed.assignment._outlook.backlog(0) == pytest.approx(0)


def test_the_window_is_wide_at_first_and_what_two_steps_can_start_at_last():
    window = Window.of(SIZES, find_arm("batchllm"), 2, new_tokens=64.0)
    assert window == Window(least=8, most=48, num_sharing=2)
    assert window.limit(10_000, 12) == 36
    assert window.limit(160, 12) == 20
    assert window.limit(0, 12) == 8
    alone = Window.of(SIZES, find_arm("batchllm"), 0, new_tokens=64.0)
    assert alone.limit(0, 12) == 36
    bounded = Window.of(replace(SIZES, max_waiting=5), find_arm("batchllm"), 2, new_tokens=64.0)
    assert bounded.limit(10_000, 12) == bounded.limit(0, 0) == 5


def test_wrong_pools_are_refused_with_the_way_out():
    with pytest.raises(UsageError, match="from 1 to 1,024, not 0"):
        Pool(0)
    with pytest.raises(
        UsageError, match="above 0 and at most 1, which is that of the others, not 2"
    ):
        Pool(2, slowest_speed=2)
    with pytest.raises(UsageError, match=r"unknown placement 'nope'.*Known: hash, ours"):
        check_placement("nope")
