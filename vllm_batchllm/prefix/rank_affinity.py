# SPDX-License-Identifier: Apache-2.0
"""Which of several ranks, each with a prefix cache of its own, a prompt should go to.

A prompt is known by the chained hashes of its leading pieces, and a bounded table remembers which ranks have been sent which
prefix. The longest one decides that is not at every rank; a system prompt, which soon is, decides nothing. Load has the last
word: a rank that is ahead of the mean by more than :func:`most_load` allows gets nothing for its cache's sake (consistent hashing with
bounded loads, Mirrokni et al. 2018, has the idea), so a prefix that is in demand comes to be at several ranks.

Several front ends have a table each and tell each other nothing. What is new to them they place by rendezvous hashing of the
first piece that is new (Thaler and Ravishankar 1998), so that they mostly agree.
"""

from __future__ import annotations

import hashlib
from array import array
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, repeat, takewhile
from typing import Final

from vllm_batchllm.prefix.best_saving import TOKEN_BYTES, pack_tokens

PIECE: Final = 64
"""Tokens of a prompt's first pieces; a shorter prefix is not worth a rank."""
MAX_PREFIXES: Final = 1 << 17
"""Prefixes that a table remembers: 8 million tokens of different prompts, and about 25 MB."""
NUM_AHEAD: Final = 8
"""Requests that a rank may be ahead of the mean of all, for the sake of its cache."""
SHARE_AHEAD: Final = 0.1
"""The same as a share of the mean, where that is more."""
LEAST_MATCH: Final = 0.5
"""Share of a prompt that a rank must have to be preferred for it."""
USES_PER_RANK: Final = 32
"""Requests after which a prefix may be computed at one more rank, should that have less to do."""
MAX_STRANGERS: Final = 256
"""Requests in a row without a rank of their own after which several front ends need not agree."""


def _ends() -> tuple[int, ...]:
    """Where pieces end, in tokens: they grow by 1/64 of what lies before, so a prompt has few hundred."""
    ends = accumulate(repeat(0), lambda end, _: end + max(PIECE, end // 64), initial=0)
    return tuple(takewhile(lambda end: end < 1 << 24, ends))[1:]


ENDS: Final = _ends()
"""Tokens of the prefixes by which a prompt is known, shortest first."""


@dataclass(frozen=True, slots=True)
class PromptPath:
    """A prompt by its prefixes.

    hashes: of its first ``ENDS[0]``, ``ENDS[1]``, ... tokens; equal hashes mean equal tokens and namespaces, but for
    collisions of 64 bits. num_tokens: all that may be read from a cache.
    """

    hashes: Sequence[int]
    num_tokens: int


def path_of(tokens: Sequence[int], namespace: str = "") -> PromptPath:
    """The path of a prompt. O(tokens).

    Args:
        namespace: adapter, salt: whatever keeps equal tokens from sharing.

    Raises:
        ValueError: a token id does not fit into 32 bits.
    """
    packed = pack_tokens(tokens)
    key = hashlib.blake2b(namespace.encode(), digest_size=32).digest() if namespace else b""
    state = hashlib.blake2b(digest_size=8, key=key)
    hashes, start = array("Q"), 0
    for end in ENDS:
        if end > len(tokens):
            break
        state.update(packed[start * TOKEN_BYTES : end * TOKEN_BYTES])
        hashes.frombytes(state.digest())
        start = end
    return PromptPath(hashes, len(tokens))


def most_load(loads: Sequence[float], num_pieces: int) -> float:
    """The load, in requests, below which a rank may be preferred for ``num_pieces`` that it has.

    A piece is worth one request ahead of the mean, and many pieces no more than the bounds above.
    """
    mean = sum(loads) / len(loads)
    return mean + min(num_pieces, max(NUM_AHEAD, SHARE_AHEAD * mean))


def most_load_for_new(loads: Sequence[float], num_front_ends: int) -> float:
    """The load below which a rank may be preferred for what no rank has, so that front ends agree.

    That saves nothing yet, so where load is low, it is kept more even: as even as a front end can see that knows its own
    requests and takes the others' to be as many.
    """
    mean = sum(loads) / len(loads)
    return mean + max(num_front_ends, min(mean / 2, max(NUM_AHEAD, SHARE_AHEAD * mean)))


@dataclass(slots=True)
class _Known:
    """ranks: bit mask of those that have the prefix. num_uses: requests that began with it."""

    ranks: int
    num_uses: int


class RankAffinity:
    """Remembers which rank has which prefix, and prefers it for whoever begins with the prefix.

    O(depth) per request in time; ``max_prefixes`` in memory, the least recently used goes first.
    """

    def __init__(
        self, num_ranks: int, num_front_ends: int = 1, max_prefixes: int = MAX_PREFIXES
    ) -> None:
        """
        Args:
            num_ranks: ranks are 0 to ``num_ranks - 1``.
            num_front_ends: how many send requests to them, each with a table of its own.

        Raises:
            ValueError: fewer than one rank, front end or prefix.
        """
        if min(num_ranks, num_front_ends, max_prefixes) < 1:
            raise ValueError(
                f"num_ranks = {num_ranks}, num_front_ends = {num_front_ends} and max_prefixes = "
                f"{max_prefixes} must be at least 1"
            )
        self.num_ranks = num_ranks
        self._num_front_ends = num_front_ends
        self._max_prefixes = max_prefixes
        self._everywhere = (1 << num_ranks) - 1
        self._known: OrderedDict[int, _Known] = OrderedDict()  # longest unused first
        self._num_strangers = 0

    def __len__(self) -> int:
        return len(self._known)

    def choose(self, path: PromptPath, loads: Sequence[float]) -> int | None:
        """The rank that should get a prompt, or None if whoever balances load may decide.

        Does not remember the prompt: :meth:`note` does, when it is known where it went.

        Args:
            loads: unfinished requests of each rank.

        Returns:
            A rank whose load is below :func:`most_load` for what it has of the prompt, or :func:`most_load_for_new`.
        """
        depth = self._known_depth(path)
        home = self._home(path, depth)
        if home is not None:
            self._num_strangers = 0
            return self._within_bounds(home, most_load(loads, depth), loads)
        self._num_strangers += 1
        is_alone = self._num_front_ends == 1
        if is_alone or self._num_strangers > MAX_STRANGERS or depth == len(path.hashes):
            return None
        return self._agreed(path.hashes[depth], loads)

    def note(self, path: PromptPath, rank: int) -> None:
        """Remember that ``rank`` got a prompt.

        Raises:
            ValueError: no such rank.
        """
        if not 0 <= rank < self.num_ranks:
            raise ValueError(f"rank {rank} is none of 0 to {self.num_ranks - 1}")
        # The longest first, so that it is forgotten before what it begins with.
        for prefix in reversed(path.hashes):
            known = self._known.get(prefix)
            if known is None:
                self._known[prefix] = _Known(1 << rank, 1)
                continue
            known.ranks |= 1 << rank
            known.num_uses += 1
            self._known.move_to_end(prefix)
        while len(self._known) > self._max_prefixes:
            self._known.popitem(last=False)

    def _known_depth(self, path: PromptPath) -> int:
        """Pieces of the longest prefix that is remembered."""
        for depth in range(len(path.hashes), 0, -1):
            if path.hashes[depth - 1] in self._known:
                return depth
        return 0

    def _home(self, path: PromptPath, depth: int) -> _Known | None:
        """The longest prefix, if only some ranks have it and it is most of the prompt."""
        if not depth or ENDS[depth - 1] < LEAST_MATCH * path.num_tokens:
            return None
        known = self._known[path.hashes[depth - 1]]
        return None if known.ranks == self._everywhere else known

    def _within_bounds(self, home: _Known, bound: float, loads: Sequence[float]) -> int | None:
        """Of the ranks that have a prefix, the one with least to do, unless it has too much."""
        holders = [rank for rank in range(self.num_ranks) if home.ranks >> rank & 1]
        rank = min(holders, key=lambda each: loads[each])
        if loads[rank] >= bound:
            return None
        has_earned = home.num_uses >= USES_PER_RANK * len(holders)
        return None if has_earned and min(loads) < loads[rank] else rank

    def _agreed(self, prefix: int, loads: Sequence[float]) -> int:
        """The rank that everybody names who has not seen this prefix, if it is not too busy."""
        bound = most_load_for_new(loads, self._num_front_ends)
        open_ranks = [rank for rank in range(self.num_ranks) if loads[rank] < bound]
        return max(open_ranks, key=lambda rank: _score(prefix, rank))

    def check_integrity(self) -> None:
        """Raise an AssertionError where the table is not what it promises."""
        assert len(self._known) <= self._max_prefixes, "too many prefixes"
        for known in self._known.values():
            assert 0 < known.ranks <= self._everywhere, "a prefix is at no rank, or at one too many"
            assert known.num_uses >= known.ranks.bit_count(), "a rank has a prefix that nobody sent"


def _score(prefix: int, rank: int) -> bytes:
    """A number for each pair, without bias."""
    words = array("Q", [prefix, rank])
    return hashlib.blake2b(words.tobytes(), digest_size=8).digest()
