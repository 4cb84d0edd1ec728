# SPDX-License-Identifier: Apache-2.0
"""What a benchmark tells of itself while it runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from vllm_batchllm.measure.metrics import RunMetrics


@dataclass(frozen=True, slots=True)
class Pace:
    """How far the engines that run are: tokens of all of them, done and in all, and the seconds since they began."""

    tokens_done: int
    tokens: int
    spent_s: float


@dataclass(frozen=True, slots=True)
class Progress:
    """What `run_ab` is about to do (`run` and `pace` are None), how far it is (`pace`), or what it has just done (`run`).

    num_done, num_runs: measured runs. num_sharing: those that the pace is of; 0 while engines warm up.
    """

    workload: str
    stage: str
    num_done: int
    num_runs: int
    run: RunMetrics | None = None
    pace: Pace | None = None
    num_sharing: int = 0


OnProgress = Callable[[Progress], None]
