# SPDX-License-Identifier: Apache-2.0
"""What reading shared KV once would bring, between two bounds; and how much KV each step reads.

    python benchmarks/paper/attention_bounds.py --out benchmarks/results/paper

Every workload on three set-ups, by sorted and tuned stock vLLM and by ours. A schedule is run once and charged by all ways of
reading KV (``simulate/shared_kv.py``), since no scheduler here looks at a clock. Writes `attention.json` and `attention.md`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import typer
from platforms import OURS, PLATFORMS, TUNED, Platform, geometric_mean, num_requests_of
from sim_rows import table

from vllm_batchllm.attention.grouping import GroupingRule
from vllm_batchllm.measure.environment import usable_cores
from vllm_batchllm.simulate.cost_model import Roofline, StepTime, StepWork
from vllm_batchllm.simulate.graphs import Agreed, Mode
from vllm_batchllm.simulate.shared_kv import KVReading, SharedKVMeter
from vllm_batchllm.workloads.catalog import workload_names

READINGS: tuple[KVReading, ...] = ("apart", "cached", "once", "once-slow")
RULES = {
    "rule": GroupingRule(),
    "one level": GroupingRule(max_levels=1),
    "neighbours' ideal": GroupingRule(cost_tokens=0, min_tokens=0, max_levels=99),
}
"""What is counted: the shipped rule, the same with one level, and every block of neighbours once."""


@dataclass
class AllReadings:
    """Costs that charge a schedule by the first way of reading, and add up all."""

    costs: Sequence[Roofline]
    totals: dict[str, float]
    tokens: dict[str, int]
    meter: SharedKVMeter | None = None
    reads_shared_kv_once: bool = True

    def mode_of(self, work: StepWork) -> Mode | None:
        return self.costs[0].mode_of(work)

    def agreed(self, works: Sequence[StepWork]) -> Agreed | None:
        return self.costs[0].agreed(works)

    def time_of(self, work: StepWork, together: Agreed | None = None) -> StepTime:
        times = [costs.time_of(work, together) for costs in self.costs]
        for costs, spent in zip(self.costs, times, strict=True):
            self.totals[costs.kv_reading] = self.totals.get(costs.kv_reading, 0.0) + spent.total_s
        self._count(work)
        return times[0]

    def _count(self, work: StepWork) -> None:
        assert self.meter is not None
        read = {"all": work.decode_kv_tokens, "distinct": work.decode_kv_distinct}
        for name, shared in zip(RULES, self.meter.works, strict=True):
            read[name] = work.decode_kv_tokens - shared.tokens_saved
        for name, count in read.items():
            self.tokens[name] = self.tokens.get(name, 0) + count

    def make_meter(self, scheduler: Any) -> SharedKVMeter:
        self.meter = SharedKVMeter(scheduler, tuple(RULES.values()))
        return self.meter


def run(platform: Platform, workload: str, arm_name: str, num_requests: int) -> dict[str, Any]:
    """One schedule, charged by all readings; of an arm with variants, the one that is fastest apart."""
    from vllm_batchllm.simulate.arms import find_arm
    from vllm_batchllm.simulate.run import run_arm
    from vllm_batchllm.simulate.setup import SetupOptions, make_setup
    from vllm_batchllm.workloads.catalog import make_workload

    count = num_requests_of(workload, num_requests)
    batch = make_workload(workload, scale=1, num_requests=count, vocab_size=2**17)
    options = SetupOptions(
        device=platform.device, model=platform.model, weight_bits=platform.weight_bits
    )
    setup = make_setup(batch, options)
    assert isinstance(setup.costs, Roofline)
    tried = []
    for variant in find_arm(arm_name, {}).variants():
        costs = AllReadings([replace(setup.costs, kv_reading=r) for r in READINGS], {}, {})
        done = run_arm(batch, variant, setup.sizes, costs, 0, sharing=costs.make_meter)
        tried.append(
            {
                "seconds": costs.totals,
                "tokens": costs.tokens,
                "num_preemptions": done.metrics.preemptions,
            }
        )
    best = min(tried, key=lambda each: each["seconds"]["apart"])
    return {"platform": platform.name, "workload": workload, "arm": arm_name, **best}


def quieten() -> None:
    from sim_rows import _quieten

    _quieten()


def main(
    out: Annotated[Path, typer.Option(help="Folder of the results.")],
    num_requests: Annotated[int, typer.Option(help="Requests of each workload.")] = 800,
    only: Annotated[list[str] | None, typer.Option(help="These workloads alone.")] = None,
) -> None:
    """Simulate and write the tables."""
    todo = [
        (platform, workload, arm, num_requests)
        for platform in PLATFORMS
        for workload in only or workload_names()
        for arm in (TUNED, OURS)
    ]
    with ProcessPoolExecutor(max_workers=usable_cores(), initializer=quieten) as pool:
        found = list(pool.map(run, *zip(*todo, strict=True)))
    (out / "attention.json").write_text(
        json.dumps({"rules": {n: asdict(r) for n, r in RULES.items()}, "rows": found}, indent=1)
    )
    text = report(found, num_requests)
    (out / "attention.md").write_text(text)
    print(text)


def report(found: list[dict[str, Any]], num_requests: int) -> str:
    """All tables as Markdown."""
    by_key = {(each["platform"], each["workload"], each["arm"]): each for each in found}
    names = list(dict.fromkeys(each["workload"] for each in found))
    lines = [
        "# Shared attention, simulated\n",
        "`python benchmarks/paper/attention_bounds.py --out benchmarks/results/paper`\n",
        (
            f"{num_requests} requests of each workload. Lower: stock attention finds in the device's cache what neighbours "
            "share, and our kernels read nodes at the speed that one H100 has shown for them. Upper: every read of stock "
            "goes to memory, and our kernels are as fast as it.\n"
        ),
    ]
    for platform in PLATFORMS:
        lines += [f"## {platform.name}\n", _speeds(by_key, platform.name, names)]
    lines += ["## KV tokens read by decodes\n", _reads(by_key, names)]
    return "\n".join(lines)


def bounds(ours: dict[str, Any], other: dict[str, Any]) -> tuple[float, float]:
    """Speed of ours with shared attention over the other without: lower and upper bound."""
    return (
        other["seconds"]["cached"] / ours["seconds"]["once-slow"],
        other["seconds"]["apart"] / ours["seconds"]["once"],
    )


def _speeds(
    by_key: dict[tuple[str, str, str], dict[str, Any]], platform: str, names: list[str]
) -> str:
    rows, columns = [], [[] for _ in range(4)]
    for workload in names:
        ours, tuned = (by_key[platform, workload, arm] for arm in (OURS, TUNED))
        figures = [*bounds(ours, ours), *bounds(ours, tuned)]
        for column, figure in zip(columns, figures, strict=True):
            column.append(figure)
        rows.append([workload, *(f"{figure:.3f}" for figure in figures)])
    means = [f"{geometric_mean(column):.3f}" for column in columns]
    header = ["workload", "over batchllm: lower", "upper", "over tuned: lower", "upper"]
    return table(header, [*rows, ["geometric mean", *means]])


def _reads(by_key: dict[tuple[str, str, str], dict[str, Any]], names: list[str]) -> str:
    platform = PLATFORMS[0].name
    rows = []
    for workload in names:
        ours, tuned = (by_key[platform, workload, arm]["tokens"] for arm in (OURS, TUNED))
        least = ours["neighbours' ideal"]
        rows.append(
            [
                workload,
                f"{ours['all'] / 1e6:,.1f} M",
                *(
                    f"{ours[name] / ours['all']:.3f}"
                    for name in ("one level", "rule", "neighbours' ideal", "distinct")
                ),
                f"{ours['rule'] / least:.3f}",
                f"{tuned['rule'] / tuned['all']:.3f}",
            ]
        )
    header = ["workload", "read apart", "one level", "several", "neighbours' ideal", "distinct in memory",
              "several / neighbours' ideal", "several, in sorted stock's order"]  # fmt: skip
    return f"{platform}, shares of what is read apart.\n\n" + table(header, rows)


if __name__ == "__main__":
    typer.run(main)
