# SPDX-License-Identifier: Apache-2.0
"""KV that several requests of a step share: how often it is read, and what that costs.

Stock attention is bounded twice. *Apart*: every request's read goes to memory. *Cached*: of what several requests share
the first read goes to memory, and all others find it in the device's cache, as far as neighbours run at once; for orders
of requests that are not those of prefixes that is too good. With shared attention (`vllm_batchllm.attention`) the same
grouping code says what is read *once*, at two prices: with kernels as fast as FlashAttention, and with the share of its
speed that one device has shown.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from vllm_batchllm.attention.grouping import GroupingRule, IntArray, shared_intervals
from vllm_batchllm.hardware.models import ModelShape

if TYPE_CHECKING:
    from vllm_batchllm.simulate.cost_model import StepWork

KVReading = Literal["apart", "cached", "once", "once-slow"]

PREFIX_SPEED = 0.62
"""Speed at which the prefix kernel reads KV, over FlashAttention's with nothing shared: the least of what an H100 has shown
for 16 neighbours (benchmarks/results/gpu: 131 MB in 0.070 ms, against 3.0 TB/s)."""

LAUNCH_S = 3e-6
"""One launch that finds no work, inside a graph (benchmarks/results/gpu: two of them took 6 us)."""

LAUNCHES = 3
"""Of shared attention, in each layer: two kinds of tiles, and the merge."""

PARTIAL_BYTES = 4


@dataclass(frozen=True, slots=True)
class SharedWork:
    """What a step's decodes share. node_tokens: KV tokens of all nodes, each once. tokens_saved: that need not be read.
    partial_rows: rows of nodes, each of which has a partial result."""

    node_tokens: int = 0
    tokens_saved: int = 0
    partial_rows: int = 0


def read_as_tokens(
    reading: KVReading, work: StepWork, model: ModelShape, cache_gain: float
) -> float:
    """KV that decodes read, in tokens that come from memory at the speed of stock attention."""
    if reading == "apart":
        return work.decode_kv_tokens
    if reading == "cached":
        return max(work.decode_kv_distinct, work.decode_kv_tokens / cache_gain)
    shared = work.shared
    if shared is None:
        return work.decode_kv_distinct
    partial_bytes = 2 * PARTIAL_BYTES * model.num_layers * model.num_heads * (model.head_dim + 1)
    partials = shared.partial_rows * partial_bytes / model.kv_bytes_per_token
    slower = shared.node_tokens * (1 / PREFIX_SPEED - 1) if reading == "once-slow" else 0.0
    return work.decode_kv_tokens - shared.tokens_saved + partials + slower


def launches_s(reading: KVReading, work: StepWork, model: ModelShape) -> float:
    """Seconds of the launches that shared attention adds to a step with decodes."""
    if reading in ("apart", "cached") or not work.decode_kv_tokens:
        return 0.0
    return LAUNCHES * LAUNCH_S * model.num_layers


class SharedKVMeter:
    """What the decodes of each step share, by the grouping that the device would do.

    rules: by each of which `works` says what is shared in the last step; the first is what the step is charged by. Blocks of
    a request are read when it first decodes: those of its prompt are full then, and what comes behind is its own. Two
    neighbours are compared once. O(decodes) for a step with other rows than the last, else O(1).
    """

    def __init__(self, scheduler: Any, rules: Sequence[GroupingRule] = (GroupingRule(),)) -> None:
        self.works = [SharedWork() for _ in rules]
        self._scheduler = scheduler
        self._rules = rules
        self._block_size = int(scheduler.block_size)
        self._blocks: dict[str, IntArray] = {}
        self._equal: dict[tuple[str, str], int] = {}
        self._rows: tuple[str, ...] | None = None

    def work_of(self, rows: Sequence[str], computed: Mapping[str, int]) -> SharedWork:
        """rows: the decodes of a step, in its order. computed: tokens of each, this step's included."""
        names = tuple(rows)
        if names != self._rows:
            for name in names:
                if name not in self._blocks:
                    self._blocks[name] = self._read(name, computed[name] - 1)
            between = [self._equal_blocks(*pair) for pair in pairwise(names)]
            equal = np.array([0, *between, 0], dtype=np.int64)
            self._rows = names
            self.works = [self._work(equal, rule) for rule in self._rules]
        return self.works[0]

    def _work(self, equal: IntArray, rule: GroupingRule) -> SharedWork:
        found = shared_intervals(equal, self._block_size, rule)
        rows = found.end_row - found.first_row
        tokens = (found.end_block - found.start_block) * self._block_size
        return SharedWork(int(tokens.sum()), int((tokens * (rows - 1)).sum()), int(rows.sum()))

    def forget(self, request_ids: Iterable[str]) -> None:
        """These have ended, or were sent back and hold other blocks when they come again."""
        gone = {name for name in request_ids if self._blocks.pop(name, None) is not None}
        if gone:
            self._equal = {pair: n for pair, n in self._equal.items() if gone.isdisjoint(pair)}
            self._rows = None

    def _read(self, name: str, num_tokens: int) -> IntArray:
        ids = self._scheduler.kv_cache_manager.get_block_ids(name)[0]
        return np.array(ids[: num_tokens // self._block_size], dtype=np.int64)

    def _equal_blocks(self, before: str, name: str) -> int:
        known = self._equal.get((before, name))
        if known is None:
            a, b = self._blocks[before], self._blocks[name]
            width = min(len(a), len(b))
            other = np.flatnonzero(a[:width] != b[:width])
            known = self._equal[before, name] = int(other[0]) if len(other) else width
        return known
