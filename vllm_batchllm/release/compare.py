# SPDX-License-Identifier: Apache-2.0
"""The best release policy beside the rules that servers use."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vllm_batchllm.admission.release_policy import ReleasePolicy, always, greedy, wait_for
from vllm_batchllm.admission.release_server import BatchServer
from vllm_batchllm.admission.release_simulation import TimeOut, simulate_release
from vllm_batchllm.admission.release_solver import solve

FIXED_SIZES = (8, 16, 32)
"""Batch sizes that are held against the best policy, as far as the largest batch goes."""

TIME_OUTS = (0.25, 0.5, 1.0, 2.0, 4.0)
"""Time-outs that are tried, in service times of the largest batch."""

_TRIAL_ARRIVALS, _FINAL_ARRIVALS = 20_000, 200_000
_TRIAL_BATCHES, _FINAL_BATCHES = 200, 1_000
"""The least of each; large batches need more arrivals."""


@dataclass(frozen=True, slots=True)
class Row:
    """A rule and what it comes to; infinite where it does not keep up. ``is_simulated``: else exact."""

    name: str
    cost: float
    mean_response_ms: float
    power_w: float
    is_simulated: bool = False


@dataclass(frozen=True, slots=True)
class Comparison:
    """The best policy of a server, and the rules beside it."""

    server: BatchServer
    policy: ReleasePolicy
    rows: Sequence[Row]


def compare(
    server: BatchServer,
    num_states: int | None = None,
    overflow_cost: float | None = None,
    seed: int = 0,
) -> Comparison:
    """Solve, and evaluate greedy service, fixed batch sizes and time-outs.

    Raises:
        ValueError: as `solve`.
    """
    policy = solve(server, num_states, overflow_cost)
    rows = [_row("best", policy), _row("greedy", greedy(server))]
    sizes = [size for size in FIXED_SIZES if size in server.batch_sizes and size > 1]
    rows += [_row(f"batches of {size}", always(server, size)) for size in sizes]
    rows += [_row(f"{size} or more", wait_for(server, size)) for size in sizes]
    return Comparison(server, policy, [*rows, _best_time_out(server, seed)])


def _row(name: str, policy: ReleasePolicy) -> Row:
    return Row(name, policy.cost, policy.mean_response_ms, policy.power_w)


def _best_time_out(server: BatchServer, seed: int) -> Row:
    """The best of short trials, on other arrivals and for longer."""
    sizes = {size for size in (4, *FIXED_SIZES, server.max_batch) if size in server.batch_sizes}
    rules = [
        TimeOut(size, ratio * server.service_ms[-1])
        for size in sorted(sizes)
        for ratio in TIME_OUTS
    ]
    per_arrival_ms = 1e3 / server.arrival_rate
    trial_ms = max(_TRIAL_ARRIVALS, _TRIAL_BATCHES * server.max_batch) * per_arrival_ms
    final_ms = max(_FINAL_ARRIVALS, _FINAL_BATCHES * server.max_batch) * per_arrival_ms
    rule = min(rules, key=lambda rule: simulate_release(server, rule, trial_ms, seed).cost)
    found = simulate_release(server, rule, final_ms, seed + 1)
    name = f"{rule.num_requests} or {rule.wait_ms:.3g} ms"
    return Row(name, found.cost, found.mean_response_ms, found.power_w, is_simulated=True)
