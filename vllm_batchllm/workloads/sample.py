# SPDX-License-Identifier: Apache-2.0
"""A part of a batch that shares prefixes as the whole does: prefix groups, drawn at random.

The first requests of a shuffled file belong to many groups, few to each, and share much less than the file.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from vllm_batchllm.input.prompt_text import shared_text_bytes
from vllm_batchllm.input.text_table import TextTable
from vllm_batchllm.prefix.best_saving import TOKEN_BYTES, pack_tokens, shared_blocks
from vllm_batchllm.prefix.prefix_order import prefix_order

Ints = npt.NDArray[np.int64]
RUN_LENGTH = 128
"""Requests of a group at most; larger ones are cut into so many."""
LEAST_RUN = 16
"""A small sample cuts them no shorter: of groups cut into single requests nothing would be left."""


def sample_by_group(prompts: Sequence[Sequence[int]], num_requests: int, seed: int) -> list[int]:
    """Indices, ascending, of `num_requests` prompts (token ids), or all: prefix groups as whole as they can be.

    Of groups of about the same size the same share is drawn, so small and large ones are there as in the whole.
    """
    packed = [pack_tokens(prompt) for prompt in prompts]
    order = sorted(range(len(packed)), key=packed.__getitem__)
    shared = [0] * len(order)
    for place in range(1, len(order)):
        before, this = packed[order[place - 1]], packed[order[place]]
        shared[place] = shared_blocks(before, this, TOKEN_BYTES)
    lengths = np.array([len(prompts[index]) for index in order], dtype=np.int64)
    return _drawn(np.array(order, dtype=np.int64), np.array(shared), lengths, num_requests, seed)


def sample_of_table(table: TextTable, num_requests: int, seed: int) -> list[int]:
    """The same for a file whose text was hashed, nothing tokenised; indices of the table."""
    order = prefix_order(table.table, np.arange(len(table), dtype=np.int64))
    shared = shared_text_bytes(table.table, order)
    return _drawn(order, shared, table.text_bytes[order], num_requests, seed)


def _drawn(order: Ints, shared: Ints, lengths: Ints, num_requests: int, seed: int) -> list[int]:
    """order: of prefixes. shared: of each with the one before it. lengths: of the prompts, same unit."""
    total = len(order)
    if num_requests >= total:
        return list(range(total))
    starts = np.array(
        _group_starts(shared, lengths, max(LEAST_RUN, min(RUN_LENGTH, num_requests // 8)))
    )
    sizes = np.diff(starts, append=total)
    alike = np.lexsort((np.add.reduceat(shared, starts), sizes))
    generator = random.Random(seed)
    steps = np.floor((np.arange(len(starts)) + 1) * num_requests / total + generator.random())
    is_drawn = np.diff(steps, prepend=0) > 0
    drawn, others = alike[is_drawn].tolist(), alike[~is_drawn].tolist()
    generator.shuffle(drawn)
    generator.shuffle(others)
    chosen: list[int] = []
    for group in [*drawn, *others]:
        members = order[starts[group] : starts[group] + sizes[group]]
        chosen += members[: num_requests - len(chosen)].tolist()
        if len(chosen) == num_requests:
            break
    return sorted(chosen)


def _group_starts(shared: Ints, lengths: Ints, largest: int) -> list[int]:
    """Where groups of `largest` at most begin in the order: cut where least is shared, deeper where one is too large.

    What shares most of its prompts is not cut any deeper, but into runs.
    """
    starts: list[int] = []
    pending = [(0, len(shared))]
    while pending:
        begin, end = pending.pop()
        if end - begin <= largest:
            starts.append(begin)
            continue
        inner = shared[begin + 1 : end]
        least = int(inner.min())
        if 2 * least > int(np.median(lengths[begin:end])):
            starts += range(begin, end, largest)
            continue
        cuts = begin + 1 + np.flatnonzero(inner == least)
        pending += pairwise([begin, *cuts.tolist(), end])
    return sorted(starts)
