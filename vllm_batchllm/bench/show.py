# SPDX-License-Identifier: Apache-2.0
"""A benchmark's report in the terminal."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vllm_batchllm.bench.report import Report, report_to_dict
from vllm_batchllm.bench.tables import arms_of, match_text, ratio_text
from vllm_batchllm.measure.metrics import ABResult

if TYPE_CHECKING:
    from rich.table import Table


def show(report: Report, out: Path, as_json: bool) -> None:
    """The result on standard output, what else there is to know on standard error."""
    if as_json:
        print(json.dumps(report_to_dict(report), indent=1))
    elif report.results:
        from rich.console import Console

        Console().print(_table(report.results))
    for result in report.results:
        for match in result.matches:
            if match.unresolved:
                print(
                    f"{result.workload['name']}: {len(match.unresolved)} outputs of arm "
                    f"{match.arm!r} differ from stock; see bench.md",
                    file=sys.stderr,
                )
    print(f"report: {out}/bench.json, bench.md, bench.png", file=sys.stderr)


def _table(results: Sequence[ABResult]) -> Table:
    """A row per workload, narrow enough for a terminal; `bench.md` has every figure."""
    from rich.table import Table

    arms = arms_of(results)
    ratios = list(
        dict.fromkeys(f"{r.slower} / {r.faster}" for item in results for r in item.ratios())
    )
    names = ", ".join(arms)
    table = Table("workload", caption="medians over the rounds; ratios of makespans (min–max)")
    for title in (f"seconds: {names}", *ratios, f"reuse: {names}", "output match"):
        table.add_column(title, justify="right")
    for result in results:
        medians = [result.medians(arm) for arm in result.arms]
        table.add_row(
            str(result.workload["name"]),
            "  ".join(f"{figures['makespan_s']:.2f}" for figures in medians),
            *(ratio_text(ratio) for ratio in result.ratios()),
            "  ".join(f"{figures['reuse_efficiency']:.3f}" for figures in medians),
            match_text(result),
        )
    return table
