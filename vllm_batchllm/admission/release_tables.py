# SPDX-License-Identifier: Apache-2.0
"""Tables of releases for a live server, from what it has learnt (``release_policy.py`` has the model)."""

from __future__ import annotations

from dataclasses import dataclass, replace

from vllm_batchllm.admission.release_policy import ReleasePolicy, greedy
from vllm_batchllm.admission.release_server import BatchServer
from vllm_batchllm.admission.release_solver import solve
from vllm_batchllm.admission.service_times import ServiceTime

MAX_LOAD = 0.97
"""Share of what the server can do beyond which a table is made for this share: the process would want ever more states, and
with many waiting the table serves the fastest batches anyway."""

LEAST_GAIN = 0.02
"""Share of the cost of serving at once that a table must promise to save: of promises, noise keeps the largest. With 0.05 a real
engine lost as often as with this, and simulated ones gained less."""

STATES_PER_BATCH = 2
"""States of a table for each request of the largest batch."""


@dataclass(frozen=True, slots=True)
class Table:
    """A policy, and the mean power that it saves against serving at once, by the same model."""

    policy: ReleasePolicy
    saved_w: float

    def batch_of(self, num_waiting: int) -> int:
        """How many of ``num_waiting`` to serve now; 0 to wait for more."""
        return self.policy.batch_of(num_waiting)


def make_table(
    arrival_rate: float, service: ServiceTime, max_batch: int, power_weight: float, more_w: float
) -> Table | None:
    """The table for such arrivals and batches; None where all are best served at once.

    A server that takes requests in runs no batch meanwhile, so each request keeps it for its intake as well. That draws no more power.

    Args:
        arrival_rate: requests per second. power_weight: milliseconds of mean response time that a watt is worth.
        more_w: what the device draws in a step beyond what it draws anyway: a batch's energy is that times its time.
    """
    service_ms = tuple(1e3 * seconds for seconds in service.up_to(max_batch))
    if min(service_ms) <= 0:
        return None
    busy_ms = (ms + size * 1e3 * service.intake_s for size, ms in enumerate(service_ms, 1))
    server = BatchServer(
        arrival_rate,
        tuple(busy_ms),
        tuple(more_w * milliseconds for milliseconds in service_ms),
        w_latency=1.0,
        w_power=power_weight,
    )
    if server.load_ratio > MAX_LOAD:
        server = replace(server, arrival_rate=MAX_LOAD * server.max_rate)
    num_states = max(STATES_PER_BATCH * max_batch, 32)
    policy, at_once = solve(server, num_states), greedy(server, num_states)
    if policy.model_cost > (1 - LEAST_GAIN) * at_once.model_cost:
        return None
    return Table(policy, at_once.power_w - policy.power_w)
