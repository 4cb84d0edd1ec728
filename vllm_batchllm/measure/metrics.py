# SPDX-License-Identifier: Apache-2.0
"""The figures of one run, of one arm, and of an A/B: plain values and the sums over them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from vllm_batchllm.measure.recorder import StepRecord


@dataclass(frozen=True, slots=True)
class RunMetrics:
    """One run of one arm.

    Ratios of tokens refer to `prompt_tokens`. Two savings are told apart: `saved_ratio` counts
    recomputation after preemptions as computed, `admission_saved_ratio` counts only what each
    request found in the cache when it was first admitted. `reuse_efficiency` is the former over
    `optimal_saved_ratio`, `admission_efficiency` the latter; 1.0 where nothing can be saved.
    `cpu_s` is the processor time of all threads, which other users of the machine move less than
    the makespan. `step_tokens` is the profile: tokens of each step; `step_kv_blocks` the KV blocks
    held after it, empty in older records.
    """

    arm: str
    round: int
    num_requests: int
    makespan_s: float
    cpu_s: float
    prompt_tokens: int
    output_tokens: int
    computed_prompt_tokens: int
    saved_ratio: float
    admission_saved_ratio: float
    optimal_saved_ratio: float
    reuse_efficiency: float
    admission_efficiency: float
    preemptions: int
    steps: int
    tokens_per_step: float
    kv_peak_blocks: int
    running_peak: int
    requests_per_s: float
    tokens_per_s: float
    plan_s: float
    plan_share: float
    step_tokens: tuple[int, ...] = ()
    step_kv_blocks: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class RunInputs:
    """What is known of a batch before it runs; tokens."""

    num_requests: int
    prompt_tokens: int
    output_tokens: int
    optimal_saved_tokens: int


def run_metrics(
    arm: str,
    round_index: int,
    inputs: RunInputs,
    record: StepRecord,
    makespan_s: float,
    cpu_s: float = 0.0,
) -> RunMetrics:
    """Put one run's counts into relation to each other."""
    prompt = inputs.prompt_tokens
    saved = 1 - record.computed_prompt_tokens / prompt
    admission_saved = record.admission_hit_tokens / prompt
    optimal = inputs.optimal_saved_tokens / prompt
    return RunMetrics(
        arm=arm,
        round=round_index,
        num_requests=inputs.num_requests,
        makespan_s=makespan_s,
        cpu_s=cpu_s,
        prompt_tokens=prompt,
        output_tokens=inputs.output_tokens,
        computed_prompt_tokens=record.computed_prompt_tokens,
        saved_ratio=saved,
        admission_saved_ratio=admission_saved,
        optimal_saved_ratio=optimal,
        reuse_efficiency=saved / optimal if optimal else 1.0,
        admission_efficiency=admission_saved / optimal if optimal else 1.0,
        preemptions=record.preemptions,
        steps=record.steps,
        tokens_per_step=sum(record.step_tokens) / max(1, record.steps),
        kv_peak_blocks=record.kv_peak_blocks,
        running_peak=record.running_peak,
        requests_per_s=inputs.num_requests / makespan_s,
        tokens_per_s=(prompt + inputs.output_tokens) / makespan_s,
        plan_s=record.plan_s,
        plan_share=record.plan_s / makespan_s,
        step_tokens=tuple(record.step_tokens),
        step_kv_blocks=tuple(record.step_kv_blocks),
    )


@dataclass(frozen=True, slots=True)
class PairedRatio:
    """makespan of one arm / makespan of another, round by round: above 1, the other is faster."""

    slower: str
    faster: str
    ratios: tuple[float, ...]
    median: float
    min: float
    max: float

    @property
    def shows_difference(self) -> bool:
        """Whether the effect is larger than the spread of the rounds; of one round nobody can say."""
        return len(self.ratios) < 2 or self.max - self.min < abs(self.median - 1)


def paired_ratio(runs: Sequence[RunMetrics], slower: str, faster: str) -> PairedRatio:
    """Pair the runs of two arms by round.

    Raises:
        ValueError: there is no round in which both arms ran.
    """
    first = {run.round: run.makespan_s for run in runs if run.arm == slower}
    second = {run.round: run.makespan_s for run in runs if run.arm == faster}
    ratios = tuple(first[r] / second[r] for r in sorted(first.keys() & second.keys()))
    if not ratios:
        raise ValueError(f"no round holds runs of both {slower!r} and {faster!r}")
    return PairedRatio(slower, faster, ratios, median(ratios), min(ratios), max(ratios))


#: Figures of which an arm's summary holds the median over its rounds.
SUMMARY_FIELDS = (
    "makespan_s",
    "cpu_s",
    "computed_prompt_tokens",
    "saved_ratio",
    "admission_saved_ratio",
    "optimal_saved_ratio",
    "reuse_efficiency",
    "admission_efficiency",
    "preemptions",
    "steps",
    "tokens_per_step",
    "kv_peak_blocks",
    "running_peak",
    "requests_per_s",
    "tokens_per_s",
    "plan_s",
    "plan_share",
)


def arm_medians(runs: Sequence[RunMetrics], arm: str) -> dict[str, float]:
    """Median of each of `SUMMARY_FIELDS` over the arm's rounds.

    Raises:
        ValueError: the arm has no runs.
    """
    own = [run for run in runs if run.arm == arm]
    if not own:
        raise ValueError(f"no runs of arm {arm!r}")
    return {name: median(getattr(run, name) for run in own) for name in SUMMARY_FIELDS}


@dataclass(frozen=True, slots=True)
class Difference:
    """A request whose tokens differ from the reference, and what became of it.

    `logprob_gap` is the distance of the two tokens' log-probabilities if they are the two best
    at that position, else None; `resolved` says that the gap makes it a match.
    """

    arm: str
    round: int
    request: int
    position: int
    expected: int | None
    got: int | None
    logprob_gap: float | None
    resolved: bool


@dataclass(frozen=True, slots=True)
class OutputMatch:
    """How many of an arm's outputs, over all rounds, equal those of the reference."""

    arm: str
    num_compared: int
    num_equal: int
    num_near_ties: int
    differences: tuple[Difference, ...] = ()

    @property
    def ratio(self) -> float:
        """Share of outputs that are equal or differ by a shown tie."""
        return (self.num_equal + self.num_near_ties) / max(1, self.num_compared)

    @property
    def unresolved(self) -> tuple[Difference, ...]:
        return tuple(item for item in self.differences if not item.resolved)


@dataclass(frozen=True, slots=True)
class ABResult:
    """One workload, all arms, all rounds."""

    workload: Mapping[str, Any]
    engine: Mapping[str, Any]
    arms: tuple[str, ...]
    runs: tuple[RunMetrics, ...]
    matches: tuple[OutputMatch, ...] = field(default=())

    def medians(self, arm: str) -> dict[str, float]:
        """See `arm_medians`."""
        return arm_medians(self.runs, arm)

    def ratio(self, slower: str, faster: str) -> PairedRatio:
        """See `paired_ratio`."""
        return paired_ratio(self.runs, slower, faster)

    def ratios(self) -> list[PairedRatio]:
        """Every other arm against batchllm, or against the last arm if it did not run."""
        faster = "batchllm" if "batchllm" in self.arms else self.arms[-1]
        return [self.ratio(arm, faster) for arm in self.arms if arm != faster]

    def match(self, arm: str) -> OutputMatch:
        """The arm's comparison with stock.

        Raises:
            ValueError: outputs of the arm were not compared.
        """
        for item in self.matches:
            if item.arm == arm:
                return item
        raise ValueError(f"outputs of arm {arm!r} were not compared")
