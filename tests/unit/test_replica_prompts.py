# SPDX-License-Identifier: Apache-2.0
"""Prompts of any form in the order of their shared prefixes, with what they cost."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from vllm_batchllm.replicas.prompt_order import PIECE_BYTES, order_prompts


def order_of(prompts, apart=None):
    return order_prompts(prompts, [8] * len(prompts), apart or [""] * len(prompts))


def test_groups_are_neighbours_whatever_their_form():
    long = ["a" * 400, "b" * 400]
    texts = [long[number % 2] + str(number) for number in range(6)]
    assert order_of(texts).order.tolist() == [0, 2, 4, 1, 3, 5]
    ids = [[number % 2] * 100 + [number] for number in range(6)]
    assert order_of(ids).order.tolist() == [0, 2, 4, 1, 3, 5]
    wrapped = [{"prompt": text} for text in texts]
    assert order_of(wrapped).order.tolist() == [0, 2, 4, 1, 3, 5]
    tokens = [{"prompt_token_ids": each} for each in ids]
    assert order_of(tokens).order.tolist() == [0, 2, 4, 1, 3, 5]
    chats = [[{"role": "user", "content": text}] for text in texts]
    assert order_of(chats).order.tolist() == [0, 2, 4, 1, 3, 5]


def test_adapters_keep_prompts_apart():
    texts = ["a" * 400] * 4
    assert order_of(texts, ["x", "y", "x", "y"]).order.tolist() == [0, 2, 1, 3]


def test_costs_are_tokens_behind_the_one_before():
    ordered = order_of([[1] * 64 + [2] * 64, [1] * 64 + [3] * 64])
    assert ordered.costs.shared.tolist() == [0, 64]
    assert ordered.prefill.tolist() == [128, 64]
    assert ordered.costs.work.tolist() == [136, 72]


def test_what_cannot_be_a_prompt_is_left_to_vllm():
    odd = [[2**40], 7, {"prompt": None}, {"multi_modal_data": object()}, ""]
    assert sorted(order_of(odd).order.tolist()) == list(range(5))
    assert len(order_of([]).order) == 0


@given(st.lists(st.text("ab", max_size=6).map(lambda t: t * PIECE_BYTES), max_size=12))
def test_every_prompt_once_and_no_more_shared_than_there_is(prompts):
    ordered = order_of(prompts)
    assert sorted(ordered.order.tolist()) == list(range(len(prompts)))
    sizes = np.array([len(prompts[place]) / 4 for place in ordered.order])
    assert (ordered.costs.shared <= sizes).all()
    assert np.allclose(ordered.prefill + ordered.costs.shared, sizes)
