# SPDX-License-Identifier: Apache-2.0
"""Simulations of arrivals over time as tables."""

from __future__ import annotations

from vllm_batchllm.simulate.arrivals import Arrivals
from vllm_batchllm.simulate.latency import Spread
from vllm_batchllm.simulate.online import OnlineRun
from vllm_batchllm.simulate.suite import Simulation

ONLINE_HEADER = (
    "arm",
    "req/s",
    "TTFT\np50",
    "\np99",
    "TBT\np50",
    "\np99",
    "end\np50",
    "\np99",
    "saved",
    "sent\nback",
    "J/req",
    "busy",
)
"""End: from the arrival to the last token. Sent back: preemptions. J/req: of the devices, idle or busy (`energy.py`)."""


def seconds(value_s: float) -> str:
    """In seconds: milliseconds below 10 s, five characters up to 1,000 s."""
    decimals = 3 if value_s < 9.9995 else 2 if value_s < 99.995 else 1 if value_s < 999.95 else 0
    return f"{value_s:.{decimals}f}"


def is_online(result: Simulation) -> bool:
    """Whether its requests arrive over time."""
    return result.workload.get("arrivals") is not None


def online_rows(result: Simulation) -> list[list[str]]:
    """One row for each arm, under `ONLINE_HEADER`."""
    return [_row(run) for run in result.runs if isinstance(run, OnlineRun)]


def _row(run: OnlineRun) -> list[str]:
    figures, found = run.metrics, run.latencies
    return [
        figures.arm,
        f"{figures.requests_per_s:.2f}",
        *_spread(found.ttft),
        *_spread(found.tbt),
        *_spread(found.end_to_end),
        f"{figures.saved_ratio:.1%}",
        f"{figures.preemptions}",
        "–" if run.energy is None else _joules(run.energy.joules_per_request),
        f"{run.busy_ratio:.0%}",
    ]


def _joules(value: float) -> str:
    return f"{value:.1f}" if value < 999.95 else f"{value:.0f}"


def _spread(spread: Spread | None) -> list[str]:
    return ["–", "–"] if spread is None else [seconds(spread.p50_s), seconds(spread.p99_s)]


def arrivals_clause(result: Simulation) -> str:
    """How requests arrived; empty where all were there at the start."""
    return f", arrivals: {Arrivals(**result.workload['arrivals'])}" if is_online(result) else ""


def units_clause(result: Simulation) -> str:
    """What the columns are measured in, where requests arrive over time, else empty."""
    return "; times in seconds, TBT between two tokens" if is_online(result) else ""
