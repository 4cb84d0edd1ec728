# SPDX-License-Identifier: Apache-2.0
"""How many KV blocks a request of so many tokens holds, whatever the layers of its model keep.

Layers of one kind form one or more KV cache groups, and all groups take their blocks out of one pool.
Layers of full attention and MLA keep every token; those of a sliding window the last ones; those of
chunked local attention the ones since the last multiple of the chunk; those with a state (Mamba)
keep the state behind the last token. So three kinds are enough, and a state is a window of one token.

The figures are those of a request between two steps of decoding. For the time of its prompt, layers
with a window may hold more; whether there is room for that is asked of vLLM itself at the start.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np

from vllm_batchllm.admission.block_growth import growing_blocks
from vllm_batchllm.admission.shared_blocks import Ints


@dataclass(frozen=True, slots=True)
class LayerKind:
    """KV cache groups that keep the same tokens in blocks of the same size.

    block_size: tokens per block. num_groups: groups of this kind. window: tokens that are kept, the
    last one included; None keeps all. chunk: instead of a window, tokens since the last multiple of
    it are kept. num_ahead: tokens behind the last one that have slots already, for drafts. num_extra:
    blocks that each request has beside, in each group.
    """

    block_size: int
    num_groups: int = 1
    window: int | None = None
    chunk: int | None = None
    num_ahead: int = 0
    num_extra: int = 0

    def __post_init__(self) -> None:
        if self.window is not None and self.chunk is not None:
            raise ValueError("a kind of layers has a window or a chunk, not both")
        for name in ("block_size", "num_groups", "window", "chunk"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")

    @property
    def keeps_all(self) -> bool:
        """Whether every token is kept until the request ends."""
        return self.window is None and self.chunk is None

    @property
    def most_blocks(self) -> int | None:
        """Most blocks of one request in one group; None where there is no such bound.

        A window of ``w`` tokens that begins inside a block reaches into ceil((w - 1) / size) more.
        """
        if self.window is not None:
            return -(-(self.window - 1 + self.num_ahead) // self.block_size) + 1
        if self.chunk is not None:
            begins_inside = self.chunk % self.block_size > 0
            return -(-(self.chunk + self.num_ahead) // self.block_size) + begins_inside
        return None

    @overload
    def last(self, num_tokens: int) -> int: ...
    @overload
    def last(self, num_tokens: Ints) -> Ints: ...
    def last(self, num_tokens: int | Ints) -> int | Ints:
        """Blocks up to the last one that is held at so many tokens, those left behind included."""
        return -(-(num_tokens + self.num_ahead) // self.block_size)

    def first_kept(self, num_tokens: Ints) -> Ints:
        """Position of the first block that is still kept at so many tokens."""
        if self.window is not None:
            return np.maximum(num_tokens - self.window, 0) // self.block_size
        if self.chunk is not None:
            return (num_tokens - 1) // self.chunk * self.chunk // self.block_size
        return np.zeros_like(num_tokens)


class MemoryModel:
    """Blocks of a request, summed over all KV cache groups.

    Sharing is counted in *units* of ``unit`` tokens: prefixes are found in multiples of it.

    Args:
        kinds: the kinds of layers, at least one.
        unit: tokens, a multiple of every kind's block size.

    Raises:
        ValueError: no kinds, or a block size that does not divide ``unit``.
    """

    def __init__(self, kinds: Sequence[LayerKind], unit: int) -> None:
        if not kinds:
            raise ValueError("a model without KV cache groups has no memory to foresee")
        for kind in kinds:
            if unit < 1 or unit % kind.block_size:
                raise ValueError(f"blocks of {kind.block_size} tokens do not divide {unit} tokens")
        self.kinds, self.unit = tuple(kinds), unit
        self.num_extra = sum(kind.num_extra * kind.num_groups for kind in kinds)
        """Blocks of each request beside those that hold its tokens."""
        self.unit_blocks = sum(self._weight(kind) for kind in kinds if kind.keeps_all)
        """Blocks of a shared unit in the layers that keep all tokens."""
        self._passing = tuple(kind for kind in kinds if not kind.keeps_all)

    @classmethod
    def full(cls, block_size: int) -> MemoryModel:
        """One group of layers that keep every token."""
        return cls((LayerKind(block_size),), block_size)

    @property
    def keeps_all(self) -> bool:
        """Whether every layer keeps every token."""
        return not self._passing

    def blocks_of(self, num_tokens: int) -> int:
        """Blocks that a request of ``num_tokens`` tokens holds at most, sharing nothing.

        Exact for layers that keep all tokens and for chunks; for a window it may be one block a group
        too many, where the window begins and ends with a block.
        """
        return int(self.own(np.array([num_tokens]), np.zeros(1, np.int64))[0])

    def own(self, num_tokens: Ints, shared: Ints) -> Ints:
        """Blocks of each request behind its first ``shared`` units."""
        total = np.full(len(num_tokens), self.num_extra, np.int64)
        for kind in self.kinds:
            begins = shared * (self.unit // kind.block_size)
            if kind.chunk is not None:
                begins = np.maximum(begins, kind.first_kept(num_tokens))
            blocks = np.maximum(kind.last(num_tokens) - begins, 0)
            most = kind.most_blocks
            if kind.window is not None and most is not None:
                blocks = np.minimum(blocks, most)
            total += kind.num_groups * blocks
        return total

    @overload
    def own_at_most(self, num_tokens: int, shared: int) -> int: ...
    @overload
    def own_at_most(self, num_tokens: Ints, shared: Ints) -> Ints: ...
    def own_at_most(self, num_tokens: int | Ints, shared: int | Ints) -> int | Ints:
        """Most blocks behind the first ``shared`` units, until it has ``num_tokens`` tokens."""
        total: int | Ints = 0
        for kind in self.kinds:
            begins = shared * (self.unit // kind.block_size)
            blocks = kind.last(num_tokens) - begins
            if kind.most_blocks is not None:
                blocks = _least(blocks, kind.most_blocks)
            total = total + kind.num_groups * blocks
        return total + self.num_extra

    def shared_blocks(self, start: Ints, end: Ints, num_tokens: Ints) -> Ints:
        """Blocks of shared units [start, end), if who holds them has ``num_tokens`` tokens or more."""
        units = end - start
        blocks = units * self.unit_blocks
        for kind in self._passing:
            first = np.maximum(start * (self.unit // kind.block_size), kind.first_kept(num_tokens))
            blocks = blocks + kind.num_groups * np.maximum(
                end * (self.unit // kind.block_size) - first, 0
            )
        return blocks

    def shared_at_most(self, units: int, num_runs: int) -> int:
        """Most blocks of so many shared units in so many runs."""
        most = units * self.unit_blocks
        for kind in self._passing:
            bound = num_runs * (kind.most_blocks or 0)
            most += kind.num_groups * min(units * (self.unit // kind.block_size), bound)
        return most

    def own_ahead(self, num_tokens: Ints, shared: Ints, remaining: Ints, times: Ints) -> Ints:
        """Own blocks of all requests together that have not ended, ``times`` steps ahead.

        Each has ``num_tokens`` tokens now, one more in each step, and ``remaining`` steps to go.
        """
        total = np.zeros(len(times), np.int64)
        if self.num_extra:
            total += self.num_extra * _num_alive(remaining, times)
        for kind in self.kinds:
            begins = shared * (self.unit // kind.block_size)
            ahead = _chunks_ahead if kind.chunk is not None else _blocks_ahead
            total += kind.num_groups * ahead(kind, num_tokens, begins, remaining, times)
        return total

    def last_full_steps(self, num_tokens: Ints, longest: int) -> Ints:
        """Steps ahead, up to ``longest``, after which requests hold less although none has ended."""
        ends = [
            turn - 1
            for kind in self._passing
            if kind.chunk is not None
            for turn in _turns(kind.chunk, num_tokens, longest)
        ]
        times: Ints = np.concatenate((*ends, np.empty(0, np.int64)))
        return times[(times > 0) & (times < longest)]

    def _weight(self, kind: LayerKind) -> int:
        return kind.num_groups * (self.unit // kind.block_size)


def _blocks_ahead(
    kind: LayerKind, num_tokens: Ints, begins: Ints, remaining: Ints, times: Ints
) -> Ints:
    """Blocks from position ``begins`` on, in one group, of those that have not ended."""
    size, most = kind.block_size, kind.most_blocks
    num_tokens = num_tokens + kind.num_ahead
    if most is None:
        return growing_blocks(num_tokens, begins, remaining, times, size)
    # It grows until the window is full, and then holds the same until it ends.
    full_from = np.maximum((begins + most - 1) * size + 1 - num_tokens, 0)
    grows_until = np.minimum(remaining, full_from - 1)
    held: Ints = growing_blocks(num_tokens, begins, grows_until, times, size)
    is_full = full_from <= remaining
    started = np.searchsorted(np.sort(full_from[is_full]), times, side="right")
    ended = np.searchsorted(np.sort(remaining[is_full]), times, side="left")
    total: Ints = held + most * (started - ended)
    return total


def _chunks_ahead(
    kind: LayerKind, num_tokens: Ints, begins: Ints, remaining: Ints, times: Ints
) -> Ints:
    """The same for a chunk: blocks grow, and at each turn only those of the new chunk stay."""
    assert kind.chunk is not None
    size, since = kind.block_size, np.zeros_like(num_tokens)
    first = (num_tokens - 1) // kind.chunk
    held = np.zeros(len(times), np.int64)
    turns = _turns(kind.chunk, num_tokens, int(remaining.max(initial=0)))
    num_slots = num_tokens + kind.num_ahead
    for at, until in enumerate(turns):
        start = np.maximum(begins, (first + at) * kind.chunk // size)
        last = np.minimum(remaining, until - 1)
        held += growing_blocks(num_slots, start, last, times, size)
        held -= growing_blocks(num_slots, start, np.minimum(last, since - 1), times, size)
        since = until
    return held


def _turns(chunk: int, num_tokens: Ints, longest: int) -> list[Ints]:
    """Steps until each request begins its next chunk, the one after, ... and past ``longest``."""
    first = chunk - (num_tokens - 1) % chunk
    return [first + chunk * at for at in range(longest // chunk + 2)]


def _num_alive(remaining: Ints, times: Ints) -> Ints:
    return len(remaining) - np.searchsorted(np.sort(remaining), times, side="left")


def _least(blocks: int | Ints, most: int) -> int | Ints:
    return min(blocks, most) if isinstance(blocks, int) else np.minimum(blocks, most)
