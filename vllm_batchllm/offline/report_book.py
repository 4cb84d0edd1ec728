# SPDX-License-Identifier: Apache-2.0
"""Reports of the batches of one ``LLM``: of the last one, and of all together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import zip_longest
from typing import Any

from vllm_batchllm.offline.report import BatchReport

_SUMS = (
    "num_requests",
    "num_failed",
    "num_duplicates",
    "prompt_tokens",
    "output_tokens",
    "computed_prompt_tokens",
    "preemptions",
    "steps",
    "plan_s",
    "makespan_s",
    "num_unshared",
    "refused_memory",
    "refused_peak",
    "refused_pace",
    "num_garbage_blocks",
    "num_needed_lost",
    "num_warm_tokens",
    "num_restarts",
    "num_batches",
)
_OVER_PROMPT_TOKENS = ("saved_ratio", "admission_saved_ratio", "optimal_saved_ratio")
_OVER_STEPS = ("tokens_per_step", "kv_mean_ratio")
_LARGEST = ("kv_peak_ratio", "num_replicas")


class ReportBook:
    """Makes reports when they are asked for, or when the next batch begins."""

    def __init__(self) -> None:
        self._make: Callable[[], BatchReport] | None = None
        self._last: BatchReport | None = None
        self._before: BatchReport | None = None
        """All batches but the last, together."""
        self._failure: Exception | None = None
        """Why the report of one of them could not be made: no batch may fail for the report of another."""

    def begin(self) -> None:
        """Another batch begins: what the report of the last one is made from may change."""
        self._settle()

    def finished(self, make: Callable[[], BatchReport]) -> None:
        """A batch has finished; ``make`` makes its report."""
        if self._settle():
            self._before = self.total()
        self._make, self._last = make, None

    def _settle(self) -> bool:
        """Make the report of the last batch, if there is one. Whether all so far could be made."""
        if self._make is None or self._failure is not None:
            return False
        try:
            self.last()
        except Exception as error:  # noqa: BLE001 - prompts of any content
            self._failure = error
        return self._failure is None

    def last(self) -> BatchReport:
        """Of the last finished batch. Raises RuntimeError if none has run."""
        if self._make is None:
            raise RuntimeError("no batch has run yet; call generate() or chat() first")
        if self._last is None:
            self._last = self._make()
        return self._last

    def total(self) -> BatchReport:
        """Of all finished batches. Raises RuntimeError if none has run, or no report could be made of one."""
        if self._failure is not None:
            raise RuntimeError(
                f"no report can be made of all batches: that of an earlier one failed ({self._failure}); ask for the last one"
            ) from self._failure
        last = self.last()
        return last if self._before is None else together(self._before, last)


def together(first: BatchReport, second: BatchReport) -> BatchReport:
    """Two reports of different batches as one: sums, and ratios over the sums."""

    def mean(name: str, over: str) -> float:
        weights = getattr(first, over), getattr(second, over)
        total = sum(weights)
        parts = (getattr(first, name), getattr(second, name))
        return sum(w * p for w, p in zip(weights, parts, strict=True)) / total if total else 0.0

    levels = zip_longest(first.hit_tokens_by_level, second.hit_tokens_by_level, fillvalue=0)
    figures: dict[str, Any] = {
        **{name: getattr(first, name) + getattr(second, name) for name in _SUMS},
        **{name: mean(name, "prompt_tokens") for name in _OVER_PROMPT_TOKENS},
        **{name: mean(name, "steps") for name in _OVER_STEPS},
        **{name: max(getattr(first, name), getattr(second, name)) for name in _LARGEST},
    }
    return replace(first, hit_tokens_by_level=tuple(map(sum, levels)), **figures)
