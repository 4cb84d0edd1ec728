# SPDX-License-Identifier: Apache-2.0
"""Every workload at the paper's lengths on three set-ups: orders, parts of our scheduler, the bound.

    python benchmarks/paper/policies_at_scale.py --out benchmarks/results/paper

Writes `policies.json` (every row) and `policies.md` (tables). Makespans are simulated.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer
from platforms import (
    NUM_LONG,
    OURS,
    PAPER,
    PLATFORMS,
    SORTED,
    TUNED,
    Platform,
    Results,
    bound_over_sorted,
    geometric_mean,
    graph_shares,
    num_requests_of,
    over_tuned,
    speed_over_sorted,
)
from sim_rows import Row, run_rows, table

from vllm_batchllm.workloads.catalog import workload_names

MAIN = (SORTED, TUNED, PAPER, OURS)
TRIED = ("decode-ratio", "longest-first", "mix", "mix-split", "lpm", "dfs-weight")
PARTS: dict[str, dict[str, Any]] = {
    "queue alone": {"options": (("admission", "stock"),), "stock_seqs": True},
    "+ admission": {"stock_seqs": True},
    "spread prefills": {"options": (("spread_prefills", True),)},
}
"""What is added one after the other (the last addition, more requests at once, is ours), and what
can be chosen beside it."""
WITH_ROOM = (
    "decode-heavy",
    "skewed-output",
    "mixed",
    "no-sharing",
    "industry",
    "micro-2000-200-d16",
)
"""Workloads on which orders and parts are compared: those where sorting leaves most to win, and
the two main shapes."""


def main(
    out: Annotated[Path, typer.Option(help="Folder of the results.")],
    num_requests: Annotated[int, typer.Option(help="Requests of each workload.")] = 800,
    keep: Annotated[bool, typer.Option(help="Keep rows of an earlier run.")] = False,
) -> None:
    """Simulate all rows and write the tables."""
    rows = list(_rows(num_requests))
    results = run_rows([row for _, row in rows], out / "policies.json", keep=keep)
    by_key = {key: result for (key, _), result in zip(rows, results, strict=True)}
    text = report(by_key, num_requests)
    (out / "policies.md").write_text(text)
    print(text)


def _rows(num_requests: int) -> Iterable[tuple[tuple[str, str, str], Row]]:
    for platform in PLATFORMS:
        for workload in workload_names():
            count = num_requests_of(workload, num_requests)
            columns = [*MAIN, *(TRIED if workload in WITH_ROOM else ())]
            columns += PARTS if workload in WITH_ROOM else ()
            for column in columns:
                yield (
                    (platform.name, workload, column),
                    _row(platform, workload, column, count),
                )


def _row(platform: Platform, workload: str, column: str, num_requests: int) -> Row:
    known = column not in PARTS
    return Row(
        label=f"{platform.name}, {workload}: {column}",
        workload=workload,
        arm=column if known else OURS,
        num_requests=num_requests,
        device=platform.device,
        model=platform.model,
        weight_bits=platform.weight_bits,
        **PARTS.get(column, {}),
    )


def report(results: Results, num_requests: int) -> str:
    """All tables as Markdown."""
    lines = [
        "# Policies at the paper's scale, simulated\n",
        "`python benchmarks/paper/policies_at_scale.py --out benchmarks/results/paper`\n",
        (
            f"{num_requests} requests ({num_requests // NUM_LONG} of `long-16000`) at full lengths, vLLM's "
            "default sizes for `LLM` on the device. Figures are speeds over sorted stock vLLM; in "
            "brackets the preemptions. Tuned: sorted, with the sizes of `performance_mode=throughput` and the "
            "better watermark of 0.02 and 0.05. The bound: no order and no admission is faster with vLLM's "
            "kernels (attention_bounds.py: what reading shared KV once would bring). Graphs: "
            "steps in percent that can replay a full one, one in pieces, none.\n"
        ),
    ]
    for platform in PLATFORMS:
        lines += [f"## {platform.name}\n", _main_table(results, platform.name)]
        lines += [f"### Orders, {platform.name}\n", _other_table(results, platform.name, TRIED)]
        lines += [f"### Parts, {platform.name}\n", _other_table(results, platform.name, PARTS)]
    return "\n".join(lines)


def _main_table(results: Results, platform: str) -> str:
    header = ["workload", "sorted, s", "tuned", "paper", "batchllm", "batchllm over tuned"]
    header += ["bound", "graphs: tuned", "graphs: batchllm"]
    rows = []
    shown = (SORTED, TUNED, PAPER, OURS)
    columns: list[list[float]] = [[] for _ in range(5)]
    for workload in workload_names():
        base = results[platform, workload, SORTED]["metrics"]
        figures = [
            *(speed_over_sorted(results, (platform, workload, arm)) for arm in shown[1:]),
            over_tuned(results, platform, workload),
            bound_over_sorted(results, platform, workload),
        ]
        for column, figure in zip(columns, figures, strict=True):
            column.append(figure)
        counts = [results[platform, workload, arm]["metrics"]["preemptions"] for arm in shown]
        graphs = [graph_shares(results[platform, workload, arm]) for arm in (TUNED, OURS)]
        rows.append(
            [
                workload,
                f"{base['makespan_s']:.0f} [{counts[0]}]",
                *(f"{speed:.3f} [{n}]" for speed, n in zip(figures, counts[1:], strict=False)),
                *(f"{figure:.3f}" for figure in figures[3:]),
                *graphs,
            ]
        )
    means = [f"{geometric_mean(column):.3f}" for column in columns]
    return table(header, [*rows, ["geometric mean", "", *means, "", ""]])


def _other_table(results: Results, platform: str, names: Iterable[str]) -> str:
    columns = [*names, OURS]
    rows = [
        [
            workload,
            *(_cell(results, (platform, workload, column)) for column in columns),
            f"{bound_over_sorted(results, platform, workload):.3f}",
        ]
        for workload in WITH_ROOM
    ]
    return table(["workload", *columns, "bound"], rows)


def _cell(results: Results, key: tuple[str, str, str]) -> str:
    preemptions = results[key]["metrics"]["preemptions"]
    return f"{speed_over_sorted(results, key):.3f} [{preemptions}]"


if __name__ == "__main__":
    typer.run(main)
