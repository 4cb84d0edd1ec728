# SPDX-License-Identifier: Apache-2.0
"""The evidence for a verdict, gathered from a batch: in tokens where it is tokenised, else from its text."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from vllm_batchllm.hardware.devices import Device
from vllm_batchllm.hardware.models import ModelShape
from vllm_batchllm.input.tokenize import TokenizedRequest
from vllm_batchllm.plan.analysis import Plan, block_chains
from vllm_batchllm.plan.attention_gain import Load, attention_gain
from vllm_batchllm.plan.crowding import prompt_tokens_again
from vllm_batchllm.plan.estimate import Estimate, first_come_of
from vllm_batchllm.plan.lru import simulate_lru
from vllm_batchllm.plan.verdict import Evidence, judge
from vllm_batchllm.prefix.best_saving import TOKEN_BYTES, shared_blocks
from vllm_batchllm.prefix.prefix_order import Ints

_SHORT_TOKENS = 512
"""What is shared and shorter is read so fast that shared attention has nothing to gain."""


@dataclass(frozen=True, slots=True)
class Cache:
    """What a batch runs with.

    num_kv_blocks: that requests can hold. max_num_seqs: requests at once. output_tokens: of each request that states no
    limit; None leaves them out. device, model: what it runs on; None where only the cache is known.
    """

    num_kv_blocks: int
    max_num_seqs: int = 256
    output_tokens: int | None = None
    device: Device | None = None
    model: ModelShape | None = None


def judged(plan: Plan, requests: Sequence[TokenizedRequest], cache: Cache) -> Plan:
    """The plan with its verdict, from all requests in tokens."""
    packed = [request.namespace + b"\0" + request.tokens.tobytes() for request in requests]
    order = sorted(range(len(requests)), key=packed.__getitem__)
    shared = np.zeros(len(order), dtype=np.int64)
    for place in range(1, len(order)):
        before, this = requests[order[place - 1]], requests[order[place]]
        if before.namespace == this.namespace:
            block_bytes = plan.block_size * TOKEN_BYTES
            blocks = shared_blocks(before.tokens.tobytes(), this.tokens.tobytes(), block_bytes)
            shared[place] = min(blocks, (len(this.tokens) - 1) // plan.block_size) * plan.block_size
    lengths = np.array([len(requests[index].tokens) for index in order], dtype=np.int64)
    limits = np.array([requests[index].max_tokens or 0 for index in order], dtype=np.int64)
    outputs = _outputs(limits, cache.output_tokens)
    hits = None
    if outputs is not None:
        of_request = dict(zip(order, outputs.tolist(), strict=True))
        hits = _hits_beside_outputs(plan, requests, of_request, cache)
    return _with_verdict(plan, lengths, shared, outputs, hits, cache)


def _hits_beside_outputs(
    plan: Plan, requests: Sequence[TokenizedRequest], outputs: Mapping[int, int], cache: Cache
) -> float:
    """Share of the prompt tokens that an LRU cache saves in file order, where outputs are kept in it as well."""
    size = plan.block_size
    chains, _ = block_chains(requests, size)

    def served() -> Iterator[tuple[int, Sequence[Hashable]]]:
        for index, chain in enumerate(chains):
            own = ((index, number) for number in range(-(-outputs[index] // size)))
            yield len(requests[index].tokens) + outputs[index], [*chain, *own]

    saved = simulate_lru(served(), size, cache.num_kv_blocks).saved_tokens
    return saved / max(plan.prompt_tokens, 1)


def judged_text(estimate: Estimate, cache: Cache) -> Plan:
    """The same from text, with as many tokens for a byte as the sample has."""
    plan, arranged = estimate.plan, estimate.arranged
    text_bytes = arranged.table.text_bytes[arranged.order]
    per_byte = plan.prompt_tokens / max(int(text_bytes.sum()), 1)
    per_shared = plan.optimal_saved_tokens / max(int(arranged.shared.sum()), 1)
    lengths = np.maximum(np.rint(text_bytes * per_byte), 1).astype(np.int64)
    shared = np.minimum(np.rint(arranged.shared * per_shared).astype(np.int64), lengths - 1)
    limits = arranged.table.max_tokens[arranged.order]
    outputs = _outputs(limits, cache.output_tokens)
    hits = None
    if outputs is not None:
        extra = np.zeros(len(outputs), dtype=np.int64)
        extra[arranged.order] = np.rint(outputs / per_byte).astype(np.int64)
        in_order = np.arange(len(extra), dtype=np.int64)
        hits = first_come_of(
            arranged, in_order, plan, cache.num_kv_blocks, extra_bytes=extra
        ).saved_ratio
    return _with_verdict(plan, lengths, shared, outputs, hits, cache)


def _with_verdict(
    plan: Plan,
    lengths: Ints,
    shared: Ints,
    outputs: Ints | None,
    hits: float | None,
    cache: Cache,
) -> Plan:
    """All arrays have an entry for each request, in the order of prefixes, in tokens.

    hits: what file order saves beside outputs; None for what it saves without.
    """
    assert plan.first_come is not None
    again, read_ratio, gain = 0, None, None
    if outputs is not None:
        kv_tokens = cache.num_kv_blocks * plan.block_size
        own = lengths - shared
        again = prompt_tokens_again(own, shared, outputs, kv_tokens, cache.max_num_seqs)
        running = _mean_running(own, outputs, kv_tokens, cache.max_num_seqs)
        read_ratio = _read_ratio(lengths, shared, outputs, running)
        if float(shared.mean()) < _SHORT_TOKENS:
            read_ratio = 0.0
        if cache.device is not None and cache.model is not None:
            read = float((outputs * (lengths + outputs / 2)).sum())
            load = Load(float(own.sum()), float(outputs.sum()), running, read, read_ratio)
            gain = attention_gain(load, cache.device, cache.model)
    optimum = plan.optimal_saved_ratio
    lost = again / max(plan.prompt_tokens, 1)
    stock = plan.first_come.saved_ratio if hits is None else hits
    evidence = Evidence(optimum, stock - lost, optimum - lost, read_ratio, gain)
    found = judge(evidence)
    return replace(plan, verdict=str(found.verdict), verdict_reason=found.reason)


def _outputs(limits: Ints, wanted: int | None) -> Ints | None:
    """Output tokens of each request; None if some are not known."""
    if wanted is not None:
        return np.where(limits > 0, np.minimum(limits, wanted), wanted)
    return limits if bool((limits > 0).all()) else None


def _mean_running(own: Ints, outputs: Ints, kv_tokens: int, max_num_seqs: int) -> float:
    """Requests at once where each holds its own tokens and half of its output."""
    fitting = kv_tokens / max(float((own + outputs / 2).mean()), 1.0)
    return float(min(max(fitting, 1.0), max_num_seqs, len(own)))


def _read_ratio(lengths: Ints, shared: Ints, outputs: Ints, running: float) -> float:
    """Of the KV that decodes read, what need not be read a second time if neighbours that run at once are read together.

    Of every window of `running` neighbours all but the first find what they share with the one before them read.
    """
    reads = float((outputs * (lengths + outputs / 2)).sum())
    together = float((outputs * shared).sum()) * (1 - 1 / max(running, 1.0))
    return together / reads if reads else 0.0
