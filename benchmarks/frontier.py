# SPDX-License-Identifier: Apache-2.0
"""Admission where lengths are guessed: steps against tokens computed again, rule by rule.

    python benchmarks/frontier.py --out DIR [--seeds 11 12 13 14] [--workloads NAME ...]

Real schedulers, our queue in every arm, so that the order is the same; only who may start differs. All
figures are counters but ``seconds``: what the steps would take by the costs of the CPU and of three GPUs.
"""

from __future__ import annotations

import argparse
import json
from collections import deque
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from vllm.v1.core.sched.scheduler import Scheduler

from vllm_batchllm.hardware.devices import find_device
from vllm_batchllm.hardware.models import find_model
from vllm_batchllm.scheduler.scheduler import BatchLLMScheduler
from vllm_batchllm.simulate.cost_model import CostModel, Measured, MeasuredCosts, Roofline
from vllm_batchllm.simulate.ring import RingSpec, build_on, make_config, make_requests, sample
from vllm_batchllm.simulate.step_costs import PLATFORM_COSTS
from vllm_batchllm.simulate.work import WorkMeter, held_kv_tokens
from vllm_batchllm.workloads.batch import Batch, kv_blocks_for
from vllm_batchllm.workloads.catalog import make_workload

BLOCK_SIZE = 16
COSTS: dict[str, CostModel] = {
    "cpu": Measured(MeasuredCosts.of(PLATFORM_COSTS["cpu"])),
    "A100, 8B": Roofline(find_device("A100-80GB"), find_model("llama-3.1-8b")),
    "H100, 8B": Roofline(find_device("H100-80GB"), find_model("llama-3.1-8b")),
    "H100, 70B of 4 bits": Roofline(find_device("H100-80GB"), find_model("llama-3.1-70b", 4)),
}
KNOWN = ", known"
"""Behind a workload's name: the same lengths, told to the engine."""
WORKLOADS = ("correlated-output", "skewed-output")
WATERMARKS = (0.0, 0.005, 0.01, 0.02, 0.03, 0.05, 0.1)


@dataclass(frozen=True)
class Rule:
    """Who may start: options of ours, and the watermark of vLLM's; None for vLLM's own scheduler."""

    name: str
    options: dict[str, Any] | None = field(default_factory=dict)
    watermark: float = 0.0


RULES = (
    *(Rule(f"watermark {w:g}", {"admission": "stock"}, w) for w in WATERMARKS),
    Rule("ours", {}),
)


@dataclass
class Run:
    """One rule on one batch."""

    workload: str
    seed: int
    rule: str
    steps: int = 0
    preemptions: int = 0
    computed: int = 0
    recomputed: int = 0
    seconds: dict[str, float] = field(default_factory=dict)


def run(batch: Batch, rule: Rule, num_blocks: int, result: Run) -> None:
    """Serve ``batch`` to its end, and fill ``result``."""
    spec = RingSpec(num_blocks, BLOCK_SIZE, 256, 2048, batch.max_request_tokens, True, rule.options)
    config = make_config(spec)
    config.scheduler_config.watermark = rule.watermark
    result.seconds = dict.fromkeys(COSTS, 0.0)
    scheduler = build_on(Scheduler if rule.options is None else BatchLLMScheduler, config)
    requests = deque(make_requests(batch, range(batch.num_requests), BLOCK_SIZE))
    ends = {str(index): length for index, length in enumerate(batch.output_lens)}
    for request in requests:
        scheduler.add_request(request)
    meter = WorkMeter()
    while scheduler.has_unfinished_requests():
        output = scheduler.schedule()
        made = sample(scheduler, output, ends)
        if output.total_num_scheduled_tokens:
            result.steps += 1
            result.computed += output.total_num_scheduled_tokens
            sampled = sum(map(bool, made.sampled_token_ids))
            work = meter.work_of(output, sampled, held_kv_tokens(scheduler))
            for name, costs in COSTS.items():
                result.seconds[name] += costs.time_of(work).total_s
        result.preemptions += len(output.preempted_req_ids or ())
        scheduler.update_from_output(output, made)
        meter.forget(scheduler.finished_req_ids)


def runs_of(
    name: str, seed: int, rules: tuple[Rule, ...], num_requests: int | None
) -> Iterator[Run]:
    batch = make_workload(name.removesuffix(KNOWN), num_requests=num_requests, seed=seed)
    if name.endswith(KNOWN):
        batch = replace(batch, lengths_known=True)
    num_blocks = kv_blocks_for(batch, BLOCK_SIZE) - 1
    least = Run(name, seed, "unlimited")
    run(batch, Rule("unlimited", {"admission": "stock"}), 200_000, least)
    for rule in rules:
        result = Run(name, seed, rule.name)
        run(batch, rule, num_blocks, result)
        result.recomputed = result.computed - least.computed
        yield result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="*", default=[11, 12, 13, 14])
    parser.add_argument("--workloads", nargs="*", default=list(WORKLOADS))
    parser.add_argument("--rules", nargs="*", default=[rule.name for rule in RULES])
    parser.add_argument("--num-requests", type=int)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    rules = tuple(rule for rule in RULES if rule.name in arguments.rules)
    found = []
    for name in arguments.workloads:
        for seed in arguments.seeds:
            for result in runs_of(name, seed, rules, arguments.num_requests):
                found.append(asdict(result))
                print(json.dumps(found[-1]), flush=True)
    (arguments.out / "frontier.json").write_text(json.dumps(found, indent=1) + "\n")
    plot(found, arguments.out / "frontier.png")


def plot(found: list[dict[str, Any]], path: Path) -> None:
    """Steps against tokens computed again, a picture for each workload and seed."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    places = list(dict.fromkeys((row["workload"], row["seed"]) for row in found))
    figure, axes = pyplot.subplots(1, len(places), figsize=(4 * len(places), 3.4), squeeze=False)
    for (workload, seed), axis in zip(places, axes[0], strict=True):
        rows = [row for row in found if (row["workload"], row["seed"]) == (workload, seed)]
        constants = [row for row in rows if row["rule"].startswith("watermark")]
        axis.plot(*_points(constants), "o-", color="0.5", label="watermarks")
        others = [row for row in rows if row not in constants]
        axis.plot(*_points(others), "D", color="C3", label="ours")
        for row in constants:
            name = row["rule"].removeprefix("watermark ")
            axis.annotate(name, (row["steps"], row["recomputed"]), fontsize=7)
        axis.set(title=f"{workload}, seed {seed}", xlabel="steps", ylabel="tokens computed again")
        axis.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _points(rows: list[dict[str, Any]]) -> tuple[list[int], list[int]]:
    return [row["steps"] for row in rows], [row["recomputed"] for row in rows]


if __name__ == "__main__":
    main()
