# SPDX-License-Identifier: Apache-2.0
"""Several arms on one batch whose requests arrive over time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from vllm_batchllm.prefix.best_saving import optimal_saved_tokens
from vllm_batchllm.simulate.arms import Arm
from vllm_batchllm.simulate.arrivals import Arrivals
from vllm_batchllm.simulate.cost_model import Roofline
from vllm_batchllm.simulate.energy import Energy, energy_of
from vllm_batchllm.simulate.online import OnlineRun, run_online
from vllm_batchllm.simulate.run import OnProgress
from vllm_batchllm.simulate.setup import Setup
from vllm_batchllm.simulate.suite import Simulation, describe, setups_of
from vllm_batchllm.workloads.batch import Batch


def arrival_times(batch: Batch, arrivals: Arrivals) -> list[float]:
    """When each request of `batch` arrives, seconds. Raises UsageError."""
    return arrivals.times_s(batch.name, batch.num_requests, batch.arrivals_s)


def simulate_online(
    batch: Batch,
    arrivals: Arrivals,
    arms: Sequence[Arm],
    setup: Setup,
    *,
    compare_attention: bool = False,
    on_arm: Callable[[str], None] = lambda name: None,
    on_progress: OnProgress | None = None,
    on_result: Callable[[Simulation], None] = lambda result: None,
) -> Simulation:
    """Run `batch` by every arm as its requests arrive; no bound is known, as none of a batch says anything of latencies.

    Args:
        compare_attention, on_arm, on_result: as `simulate` of a batch has them.

    Raises:
        UsageError: the batch cannot be run so, or not by one of the arms.
    """
    times_s = arrival_times(batch, arrivals)
    saved = optimal_saved_tokens(batch.prompts, setup.sizes.block_size, limits=batch.limits)
    workload = describe(batch) | {"arrivals": arrivals.describe()}
    result = Simulation(workload, setup.describe(), ())
    for arm, using in setups_of(arms, setup, compare_attention):
        on_arm(arm.name)
        run = run_online(
            batch,
            times_s,
            arm,
            using.sizes,
            using.costs,
            optimal_saved=saved,
            on_progress=on_progress,
        )
        run = replace(run, energy=_energy(using, run))
        result = replace(result, runs=(*result.runs, run))
        on_result(result)
    return result


def _energy(setup: Setup, run: OnlineRun) -> Energy | None:
    """None on the machine at hand: of its power nothing is known."""
    if not isinstance(setup.costs, Roofline):
        return None
    figures = run.metrics
    return energy_of(
        setup.costs.device,
        setup.num_devices,
        run.busy_s,
        figures.makespan_s,
        figures.num_requests,
    )
