# SPDX-License-Identifier: Apache-2.0
"""RunningMemory predicts the blocks that a step-by-step simulation with block ids holds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_batchllm.admission.memory_forecast import Entrant, RunningMemory
from vllm_batchllm.admission.memory_model import MemoryModel
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


def check_shortage(
    memory: RunningMemory, request: Request, expected: list[int], num_blocks: int
) -> None:
    for is_certain in (True, False):
        until = request.num_remaining + 1 if is_certain else len(expected)
        over = [step for step, held in enumerate(expected[: until + 1]) if held > num_blocks]
        found = memory.shortage(request.entrant, num_blocks, is_certain=is_certain)
        assert (found is None) == (not over)
        if found is not None:
            assert max(over[0] - 2, 0) <= found.num_steps <= over[0], "to the step, or one early"
            assert 0 < found.lost_ratio <= 1


@given(batches(), st.integers(0, 15), st.randoms(use_true_random=False))
def test_the_forecast_is_that_of_a_simulation_with_block_ids(batch, horizon, random) -> None:
    """Requests come in depth-first order and leave in any: then sharing is exact."""
    block_size, requests = batch
    memory = RunningMemory(MemoryModel.full(block_size))
    running: list[Request] = []
    for request in requests:
        expected = simulate([*running, request], block_size)
        assert memory.held_with(request.entrant) == expected[0]
        assert memory.peak(request.entrant) == max(expected)
        assert not memory.fits_whatever_happens(request.entrant, max(expected) - 1)
        check_shortage(memory, request, expected, horizon)
        if random.random() < 0.8:
            memory.add(str(request.name), request.entrant)
            running.append(request)
            assert memory.peak() == max(expected), "looking ahead differs from admitting"
            assert memory.held_with() == expected[0]
        while running and random.random() < 0.3:
            memory.remove(str(running.pop(random.randrange(len(running))).name))
        assert memory.peak() == max(simulate(running, block_size))


@given(batches(), st.randoms(use_true_random=False))
def test_out_of_order_a_shared_block_may_count_twice_but_never_not_at_all(batch, random) -> None:
    block_size, requests = batch
    random.shuffle(requests)
    memory = RunningMemory(MemoryModel.full(block_size))
    for request in requests:
        memory.add(str(request.name), request.entrant)
    alone = sum(max(simulate([request], block_size)) for request in requests)
    assert max(simulate(requests, block_size)) <= memory.peak() <= alone


@given(batches(), st.integers(1, 6))
def test_steps_pass_and_the_peak_ahead_stays_that_of_the_simulation(batch, num_steps) -> None:
    block_size, requests = batch
    memory = RunningMemory(MemoryModel.full(block_size))
    for request in requests:
        memory.add(str(request.name), request.entrant)
    expected = simulate(requests, block_size)
    for step in range(1, num_steps + 1):
        for request in requests:
            if request.num_remaining == step - 1:
                memory.remove(str(request.name))
        alive = [request for request in requests if request.num_remaining >= step]
        assert memory.update({str(r.name): r.num_tokens + step for r in alive}) == []
        assert memory.peak() == max(expected[step:], default=0)


@given(batches(), st.randoms(use_true_random=False))
def test_requests_come_and_go_in_turns(batch, random) -> None:
    block_size, requests = batch
    memory, running = RunningMemory(MemoryModel.full(block_size)), []
    for request in requests:
        memory.add(str(request.name), request.entrant)
        running.append(request)
        memory.check_integrity()
        for leaving in random.sample(running, random.randrange(min(len(running), 3) + 1)):
            memory.remove(str(leaving.name))
            running.remove(leaving)
        memory.check_integrity()
        assert memory.held_with() == simulate(running, block_size)[0]
    assert memory.peak() == max(simulate(running, block_size))


def test_a_group_holds_its_prefix_once_and_until_its_last_member_ends() -> None:
    memory = RunningMemory(MemoryModel.full(10))
    memory.add("short", Entrant(["p", "q", "a"], 30, 5))
    assert memory.add("long", Entrant(["p", "q", "b"], 30, 25)) == 2
    assert memory.held_with() == 2 + 1 + 1
    assert memory.peak() == 3 + 3, "the long one alone: 55 tokens"
    memory.remove("short")
    assert memory.held_with() == 3


def test_who_outgrows_the_prediction_is_named_and_can_be_predicted_anew() -> None:
    memory = RunningMemory(MemoryModel.full(10))
    memory.add("a", Entrant([], 10, 3))
    memory.add("b", Entrant([], 10, 30))
    assert memory.update({"b": 13, "a": 13}) == []
    assert memory.update({"a": 14}) == ["a"]
    assert memory.num_tokens("a") == 14
    memory.expect_no_end("a")
    assert memory.update({}) == []
    assert memory.peak() == 2 + 4 and not memory.fits_whatever_happens(Entrant([], 1, 1), 999)
    memory.remove("a")
    assert memory.peak() == 4 and memory.fits_whatever_happens(Entrant([], 1, 1), 5)


def test_who_never_ends_holds_what_it_holds_whenever_one_looks() -> None:
    memory = RunningMemory(MemoryModel.full(10))
    memory.add("endless", Entrant(["p", "q"], 25, None))
    assert memory.add("short", Entrant(["p", "q"], 30, 40)) == 2
    assert memory.peak() == 2 + 1 + 5
    assert memory.shortage(Entrant(["p", "x"], 20, None), 9) is None
    found = memory.shortage(Entrant(["p", "x"], 21, None), 9)
    assert found is not None and found.num_steps == 29 and found.lost_ratio == 1 / 2


def test_hashes_may_be_finer_than_blocks() -> None:
    memory = RunningMemory(MemoryModel.full(4), tokens_per_hash=2)
    memory.add("a", Entrant([1, 2, 3, 4, 5], 10, 0))
    assert memory.add("b", Entrant([1, 2, 3, 40, 50], 10, 0)) == 1, "6 tokens: 1 full block"


def test_bad_figures_are_refused() -> None:
    with pytest.raises(ValueError, match="tokens_per_hash must be at least 1, got 0"):
        RunningMemory(MemoryModel.full(4), tokens_per_hash=0)


def test_requests_twice_or_unknown_are_refused() -> None:
    memory = RunningMemory(MemoryModel.full(4))
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
