# SPDX-License-Identifier: Apache-2.0
"""Several batches by several arms, and the record of it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import pairwise, product
from pathlib import Path
from typing import Any

from vllm_batchllm.prefix.best_saving import optimal_saved_tokens
from vllm_batchllm.simulate.arms import OURS, SORTED, Arm
from vllm_batchllm.simulate.bound import lower_bound
from vllm_batchllm.simulate.pool import Pool
from vllm_batchllm.simulate.replicas import run_replicas
from vllm_batchllm.simulate.run import OnProgress, SimulatedRun, run_arm
from vllm_batchllm.simulate.sample_time import whole_time
from vllm_batchllm.simulate.setup import ATTENTION_BOUNDS, Setup, with_reading
from vllm_batchllm.workloads.batch import Batch

SCHEMA = 1
MOST_POINTS = 500
"""Points of a curve in the record; longer ones are averaged."""


@dataclass(frozen=True, slots=True)
class Simulation:
    """One batch, all arms. bound_s: no schedule is faster with these costs (None: not known)."""

    workload: Mapping[str, Any]
    engine: Mapping[str, Any]
    runs: tuple[SimulatedRun, ...]
    bound_s: float | None = None

    def run_of(self, arm: str) -> SimulatedRun | None:
        """The run of the arm of that name."""
        return next((run for run in self.runs if run.metrics.arm == arm), None)

    @property
    def num_replicas(self) -> int:
        """Engines that share the batch."""
        return int(self.engine.get("num_replicas", 1))

    @property
    def base(self) -> str:
        """The arm that others are compared with: `sorted`; of several replicas the first that ran."""
        if self.num_replicas == 1 or not self.runs:
            return SORTED
        return self.runs[0].metrics.arm

    def speed_over(self, arm: str, other: str | None = None) -> float | None:
        """Makespan of `other` (None: the base) / makespan of `arm`; None if one of them did not run."""
        first, second = self.run_of(other or self.base), self.run_of(arm)
        if first is None or second is None:
            return None
        return first.metrics.makespan_s / second.metrics.makespan_s

    def device_hours(self, run: SimulatedRun) -> float:
        """Hours of all devices together."""
        num_devices = int(self.engine["num_devices"]) * self.num_replicas
        return run.metrics.makespan_s * num_devices / 3600


@dataclass(frozen=True, slots=True)
class SimulationReport:
    """Everything that one call of `simulate` has made."""

    results: tuple[Simulation, ...] = ()
    environment: Mapping[str, Any] = field(default_factory=dict)
    command: str = ""
    price_per_hour: float | None = None


def describe(batch: Batch) -> dict[str, Any]:
    """A batch as plain values."""
    return {
        "name": batch.name,
        "description": batch.description,
        "num_requests": batch.num_requests,
        "prompt_tokens": batch.prompt_tokens,
        "output_tokens": batch.output_tokens,
        "lengths_known": batch.lengths_known,
        "scale": batch.scale,
        "seed": batch.seed,
        **({} if batch.sample_of is None else {"sample_of": batch.sample_of}),
    }


def simulate(
    batch: Batch,
    arms: Sequence[Arm],
    setup: Setup,
    pools: Sequence[Pool] = (Pool(),),
    *,
    compare_attention: bool = False,
    on_arm: Callable[[str], None] = lambda name: None,
    on_progress: OnProgress | None = None,
    on_result: Callable[[Simulation], None] = lambda result: None,
) -> Simulation:
    """Run `batch` by every arm, on every pool of replicas.

    pools: of equally many replicas; of one, an arm is a row of its name, of several, with that of the placement.
    compare_attention: run our arm with each way of reading shared KV, as further arms.
    on_arm: told who is next. on_result: given what is finished after each arm.

    Raises:
        UsageError: the batch cannot be run, or the setup knows no other attention.
    """
    batch.check()
    saved = optimal_saved_tokens(batch.prompts, setup.sizes.block_size, limits=batch.limits)
    bound = lower_bound(batch, setup.sizes.widest(), setup.costs)
    plans = setups_of(arms, setup, compare_attention)
    result = Simulation(
        describe(batch), _engine(setup, pools[0]), (), bound.total_s / pools[0].capacity
    )
    for (arm, using), pool in product(plans, pools):
        on_arm(arm.name if pool.num_replicas == 1 else pool.row_of(arm))
        tried = [
            _run_arm(batch, variant, using, pool, saved, on_progress) for variant in arm.variants()
        ]
        run = min(tried, key=lambda run: run.metrics.makespan_s)
        result = replace(result, runs=(*result.runs, run))
        on_result(result)
    return result


def setups_of(
    arms: Sequence[Arm], setup: Setup, compare_attention: bool
) -> list[tuple[Arm, Setup]]:
    """Each arm with its setup; with ours once more for each way of reading shared KV, if asked for. Raises UsageError."""
    plans = [(arm, setup) for arm in arms]
    if compare_attention:
        ours = next((arm for arm in arms if arm.is_ours), Arm(OURS, OURS))
        plans += [
            (replace(ours, name=ours.name + suffix), with_reading(setup, reading))
            for suffix, reading in ATTENTION_BOUNDS.items()
        ]
    return plans


def _engine(setup: Setup, pool: Pool) -> dict[str, Any]:
    if pool.num_replicas == 1:
        return setup.describe()
    more = {"num_replicas": pool.num_replicas, "slowest_speed": pool.slowest_speed}
    more |= {"lockstep": True} if pool.lockstep else {}
    return setup.describe() | more


def _run_arm(
    batch: Batch,
    arm: Arm,
    setup: Setup,
    pool: Pool,
    saved: int,
    on_progress: OnProgress | None,
) -> SimulatedRun:
    if pool.num_replicas == 1:
        return run_arm(batch, arm, setup.sizes, setup.costs, saved, on_progress)
    return run_replicas(batch, arm, setup.sizes, setup.costs, pool, saved, on_progress)


def report_to_dict(report: SimulationReport) -> dict[str, Any]:
    """Plain JSON values."""
    return {
        "schema": SCHEMA,
        "command": report.command,
        "environment": dict(report.environment),
        "price_per_hour": report.price_per_hour,
        "results": [_result(report, result) for result in report.results],
    }


def write_record(report: SimulationReport, folder: Path) -> None:
    """Write `simulate.json`, replaced as a whole. Raises OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "simulate.json"
    partial = path.with_name(f".{path.name}.part")
    partial.write_text(json.dumps(report_to_dict(report), indent=1) + "\n", encoding="utf-8")
    os.replace(partial, path)


def _result(report: SimulationReport, result: Simulation) -> dict[str, Any]:
    return {
        "workload": dict(result.workload),
        "engine": dict(result.engine),
        "bound_s": result.bound_s,
        "runs": [_run(report, result, run) for run in result.runs],
    }


def _run(report: SimulationReport, result: Simulation, run: SimulatedRun) -> dict[str, Any]:
    metrics = asdict(run.metrics)
    for name in ("step_tokens", "step_kv_blocks"):
        if name in metrics:
            metrics[name] = thinned(metrics[name])
    hours = result.device_hours(run)
    over = "speed_over_sorted" if run.pool is None else "speed_over_first"
    whole = whole_time(run, result.workload)
    return metrics | {
        "parts": asdict(run.parts),
        "wall_s": run.wall_s,
        over: result.speed_over(run.metrics.arm),
        "device_hours": hours,
        "cost": None if report.price_per_hour is None else hours * report.price_per_hour,
        "counters": run.counters,
        **({} if whole is None else {"whole_makespan": whole._asdict()}),
        **run.more_figures(),
    }


def thinned(values: Sequence[float], most: int = MOST_POINTS) -> list[float]:
    """At most `most` means of equally long runs of `values`."""
    if len(values) <= most:
        return list(values)
    edges = [round(at * len(values) / most) for at in range(most + 1)]
    return [round(sum(values[a:b]) / (b - a), 1) for a, b in pairwise(edges)]
