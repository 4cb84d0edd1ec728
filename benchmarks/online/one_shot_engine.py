# SPDX-License-Identifier: Apache-2.0
"""One-shot requests on a real engine, on the CPU: greedy, fixed sizes, time-outs and our table, in turns.

    python benchmarks/online/one_shot_engine.py --out benchmarks/results/online

vLLM in this process with a small random model; requests come by the clock. One engine, and of every arm a holder of its own that
keeps what it has learnt, by a clock that stands still while others have their turn; blocks of arrivals in turns, each arm with the same
arrivals. Power is a model: what the device draws
in a step beyond idling (assumed) · the share of time in steps. Writes `one_shot_engine.json` and `.md`. Nothing else should run.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
os.environ.setdefault(
    "OMP_NUM_THREADS", "1"
)  # two that wait for each other take what others take from one

import numpy as np
from one_shot_arms import GREEDY, OURS, ReleaseArm, baselines
from one_shot_blocks import report
from vllm import LLM, SamplingParams

from vllm_batchllm.admission.one_shot_release import OneShotRelease
from vllm_batchllm.admission.release_tables import make_table
from vllm_batchllm.bench.random_model import RandomModelSpec, random_model
from vllm_batchllm.simulate.arrivals import poisson_times_s

MAX_BATCH, BLOCK = 32, 512
TAIL = MAX_BATCH
"""Last arrivals of a block that are not counted: nobody comes who would fill their batch."""
LOADS = (0.3, 0.7, 0.9)
MORE_W = 100.0
"""Assumed: what the processor draws in a step beyond idling, watts."""
SHORTEST, LONGEST = 8, 16
MAX_HOLD_S = 2.0
SPEC = RandomModelSpec(128, 4, 2, 2, 384, 1024, 1024)
PARAMS = SamplingParams(temperature=0, max_tokens=1, ignore_eos=True, detokenize=False)


@dataclass(frozen=True)
class Block:
    """One arm on one block of arrivals. power_w: above idle, by the model."""

    load: float
    number: int
    arm: str
    weight: float | None
    response_ms: float
    power_w: float
    batch_size: float


class Server:
    """An engine in this process, whose way to release is changed between blocks."""

    def __init__(self) -> None:
        options = {"release": "one-shot", "max_hold_s": MAX_HOLD_S}
        self._llm = LLM(
            str(random_model(spec=SPEC)), dtype="float32", enforce_eager=True, skip_tokenizer_init=True,
            distributed_executor_backend="uni", max_model_len=512, max_num_seqs=MAX_BATCH,
            max_num_batched_tokens=2048, async_scheduling=False, disable_log_stats=True, gpu_memory_utilization=0.2,
            scheduler_cls="vllm_batchllm.scheduler.scheduler.BatchLLMScheduler", seed=0,
            additional_config={"batchllm": options},
        )  # fmt: skip
        self._engine = self._llm.llm_engine
        self._scheduler: Any = self._engine.engine_core.engine_core.scheduler
        self._num = 0
        self._used: OneShotRelease[Any] | None = None
        self._stood_s: dict[int, float] = {}

    def use(self, holder: OneShotRelease[Any]) -> None:
        """Requests are released by `holder` from now on, whose clock goes on from where it stood."""
        releases, now_s = self._scheduler.online.releases, time.perf_counter()
        if self._used is not None:
            self._stood_s[id(self._used)] = releases._clock()
        behind_s = now_s - self._stood_s.get(id(holder), 0.0)
        releases._clock = lambda: time.perf_counter() - behind_s
        releases._one_shot = releases.queue.one_shot = self._used = holder

    def serve(self, times_s: list[float], seed: int) -> tuple[list[float], float, int]:
        """Seconds from the arrival to the answer of each; share of time in steps and their number until the tail."""
        prompts = self._prompts(len(times_s), seed)
        ends_s: dict[str, float] = {}
        first, sent, busy_s, num_steps = self._num, 0, 0.0, 0
        at_tail: tuple[float, int] | None = None
        held = self._scheduler.online.releases._one_shot.held
        kept_s, counters = held.max_hold_s, self._scheduler.batchllm_counters
        began_s = time.perf_counter()
        while len(ends_s) < len(prompts):
            now_s = time.perf_counter() - began_s
            while sent < len(prompts) and times_s[sent] <= now_s:
                self._add(prompts[sent])
                sent += 1
            if sent == len(prompts):
                held.max_hold_s = 0.0  # nobody comes any more
            if at_tail is None and sent >= len(prompts) - TAIL:
                at_tail = busy_s / now_s, num_steps
            before, now_s = counters.num_steps, time.perf_counter() - began_s
            outputs = self._engine.step() if self._engine.has_unfinished_requests() else ()
            end_s = time.perf_counter() - began_s
            if counters.num_steps > before:
                busy_s, num_steps = busy_s + end_s - now_s, num_steps + 1
            for output in outputs:
                ends_s[output.request_id] = end_s
        held.max_hold_s = kept_s
        assert at_tail is not None
        waits = [ends_s[str(first + place)] - at_s for place, at_s in enumerate(times_s)]
        return waits, *at_tail

    def batch_s(self, size: int) -> float:
        """Median seconds of a batch, with what it takes to take its requests in."""
        self.use(GREEDY.make(MAX_BATCH))
        found: list[float] = []
        for seed in range(15):
            prompts, began_s = self._prompts(size, seed), time.perf_counter()
            for prompt in prompts:
                self._add(prompt)
            while self._engine.has_unfinished_requests():
                self._engine.step()
            found.append(time.perf_counter() - began_s)
        return float(np.median(found))

    def _prompts(self, num: int, seed: int) -> list[list[int]]:
        draw = np.random.default_rng(seed)
        lengths = draw.integers(SHORTEST, LONGEST + 1, num)
        return [draw.integers(3, SPEC.vocab_size, length).tolist() for length in lengths]

    def _add(self, prompt: list[int]) -> None:
        self._engine.add_request(str(self._num), {"prompt_token_ids": prompt}, PARAMS)
        self._num += 1


def holders_of(
    timeouts_s: tuple[float, ...], weights: tuple[float, ...]
) -> Iterator[tuple[ReleaseArm, float | None, OneShotRelease[Any]]]:
    """Every arm with a holder that has learnt nothing yet."""
    for arm in (GREEDY, *baselines(MAX_BATCH, timeouts_s)):
        yield arm, None, arm.make(MAX_BATCH)
    for weight in weights:
        solve = partial(make_table, max_batch=MAX_BATCH, power_weight=weight, more_w=MORE_W)
        yield OURS, weight, OneShotRelease(MAX_HOLD_S, MAX_BATCH, solve)


def run_load(server: Server, load: float, full_s: float, num_blocks: int) -> list[Block]:
    """All arms in turns; the first block of each is for learning and is not kept."""
    rate, found = load * MAX_BATCH / full_s, []
    timeouts_s = tuple(round(factor * full_s, 4) for factor in (0.25, 1.0, 3.0))
    weights = tuple(round(factor * 1e3 * full_s / MORE_W, 3) for factor in (0.0, 0.5, 2.0))
    arms = list(holders_of(timeouts_s, weights))
    for number in range(num_blocks + 1):
        times_s = poisson_times_s(BLOCK, rate, 1000 * number + round(10 * load))
        start = number % len(arms)
        for arm, weight, holder in arms[start:] + arms[:start]:
            server.use(holder)
            waits, busy_ratio, num_steps = server.serve(times_s, number)
            response_ms = 1e3 * float(np.mean(waits[:-TAIL]))
            size = (BLOCK - TAIL) / max(num_steps, 1)
            if number:
                found.append(
                    Block(load, number, arm.name, weight, response_ms, MORE_W * busy_ratio, size)
                )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--blocks", type=int, default=10, help=f"of {BLOCK} arrivals, of each arm")
    parser.add_argument("--loads", type=float, nargs="*", default=list(LOADS))
    chosen = parser.parse_args()
    server = Server()
    times_ms = {size: 1e3 * server.batch_s(size) for size in (1, 8, MAX_BATCH)}
    gc.collect()
    gc.freeze()  # as vLLM does in a process of the engine's own
    print({size: round(value, 2) for size, value in times_ms.items()}, file=sys.stderr, flush=True)
    blocks: list[Block] = []
    for load in chosen.loads:
        blocks += run_load(server, load, times_ms[MAX_BATCH] / 1e3, chosen.blocks)
        print(f"load {load}", file=sys.stderr, flush=True)
    command = " ".join(["python benchmarks/online/one_shot_engine.py", *sys.argv[1:]])
    text = report(blocks, times_ms, MORE_W, command)
    chosen.out.mkdir(parents=True, exist_ok=True)
    raw = {"batch_ms": times_ms, "blocks": [asdict(block) for block in blocks]}
    (chosen.out / "one_shot_engine.json").write_text(json.dumps(raw) + "\n")
    (chosen.out / "one_shot_engine.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
