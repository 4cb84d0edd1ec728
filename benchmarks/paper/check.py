# SPDX-License-Identifier: Apache-2.0
"""Three small rows, kept so that a test can simulate one of them again and compare.

python benchmarks/paper/check.py --out benchmarks/results/paper
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from sim_rows import Row, run_rows

ROWS = [
    Row(label=f"small: {arm}", workload="mixed", arm=arm, num_requests=120,
        device="H100-80GB", model="Llama-3.1-70B", weight_bits=4)
    for arm in ("stock", "sorted", "batchllm")
]  # fmt: skip
MEASURED = ("plan_s", "plan_share", "cpu_s")
"""Figures of a row that are measured on the machine at hand and so do not repeat."""


def repeatable(result: dict[str, Any]) -> dict[str, Any]:
    """What two simulations of a row must agree on."""
    metrics = {name: value for name, value in result["metrics"].items() if name not in MEASURED}
    return {
        "metrics": metrics,
        **{name: result[name] for name in ("parts", "bound_s", "kv_blocks", "mean_kv_share")},
    }


def main(out: Annotated[Path, typer.Option(help="Folder of the results.")]) -> None:
    """Simulate the rows anew."""
    run_rows(ROWS, out / "check.json")


if __name__ == "__main__":
    typer.run(main)
