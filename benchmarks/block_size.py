# SPDX-License-Identifier: Apache-2.0
"""What the KV block size costs and saves with the batchllm scheduler, on one machine.

    python benchmarks/block_size.py --workload demo --sizes 32 128 --rounds 3

One engine per block size in one process, with the same KV memory in tokens and the same arguments
otherwise. Rounds alternate the sizes, starting with each in turn; ratios are taken within rounds.
``demo`` is the main job's documents x questions on SmolLM2 (``make model``); any other name is a
workload of ``vllm-batchllm bench`` on its random model. Saved shares are exact; times are those of
this machine and whoever else uses it. Prints JSON.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
if __name__ == "__main__":  # whoever imports this keeps the log as it is
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
sys.path.insert(0, str(Path(__file__).parent / "demo"))

from main_job import MODEL, make_tasks, tokenized

from vllm_batchllm.bench.engine import BATCHLLM, EngineSpec, build_engine, scheduler_of
from vllm_batchllm.bench.random_model import RandomModelSpec, random_model
from vllm_batchllm.bench.sampling import sampling_params
from vllm_batchllm.measure.recorder import record
from vllm_batchllm.prefix.best_saving import optimal_saved_tokens
from vllm_batchllm.workloads.batch import Batch, kv_blocks_for
from vllm_batchllm.workloads.catalog import make_workload

DEMO = "demo"
Row = dict[str, Any]


def batch_and_model(args: argparse.Namespace) -> tuple[Batch, str]:
    if args.workload == DEMO:
        return tokenized(make_tasks(args.documents, args.length), args.length), str(MODEL)
    spec = RandomModelSpec()
    batch = make_workload(
        args.workload,
        scale=args.scale,
        num_requests=args.num_requests,
        vocab_size=spec.vocab_size,
    )
    return batch, str(random_model(spec=spec))


def specs_by_size(batch: Batch, model: str, sizes: list[int], num_seqs: int) -> dict[int, Any]:
    """Engine specifications with the same KV memory in tokens."""
    largest = max(sizes)
    kv_tokens = kv_blocks_for(batch, largest) * largest
    return {
        size: EngineSpec(
            model,
            kv_blocks=kv_tokens // size,
            max_model_len=batch.max_request_tokens,
            block_size=size,
            max_num_batched_tokens=4096,
            max_num_seqs=num_seqs,
        )
        for size in sizes
    }


def run(llm: Any, batch: Batch, params: list[Any]) -> tuple[Row, list[tuple[int, ...]]]:
    if not llm.reset_prefix_cache():
        raise SystemExit("the prefix cache cannot be emptied before a run")
    prompts = [{"prompt_token_ids": prompt} for prompt in batch.prompts]
    gc.collect()
    with record(scheduler_of(llm)) as counts:
        start, cpu_start = time.perf_counter(), time.process_time()
        outputs = llm.generate(prompts, params, use_tqdm=False)
        wall_s, cpu_s = time.perf_counter() - start, time.process_time() - cpu_start
    row = {
        "makespan_s": round(wall_s, 2),
        "cpu_s": round(cpu_s, 2),
        "saved_ratio": round(1 - counts.computed_prompt_tokens / batch.prompt_tokens, 4),
        "preemptions": counts.preemptions,
        "steps": counts.steps,
    }
    return row, [tuple(item.outputs[0].token_ids) for item in outputs]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workload", default=DEMO)
    parser.add_argument("--sizes", type=int, nargs="+", default=[32, 128])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--documents", type=int, default=24, help="of the demo")
    parser.add_argument("--length", type=int, default=1000, help="characters, of the demo")
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--num-requests", type=int, default=None)
    parser.add_argument("--max-num-seqs", type=int, default=256)
    args = parser.parse_args()
    batch, model = batch_and_model(args)
    specs = specs_by_size(batch, model, args.sizes, args.max_num_seqs)
    llms = {size: build_engine(spec, BATCHLLM) for size, spec in specs.items()}
    params = sampling_params(batch)
    for llm in llms.values():  # first calls allocate and choose kernels
        llm.generate([{"prompt_token_ids": p} for p in batch.prompts[:4]], params[:4])
    rows: dict[int, list[Row]] = {size: [] for size in args.sizes}
    for number in range(args.rounds):
        first = number % len(args.sizes)
        answers = {}
        for size in (*args.sizes[first:], *args.sizes[:first]):
            row, answers[size] = run(llms[size], batch, params)
            rows[size].append(row)
            print(json.dumps({"round": number, "block_size": size} | row), flush=True)
    print(json.dumps(summary(batch, specs, rows, answers)))


def summary(batch: Batch, specs: dict[int, Any], rows: dict[int, list[Row]], answers: Any) -> Row:
    """Exact savings, and times within rounds against the last size."""
    sizes = list(rows)
    against = sizes[-1]
    ratios = {
        key: [
            {s: round(r[against][key] / r[s][key], 3) for s in sizes}
            for r in (dict(zip(sizes, r, strict=True)) for r in zip(*rows.values(), strict=True))
        ]
        for key in ("makespan_s", "cpu_s")
    }
    return {
        "workload": batch.name,
        "num_requests": batch.num_requests,
        "kv_tokens": {s: specs[s].kv_blocks * s for s in sizes},
        "saved_ratio": {s: rows[s][0]["saved_ratio"] for s in sizes},
        "optimal_saved_ratio": {
            s: round(optimal_saved_tokens(batch.prompts, s) / batch.prompt_tokens, 4) for s in sizes
        },
        f"speed_over_{against}": {
            key: {s: statistics.median(r[s] for r in per_round) for s in sizes}
            for key, per_round in ratios.items()
        },
        "rounds": ratios,
        "equal_outputs": len({tuple(a) for a in answers.values()}) == 1,
    }


if __name__ == "__main__":
    main()
