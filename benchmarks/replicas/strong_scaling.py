# SPDX-License-Identifier: Apache-2.0
"""One batch on more and more replicas: what is computed twice, against the cheapest cut, and what of the speed-up is lost.

    python benchmarks/replicas/strong_scaling.py --trace mooncake_conversation_trace.jsonl.gz --out benchmarks/results/replicas

Writes `strong_scaling.json` (every row) and `strong_scaling.md` (tables). Makespans are simulated. The trace is Mooncake's
conversation trace, which is not copied here; without it its rows are left out. The optimum is also found by a plain dynamic program
over every start for every end, where the batch is small enough (`--checked` requests at most).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from grid import Row, batch_of, run_rows, table

SHAPES = ("micro-2000-200-d16", "industry")
NUM_REPLICAS = (1, 2, 8, 32, 128, 256)
NUM_REQUESTS, TRACE_REQUESTS = 6400, 3200
Results = dict[Row, dict[str, Any]]


def main(
    out: Annotated[Path, typer.Option(help="Folder of the results.")],
    trace: Annotated[Path | None, typer.Option(help="Mooncake's conversation trace.")] = None,
    trace_requests: Annotated[int, typer.Option(help="Requests of the trace.")] = TRACE_REQUESTS,
    checked: Annotated[int, typer.Option(help="Largest batch for the plain program.")] = 6400,
    keep: Annotated[bool, typer.Option(help="Keep rows of an earlier run.")] = False,
    finished: Annotated[
        bool, typer.Option(help="Tables of what is finished; run nothing.")
    ] = False,
) -> None:
    """Simulate all rows and write the tables."""
    sources = {shape: NUM_REQUESTS for shape in SHAPES}
    if trace is not None:
        sources[trace.name] = trace_requests
    rows = [Row(source, count, num) for source, count in sources.items() for num in NUM_REPLICAS]
    results = run_rows(rows, out / "strong_scaling.json", trace, keep=keep, finished=finished)
    plain = {
        source: plain_optima(Row(source, count, 1), trace, NUM_REPLICAS[1:])
        for source, count in sources.items()
        if count <= checked
    }
    text = report(results, sources, plain)
    (out / "strong_scaling.md").write_text(text)
    print(text)


def plain_optima(row: Row, path: Path | None, numbers: Sequence[int]) -> dict[int, int]:
    """Prefix tokens that the cheapest cuts compute twice at the same balance, by looking at every start for every end.

    O(max(numbers) * num_items ** 2) at worst, vectorised over the starts.
    """
    from vllm_batchllm.replicas.cut import SLACK, Costs, least_bound
    from vllm_batchllm.simulate.feeds import PlannedFeed
    from vllm_batchllm.simulate.pool import Pool
    from vllm_batchllm.simulate.setup import SetupOptions, make_setup

    batch = batch_of(row, path)
    setup = make_setup(batch, SetupOptions(device=row.device, model=row.model))
    feed = PlannedFeed(batch, setup.costs, Pool(1), setup.sizes.block_size)
    tokens, costs = feed.prefix_tokens, feed.costs
    found = {}
    for num in numbers:
        bound = (1 + SLACK) * least_bound(costs, num)
        found[num] = cheapest_tokens(Costs(costs.work, costs.shared), tokens, num, bound)
    return found


def cheapest_tokens(costs: Any, tokens: Any, num_parts: int, bound: float) -> int:
    """The least sum of ``tokens`` at the starts of at most ``num_parts`` parts of at most ``bound`` work."""
    before = np.concatenate(([0.0], np.cumsum(costs.work)))
    begins = before[:-1] - np.where(np.arange(len(costs)) > 0, costs.shared, 0.0)
    least = np.full(len(costs) + 1, math.inf)
    least[0] = 0.0
    price = np.where(np.arange(len(costs)) > 0, tokens, 0)
    for _ in range(num_parts):
        further = least.copy()
        for end in range(1, len(costs) + 1):
            low = int(np.searchsorted(before, before[end] - bound - costs.shared.max()))
            window = slice(min(low, end - 1), end)
            fits = before[end] - begins[window] <= bound * (1 + 1e-12)
            reach = np.where(fits, least[window] + price[window], math.inf)
            further[end] = min(further[end], reach.min())
        if np.array_equal(further, least):
            break
        least = further
    return int(least[-1])


def report(results: Results, sources: dict[str, int], plain: dict[str, dict[int, int]]) -> str:
    """All tables as Markdown."""
    lines = [
        "# Strong scaling, simulated\n",
        (
            "`python benchmarks/replicas/strong_scaling.py --trace mooncake_conversation_trace.jsonl.gz "
            "--out benchmarks/results/replicas`\n"
        ),
        (
            "One batch on more and more replicas, Llama-3.1-8B on one A100-80GB each, our scheduler and our cut with stealing. "
            "Duplicated: prompt tokens that several replicas have to compute, thefts included. Best cut: the same of the cheapest cut "
            "into as many parts whose largest has at most 2 % more work than it must; plain: found again by a dynamic program "
            "without any short cut. Lost: against a speed-up of N, the makespan of one replica over N.\n"
        ),
    ]
    for source, count in sources.items():
        lines += [
            f"## {source}, {count:,} requests\n",
            _table(results, source, plain.get(source, {})),
        ]
    return "\n".join(lines)


def _table(results: Results, source: str, plain: dict[int, int]) -> str:
    chosen = {row.num_replicas: result for row, result in results.items() if row.source == source}
    base = chosen[1]["metrics"]["makespan_s"]
    rows = []
    for num, result in chosen.items():
        metrics, pool = result["metrics"], result["pool"]
        best, twice = pool["optimal_duplicated_tokens"], pool["duplicated_tokens"]
        speed = base / metrics["makespan_s"]
        rows.append(
            [
                f"{num}",
                f"{metrics['makespan_s']:.1f}",
                f"{speed:.2f}",
                f"{1 - speed / num:.1%}",
                f"{twice:,}",
                f"{best:,}",
                f"{plain[num]:,}" if num in plain else "–",
                f"{twice / best:.3f}" if best else "–",
                f"{metrics['reuse_efficiency']:.4f}",
                f"{metrics['preemptions']}",
                f"{pool['thefts']}",
                f"{max(pool['idle_ratio'], 0.0):.1%}",
            ]
        )
    return table(
        ["replicas", "makespan, s", "speed-up", "lost", "duplicated", "best cut", "plain", "over the best", "saved",
         "preempted", "thefts", "idle"], rows,
    )  # fmt: skip


if __name__ == "__main__":
    typer.run(main)
