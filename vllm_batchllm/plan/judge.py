# SPDX-License-Identifier: Apache-2.0
"""The evidence for a verdict, gathered from a batch: in tokens where it is tokenised, else from its text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from vllm_batchllm.input.tokenize import TokenizedRequest
from vllm_batchllm.plan.analysis import Plan
from vllm_batchllm.plan.crowding import tokens_computed_again
from vllm_batchllm.plan.estimate import Estimate
from vllm_batchllm.plan.verdict import Evidence, judge
from vllm_batchllm.prefix.best_saving import TOKEN_BYTES, shared_blocks
from vllm_batchllm.prefix.prefix_order import Ints


@dataclass(frozen=True, slots=True)
class Cache:
    """What a batch runs with.

    num_kv_blocks: that requests can hold. max_num_seqs: requests at once. output_tokens: of each request that states no
    limit; None leaves them out.
    """

    num_kv_blocks: int
    max_num_seqs: int = 256
    output_tokens: int | None = None


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
    return _with_verdict(plan, lengths, shared, limits, cache)


def judged_text(estimate: Estimate, cache: Cache) -> Plan:
    """The same from text, with as many tokens for a byte as the sample has."""
    plan, arranged = estimate.plan, estimate.arranged
    text_bytes = arranged.table.text_bytes[arranged.order]
    per_byte = plan.prompt_tokens / max(int(text_bytes.sum()), 1)
    per_shared = plan.optimal_saved_tokens / max(int(arranged.shared.sum()), 1)
    lengths = np.maximum(np.rint(text_bytes * per_byte), 1).astype(np.int64)
    shared = np.minimum(np.rint(arranged.shared * per_shared).astype(np.int64), lengths - 1)
    limits = arranged.table.max_tokens[arranged.order]
    return _with_verdict(plan, lengths, shared, limits, cache)


def _with_verdict(plan: Plan, lengths: Ints, shared: Ints, limits: Ints, cache: Cache) -> Plan:
    """All arrays have an entry for each request, in the order of prefixes, in tokens."""
    assert plan.first_come is not None
    again, read_ratio = 0, None
    outputs = _outputs(limits, cache.output_tokens)
    if outputs is not None:
        kv_tokens = cache.num_kv_blocks * plan.block_size
        own = lengths - shared
        again = tokens_computed_again(own, shared, outputs, kv_tokens, cache.max_num_seqs)
        running = _mean_running(own, outputs, kv_tokens, cache.max_num_seqs)
        read_ratio = _read_ratio(lengths, shared, outputs, running)
    optimum = plan.optimal_saved_ratio
    evidence = Evidence(
        optimum,
        plan.first_come.saved_ratio,
        optimum - again / max(plan.prompt_tokens, 1),
        read_ratio,
    )
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
