# SPDX-License-Identifier: Apache-2.0
"""Every policy on every workload, and a sweep over the limits of admission.

    python benchmarks/policies.py --out benchmarks/results/policies

Schedulers are real and run on a fake KV config, so counters are exact and repeat. Time is modelled
from them (`vllm_batchllm/admission/step_costs.py`, costs fitted on runs of the real engine).
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import Annotated, Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
if __name__ == "__main__":  # whoever imports this keeps the log as it is
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")

import matplotlib
import typer
from ring import Outcome, run, workload
from tqdm import tqdm

matplotlib.use("Agg")
import matplotlib.pyplot as plt

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
    "dfs, cheapest victims": {"order": "dfs", "victims": "cheapest"},
    "decode-ratio": {"order": "decode-ratio"},
    "short-first": {"order": "short-first"},
    "exact-groups": {"order": "exact-groups"},
    "paper": {"order": "paper"},
}
SWEPT = ("decode-heavy", "skewed-output", "micro-2000-200-d16", "mixed")
OVERCOMMITS = (1.0, 1.05, 1.1, 1.2, 1.5)
PACES = (0.0, 0.8, 0.9, 1.0, 1.1, 1.3)


def main(
    out: Annotated[Path, typer.Option(help="Folder for tables, figures and raw results.")],
    scale: Annotated[float, typer.Option(min=0.1, help="Divides all lengths.")] = 8.0,
    sweep: Annotated[bool, typer.Option(help="Also sweep overcommitment and pace.")] = True,
) -> None:
    """Run all policies on all workloads."""
    out.mkdir(parents=True, exist_ok=True)
    table = {
        name: {policy: run(workload(name, scale), options) for policy, options in POLICIES.items()}
        for name in tqdm(WORKLOADS, unit="workload", file=sys.stderr)
    }
    swept = _sweep(scale) if sweep else {}
    results = {
        "policies": {name: _plain(row) for name, row in table.items()},
        "sweep": {name: _plain(row) for name, row in swept.items()},
    }
    (out / "policies.json").write_text(json.dumps(results, indent=1) + "\n")
    text = _table(table) + "\n" + _sweep_table(swept)
    (out / "policies.md").write_text(text)
    if swept:
        _plot(swept, out / "sweep.png")
    print(text)


def _sweep(scale: float) -> dict[str, dict[str, Outcome]]:
    swept: dict[str, dict[str, Outcome]] = {}
    for name in tqdm(SWEPT, unit="sweep", file=sys.stderr):
        batch = workload(name, scale)
        swept[name] = {"auto": run(batch, {})}
        for overcommit, pace in product(OVERCOMMITS, PACES):
            options = {"overcommit": overcommit, "pace": pace}
            swept[name][f"{overcommit:g}, {pace:g}"] = run(batch, options)
    return swept


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


def _sweep_table(swept: dict[str, dict[str, Outcome]]) -> str:
    lines = [
        "| workload | automatic: s, preemptions | best (overcommit, pace) | automatic / best |",
        "| --- | ---: | ---: | ---: |",
    ]
    for name, row in swept.items():
        auto = row["auto"]
        best = min(row, key=lambda point: row[point].modelled_s)
        lines.append(
            f"| {name} | {auto.modelled_s:.2f}, {auto.preemptions} | {row[best].modelled_s:.2f}, "
            f"{row[best].preemptions} ({best}) | {auto.modelled_s / row[best].modelled_s:.3f} |"
        )
    return "\n".join(lines) + "\n"


def _plot(swept: dict[str, dict[str, Outcome]], path: Path) -> None:
    figure, axes = plt.subplots(2, 2, figsize=(10, 7), constrained_layout=True)
    for axis, (name, row) in zip(axes.flat, swept.items(), strict=True):
        for overcommit in OVERCOMMITS:
            points = [row[f"{overcommit:g}, {pace:g}"].modelled_s for pace in PACES]
            axis.plot(PACES, points, marker="o", label=f"overcommit {overcommit:g}")
        axis.axhline(row["auto"].modelled_s, color="black", linestyle="--", label="automatic")
        axis.set(title=name, xlabel="pace (0: none)", ylabel="modelled makespan, s")
    axes.flat[0].legend(fontsize="small")
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    typer.run(main)
