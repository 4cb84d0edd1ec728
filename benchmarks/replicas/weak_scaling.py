# SPDX-License-Identifier: Apache-2.0
"""800 requests a replica: what is lost where replicas are added with their work, by every placement.

    python benchmarks/replicas/weak_scaling.py --out benchmarks/results/replicas

Writes `weak_scaling.json` (every row) and `weak_scaling.md` (tables). Makespans are simulated. `--largest` leaves pools out that
are larger; 256 replicas are 205,000 requests in one process, about 10 GB.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import product
from pathlib import Path
from typing import Annotated, Any

import typer
from grid import Row, run_rows, table

NUM_REQUESTS = 800
MICRO, INDUSTRY = "micro-2000-200-d16", "industry"
SHAPES = (MICRO, INDUSTRY)
FEW = (2, 8)
OTHERS = ("stealing-off", "sorted-split", "hash", "round-robin")
HALF = 0.5
Results = dict[Row, dict[str, Any]]


def main(
    out: Annotated[Path, typer.Option(help="Folder of the results.")],
    largest: Annotated[int, typer.Option(help="Replicas at most.")] = 256,
    keep: Annotated[bool, typer.Option(help="Keep rows of an earlier run.")] = False,
    finished: Annotated[
        bool, typer.Option(help="Tables of what is finished; run nothing.")
    ] = False,
) -> None:
    """Simulate all rows and write the tables."""
    rows = [row for row in _rows() if row.num_replicas <= largest]
    results = run_rows(rows, out / "weak_scaling.json", keep=keep, finished=finished)
    text = report(results)
    (out / "weak_scaling.md").write_text(text)
    print(text)


def _row(shape: str, num_replicas: int, **options: Any) -> Row:
    return Row(shape, NUM_REQUESTS * num_replicas, num_replicas, **options)


def _rows() -> Iterable[Row]:
    for shape in SHAPES:
        yield _row(shape, 1)
        yield _row(shape, 1, lengths_known=False)
    for shape, num in product(SHAPES, FEW):
        yield _row(shape, num)
        yield from _slow(shape, num)
    yield _row(INDUSTRY, 64)
    yield _row(INDUSTRY, 256)
    for shape, num, placement in product(SHAPES, FEW, OTHERS):
        yield _row(shape, num, placement=placement)
    yield _row(MICRO, 64)
    for shape, num in product(SHAPES, FEW):
        yield _row(shape, num, placement="round-robin", arm="tuned")
    yield from _slow(INDUSTRY, 64)
    for placement in OTHERS:
        yield _row(INDUSTRY, 64, placement=placement)


def _slow(shape: str, num_replicas: int) -> Iterable[Row]:
    for placement in ("ours", "stealing-off"):
        yield _row(
            shape, num_replicas, placement=placement, lengths_known=False, slowest_speed=HALF
        )


def report(results: Results) -> str:
    """All tables as Markdown."""
    lines = [
        "# Weak scaling, simulated\n",
        "`python benchmarks/replicas/weak_scaling.py --out benchmarks/results/replicas`\n",
        (
            f"{NUM_REQUESTS} requests a replica at full lengths, Llama-3.1-8B on one A100-80GB each, vLLM's default "
            "sizes, our scheduler on every replica unless the arm says `tuned` (stock vLLM on sorted input with the sizes of "
            "`performance_mode=throughput` and the better of two watermarks). Makespan: over that of one replica that has "
            f"{NUM_REQUESTS} requests of the shape; for its work: the same, each makespan over the work of a replica's part by the cost model, "
            "because a larger batch is another draw. Saved: prompt tokens that were not computed, over what one replica "
            "with the whole batch could save at best (computed, not run). Duplicated: prefix tokens that several replicas have to "
            "compute, in percent of all prompt tokens. Idle: mean share of the makespan.\n"
        ),
    ]
    for shape in SHAPES:
        lines += [f"## {shape}\n", _table(results, shape)]
    lines += [
        "## One replica at half speed, lengths unknown\n",
        (
            "The ideal is the makespan of one replica at full speed with 1/N of the batch, lengths unknown as well, times "
            "N / (N - 0.5).\n"
        ),
        _slow_table(results),
    ]
    return "\n".join(lines)


def _table(results: Results, shape: str) -> str:
    rows = []
    base = results[_row(shape, 1)]
    for row, result in results.items():
        if row.source == shape and row.lengths_known:
            rows.append(_cells(row, result, base))
    rows.sort(key=lambda cells: int(cells[0]))
    return table(
        ["replicas", "placement", "arm", "makespan, s", "over one", "for its work", "saved", "duplicated", "of the best cut",
         "preempted", "thefts", "idle"], rows,
    )  # fmt: skip


def _cells(row: Row, result: dict[str, Any], base: dict[str, Any]) -> list[str]:
    metrics, pool = result["metrics"], result["pool"]
    over = metrics["makespan_s"] / base["metrics"]["makespan_s"]
    more_work = result["work_s"] / row.num_replicas / base["work_s"]
    best = pool["optimal_duplicated_tokens"]
    return [
        f"{row.num_replicas}",
        row.placement,
        row.arm,
        f"{metrics['makespan_s']:.1f}",
        f"{over:.3f}",
        f"{over / more_work:.3f}",
        f"{metrics['reuse_efficiency']:.4f}",
        f"{pool['duplicated_tokens'] / metrics['prompt_tokens']:.3%}",
        "–" if best is None else f"{best / metrics['prompt_tokens']:.3%}",
        f"{metrics['preemptions']}",
        f"{pool['thefts']}",
        f"{max(pool['idle_ratio'], 0.0):.1%}",
    ]


def _slow_table(results: Results) -> str:
    rows = []
    for row, result in results.items():
        if row.slowest_speed == 1:
            continue
        base = results[_row(row.source, 1, lengths_known=False)]["metrics"]["makespan_s"]
        ratio = result["metrics"]["makespan_s"] / base
        alone = results[_row(row.source, 1)]["work_s"]
        more_work = result["work_s"] / row.num_replicas / alone
        rows.append(
            [
                row.source,
                f"{row.num_replicas}",
                row.placement,
                f"{result['metrics']['makespan_s']:.1f}",
                f"{ratio:.3f}",
                f"{ratio * result['capacity'] / row.num_replicas:.3f}",
                f"{ratio * result['capacity'] / row.num_replicas / more_work:.3f}",
                f"{result['metrics']['reuse_efficiency']:.4f}",
                f"{result['pool']['thefts']}",
                f"{max(result['pool']['idle_ratio'], 0.0):.1%}",
            ]
        )
    return table(
        ["shape", "replicas", "placement", "makespan, s", "over one", "over the ideal", "for its work", "saved", "thefts", "idle"], rows,
    )  # fmt: skip


if __name__ == "__main__":
    typer.run(main)
