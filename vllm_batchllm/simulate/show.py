# SPDX-License-Identifier: Apache-2.0
"""Simulations as tables."""

from __future__ import annotations

from datetime import timedelta

from rich.box import SIMPLE_HEAD
from rich.table import Table

from vllm_batchllm.simulate.arms import SORTED, TUNED
from vllm_batchllm.simulate.suite import Simulation, SimulationReport

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


def duration(seconds: float) -> str:
    """`95.0 s`, or `0:12:30` from 1,000 seconds on."""
    return f"{seconds:.1f} s" if seconds < 1000 else str(timedelta(seconds=round(seconds)))


def header(report: SimulationReport) -> list[str]:
    """Column titles of `rows`."""
    return [*HEADER, *(["cost"] if report.price_per_hour is not None else [])]


def rows(report: SimulationReport, result: Simulation) -> list[list[str]]:
    """One row for each arm, and one for the bound."""
    lines = []
    for run in result.runs:
        figures = run.metrics
        speed = result.speed_over(figures.arm)
        hours = result.device_hours(run)
        mean_kv = run.mean_kv_share(int(result.engine["kv_blocks"]))
        lines.append(
            [
                figures.arm,
                duration(figures.makespan_s),
                "–" if speed is None else f"{speed:.3f}",
                f"{figures.requests_per_s:.2f}",
                f"{figures.saved_ratio:.1%}",
                f"{figures.preemptions}",
                f"{figures.steps}",
                "–" if mean_kv is None else f"{mean_kv:.0%}",
                f"{hours:.3f}",
                *_cost(report, hours),
            ]
        )
    return lines + _bound_row(report, result)


def _cost(report: SimulationReport, hours: float) -> list[str]:
    price = report.price_per_hour
    return [] if price is None else [f"{hours * price:,.2f}"]


def _bound_row(report: SimulationReport, result: Simulation) -> list[list[str]]:
    if result.bound_s is None:
        return []
    base = result.run_of(SORTED)
    speed = "–" if base is None else f"{base.metrics.makespan_s / result.bound_s:.3f}"
    row = ["(lower bound)", duration(result.bound_s), speed]
    return [row + [""] * (len(header(report)) - len(row))]


def tuned_as(result: Simulation) -> str:
    """With what the arm `tuned` ran, as a clause; empty where it did not."""
    run, sizes = result.run_of(TUNED), result.engine.get("tuned")
    if run is None:
        return ""
    kept = f"; {TUNED}: watermark {run.counters['watermark']:g}"
    if sizes is None:
        return f"{kept}, sizes as set"
    return (
        f"{kept}, {sizes['max_num_seqs']:,} requests at once, "
        f"{sizes['max_num_batched_tokens']:,} tokens a step, {sizes['num_blocks']:,} KV blocks"
    )


def table(report: SimulationReport, result: Simulation) -> Table:
    """A table for the terminal."""
    workload, engine = result.workload, result.engine
    made = Table(
        box=SIMPLE_HEAD,
        padding=0,
        title=f"{workload['name']}: {workload['num_requests']:,} requests, "
        f"{workload['prompt_tokens']:,} prompt and {workload['output_tokens']:,} output tokens",
        caption=f"{engine['model']} on {engine['num_devices']} x {engine['device']}, "
        f"{engine['kv_blocks']:,} KV blocks of {engine['block_size']} tokens{tuned_as(result)}",
    )
    cells = rows(report, result)
    for at, title in enumerate(header(report)):  # broken between words, and figures nowhere
        column = [row[at] for row in cells]
        unbroken = [*title.split(), *(column if at else " ".join(column).split())]
        made.add_column(title, justify="right" if at else "left", min_width=max(map(len, unbroken)))
    for row in cells:
        made.add_row(*row)
    return made
