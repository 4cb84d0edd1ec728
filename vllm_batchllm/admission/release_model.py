# SPDX-License-Identifier: Apache-2.0
"""The semi-Markov decision process of a batch server: what each decision costs, and where it leads.

States are numbers of waiting requests, 0 to ``num_states``, and behind them one state of overflow: it
stands for ``num_states`` waiting, must serve, and has an abstract cost for each millisecond, since those it
does not count would have cost something (arXiv 2501.02181, section IV). Actions are batch sizes, 0 for waiting
until the next arrival. Time is counted in mean times between arrivals, so that a slow server and a fast one
are equally well conditioned.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from vllm_batchllm.admission.release_server import MOST, BatchServer

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

MAX_STATES = 2048
"""Most waiting requests that are told apart: one direct solution takes a good part of a second there."""


@dataclass(frozen=True, slots=True)
class TableFigures:
    """What one table of decisions comes to, in the long run.

    mean_response_ms: from arrival to the end of the batch. power_w: mean power. overflow_ratio: share
    of time in the state of overflow. gain: weighted cost for each time between two arrivals, the abstract cost
    included. values: relative cost of starting in each state, 0 for the empty server.
    """

    mean_response_ms: float
    power_w: float
    overflow_ratio: float
    gain: float
    values: Floats


class ReleaseModel:
    """The process, truncated at ``num_states`` waiting requests.

    Args:
        overflow_cost: abstract cost of a millisecond in the state of overflow; None for as much
            again as the state's own cost, at the highest power that a batch takes.

    Raises:
        ValueError: num_states is below the largest batch or above MAX_STATES, or overflow_cost is no
            finite number of 0 or more.
    """

    def __init__(
        self, server: BatchServer, num_states: int, overflow_cost: float | None = None
    ) -> None:
        if not server.max_batch <= num_states <= MAX_STATES:
            raise ValueError(
                f"num_states {num_states} is not in {server.max_batch} (the largest batch) "
                f"..{MAX_STATES}"
            )
        self.server, self.num_states = server, num_states
        self.rate = server.arrival_rate / 1e3
        self.overflow_cost = self._own_cost() if overflow_cost is None else overflow_cost
        if overflow_cost is not None and not 0 <= overflow_cost <= MOST:
            raise ValueError(f"overflow_cost must be from 0 to {MOST:g}, not {overflow_cost:g}")
        self.numbers: Ints = np.append(np.arange(num_states + 1), num_states)
        self.sojourn: Floats = np.append(1.0, self.rate * np.array(server.service_ms))
        self.energy: Floats = np.append(0.0, server.energy_mj)
        self.is_allowed = self._allowed()
        self._arrivals = _poisson(self.sojourn[1:], num_states + 1)
        self._at_least: Floats = self._arrivals[:, ::-1].cumsum(axis=1)[:, ::-1]
        sizes = np.arange(1, server.max_batch + 1)
        self._left_over = np.maximum(self.numbers[:, None] - sizes, 0)
        self._columns = sizes - 1
        self.costs = np.where(self.is_allowed, self._costs(), np.inf)

    def _own_cost(self) -> float:
        server = self.server
        powers = np.array(server.energy_mj) / np.array(server.service_ms)
        waiting = server.w_latency * self.num_states / self.rate
        return float(waiting + server.w_power * powers.max())

    def _allowed(self) -> NDArray[np.bool_]:
        """Actions of each state, (num_states + 2, max_batch + 1)."""
        actions = np.arange(self.server.max_batch + 1)
        allowed = (actions >= self.server.min_batch) & (actions <= self.numbers[:, None])
        allowed[:-1, 0] = True
        return allowed

    def _costs(self) -> Floats:
        """Cost until the next decision of each state and action, as `is_allowed`."""
        crowd = self.numbers[:, None] * self.sojourn + self.sojourn**2 / 2
        crowd[:, 0] = self.numbers  # a wait ends with the arrival, it does not begin with it
        costs = self.server.w_latency / self.rate**2 * crowd + self.server.w_power * self.energy
        costs[-1] += self.overflow_cost * self.sojourn / self.rate
        return np.asarray(costs)

    def expected(self, values: Floats) -> Floats:
        """Mean value of the next state, for each state and action; shapes as `values`, `costs`."""
        beyond = np.full(self.num_states + 1, values[-1])
        windows = sliding_window_view(np.append(values, beyond), self.num_states + 2)
        after = windows[: self.num_states + 1] @ self._arrivals.T
        found = np.empty_like(self.costs)
        found[:, 0] = np.append(values[1:], values[-1])
        found[:, 1:] = after[self._left_over, self._columns]
        return found

    def stay_ratios(self) -> Floats:
        """Probability that the next state is the same one, for each state and action."""
        found = np.zeros_like(self.costs)
        found[:-1, 1:] = self._arrivals[self._columns, self._columns + 1]
        found[-1, 1:] = self._at_least[self._columns, self._columns + 2]
        return found

    def transitions(self, actions: Ints) -> Floats:
        """Probabilities of the next state, (num_states + 2, num_states + 2), under one table."""
        left_over = self.numbers - actions
        batch = np.maximum(actions - 1, 0)
        arrived = np.arange(self.num_states + 1) - left_over[:, None]
        found = np.zeros((self.num_states + 2, self.num_states + 2))
        found[:, :-1] = self._arrivals[batch[:, None], np.maximum(arrived, 0)] * (arrived >= 0)
        found[:, -1] = self._at_least[batch, self.num_states + 1 - left_over]
        (waiting,) = np.nonzero(actions == 0)
        found[waiting] = 0.0
        found[waiting, waiting + 1] = 1.0
        return found

    def figures(self, actions: Ints) -> TableFigures:
        """What a table comes to, exactly but for the truncation; by one direct solution.

        Solves ``values + gain · sojourn = cost + transitions · values`` for several costs at once, with
        values[0] = 0 and the gain in its place (Puterman, Markov Decision Processes, section 11.4.3).
        Every table reaches the state of overflow from everywhere, so the gain is one number.

        Args:
            actions: batch of each state, (num_states + 2,); each one allowed.
        """
        states = np.arange(self.num_states + 2)
        sojourn = self.sojourn[actions]
        crowd = self.numbers * sojourn + np.where(actions > 0, sojourn**2 / 2, 0.0)
        overflow = np.where(states == self.num_states + 1, sojourn, 0.0)
        sides = np.stack(
            [crowd, self.energy[actions], overflow, self.costs[states, actions]], axis=1
        )
        matrix = np.eye(self.num_states + 2) - self.transitions(actions)
        matrix[:, 0] = sojourn
        solved = _solve(matrix, sides)
        number, energy, overflow_ratio, gain = solved[0].tolist()
        values = solved[:, 3].copy()
        values[0] = 0.0
        power_w, overflow_ratio = max(energy * self.rate, 0.0), max(overflow_ratio, 0.0)
        return TableFigures(number / self.rate, power_w, overflow_ratio, gain, values)


def _solve(matrix: Floats, sides: Floats) -> Floats:
    try:
        return np.asarray(np.linalg.solve(matrix, sides), dtype=np.float64)
    except np.linalg.LinAlgError:  # arrivals so rare that parts of the process never meet
        return np.asarray(np.linalg.lstsq(matrix, sides, rcond=None)[0])


def _poisson(means: Floats, most: int) -> Floats:
    """Probabilities of 0 .. most - 1 arrivals, and of ``most`` or more; (len(means), most + 1)."""
    counts = np.arange(most)
    log_factorials = np.append(0.0, np.log(np.arange(1, most)).cumsum())
    exponents = counts * np.log(means)[:, None] - means[:, None] - log_factorials
    found = np.exp(exponents)
    rest = np.maximum(1.0 - found.sum(axis=1, keepdims=True), 0.0)
    return np.append(found, rest, axis=1)
