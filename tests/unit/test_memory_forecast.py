# SPDX-License-Identifier: Apache-2.0
"""RunningMemory predicts the blocks that a step-by-step simulation with block ids holds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_batchllm.admission.memory_forecast import Entrant, RunningMemory
from vllm_batchllm.prefix.hashing import num_equal

Path = tuple[int, ...]


@dataclass(frozen=True)
class Request:
    """``path`` is one symbol per hashed block; what lies behind it is the request's own."""

    name: int
    path: Path
    num_tokens: int
    num_remaining: int

    @property
    def entrant(self) -> Entrant:
        hashes = [self.path[: end + 1] for end in range(len(self.path))]
        return Entrant(hashes, self.num_tokens, self.num_remaining)

    def blocks_at(self, step: int, block_size: int) -> set[Any]:
        if step > self.num_remaining:
            return set()
        number = -(-(self.num_tokens + step) // block_size)
        return {
            self.path[: at + 1] if at < len(self.path) else ("own", self.name, at)
            for at in range(number)
        }


def simulate(requests: list[Request], block_size: int) -> list[int]:
    """Distinct blocks held in this step and each one ahead, until all have finished."""
    end = max((request.num_remaining for request in requests), default=0)
    return [
        len(set().union(*(request.blocks_at(step, block_size) for request in requests)))
        for step in range(end + 1)
    ]


@st.composite
def batches(draw: st.DrawFn) -> tuple[int, list[Request]]:
    """A block size, and requests in depth-first order of their paths."""
    block_size = draw(st.integers(1, 5))
    paths = draw(st.lists(st.lists(st.integers(0, 1), max_size=6).map(tuple), max_size=12))
    requests = []
    for name, path in enumerate(sorted(paths)):
        tail = draw(st.integers(0 if path else 1, block_size))
        remaining = draw(st.integers(0, 12))
        requests.append(Request(name, path, len(path) * block_size + tail, remaining))
    return block_size, requests


@given(batches(), st.integers(0, 15), st.randoms(use_true_random=False))
def test_the_forecast_is_that_of_a_simulation_with_block_ids(batch, horizon, random) -> None:
    """Requests come in depth-first order and leave in any: then sharing is exact."""
    block_size, requests = batch
    memory = RunningMemory(block_size)
    running: list[Request] = []
    for request in requests:
        expected = simulate([*running, request], block_size)
        forecast = memory.forecast(request.entrant)
        assert forecast.held == expected[0]
        until, near = horizon, min(horizon, 4)
        bounded = memory.forecast(request.entrant, near=near, until=until)
        assert bounded.held == expected[0]
        assert bounded.near == max(expected[: near + 1])
        assert bounded.peak == max(expected[: until + 1])
        assert not memory.fits_whatever_happens(request.entrant, max(expected) - 1)
        assert forecast.peak == max(expected)
        if random.random() < 0.8:
            memory.add(str(request.name), request.entrant)
            running.append(request)
            assert memory.forecast() == forecast, "looking ahead differs from admitting"
            assert memory.held == forecast.held
        while running and random.random() < 0.3:
            memory.remove(str(running.pop(random.randrange(len(running))).name))
        assert memory.forecast().peak == max(simulate(running, block_size))


@given(batches(), st.randoms(use_true_random=False))
def test_out_of_order_a_shared_block_may_count_twice_but_never_not_at_all(batch, random) -> None:
    block_size, requests = batch
    random.shuffle(requests)
    memory = RunningMemory(block_size)
    for request in requests:
        memory.add(str(request.name), request.entrant)
    alone = sum(max(simulate([request], block_size)) for request in requests)
    assert max(simulate(requests, block_size)) <= memory.forecast().peak <= alone


@given(batches(), st.integers(1, 6))
def test_steps_pass_and_the_peak_ahead_stays_that_of_the_simulation(batch, num_steps) -> None:
    block_size, requests = batch
    memory = RunningMemory(block_size)
    for request in requests:
        memory.add(str(request.name), request.entrant)
    expected = simulate(requests, block_size)
    for step in range(1, num_steps + 1):
        for request in requests:
            if request.num_remaining == step - 1:
                memory.remove(str(request.name))
        alive = [request for request in requests if request.num_remaining >= step]
        assert memory.update({str(r.name): r.num_tokens + step for r in alive}) == []
        assert memory.forecast().peak == max(expected[step:], default=0)


def test_a_group_holds_its_prefix_once_and_until_its_last_member_ends() -> None:
    memory = RunningMemory(block_size=10)
    memory.add("short", Entrant(["p", "q", "a"], 30, 5))
    assert memory.add("long", Entrant(["p", "q", "b"], 30, 25)) == 2
    assert memory.held == 2 + 1 + 1
    forecast = memory.forecast()
    assert forecast.peak == 3 + 3, "the long one alone: 55 tokens"
    assert memory.tokens == 60
    memory.remove("short")
    assert memory.held == 3


def test_who_outgrows_the_prediction_is_named_and_can_be_predicted_anew() -> None:
    memory = RunningMemory(block_size=10)
    memory.add("a", Entrant([], 10, 3))
    memory.add("b", Entrant([], 10, 30))
    assert memory.update({"b": 13, "a": 13}) == []
    assert memory.update({"a": 14}) == ["a"]
    assert memory.num_tokens("a") == 14
    memory.expect("a", 100)
    assert memory.update({}) == []
    assert memory.forecast().peak == 12, "114 tokens, long after b has ended"


def test_hashes_may_be_finer_than_blocks() -> None:
    memory = RunningMemory(block_size=4, tokens_per_hash=2)
    memory.add("a", Entrant([1, 2, 3, 4, 5], 10, 0))
    assert memory.add("b", Entrant([1, 2, 3, 40, 50], 10, 0)) == 1, "6 tokens: 1 full block"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"block_size": 0}, "block_size must be at least 1 token, got 0"),
        ({"block_size": 4, "tokens_per_hash": 0}, "tokens_per_hash must be at least 1, got 0"),
    ],
)
def test_bad_figures_are_refused(arguments, message) -> None:
    with pytest.raises(ValueError, match=message):
        RunningMemory(**arguments)


def test_requests_twice_or_unknown_are_refused() -> None:
    memory = RunningMemory(block_size=4)
    memory.add("a", Entrant([], 4, 1))
    with pytest.raises(ValueError, match="request a runs already"):
        memory.add("a", Entrant([], 4, 1))
    for call in (
        memory.remove,
        memory.num_tokens,
    ):
        with pytest.raises(KeyError):
            call("b")


@given(st.lists(st.integers(0, 2), max_size=8), st.lists(st.integers(0, 2), max_size=8))
def test_the_common_prefix_of_chained_hashes(left, right) -> None:
    chained = [[tuple(path[: end + 1]) for end in range(len(path))] for path in (left, right)]
    same = 0
    while same < min(len(left), len(right)) and left[same] == right[same]:
        same += 1
    assert num_equal(*chained) == same


@given(st.lists(st.tuples(st.integers(1, 50), st.integers(0, 30)), max_size=8))
def test_the_mean_age_weighs_requests_by_what_they_hold(requests) -> None:
    memory = RunningMemory(block_size=4)
    for name, (num_tokens, _) in enumerate(requests):
        memory.add(str(name), Entrant((), num_tokens, 99))
    held = {str(name): first + age for name, (first, age) in enumerate(requests)}
    memory.update(held)
    total = sum(held.values())
    expected = sum(held[str(name)] * age for name, (_, age) in enumerate(requests))
    assert memory.mean_age == pytest.approx(expected / total if total else 0.0)
    assert memory.tokens == total
    if requests:
        memory.remove("0")
        assert memory.tokens == total - held["0"]


@given(
    lives=st.lists(
        st.tuples(st.integers(0, 9), st.integers(1, 50), st.integers(1, 9)), max_size=12
    ),
    looks=st.sets(st.integers(0, 18)),
)
def test_the_tokens_held_are_known_in_every_step_whether_or_not_anybody_looks(lives, looks) -> None:
    memory = RunningMemory(block_size=4)
    for step in range(20):
        memory.step()
        for name, (start, tokens, length) in enumerate(lives):
            if start == step:
                memory.add(str(name), Entrant((), tokens, length))
            if start + length == step:
                memory.remove(str(name))
        held = {
            str(name): tokens + step - start
            for name, (start, tokens, length) in enumerate(lives)
            if start <= step < start + length
        }
        if step in looks:
            memory.update(held)
        assert memory.tokens == sum(held.values())
