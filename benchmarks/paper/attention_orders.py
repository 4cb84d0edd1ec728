# SPDX-License-Identifier: Apache-2.0
"""Does shared attention want another order, or more requests at once? Makespans with it, against our defaults.

    python benchmarks/paper/attention_orders.py --out benchmarks/results/paper

Each order is charged twice, as in ``attention_bounds.py``: with kernels as slow as an H100 has shown, and as fast as stock's.
Above 1 is faster than the default. Writes `attention_orders.md`.
"""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Annotated

import typer
from attention_bounds import quieten, run
from platforms import OURS, PLATFORMS, geometric_mean
from sim_rows import table

from vllm_batchllm.measure.environment import usable_cores

ORDERS = ("decode-ratio", "longest-first", "mix", "sorted")
"""Other orders of ours, and sorted stock, which runs fewer requests at once where memory is ample."""

WORKLOADS = ("micro-2000-200-d4", "industry", "decode-heavy", "tree-3", "prefix-of-prefix", "mixed")


def main(
    out: Annotated[Path, typer.Option(help="Folder of the results.")],
    num_requests: Annotated[int, typer.Option(help="Requests of each workload.")] = 800,
) -> None:
    """Simulate and write the table."""
    platforms = PLATFORMS[:2]
    keys = [(p, w, arm) for p in platforms for w in WORKLOADS for arm in (OURS, *ORDERS)]
    todo = [(*key, num_requests) for key in keys]
    with ProcessPoolExecutor(max_workers=usable_cores(), initializer=quieten) as pool:
        found = dict(zip(keys, pool.map(run, *zip(*todo, strict=True)), strict=True))
    lines = [
        "# Shared attention and the order, simulated\n",
        f"`python benchmarks/paper/attention_orders.py --out benchmarks/results/paper`, {num_requests} requests; slow / fast kernels.\n",
    ]
    for platform in platforms:
        rows, means = [], [[[], []] for _ in ORDERS]
        for workload in WORKLOADS:
            base = found[platform, workload, OURS]["seconds"]
            row = [workload]
            for order, columns in zip(ORDERS, means, strict=True):
                seconds = found[platform, workload, order]["seconds"]
                figures = [base[r] / seconds[r] for r in ("once-slow", "once")]
                for column, figure in zip(columns, figures, strict=True):
                    column.append(figure)
                row.append(" / ".join(f"{figure:.3f}" for figure in figures))
            rows.append(row)
        last = [
            " / ".join(f"{geometric_mean(column):.3f}" for column in columns) for columns in means
        ]
        lines += [
            f"## {platform.name}\n",
            table(["workload", *ORDERS], [*rows, ["geometric mean", *last]]),
        ]
    text = "\n".join(lines)
    (out / "attention_orders.md").write_text(text)
    print(text)


if __name__ == "__main__":
    typer.run(main)
