# SPDX-License-Identifier: Apache-2.0
"""The plan of a batch: the figures that tell whether sharing prefixes pays, from token ids."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass

from vllm_batchllm.input.tokenize import TokenizedRequest
from vllm_batchllm.plan.groups import SharedPrefix, SharingTree, departures, preview
from vllm_batchllm.plan.lru import simulate_lru
from vllm_batchllm.prefix.best_saving import check_block_size, optimal_saving
from vllm_batchllm.prefix.hashing import chain_packed


@dataclass(frozen=True, slots=True)
class Group:
    """Requests that share a prefix.

    Attributes:
        level: how many wider groups enclose it; always 0 unless levels were asked for.
        prefix_tokens: length of the shared prefix, whole blocks only.
        num_members: requests that share it.
        saved_tokens: prompt tokens that its members but the first need not compute; if levels
            were asked for, without those of the enclosing groups.
        preview: what its prefix says from where it departs from the other groups listed.
    """

    level: int
    prefix_tokens: int
    num_members: int
    saved_tokens: int
    preview: str


@dataclass(frozen=True, slots=True)
class FirstComeSaving:
    """What first come, first served would save with a KV cache of `num_kv_blocks` blocks.

    `num_oversized` requests need more blocks than that and were passed over.
    """

    num_kv_blocks: int
    saved_tokens: int
    saved_ratio: float
    num_oversized: int


@dataclass(frozen=True, slots=True)
class Plan:
    """What is known of a batch before it runs; lengths are in tokens.

    Attributes:
        num_requests: requests that were analysed.
        num_left_out: lines of the file that were bad and left out.
        prompt_tokens: sum of the prompt lengths.
        max_output_tokens: sum of the output limits that the requests state.
        block_size: tokens per KV block.
        optimal_saved_tokens, optimal_saved_ratio: the best possible at that block size.
        num_unread: requests for which nothing is read from a cache, because they ask for the log-probabilities
            of their prompt without a start (``prompt_logprobs_start``).
        first_come: the simulated saving of first come, first served; None if not asked for.
        num_duplicates: requests whose prompt is exactly that of an earlier one.
        num_groups: groups of requests that share a prefix; a request is in one at most.
        levels: whether `groups` is nested.
        groups: the groups worth most.
        is_estimate: figures in tokens are projected from `num_sampled` requests; `optimal_saved_ratio` is right to
            `ratio_error` in 95 of 100 samples, and of lines that share less than a piece of text nothing is seen.
        verdict, verdict_reason: whether the plugin pays (`verdict.py`), and why; None where no KV cache is given.
    """

    num_requests: int
    num_left_out: int
    prompt_tokens: int
    max_output_tokens: int
    block_size: int
    optimal_saved_tokens: int
    optimal_saved_ratio: float
    first_come: FirstComeSaving | None
    num_duplicates: int
    num_groups: int
    levels: bool
    groups: tuple[Group, ...]
    num_unread: int = 0
    is_estimate: bool = False
    ratio_error: float | None = None
    num_sampled: int = 0
    verdict: str | None = None
    verdict_reason: str = ""

    def to_json(self) -> str:
        """Return the plan as a JSON object with the names of its fields, in ASCII."""
        return json.dumps(asdict(self), indent=2)


def make_plan(
    requests: Sequence[TokenizedRequest],
    block_size: int,
    *,
    num_kv_blocks: int | None = None,
    top: int = 10,
    levels: bool = False,
    num_left_out: int = 0,
    decode: Callable[[Sequence[int]], str] = lambda tokens: " ".join(map(str, tokens)),
) -> Plan:
    """Analyse a batch.

    Args:
        requests: the batch in file order.
        block_size: tokens per KV block.
        num_kv_blocks: usable KV blocks for the first come, first served simulation, None for none.
        top: how many groups to list.
        levels: list nested groups instead of the best single-level choice.
        num_left_out: bad lines, reported only.
        decode: turns token ids into the text of a preview.

    Raises:
        ValueError: `block_size` or `num_kv_blocks` is below 1, or `top` is negative.
    """
    check_block_size(block_size)
    if top < 0:
        raise ValueError(f"top must be at least 0 groups, got {top}")
    prompts = [request.tokens for request in requests]
    saving = optimal_saving(
        prompts,
        block_size,
        [request.namespace for request in requests],
        [request.readable for request in requests],
    )
    chains, num_duplicates = block_chains(requests, block_size)
    first_come = None
    if num_kv_blocks is not None:
        first_come = _first_come(prompts, chains, block_size, num_kv_blocks, saving.prompt_tokens)
    tree = SharingTree([len(prompt) for prompt in prompts], chains, block_size)
    flat = tree.flat()
    listed = tree.nested(top) if levels else flat[:top]
    return Plan(
        num_requests=len(requests),
        num_left_out=num_left_out,
        prompt_tokens=saving.prompt_tokens,
        max_output_tokens=sum(request.max_tokens or 0 for request in requests),
        block_size=block_size,
        optimal_saved_tokens=saving.saved_tokens,
        optimal_saved_ratio=saving.saved_ratio,
        first_come=first_come,
        num_duplicates=num_duplicates,
        num_groups=len(flat),
        levels=levels,
        groups=tuple(_groups(listed, prompts, decode)),
        num_unread=sum(request.readable == 0 for request in requests),
    )


def block_chains(
    requests: Sequence[TokenizedRequest], block_size: int
) -> tuple[list[list[bytes]], int]:
    """Return the block hashes of each request, made once per distinct prompt, and repeats."""
    known: dict[tuple[bytes, bytes], list[bytes]] = {}
    chains = []
    for request in requests:
        key = request.namespace, request.tokens.tobytes()
        chain = known.get(key)
        if chain is None:
            chain = known[key] = chain_packed(key[1], block_size, request.namespace)
        chains.append(chain)
    return chains, len(requests) - len(known)


def _first_come(
    prompts: Sequence[Sequence[int]],
    chains: Sequence[Sequence[bytes]],
    block_size: int,
    num_kv_blocks: int,
    prompt_tokens: int,
) -> FirstComeSaving:
    lengths = map(len, prompts)
    outcome = simulate_lru(zip(lengths, chains, strict=True), block_size, num_kv_blocks)
    ratio = outcome.saved_tokens / prompt_tokens if prompt_tokens else 0.0
    return FirstComeSaving(num_kv_blocks, outcome.saved_tokens, ratio, outcome.num_oversized)


def _groups(
    prefixes: Sequence[SharedPrefix],
    prompts: Sequence[Sequence[int]],
    decode: Callable[[Sequence[int]], str],
) -> Iterator[Group]:
    for prefix, start in zip(prefixes, departures(prefixes, prompts), strict=True):
        yield Group(
            level=prefix.level,
            prefix_tokens=prefix.end,
            num_members=prefix.num_members,
            saved_tokens=prefix.saved_tokens,
            preview=preview(prompts[prefix.member], start, prefix.end, decode),
        )
