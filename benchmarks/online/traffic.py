# SPDX-License-Identifier: Apache-2.0
"""What the benchmarks of this folder have in common: traffic, a simulated engine, and what a run comes to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from vllm_batchllm.simulate.arms import OURS, STOCK, find_arm
from vllm_batchllm.simulate.cost_model import CostModel, StepTime, StepWork
from vllm_batchllm.simulate.graphs import Agreed, Mode
from vllm_batchllm.simulate.online import OnlineRun, run_online
from vllm_batchllm.simulate.setup import SetupOptions, make_setup
from vllm_batchllm.workloads.batch import Batch

DEVICE, MODEL = "H100-80GB", "Llama-3.1-8B"
VOCABULARY = 100_000
LONGEST = 131_072
"""Tokens that the model takes, prompt and output together."""


@dataclass(frozen=True, slots=True)
class Lengths:
    """Of one kind of request, drawn evenly, both ends included; tokens."""

    prompt: tuple[int, int]
    output: tuple[int, int]

    def draw(self, random: np.random.Generator, num: int) -> list[tuple[int, int]]:
        """(prompt, output) of so many requests."""
        prompts = random.integers(self.prompt[0], self.prompt[1] + 1, num)
        outputs = random.integers(self.output[0], self.output[1] + 1, num)
        return [(int(p), int(o)) for p, o in zip(prompts, outputs, strict=True)]


LONG = Lengths((32_768, LONGEST - 300), (100, 300))


def make_batch(name: str, lengths: Sequence[tuple[int, int]], seed: int) -> Batch:
    """Requests of these (prompt, output) tokens that have nothing in common."""
    random = np.random.default_rng(seed)
    prompts = [random.integers(3, VOCABULARY, prompt).tolist() for prompt, _ in lengths]
    return Batch(name, prompts, [output for _, output in lengths], seed=seed)


@dataclass(slots=True)
class RecordedCosts:
    """Costs that remember what each step did and took."""

    costs: CostModel
    steps: list[tuple[bool, float]] = field(default_factory=list)
    """Whether it had prompt tokens, and its seconds."""

    @property
    def reads_shared_kv_once(self) -> bool:
        """As the costs say."""
        return self.costs.reads_shared_kv_once

    def mode_of(self, work: StepWork) -> Mode | None:
        """As the costs say."""
        return self.costs.mode_of(work)

    def agreed(self, works: Sequence[StepWork]) -> Agreed | None:
        """As the costs say."""
        return self.costs.agreed(works)

    def time_of(self, work: StepWork, together: Agreed | None = None) -> StepTime:
        """As the costs say."""
        time = self.costs.time_of(work, together)
        self.steps.append((work.prefill_pairs > 0, time.total_s))
        return time

    def decode_only_s(self) -> float:
        """Median time of the steps without prompt tokens."""
        return float(np.median([spent_s for has_prompts, spent_s in self.steps if not has_prompts]))

    def over_ratio(self, target_s: float) -> float:
        """Share of the steps that took longer."""
        return sum(spent_s > target_s for _, spent_s in self.steps) / len(self.steps)


@dataclass(frozen=True, slots=True)
class Served:
    """A run and what its steps took."""

    run: OnlineRun
    steps: RecordedCosts

    def figures(self) -> dict[str, Any]:
        """Plain values for the record."""
        found = self.run.latencies
        assert found.tbt is not None
        counters = self.run.counters
        return {
            "requests_per_s": self.run.metrics.requests_per_s,
            "makespan_s": self.run.metrics.makespan_s,
            "steps": self.run.metrics.steps,
            "running_peak": self.run.metrics.running_peak,
            "preemptions": self.run.metrics.preemptions,
            "tbt": asdict(found.tbt),
            "ttft": asdict(found.ttft),
            "num_steps_over_target": counters.get("num_steps_over_target"),
            "num_steps_beyond_target": counters.get("num_steps_beyond_target"),
        }


def serve(
    batch: Batch,
    arrivals_s: Sequence[float],
    options: Mapping[str, Any] | None = None,
    priorities: Sequence[int] | None = None,
    **sizes: int | None,
) -> Served:
    """Serve `batch` on the simulated engine.

    Args:
        options: of our scheduler; None for vLLM's own.
        priorities: None for "fcfs".
        **sizes: `max_num_batched_tokens` and `max_num_seqs`, None for the defaults. Smaller steps leave more memory for KV.
    """
    setup = make_setup(batch, SetupOptions(device=DEVICE, model=MODEL, **sizes))  # type: ignore[arg-type]
    arm = find_arm(STOCK) if options is None else find_arm(OURS, options)
    costs = RecordedCosts(setup.costs)
    run = run_online(batch, arrivals_s, arm, setup.sizes, costs, priorities, optimal_saved=0)
    return Served(run, costs)


def milliseconds(value_s: float) -> str:
    """For tables."""
    return f"{1e3 * value_s:,.1f}"
