# SPDX-License-Identifier: Apache-2.0
"""The set-ups of the policy tables, and how their columns are compared."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vllm_batchllm.simulate.graphs import MODES

Results = dict[tuple[str, str, str], dict[str, Any]]
"""Results by set-up, workload and column."""

SORTED, TUNED, OURS, PAPER = "sorted", "tuned", "batchllm", "paper"
NUM_LONG = 5
"""`long-16000` has so many times fewer requests."""


@dataclass(frozen=True, slots=True)
class Platform:
    """A device with a model."""

    name: str
    device: str
    model: str
    weight_bits: float = 16


PLATFORMS = (
    Platform("A100-80GB, 8B", "A100-80GB", "Llama-3.1-8B"),
    Platform("H100-80GB, 8B", "H100-80GB", "Llama-3.1-8B"),
    Platform("H100-80GB, 70B of 4 bits", "H100-80GB", "Llama-3.1-70B", 4),
)


def num_requests_of(workload: str, num_requests: int) -> int:
    """Requests of `workload` where the others have `num_requests`."""
    return num_requests // NUM_LONG if workload == "long-16000" else num_requests


def speed_over_sorted(results: Results, key: tuple[str, str, str]) -> float:
    """Makespan of sorted stock / makespan of the column."""
    platform, workload, _ = key
    base = results[platform, workload, SORTED]["metrics"]["makespan_s"]
    return float(base / results[key]["metrics"]["makespan_s"])


def over_tuned(results: Results, platform: str, workload: str) -> float:
    """Makespan of tuned stock, the strongest of vLLM's own, / ours."""
    times = [results[platform, workload, arm]["metrics"]["makespan_s"] for arm in (TUNED, OURS)]
    return float(times[0] / times[1])


def graph_shares(result: dict[str, Any]) -> str:
    """Steps in percent that can replay a full graph, one in pieces, and none."""
    modes = result["graph_modes"]
    total = max(sum(modes.values()), 1)
    return " / ".join(f"{100 * modes.get(mode, 0) / total:.0f}" for mode in MODES)


def bound_over_sorted(results: Results, platform: str, workload: str) -> float:
    """Makespan of sorted stock / the lower bound of the set-up with most requests at once."""
    base = results[platform, workload, SORTED]
    return float(base["metrics"]["makespan_s"] / results[platform, workload, OURS]["bound_s"])


def geometric_mean(values: Sequence[float]) -> float:
    """Of ratios."""
    return math.exp(sum(map(math.log, values)) / len(values))
