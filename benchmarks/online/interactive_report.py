# SPDX-License-Identifier: Apache-2.0
"""The tables of `interactive_batch.py`."""

from __future__ import annotations

from statistics import mean
from typing import Any

from traffic import DEVICE, MODEL

Rows = list[dict[str, Any]]
COLUMNS = [
    *("arm", "TTFT p50, s", "p99, s", "p99 over alone", "TBT p99, ms"),
    *("batch, tokens/s", "of the batch alone", "of idle time"),
]


def report(rows: Rows) -> str:
    """One table for each mix, as Markdown."""
    seeds = sorted({row["seed"] for row in rows})
    lines = [
        "# Interactive beside batch, simulated\n",
        f"`python benchmarks/online/interactive_batch.py --out benchmarks/results/online --seeds {len(seeds)}`\n",
        (
            f"{MODEL} on one {DEVICE}; means over {len(seeds)} seed(s). Interactive requests of 512 / 128 tokens in bursts of 20 "
            "for a minute, a backlog of batch requests from the start. Alone: stock vLLM without the batch. Raw: all in one "
            "class, first come first served. Priority: stock vLLM by priority, with default sizes or with the fixed "
            "`max_num_batched_tokens` of the best TTFT p99. Ours: by priority, with `target_ttft_ms`. Batch: prompt and output "
            "tokens while interactive requests arrived; of idle time: over the batch's rate alone times the share of the "
            "time in which the device does nothing when interactive requests are alone.\n"
        ),
    ]
    mixes: dict[tuple[float, int, int], Rows] = {}
    for row in rows:
        mixes.setdefault((row["rate"], *row["shape"]), []).append(row)
    for (rate, prompt, output), some in mixes.items():
        busy = mean(row["busy_ratio"] for row in some)
        lines.append(
            f"## {rate:g} interactive requests/s ({busy:.0%} busy alone), batch {prompt:,} / {output}\n"
        )
        lines.append(_table(some))
    return "\n".join(lines)


def _table(rows: Rows) -> str:
    arms: dict[tuple[str, float | None], Rows] = {}
    for row in rows:
        arms.setdefault((row["arm"], row.get("target_ratio")), []).append(row)
    cells = [" | ".join(_cells(name, ratio, some)) for (name, ratio), some in arms.items()]
    head = [" | ".join(COLUMNS), "--- | " * (len(COLUMNS) - 1) + "---"]
    return "\n".join(f"| {line} |" for line in head + cells) + "\n"


def _cells(name: str, ratio: float | None, rows: Rows) -> list[str]:
    def of(key: str) -> float:
        return mean(row[key] for row in rows)

    if ratio is not None:
        name += f", target {of('target_ms'):.0f} ms ({ratio:g}x)"
    sizes = sorted({row["size"] for row in rows if "size" in row})
    if sizes:
        name += f" {', '.join(map(str, sizes))}"
    is_alone = name == "alone"
    has_gaps = all(row["tbt_p99_s"] is not None for row in rows)
    return [
        name,
        f"{of('ttft_p50_s'):.3f}",
        f"{of('ttft_p99_s'):.3f}",
        f"{of('over_alone'):.2f}",
        f"{1e3 * of('tbt_p99_s'):.0f}" if has_gaps else "",
        "" if is_alone else f"{of('batch_tokens_per_s'):,.0f}",
        "" if is_alone else f"{of('of_alone'):.2f}",
        "" if is_alone else f"{of('of_idle'):.2f}",
    ]
