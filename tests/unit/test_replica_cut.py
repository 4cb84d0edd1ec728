# SPDX-License-Identifier: Apache-2.0
"""Cuts of a batch against every possible cut of small ones, and against a plain dynamic program."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from cut_oracle import cheapest_price
from hypothesis import given
from hypothesis import strategies as st

from vllm_batchllm.replicas.cut import Costs, cheapest_cuts, least_bound, parts_work


def costs_of(work: list[int], shared: list[int]) -> Costs:
    return Costs(np.array(work, dtype=float), np.array([0, *shared[1:]][: len(work)], dtype=float))


def every_cut(num_items: int, num_parts: int):
    for num_cuts in range(min(num_parts, num_items)):
        for cuts in combinations(range(1, num_items), num_cuts):
            yield np.array([0, *cuts], dtype=np.int64)


def price(costs: Costs, starts: np.ndarray) -> float:
    return float(costs.shared[starts[1:]].sum())


BATCHES = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 30)), min_size=1, max_size=9)


@given(BATCHES, st.integers(1, 5), st.sampled_from([0.0, 0.02, 0.3]))
def test_no_cut_of_a_small_batch_is_cheaper(batch, num_parts, slack):
    costs = costs_of([work for work, _ in batch], [shared for _, shared in batch])
    everything = list(every_cut(len(costs), num_parts))
    smallest = min(parts_work(costs, starts).max() for starts in everything)
    assert least_bound(costs, num_parts) == pytest.approx(smallest, rel=1e-8, abs=1e-9)
    allowed = [s for s in everything if parts_work(costs, s).max() <= smallest * (1 + slack) + 1e-9]
    starts = cheapest_cuts(costs, num_parts, slack)
    assert starts[0] == 0
    assert np.all(np.diff(starts) > 0)
    assert len(starts) <= num_parts
    assert parts_work(costs, starts).max() <= smallest * (1 + slack) * (1 + 1e-6) + 1e-9
    assert price(costs, starts) == min(price(costs, one) for one in allowed)


@given(st.integers(0, 10**6), st.integers(2, 24), st.integers(20, 120))
def test_no_cut_of_a_middling_batch_is_cheaper_than_a_plain_dynamic_program(seed, num_parts, items):
    draw = np.random.default_rng(seed)
    shared = draw.integers(0, 40, items) * (draw.random(items) < 0.8)
    costs = costs_of(draw.integers(1, 30, items).tolist(), shared.tolist())
    starts = cheapest_cuts(costs, num_parts)
    bound = 1.02 * least_bound(costs, num_parts) * (1 + 1e-9)
    assert price(costs, starts) == cheapest_price(costs, num_parts, bound)


def test_groups_stay_whole_where_that_is_balanced():
    work, shared = [100, *[10] * 9] * 8, [0, *[100] * 9] * 8
    assert cheapest_cuts(costs_of(work, shared), 4).tolist() == [0, 20, 40, 60]


def test_what_everybody_shares_is_no_reason_not_to_cut():
    work, shared = [1000, *[10] * 399], [0, *[1000] * 399]
    starts = cheapest_cuts(costs_of(work, shared), 4)
    assert len(starts) == 4
    assert parts_work(costs_of(work, shared), starts).max() < 0.3 * (sum(work) + 3 * 1000)


@pytest.mark.parametrize("num_items", [0, 1, 2, 3])
def test_fewer_items_than_parts(num_items):
    starts = cheapest_cuts(costs_of([5] * num_items, [0] * num_items), 3)
    assert starts.tolist() == list(range(num_items))


def test_an_item_larger_than_all_others_is_a_part():
    starts = cheapest_cuts(costs_of([1, 1, 1000, 1, 1], [0] * 5), 3)
    assert parts_work(costs_of([1, 1, 1000, 1, 1], [0] * 5), starts).max() <= 1.02 * 1000


def test_work_of_nothing_is_cut_as_well():
    assert cheapest_cuts(costs_of([0] * 6, [0] * 6), 3)[0] == 0


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="num_parts must be 1 or more"):
        cheapest_cuts(costs_of([1], [0]), 0)
    with pytest.raises(ValueError, match="slack 0 or more"):
        cheapest_cuts(costs_of([1], [0]), 1, slack=-1)
    with pytest.raises(ValueError, match="as long as each other"):
        Costs(np.ones(2), np.ones(3))
