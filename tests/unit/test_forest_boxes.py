# SPDX-License-Identifier: Apache-2.0
"""Boxes are the groups of requests that share whole blocks, the widest first, within bounds."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vllm_batchllm.page.forest_boxes import forest_boxes
from vllm_batchllm.page.icicle import GroupBox

PROMPTS = st.lists(st.lists(st.integers(0, 1), max_size=12), max_size=30)


def prefixes(boxes: tuple[GroupBox, ...], above: int = 0) -> Iterator[tuple[int, int, int]]:
    """Level by level: where each box begins and ends in tokens, and its requests."""
    for box in boxes:
        yield above, above + box.num_tokens, box.num_requests
        yield from prefixes(box.children, above + box.num_tokens)


def shared(prompts: list[list[int]], block_size: int) -> set[tuple[int, int]]:
    """Brute force: for every shared run's end, (tokens, requests)."""
    counts: dict[tuple[int, ...], int] = {}
    for prompt in prompts:
        for end in range(block_size, len(prompt) + 1, block_size):
            counts[tuple(prompt[:end])] = counts.get(tuple(prompt[:end]), 0) + 1
    return {(len(prefix), count) for prefix, count in counts.items() if count > 1}


@given(PROMPTS, st.integers(1, 4))
@settings(max_examples=200)
def test_every_box_is_a_shared_prefix(prompts: list[list[int]], block_size: int) -> None:
    known = shared(prompts, block_size)
    boxes = forest_boxes(prompts, block_size)
    for start, end, num_requests in prefixes(boxes):
        assert start < end and (end, num_requests) in known
    assert bool(boxes) == bool(known)
    everywhere = list(boxes)
    for box in everywhere:
        everywhere.extend(box.children)
        assert sum(child.num_requests for child in box.children) <= box.num_requests


@given(PROMPTS, st.integers(0, 9), st.integers(1, 3), st.integers(1, 3))
@settings(max_examples=200)
def test_bounds_hold(prompts: list[list[int]], top: int, depth: int, width: int) -> None:
    boxes = forest_boxes(prompts, 1, top=top, max_depth=depth, max_width=width)
    level, total = boxes, 0
    for _ in range(depth):
        total += len(level)
        level = tuple(child for box in level for child in box.children)
    assert not level and total <= top and len(boxes) <= width


def test_the_widest_come_first_with_what_they_enclose() -> None:
    narrow = [[9] * 8 for _ in range(3)]
    wide = [[1] * 4 + [question] * 4 for question in (1, 1, 1, 2, 2)]
    assert forest_boxes(narrow + wide, 4) == (
        GroupBox("group 1", 4, 5, (GroupBox("group 1.1", 4, 3), GroupBox("group 1.2", 4, 2))),
        GroupBox("group 2", 8, 3),
    )


def test_labels_say_what_the_run_says() -> None:
    prompts = [[1, 2, 3, 4], [1, 2, 3, 4], [1, 2, 5, 6]]
    (box,) = forest_boxes(prompts, 2, decode=lambda tokens: "-".join(map(str, tokens)))
    assert (box.label, box.children[0].label) == ("1-2", "…3-4")


def test_prompts_that_nest_two_thousand_deep_are_no_burden() -> None:
    chain = list(range(2000))
    boxes = forest_boxes([chain[: end + 1] for end in range(2000)], 1)
    assert len(list(prefixes(boxes))) == 6


def test_many_requests_give_few_boxes() -> None:
    rng = random.Random(0)
    prompts = [[rng.randrange(40)] * 8 + [rng.randrange(20)] * 8 for _ in range(10_000)]
    assert len(list(prefixes(forest_boxes(prompts, 8)))) <= 300


@pytest.mark.parametrize(
    "bad", [{"block_size": 0}, {"top": -1}, {"max_depth": 0}, {"max_width": 0}]
)
def test_bounds_out_of_range_are_named(bad: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=r"at least"):
        forest_boxes([[1]], **{"block_size": 1, **bad})
