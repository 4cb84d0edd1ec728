# SPDX-License-Identifier: Apache-2.0
"""What the time of a sample says of the whole, and how sure that is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from vllm_batchllm.simulate.run import SimulatedRun

DRAWN_RATIO, DRAWN_REQUESTS = 0.035, 3000
"""Error of samples of so many requests because other groups might have been drawn; in others it falls with the root of their number.
Measured: benchmarks/results/plan/sample_error.md."""


class WholeTime(NamedTuple):
    """seconds: about, of all requests. error_ratio: by which it may be off, up or down."""

    seconds: float
    error_ratio: float


def whole_time(run: SimulatedRun, workload: Mapping[str, Any]) -> WholeTime | None:
    """Makespan of all requests of which the batch that ran is a sample; None if it is no sample, or ran on several replicas.

    The time until nobody waits grows with the number of requests. That in which the last ones end does not, and is half full
    in the mean: half of it counts as the one, half as the other, and the error holds both extremes. In the order of the file stock
    finds more of a sample in its cache than of the whole, so its time is the least that it can be.

    Args:
        workload: as ``suite.describe`` tells it.
    """
    num_whole = workload.get("sample_of")
    if num_whole is None or run.pool is not None:
        return None
    num_requests = int(workload["num_requests"])
    times = int(num_whole) / num_requests
    seconds = (run.metrics.makespan_s - run.drain_s / 2) * times + run.drain_s / 2
    of_end = run.drain_s / 2 * (times - 1) / seconds
    return WholeTime(seconds, of_end + DRAWN_RATIO * (DRAWN_REQUESTS / num_requests) ** 0.5)
