# SPDX-License-Identifier: Apache-2.0
"""The simulator against the machine at hand: ratios of makespans, simulated and measured.

    vllm-batchllm calibrate
    vllm-batchllm bench WORKLOADS --rounds 3 --out DIR
    python benchmarks/paper/cpu.py DIR/bench.json --out benchmarks/results/paper

Simulates every workload of the record on the same prompts, KV blocks and sizes, with the costs of
the last calibration, and writes `cpu.json` and `cpu.md`.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

if __name__ == "__main__":  # whoever imports this keeps the log as it is
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")

import typer
from sim_rows import table

from vllm_batchllm.bench.report import report_from_dict
from vllm_batchllm.measure.metrics import ABResult
from vllm_batchllm.simulate.arms import find_arm
from vllm_batchllm.simulate.calibration import Calibration
from vllm_batchllm.simulate.setup import SetupOptions, make_setup
from vllm_batchllm.simulate.suite import Simulation, simulate
from vllm_batchllm.workloads.catalog import make_workload

PAIRS = (("stock", "batchllm"), ("sorted", "batchllm"), ("stock", "sorted"))


def main(
    records: Annotated[list[Path], typer.Argument(help="Records of `vllm-batchllm bench`.")],
    out: Annotated[Path, typer.Option(help="Folder of the results.")],
) -> None:
    """Compare every workload of the records."""
    calibration = Calibration.load()
    found = [
        _compare(result)
        for path in records
        for result in report_from_dict(json.loads(path.read_text())).results
    ]
    out.mkdir(parents=True, exist_ok=True)
    record = {"calibration": _plain(calibration), "rows": found}
    (out / "cpu.json").write_text(json.dumps(record, indent=1) + "\n")
    text = _report(found, calibration)
    (out / "cpu.md").write_text(text)
    print(text)


def _plain(calibration: Calibration) -> dict[str, Any]:
    return asdict(calibration)


def _compare(measured: ABResult) -> dict[str, Any]:
    workload, engine = measured.workload, measured.engine
    batch = make_workload(
        workload["name"],
        scale=workload["scale"],
        num_requests=workload["num_requests"],
        seed=workload["seed"],
    )
    setup = make_setup(
        batch,
        SetupOptions(
            device="cpu",
            block_size=engine["block_size"],
            kv_blocks=engine["kv_blocks"],
            max_num_seqs=engine["max_num_seqs"],
            max_num_batched_tokens=engine["max_num_batched_tokens"],
        ),
    )
    options = dict(engine["batchllm_options"])
    simulated = simulate(batch, [find_arm(arm, options) for arm in measured.arms], setup)
    return {
        "workload": workload["name"],
        "steps": {arm: _steps(measured, simulated, arm) for arm in measured.arms},
        "ratios": {
            f"{slower} / {faster}": {
                "measured": measured.ratio(slower, faster).median,
                "least": measured.ratio(slower, faster).min,
                "most": measured.ratio(slower, faster).max,
                "simulated": simulated.speed_over(faster, slower),
            }
            for slower, faster in PAIRS
        },
    }


def _steps(measured: ABResult, simulated: Simulation, arm: str) -> list[int]:
    run = simulated.run_of(arm)
    assert run is not None
    return [int(measured.medians(arm)["steps"]), run.metrics.steps]


def _report(found: list[dict[str, Any]], calibration: Calibration) -> str:
    header = ["workload"]
    for slower, faster in PAIRS:
        header += [f"{slower} / {faster}, measured", "simulated", "error"]
    rows = []
    for row in found:
        cells = [row["workload"]]
        for ratio in row["ratios"].values():
            error = ratio["simulated"] / ratio["measured"] - 1
            spread = f"{ratio['least']:.2f}–{ratio['most']:.2f}"
            cells += [f"{ratio['measured']:.2f} ({spread})", f"{ratio['simulated']:.2f}"]
            cells.append(f"{error:+.0%}")
        rows.append(cells)
    costs = calibration.costs
    return (
        "# Simulated and measured on the machine at hand\n\n"
        f"Costs of {calibration.model}, fitted on {calibration.num_steps} steps: "
        f"{costs.step_s * 1e3:.2f} ms a step, {costs.prefill_s * 1e6:.1f} µs a prompt token, "
        f"{costs.decode_s * 1e6:.0f} µs an output token, {costs.kv_s * 1e9:.1f} ns a token of KV "
        f"read, {costs.held_s * 1e9:.1f} ns more if from memory, {costs.pair_s * 1e9:.2f} ns a pair "
        "of prompt attention. Ratios of makespans: measured as the median of rounds (least–most).\n\n"
        + table(header, rows)
    )


if __name__ == "__main__":
    typer.run(main)
