# SPDX-License-Identifier: Apache-2.0
"""What the time of a sample says of the whole."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vllm_batchllm.simulate.run import SimulatedRun


def whole_s(run: SimulatedRun, workload: Mapping[str, Any]) -> float | None:
    """About the makespan of all requests of which the batch that ran is a sample, seconds; None if it is no sample.

    The time until nobody waits grows with the number of requests; that in which the last ones end does not.
    How far this is off was measured (docs/plan.md).

    Args:
        workload: as ``suite.describe`` tells it.
    """
    num_whole = workload.get("sample_of")
    if num_whole is None or run.pool is not None:
        return None
    filled_s = run.metrics.makespan_s - run.drain_s
    return filled_s * int(num_whole) / int(workload["num_requests"]) + run.drain_s
