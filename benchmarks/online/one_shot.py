# SPDX-License-Identifier: Apache-2.0
"""One-shot requests (a short prompt, one token), released at once, by size, by time, and by our table: simulated.

    python benchmarks/online/one_shot.py --out benchmarks/results/online

Poisson arrivals on the real scheduler with simulated steps of Llama-3.1-8B on one H100-80GB. Writes `one_shot.json` (every
run) and `one_shot.md`. What is compared is mean response time, ms, + w2 · mean power above idle, W, where power is a model:
(busy - idle power of the device) · the share of time in which it works. `one_shot_engine.py` is the same on a real engine.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from one_shot_arms import GREEDY, KNOWN, OURS, ReleaseArm, baselines, used
from one_shot_report import report

from vllm_batchllm.admission.release_policy import greedy
from vllm_batchllm.admission.release_server import BatchServer
from vllm_batchllm.admission.release_solver import solve
from vllm_batchllm.admission.release_tables import Table
from vllm_batchllm.hardware.devices import find_device
from vllm_batchllm.simulate.arms import Arm
from vllm_batchllm.simulate.arrivals import poisson_times_s
from vllm_batchllm.simulate.cost_model import StepWork
from vllm_batchllm.simulate.online import run_online
from vllm_batchllm.simulate.setup import Setup, SetupOptions, make_setup
from vllm_batchllm.workloads.batch import Batch

DEVICE, MAX_BATCH = "H100-80GB", 32
SERVICES = {"8-16 tokens": (8, 16), "24-200 tokens": (24, 200), "512 tokens": (512, 512)}
LOADS, WEIGHTS = (0.3, 0.7, 0.9), (0.0, 0.03, 0.1)
TIMEOUTS_S = (0.003, 0.006, 0.012, 0.025, 0.05)
MAX_HOLD_S = 10.0
"""Of ours: longer than any table waits, so that the table is seen."""
TAIL = 2 * MAX_BATCH
"""Last arrivals that are not counted: nobody comes who would fill their batch."""


@dataclass(frozen=True)
class Run:
    """One arm on one stream. power_w: above idle. limit: requests for which the table in use at the end waits."""

    service: str
    load: float
    seed: int
    weight: float | None
    arm: str
    response_ms: float
    p99_ms: float
    power_w: float
    limit: int | None = None
    predicted: float | None = None

    def cost(self, weight: float) -> float:
        return self.response_ms + weight * self.power_w


@cache
def workload(service: str, num: int, seed: int) -> tuple[Batch, Setup]:
    """Prompts without anything in common, and the engine."""
    draw, (least, most) = np.random.default_rng(seed), SERVICES[service]
    lengths = draw.integers(least, most + 1, num)
    prompts = [draw.integers(0, 100_000, length).tolist() for length in lengths]
    batch = Batch(service, prompts, [1] * num)
    return batch, make_setup(batch, SetupOptions(device=DEVICE, max_num_seqs=MAX_BATCH))


@cache
def service_ms(service: str) -> tuple[float, ...]:
    """What the simulated device takes for batches of 1, 2, ... requests, in the mean over their prompts."""
    batch, setup = workload(service, 2000, 0)
    lengths = np.array([len(prompt) for prompt in batch.prompts])
    draw = np.random.default_rng(1)

    def once(size: int) -> float:
        chosen = draw.choice(lengths, size)
        total, pairs = int(chosen.sum()), int((chosen * (chosen + 1) // 2).sum())
        work = StepWork(total, size, size, pairs, total)
        return 1e3 * setup.costs.time_of(work).total_s

    return tuple(fmean(once(size) for _ in range(300)) for size in range(1, MAX_BATCH + 1))


def more_w() -> float:
    """What the device draws in a step beyond idling."""
    device = find_device(DEVICE)
    assert device.busy_w is not None and device.idle_w is not None
    return device.busy_w - device.idle_w


def server(service: str, load: float, weight: float) -> BatchServer:
    """The model of the server, with what it really takes."""
    times = service_ms(service)
    rate = load * MAX_BATCH / times[-1] * 1e3
    energy = tuple(more_w() * time for time in times)
    return BatchServer(rate, times, energy, w_latency=1.0, w_power=weight)


def arms_of() -> Iterator[tuple[ReleaseArm, float | None]]:
    """Every arm, and the weight that it is told; the others do not ask."""
    for arm in (GREEDY, *baselines(MAX_BATCH, TIMEOUTS_S)):
        yield arm, None
    for weight in WEIGHTS:
        yield OURS, weight
        yield KNOWN, weight


def run(
    service: str, load: float, seed: int, arm: ReleaseArm, weight: float | None, num: int
) -> Run:
    """One arm on one stream of arrivals."""
    batch, setup = workload(service, num, seed)
    model = server(service, load, weight or 0.0)
    times_s = poisson_times_s(num, model.arrival_rate, seed)
    options: dict[str, Any] = (
        {} if arm is GREEDY else {"release": "one-shot", "max_hold_s": MAX_HOLD_S}
    )
    if weight:
        options |= {"power_weight": weight, "idle_power_w": 1.0, "busy_power_w": 1.0 + more_w()}
    holders: list[Any] = []
    table = Table(solve(model, 2 * MAX_BATCH), 0.0) if arm is KNOWN else None
    with used(arm, holders.append, table):
        done = run_online(
            batch, times_s, Arm(arm.name, "batchllm", options=options), setup.sizes, setup.costs
        )
    response_ms = 1e3 * (done.times.last_s - done.times.arrivals_s)[:-TAIL]
    power_w = more_w() * min(done.busy_s / times_s[-1], 1.0)
    limit, predicted = None, None
    if weight is not None:
        table = holders[0].table(times_s[-1])
        limit = 1 if table is None else table.policy.control_limit
        predicted = solve(model).cost / greedy(model).cost
    return Run(
        service, load, seed, weight, arm.name, float(response_ms.mean()),
        float(np.percentile(response_ms, 99)), power_w, limit, predicted,
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--requests", type=int, default=3000, help="of a stream")
    parser.add_argument("--seeds", type=int, default=5, help="streams of each kind")
    parser.add_argument("--services", nargs="*", default=list(SERVICES), choices=list(SERVICES))
    chosen = parser.parse_args()
    runs: list[Run] = []
    for service in chosen.services:
        for load in LOADS:
            for seed in range(chosen.seeds):
                for arm, weight in arms_of():
                    runs.append(run(service, load, seed, arm, weight, chosen.requests))
            print(f"{service}, load {load}", file=sys.stderr, flush=True)
    save(chosen.out, runs, sys.argv[1:])


def save(out: Path, runs: Sequence[Run], words: Sequence[str]) -> None:
    out.mkdir(parents=True, exist_ok=True)
    text = report(runs, WEIGHTS, " ".join(["python benchmarks/online/one_shot.py", *words]))
    (out / "one_shot.json").write_text(json.dumps([asdict(each) for each in runs]) + "\n")
    (out / "one_shot.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
