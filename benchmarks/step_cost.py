# SPDX-License-Identifier: Apache-2.0
"""Cost of a scheduler step with many requests waiting, ours against stock vLLM's.

    python benchmarks/step_cost.py --waiting 100000 --steps 300 --rounds 3

Both schedulers are real and run on a fake KV config; outputs are made here. The cache holds
everything and steps are wide, so that after the warm-up both arms run ``--running`` requests and
admit equally many a step: the same work, differently ordered. Times are CPU times of this
process. The arms take turns step by step, because the machine's speed changes within seconds; a
round's ratio is that of the times of all its steps. Prints JSON.

``--arrival sorted`` queues the requests in prefix order, so that both arms admit in the same
order: what is left is our code, without the price of requests scattered over memory.
"""

from __future__ import annotations

import argparse
import gc
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


def new_scheduler(arm: str, model: str, prompts: list[list[int]], args: argparse.Namespace) -> Any:
    """A scheduler of ``arm`` with all prompts waiting."""
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
    return scheduler


def step(scheduler: Any) -> float:
    """Seconds of one ``schedule`` and ``update_from_output``."""
    start = time.process_time()
    output = scheduler.schedule()
    scheduled = time.process_time()
    made = model_output(scheduler, output)
    updating = time.process_time()
    scheduler.update_from_output(output, made)
    return scheduled - start + time.process_time() - updating


def run(model: str, prompts: list[list[int]], args: argparse.Namespace) -> dict[str, list[float]]:
    """Seconds of every step behind the warm-up, by arm."""
    schedulers = {arm: new_scheduler(arm, model, prompts, args) for arm in ARMS}
    times: dict[str, list[float]] = {arm: [] for arm in ARMS}
    gc.collect()
    gc.freeze()  # a full collection takes as long as many steps, and hits one arm by chance
    for number in range(args.warmup + args.steps):
        for arm in sorted(ARMS, reverse=bool(number % 2)):
            seconds = step(schedulers[arm])
            if number >= args.warmup:
                times[arm].append(seconds)
    assert all(scheduler.waiting for scheduler in schedulers.values()), "the queue ran empty"
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--waiting", type=int, default=100_000)
    parser.add_argument("--running", type=int, default=256)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--warmup", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--blocks", type=int, default=400_000)
    parser.add_argument("--output", type=int, default=64)
    parser.add_argument("--order", default="dfs")
    parser.add_argument("--arrival", choices=("shuffled", "sorted"), default="shuffled")
    args = parser.parse_args()
    prompts = make_prompts(args.waiting, degree=16, prefix=128, suffix=32)
    if args.arrival == "sorted":
        prompts.sort()
    with tempfile.TemporaryDirectory() as folder:
        model = model_folder(Path(folder))
        rounds = [run(model, prompts, args) for _ in range(args.rounds)]
    ratios = [sum(times["batchllm"]) / sum(times["stock"]) for times in rounds]
    medians = {
        arm: statistics.median(seconds for times in rounds for seconds in times[arm])
        for arm in ARMS
    }
    result = {
        "num_waiting": args.waiting,
        "num_running": args.running,
        "order": args.order,
        "arrival": args.arrival,
        **{f"{arm}_ms_of_median_step": round(v * 1e3, 3) for arm, v in medians.items()},
        "ratio_of_medians": round(medians["batchllm"] / medians["stock"], 3),
        "ratio": round(statistics.median(ratios), 3),
        "ratios": [round(ratio, 3) for ratio in ratios],
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
