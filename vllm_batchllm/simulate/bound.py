# SPDX-License-Identifier: Apache-2.0
"""What no order and no admission can remove: a lower bound of the makespan.

Every request computes at least what it cannot hit with unlimited memory, produces one token a
step, and reads its KV for each; with prefix-shared attention, only what it shares with nobody.
Steps are at least as many as the tokens, the sizes of a step and the memory allow.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from vllm_batchllm.simulate.cost_model import CostModel, StepTime, StepWork
from vllm_batchllm.simulate.placement import prefix_order, shared_before
from vllm_batchllm.simulate.sizes import EngineSizes
from vllm_batchllm.workloads.batch import Batch


def optimal_hits(prompts: Sequence[list[int]], block_size: int) -> list[int]:
    """Tokens that each prompt hits in prefix order with unlimited memory, by place in `prompts`."""
    order = prefix_order(prompts)
    hits = [0] * len(prompts)
    for place, shared in zip(
        order, shared_before(prompts, order, block_size).tolist(), strict=True
    ):
        hits[place] = shared
    return hits


def min_steps(batch: Batch, hits: Sequence[int], sizes: EngineSizes) -> int:
    """Steps that any schedule needs: those that sample, or more where prompts fill them."""
    num_tokens = batch.prompt_tokens - sum(hits) + batch.output_tokens - batch.num_requests
    return max(
        min_sampling_steps(batch, hits, sizes),
        math.ceil(num_tokens / sizes.max_num_batched_tokens),
    )


def min_sampling_steps(batch: Batch, hits: Sequence[int], sizes: EngineSizes) -> int:
    """Steps in which some request gets a token, by the tightest of three limits."""
    outputs = batch.output_lens
    seqs = max(sizes.max_num_seqs, sizes.batchllm_max_num_seqs)
    # Blocks that a request holds alone, over its steps; shared ones may cost nothing.
    held = sum(
        _own_block_steps(len(prompt) - hit, output, sizes.block_size)
        for prompt, hit, output in zip(batch.prompts, hits, outputs, strict=True)
    )
    return max(
        max(outputs),
        math.ceil(sum(outputs) / seqs),
        math.ceil(held / sizes.num_blocks),
    )


def _own_block_steps(num_own: int, num_outputs: int, block_size: int) -> int:
    """Sum of ceil((own + t) / block size) over the steps t = 0 .. outputs - 1."""
    first, last = num_own, num_own + num_outputs - 1
    return _ceil_sum(last, block_size) - _ceil_sum(first - 1, block_size)


def _ceil_sum(number: int, divisor: int) -> int:
    """Sum of ceil(i / divisor) over i = 1 .. number."""
    full, rest = divmod(number, divisor)
    return divisor * full * (full + 1) // 2 + rest * (full + 1)


def lower_bound(batch: Batch, sizes: EngineSizes, costs: CostModel) -> StepTime:
    """Seconds by part that every schedule takes at least; the total is a bound of the makespan.

    Parts that take the longer of two things are bounded by one step that does everything and by
    the steps needed, each of which reads all weights. Left out: a preempted request that finds all
    but a few of its tokens again reads them beside the prompts of that step, which may hide it.
    """
    hits = optimal_hits(batch.prompts, sizes.block_size)
    steps = min_steps(batch, hits, sizes)
    outputs = batch.output_lens
    pairs = decode_kv = own_kv = 0
    for prompt, hit, output in zip(batch.prompts, hits, outputs, strict=True):
        length, more = len(prompt), output - 1
        pairs += (length * (length + 1) - hit * (hit + 1)) // 2
        decode_kv += more * length + more * (more + 1) // 2
        own_kv += more * (length - hit) + more * (more + 1) // 2
    total = costs.time_of(
        StepWork(
            num_tokens=batch.prompt_tokens - sum(hits) + sum(outputs) - len(outputs),
            num_requests=sum(outputs),
            num_sampled=sum(outputs),
            prefill_pairs=pairs,
            decode_kv_tokens=decode_kv,
            held_kv_tokens=own_kv,
        )
    )
    each = costs.time_of(StepWork(num_tokens=1, num_requests=1, num_sampled=1))
    total.linear_s = max(total.linear_s, steps * each.linear_s)
    sampling = min_sampling_steps(batch, hits, sizes)
    total.head_s = max(total.head_s, sampling * each.head_s)
    total.step_s = steps * each.step_s
    total.launch_s = 0.0
    return total
