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

_ARRIVALS, _BATCHES, _TURNS = 200_000, 1_000, 50.0
"""A rule is simulated for so many arrivals and batches, and so many times as long as a queue needs to forget."""

_TRIALS_SHARE = 8
"""Trials are shorter by this factor."""

_MOST_ARRIVALS = 3_000_000
"""Time-outs are left out where more would be needed: near a load of 1."""

_LEAST_SHARE = 1e-11
"""And where a batch takes less of the whole time, which floating point would not tell apart."""


@dataclass(frozen=True, slots=True)
class Row:
    """A rule and what it comes to; infinite where it does not keep up.

    cost_error: half of the 95 % confidence interval of a simulated cost; None where figures are exact.
    """

    name: str
    cost: float
    mean_response_ms: float
    power_w: float
    cost_error: float | None = None


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
    num_arrivals = _arrivals_needed(server)
    is_exact = num_arrivals * _LEAST_SHARE < server.arrival_rate / 1e3 * server.service_ms[0]
    if num_arrivals <= _MOST_ARRIVALS and is_exact:
        rows.append(_best_time_out(server, num_arrivals, seed))
    return Comparison(server, policy, rows)


def _row(name: str, policy: ReleasePolicy) -> Row:
    return Row(name, policy.cost, policy.mean_response_ms, policy.power_w)


def _arrivals_needed(server: BatchServer) -> float:
    """Arrivals after which a queue has forgotten often enough how it began: batches / (1 - load)²."""
    forgetting = server.max_batch / (1.0 - server.load_ratio) ** 2
    return max(_ARRIVALS, _BATCHES * server.max_batch, _TURNS * forgetting)


def _best_time_out(server: BatchServer, num_arrivals: float, seed: int) -> Row:
    """The best of short trials, on other arrivals and for longer."""
    sizes = {size for size in (4, *FIXED_SIZES, server.max_batch) if size in server.batch_sizes}
    rules = [
        TimeOut(size, ratio * server.service_ms[-1])
        for size in sorted(sizes)
        for ratio in TIME_OUTS
    ]
    duration_ms = num_arrivals * 1e3 / server.arrival_rate
    trial_ms = duration_ms / _TRIALS_SHARE
    rule = min(rules, key=lambda rule: simulate_release(server, rule, trial_ms, seed).cost)
    found = simulate_release(server, rule, duration_ms, seed + 1)
    name = f"{rule.num_requests}, or {rule.wait_ms:.3g} ms"
    return Row(name, found.cost, found.mean_response_ms, found.power_w, found.cost_error)
