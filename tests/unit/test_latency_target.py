# SPDX-License-Identifier: Apache-2.0
"""Sizes of steps by a target, against trying all of them."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vllm_batchllm.admission.latency_target import (
    FIRST_TOKENS,
    FLOOR_TOKENS,
    HOPELESS_RATIO,
    LEAST_LIMIT,
    OVER_RATIO,
    LatencyTarget,
    PrefillAhead,
    largest,
    pairs_of,
    with_prefills,
)
from vllm_batchllm.admission.step_times import StepLoad, StepTimes

NONE = StepLoad()


class Linear(StepTimes):
    """Known costs: a millisecond, and so much for each token, request, KV token and pair."""

    def __init__(self, token_s: float = 1e-5, pair_s: float = 1e-8) -> None:
        super().__init__()
        self.token_s, self.pair_s = token_s, pair_s
        self.num_steps, self.max_tokens = 100, 10_000

    def predict_s(self, load: StepLoad) -> float:
        return (
            1e-3
            + self.token_s * load.num_tokens
            + 1e-5 * load.num_requests
            + 1e-7 * load.decode_kv_tokens
            + self.pair_s * load.prefill_pairs
        )


@given(st.integers(0, 60), st.integers(-1, 80))
def test_the_largest_that_fits(most: int, limit: int) -> None:
    expected = max((n for n in range(most + 1) if n <= limit), default=0)
    assert largest(lambda n: n <= limit, most) == expected


@given(st.integers(0, 50), st.integers(0, 50))
def test_pairs_are_counted(start: int, num: int) -> None:
    assert pairs_of(start, num) == sum(start + at + 1 for at in range(num))


PREFILLS = st.lists(
    st.builds(PrefillAhead, st.integers(0, 300), st.integers(1, 200)), min_size=1, max_size=4
)


@given(PREFILLS, st.integers(0, 600))
def test_prompts_are_taken_in_order_and_the_last_stands_for_all_behind(
    prefills: list[PrefillAhead], num: int
) -> None:
    found = with_prefills(StepLoad(3, 3, 30), prefills, num)
    pairs = kv = count = 0
    left, queue = num, [*prefills, *[prefills[-1]] * num]
    for prefill in queue:
        chunk = min(left, prefill.num_tokens)
        left -= chunk
        if chunk:
            pairs += pairs_of(prefill.start, chunk)
            kv, count = kv + prefill.start + chunk, count + 1
    assert found == StepLoad(3 + num, 3 + count, 30, pairs, kv)


@settings(max_examples=60, deadline=None)
@given(PREFILLS, st.integers(0, 50), st.floats(1e-3, 3e-2), st.integers(100, 900))
def test_a_step_is_the_largest_within_the_target(
    prefills: list[PrefillAhead], num_decodes: int, target_s: float, most: int
) -> None:
    times = Linear()
    decodes = StepLoad(num_decodes, num_decodes, 20 * num_decodes)
    size = LatencyTarget(most, times).size(target_s, decodes, prefills, decodes, 100)
    fitting = [
        num
        for num in range(most - num_decodes + 1)
        if times.predict_s(with_prefills(decodes, prefills, num)) <= target_s
    ]
    floor = min(num_decodes + FLOOR_TOKENS, most)
    assert size.num_tokens == max(num_decodes + max(fitting, default=0), floor)
    starts = [
        num
        for num in range(most + 1)
        if times.predict_s(
            StepLoad(num_decodes + num, num_decodes + num, 20 * num_decodes + 100 * num)
        )
        <= target_s
    ]
    if num_decodes or len(starts) > 1:
        assert size.num_starts == max(starts, default=0)
    else:
        assert size.num_starts is None


def test_chunks_shrink_as_their_prompt_grows() -> None:
    target = LatencyTarget(8192, Linear())
    sizes = [
        target.size(0.02, StepLoad(4, 4, 400), [PrefillAhead(at, 10_000)], NONE, 0).num_tokens
        for at in (0, 1000, 10_000, 50_000)
    ]
    assert sizes == sorted(sizes, reverse=True) and sizes[0] > 3 * sizes[-1]


def test_steps_at_most_double_what_has_been_seen() -> None:
    target = LatencyTarget(8192, StepTimes())
    ahead = [PrefillAhead(0, 10_000)]
    decodes, most = StepLoad(1, 1, 10), []
    for _ in range(6):
        most.append(target.size(1.0, decodes, ahead, NONE, 0).num_tokens)
        target.observe(StepLoad(most[-1], 2, 10, most[-1] ** 2, most[-1]), 0.01, None)
    assert most == [FIRST_TOKENS * 2**step for step in range(6)]


def test_nobody_waits_for_a_step_without_decodes() -> None:
    target = LatencyTarget(4096, Linear())
    ahead = [PrefillAhead(0, 10_000)]
    size = target.size(0.003, NONE, ahead, StepLoad(1, 1, 100), 100, is_free=True)
    assert (size.num_tokens, size.aim_s) == (4096, None)
    bound = target.size(0.003, NONE, ahead, StepLoad(1, 1, 100), 100)
    assert bound.num_tokens < 300 and size.num_starts == bound.num_starts


class TestHopeless:
    """A target below what one request alone takes."""

    decodes = StepLoad(4, 4, 400)
    ahead = (PrefillAhead(0, 1000),)

    def target(self) -> LatencyTarget:
        target = LatencyTarget(4096, Linear())
        target.observe(StepLoad(10, 4, 400), 0.0015, None)
        return target

    def test_steps_aim_at_a_multiple_of_that(self) -> None:
        size = self.target().size(5e-4, self.decodes, self.ahead, self.decodes, 100, least_kv=50)
        alone_s = Linear().predict_s(StepLoad(1, 1, 50))
        assert size.is_missed and size.aim_s == HOPELESS_RATIO * alone_s
        assert size.num_starts is not None and size.num_starts > 4

    def test_only_small_steps_tell(self) -> None:
        target = LatencyTarget(4096, Linear())
        target.observe(StepLoad(2000, 2, 400), 0.03, None)
        size = target.size(5e-4, self.decodes, self.ahead, self.decodes, 100)
        assert not size.is_missed and size.aim_s == 5e-4


class TestLimit:
    """Steps that take longer than predicted make the limit smaller."""

    load = StepLoad(100, 3, 100, 5000, 100)

    def test_is_whole_while_steps_are_within(self) -> None:
        target = LatencyTarget(4096, StepTimes())
        for _ in range(50):
            target.observe(self.load, 0.01, 0.02)
        assert target.limit_ratio == 1

    def test_falls_and_comes_back(self) -> None:
        target = LatencyTarget(4096, StepTimes())
        target.observe(self.load, 0.01, 0.02)
        target.observe(self.load, 0.03, 0.02)
        fallen = target.limit_ratio
        assert fallen < 1
        for _ in range(int(2 / OVER_RATIO)):
            target.observe(self.load, 0.01, 0.02)
        assert target.limit_ratio == 1

    def test_stays_where_the_share_is_as_wished(self) -> None:
        target = LatencyTarget(4096, StepTimes())
        every = round(1 / OVER_RATIO)
        seen = []
        for step in range(20 * every):
            target.observe(self.load, 0.03 if step % every == 1 else 0.01, 0.02)
            seen.append(target.limit_ratio)
        assert min(seen) > 0.95 and seen[-1] == pytest.approx(1, abs=0.04)

    def test_has_an_end(self) -> None:
        target = LatencyTarget(4096, StepTimes())
        for _ in range(500):
            target.observe(self.load, 0.03, 0.02)
        assert target.limit_ratio == LEAST_LIMIT

    def test_steps_without_a_target_do_not_count(self) -> None:
        target = LatencyTarget(4096, StepTimes())
        for _ in range(50):
            target.observe(self.load, 0.03, None)
        assert target.limit_ratio == 1
