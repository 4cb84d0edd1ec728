# SPDX-License-Identifier: Apache-2.0
"""A comparison of release policies as text, as JSON and as a picture."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from vllm_batchllm.admission.release_policy import ReleasePolicy
from vllm_batchllm.release.compare import Comparison, Row

_MOST_RUNS = 16


def runs_of(batches: Sequence[int]) -> list[tuple[int, int, str]]:
    """Unbroken runs of one decision: first and last number of waiting requests, and what is done."""
    told = [_decision(number, batch) for number, batch in enumerate(batches)]
    found: list[tuple[int, int, str]] = []
    for decision, run in itertools.groupby(enumerate(told), key=lambda item: item[1]):
        numbers = [number for number, _ in run]
        found.append((numbers[0], numbers[-1], decision))
    return found


def _decision(number: int, batch: int) -> str:
    if not batch:
        return "wait"
    return "all" if batch == number else str(batch)


def policy_text(policy: ReleasePolicy) -> str:
    """The table of a policy in a line: `0-3: wait, 4-32: all, 33 and more: 32`; runs are left out where many."""
    runs = runs_of(policy.batches)
    if runs[-1][2] == str(policy.overflow_batch):
        first, _, decision = runs.pop()
        last = f"{first} and more: {decision}"
    else:
        last = f"{policy.num_states + 1} and more: {policy.overflow_batch}"
    told = [
        f"{first}: {decision}" if first == end else f"{first}-{end}: {decision}"
        for first, end, decision in runs
    ]
    if len(told) > _MOST_RUNS:
        told = [*told[:_MOST_RUNS], f"({len(told) - _MOST_RUNS} more, see --json)"]
    return ", ".join([*told, last])


def table(comparison: Comparison) -> Table:
    """The rules beside each other, in the order of the comparison."""
    best = comparison.rows[0].cost
    found = Table("rule", box=None, pad_edge=False)
    for name in ("cost", "over best", "response, ms", "power, W"):
        found.add_column(name, justify="right")
    for row in comparison.rows:
        figures = (f"{row.cost:,.3f}", _over(row, best), f"{row.mean_response_ms:,.3f}")
        if math.isinf(row.mean_response_ms):
            figures = ("-", "does not keep up", "-")
        found.add_row(_name(row), *figures, f"{row.power_w:,.3f}")
    return found


def _name(row: Row) -> str:
    if row.cost_error is None:
        return row.name
    return f"{row.name} (simulated ±{row.cost_error:.2g})"


def _over(row: Row, best: float) -> str:
    return f"{round(row.cost / best - 1, 3) + 0.0:+.1%}" if best else ""


def to_json(comparison: Comparison) -> str:
    """All of it; `policy` holds the batch for 0, 1, ... waiting requests. Null is for infinite."""
    policy, server = comparison.policy, comparison.server
    made = {
        "control_limit": policy.control_limit,
        "cost": policy.cost,
        "mean_response_ms": policy.mean_response_ms,
        "power_w": policy.power_w,
        "load_ratio": server.load_ratio,
        "num_states": policy.num_states,
        "overflow_ratio": policy.overflow_ratio,
        "overflow_batch": policy.overflow_batch,
        "policy": policy.batches,
        "rules": [
            {
                "name": row.name,
                "cost": _finite(row.cost),
                "mean_response_ms": _finite(row.mean_response_ms),
                "power_w": row.power_w,
                "cost_error": row.cost_error,
            }
            for row in comparison.rows
        ],
    }
    return json.dumps(made)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def plot(comparison: Comparison, path: Path) -> None:
    """Write a PNG: the batch by the number of waiting requests, and the costs of the rules.

    Raises:
        OSError: the file cannot be written.
    """
    # Imported here: it takes longer than the solution.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4), layout="constrained")
    canvas = FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    _plot_policy(left, comparison.policy)
    _plot_costs(right, comparison.rows)
    canvas.print_png(path)


def _plot_policy(axes: Any, policy: ReleasePolicy) -> None:
    shown = min(policy.num_states, 2 * policy.overflow_batch + policy.control_limit)
    numbers = range(shown + 1)
    axes.plot(numbers, [policy.batch_of(number) for number in numbers], ".-", color="#3b74b9")
    axes.set_xlabel("requests waiting")
    axes.set_ylabel("batch served, 0: wait")
    axes.set_title(f"the best policy serves from {policy.control_limit} on", size=10)


def _plot_costs(axes: Any, rows: Sequence[Row]) -> None:
    rows = [row for row in rows if math.isfinite(row.cost)]
    bars = axes.barh(range(len(rows)), [row.cost for row in rows], color="#3b74b9")
    axes.bar_label(bars, [f"{row.cost:,.2f}" for row in rows], padding=3, size=8)
    axes.set_yticks(range(len(rows)), [_name(row) for row in rows], size=8)
    axes.invert_yaxis()
    axes.margins(x=0.15)
    axes.set_title("cost", size=10)
