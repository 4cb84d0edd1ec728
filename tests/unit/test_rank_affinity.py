# SPDX-License-Identifier: Apache-2.0
"""Which rank gets a prompt: against everything ever sent, compared token by token, and within bounds whatever arrives."""

from __future__ import annotations

import tracemalloc
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vllm_batchllm.prefix.rank_affinity import (
    ENDS,
    LEAST_MATCH,
    MAX_STRANGERS,
    NUM_AHEAD,
    PIECE,
    USES_PER_RANK,
    PromptPath,
    RankAffinity,
    most_load,
    most_load_for_new,
    path_of,
)


class Oracle:
    """All that was sent, as it is: (namespace, tokens, rank)."""

    def __init__(self, num_ranks: int) -> None:
        self.num_ranks = num_ranks
        self.sent: list[tuple[str, Sequence[int], int]] = []

    def choose(self, tokens: Sequence[int], namespace: str, loads: list[float]) -> int | None:
        """The rule of a front end that is alone."""
        for depth, end in reversed([*enumerate((end for end in ENDS if end <= len(tokens)), 1)]):
            alike = [
                rank
                for space, other, rank in self.sent
                if space == namespace and len(other) >= end and other[:end] == tokens[:end]
            ]
            if alike:
                is_most = end >= LEAST_MATCH * len(tokens)
                return self._among(alike, depth, loads) if is_most else None
        return None

    def _among(self, uses: list[int], depth: int, loads: list[float]) -> int | None:
        holders = sorted(set(uses))
        if len(holders) == self.num_ranks:
            return None
        best = next(rank for rank in holders if loads[rank] == min(loads[r] for r in holders))
        mean = sum(loads) / self.num_ranks
        if loads[best] >= mean + min(depth, max(8, mean / 10)):
            return None
        is_idle_elsewhere = min(loads) < loads[best]
        return None if len(uses) >= 32 * len(holders) and is_idle_elsewhere else best


ALPHABET = st.sampled_from([0, 1])
PIECES = st.lists(ALPHABET, max_size=5).map(lambda each: [n for n in each for _ in range(PIECE)])
PROMPTS = st.tuples(PIECES, st.integers(0, PIECE - 1)).map(lambda each: each[0] + [7] * each[1])
SENT = st.tuples(PROMPTS, st.sampled_from(["", "adapter"]), st.integers(1, 40))


@settings(max_examples=150, deadline=None)
@given(st.integers(1, 4), st.lists(SENT, max_size=40), st.randoms(use_true_random=False))
def test_choices_are_those_of_whoever_remembers_everything(num_ranks, sent, random) -> None:
    table, oracle = RankAffinity(num_ranks), Oracle(num_ranks)
    for tokens, namespace, times in sent:
        loads = [float(random.randrange(0, 30)) for _ in range(num_ranks)]
        path = path_of(tokens, namespace)
        chosen = table.choose(path, loads)
        assert chosen == oracle.choose(tokens, namespace, loads)
        rank = random.randrange(num_ranks) if chosen is None else chosen
        for _ in range(times):
            table.note(path, rank)
            oracle.sent.append((namespace, tokens, rank))
        table.check_integrity()


@settings(max_examples=100, deadline=None)
@given(
    st.integers(1, 5),
    st.integers(1, 3),
    st.integers(1, 12),
    st.lists(st.tuples(PROMPTS, st.integers(0, 3)), max_size=150),
)
def test_load_and_memory_stay_within_bounds_whatever_arrives(
    num_ranks, num_front_ends, max_prefixes, sent
) -> None:
    table = RankAffinity(num_ranks, num_front_ends, max_prefixes)
    loads = [0.0] * num_ranks
    for tokens, ended in sent:
        path = path_of(tokens)
        rank = table.choose(path, loads)
        if rank is not None:
            bound = most_load(loads, len(path.hashes))
            for_new = most_load_for_new(loads, num_front_ends) if num_front_ends > 1 else 0.0
            assert loads[rank] < max(bound, for_new)
        rank = loads.index(min(loads)) if rank is None else rank
        loads[rank] += 1
        mean = sum(loads) / num_ranks
        assert loads[rank] <= mean + max(NUM_AHEAD, mean / 10) + 1
        table.note(path, rank)
        table.check_integrity()
        busiest = loads.index(max(loads))
        loads[busiest] = max(0.0, loads[busiest] - ended)


def test_a_prefix_is_forgotten_after_all_that_begin_with_it() -> None:
    """Or its ranks would no longer be among those of what it begins with."""
    table = RankAffinity(2, max_prefixes=4)
    long, short = path_of([1] * 4 * PIECE), path_of([1] * PIECE)
    table.note(long, 0)
    table.note(path_of([2] * 3 * PIECE), 1)  # three of four prefixes go
    assert table.choose(short, [0, 0]) == 0
    assert table.choose(path_of([1] * 2 * PIECE), [0, 0]) == 0, "its half is still known"
    table.note(path_of([3] * PIECE), 1)
    assert table.choose(short, [0, 0]) is None


def test_prompts_go_where_their_prefix_is() -> None:
    table = RankAffinity(4)
    document = [5] * 1000
    assert table.choose(path_of([*document, 1]), [0, 0, 0, 0]) is None
    table.note(path_of([*document, 1]), 2)
    assert table.choose(path_of([*document, 2, 3]), [0, 0, 0, 0]) == 2
    assert table.choose(path_of([*document, 2], "adapter"), [0, 0, 0, 0]) is None
    assert table.choose(path_of(document + [9] * 2000), [0, 0, 0, 0]) is None, "a small part of it"
    assert table.choose(path_of([*document, 2]), [0, 0, 7.5, 0]) == 2
    assert table.choose(path_of([*document, 2]), [0, 0, 11, 0]) is None, "too busy"
    table.note(path_of([6] * 2 * PIECE), 2)
    assert table.choose(path_of([6] * 2 * PIECE), [0, 0, 2.5, 0]) == 2
    assert table.choose(path_of([6] * 2 * PIECE), [0, 0, 3, 0]) is None, "too little to be busy for"


def test_what_is_at_every_rank_decides_nothing_and_what_is_behind_it_does() -> None:
    table = RankAffinity(2)
    system = [1] * 512
    for rank in (0, 1):
        table.note(path_of(system), rank)
    document = system + [2] * 512
    assert table.choose(path_of(document), [0, 3]) is None
    table.note(path_of(document), 1)
    assert table.choose(path_of([*document, 4]), [0, 3]) == 1


def test_a_system_prompt_comes_to_every_rank_though_load_is_low() -> None:
    table = RankAffinity(4)
    loads, counts = [0.0] * 4, [0] * 4
    waiting: list[int] = []
    for number in range(1000):
        path = path_of([1] * 512 + [number + 2] * 64)
        rank = table.choose(path, loads)
        rank = loads.index(min(loads)) if rank is None else rank
        table.note(path, rank)
        counts[rank] += 1
        loads[rank] += 1
        waiting.append(rank)
        if len(waiting) == 6:  # requests in flight
            loads[waiting.pop(0)] -= 1
    assert min(counts) > 1000 / 4 - 4 * USES_PER_RANK


def test_front_ends_that_do_not_talk_agree_on_what_is_new() -> None:
    first, second = RankAffinity(4, 2), RankAffinity(4, 2)
    system = [1] * 128
    for table in (first, second):
        for rank in range(4):
            table.note(path_of(system), rank)
    homes = set()
    for document in range(40):
        ask = [path_of([*system, *[document + 5] * 640, question]) for question in (1, 2)]
        chosen = first.choose(ask[0], [3, 2, 2, 2])
        assert chosen == second.choose(ask[1], [9, 10, 8, 11]) is not None
        homes.add(chosen)
    assert homes == {0, 1, 2, 3}


def test_front_ends_leave_strangers_to_the_balancer_after_a_while() -> None:
    """And go on to agree as soon as a prefix is seen again."""
    table = RankAffinity(2, 2)
    loads = [0.0, 0.0]

    def ask(number: int) -> int | None:
        path = path_of([number] * PIECE)
        chosen = table.choose(path, loads)
        table.note(path, chosen or 0)
        return chosen

    assert None not in [ask(number) for number in range(MAX_STRANGERS)]
    assert {ask(number) for number in range(1000, 1100)} == {None}
    assert ask(1050) == 0
    assert ask(2000) is not None


def test_a_path_is_short_however_long_the_prompt() -> None:
    assert [len(path_of([1] * n).hashes) for n in (0, 63, 64, 4096)] == [0, 0, 1, 64]
    assert len(path_of([1] * 1_000_000).hashes) < 450
    assert path_of([1] * 128).hashes[0] != path_of([1] * 128, "salt").hashes[0]
    with pytest.raises(ValueError, match="token ids must be integers"):
        path_of([-1] * 64)


def test_memory_is_bounded() -> None:
    table = RankAffinity(8, max_prefixes=4096)
    tracemalloc.start()
    try:
        for number in range(2000):
            table.note(path_of([number] * 1024), number % 8)
            if number == 500:
                full = tracemalloc.get_traced_memory()[0]
        assert len(table) == 4096
        assert tracemalloc.get_traced_memory()[0] < 1.1 * full
        assert full / 4096 < 300, "bytes of a prefix"
    finally:
        tracemalloc.stop()


def test_bad_counts_and_ranks_are_named() -> None:
    with pytest.raises(ValueError, match="num_ranks = 0"):
        RankAffinity(0)
    with pytest.raises(ValueError, match="rank 2 is none of 0 to 1"):
        RankAffinity(2).note(PromptPath((), 0), 2)
