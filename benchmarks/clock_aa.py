# SPDX-License-Identifier: Apache-2.0
"""How honest the clock of an A/B is: sorted stock vLLM against itself.

    python benchmarks/clock_aa.py [WORKLOAD] [--repeats 10] [--one-after-the-other] [--json FILE]

Two engines with the same scheduler, the same requests in the same order; every ratio that is not 1 is the
clock's. By wall time and by CPU time, in turns as `vllm-batchllm bench` does it, or one after the other.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
from contextlib import ExitStack
from pathlib import Path
from typing import Any

os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")

from vllm_batchllm.bench.engine import SORTED, EngineSpec, build_engine, scheduler_of
from vllm_batchllm.bench.lanes import frozen_heap, lane_of
from vllm_batchllm.bench.suite import WorkloadOptions, make_plan, resolve_model
from vllm_batchllm.bench.turns import Lane, take_turns
from vllm_batchllm.measure.recorder import record
from vllm_batchllm.workloads.catalog import DEFAULT_SCALE


def run(plan: Any, llms: list[Any], together: bool) -> list[Lane]:
    """One repeat: a lane for each engine."""
    lanes: list[Lane] = []
    for some in [llms] if together else [[llm] for llm in llms]:
        with ExitStack() as stack:
            for llm in some:
                llm.reset_prefix_cache()
            now = [
                lane_of(SORTED, llm, plan.batch, stack.enter_context(record(scheduler_of(llm))))
                for llm in some
            ]
            with frozen_heap():
                take_turns(now)
        lanes += now
    return lanes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("workload", nargs="?", default="tree-3")
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--num-requests", type=int, default=400)
    parser.add_argument("--one-after-the-other", action="store_true")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    folder, vocab_size = resolve_model(None)
    spec = EngineSpec(model=folder, kv_blocks=0, max_model_len=0)
    options = WorkloadOptions(DEFAULT_SCALE, args.num_requests, 0, None)
    plan = make_plan(args.workload, options, spec, vocab_size)
    llms = [build_engine(plan.spec, SORTED) for _ in range(2)]
    rows = []
    run(plan, llms, together=True)
    for number in range(args.repeats):
        first, second = run(plan, llms[:: 1 - 2 * (number % 2)], not args.one_after_the_other)
        if number % 2:
            first, second = second, first
        row = {
            "wall": round(first.wall_s / second.wall_s, 4),
            "cpu": round(first.cpu_s / second.cpu_s, 4),
            "seconds": round(first.wall_s, 2),
        }
        rows.append(row)
        print(json.dumps(row), flush=True)
    for name in ("wall", "cpu"):
        values = [row[name] for row in rows]
        print(
            f"{name}: median {statistics.median(values):.4f}, {min(values):.4f} to {max(values):.4f}"
        )
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
