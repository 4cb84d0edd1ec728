# SPDX-License-Identifier: Apache-2.0
"""Simulations as tables."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from vllm_batchllm.simulate.arms import SORTED, STOCK, TUNED
from vllm_batchllm.simulate.online_show import (
    ONLINE_HEADER,
    arrivals_clause,
    is_online,
    online_rows,
    units_clause,
)
from vllm_batchllm.simulate.run import SimulatedRun
from vllm_batchllm.simulate.sample_time import whole_time
from vllm_batchllm.simulate.suite import Simulation, SimulationReport
from vllm_batchllm.workloads.sources import SAMPLE

HEADER = (
    "arm",
    "makespan",
    f"over {SORTED}",
    "req/s",
    "saved",
    "preempted",
    "steps",
    "KV held",
    "device-h",
)
POOL_HEADER = (
    "arm, placement",
    "makespan",
    "over first",
    "saved",
    "twice",
    "preempted",
    "thefts",
    "idle",
    "device-h",
)
"""Of several replicas. Twice: what they compute and one need not, over all prompt tokens."""


def duration(seconds: float) -> str:
    """`95.0 s`, or `0:12:30` from 1,000 seconds on."""
    return f"{seconds:.1f} s" if seconds < 1000 else str(timedelta(seconds=round(seconds)))


def header(report: SimulationReport) -> list[str]:
    """Column titles of `rows`."""
    titles: tuple[str, ...] = HEADER
    if any(map(is_online, report.results)):
        titles = ONLINE_HEADER
    elif any(result.num_replicas > 1 for result in report.results):
        titles = POOL_HEADER
    return [*titles, *(["cost"] if report.price_per_hour is not None else [])]


def rows(report: SimulationReport, result: Simulation) -> list[list[str]]:
    """One row for each arm, and one for the bound where it is known."""
    if is_online(result):
        own = zip(online_rows(result), result.runs, strict=True)
        return [[*row, *_cost(report, result.device_hours(run))] for row, run in own]
    lines = []
    for run in result.runs:
        figures = run.metrics
        speed = result.speed_over(figures.arm)
        hours = result.device_hours(run)
        lines.append(
            [
                figures.arm,
                duration(figures.makespan_s),
                "–" if speed is None else f"{speed:.3f}",
                *_own_columns(result, run),
                f"{hours:.3f}",
                *_cost(report, hours),
            ]
        )
    return lines + _bound_row(report, result)


def _own_columns(result: Simulation, run: SimulatedRun) -> list[str]:
    """What is shown of one engine, or of several."""
    figures, pool = run.metrics, run.pool
    if pool is None:
        mean_kv = run.mean_kv_share(int(result.engine["kv_blocks"]))
        return [
            f"{figures.requests_per_s:.2f}",
            f"{figures.saved_ratio:.1%}",
            f"{figures.preemptions}",
            f"{figures.steps}",
            "–" if mean_kv is None else f"{mean_kv:.0%}",
        ]
    return [
        f"{figures.saved_ratio:.1%}",
        f"{pool.duplicated_tokens / figures.prompt_tokens:.2%}",
        f"{figures.preemptions}",
        f"{pool.thefts}",
        f"{pool.idle_ratio:.0%}",
    ]


def best_cut(result: Simulation) -> str:
    """What the cheapest cut computes twice, as a clause; empty where nobody cuts."""
    cuts = (run.pool.optimal_duplicated_tokens for run in result.runs if run.pool is not None)
    best = next((tokens for tokens in cuts if tokens is not None), None)
    if best is None:
        return ""
    return f"; computed twice by the best cut: {best / int(result.workload['prompt_tokens']):.2%}"


def _cost(report: SimulationReport, hours: float) -> list[str]:
    price = report.price_per_hour
    return [] if price is None else [f"{hours * price:,.2f}"]


def _bound_row(report: SimulationReport, result: Simulation) -> list[list[str]]:
    if result.bound_s is None:
        return []
    base = result.run_of(result.base)
    speed = "–" if base is None else f"{base.metrics.makespan_s / result.bound_s:.3f}"
    row = ["(lower bound)", duration(result.bound_s), speed]
    return [row + [""] * (len(header(report)) - len(row))]


def tuned_as(result: Simulation) -> str:
    """With what the arm `tuned` ran, as a clause; empty where it did not."""
    run = next((run for run in result.runs if run.metrics.arm.split(",")[0] == TUNED), None)
    sizes = result.engine.get("tuned")
    if run is None:
        return ""
    kept = f"; {TUNED}: watermark {run.counters['watermark']:g}"
    if sizes is None:
        return f"{kept}, sizes as set"
    return (
        f"{kept}, {sizes['max_num_seqs']:,} requests at once, "
        f"{sizes['max_num_batched_tokens']:,} tokens a step, {sizes['num_blocks']:,} KV blocks"
    )


def engine_of(result: Simulation) -> str:
    """Model and devices of all replicas."""
    engine, num = result.engine, result.num_replicas
    one = f"{engine['model']} on {engine['num_devices']} x {engine['device']}"
    if num == 1:
        return one
    slow = float(engine["slowest_speed"])
    together = ", every step together" if engine.get("lockstep") else ""
    slower = "" if slow == 1 else f", the first at a speed of {slow:g}"
    return f"{num} replicas of {one}{together}{slower}"


def sample_clause(workload: Mapping[str, Any]) -> str:
    """On a line of its own which part of a file was taken, if it was not all."""
    description = str(workload["description"])
    return f"\n{description}" if description.startswith(SAMPLE) else ""


def whole_clause(result: Simulation) -> str:
    """On a line of its own about how long the whole file takes, where a sample of it ran; in the order of the file the least that it
    can be, since a sample has more of itself in the cache than the whole has."""
    found = []
    for run in result.runs:
        whole = whole_time(run, result.workload)
        if whole is None:
            return ""
        name = run.metrics.arm
        if name == STOCK:
            found.append(f"{name} ≥ {duration(whole.seconds * (1 - whole.error_ratio))}")
        else:
            found.append(f"{name} {duration(whole.seconds)} ±{whole.error_ratio:.0%}")
    num = int(result.workload.get("sample_of", 0))
    return f"\nall {num:,} requests take about: {', '.join(found)}" if found else ""


def table(report: SimulationReport, result: Simulation) -> Table:
    """A table for the terminal."""
    workload, engine = result.workload, result.engine
    made = Table(
        box=SIMPLE_HEAD,
        padding=0,
        title=f"{workload['name']}: {workload['num_requests']:,} requests, "
        f"{workload['prompt_tokens']:,} prompt and {workload['output_tokens']:,} output tokens"
        f"{arrivals_clause(result)}{sample_clause(workload)}",
        caption=f"{engine_of(result)}, "
        f"{engine['kv_blocks']:,} KV blocks of {engine['block_size']} tokens{tuned_as(result)}{best_cut(result)}"
        f"{units_clause(result)}{whole_clause(result)}",
    )
    cells = rows(report, result)
    for at, title in enumerate(header(report)):  # broken between words, and figures nowhere
        column = [row[at] for row in cells]
        unbroken = [*title.split(), *(column if at else " ".join(column).split())]
        made.add_column(title, justify="right" if at else "left", min_width=max(map(len, unbroken)))
    for row in cells:
        made.add_row(*row)
    return made
