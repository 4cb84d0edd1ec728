# SPDX-License-Identifier: Apache-2.0
"""One report of a batch that several engines have computed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from vllm_batchllm.offline.report import BatchReport, make_report
from vllm_batchllm.prefix.best_saving import optimal_saved_tokens
from vllm_batchllm.replicas.engine_worker import BatchBooks
from vllm_batchllm.stats.counters import ScheduleCounters

_THE_SAME = ("hash_block_size", "max_tokens_held")


def merged_counters(books: Sequence[BatchBooks]) -> ScheduleCounters:
    """Sums over engines; what belongs to each alone is the first one's."""
    total = ScheduleCounters()
    for number, one in enumerate(books):
        for name, value in one.counters.items():
            before = getattr(total, name)
            if name in _THE_SAME:
                setattr(total, name, before if number else value)
            elif isinstance(value, list):
                setattr(total, name, [a + b for a, b in zip(before, value, strict=True)])
            else:
                setattr(total, name, before + value)
    return total


def merged_report(
    books: Sequence[BatchBooks],
    *,
    num_requests: int,
    num_failed: int,
    makespan_s: float,
    num_replicas: int,
    num_restarts: int,
) -> BatchReport:
    """The report of a batch; what engines did that have died meanwhile is in none of its sums.

    The best possible saving is that of one engine with unlimited memory, so what several compute twice counts against them.

    """
    counters = merged_counters(books)
    together: list[list[Any]] = [[], [], []]
    for one in books:
        for all_of_them, part in zip(
            together, (one.tokens, one.namespaces, one.limits), strict=True
        ):
            all_of_them.extend(part)
    tokens, namespaces, limits = together
    report = make_report(
        counters,
        optimal_saved_tokens=optimal_saved_tokens(
            tokens, int(counters.hash_block_size), namespaces, limits
        ),
        num_requests=num_requests,
        num_failed=num_failed,
        num_duplicates=sum(one.num_duplicates for one in books),
        output_tokens=sum(one.output_tokens for one in books),
        makespan_s=makespan_s,
        num_unshared=sum(one.num_unshared for one in books),
    )
    return replace(report, num_replicas=num_replicas, num_restarts=num_restarts)
