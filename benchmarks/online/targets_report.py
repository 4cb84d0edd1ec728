# SPDX-License-Identifier: Apache-2.0
"""The tables of `step_targets.py`."""

from __future__ import annotations

from collections.abc import Callable
from statistics import mean
from typing import Any

from traffic import DEVICE, MODEL, milliseconds

Rows = list[dict[str, Any]]
COLUMNS = [
    *("traffic", "decode-only step, ms", "target", "ms", "ours: TBT p99", "fixed: TBT p99"),
    *("ours: requests/s", "fixed: requests/s", "ratio", "fixed size (seqs)"),
    *("ours: TTFT p50 / p99, s", "fixed: TTFT p50 / p99, s", "steps over, ours", "fixed"),
]


def report(rows: Rows) -> str:
    """All tables as Markdown."""
    seeds = sorted({row["seed"] for row in rows})
    lines = [
        "# How large a step, simulated\n",
        f"`python benchmarks/online/step_targets.py --out benchmarks/results/online --seeds {len(seeds)}`\n",
        (
            f"{MODEL} on one {DEVICE}, arrivals Poisson; means over {len(seeds)} seed(s), the largest of TBT p99. The decode-only step "
            "is the median time of the steps without prompt tokens of stock vLLM with steps of 512 tokens. Fixed: stock vLLM "
            "with the `max_num_batched_tokens` (and `max_num_seqs`) of the largest throughput whose TBT p99 is within the "
            "target, found by bisection for each seed. Times between tokens in ms.\n"
        ),
        "## Saturated: more arrives than can be served\n",
        _table([row for row in rows if row["load"] == "saturated" and "fixed" in row]),
        "## At 0.7 of that, with the same fixed size\n",
        _table([row for row in rows if row["load"] == "moderate"]),
        "## A target that decodes alone do not hold\n",
        *_hopeless([row for row in rows if "fixed" not in row]),
    ]
    return "\n".join(lines) + "\n"


def _table(rows: Rows) -> str:
    groups: dict[tuple[str, float], Rows] = {}
    for row in rows:
        groups.setdefault((row["shape"], row["ratio"]), []).append(row)
    cells = [" | ".join(_cells(*key, group)) for key, group in groups.items()]
    head = [" | ".join(COLUMNS), "--- | " * (len(COLUMNS) - 1) + "---"]
    return "\n".join(f"| {line} |" for line in head + cells) + "\n"


def _cells(shape: str, ratio: float, rows: Rows) -> list[str]:
    kept = [row for row in rows if row["fixed"] is not None]

    def both(show: Callable[[Rows, str], str]) -> list[str]:
        return [show(rows, "ours"), show(kept, "fixed") if len(kept) == len(rows) else "none"]

    speeds = [row["ours"]["requests_per_s"] / row["fixed"]["requests_per_s"] for row in kept]
    sizes = sorted({f"{row['fixed']['size']:,} ({row['fixed']['seqs']:,})" for row in kept})
    return [
        shape,
        milliseconds(mean(row["decode_only_s"] for row in rows)),
        f"{ratio:g}x",
        milliseconds(mean(row["target_s"] for row in rows)),
        *both(_tbt),
        *both(lambda some, arm: f"{mean(row[arm]['requests_per_s'] for row in some):.3f}"),
        f"{mean(speeds):.3f}" if speeds else "",
        ", ".join(sizes),
        *both(_ttft),
        *both(lambda some, arm: f"{mean(row[arm]['over_ratio'] for row in some):.2%}"),
    ]


def _tbt(rows: Rows, arm: str) -> str:
    """The largest, against its own target."""
    worst = max(rows, key=lambda row: float(row[arm]["tbt"]["p99_s"] / row["target_s"]))
    value_s = worst[arm]["tbt"]["p99_s"]
    is_kept = value_s <= worst["target_s"]
    return milliseconds(value_s) + ("" if is_kept else " (missed)")


def _ttft(rows: Rows, arm: str) -> str:
    values = (mean(row[arm]["ttft"][name] for row in rows) for name in ("p50_s", "p99_s"))
    return " / ".join(f"{value_s:.2f}" for value_s in values)


def _hopeless(rows: Rows) -> list[str]:
    lines = [
        "| traffic | target, ms | TBT p50 / p99, ms | steps | foreseen to be missed | requests/s |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        ours = row["ours"]
        spread = " / ".join(milliseconds(ours["tbt"][name]) for name in ("p50_s", "p99_s"))
        cells = [
            f"{row['shape']}, seed {row['seed']}",
            f"{milliseconds(row['target_s'])} ({row['ratio']:g}x)",
            spread,
            f"{ours['steps']:,}",
            f"{ours['num_steps_beyond_target']:,}",
            f"{ours['requests_per_s']:.3f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines
