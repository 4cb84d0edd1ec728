# SPDX-License-Identifier: Apache-2.0
"""Every workload with the paper's 6,400 requests on three set-ups: sorted, `paper`, ours, the bound.

    python benchmarks/paper/full_size.py --out benchmarks/results/paper

Writes `full_size.json` (every row) and `full_size.md` (tables). Makespans are simulated.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer
from platforms import (
    OURS,
    PAPER,
    PLATFORMS,
    SORTED,
    TUNED,
    Platform,
    Results,
    bound_over_sorted,
    geometric_mean,
    num_requests_of,
    over_tuned,
    speed_over_sorted,
)
from sim_rows import Row, run_rows, table

from vllm_batchllm.workloads.catalog import workload_names

COLUMNS = (SORTED, TUNED, PAPER, OURS)


def main(
    out: Annotated[Path, typer.Option(help="Folder of the results.")],
    num_requests: Annotated[int, typer.Option(help="Requests of each workload.")] = 6400,
    keep: Annotated[bool, typer.Option(help="Keep rows of an earlier run.")] = False,
) -> None:
    """Simulate all rows and write the tables."""
    rows = list(_rows(num_requests))
    results = run_rows([row for _, row in rows], out / "full_size.json", keep=keep)
    by_key = {key: result for (key, _), result in zip(rows, results, strict=True)}
    text = report(by_key, num_requests)
    (out / "full_size.md").write_text(text)
    print(text)


def _rows(num_requests: int) -> Iterable[tuple[tuple[str, str, str], Row]]:
    for platform in PLATFORMS:
        for workload in workload_names():
            count = num_requests_of(workload, num_requests)
            for column in COLUMNS:
                row = Row(
                    label=f"{platform.name}, {workload}: {column}",
                    workload=workload,
                    arm=column,
                    num_requests=count,
                    device=platform.device,
                    model=platform.model,
                    weight_bits=platform.weight_bits,
                )
                yield (platform.name, workload, column), row


def report(results: Results, num_requests: int) -> str:
    """All tables as Markdown."""
    long = num_requests_of("long-16000", num_requests)
    lines = [
        "# Policies at full size, simulated\n",
        "`python benchmarks/paper/full_size.py --out benchmarks/results/paper`\n",
        (
            f"{num_requests:,} requests ({long:,} of `long-16000`) at full lengths, vLLM's default "
            "sizes for `LLM` on the device. Figures are speeds over sorted stock vLLM; in brackets "
            "the preemptions. The bound: no order and no admission is faster with vLLM's kernels.\n"
        ),
    ]
    for platform in PLATFORMS:
        lines += [f"## {platform.name}\n", _table(results, platform)]
    return "\n".join(lines)


def _table(results: Results, platform: Platform) -> str:
    rows = []
    speeds: list[list[float]] = []
    for workload in workload_names():
        keys = [(platform.name, workload, column) for column in COLUMNS]
        metrics = [results[key]["metrics"] for key in keys]
        figures = [speed_over_sorted(results, key) for key in keys[1:]]
        bound = bound_over_sorted(results, platform.name, workload)
        over = over_tuned(results, platform.name, workload)
        speeds.append([*figures, over, bound])
        cells = [workload, f"{metrics[0]['makespan_s']:.0f} [{metrics[0]['preemptions']}]"]
        for figure, measured in zip(figures, metrics[1:], strict=True):
            cells.append(f"{figure:.3f} [{measured['preemptions']}]")
        rows.append([*cells, f"{over:.3f}", f"{bound:.3f}"])
    means = [f"{geometric_mean(column):.4f}" for column in zip(*speeds, strict=True)]
    rows.append(["geometric mean", "", *means])
    header = ["workload", "sorted, s", "tuned", "paper", "batchllm", "over tuned", "bound"]
    return table(header, rows)


if __name__ == "__main__":
    typer.run(main)
