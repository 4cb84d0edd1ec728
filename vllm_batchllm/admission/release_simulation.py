# SPDX-License-Identifier: Apache-2.0
"""Release rules on simulated arrivals: the check of the exact figures, and the only way for time-outs."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vllm_batchllm.admission.release_policy import ReleasePolicy
from vllm_batchllm.admission.release_server import BatchServer

NUM_PARTS = 32
"""Parts of a run whose spread tells how sure its mean is; one more in front is left out."""

_STUDENT = 2.04
"""97.5 % point of Student's distribution with 31 degrees of freedom."""

Start = Callable[[list[float], int, int, float], tuple[float, int]]
"""Of arrivals, the first who waits, how many wait and the time: when the next batch starts, how large it is."""


@dataclass(frozen=True, slots=True)
class TimeOut:
    """Serve what waits as soon as ``num_requests`` wait, or the oldest has waited for ``wait_ms``."""

    num_requests: int
    wait_ms: float


class SimulatedFigures(NamedTuple):
    """What a rule came to in a run; ``_error`` is half the width of a 95 % confidence interval."""

    cost: float
    cost_error: float
    mean_response_ms: float
    response_error: float
    power_w: float
    power_error: float


def simulate_release(
    server: BatchServer, rule: ReleasePolicy | TimeOut, duration_ms: float, seed: int = 0
) -> SimulatedFigures:
    """Serve Poisson arrivals of ``duration_ms`` by ``rule``, beginning with nobody there.

    A queue that grows for ever is simulated as far as it goes; its figures grow with the duration.

    Raises:
        ValueError: the rule does not fit the server, or there are fewer batches than parts of the run.
    """
    rng = np.random.default_rng(seed)
    num_arrivals = rng.poisson(server.arrival_rate / 1e3 * duration_ms)
    arrivals = np.sort(rng.uniform(0.0, duration_ms, num_arrivals))
    start = _by_table(server, rule) if isinstance(rule, ReleasePolicy) else _by_time(server, rule)
    ends, batches = _serve(server, arrivals.tolist(), start)
    if len(batches) < 2 * (NUM_PARTS + 1):
        raise ValueError(
            f"{len(batches)} batches in {duration_ms:g} ms are too few; simulate for longer"
        )
    return _figures(server, arrivals, ends, batches)


def _serve(
    server: BatchServer, arrivals: list[float], start: Start
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """End and size of each batch, until nobody comes any more."""
    service, most = (0.0, *server.service_ms), len(arrivals)
    now, first, last = 0.0, 0, 0
    ends, batches = [], []
    while True:
        now, batch = start(arrivals, first, last - first, now)
        if not batch:
            break
        now += service[batch]
        first += batch
        ends.append(now)
        batches.append(batch)
        last = max(last, first)
        while last < most and arrivals[last] <= now:
            last += 1
    return np.array(ends), np.array(batches, dtype=np.int64)


def _by_table(server: BatchServer, policy: ReleasePolicy) -> Start:
    num_states = policy.num_states
    batches = [*policy.batches, policy.overflow_batch]
    serving = [0] * len(batches)
    at = num_states + 1
    for number in reversed(range(len(batches))):
        at = number if batches[number] else at
        serving[number] = at

    def start(arrivals: list[float], first: int, num: int, now: float) -> tuple[float, int]:
        if num > num_states:
            return now, policy.overflow_batch
        at = serving[num]
        if at == num:
            return now, batches[num]
        if first + at > len(arrivals):
            return now, 0
        return arrivals[first + at - 1], batches[at]

    return start


def _by_time(server: BatchServer, rule: TimeOut) -> Start:
    least, full = server.min_batch, rule.num_requests
    if not (least <= full <= server.max_batch and rule.wait_ms >= 0):
        raise ValueError(
            f"{rule} does not fit batches of {least}..{server.max_batch} and times from 0 ms on"
        )

    def start(arrivals: list[float], first: int, num: int, now: float) -> tuple[float, int]:
        if num >= full:
            return now, min(num, server.max_batch)
        ahead = arrivals[first : first + full]
        if len(ahead) < least:
            return now, 0
        deadline = max(ahead[0] + rule.wait_ms, ahead[least - 1])
        if len(ahead) < full and deadline > arrivals[-1]:
            return now, 0  # what comes after the run might have been served with them
        now = max(now, deadline if len(ahead) < full else min(deadline, ahead[-1]))
        return now, bisect_right(ahead, now)

    return start


def _figures(
    server: BatchServer,
    arrivals: NDArray[np.float64],
    ends: NDArray[np.float64],
    batches: NDArray[np.int64],
) -> SimulatedFigures:
    """Means over all parts but the first, each of as many batches, and what their spread says."""
    num_served = int(batches.sum())
    waited = np.repeat(ends, batches) - arrivals[:num_served]
    edges = np.linspace(0, len(batches), NUM_PARTS + 2).astype(np.int64)[1:]
    requests = np.append(0, batches.cumsum())[edges]
    response_sums = np.diff(np.append(0.0, waited.cumsum())[requests])
    energies = np.append(0.0, np.array(server.energy_mj)[batches - 1].cumsum())[edges]
    sizes, times = np.diff(requests), np.diff(np.append(0.0, ends)[edges])
    responses, powers = response_sums / sizes, np.diff(energies) / times
    response = response_sums.sum() / sizes.sum()
    power = np.diff(energies).sum() / times.sum()
    costs = server.w_latency * responses + server.w_power * powers
    return SimulatedFigures(
        float(server.w_latency * response + server.w_power * power),
        _error(costs),
        float(response),
        _error(responses),
        float(power),
        _error(powers),
    )


def _error(parts: NDArray[np.float64]) -> float:
    return float(_STUDENT * parts.std(ddof=1) / len(parts) ** 0.5)
