# SPDX-License-Identifier: Apache-2.0
"""The short A/B table of docs/benchmarks.md, from the raw results of ``vllm-batchllm bench``.

    python benchmarks/table.py benchmarks/results/cpu-2-cores/bench.json [more.json ...]

A workload found in several files is taken from the last one.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from vllm_batchllm.bench.report import result_from_dict
from vllm_batchllm.bench.tables import ratio_text
from vllm_batchllm.measure.metrics import ABResult

HEADER = (
    "workload",
    "prompt tokens saved: stock",
    "sorted",
    "batchllm",
    "possible",
    "speed over stock",
    "speed over sorted",
    "equal outputs",
)


def row(result: ABResult) -> list[str]:
    """One line of the table."""
    medians = {arm: result.medians(arm) for arm in result.arms}
    saved = [f"{medians[arm]['saved_ratio']:.1%}" for arm in result.arms]
    possible = f"{medians['batchllm']['optimal_saved_ratio']:.1%}"
    ratios = [ratio_text(result.ratio(arm, "batchllm")) for arm in ("stock", "sorted")]
    match = f"{result.match('batchllm').ratio:.2%}"
    return [str(result.workload["name"]), *saved, possible, *ratios, match]


def main() -> None:
    results: dict[str, ABResult] = {}
    for name in sys.argv[1:]:
        for item in json.loads(Path(name).read_text())["results"]:
            result = result_from_dict(item)
            results[str(result.workload["name"])] = result
    print(f"| {' | '.join(HEADER)} |")
    print(f"| --- |{' ---: |' * (len(HEADER) - 1)}")
    for result in results.values():
        print(f"| {' | '.join(row(result))} |")


if __name__ == "__main__":
    main()
