# SPDX-License-Identifier: Apache-2.0
"""The table of `one_shot.py`."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import Any

KINDS = ("greedy", "fixed 8", "fixed 32", "time-out")


def report(runs: Sequence[Any], weights: Sequence[float], command: str) -> str:
    """Means over the seeds, as Markdown."""
    seeds = len({run.seed for run in runs})
    lines = [
        "# One-shot requests, simulated\n",
        f"`{command}`\n",
        (
            f"Means over {seeds} streams. Cost: mean response time, ms, + w2 · mean power above idle, W (modelled: busy share "
            "times what the device draws in a step beyond idling). Time-out: for 32 requests, the best of the grid for each row. "
            "Over the best: cost of ours over that of the best of these. Gain: over greedy, of ours; of the table for "
            "the true rate and times, which nobody has to learn; and what the model foresees of that. Limit: requests for which our table waits at the end, by stream.\n"
        ),
        "| service | load | w2 | greedy | fixed 8 | fixed 32 | best time-out | ours | over the best | gain | of the true table | foreseen | limit | W, ms | power, W |",
        "| --- |" + " ---: |" * 14,
    ]
    for service in dict.fromkeys(run.service for run in runs):
        for load in sorted({run.load for run in runs}):
            for weight in weights:
                chosen = [run for run in runs if (run.service, run.load) == (service, load)]
                lines.append(
                    f"| {service} | {load} | {weight:g} | {' | '.join(_row(chosen, weight))} |"
                )
    return "\n".join(lines) + "\n"


def _row(runs: Sequence[Any], weight: float) -> list[str]:
    by_arm: dict[str, list[Any]] = {}
    for run in runs:
        if run.weight in (None, weight):
            by_arm.setdefault(run.arm, []).append(run)
    costs = {arm: fmean(run.cost(weight) for run in found) for arm, found in by_arm.items()}
    waits = {arm: cost for arm, cost in costs.items() if arm.startswith("time-out")}
    best_wait = min(waits, key=lambda arm: waits[arm])
    ours = by_arm["ours"]
    others = min(cost for arm, cost in costs.items() if arm not in ("ours", "known"))
    return [
        *(f"{costs[arm]:.2f}" for arm in KINDS[:3]),
        f"{waits[best_wait]:.2f} ({best_wait.removeprefix('time-out ')})",
        f"{costs['ours']:.2f}",
        f"{costs['ours'] / others - 1:+.1%}",
        f"{1 - costs['ours'] / costs['greedy']:.1%}",
        f"{1 - costs['known'] / costs['greedy']:.1%}",
        f"{1 - ours[0].predicted:.1%}",
        " ".join(str(run.limit) for run in ours),
        f"{fmean(run.response_ms for run in ours):.2f}",
        f"{fmean(run.power_w for run in ours):.0f}",
    ]
