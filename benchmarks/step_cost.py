# SPDX-License-Identifier: Apache-2.0
"""Cost of a scheduler step with many requests waiting, ours against stock vLLM's.

    python benchmarks/step_cost.py --waiting 100000 --steps 150 --rounds 5

Both schedulers are real and run on a fake KV config; outputs are made here. The cache holds
everything and steps are wide, so that after the warm-up both arms run ``--running`` requests and
admit equally many a step: the same work, differently ordered. Times are CPU times of this
process; the arms alternate, and the ratio is the median over paired rounds. Prints JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "scheduler"))

from fake_engine import (
    make_requests,
    make_scheduler,
    make_vllm_config,
    model_folder,
    model_output,
)
from vllm.v1.core.sched.scheduler import Scheduler

from vllm_batchllm.schedule.scheduler import BatchLLMScheduler

ARMS: dict[str, Any] = {"stock": Scheduler, "batchllm": BatchLLMScheduler}


def make_prompts(num_requests: int, degree: int, prefix: int, suffix: int) -> list[list[int]]:
    """Shuffled prompts, ``degree`` of them over each shared prefix."""
    rng = random.Random(0)
    prompts = []
    for group in range(-(-num_requests // degree)):
        shared = [group % 1000, group // 1000] * (prefix // 2)
        prompts += [shared + [rng.randrange(1000) for _ in range(suffix)] for _ in range(degree)]
    rng.shuffle(prompts)
    return prompts[:num_requests]


def run(arm: str, model: str, prompts: list[list[int]], args: argparse.Namespace) -> list[float]:
    """Seconds per step of ``schedule`` + ``update_from_output``, after a warm-up."""
    config = make_vllm_config(
        model,
        num_blocks=args.blocks,
        max_num_seqs=args.running,
        max_num_batched_tokens=16384,
        options={"order": args.order} if arm == "batchllm" else None,
    )
    scheduler = make_scheduler(ARMS[arm], config)
    for request in make_requests(prompts, max_tokens=args.output):
        scheduler.add_request(request)
    times = []
    for _ in range(args.warmup + args.steps):
        start = time.process_time()
        output = scheduler.schedule()
        scheduled = time.process_time()
        made = model_output(scheduler, output)
        updating = time.process_time()
        scheduler.update_from_output(output, made)
        times.append(scheduled - start + time.process_time() - updating)
    assert len(scheduler.waiting) > 0, "too many steps: the queue ran empty"
    return times[args.warmup :]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--waiting", type=int, default=100_000)
    parser.add_argument("--running", type=int, default=256)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--warmup", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--blocks", type=int, default=400_000)
    parser.add_argument("--output", type=int, default=64)
    parser.add_argument("--order", default="dfs")
    args = parser.parse_args()
    prompts = make_prompts(args.waiting, degree=16, prefix=128, suffix=32)
    medians: dict[str, list[float]] = {arm: [] for arm in ARMS}
    with tempfile.TemporaryDirectory() as folder:
        model = model_folder(Path(folder))
        for turn in range(args.rounds):
            for arm in sorted(ARMS, reverse=bool(turn % 2)):
                medians[arm].append(statistics.mean(run(arm, model, prompts, args)))
    ratios = [b / s for s, b in zip(medians["stock"], medians["batchllm"], strict=True)]
    result = {
        "num_waiting": args.waiting,
        "num_running": args.running,
        "order": args.order,
        **{
            f"{arm}_ms_per_step": round(statistics.median(v) * 1e3, 3) for arm, v in medians.items()
        },
        "ratio_of_paired_rounds": round(statistics.median(ratios), 3),
        "ratios": [round(ratio, 3) for ratio in ratios],
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
