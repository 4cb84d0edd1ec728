# SPDX-License-Identifier: Apache-2.0
"""Every policy on every workload.

    python benchmarks/policies.py --out benchmarks/results/policies

Schedulers are real and run on a fake KV config, so counters are exact and repeat. Time is modelled
from them (`vllm_batchllm/simulate/step_costs.py`, costs fitted on runs of the real engine).
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
if __name__ == "__main__":  # whoever imports this keeps the log as it is
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")

import typer
from ring import Outcome, run, workload
from tqdm import tqdm

WORKLOADS = (
    "micro-2000-200-d16",
    "micro-2000-200-d4",
    "micro-2000-1000-d16",
    "micro-1000-1000-d16",
    "industry",
    "decode-heavy",
    "skewed-output",
    "tree-3",
    "duplicates",
    "prefix-of-prefix",
    "no-sharing",
    "mixed",
)
POLICIES: dict[str, dict[str, Any] | None] = {
    "sorted": None,
    "dfs": {"order": "dfs"},
    "dfs, stock admission": {"order": "dfs", "admission": "stock"},
    "decode-ratio": {"order": "decode-ratio"},
    "short-first": {"order": "short-first"},
    "exact-groups": {"order": "exact-groups"},
    "paper": {"order": "paper"},
}


def main(
    out: Annotated[Path, typer.Option(help="Folder for the table and raw results.")],
    scale: Annotated[float, typer.Option(min=0.1, help="Divides all lengths.")] = 8.0,
) -> None:
    """Run all policies on all workloads."""
    out.mkdir(parents=True, exist_ok=True)
    table = {
        name: {policy: run(workload(name, scale), options) for policy, options in POLICIES.items()}
        for name in tqdm(WORKLOADS, unit="workload", file=sys.stderr)
    }
    results = {"policies": {name: _plain(row) for name, row in table.items()}}
    (out / "policies.json").write_text(json.dumps(results, indent=1) + "\n")
    text = _table(table)
    (out / "policies.md").write_text(text)
    print(text)


def _plain(row: dict[str, Outcome]) -> dict[str, dict[str, Any]]:
    return {name: asdict(outcome) for name, outcome in row.items()}


def _table(table: dict[str, dict[str, Outcome]]) -> str:
    lines = [
        "| workload | policy | saved | preemptions | steps | modelled speed against sorted |",
        "| --- | --- | ---: | ---: | ---: | ---: |",
    ]
    for name, row in table.items():
        for policy, outcome in row.items():
            ratio = row["sorted"].modelled_s / outcome.modelled_s
            lines.append(
                f"| {name} | {policy} | {outcome.saved_ratio:.2%} | {outcome.preemptions} "
                f"| {outcome.steps} | {ratio:.3f} |"
            )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    typer.run(main)
