# SPDX-License-Identifier: Apache-2.0
"""What a step, a prompt token and an output token cost, from the runs of `vllm-batchllm bench`.

    python benchmarks/fit_costs.py benchmarks/results/cpu-2-cores/bench.json

Least squares of the relative error over the median makespan of every workload and arm. The figures
are those of `PLATFORM_COSTS["cpu"]` in `vllm_batchllm/simulate/step_costs.py`.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np


def main() -> None:
    rows, seconds = [], []
    for name in sys.argv[1:]:
        for result in json.loads(Path(name).read_text())["results"]:
            runs = defaultdict(list)
            for run in result["runs"]:
                runs[run["arm"]].append(run)
            for of_arm in runs.values():
                run = of_arm[0]
                output = run["output_tokens"]
                rows.append([run["steps"], run["tokens_per_step"] * run["steps"] - output, output])
                seconds.append(statistics.median(each["makespan_s"] for each in of_arm))
    weights = 1 / np.array(seconds)
    costs = np.linalg.lstsq(np.array(rows) * weights[:, None], np.ones(len(rows)), rcond=None)[0]
    names = ("step_s", "prefill_s", "decode_s")
    print(json.dumps({n: round(float(c), 7) for n, c in zip(names, costs, strict=True)}))


if __name__ == "__main__":
    main()
