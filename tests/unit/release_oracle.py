# SPDX-License-Identifier: Apache-2.0
"""All tables of a small batch server, each evaluated from the definition: no code is shared with the package."""

from __future__ import annotations

import itertools
import math

import numpy as np

from vllm_batchllm.admission.release_server import BatchServer

Table = tuple[int, ...]


def all_tables(server: BatchServer, num_states: int) -> list[Table]:
    """Every stationary policy: a batch for 0 .. num_states waiting, and for the state of overflow."""
    choices = []
    for number in [*range(num_states + 1), num_states]:
        most = min(number, server.max_batch)
        choices.append([0, *range(server.min_batch, most + 1)])
    choices[-1] = choices[-1][1:]
    return list(itertools.product(*choices))


def costs_of(
    server: BatchServer, tables: list[Table], num_states: int, overflow_cost: float
) -> np.ndarray:
    """Long-run cost of each table: stationary distribution of the states at decisions, by hand."""
    rows = {
        (state, batch): _row(server, state, batch, num_states, overflow_cost)
        for state in range(num_states + 2)
        for batch in range(server.max_batch + 1)
    }
    nexts, costs, times = (
        np.array(
            [[rows[state, batch][part] for state, batch in enumerate(table)] for table in tables]
        )
        for part in range(3)
    )
    size = num_states + 2
    equations = np.transpose(nexts - np.eye(size), (0, 2, 1)).copy()
    equations[:, -1] = 1.0
    right = np.zeros((len(tables), size, 1))
    right[:, -1] = 1.0
    shares = np.linalg.solve(equations, right)[:, :, 0]
    return (shares * costs).sum(axis=1) / (shares * times).sum(axis=1)


def _row(
    server: BatchServer, state: int, batch: int, num_states: int, overflow_cost: float
) -> tuple[list[float], float, float]:
    """Where a decision leads, its cost and its time in ms; nonsense where it is not allowed."""
    rate = server.arrival_rate / 1e3
    waiting = min(state, num_states)
    chances = [0.0] * (num_states + 2)
    if not batch:
        chances[min(state + 1, num_states + 1)] = 1.0
        return chances, server.w_latency / rate * waiting / rate, 1 / rate
    service = server.service_ms[batch - 1]
    for arrived in range(100):
        chance = math.exp(-rate * service) * (rate * service) ** arrived / math.factorial(arrived)
        chances[min(max(waiting - batch, 0) + arrived, num_states + 1)] += chance
    number_ms = waiting * service + rate * service**2 / 2
    cost = server.w_latency / rate * number_ms + server.w_power * server.energy_mj[batch - 1]
    if state > num_states:
        cost += overflow_cost * service
    return chances, cost, service
