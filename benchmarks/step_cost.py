# SPDX-License-Identifier: Apache-2.0
"""Cost of a scheduler step with many requests waiting, ours against stock vLLM's.

    python benchmarks/step_cost.py --waiting 100000 --running 256
    python benchmarks/step_cost.py --waiting 1000000 --running 100 1000 4000

Both schedulers are real and run on a fake KV config; outputs are made here. The cache holds
everything and steps are wide, so that after the warm-up both arms run ``--running`` requests and
admit equally many a step: the same work, differently ordered. Who leaves the queue is replaced
between steps, so ``--waiting`` stays. Times are CPU times of this process. The arms take turns step
by step, because the machine's speed changes within seconds; a round's ratio is that of the times of
all its steps. Every round builds both schedulers anew. Prints JSON, a line for every ``--running``,
which are taken in ascending order.

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
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
if __name__ == "__main__":  # whoever imports this keeps the log as it is
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "scheduler"))

import psutil
from fake_engine import make_request, make_scheduler, make_vllm_config, model_folder, model_output
from vllm.v1.core.sched.scheduler import Scheduler

from vllm_batchllm.scheduler.scheduler import BatchLLMScheduler

ARMS: dict[str, Any] = {"stock": Scheduler, "batchllm": BatchLLMScheduler}
DEGREE, PREFIX_TOKENS, SUFFIX_TOKENS = 16, 128, 32
STEP_TOKENS, STEP_TOKENS_PER_REQUEST = 16384, 8


@dataclass
class Steps:
    """What was seen of one arm behind the warm-up, by step.

    running: requests that run. admitted: requests that started.
    """

    seconds: list[float] = field(default_factory=list)
    running: list[int] = field(default_factory=list)
    admitted: list[int] = field(default_factory=list)


class Arm:
    """One scheduler and the prompts that it is fed with."""

    def __init__(self, name: str, model: str, prompts: list[list[int]], args: Any) -> None:
        most = max(args.running)
        config = make_vllm_config(
            model,
            num_blocks=args.blocks,
            max_num_seqs=most,
            max_num_batched_tokens=max(STEP_TOKENS, STEP_TOKENS_PER_REQUEST * most),
            options={"order": args.order} if name == "batchllm" else None,
        )
        self.scheduler = make_scheduler(ARMS[name], config)
        self._prompts = prompts
        self._num_fed = 0
        self._num_waiting = args.waiting
        self._output = args.output
        # One of the requests lends the others its parameters and its hasher: all are alike.
        self._like = make_request("like", prompts[0], max_tokens=args.output)

    def feed(self) -> None:
        """Have so many requests wait as are wanted."""
        like = self._like
        for _ in range(self._num_waiting - len(self.scheduler.waiting)):
            request = type(like)(
                request_id=str(self._num_fed),
                prompt_token_ids=self._prompts[self._num_fed],
                sampling_params=like.sampling_params,
                pooling_params=None,
                arrival_time=float(self._num_fed),
                block_hasher=like._block_hasher,
            )
            self._num_fed += 1
            self.scheduler.add_request(request)

    def step(self, seen: Steps | None) -> None:
        """One ``schedule`` and ``update_from_output``, timed; then the queue is filled up."""
        scheduler = self.scheduler
        start = time.process_time()
        output = scheduler.schedule()
        scheduled = time.process_time()
        made = model_output(scheduler, output)
        running = len(scheduler.running)
        updating = time.process_time()
        scheduler.update_from_output(output, made)
        seconds = scheduled - start + time.process_time() - updating
        if seen is not None:
            seen.seconds.append(seconds)
            seen.running.append(running)
            seen.admitted.append(len(output.scheduled_new_reqs))
        self.feed()


def make_prompts(num_requests: int, arrival: str) -> list[list[int]]:
    """Prompts, ``DEGREE`` of them over each shared prefix."""
    rng = random.Random(0)
    tokens = list(range(1000))
    prompts = []
    for group in range(-(-num_requests // DEGREE)):
        shared = [tokens[group % 1000], tokens[group // 1000]] * (PREFIX_TOKENS // 2)
        prompts += [shared + rng.choices(tokens, k=SUFFIX_TOKENS) for _ in range(DEGREE)]
    if arrival == "sorted":
        prompts.sort()
    else:
        rng.shuffle(prompts)
    return prompts[:num_requests]


def num_prompts(args: argparse.Namespace) -> int:
    """Enough for those who wait, for the warm-ups and for the steps."""
    steps = args.warmup + args.steps
    return args.waiting + sum(n + -(-n * steps // args.output) for n in args.running) + 1000


def run_round(
    number: int, model: str, prompts: list[list[int]], args: argparse.Namespace
) -> dict[int, dict[str, Steps]]:
    """Every step behind the warm-ups, by requests running and arm."""
    names = sorted(ARMS, reverse=bool(number % 2))
    arms = {name: Arm(name, model, prompts, args) for name in names}
    for arm in arms.values():
        arm.feed()
    gc.collect()
    gc.freeze()  # a full collection takes as long as many steps, and hits one arm by chance
    seen = {}
    for running in sorted(args.running):
        for arm in arms.values():
            arm.scheduler.max_num_active_reqs = running
        seen[running] = _steps(arms, args)
    gc.unfreeze()
    return seen


def _steps(arms: dict[str, Arm], args: argparse.Namespace) -> dict[str, Steps]:
    seen = {name: Steps() for name in arms}
    for number in range(args.warmup + args.steps):
        for name in sorted(arms, reverse=bool(number % 2)):
            arms[name].step(seen[name] if number >= args.warmup else None)
    return seen


def summary(running: int, rounds: list[dict[str, Steps]], args: argparse.Namespace) -> Any:
    """One line of the result: medians over all rounds, and ratios within them."""
    ratios = [sum(seen["batchllm"].seconds) / sum(seen["stock"].seconds) for seen in rounds]
    medians = {name: [statistics.median(seen[name].seconds) for seen in rounds] for name in ARMS}
    pairs = zip(medians["batchllm"], medians["stock"], strict=True)
    of_medians = [ours / stock for ours, stock in pairs]
    means = {name: statistics.mean(s for r in rounds for s in r[name].seconds) for name in ARMS}
    return {
        "num_waiting": args.waiting,
        "num_running": running,
        "order": args.order,
        "arrival": args.arrival,
        "num_steps": args.steps,
        **{f"{name}_ms_of_median_step": _ms(statistics.median(medians[name])) for name in ARMS},
        **{f"{name}_ms_of_mean_step": _ms(means[name]) for name in ARMS},
        "ratio_of_medians": round(statistics.median(of_medians), 3),
        "ratios_of_medians": [round(ratio, 3) for ratio in of_medians],
        "ratio": round(statistics.median(ratios), 3),
        "ratios": [round(ratio, 3) for ratio in ratios],
        **{f"{name}_mean_running": _mean("running", name, rounds) for name in ARMS},
        **{f"{name}_mean_admitted": _mean("admitted", name, rounds) for name in ARMS},
        "resident_gb": round(psutil.Process().memory_info().rss / 1e9, 2),
    }


def _ms(seconds: float) -> float:
    return round(seconds * 1e3, 3)


def _mean(what: str, name: str, rounds: list[dict[str, Steps]]) -> float:
    return round(statistics.mean(n for seen in rounds for n in getattr(seen[name], what)), 2)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--waiting", type=int, default=100_000)
    parser.add_argument("--running", type=int, nargs="+", default=[256])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--warmup", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--blocks", type=int, default=400_000)
    parser.add_argument("--output", type=int, default=64, help="tokens each request makes")
    parser.add_argument("--order", default="dfs")
    parser.add_argument("--arrival", choices=("shuffled", "sorted"), default="shuffled")
    args = parser.parse_args(argv)
    prompts = make_prompts(num_prompts(args), args.arrival)
    by_running: dict[int, list[dict[str, Steps]]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as folder:
        model = model_folder(Path(folder))
        for number in range(args.rounds):
            for running, seen in run_round(number, model, prompts, args).items():
                by_running[running].append(seen)
    for running, rounds in by_running.items():
        print(json.dumps(summary(running, rounds, args)), flush=True)


if __name__ == "__main__":
    main()
