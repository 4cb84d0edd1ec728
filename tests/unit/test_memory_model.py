# SPDX-License-Identifier: Apache-2.0
"""Blocks of a request by its tokens, for layers that keep all of them, a window, a chunk, a state."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_batchllm.admission.block_growth import growing_blocks
from vllm_batchllm.admission.memory_forecast import Entrant, RunningMemory
from vllm_batchllm.admission.memory_model import LayerKind, MemoryModel

SIZE = 4


def kinds() -> st.SearchStrategy[LayerKind]:
    return st.builds(
        lambda size, groups, window, chunk, ahead, extra: LayerKind(
            size,
            groups,
            window=window,
            chunk=chunk if window is None else None,
            num_ahead=ahead,
            num_extra=extra,
        ),
        st.sampled_from([1, 2, SIZE]),
        st.integers(1, 3),
        st.none() | st.integers(1, 20),
        st.none() | st.integers(1, 20),
        st.integers(0, 3),
        st.integers(0, 2),
    )


models = st.builds(MemoryModel, st.lists(kinds(), min_size=1, max_size=3), st.just(SIZE))


def positions(kind: LayerKind, num_tokens: int) -> set[int]:
    """Positions of the blocks that one group holds, token by token."""
    kept = set()
    for token in range(num_tokens + kind.num_ahead):
        if kind.window is not None and token < num_tokens - kind.window:
            continue
        if kind.chunk is not None and token < (num_tokens - 1) // kind.chunk * kind.chunk:
            continue
        kept.add(token // kind.block_size)
    return kept


def held(model: MemoryModel, requests: list[tuple[tuple[int, ...], str, int]]) -> int:
    """Distinct blocks of requests of (path, name, tokens); a path has a symbol per unit."""
    blocks: set[Any] = set()
    extra = 0
    for path, name, num_tokens in requests:
        for group, kind in enumerate(model.kinds):
            extra += kind.num_groups * kind.num_extra
            per_unit = model.unit // kind.block_size
            for at in positions(kind, num_tokens):
                units = at // per_unit + 1
                owner = path[:units] if units <= len(path) else name
                blocks |= {(group, copy, owner, at) for copy in range(kind.num_groups)}
    return len(blocks) + extra


def windows(model: MemoryModel) -> int:
    return sum(kind.num_groups for kind in model.kinds if kind.window is not None)


@given(models, st.integers(1, 60))
def test_one_request_holds_what_its_layers_keep(model: MemoryModel, num_tokens: int) -> None:
    expected = held(model, [((), "a", num_tokens)])
    assert expected <= model.blocks_of(num_tokens) <= expected + windows(model)
    assert model.blocks_of(num_tokens) <= model.own_at_most(num_tokens, 0)


@given(
    models,
    st.lists(st.tuples(st.integers(1, 40), st.integers(-1, 30)), max_size=40),
    st.lists(st.integers(0, 40), min_size=1, max_size=6),
)
def test_what_many_will_hold_is_the_sum_over_them(
    model: MemoryModel, requests: list[tuple[int, int]], moments: list[int]
) -> None:
    tokens = np.array([tokens for tokens, _ in requests], np.int64)
    remaining = np.array([remaining for _, remaining in requests], np.int64)
    nothing = np.zeros_like(tokens)
    ahead = model.own_ahead(tokens, nothing, remaining, np.array(moments))
    for moment, found in zip(moments, ahead.tolist(), strict=True):
        alive = remaining >= moment
        assert found == model.own(tokens[alive] + moment, nothing[alive]).sum()


@given(
    st.lists(st.tuples(st.integers(1, 90), st.integers(0, 3), st.integers(-1, 30)), max_size=120),
    st.integers(1, 40),
)
def test_growing_blocks_are_counted_as_one_by_one(
    requests: list[tuple[int, int, int]], size: int
) -> None:
    tokens, begins, remaining = np.array(requests, np.int64).reshape(-1, 3).T
    times = np.arange(32)
    expected = [
        sum(-(-(n + t) // size) - b for n, b, left in requests if left >= t) for t in range(32)
    ]
    assert growing_blocks(tokens, begins, remaining, times, size).tolist() == expected


@given(models, st.data())
def test_the_forecast_is_never_too_low_and_too_high_by_windows_alone(
    model: MemoryModel, data: st.DataObject
) -> None:
    """Depth-first, as requests are admitted; a path's blocks are its own unless others have them."""
    paths = data.draw(st.lists(st.lists(st.integers(0, 1), max_size=4).map(tuple), max_size=6))
    memory = RunningMemory(model)
    running: list[tuple[tuple[int, ...], str, int, int]] = []
    for name, path in enumerate(sorted(paths)):
        num_tokens = len(path) * SIZE + data.draw(st.integers(1, 9))
        remaining = data.draw(st.integers(0, 25))
        hashes = [path[: end + 1] for end in range(len(path))]
        running.append((path, str(name), num_tokens, remaining))
        memory.add(str(name), Entrant(hashes, num_tokens, remaining))
    longest = max((remaining for *_, remaining in running), default=0)
    moments = [
        held(model, [(p, n, t + step) for p, n, t, left in running if left >= step])
        for step in range(longest + 1)
    ]
    peak = memory.peak()
    assert peak >= max(moments, default=0)
    assert memory.held_with() >= moments[0]
    assert not memory.fits_whatever_happens(Entrant((), 1, 0), max(moments) - 1)
    has_moving = any(not kind.keeps_all for kind in model.kinds)
    if not has_moving:
        assert peak == max(moments, default=0)
    elif not any(path for path, *_ in running):
        assert peak <= max(moments, default=0) + windows(model) * len(running)


def test_a_state_is_one_block_and_a_prefix_of_it_none() -> None:
    model = MemoryModel([LayerKind(1056), LayerKind(1056, 3, window=1, num_extra=1)], 1056)
    assert model.blocks_of(1) == model.blocks_of(1056) == 1 + 3 * 2
    assert model.blocks_of(1057) == 2 + 3 * 2
    memory = RunningMemory(model)
    memory.add("a", Entrant([1, 2], 2200, 10))
    assert memory.add("b", Entrant([1, 2], 2200, 10)) == 2
    assert memory.held_with() == 2 + 2 * (1 + 3 * 2)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MemoryModel([], 4), "a model without KV cache groups"),
        (lambda: MemoryModel([LayerKind(3)], 4), "blocks of 3 tokens do not divide 4 tokens"),
        (lambda: LayerKind(0), "block_size must be at least 1, got 0"),
        (lambda: LayerKind(4, window=0), "window must be at least 1, got 0"),
        (lambda: LayerKind(4, window=4, chunk=4), "a window or a chunk, not both"),
    ],
)
def test_bad_figures_are_refused(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
