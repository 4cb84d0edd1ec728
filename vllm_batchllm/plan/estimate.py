# SPDX-License-Identifier: Apache-2.0
"""The plan of a batch too large to be tokenised: its text in the order of prefixes, and neighbours of a sample in tokens."""

from __future__ import annotations

import random
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from vllm_batchllm.input.prompt_text import shared_text_bytes
from vllm_batchllm.input.reader import BadLine
from vllm_batchllm.input.request import PlanRequest
from vllm_batchllm.input.text_table import TextTable, read_at, text_of
from vllm_batchllm.input.tokenize import TokenizedRequest, TokenizeResult
from vllm_batchllm.plan.analysis import FirstComeSaving, Group, Plan
from vllm_batchllm.plan.groups import SharedPrefix, departures, preview
from vllm_batchllm.plan.projection import Floats, Projection, project
from vllm_batchllm.plan.text_groups import text_groups
from vllm_batchllm.plan.text_lru import simulate_text_lru
from vllm_batchllm.prefix.best_saving import TOKEN_BYTES, shared_blocks
from vllm_batchllm.prefix.prefix_order import Ints, prefix_order

NUM_SAMPLED = 1_000
MAX_SAMPLED_BYTES = 8 * 2**20
"""Of text that is drawn; with its neighbours twice as much is tokenised."""
_SEED = 0

Tokenize = Callable[[Sequence[PlanRequest]], TokenizeResult]


@dataclass(frozen=True, slots=True)
class TextOrder:
    """All requests in the order of their prefixes. shared: (n,) bytes of text each shares with the one before it."""

    table: TextTable
    order: Ints
    shared: Ints

    @classmethod
    def of(cls, table: TextTable) -> TextOrder:
        """O(lines * branchings * log depth)."""
        order = prefix_order(table.table, np.arange(len(table), dtype=np.int64))
        shared = shared_text_bytes(table.table, order)
        return cls(table, order, np.where(table.is_unread[order], 0, shared))


@dataclass(frozen=True, slots=True)
class Sampled:
    """What the sample has shown. bad_lines: those of it that cannot be tokenised."""

    projection: Projection
    num_sampled: int
    bad_lines: list[BadLine]


@dataclass(frozen=True, slots=True)
class Estimate:
    """A plan whose figures are estimated, and what it is made from. bad_lines: of the sample, cannot be tokenised."""

    plan: Plan
    arranged: TextOrder
    bad_lines: list[BadLine]


def estimate_plan(
    table: TextTable, block_size: int, tokenize: Tokenize, *, top: int, num_kv_blocks: int | None
) -> Estimate:
    """Order the text, tokenise a sample, and project.

    Raises:
        OSError: the file cannot be read again.
        ValueError: nothing of the sample can be tokenised, or there is nothing to sample.
    """
    if len(table) < 2:
        raise ValueError("one request alone is not estimated; give --exact")
    arranged = TextOrder.of(table)
    sampled = sample_tokens(arranged, block_size, tokenize)
    found = sampled.projection
    groups = text_groups(arranged.shared.tolist())
    tokens_per_byte = found.tokens / max(int(table.text_bytes.sum()), 1)
    plan = Plan(
        num_requests=len(table),
        num_left_out=len(table.bad_lines),
        prompt_tokens=round(found.tokens),
        max_output_tokens=int(table.max_tokens.sum()),
        block_size=block_size,
        optimal_saved_tokens=round(found.saved),
        optimal_saved_ratio=found.ratio,
        first_come=None,
        num_duplicates=len(table) - len(np.unique(table.whole)),
        num_groups=len(groups),
        levels=False,
        groups=tuple(_groups(arranged, groups[:top], block_size, tokens_per_byte)),
        num_unread=int(table.is_unread.sum()),
        is_estimate=True,
        ratio_error=found.ratio_error,
        num_sampled=sampled.num_sampled,
    )
    if num_kv_blocks is not None:
        in_order = np.arange(len(table), dtype=np.int64)
        first_come = first_come_of(arranged, in_order, plan, num_kv_blocks)
        plan = replace(plan, first_come=first_come)
    return Estimate(plan, arranged, sampled.bad_lines)


def first_come_of(
    arranged: TextOrder,
    order: Ints,
    plan: Plan,
    num_kv_blocks: int,
    extra_bytes: Ints | int = 0,
) -> FirstComeSaving:
    """What an LRU cache saves if the requests come in this order, as a share of what can be saved at best.

    extra_bytes: that each request keeps in it beside its prompt.
    """
    table = arranged.table
    possible = int(arranged.shared.sum())
    whole = int(table.text_bytes.sum())
    capacity = num_kv_blocks * plan.block_size * whole / max(plan.prompt_tokens, 1)
    kept = table.text_bytes + extra_bytes
    hits = simulate_text_lru(table.table, kept, arranged.order, order, capacity)
    share = min(hits / possible, 1.0) if possible else 0.0
    return FirstComeSaving(
        num_kv_blocks,
        round(share * plan.optimal_saved_tokens),
        share * plan.optimal_saved_ratio,
        int((kept > capacity).sum()),
    )


def sample_tokens(arranged: TextOrder, block_size: int, tokenize: Tokenize) -> Sampled:
    """Tokenise some requests, each with the one before it in the order, and see what they share.

    Raises:
        OSError, ValueError: as `estimate_plan`.
    """
    places = _places(arranged)
    order = arranged.order
    pairs = [index for place in places for index in (order[place - 1], order[place])]
    requests = read_at(arranged.table, pairs)
    result = tokenize(requests)
    bad = {bad_line.line for bad_line in result.bad_lines}
    tokens = iter(result.requests)
    made = [None if request.line in bad else next(tokens) for request in requests]
    known, figures = [], []
    for number, place in enumerate(places):
        before, this = made[2 * number : 2 * number + 2]
        if before is not None and this is not None:
            known.append(place)
            figures.append((len(this.tokens), _shared_tokens(before, this, block_size)))
    if not known:
        raise ValueError(f"no prompt of a sample of {len(places)} can be tokenised")
    lengths, saved_tokens = np.array(figures, dtype=np.float64).T
    all_bytes: Floats = arranged.table.text_bytes[order].astype(np.float64)
    all_shared: Floats = arranged.shared.astype(np.float64)
    found = project(
        all_bytes[known], all_shared[known], lengths, saved_tokens, all_bytes, all_shared[1:]
    )
    return Sampled(found, len(known), result.bad_lines)


def _places(arranged: TextOrder) -> list[int]:
    mean_bytes = float(arranged.table.text_bytes.mean())
    fitting = int(MAX_SAMPLED_BYTES / max(mean_bytes, 1.0))
    others = range(1, len(arranged.order))  # the first has nobody before it
    wanted = min(len(others), max(50, min(NUM_SAMPLED, fitting)))
    return sorted(random.Random(_SEED).sample(others, wanted))


def _shared_tokens(before: TokenizedRequest, this: TokenizedRequest, block_size: int) -> int:
    """Tokens that the second reads from the cache right behind the first."""
    if before.namespace != this.namespace:
        return 0
    block_bytes = block_size * TOKEN_BYTES
    blocks = shared_blocks(before.tokens.tobytes(), this.tokens.tobytes(), block_bytes)
    most = len(this.tokens) - 1
    if this.readable is not None:
        most = min(most, this.readable)
    return min(blocks, most // block_size) * block_size


def _groups(
    arranged: TextOrder, found: Sequence[SharedPrefix], block_size: int, tokens_per_byte: float
) -> list[Group]:
    """Groups in tokens, about; their text is read again."""
    requests = read_at(arranged.table, [int(arranged.order[group.member]) for group in found])
    texts = [
        array("B", text_of(request)[: group.end])
        for request, group in zip(requests, found, strict=True)
    ]
    groups = [replace(group, member=number) for number, group in enumerate(found)]
    starts = departures(groups, texts)
    return [
        Group(
            level=0,
            prefix_tokens=_whole_blocks(group.end * tokens_per_byte, block_size),
            num_members=group.num_members,
            saved_tokens=_whole_blocks(group.end * tokens_per_byte, block_size)
            * (group.num_members - 1),
            preview=_preview(request, text, start, group.end),
        )
        for group, request, text, start in zip(groups, requests, texts, starts, strict=True)
    ]


def _preview(request: PlanRequest, text: array[int], start: int, end: int) -> str:
    if isinstance(request.content, array):
        return "token ids"
    return preview(text, start, end, lambda part: bytes(part).decode(errors="ignore"))


def _whole_blocks(tokens: float, block_size: int) -> int:
    return int(tokens) // block_size * block_size
