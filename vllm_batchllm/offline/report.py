# SPDX-License-Identifier: Apache-2.0
"""What a batch cost and what was saved: the typed report of ``LLM.report()``."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from vllm_batchllm.stats.counters import ScheduleCounters


@dataclass(frozen=True, slots=True)
class BatchReport:
    """One finished batch.

    Ratios are shares of ``prompt_tokens``, the prompt tokens of the requests that were computed
    (duplicates answered without computing are counted in ``num_duplicates`` only).

    saved_ratio: 1 - computed prompt tokens / prompt tokens; recomputation after a preemption
        counts as computed.
    admission_saved_ratio: share found in the cache when requests were first admitted.
    optimal_saved_ratio: the best possible for this batch on its own, at block granularity, with
        unlimited memory; or what was saved, if blocks of an earlier batch have made it more. num_warm_tokens: by how many
        prompt tokens they have.
    num_unshared: requests for which vLLM reads nothing from the cache, because they ask for prompt
        log-probabilities without a start behind which they are wanted (``prompt_logprobs_start``), or for
        just that; counted in ``num_requests``, and nothing is possible for them.
    steps, tokens_per_step: engine steps, and prompt plus output tokens per step.
    plan_s: seconds spent on ordering requests, inside ``makespan_s``: the time from the first
        step to the last output.
    kv_peak_ratio, kv_mean_ratio: share of the KV blocks that requests held, at most in any step
        since the engine started, and on average over the steps of this batch.
    refused_memory, refused_peak, refused_pace: steps in which admissions ended because there was
        no room, because the future peak was too high, or to keep ages mixed.
    num_garbage_blocks: cached blocks given up that nobody waited for. num_needed_lost: those
        given up although somebody did, which should not happen.
    hit_tokens_by_level: prompt tokens found in the cache by level of the prefix tree, the widest
        shared prefix first; the last entry holds all deeper levels.
    num_replicas: engines that shared the batch. num_restarts: of engines that died meanwhile, whose work until then is in no
        sum here. num_batches: that the report covers.
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
    num_unshared: int = 0
    kv_peak_ratio: float = 0.0
    kv_mean_ratio: float = 0.0
    refused_memory: int = 0
    refused_peak: int = 0
    refused_pace: int = 0
    num_garbage_blocks: int = 0
    num_needed_lost: int = 0
    hit_tokens_by_level: tuple[int, ...] = ()
    num_replicas: int = 1
    num_restarts: int = 0
    num_warm_tokens: int = 0
    num_batches: int = 1

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
        derived = {
            "reuse_efficiency": self.reuse_efficiency,
            "plan_share": self.plan_share,
            "hit_tokens_by_level": list(self.hit_tokens_by_level),
        }
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
        for name, value in (self._batch_rows() | self._memory_rows()).items():
            table.add_row(name, value)
        return table

    def _batch_rows(self) -> dict[str, str]:
        requests = f"{self.num_requests:,}"
        if self.num_duplicates:
            requests += f" ({self.num_duplicates:,} duplicates answered once)"
        if self.num_unshared:
            requests += f" ({self.num_unshared:,} read no cache)"
        engines = f"{self.num_replicas} ({self.num_restarts} restarts)"
        return {
            **({"batches": f"{self.num_batches:,}"} if self.num_batches > 1 else {}),
            **({"engines": engines} if self.num_replicas > 1 else {}),
            "requests": requests,
            "failed": f"{self.num_failed:,}",
            "prompt tokens": f"{self.prompt_tokens:,}",
            "output tokens": f"{self.output_tokens:,}",
            "saved": f"{self.saved_ratio:.1%} (possible: {self.optimal_saved_ratio:.1%})",
            **self._warm_row(),
            "reuse efficiency": f"{self.reuse_efficiency:.4f}",
            "preemptions": f"{self.preemptions:,}",
            "steps": f"{self.steps:,}",
            "tokens per step": f"{self.tokens_per_step:,.0f}",
            "planning": f"{self.plan_s:.3f} s ({self.plan_share:.3%})",
            "makespan": f"{self.makespan_s:.2f} s",
        }

    def _warm_row(self) -> dict[str, str]:
        """Why more was possible than this batch shares, where it was."""
        if not self.num_warm_tokens or not self.prompt_tokens:
            return {}
        return {"of it left by earlier batches": f"{self.num_warm_tokens / self.prompt_tokens:.1%}"}

    def _memory_rows(self) -> dict[str, str]:
        """Rows on memory; those with nothing to say are left out."""
        rows = {}
        if any(self.hit_tokens_by_level) and self.prompt_tokens:
            shares = [f"{tokens / self.prompt_tokens:.1%}" for tokens in self._levels_hit()]
            rows["hits by level"] = " / ".join(shares)
        if self.kv_peak_ratio:
            rows["KV blocks held"] = f"peak {self.kv_peak_ratio:.1%}, mean {self.kv_mean_ratio:.1%}"
        if self.refused_memory or self.refused_peak or self.refused_pace:
            rows["steps that refused"] = (
                f"memory {self.refused_memory:,}, future peak {self.refused_peak:,}, "
                f"pace {self.refused_pace:,}"
            )
        if self.num_garbage_blocks or self.num_needed_lost:
            rows["blocks given up"] = (
                f"{self.num_garbage_blocks:,} garbage, {self.num_needed_lost:,} still needed"
            )
        return rows

    def _levels_hit(self) -> tuple[int, ...]:
        """Hit tokens by level, down to the deepest level that has any."""
        hit = [level for level, tokens in enumerate(self.hit_tokens_by_level) if tokens]
        return self.hit_tokens_by_level[: hit[-1] + 1] if hit else ()


def make_report(
    counters: ScheduleCounters,
    *,
    optimal_saved_tokens: int,
    num_requests: int,
    num_failed: int,
    num_duplicates: int,
    output_tokens: int,
    makespan_s: float,
    num_unshared: int = 0,
) -> BatchReport:
    """Put the scheduler's counters and the batch's books together."""
    tokens = counters.prompt_tokens
    saved_tokens = tokens - counters.computed_prompt_tokens
    return BatchReport(
        num_requests=num_requests,
        num_failed=num_failed,
        num_duplicates=num_duplicates,
        prompt_tokens=tokens,
        output_tokens=output_tokens,
        computed_prompt_tokens=counters.computed_prompt_tokens,
        num_unshared=num_unshared,
        saved_ratio=_ratio(saved_tokens, tokens),
        admission_saved_ratio=_ratio(counters.admission_hit_tokens, tokens),
        optimal_saved_ratio=_ratio(max(optimal_saved_tokens, saved_tokens), tokens),
        num_warm_tokens=max(saved_tokens - optimal_saved_tokens, 0),
        preemptions=counters.num_preemptions,
        steps=counters.num_steps,
        tokens_per_step=_ratio(counters.num_scheduled_tokens, counters.num_steps),
        plan_s=counters.plan_s,
        makespan_s=makespan_s,
        **_memory_figures(counters),
    )


def _memory_figures(counters: ScheduleCounters) -> dict[str, Any]:
    """What the counters say on memory and admission."""
    held_mean = _ratio(counters.held_blocks, counters.num_memory_steps)
    return {
        "kv_peak_ratio": _ratio(counters.held_blocks_peak, counters.kv_blocks),
        "kv_mean_ratio": _ratio(held_mean, counters.kv_blocks),
        "refused_memory": counters.refused_memory,
        "refused_peak": counters.refused_peak,
        "refused_pace": counters.refused_pace,
        "num_garbage_blocks": counters.num_garbage_blocks,
        "num_needed_lost": counters.num_needed_lost,
        "hit_tokens_by_level": tuple(counters.hit_tokens_by_level),
    }


def _ratio(part: float, whole: float) -> float:
    """part / whole; 0.0 where there is no whole."""
    return part / whole if whole else 0.0
