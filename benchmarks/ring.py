# SPDX-License-Identifier: Apache-2.0
"""One batch on a real scheduler without a model: exact counters, and time by fitted costs."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

from vllm_batchllm.simulate.arms import SORTED, find_arm
from vllm_batchllm.simulate.cost_model import Measured, MeasuredCosts
from vllm_batchllm.simulate.run import run_arm
from vllm_batchllm.simulate.sizes import EngineSizes
from vllm_batchllm.simulate.step_costs import PLATFORM_COSTS
from vllm_batchllm.workloads.batch import Batch, kv_blocks_for
from vllm_batchllm.workloads.catalog import make_workload

BLOCK_SIZE = 32
MAX_NUM_SEQS, MAX_NUM_BATCHED_TOKENS = 256, 2048
COSTS = Measured(MeasuredCosts.of(PLATFORM_COSTS["cpu"]))


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run computed, and the time it would take by the fitted costs.

    saved_ratio: 1 - prompt tokens computed / prompt tokens; whatever is computed again after a
    preemption, outputs included, counts as computed.
    """

    saved_ratio: float
    preemptions: int
    steps: int
    modelled_s: float


@cache
def workload(name: str, scale: float, num_requests: int | None = None) -> Batch:
    """The workload of that name, as `vllm-batchllm bench` draws it."""
    return make_workload(name, scale=scale, num_requests=num_requests)


def run(batch: Batch, options: dict[str, Any] | None) -> Outcome:
    """Serve `batch` by our scheduler, or with None by vLLM's in sorted order.

    Our scheduler keeps to the fitted costs: there is nothing to measure.
    """
    sizes = EngineSizes(
        num_blocks=kv_blocks_for(batch, BLOCK_SIZE) - 1,  # one is vLLM's null block
        block_size=BLOCK_SIZE,
        max_num_seqs=MAX_NUM_SEQS,
        batchllm_max_num_seqs=MAX_NUM_SEQS,
        max_num_batched_tokens=MAX_NUM_BATCHED_TOKENS,
        platform="cpu",
    )
    arm = find_arm(SORTED) if options is None else find_arm("batchllm", options)
    metrics = run_arm(batch, arm, sizes, COSTS, optimal_saved_tokens=0).metrics
    # The last output token of a request is never an input.
    computed = sum(metrics.step_tokens) - batch.output_tokens + batch.num_requests
    saved = 1 - computed / batch.prompt_tokens
    return Outcome(saved, metrics.preemptions, metrics.steps, metrics.makespan_s)
