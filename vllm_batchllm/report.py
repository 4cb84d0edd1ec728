# SPDX-License-Identifier: Apache-2.0
"""What a batch cost and what was saved: the typed report of ``LLM.report()``."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from vllm_batchllm.schedule.counters import ScheduleCounters


@dataclass(frozen=True, slots=True)
class BatchReport:
    """One finished batch.

    Ratios are shares of ``prompt_tokens``, the prompt tokens of the requests that were computed
    (duplicates answered without computing are counted in ``num_duplicates`` only).

    saved_ratio: 1 - computed prompt tokens / prompt tokens; recomputation after a preemption
        counts as computed.
    admission_saved_ratio: share found in the cache when requests were first admitted.
    optimal_saved_ratio: the best possible for this batch on its own, at block granularity, with
        unlimited memory. Blocks left by an earlier batch can lift ``saved_ratio`` above it.
    steps, tokens_per_step: engine steps, and prompt plus output tokens per step.
    plan_s: seconds spent on ordering requests, inside ``makespan_s``: the time from the first
        step to the last output.
    """

    num_requests: int
    num_failed: int
    num_duplicates: int
    prompt_tokens: int
    output_tokens: int
    computed_prompt_tokens: int
    saved_ratio: float
    admission_saved_ratio: float
    optimal_saved_ratio: float
    preemptions: int
    steps: int
    tokens_per_step: float
    plan_s: float
    makespan_s: float

    @property
    def reuse_efficiency(self) -> float:
        """saved_ratio / optimal_saved_ratio; 1.0 where nothing can be saved."""
        if not self.optimal_saved_ratio:
            return 1.0
        return self.saved_ratio / self.optimal_saved_ratio

    @property
    def plan_share(self) -> float:
        """Share of the makespan spent on planning."""
        return self.plan_s / self.makespan_s if self.makespan_s else 0.0

    def to_dict(self) -> dict[str, Any]:
        """All figures as plain JSON values."""
        derived = {"reuse_efficiency": self.reuse_efficiency, "plan_share": self.plan_share}
        return asdict(self) | derived

    def __str__(self) -> str:
        console = Console(width=72, force_terminal=False, no_color=True)
        with console.capture() as capture:
            console.print(self._table())
        return capture.get().rstrip()

    def _table(self) -> Table:
        table = Table(title="batchllm report", show_header=False, title_justify="left")
        table.add_column(justify="left")
        table.add_column(justify="right")
        requests = f"{self.num_requests:,}"
        if self.num_duplicates:
            requests += f" ({self.num_duplicates:,} duplicates answered once)"
        rows = {
            "requests": requests,
            "failed": f"{self.num_failed:,}",
            "prompt tokens": f"{self.prompt_tokens:,}",
            "output tokens": f"{self.output_tokens:,}",
            "saved": f"{self.saved_ratio:.1%} (possible: {self.optimal_saved_ratio:.1%})",
            "reuse efficiency": f"{self.reuse_efficiency:.4f}",
            "preemptions": f"{self.preemptions:,}",
            "steps": f"{self.steps:,}",
            "tokens per step": f"{self.tokens_per_step:,.0f}",
            "planning": f"{self.plan_s:.3f} s ({self.plan_share:.3%})",
            "makespan": f"{self.makespan_s:.2f} s",
        }
        for name, value in rows.items():
            table.add_row(name, value)
        return table


def make_report(
    counters: ScheduleCounters,
    *,
    optimal_saved_tokens: int,
    num_requests: int,
    num_failed: int,
    num_duplicates: int,
    output_tokens: int,
    makespan_s: float,
) -> BatchReport:
    """Put the scheduler's counters and the batch's books together."""
    tokens = counters.prompt_tokens
    return BatchReport(
        num_requests=num_requests,
        num_failed=num_failed,
        num_duplicates=num_duplicates,
        prompt_tokens=tokens,
        output_tokens=output_tokens,
        computed_prompt_tokens=counters.computed_prompt_tokens,
        saved_ratio=1 - counters.computed_prompt_tokens / tokens if tokens else 0.0,
        admission_saved_ratio=counters.admission_hit_tokens / tokens if tokens else 0.0,
        optimal_saved_ratio=optimal_saved_tokens / tokens if tokens else 0.0,
        preemptions=counters.num_preemptions,
        steps=counters.num_steps,
        tokens_per_step=(
            counters.num_scheduled_tokens / counters.num_steps if counters.num_steps else 0.0
        ),
        plan_s=counters.plan_s,
        makespan_s=makespan_s,
    )
